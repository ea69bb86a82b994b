import CApusHost
import Glibc

/// A file, terminal or pipe with a position, as programs use them; failures are error numbers. Closed at the end of its life.
///
/// One thread at a time. Calls block.
public final class SequentialFile: @unchecked Sendable {
  // SAFETY: the descriptor is only used and closed, never changed.
  public struct Access: OptionSet, Sendable {
    public let rawValue: Int
    public init(rawValue: Int) { self.rawValue = rawValue }
    public static let read = Access(rawValue: 1)
    public static let write = Access(rawValue: 2)
    public static let create = Access(rawValue: 4)
    public static let truncate = Access(rawValue: 8)
    public static let append = Access(rawValue: 16)
  }
  private let descriptor: Int32
  private let isOwned: Bool

  /// Standard input (0), output (1) or error (2), which stay open.
  public init(standard number: Int32) { (descriptor, isOwned) = (number, false) }

  public init(path: String, _ access: Access) throws(HostError) {
    var flags = O_CLOEXEC | O_NOCTTY
    flags |= access.contains(.write) ? access.contains(.read) ? O_RDWR : O_WRONLY : O_RDONLY
    if access.contains(.create) { flags |= O_CREAT }
    if access.contains(.truncate) { flags |= O_TRUNC }
    if access.contains(.append) { flags |= O_APPEND }
    isOwned = true
    descriptor = apus_open(path, flags, 0o644)
    guard descriptor >= 0 else { throw .last("open", path) }
  }
  deinit { if isOwned { close(descriptor) } }

  public var isTerminal: Bool { isatty(descriptor) == 1 }

  /// At most `count` bytes; none at the file's end.
  public func read(_ count: Int) throws(HostError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    while true {
      let result = bytes.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, count) }
      if result >= 0 {
        bytes.removeLast(count - result)
        return bytes
      }
      guard errno == EINTR else { throw .last("read") }
    }
  }

  /// The same for a terminal or pipe that may have nothing for long: none, too, when `goesOn` says no meanwhile.
  public func read(_ count: Int, while goesOn: () -> Bool) throws(HostError) -> [UInt8] {
    var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    while poll(&request, 1, 50) <= 0 { if !goesOn() { return [] } }
    return try read(count)
  }

  /// Returns how many bytes were taken.
  public func write(_ bytes: [UInt8]) throws(HostError) -> Int {
    while true {
      let result = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, bytes.count) }
      if result >= 0 { return result }
      guard errno == EINTR else { throw .last("write") }
    }
  }

  public func seek(_ offset: Int64) throws(HostError) {
    guard lseek(descriptor, Int(offset), SEEK_SET) >= 0 else { throw .last("seek") }
  }

  public func byteCount() throws(HostError) -> UInt64 {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw .last("examine") }
    return UInt64(max(0, status.st_size))
  }

  public static func remove(_ path: String) throws(HostError) {
    guard Glibc.remove(path) == 0 else { throw .last("remove", path) }
  }
  public static func rename(_ path: String, to other: String) throws(HostError) {
    guard Glibc.rename(path, other) == 0 else { throw .last("rename", path) }
  }
}
