import ApusHost
import CApusHost
import Glibc

/// Whether a file is a guest program that runs, so that nobody may write to it (ETXTBSY). The kernel sees emulators run:
/// which program each has is in what they told the kernel of themselves, as far as it takes that (`apus_user_describe`).
enum RunningPrograms {
  private struct FileIdentity: Equatable {
    var device: (major: UInt32, minor: UInt32) = (0, 0)
    var inode: UInt64
    init(device: (major: UInt32, minor: UInt32), inode: UInt64) {
      (self.device, self.inode) = (device, inode)
    }
    /// - Parameter number: as the kernel packs it: 20 bits of the minor number around 12 of the major one, then the rest.
    init(_ number: dev_t, _ inode: UInt64) {
      device.major = UInt32(truncatingIfNeeded: number >> 8 & 0xfff | number >> 32 & 0xffff_f000)
      device.minor = UInt32(truncatingIfNeeded: number & 0xff | number >> 12 & 0xffff_ff00)
      self.inode = inode
    }
    static func == (one: Self, other: Self) -> Bool { one.device == other.device && one.inode == other.inode }
  }

  /// - Parameter path: on the host, looked up from `directory`.
  static func contains(_ path: UInt64, from directory: Int32) -> Bool {
    guard path != 0 else { return false }
    var status = stat()
    let result = apus_syscall(
      262, UInt64(bitPattern: Int64(directory)), path,
      withUnsafeMutablePointer(to: &status) { UInt64(UInt(bitPattern: $0)) }, 0, 0, 0)
    // Most of what is written to cannot be executed.
    guard result == 0, status.st_mode & S_IFMT == S_IFREG, status.st_mode & 0o111 != 0 else { return false }
    // Who may not write to it at all is told so by the kernel (faccessat2, W_OK, AT_EACCESS).
    guard apus_syscall(439, UInt64(bitPattern: Int64(directory)), path, 2, 0x200, 0, 0) == 0 else {
      return false
    }
    // It is not opened: who watches it, or holds a lease, would notice.
    return isRunning(FileIdentity(status.st_dev, UInt64(status.st_ino)))
  }

  private static func isRunning(_ file: FileIdentity) -> Bool {
    var own = stat()
    guard stat("/proc/self/exe", &own) == 0, let directory = opendir("/proc") else { return false }
    defer { closedir(directory) }
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      guard let first = name.utf8.first, first >= 0x30, first <= 0x39 else { continue }
      var emulator = stat()
      guard stat("/proc/\(name)/exe", &emulator) == 0, emulator.st_ino == own.st_ino,
        emulator.st_dev == own.st_dev
      else { continue }
      if program(of: name) == file { return true }
    }
    return false
  }

  /// The file that a process's program headers lie in.
  private static func program(of process: String) -> FileIdentity? {
    guard let vector = try? HostDescriptor.contents("/proc/\(process)/auxv"),
      let maps = try? HostDescriptor.contents("/proc/\(process)/maps")
    else { return nil }
    let words = vector.withUnsafeBytes { raw in
      (0..<raw.count / 8).map { raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
    }
    var headers: UInt64?
    for index in stride(from: 0, to: words.count - 1, by: 2) where words[index] == 3 {
      headers = words[index + 1]
    }
    guard let headers else { return nil }
    for text in String(decoding: maps, as: UTF8.self).split(separator: "\n") {
      guard let line = MapQuery.Line(text), line.start <= headers, headers < line.end else { continue }
      return FileIdentity(device: line.device, inode: line.inode)
    }
    return nil
  }
}
