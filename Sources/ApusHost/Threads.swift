import CApusHost
import Glibc

/// A mutex with a condition variable, for code that must block with a deadline.
///
/// Any thread. `Mutex` of the standard library is enough where nobody waits.
public final class Monitor: @unchecked Sendable {
  // SAFETY: both are heap cells that live as long as the object; POSIX makes their calls thread-safe.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

  public init() {
    pthread_mutex_init(mutex, nil)
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(condition, &attributes)
  }

  deinit {
    pthread_cond_destroy(condition)
    pthread_mutex_destroy(mutex)
    condition.deallocate()
    mutex.deallocate()
  }

  public func lock() { pthread_mutex_lock(mutex) }
  public func unlock() { pthread_mutex_unlock(mutex) }
  /// Takes the lock if nobody has it.
  public func tryLock() -> Bool { pthread_mutex_trylock(mutex) == 0 }
  public func withLock<R>(_ body: () throws -> R) rethrows -> R {
    lock()
    defer { unlock() }
    return try body()
  }

  /// Waits with the lock held until signalled or until `deadline` (monotonic nanoseconds; `nil`: no limit).
  /// Returns false when the deadline passed. Spurious wake-ups happen: test the condition again.
  @discardableResult
  public func wait(until deadline: UInt64? = nil) -> Bool {
    guard let deadline else { return pthread_cond_wait(condition, mutex) == 0 }
    var time = timespec(
      tv_sec: Int(min(deadline / 1_000_000_000, UInt64(Int32.max) * 1000)),
      tv_nsec: Int(deadline % 1_000_000_000))
    return pthread_cond_timedwait(condition, mutex, &time) != ETIMEDOUT
  }
  public func signal() { pthread_cond_signal(condition) }
  public func broadcast() { pthread_cond_broadcast(condition) }
}

/// A host thread that can be joined.
public struct HostThread: @unchecked Sendable {
  private let handle: pthread_t

  private final class Body {
    let run: @Sendable () -> Void
    let name: String
    init(_ name: String, _ run: @escaping @Sendable () -> Void) { (self.name, self.run) = (name, run) }
  }

  /// Lets another thread of the same priority run.
  public static func giveWay() { sched_yield() }

  /// Starts a thread named `name` (cut to 15 bytes) that runs `body`.
  public static func spawn(
    _ name: String, stackByteCount: Int = 1 << 20, _ body: @escaping @Sendable () -> Void
  )
    -> HostThread
  {
    var attributes = pthread_attr_t()
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, stackByteCount)
    var handle = pthread_t()
    // Termination signals belong to the main thread's event loop.
    var blocked = sigset_t()
    var previous = sigset_t()
    sigemptyset(&blocked)
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCHLD] { sigaddset(&blocked, signal) }
    pthread_sigmask(SIG_BLOCK, &blocked, &previous)
    let result = pthread_create(
      &handle, &attributes,
      { argument in
        let body = Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue()
        apus_set_thread_name(String(body.name.prefix(15)))
        body.run()
        return nil
      }, Unmanaged.passRetained(Body(name, body)).toOpaque())
    pthread_sigmask(SIG_SETMASK, &previous, nil)
    precondition(result == 0, "the host refused a thread")
    pthread_attr_destroy(&attributes)
    return HostThread(handle: handle)
  }

  public func join() { pthread_join(handle, nil) }
  /// Lets other threads run.
  public static func yield() { sched_yield() }
  /// Lets the thread end unobserved; instead of `join`.
  public func detach() { pthread_detach(handle) }
}
