import ApusCPU
import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// A serial port with FIFOs [NS PC16550D data sheet, TL/C/8652], registers one byte apart.
///
/// Any thread. Characters leave as fast as the back end takes them; when it is full the transmitter stays busy and
/// THRE stays clear until it has room. Reset state as QEMU's: OUT2 set, and CTS, DSR and DCD asserted.
/// Not modelled: the baud rate (but for the receive timeout), framing and parity errors, DMA signalling.
public final class UART16550: MMIODevice {
  public static let byteCount: UInt64 = 0x100
  /// Reference clock, in Hz.
  public static let clockFrequency: UInt64 = 3_686_400

  private let state = Mutex(State())
  private let line: InterruptLine
  private let backend: any CharacterBackend
  private let clock: GuestClock
  private let timeout: GuestTimer

  public init(_ line: InterruptLine, _ backend: any CharacterBackend, _ clock: GuestClock, _ loop: EventLoop)
  {
    (self.line, self.backend, self.clock) = (line, backend, clock)
    let owner = Owner()
    timeout = GuestTimer(clock, loop) { owner.uart.withLock { $0.value }?.receiveTimeout() }
    owner.uart.withLock { $0.value = self }
    backend.attach(
      CharacterFrontEnd(
        capacity: { [weak self] in self?.state.withLock { $0.receiveCapacity } ?? 0 },
        receive: { [weak self] in self?.receive($0) },
        becameWritable: { [weak self] in self?.withState { self?.transmit(&$0) } },
        receiveBreak: { [weak self] in self?.withState { $0.receiveBreak() } }))
  }

  /// Lets the timer, which is made before self is complete, find self.
  private final class Owner: Sendable {
    struct Reference { weak var value: UART16550? }
    let uart = Mutex(Reference())
  }

  public func reset() {
    timeout.disarm()
    withState { $0 = State() }
    backend.acceptInput()
  }

  /// Runs `body` on the state, then drives the interrupt line.
  private func withState<R: Sendable>(_ body: (inout State) -> R) -> R {
    state.withLock { state in
      let result = body(&state)
      line.set(state.interruptIdentification & 1 == 0)
      return result
    }
  }

  // MARK: The outside

  private func receive(_ bytes: [UInt8]) {
    withState { state in
      for byte in bytes { state.receive(byte) }
      armTimeout(state)
    }
  }

  private func receiveTimeout() { withState { $0.timeoutPending = !$0.receiveQueue.isEmpty } }

  /// Four character times without traffic raise the timeout interrupt.
  private func armTimeout(_ state: State) {
    guard state.fifosEnabled, !state.receiveQueue.isEmpty else {
      timeout.disarm()
      return
    }
    timeout.arm(at: clock.nowNanoseconds() + 4 * state.characterNanoseconds)
  }

  /// Hands the transmitter's content to the back end.
  private func transmit(_ state: inout State) {
    guard !state.transmitQueue.isEmpty else { return }
    let count = backend.write(state.transmitQueue)
    state.transmitQueue.removeFirst(min(count, state.transmitQueue.count))
    if state.transmitQueue.isEmpty { state.transmitEmptyPending = true }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    // Wider accesses reach one register, in their lowest byte.
    guard offset < 8 else { return misuse("read", offset) }
    var freed = false
    let value = withState { state in
      if offset == 0 && !state.divisorLatchAccess {
        let byte = state.takeReceived()
        freed = true
        armTimeout(state)
        return byte
      }
      return state.read(Int(offset))
    }
    if freed { backend.acceptInput() }
    return UInt64(value)
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard offset < 8 else {
      _ = misuse("write", offset)
      return
    }
    let byte = UInt8(truncatingIfNeeded: value)
    var freed = false
    withState { state in
      if offset == 0 && !state.divisorLatchAccess {
        if state.isLoopback {
          state.transmitEmptyPending = true
          state.receive(byte)
          armTimeout(state)
        } else {
          state.queueForTransmission(byte)
          transmit(&state)
        }
        return
      }
      let capacity = state.receiveCapacity
      state.write(Int(offset), byte)
      freed = state.receiveCapacity > capacity
    }
    if freed { backend.acceptInput() }
  }

  private func misuse(_ what: String, _ offset: UInt64) -> UInt64 {
    GuestErrorTrace.report(
      "uart16550", "\(what) at offset 0x\(String(offset, radix: 16)), past the registers")
    return 0
  }
}
