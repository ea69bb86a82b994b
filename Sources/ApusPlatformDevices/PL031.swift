import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// Arm's real-time clock: seconds since 1970, with an alarm [PrimeCell Real Time Clock PL031, DDI 0224].
///
/// Any thread. It runs with the host's wall clock, also while the machine is paused.
public final class PL031: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private struct State {
    /// What is added to the host's time, in seconds.
    var offset: Int64
    var match: UInt32 = 0
    var load: UInt32 = 0
    var mask: UInt32 = 0
    var raw: UInt32 = 0
    var timer: EventLoop.TimerID?
  }
  private let state: Mutex<State>
  private let line: InterruptLine
  private let loop: EventLoop

  /// - Parameter offsetSeconds: what the clock shows beyond the host's UTC (`-rtc base=`).
  public init(_ line: InterruptLine, _ loop: EventLoop, offsetSeconds: Int64 = 0) {
    (self.line, self.loop) = (line, loop)
    state = Mutex(State(offset: offsetSeconds))
  }

  /// Silences the alarm; the time goes on.
  public func reset() {
    state.withLock { state in
      (state.match, state.mask, state.raw) = (0, 0, 0)
      arm(&state)
    }
  }

  private func now(_ state: State) -> UInt32 {
    UInt32(truncatingIfNeeded: Int64(HostClock.realtimeNanoseconds() / 1_000_000_000) &+ state.offset)
  }

  /// Sets the line and, for an alarm to come, the host's timer.
  private func arm(_ state: inout State) {
    if let timer = state.timer { loop.cancel(timer) }
    state.timer = nil
    let seconds = state.match &- now(state)
    if state.match != 0, seconds == 0 { state.raw = 1 }
    line.set(state.raw & state.mask != 0)
    guard state.mask != 0, state.raw == 0, state.match != 0 else { return }
    let deadline = HostClock.monotonicNanoseconds() + UInt64(seconds) * 1_000_000_000
    state.timer = loop.schedule(at: deadline) { [weak self] in
      self?.state.withLock { state in
        state.raw = 1
        state.timer = nil
        self?.line.set(state.mask != 0)
      }
    }
  }

  private static let identification: [UInt64] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state in
      switch offset {
      case 0x00: return UInt64(now(state))
      case 0x04: return UInt64(state.match)
      case 0x08: return UInt64(state.load)
      case 0x0c: return 1  // always running
      case 0x10: return UInt64(state.mask)
      case 0x14: return UInt64(state.raw)
      case 0x18: return UInt64(state.raw & state.mask)
      case 0xfe0..<0x1000: return Self.identification[Int(offset - 0xfe0) / 4]
      default:
        GuestErrorTrace.report("pl031", "read of register 0x\(String(offset, radix: 16))")
        return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let value32 = UInt32(truncatingIfNeeded: value)
    state.withLock { state in
      switch offset {
      case 0x04: state.match = value32
      case 0x08:
        state.load = value32
        state.offset += Int64(Int32(bitPattern: value32 &- now(state)))
      case 0x0c: return  // it runs already
      case 0x10: state.mask = value32 & 1
      case 0x1c: state.raw &= ~(value32 & 1)
      default:
        GuestErrorTrace.report("pl031", "write of register 0x\(String(offset, radix: 16))")
        return
      }
      arm(&state)
    }
  }
}
