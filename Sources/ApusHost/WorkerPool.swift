/// A few host threads for calls that block: file I/O, name look-ups.
///
/// Any thread may submit. Threads start when there is work for them and sleep when there is none. Jobs start in the
/// order of submission and may run side by side.
public final class WorkerPool: @unchecked Sendable {
  public typealias Job = @Sendable () -> Void

  // SAFETY: everything below is touched with `monitor` held only.
  private let monitor = Monitor()
  private var jobs: [Job?] = []
  private var firstJob = 0
  private var idleCount = 0
  private var threads: [HostThread] = []
  private var isStopping = false

  private let name: String
  private let threadLimit: Int

  public init(_ name: String, threadLimit: Int = 4) {
    precondition(threadLimit > 0, "a pool needs a thread")
    (self.name, self.threadLimit) = (name, threadLimit)
  }

  public func submit(_ job: @escaping Job) {
    monitor.withLock {
      precondition(!isStopping, "a job for a stopped pool")
      jobs.append(job)
      let waiting = jobs.count - firstJob
      if waiting > idleCount, threads.count < threadLimit {
        threads.append(HostThread.spawn("\(name)-\(threads.count)") { [self] in run() })
      } else {
        monitor.signal()
      }
    }
  }

  /// Finishes what was submitted, then ends the threads.
  public func stop() {
    let threads = monitor.withLock {
      isStopping = true
      monitor.broadcast()
      return self.threads
    }
    for thread in threads { thread.join() }
  }

  private func run() {
    while let job = next() { job() }
  }

  private func next() -> Job? {
    monitor.withLock {
      while firstJob == jobs.count {
        if isStopping { return nil }
        idleCount += 1
        monitor.wait()
        idleCount -= 1
      }
      let job = jobs[firstJob]
      jobs[firstJob] = nil
      firstJob += 1
      if firstJob == jobs.count || firstJob >= 1024 {
        jobs.removeFirst(firstJob)
        firstJob = 0
      }
      return job
    }
  }
}

/// Counts operations under way, so that someone can wait until there are none.
///
/// Any thread.
public final class InFlightCounter: @unchecked Sendable {
  // SAFETY: count is touched with `monitor` held only.
  private let monitor = Monitor()
  private var count = 0

  public init() {}
  public func enter() { monitor.withLock { count += 1 } }
  public func leave() {
    monitor.withLock {
      count -= 1
      if count == 0 { monitor.broadcast() }
    }
  }
  /// Blocks until nothing is under way.
  public func waitUntilIdle() {
    monitor.withLock { while count > 0 { monitor.wait() } }
  }
}
