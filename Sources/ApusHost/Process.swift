import CApusHost
import Glibc

/// This process: arguments of its end, signals, detachment.
public enum HostProcess {
  /// Ends the process with `code` (its low eight bits), running exit handlers.
  public static func exit(_ code: Int32) -> Never { Glibc.exit(code) }

  /// What `ps` shows as the command's name; at most 15 bytes count.
  public static func setName(_ name: String) { _ = apus_set_thread_name(String(name.prefix(15))) }

  /// The time now in UTC, as 2026-01-31T12:00:00.123456Z.
  public static func timestamp() -> String {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    var parts = tm()
    gmtime_r(&now.tv_sec, &parts)
    func digits(_ value: some BinaryInteger, _ count: Int) -> String {
      let text = String(value)
      return String(repeating: "0", count: max(0, count - text.count)) + text
    }
    let date = "\(digits(parts.tm_year + 1900, 4))-\(digits(parts.tm_mon + 1, 2))-\(digits(parts.tm_mday, 2))"
    let time = "\(digits(parts.tm_hour, 2)):\(digits(parts.tm_min, 2)):\(digits(parts.tm_sec, 2))"
    return "\(date)T\(time).\(digits(now.tv_nsec / 1000, 6))Z"
  }

  /// Makes freed images of kernels and RAM disks leave the process. Call before the first is read.
  public static func releaseFreedMemoryEarly() { apus_tune_heap() }

  /// Ends the process by a signal with its default action.
  public static func dieBySignal(_ number: Int32) {
    signal(number, SIG_DFL)
    raise(number)
  }

  /// A pipe that nobody reads fails with an error instead of a signal.
  public static func ignoreBrokenPipes() { signal(SIGPIPE, SIG_IGN) }

  public static var identifier: Int32 { getpid() }
  public static var processorCount: Int { max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN))) }
  /// All variables, as `name=value`.
  public static var environment: [String] {
    var result: [String] = []
    var position = environ
    while let entry = position.pointee {
      result.append(String(cString: entry))
      position += 1
    }
    return result
  }
  /// The same, and the arguments, as the kernel gave them: they need not be UTF-8.
  public static var environmentBytes: [[UInt8]] { bytes(of: environ) }
  public static var argumentBytes: [[UInt8]] { bytes(of: apus_arguments()) }
  private static func bytes(of vector: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?) -> [[UInt8]] {
    var result: [[UInt8]] = []
    guard var position = vector else { return result }
    while let entry = position.pointee {
      result.append(Array(UnsafeRawBufferPointer(start: entry, count: strlen(entry))))
      position += 1
    }
    return result
  }
  /// An entry of the auxiliary vector that this process was started with; 0 if there is none.
  public static func auxiliaryValue(_ key: UInt) -> UInt { UInt(getauxval(key)) }
  /// The path without links; `nil` if it does not exist.
  public static func absolutePath(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
  }
  public static func environment(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

  /// Calls `handler` on the loop's thread for each SIGINT, SIGTERM or SIGHUP, with the signal's number.
  /// SIGPIPE is ignored from here on.
  public static func onTermination(_ loop: EventLoop, _ handler: @escaping @Sendable (Int32) -> Void)
    throws(HostError)
  {
    signal(SIGPIPE, SIG_IGN)
    for number in [SIGINT, SIGTERM, SIGHUP] {
      let descriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
      guard descriptor >= 0 else { throw .last("create an eventfd") }
      loop.add(descriptor, .read) { _ in
        var value: UInt64 = 0
        _ = read(descriptor, &value, 8)
        handler(number)
      }
      guard apus_watch_signal(number, descriptor) == 0 else { throw .last("watch signal \(number)") }
    }
  }

  /// The first half of `-daemonize`: forks; the parent waits in here for the child's word and exits with its code.
  /// Returns in the child, in a session of its own. Call before any thread is started.
  public static func beginDaemon() throws(HostError) -> Int32 {
    var ends: [Int32] = [0, 0]
    guard pipe(&ends) == 0 else { throw .last("create a pipe") }
    let child = apus_fork()
    guard child >= 0 else { throw .last("fork") }
    if child > 0 {
      Glibc.close(ends[1])
      var code: UInt8 = 1
      // Nothing to read: the child died before it was ready.
      if read(ends[0], &code, 1) != 1 { code = 1 }
      _exit(Int32(code))
    }
    Glibc.close(ends[0])
    setsid()
    return ends[1]
  }

  /// The second half: lets go of the terminal and tells the parent that all is well.
  public static func finishDaemon(_ descriptor: Int32) {
    let null = apus_open("/dev/null", O_RDWR | O_CLOEXEC, 0)
    if null >= 0 { for standard: Int32 in 0...2 { dup2(null, standard) } }
    _ = chdir("/")
    var code: UInt8 = 0
    _ = write(descriptor, &code, 1)
    Glibc.close(descriptor)
  }

  /// The civil time of `seconds` since 1970, in the host's local zone: its offset from UTC in seconds.
  public static func localTimeOffset(_ seconds: Int) -> Int {
    var time = time_t(seconds)
    var fields = tm()
    localtime_r(&time, &fields)
    return fields.tm_gmtoff
  }
}
