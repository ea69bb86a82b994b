import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// The Goldfish real-time clock: nanoseconds since 1970 with an alarm [Android goldfish docs, `GOLDFISH-VIRTUAL-HARDWARE`].
///
/// ```
/// 0x00 TIME_LOW  (read latches high, write sets)   0x04 TIME_HIGH     0x08 ALARM_LOW (write arms)  0x0c ALARM_HIGH
/// 0x10 IRQ_ENABLED   0x14 CLEAR_ALARM   0x18 ALARM_STATUS   0x1c CLEAR_INTERRUPT
/// ```
/// Any thread. It runs with the host's wall clock, also while the machine is paused.
public final class GoldfishRTC: MMIODevice {
  public static let byteCount: UInt64 = 0x1000

  struct State: Equatable {
    /// What is added to the host's wall clock, in nanoseconds.
    var offset: UInt64
    var timeHigh: UInt32 = 0
    var alarm: UInt64 = 0
    var alarmHigh: UInt32 = 0
    var alarmIsArmed = false
    var interruptEnabled = false
    var interruptPending = false
  }
  private struct Guarded {
    var device: State
    var timer: EventLoop.TimerID?
  }
  private let state: Mutex<Guarded>
  private let line: InterruptLine
  private let loop: EventLoop
  private let startOffset: UInt64

  /// - Parameter offsetNanoseconds: what the clock shows beyond the host's UTC (`-rtc base=`).
  public init(_ line: InterruptLine, _ loop: EventLoop, offsetNanoseconds: Int64 = 0) {
    (self.line, self.loop) = (line, loop)
    startOffset = UInt64(bitPattern: offsetNanoseconds)
    state = Mutex(Guarded(device: State(offset: startOffset)))
  }

  /// Silences the alarm; the time goes on.
  public func reset() {
    state.withLock { state in
      state.device = State(offset: state.device.offset)
      update(&state)
    }
  }

  private func now(_ state: State) -> UInt64 { HostClock.realtimeNanoseconds() &+ state.offset }

  private func update(_ state: inout Guarded) {
    if let timer = state.timer { loop.cancel(timer) }
    state.timer = nil
    if state.device.alarmIsArmed {
      let time = now(state.device)
      if time >= state.device.alarm {
        state.device.alarmIsArmed = false
        state.device.interruptPending = true
      } else {
        let deadline = HostClock.monotonicNanoseconds().addingReportingOverflow(state.device.alarm - time)
        if !deadline.overflow {
          state.timer = loop.schedule(at: deadline.partialValue) { [weak self] in
            self?.state.withLock { self?.update(&$0) }
          }
        }
      }
    }
    line.set(state.device.interruptPending && state.device.interruptEnabled)
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    guard byteCount == 4 else { return misuse("read", offset, byteCount) }
    return state.withLock { state in
      switch offset {
      case 0x00:
        let time = now(state.device)
        state.device.timeHigh = UInt32(truncatingIfNeeded: time >> 32)
        return time & 0xffff_ffff
      case 0x04: return UInt64(state.device.timeHigh)
      case 0x08: return state.device.alarm & 0xffff_ffff
      case 0x0c: return state.device.alarm >> 32
      case 0x10: return state.device.interruptEnabled ? 1 : 0
      case 0x18: return state.device.alarmIsArmed ? 1 : 0
      case 0x14, 0x1c: return 0  // write-only
      default: return misuse("read", offset, byteCount)
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard byteCount == 4 else {
      _ = misuse("write", offset, byteCount)
      return
    }
    state.withLock { state in
      switch offset {
      case 0x00:
        let time = UInt64(state.device.timeHigh) << 32 | value & 0xffff_ffff
        state.device.offset = time &- HostClock.realtimeNanoseconds()
      case 0x04:
        state.device.timeHigh = UInt32(truncatingIfNeeded: value)
        return
      case 0x08:
        state.device.alarm = UInt64(state.device.alarmHigh) << 32 | value & 0xffff_ffff
        state.device.alarmIsArmed = true
      case 0x0c:
        state.device.alarmHigh = UInt32(truncatingIfNeeded: value)
        return
      case 0x10: state.device.interruptEnabled = value & 1 != 0
      case 0x14: state.device.alarmIsArmed = false
      case 0x1c: state.device.interruptPending = false
      default:
        _ = misuse("write", offset, byteCount)
        return
      }
      update(&state)
    }
  }

  private func misuse(_ what: String, _ offset: UInt64, _ byteCount: Int) -> UInt64 {
    GuestErrorTrace.report(
      "goldfish-rtc", "\(what) of \(byteCount) bytes at offset 0x\(String(offset, radix: 16))")
    return 0
  }
}
