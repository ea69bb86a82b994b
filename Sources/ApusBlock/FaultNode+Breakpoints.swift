import ApusHost
import Synchronization

/// Stops requests at events until someone lets them go on.
///
/// A request that nobody resumes goes on by itself after a minute.
final class Breakpoints: Sendable {
  private struct State {
    /// Events to stop at, by tag: the next request that meets one stops there.
    var waiting: [(event: String, tag: String)] = []
    /// Tags of the requests that stand still.
    var suspended: [String] = []
  }
  static let limitNanoseconds: UInt64 = 60_000_000_000
  private let monitor = Monitor()
  private let state = Mutex(State())
  // The common case costs no lock.
  private let isAny = Atomic<Bool>(false)

  func happened(_ event: String) {
    guard isAny.load(ordering: .relaxed) else { return }
    monitor.withLock {
      let found = state.withLock { state -> String? in
        guard let index = state.waiting.firstIndex(where: { $0.event == event }) else { return nil }
        let tag = state.waiting.remove(at: index).tag
        state.suspended.append(tag)
        return tag
      }
      guard let tag = found else { return }
      monitor.broadcast()
      let end = HostClock.monotonicNanoseconds() + Self.limitNanoseconds
      while state.withLock({ $0.suspended.contains(tag) }), HostClock.monotonicNanoseconds() < end {
        monitor.wait(until: end)
      }
      state.withLock { $0.suspended.removeAll { $0 == tag } }
    }
  }

  func add(_ event: String, tag: String) {
    monitor.withLock { state.withLock { $0.waiting.append((event, tag)) } }
    isAny.store(true, ordering: .sequentiallyConsistent)
  }

  func remove(tag: String) -> Bool {
    monitor.withLock {
      let isKnown = state.withLock { state in
        let isKnown = state.waiting.contains { $0.tag == tag } || state.suspended.contains(tag)
        state.waiting.removeAll { $0.tag == tag }
        state.suspended.removeAll { $0 == tag }
        return isKnown
      }
      monitor.broadcast()
      return isKnown
    }
  }

  func resume(tag: String) -> Bool {
    monitor.withLock {
      let isKnown = state.withLock { state in
        let count = state.suspended.count
        state.suspended.removeAll { $0 == tag }
        return state.suspended.count < count
      }
      monitor.broadcast()
      return isKnown
    }
  }

  /// No more breakpoints; who stands at one goes on.
  func clear() {
    monitor.withLock {
      state.withLock { $0 = State() }
      monitor.broadcast()
    }
  }

  func wait(tag: String) -> Bool {
    monitor.withLock {
      let end = HostClock.monotonicNanoseconds() + Self.limitNanoseconds
      while !state.withLock({ $0.suspended.contains(tag) }) {
        guard HostClock.monotonicNanoseconds() < end else { return false }
        monitor.wait(until: end)
      }
      return true
    }
  }
}

extension FaultNode {
  /// The fault node that a node leads to, if any.
  public static func find(below node: any ImageNode) -> FaultNode? {
    if let found = node as? FaultNode { return found }
    for child in node.children where child.role != "backing" {
      if let found = find(below: child.node) { return found }
    }
    return nil
  }

  /// Has the next request that meets `event` stop there, under the name `tag`.
  public func addBreakpoint(_ event: String, tag: String) { breakpoints.add(event, tag: tag) }
  /// Takes breakpoints away, and lets go on who stands there. False if there is none.
  public func removeBreakpoint(tag: String) -> Bool { breakpoints.remove(tag: tag) }
  /// Waits until a request stands still under the name `tag`. False after a minute.
  public func waitForBreakpoint(tag: String) -> Bool { breakpoints.wait(tag: tag) }
  /// Lets requests go on. False if none stood still.
  public func resume(tag: String) -> Bool { breakpoints.resume(tag: tag) }
  /// Takes all breakpoints away, and lets go on who stands there.
  public func clearBreakpoints() { breakpoints.clear() }
}
