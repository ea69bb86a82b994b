import CApusHost
import Glibc
import Synchronization

/// One thread that waits for descriptors and timers (epoll) and runs their handlers.
///
/// Handlers run on the loop's thread, one at a time, and must not block. `add`, `modify`, `remove`, `schedule`,
/// `cancel` and `post` may be called from any thread, handlers included.
public final class EventLoop: Sendable {
  /// Which readiness to report.
  public struct Interest: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let read = Interest(rawValue: EPOLLIN.rawValue)
    public static let write = Interest(rawValue: EPOLLOUT.rawValue)
    /// Reported whether asked for or not.
    public static let hangUp = Interest(rawValue: EPOLLHUP.rawValue | EPOLLERR.rawValue)
  }
  public typealias Handler = @Sendable (Interest) -> Void
  public struct TimerID: Hashable, Sendable { let value: UInt64 }

  private struct Timer {
    let id: TimerID
    let deadline: UInt64
    let body: @Sendable () -> Void
  }
  private struct State {
    var handlers: [Int32: Handler] = [:]
    var timers: [Timer] = []  // sorted by deadline, latest first
    var posted: [@Sendable () -> Void] = []
    var nextTimer: UInt64 = 1
    var stopped = false
    /// Descriptors that epoll refuses (regular files): always ready, as poll(2) has it.
    var alwaysReady: [Int32: Interest] = [:]
  }
  private let state = Mutex(State())
  private let epoll: Int32
  private let wakeup: Int32

  public init() throws(HostError) {
    epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard epoll >= 0 else { throw .last("create an epoll instance") }
    wakeup = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    guard wakeup >= 0 else { throw .last("create an eventfd") }
    var event = epoll_event(events: EPOLLIN.rawValue, data: epoll_data(fd: wakeup))
    epoll_ctl(epoll, EPOLL_CTL_ADD, wakeup, &event)
  }

  deinit {
    close(epoll)
    close(wakeup)
  }

  /// Watches `descriptor`; `handler` gets what is ready. A descriptor has one handler at a time.
  public func add(_ descriptor: Int32, _ interest: Interest, _ handler: @escaping Handler) {
    state.withLock { $0.handlers[descriptor] = handler }
    control(EPOLL_CTL_ADD, descriptor, interest)
  }
  public func modify(_ descriptor: Int32, _ interest: Interest) {
    control(EPOLL_CTL_MOD, descriptor, interest)
  }
  /// Stops watching; call before closing the descriptor.
  public func remove(_ descriptor: Int32) {
    control(EPOLL_CTL_DEL, descriptor, [])
    _ = state.withLock { $0.handlers.removeValue(forKey: descriptor) }
  }
  private func control(_ operation: Int32, _ descriptor: Int32, _ interest: Interest) {
    var event = epoll_event(events: interest.rawValue, data: epoll_data(fd: descriptor))
    if operation == EPOLL_CTL_DEL || state.withLock({ $0.alwaysReady[descriptor] != nil }) {
      let known = state.withLock { state in
        let old = state.alwaysReady.removeValue(forKey: descriptor)
        if operation != EPOLL_CTL_DEL { state.alwaysReady[descriptor] = interest }
        return old != nil
      }
      if known {
        if !interest.isEmpty { wake() }
        return
      }
    }
    if epoll_ctl(epoll, operation, descriptor, &event) < 0, errno == EPERM {
      state.withLock { $0.alwaysReady[descriptor] = interest }
      wake()
    }
  }

  /// Runs `body` once at `deadline` (monotonic nanoseconds) or as soon after as the loop gets to it.
  @discardableResult
  public func schedule(at deadline: UInt64, _ body: @escaping @Sendable () -> Void) -> TimerID {
    let (id, first) = state.withLock { state in
      let id = TimerID(value: state.nextTimer)
      state.nextTimer += 1
      let index = state.timers.firstIndex { $0.deadline <= deadline } ?? state.timers.count
      state.timers.insert(Timer(id: id, deadline: deadline, body: body), at: index)
      return (id, index == state.timers.count - 1)
    }
    if first { wake() }
    return id
  }
  /// Forgets a timer; one that is already running goes on.
  public func cancel(_ id: TimerID) { state.withLock { $0.timers.removeAll { $0.id == id } } }

  /// Runs `body` on the loop's thread soon.
  public func post(_ body: @escaping @Sendable () -> Void) {
    state.withLock { $0.posted.append(body) }
    wake()
  }

  /// Makes `run` return once the current handlers are through.
  public func stop() {
    state.withLock { $0.stopped = true }
    wake()
  }

  private func wake() {
    var one: UInt64 = 1
    _ = write(wakeup, &one, 8)
  }

  /// Runs until `stop`.
  public func run() {
    var events = [epoll_event](repeating: epoll_event(), count: 64)
    while true {
      let (due, posted, nextDeadline, stopped, ready) = state.withLock { state in
        let now = HostClock.monotonicNanoseconds()
        var due: [Timer] = []
        while let last = state.timers.last, last.deadline <= now {
          due.append(last)
          state.timers.removeLast()
        }
        let posted = state.posted
        state.posted.removeAll()
        return (due, posted, state.timers.last?.deadline, state.stopped, state.alwaysReady)
      }
      if stopped { return }
      for timer in due { timer.body() }
      for body in posted { body() }
      var polled = false
      for (descriptor, interest) in ready where !interest.isEmpty {
        polled = true
        state.withLock { $0.handlers[descriptor] }?(interest)
      }
      let count: Int32
      if !due.isEmpty || !posted.isEmpty || polled {
        count = epoll_wait(epoll, &events, 64, 0)
      } else if let nextDeadline {
        let now = HostClock.monotonicNanoseconds()
        let wait = nextDeadline > now ? nextDeadline - now : 0
        // epoll_pwait2 would give nanoseconds; a timer that fires up to 1 ms late is re-examined above.
        var time = timespec(tv_sec: Int(wait / 1_000_000_000), tv_nsec: Int(wait % 1_000_000_000))
        count = epoll_pwait2(epoll, &events, 64, &time, nil)
      } else {
        count = epoll_wait(epoll, &events, 64, -1)
      }
      for index in 0..<max(0, Int(count)) {
        let descriptor = events[index].data.fd
        if descriptor == wakeup {
          var value: UInt64 = 0
          _ = read(wakeup, &value, 8)
          continue
        }
        let handler = state.withLock { $0.handlers[descriptor] }
        handler?(Interest(rawValue: events[index].events))
      }
    }
  }
}
