import CApusHost
import Glibc
import Synchronization

/// Writes all of `text` to standard error.
public func writeStandardError(_ text: String) { writeAll(2, text) }
/// Writes all bytes to standard error.
public func writeStandardError(_ bytes: [UInt8]) { bytes.withUnsafeBufferPointer { writeAll(2, $0) } }
/// Writes all of `text` to standard output.
public func writeStandardOutput(_ text: String) { writeAll(1, text) }

/// The log (`-d`): standard error, or the file that `-D` names. Any thread.
public enum HostLog {
  private static let descriptor = Atomic<Int32>(2)

  /// Sends the log to a file, which stays open.
  public static func open(_ path: String, appending: Bool = false) throws(HostError) {
    descriptor.store(try HostDescriptor.open(path, appending ? .append : .create), ordering: .relaxed)
  }
  /// Moves the log to a high descriptor, out of the way of a guest that closes or replaces low ones. Returns it.
  public static func moveAside() -> Int32? {
    let high = apus_fcntl(descriptor.load(ordering: .relaxed), F_DUPFD_CLOEXEC, 900)
    guard high >= 0 else { return nil }
    descriptor.store(high, ordering: .relaxed)
    return high
  }
  public static func write(_ text: String) { writeAll(descriptor.load(ordering: .relaxed), text) }
}

private func writeAll(_ descriptor: Int32, _ text: String) {
  var text = text
  text.withUTF8 { writeAll(descriptor, $0) }
}

private func writeAll(_ descriptor: Int32, _ bytes: UnsafeBufferPointer<UInt8>) {
  var offset = 0
  while offset < bytes.count {
    let count = write(descriptor, bytes.baseAddress! + offset, bytes.count - offset)
    if count < 0 {
      if errno == EINTR { continue }
      return
    }
    offset += count
  }
}
