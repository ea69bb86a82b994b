/// A path, an argument or an environment variable as the kernel sees it: bytes without the terminating zero, in no
/// particular encoding.
public typealias ByteString = [UInt8]

extension ByteString {
  /// The bytes of a text.
  public init(text: some StringProtocol) { self = Array(text.utf8) }
  init(_ text: StaticString) { self = text.withUTF8Buffer { Array($0) } }
  /// A zero-terminated string.
  public init(terminated start: UnsafePointer<CChar>) {
    var count = 0
    while start[count] != 0 { count += 1 }
    self = Array(UnsafeRawBufferPointer(start: start, count: count))
  }

  /// For messages; what is not UTF-8 is replaced.
  public var text: String { String(decoding: self, as: UTF8.self) }

  /// Calls `body` with the bytes and a zero behind them.
  func withPointer<R>(_ body: (UnsafePointer<CChar>) -> R) -> R {
    var terminated = self
    terminated.append(0)
    return terminated.withUnsafeBytes { body($0.baseAddress!.assumingMemoryBound(to: CChar.self)) }
  }
  /// The same with the address as an argument of a system call.
  func withAddress<R>(_ body: (UInt64) -> R) -> R { withPointer { body(UInt64(UInt(bitPattern: $0))) } }

  func hasPrefix(_ text: StaticString) -> Bool {
    text.withUTF8Buffer { starts(with: $0) }
  }
  var isAbsolute: Bool { first == UInt8(ascii: "/") }
  /// What follows the last slash.
  public var lastComponent: ByteString {
    guard let slash = lastIndex(of: UInt8(ascii: "/")) else { return self }
    return ByteString(self[(slash + 1)...])
  }
}
