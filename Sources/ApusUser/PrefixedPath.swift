import CApusHost
import Glibc

/// Finds a guest's absolute path below the directory that `-L` names, with that directory as the root of the links on
/// the way: Debian's roots are full of absolute ones.
enum PrefixedPath {
  /// `struct open_how`.
  private struct HowToOpen {
    var flags: UInt64
    var mode: UInt64 = 0
    var resolve: UInt64
  }
  private static let inRoot: UInt64 = 0x10
  private static let openAt2 = 437

  /// The host path; `nil` if there is nothing below the prefix. A link at the path's end stays one.
  static func resolve(_ path: ByteString, below prefix: ByteString) -> ByteString? {
    let candidate = prefix + path
    var status = stat()
    guard candidate.withPointer({ lstat($0, &status) }) == 0 else { return walk(path, below: prefix) }
    if status.st_mode & S_IFMT == S_IFLNK { return walk(path, below: prefix) }
    return candidate
  }

  private static func walk(_ path: ByteString, below prefix: ByteString) -> ByteString? {
    let root = prefix.withPointer { apus_open($0, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0) }
    guard root >= 0 else { return nil }
    defer { close(root) }
    var how = HowToOpen(flags: UInt64(O_CLOEXEC) | 0o10000000, resolve: inRoot)  // O_PATH
    let file = path.withAddress { address in
      withUnsafePointer(to: &how) {
        apus_syscall(openAt2, UInt64(root), address, UInt64(UInt(bitPattern: $0)), 24, 0, 0)
      }
    }
    guard file >= 0 else { return nil }
    defer { close(Int32(file)) }
    return UserProcess.readLink(ByteString(text: "/proc/self/fd/\(file)"))
  }
}
