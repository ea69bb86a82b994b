import CApusHost
import Glibc

/// Where a file has blocks, and copies between files that need not pass through memory.
extension HostFile {
  /// Whether a position is data or a hole, and where that ends.
  public struct Extent: Sendable, Equatable {
    public var isData: Bool
    public var end: UInt64
  }

  /// Tells the file system how large the file's extents should be; one that has no such hint ignores it.
  public func hintExtents(_ byteCount: UInt32) { _ = apus_set_extent_hint(descriptor, byteCount) }

  /// The extent at `offset`, which lies before the file's end; `nil` where the file system cannot say.
  public func extent(at offset: UInt64, fileByteCount: UInt64) -> Extent? {
    guard kind == .regular, offset < fileByteCount else { return nil }
    let data = lseek(descriptor, Int(offset), 3)  // SEEK_DATA
    if data < 0 { return errno == ENXIO ? Extent(isData: false, end: fileByteCount) : nil }
    if UInt64(data) > offset { return Extent(isData: false, end: min(UInt64(data), fileByteCount)) }
    let hole = lseek(descriptor, Int(offset), 4)  // SEEK_HOLE
    guard hole > Int(offset) else { return nil }
    return Extent(isData: true, end: min(UInt64(hole), fileByteCount))
  }

  /// Bytes that the file occupies on its file system.
  public func allocatedByteCount() throws(HostError) -> UInt64 {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw .last("examine", path) }
    return UInt64(status.st_blocks) * 512
  }

  /// Device and inode: equal for two names of one file.
  public var identity: [UInt64] {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { return [] }
    return [UInt64(status.st_dev), UInt64(status.st_ino)]
  }

  /// Reserves blocks for a range, which reads as before; grows the file.
  public func reserve(offset: UInt64, byteCount: UInt64) throws(HostError) {
    while apus_fallocate(descriptor, 0, Int64(clamping: offset), Int64(clamping: byteCount)) != 0 {
      if errno != EINTR { throw .last("allocate room in", path) }
    }
  }

  /// Copies inside the kernel, sharing blocks where the file system can. Returns how many bytes went; 0 if the two
  /// files do not go together or the source ends here.
  public func copyRange(from source: HostFile, at offset: UInt64, to target: UInt64, byteCount: Int)
    throws(HostError) -> Int
  {
    var input = Int(offset)
    var output = Int(target)
    while true {
      let count = apus_copy_file_range(source.descriptor, &input, descriptor, &output, byteCount)
      if count >= 0 { return count }
      if errno == EINTR { continue }
      if [EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, EBADF].contains(errno) { return 0 }
      throw .last("copy a range to", path)
    }
  }

  /// Asks for the file to be read ahead from its start to its end.
  public func adviseSequential() { posix_fadvise(descriptor, 0, 0, 2) }

  /// Writes everything of the file out and forgets it in the page cache (for benchmarks and `-T none`).
  public func dropCache() { posix_fadvise(descriptor, 0, 0, 4) }
}

/// Paths and names of files.
public enum HostPath {
  /// The part before the last slash, with it; empty if there is none.
  public static func directory(_ path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "" }
    return String(path[...slash])
  }
  /// The part behind the last slash.
  public static func lastComponent(_ path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return path }
    return String(path[path.index(after: slash)...])
  }
  public static func environment(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
  /// Makes an empty file of a new name and returns its path.
  public static func temporaryFile(in folder: String) throws(HostError) -> String {
    var name = Array("\(folder)/apus-XXXXXX".utf8CString)
    let descriptor = mkstemp(&name)
    guard descriptor >= 0 else { throw .last("make a temporary file in", folder) }
    close(descriptor)
    return String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
  public static func remove(_ path: String) { unlink(path) }
  public static func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }
  /// `YYYY-MM-DD hh:mm:ss` in the host's zone.
  public static func localDate(_ seconds: Int) -> String {
    var time = time_t(seconds)
    var fields = tm()
    localtime_r(&time, &fields)
    func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
    return "\(fields.tm_year + 1900)-\(two(fields.tm_mon + 1))-\(two(fields.tm_mday)) "
      + "\(two(fields.tm_hour)):\(two(fields.tm_min)):\(two(fields.tm_sec))"
  }
}
