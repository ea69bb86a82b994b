/// Writing JSON.
extension JSONValue {
  public init(_ number: some BinaryInteger) { self = .number("\(number)") }

  public subscript(key: String) -> JSONValue? {
    guard case .object(let members) = self else { return nil }
    return members.first { $0.key == key }?.value
  }

  /// The text on one line.
  public var compactText: String {
    switch self {
    case .object(let members):
      "{" + members.map { "\(Self.quoted($0.key)): \($0.value.compactText)" }.joined(separator: ", ") + "}"
    case .array(let elements): "[" + elements.map(\.compactText).joined(separator: ", ") + "]"
    case .string(let text): Self.quoted(text)
    case .number(let text): text
    case .bool(let flag): flag ? "true" : "false"
    case .null: "null"
    }
  }

  /// The text with a member or element a line, indented by four columns.
  public func prettyText(_ indentation: Int = 0) -> String {
    let inner = String(repeating: " ", count: indentation + 4)
    let outer = String(repeating: " ", count: indentation)
    switch self {
    case .object(let members):
      if members.isEmpty { return "{\n\(outer)}" }
      let lines = members.map { "\(inner)\(Self.quoted($0.key)): \($0.value.prettyText(indentation + 4))" }
      return "{\n" + lines.joined(separator: ",\n") + "\n\(outer)}"
    case .array(let elements):
      if elements.isEmpty { return "[\n\(outer)]" }
      return "[\n" + elements.map { inner + $0.prettyText(indentation + 4) }.joined(separator: ",\n")
        + "\n\(outer)]"
    default: return compactText
    }
  }

  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      default:
        if scalar.value < 0x20 {
          let digits = String(scalar.value, radix: 16)
          result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        } else {
          result.unicodeScalars.append(scalar)
        }
      }
    }
    return result + "\""
  }
}
