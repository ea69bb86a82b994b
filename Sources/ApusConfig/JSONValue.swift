/// A JSON text as a value [RFC 8259]. Numbers stay text; members keep their order.
public indirect enum JSONValue: Equatable, Sendable {
  public struct Member: Equatable, Sendable {
    public var key: String
    public var value: JSONValue
    public init(_ key: String, _ value: JSONValue) { (self.key, self.value) = (key, value) }
  }
  case object([Member])
  case array([JSONValue])
  case string(String)
  case number(String)
  case bool(Bool)
  case null

  /// Reads all of `text`; nesting deeper than 64 is refused.
  public init(parsing text: String) throws(ConfigurationError) {
    var parser = JSONParser(bytes: Array(text.utf8))
    self = try parser.value(depth: 0)
    parser.skipSpace()
    guard parser.index == parser.bytes.count else { throw parser.error("text after the value") }
  }
}

private struct JSONParser {
  let bytes: [UInt8]
  var index = 0

  func error(_ what: String) -> ConfigurationError {
    ConfigurationError(
      "JSON value '\(String(decoding: bytes.prefix(60), as: UTF8.self))': \(what) at byte \(index)")
  }

  private var current: UInt8? { index < bytes.count ? bytes[index] : nil }

  mutating func skipSpace() {
    while let byte = current, byte == 0x20 || byte == 0x09 || byte == 0x0a || byte == 0x0d { index += 1 }
  }

  private mutating func take(_ character: Character) -> Bool {
    skipSpace()
    guard let ascii = character.asciiValue, current == ascii else { return false }
    index += 1
    return true
  }

  private mutating func word(_ text: String) -> Bool {
    guard bytes[index...].starts(with: text.utf8) else { return false }
    index += text.utf8.count
    return true
  }

  mutating func value(depth: Int) throws(ConfigurationError) -> JSONValue {
    guard depth < 64 else { throw error("nesting deeper than 64") }
    skipSpace()
    if take("{") { return .object(try members(depth)) }
    if take("[") {
      var elements: [JSONValue] = []
      if take("]") { return .array([]) }
      repeat { elements.append(try value(depth: depth + 1)) } while take(",")
      guard take("]") else { throw error("no ']'") }
      return .array(elements)
    }
    if isQuote { return .string(try string()) }
    if word("true") { return .bool(true) }
    if word("false") { return .bool(false) }
    if word("null") { return .null }
    let start = index
    while let byte = current, "+-.eE0123456789".utf8.contains(byte) { index += 1 }
    let text = String(decoding: bytes[start..<index], as: UTF8.self)
    guard Double(text) != nil else { throw error("no value") }
    return .number(text)
  }

  private mutating func members(_ depth: Int) throws(ConfigurationError) -> [JSONValue.Member] {
    var members: [JSONValue.Member] = []
    if take("}") { return [] }
    repeat {
      skipSpace()
      guard isQuote else { throw error("no member name") }
      let key = try string()
      guard take(":") else { throw error("no ':'") }
      members.append(.init(key, try value(depth: depth + 1)))
    } while take(",")
    guard take("}") else { throw error("no '}'") }
    return members
  }

  /// Strings may stand in single quotes, too, as users write them in shells.
  private var isQuote: Bool { current == UInt8(ascii: "\"") || current == UInt8(ascii: "'") }

  private mutating func string() throws(ConfigurationError) -> String {
    let quote = current
    index += 1
    var result: [UInt8] = []
    while let byte = current {
      index += 1
      switch byte {
      case quote: return String(decoding: result, as: UTF8.self)
      case UInt8(ascii: "\\"): result += try escape()
      case 0..<0x20: throw error("a control character in a string")
      default: result.append(byte)
      }
    }
    throw error("no end of the string")
  }

  private mutating func escape() throws(ConfigurationError) -> [UInt8] {
    guard let byte = current else { throw error("no end of the string") }
    index += 1
    switch byte {
    case UInt8(ascii: "n"): return [0x0a]
    case UInt8(ascii: "t"): return [0x09]
    case UInt8(ascii: "r"): return [0x0d]
    case UInt8(ascii: "b"): return [0x08]
    case UInt8(ascii: "f"): return [0x0c]
    case UInt8(ascii: "\""), UInt8(ascii: "'"), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
    case UInt8(ascii: "u"):
      var scalar = try codeUnit()
      if (0xd800..<0xdc00).contains(scalar), word("\\u") {
        let low = try codeUnit()
        guard (0xdc00..<0xe000).contains(low) else { throw error("a broken surrogate pair") }
        scalar = 0x10000 + (scalar - 0xd800) << 10 + (low - 0xdc00)
      }
      guard let character = Unicode.Scalar(scalar) else { throw error("a broken surrogate pair") }
      return Array(String(character).utf8)
    default: throw error("an unknown escape")
    }
  }

  private mutating func codeUnit() throws(ConfigurationError) -> UInt32 {
    guard index + 4 <= bytes.count,
      let unit = UInt32(String(decoding: bytes[index..<index + 4], as: UTF8.self), radix: 16)
    else { throw error("an incomplete \\u escape") }
    index += 4
    return unit
  }
}
