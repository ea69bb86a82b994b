import ApusHost
import Synchronization

/// The guest's time: nanoseconds since the machine started, standing still while the machine is paused.
///
/// Any thread.
public final class GuestClock: Sendable {
  // While running: the host time that guest time 0 corresponds to. While paused: all ones, see `pausedAt`.
  private let origin: Atomic<UInt64>
  private let pausedAt = Mutex<UInt64?>(nil)
  private let resumeHandlers = Mutex<[@Sendable () -> Void]>([])
  private static let pausedMark = UInt64.max

  public init() { origin = Atomic(HostClock.monotonicNanoseconds()) }

  public func nowNanoseconds() -> UInt64 {
    let origin = origin.load(ordering: .relaxed)
    // Under the lock the two agree, should the clock be resumed just now.
    if origin == Self.pausedMark { return pausedAt.withLock { $0 ?? nowRunning() } }
    return HostClock.monotonicNanoseconds() &- origin
  }

  /// The host's monotonic time at which guest time will be `guest`, if the clock runs on.
  public func hostDeadline(_ guest: UInt64) -> UInt64 {
    let origin = origin.load(ordering: .relaxed)
    if origin == Self.pausedMark { return UInt64.max }
    return guest.addingReportingOverflow(origin).overflow ? UInt64.max : guest &+ origin
  }

  public func pause() {
    pausedAt.withLock { paused in
      guard paused == nil else { return }
      paused = nowRunning()
      origin.store(Self.pausedMark, ordering: .releasing)
    }
  }
  public func resume() {
    pausedAt.withLock { paused in
      guard let time = paused else { return }
      origin.store(HostClock.monotonicNanoseconds() &- time, ordering: .releasing)
      paused = nil
    }
    for body in resumeHandlers.withLock({ $0 }) { body() }
  }

  /// Calls `body` after each `resume`, on its thread: host deadlines have moved.
  public func onResume(_ body: @escaping @Sendable () -> Void) { resumeHandlers.withLock { $0.append(body) } }

  private func nowRunning() -> UInt64 {
    HostClock.monotonicNanoseconds() &- origin.load(ordering: .relaxed)
  }
}
