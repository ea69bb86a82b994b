import ApusDevice
import ApusMemory
import Synchronization

/// Arm's UART with FIFOs [PrimeCell UART PL011, DDI 0183], registers of 32 bits.
///
/// Any thread. Characters leave as fast as the back end takes them. Not modelled: the baud rate, modem lines, DMA, and
/// errors but for break.
public final class PL011: MMIODevice {
  public static let byteCount: UInt64 = 0x1000

  /// Interrupts, as in UARTRIS [§3.3.11].
  private enum Interrupt {
    static let receive: UInt32 = 1 << 4
    static let transmit: UInt32 = 1 << 5
    static let receiveTimeout: UInt32 = 1 << 6
    static let `break`: UInt32 = 1 << 9
  }
  private struct State {
    static let depth = 16
    /// Characters with their error bits (10: break).
    var receiveQueue: [UInt16] = []
    var transmitQueue: [UInt8] = []
    var errors: UInt32 = 0
    var integerDivisor: UInt32 = 0
    var fractionalDivisor: UInt32 = 0
    var lineControl: UInt32 = 0
    /// Transmitter and receiver enabled.
    var control: UInt32 = 0x300
    var levelSelect: UInt32 = 0x12
    var mask: UInt32 = 0
    var raw: UInt32 = 0
    var hasFIFOs: Bool { lineControl & 0x10 != 0 }
    var receiveDepth: Int { hasFIFOs ? Self.depth : 1 }
    var isLoopback: Bool { control & 0x80 != 0 }

    mutating func receive(_ character: UInt16) {
      guard receiveQueue.count < receiveDepth else { return }
      receiveQueue.append(character)
      // The trigger level is not waited for: nobody would have to time out.
      raw |= Interrupt.receive
      if character & 0x400 != 0 { raw |= Interrupt.break }
    }
    /// UARTFR [§3.3.3]: TXFE 7, RXFF 6, TXFF 5, RXFE 4, BUSY 3.
    var flags: UInt64 {
      (transmitQueue.isEmpty ? 0x80 : 0) | (receiveQueue.count >= receiveDepth ? 0x40 : 0)
        | (transmitQueue.count >= (hasFIFOs ? Self.depth : 1) ? 0x20 : 0) | (receiveQueue.isEmpty ? 0x10 : 0)
        | (transmitQueue.isEmpty ? 0 : 8)
    }
  }
  private let state = Mutex(State())
  private let line: InterruptLine
  private let backend: any CharacterBackend

  public init(_ line: InterruptLine, _ backend: any CharacterBackend) {
    (self.line, self.backend) = (line, backend)
    backend.attach(
      CharacterFrontEnd(
        capacity: { [weak self] in
          self?.state.withLock { $0.isLoopback ? 0 : max(0, $0.receiveDepth - $0.receiveQueue.count) } ?? 0
        },
        receive: { [weak self] bytes in
          self?.change { state in for byte in bytes { state.receive(UInt16(byte)) } }
        },
        becameWritable: { [weak self] in self?.change { self?.transmit(&$0) } },
        receiveBreak: { [weak self] in self?.change { $0.receive(0x400) } }))
  }

  public func reset() {
    change { $0 = State() }
    backend.acceptInput()
  }

  /// Changes the state, then drives the interrupt line.
  @discardableResult
  private func change<R: Sendable>(_ body: (inout State) -> R) -> R {
    state.withLock { state in
      let result = body(&state)
      line.set(state.raw & state.mask != 0)
      return result
    }
  }

  private func transmit(_ state: inout State) {
    guard !state.transmitQueue.isEmpty else { return }
    let count = backend.write(state.transmitQueue)
    state.transmitQueue.removeFirst(min(count, state.transmitQueue.count))
    if state.transmitQueue.isEmpty { state.raw |= Interrupt.transmit }
  }

  // PrimeCell identification [§3.3.16].
  private static let identification: [UInt64] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    if offset == 0 {
      let character = change { state -> UInt16 in
        guard !state.receiveQueue.isEmpty else { return 0 }
        let character = state.receiveQueue.removeFirst()
        state.errors = UInt32(character >> 8)
        if state.receiveQueue.isEmpty { state.raw &= ~(Interrupt.receive | Interrupt.receiveTimeout) }
        return character
      }
      backend.acceptInput()
      return UInt64(character)
    }
    return state.withLock { state in
      switch offset {
      case 0x04: return UInt64(state.errors)
      case 0x18: return state.flags
      case 0x24: return UInt64(state.integerDivisor)
      case 0x28: return UInt64(state.fractionalDivisor)
      case 0x2c: return UInt64(state.lineControl)
      case 0x30: return UInt64(state.control)
      case 0x34: return UInt64(state.levelSelect)
      case 0x38: return UInt64(state.mask)
      case 0x3c: return UInt64(state.raw)
      case 0x40: return UInt64(state.raw & state.mask)
      case 0x20, 0x48: return 0
      case 0xfe0..<0x1000: return Self.identification[Int(offset - 0xfe0) / 4]
      default:
        GuestErrorTrace.report("pl011", "read of register 0x\(String(offset, radix: 16))")
        return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let value32 = UInt32(truncatingIfNeeded: value)
    var hasRoom = false
    change { state in
      switch offset {
      case 0x00:
        let byte = UInt8(truncatingIfNeeded: value)
        if state.isLoopback {
          state.receive(UInt16(byte))
          state.raw |= Interrupt.transmit
        } else {
          // A guest that writes into a full FIFO loses the character, as on the device.
          state.raw &= ~Interrupt.transmit
          if state.transmitQueue.count < State.depth { state.transmitQueue.append(byte) }
          transmit(&state)
        }
      case 0x04: state.errors = 0
      case 0x20: break  // UARTILPR: low-power IrDA
      case 0x24: state.integerDivisor = value32 & 0xffff
      case 0x28: state.fractionalDivisor = value32 & 63
      case 0x2c:
        // Switching the FIFOs empties them.
        if (state.lineControl ^ value32) & 0x10 != 0 {
          state.receiveQueue.removeAll()
          state.raw &= ~Interrupt.receive
          hasRoom = true
        }
        state.lineControl = value32 & 0xff
      case 0x30:
        state.control = value32 & 0xffff
        hasRoom = true
      case 0x34: state.levelSelect = value32 & 63
      case 0x38: state.mask = value32 & 0x7ff
      case 0x44: state.raw &= ~(value32 & 0x7ff)
      case 0x48: break  // UARTDMACR
      default: GuestErrorTrace.report("pl011", "write of register 0x\(String(offset, radix: 16))")
      }
    }
    if hasRoom { backend.acceptInput() }
  }
}
