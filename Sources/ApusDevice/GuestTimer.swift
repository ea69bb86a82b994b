import ApusCPU
import ApusHost
import Synchronization

/// A one-shot timer in guest time: it stands still with the guest's clock.
///
/// Any thread may arm and disarm it; the handler runs on the event loop's thread.
public final class GuestTimer: Sendable {
  private struct State {
    var deadline: UInt64?
    var timer: EventLoop.TimerID?
    /// Tells an overtaken host timer from the current one.
    var generation: UInt64 = 0
  }
  private let state = Mutex(State())
  private let clock: GuestClock
  private let loop: EventLoop
  private let handler: @Sendable () -> Void

  public init(_ clock: GuestClock, _ loop: EventLoop, _ handler: @escaping @Sendable () -> Void) {
    (self.clock, self.loop, self.handler) = (clock, loop, handler)
    clock.onResume { [weak self] in self?.rearm() }
  }

  /// Runs the handler at guest time `deadline` (nanoseconds), instead of any earlier arrangement.
  public func arm(at deadline: UInt64) {
    state.withLock { state in
      state.deadline = deadline
      schedule(&state)
    }
  }

  public func disarm() {
    state.withLock { state in
      state.deadline = nil
      state.generation += 1
      if let timer = state.timer { loop.cancel(timer) }
      state.timer = nil
    }
  }

  private func rearm() { state.withLock { if $0.deadline != nil { schedule(&$0) } } }

  private func schedule(_ state: inout State) {
    if let timer = state.timer { loop.cancel(timer) }
    state.generation += 1
    state.timer = nil
    guard let deadline = state.deadline else { return }
    let host = clock.hostDeadline(deadline)
    guard host != UInt64.max else { return }  // never, or not before the clock runs again
    let generation = state.generation
    state.timer = loop.schedule(at: host) { [weak self] in self?.fire(generation) }
  }

  private func fire(_ generation: UInt64) {
    let due = state.withLock { state in
      guard state.generation == generation, let deadline = state.deadline else { return false }
      state.timer = nil
      if clock.nowNanoseconds() < deadline {
        schedule(&state)
        return false
      }
      state.deadline = nil
      return true
    }
    if due { handler() }
  }
}
