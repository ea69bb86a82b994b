import Glibc

/// A failed host operation: what was tried, on what, and the errno that came back.
public struct HostError: Error, CustomStringConvertible, Equatable {
  /// What was tried, as words that follow "cannot": "open", "map 4096 bytes of".
  public var operation: String
  /// What it was tried on: a path, an address; may be empty.
  public var subject: String
  public var errno: Int32

  public init(_ operation: String, _ subject: String = "", errno: Int32) {
    (self.operation, self.subject, self.errno) = (operation, subject, errno)
  }

  public var reason: String { String(cString: strerror(errno)) }
  public var description: String {
    "cannot \(operation)\(subject.isEmpty ? "" : " '\(subject)'"): \(reason)"
  }

  /// The calling thread's errno, for a call that just failed.
  public static func last(_ operation: String, _ subject: String = "") -> HostError {
    HostError(operation, subject, errno: Glibc.errno)
  }
}
