import CApusHost
import Glibc

/// Running other programs, for tests and tools.
extension HostProcess {
  public static func isExecutable(_ path: String) -> Bool { access(path, X_OK) == 0 }
  /// The directory that this process's program lies in.
  public static var programDirectory: String {
    guard let path = realpath("/proc/self/exe", nil) else { return "." }
    defer { free(path) }
    return String(cString: path).split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(
      separator: "/")
  }
  /// A symbolic link, in place of what was there.
  public static func makeLink(_ path: String, to target: String) {
    unlink(path)
    symlink(target, path)
  }
  public static func makeDirectory(_ path: String) { mkdir(path, 0o755) }
  /// Removes a directory and the files in it.
  public static func removeDirectory(_ path: String) {
    if let directory = opendir(path) {
      while let entry = readdir(directory) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
          $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != ".", name != ".." { unlink(path + "/" + name) }
      }
      closedir(directory)
    }
    rmdir(path)
  }

  /// Writes a file that can be executed.
  public static func writeProgram(_ path: String, _ bytes: [UInt8]) {
    unlink(path)
    let file = apus_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o755)
    guard file >= 0 else { return }
    defer { close(file) }
    var offset = 0
    bytes.withUnsafeBytes { raw in
      while offset < raw.count {
        let count = write(file, raw.baseAddress! + offset, raw.count - offset)
        if count <= 0 { return }
        offset += count
      }
    }
  }

  /// How a program ended: its exit code, or 128 plus the signal that ended it.
  public struct Outcome: Sendable {
    public var code: Int32
    public var output: [UInt8]
    public var errors: [UInt8]
  }

  /// Runs a program and waits for its end; its standard output goes through the file at `path`.
  public static func outputOf(_ command: [String], into path: String) -> [UInt8] {
    run(command, into: path).output
  }

  /// Runs a program, killed after `seconds`, with standard output in the file at `path`.
  public static func run(
    _ command: [String], into path: String, input: String = "/dev/null", seconds: Int = 120
  ) -> Outcome {
    let errorPath = path + ".errors"
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    posix_spawn_file_actions_addopen(&actions, 0, input, O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, path, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
    posix_spawn_file_actions_addopen(&actions, 2, errorPath, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
    defer { posix_spawn_file_actions_destroy(&actions) }
    var arguments = command.map { strdup($0) } + [nil]
    defer { for argument in arguments { free(argument) } }
    var child: pid_t = 0
    // Worker threads block signals, which children would inherit.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    guard posix_spawn(&child, command[0], &actions, &attributes, &arguments, environ) == 0 else {
      return Outcome(code: 127, output: [], errors: [])
    }
    var status: Int32 = 0
    let deadline = HostClock.monotonicNanoseconds() + UInt64(seconds) * 1_000_000_000
    while true {
      let ended = waitpid(child, &status, WNOHANG)
      if ended == child || (ended < 0 && errno != EINTR) { break }
      if HostClock.monotonicNanoseconds() > deadline { kill(child, SIGKILL) }
      usleep(500)
    }
    let code = status & 0x7f == 0 ? status >> 8 & 0xff : 128 + (status & 0x7f)
    return Outcome(code: code, output: contents(path), errors: contents(errorPath))
  }

  private static func contents(_ path: String) -> [UInt8] {
    let file = apus_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard file >= 0 else { return [] }
    defer { close(file) }
    var result: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = read(file, &chunk, chunk.count)
      if count <= 0 { return result }
      result += chunk[..<count]
    }
  }
}
