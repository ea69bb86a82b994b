import ApusCPU
import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// The system timer: a counter of microseconds with four comparators [BCM2835 §12].
///
/// Any thread. A match sets its bit in CS, which is its interrupt, until the guest writes it back.
public final class BCM2835SystemTimer: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private struct State {
    var matched: UInt32 = 0
    var compare: [UInt32] = [0, 0, 0, 0]
  }
  private let state = Mutex(State())
  private let lines: [InterruptLine]
  private let clock: GuestClock
  private let timers: [GuestTimer]

  public init(_ lines: [InterruptLine], clock: GuestClock, loop: EventLoop) {
    precondition(lines.count == 4, "the timer has four comparators")
    (self.lines, self.clock) = (lines, clock)
    let owner = WeakReference<BCM2835SystemTimer>()
    timers = (0..<4).map { index in GuestTimer(clock, loop) { owner.value?.match(index) } }
    owner.value = self
  }

  public func reset() {
    for timer in timers { timer.disarm() }
    change { $0 = State() }
  }

  private var counter: UInt64 { clock.nowNanoseconds() / 1000 }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      for (index, line) in lines.enumerated() { line.set(state.matched >> UInt32(index) & 1 != 0) }
    }
  }

  private func match(_ index: Int) { change { $0.matched |= 1 << UInt32(index) } }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state in
      switch offset {
      case 0x00: return UInt64(state.matched)
      case 0x04: return counter & 0xffff_ffff
      case 0x08: return counter >> 32
      case 0x0c, 0x10, 0x14, 0x18: return UInt64(state.compare[Int(offset - 0x0c) / 4])
      default:
        GuestErrorTrace.report("bcm2835-timer", "read of register 0x\(String(offset, radix: 16))")
        return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    change { state in
      switch offset {
      case 0x00: state.matched &= ~word
      case 0x04, 0x08: break  // read-only
      case 0x0c, 0x10, 0x14, 0x18:
        let index = Int(offset - 0x0c) / 4
        state.compare[index] = word
        // The lower half comes to this value within the next 71 minutes.
        let now = counter
        var distance = UInt64(word &- UInt32(truncatingIfNeeded: now))
        if distance == 0 { distance = 1 << 32 }
        timers[index].arm(at: (now + distance) * 1000)
      default: GuestErrorTrace.report("bcm2835-timer", "write of register 0x\(String(offset, radix: 16))")
      }
    }
  }
}
