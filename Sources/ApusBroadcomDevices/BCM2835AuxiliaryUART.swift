import ApusDevice
import ApusMemory
import Synchronization

/// The auxiliary peripherals: the mini UART, and the two SPI masters' place [BCM2835 §2].
///
/// Any thread. Characters leave as fast as the back end takes them. Not modelled: the SPI masters (their registers read as 0),
/// baud rate, modem lines, receive timeouts, line errors but for overruns.
public final class BCM2835AuxiliaryUART: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private struct State {
    static let depth = 8
    /// AUX_ENABLES: mini UART, SPI 1, SPI 2.
    var enables: UInt32 = 0
    var receiveQueue: [UInt8] = []
    var transmitQueue: [UInt8] = []
    var hasOverrun = false
    /// Bit 0: received data, bit 1: empty transmitter.
    var interruptEnable: UInt32 = 0
    var lineControl: UInt32 = 0
    var modemControl: UInt32 = 0
    var scratch: UInt32 = 0
    /// Receiver and transmitter enabled.
    var control: UInt32 = 3
    var baud: UInt32 = 0
    /// Set while the empty transmitter has not been told of yet.
    var hasEmptied = false

    /// AUX_MU_IIR: 2 for the transmitter, 4 for the receiver, bit 0 if there is none; FIFOs are on.
    var identification: UInt32 {
      if interruptEnable & 1 != 0, !receiveQueue.isEmpty { return 0xc4 }
      return interruptEnable & 2 != 0 && hasEmptied ? 0xc2 : 0xc1
    }
    var isInterrupting: Bool { identification & 1 == 0 }
    /// AUX_MU_LSR: data ready, overrun, room in the transmitter, transmitter idle.
    var lineStatus: UInt32 {
      (receiveQueue.isEmpty ? 0 : 1) | (hasOverrun ? 2 : 0) | (transmitQueue.count < Self.depth ? 0x20 : 0)
        | (transmitQueue.isEmpty ? 0x40 : 0)
    }
    /// AUX_MU_STAT.
    var status: UInt32 {
      (receiveQueue.isEmpty ? 0 : 1) | (transmitQueue.count < Self.depth ? 2 : 0) | 4
        | (hasOverrun ? 0x10 : 0) | (transmitQueue.count >= Self.depth ? 0x20 : 0)
        | (transmitQueue.isEmpty ? 0x308 : 0) | UInt32(receiveQueue.count) << 16
        | UInt32(transmitQueue.count) << 24
    }
    var hasDivisorAccess: Bool { lineControl & 0x80 != 0 }
  }
  private let state = Mutex(State())
  private let line: InterruptLine
  private let backend: any CharacterBackend

  public init(_ line: InterruptLine, _ backend: any CharacterBackend) {
    (self.line, self.backend) = (line, backend)
    backend.attach(
      CharacterFrontEnd(
        capacity: { [weak self] in self?.state.withLock { max(0, State.depth - $0.receiveQueue.count) } ?? 0
        },
        receive: { [weak self] bytes in
          self?.change { state in
            for byte in bytes where state.control & 1 != 0 {
              if state.receiveQueue.count < State.depth {
                state.receiveQueue.append(byte)
              } else {
                state.hasOverrun = true
              }
            }
          }
        },
        becameWritable: { [weak self] in self?.change { self?.transmit(&$0) } }))
  }

  public func reset() {
    change { $0 = State() }
    backend.acceptInput()
  }

  @discardableResult
  private func change<R: Sendable>(_ body: (inout State) -> R) -> R {
    state.withLock { state in
      let result = body(&state)
      line.set(state.isInterrupting)
      return result
    }
  }

  private func transmit(_ state: inout State) {
    guard !state.transmitQueue.isEmpty else { return }
    let count = backend.write(state.transmitQueue)
    state.transmitQueue.removeFirst(min(count, state.transmitQueue.count))
    if state.transmitQueue.isEmpty { state.hasEmptied = true }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    var hasRoom = false
    let value = change { state -> UInt32 in
      switch offset & ~3 {
      case 0x00: return state.isInterrupting ? 1 : 0
      case 0x04: return state.enables
      case 0x40:
        if state.hasDivisorAccess { return state.baud & 0xff }
        guard !state.receiveQueue.isEmpty else { return 0 }
        hasRoom = true
        return UInt32(state.receiveQueue.removeFirst())
      case 0x44: return state.hasDivisorAccess ? state.baud >> 8 : state.interruptEnable
      case 0x48:
        let identification = state.identification
        if identification == 0xc2 { state.hasEmptied = false }
        return identification
      case 0x4c: return state.lineControl
      case 0x50: return state.modemControl
      case 0x54:
        let status = state.lineStatus
        state.hasOverrun = false
        return status
      case 0x58: return 0x10  // CTS
      case 0x5c: return state.scratch
      case 0x60: return state.control
      case 0x64: return state.status
      case 0x68: return state.baud
      default: return 0
      }
    }
    if hasRoom { backend.acceptInput() }
    return UInt64(value)
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    var hasRoom = false
    change { state in
      switch offset & ~3 {
      case 0x04: state.enables = word & 7
      case 0x40:
        if state.hasDivisorAccess {
          state.baud = state.baud & 0xff00 | word & 0xff
        } else if state.transmitQueue.count < State.depth {
          state.hasEmptied = false
          state.transmitQueue.append(UInt8(truncatingIfNeeded: word))
          transmit(&state)
        }
      case 0x44:
        if state.hasDivisorAccess {
          state.baud = state.baud & 0xff | (word & 0xff) << 8
        } else {
          if word & 2 != 0, state.interruptEnable & 2 == 0, state.transmitQueue.isEmpty {
            state.hasEmptied = true
          }
          state.interruptEnable = word & 15
        }
      case 0x48:
        if word & 2 != 0 {
          state.receiveQueue.removeAll()
          hasRoom = true
        }
        if word & 4 != 0 {
          state.transmitQueue.removeAll()
          state.hasEmptied = true
        }
      case 0x4c: state.lineControl = word & 0xff
      case 0x50: state.modemControl = word & 0xff
      case 0x5c: state.scratch = word & 0xff
      case 0x60: state.control = word & 0xff
      case 0x68: state.baud = word & 0xffff
      // The SPI masters, which are not there.
      case 0x80..<0x100: break
      default: GuestErrorTrace.report("bcm2835-aux", "write of register 0x\(String(offset, radix: 16))")
      }
    }
    if hasRoom { backend.acceptInput() }
  }
}
