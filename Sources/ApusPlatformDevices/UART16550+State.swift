extension UART16550 {
  /// The chip's registers and queues.
  struct State: Equatable {
    static let fifoDepth = 16

    var receiveQueue: [UInt8] = []
    var transmitQueue: [UInt8] = []
    var interruptEnable: UInt8 = 0
    var lineControl: UInt8 = 0
    /// OUT2, the interrupt's gate on PCs, is on from the start.
    var modemControl: UInt8 = 0x08
    var scratch: UInt8 = 0
    var divisor: UInt16 = 12
    var fifoControl: UInt8 = 0
    /// Overrun (1), parity (2), framing (3) and break (4) bits of LSR, cleared by reading it.
    var lineErrors: UInt8 = 0
    /// The delta bits of MSR, cleared by reading it.
    var modemDeltas: UInt8 = 0
    var transmitEmptyPending = false
    var timeoutPending = false

    var fifosEnabled: Bool { fifoControl & 1 != 0 }
    var divisorLatchAccess: Bool { lineControl & 0x80 != 0 }
    var isLoopback: Bool { modemControl & 0x10 != 0 }
    var depth: Int { fifosEnabled ? Self.fifoDepth : 1 }
    /// In loopback mode the receiver is cut off from the outside.
    var receiveCapacity: Int { isLoopback ? 0 : max(0, depth - receiveQueue.count) }
    var receiveTrigger: Int { fifosEnabled ? [1, 4, 8, 14][Int(fifoControl >> 6)] : 1 }

    /// How long a character takes on the wire, at least a microsecond.
    var characterNanoseconds: UInt64 {
      let bits =
        1 + 5 + UInt64(lineControl & 3) + (lineControl & 8 != 0 ? 1 : 0) + (lineControl & 4 != 0 ? 2 : 1)
      return max(1000, bits * 16 * UInt64(max(1, divisor)) * 1_000_000_000 / UART16550.clockFrequency)
    }

    // MARK: Receiver

    mutating func receive(_ byte: UInt8) {
      guard receiveQueue.count < depth else {
        lineErrors |= 0x02
        // Without FIFOs the new character overwrites the old; with them it is lost.
        if !fifosEnabled { receiveQueue = [byte] }
        return
      }
      receiveQueue.append(byte)
    }

    mutating func receiveBreak() {
      receive(0)
      lineErrors |= 0x10
    }

    mutating func takeReceived() -> UInt8 {
      timeoutPending = false
      return receiveQueue.isEmpty ? 0 : receiveQueue.removeFirst()
    }

    // MARK: Transmitter

    mutating func queueForTransmission(_ byte: UInt8) {
      transmitEmptyPending = false
      // A guest that writes without THRE overwrites the last character.
      if transmitQueue.count >= depth { transmitQueue.removeLast() }
      transmitQueue.append(byte)
    }

    // MARK: Derived registers

    var lineStatus: UInt8 {
      (receiveQueue.isEmpty ? 0 : 0x01) | lineErrors | (transmitQueue.isEmpty ? 0x60 : 0)
    }

    var modemStatus: UInt8 {
      guard isLoopback else { return 0xb0 | modemDeltas }
      // DTR -> DSR, RTS -> CTS, OUT1 -> RI, OUT2 -> DCD
      let (dtr, rts) = (modemControl & 1, modemControl >> 1 & 1)
      return rts << 4 | dtr << 5 | (modemControl & 0x0c) << 4 | modemDeltas
    }

    /// IIR: the pending interrupt of the highest priority; bit 0 set if there is none.
    var interruptIdentification: UInt8 {
      let fifos: UInt8 = fifosEnabled ? 0xc0 : 0
      if interruptEnable & 4 != 0 && lineErrors != 0 { return fifos | 0x06 }
      if interruptEnable & 1 != 0 {
        if receiveQueue.count >= receiveTrigger { return fifos | 0x04 }
        if timeoutPending { return fifos | 0x0c }
      }
      if interruptEnable & 2 != 0 && transmitEmptyPending { return fifos | 0x02 }
      if interruptEnable & 8 != 0 && modemDeltas != 0 { return fifos }
      return fifos | 0x01
    }

    // MARK: Registers, apart from RBR and THR

    mutating func read(_ register: Int) -> UInt8 {
      switch register {
      case 0: return UInt8(truncatingIfNeeded: divisor)
      case 1: return divisorLatchAccess ? UInt8(truncatingIfNeeded: divisor >> 8) : interruptEnable
      case 2:
        let identification = interruptIdentification
        if identification & 0x0f == 0x02 { transmitEmptyPending = false }
        return identification
      case 3: return lineControl
      case 4: return modemControl
      case 5:
        let status = lineStatus
        lineErrors = 0
        return status
      case 6:
        let status = modemStatus
        modemDeltas = 0
        return status
      default: return scratch
      }
    }

    mutating func write(_ register: Int, _ value: UInt8) {
      switch register {
      case 0: divisor = divisor & 0xff00 | UInt16(value)
      case 1:
        if divisorLatchAccess {
          divisor = divisor & 0x00ff | UInt16(value) << 8
        } else {
          // Enabling the interrupt while the transmitter is empty raises it.
          if value & 2 != 0 && interruptEnable & 2 == 0 && transmitQueue.isEmpty {
            transmitEmptyPending = true
          }
          interruptEnable = value & 0x0f
        }
      case 2:
        let toggled = (value ^ fifoControl) & 1 != 0
        if toggled || value & 2 != 0 {
          receiveQueue.removeAll()
          timeoutPending = false
        }
        if toggled || value & 4 != 0 {
          if !transmitQueue.isEmpty { transmitEmptyPending = true }
          transmitQueue.removeAll()
        }
        fifoControl = value & 1 != 0 ? value & 0xc9 : 0
      case 3: lineControl = value
      case 4:
        let before = modemStatus
        modemControl = value & 0x1f
        // Deltas of CTS, DSR and DCD; RI only when it falls.
        let changed = (before ^ modemStatus) >> 4
        modemDeltas |= changed & 0x0b | (changed & 4 != 0 && modemStatus & 0x40 == 0 ? 4 : 0)
      case 7: scratch = value
      default: return  // LSR and MSR are read-only
      }
    }
  }
}
