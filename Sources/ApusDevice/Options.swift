import Synchronization

/// What kind of value an option takes, for help texts and checks.
public enum OptionKind: Sendable, Equatable {
  /// `on` or `off` (also yes/no, true/false, y/n).
  case bool
  /// `on`, `off` or `auto`.
  case onOffAuto
  case integer(ClosedRange<Int64>)
  /// Bytes, with an optional suffix k, M, G, T.
  case size
  case string
  case choice([String])
  case macAddress
  /// The id of something defined elsewhere: "netdev", "drive", "chardev".
  case reference(String)

  /// The name in a help text.
  public var name: String {
    switch self {
    case .bool: return "bool"
    case .onOffAuto: return "OnOffAuto"
    case .integer: return "int"
    case .size: return "size"
    case .string, .macAddress: return "str"
    case .choice(let values): return values.joined(separator: "|")
    case .reference(let what): return "id of a \(what)"
    }
  }
}

/// One option of a device or back end.
public struct OptionDescription: Sendable, Equatable {
  public var name: String
  public var kind: OptionKind
  public var defaultValue: String?
  public var summary: String
  /// May be given more than once (`hostfwd=`).
  public var isRepeatable: Bool
  public init(
    _ name: String, _ kind: OptionKind, default defaultValue: String? = nil, isRepeatable: Bool = false,
    _ summary: String = ""
  ) {
    (self.name, self.kind, self.defaultValue, self.summary) = (name, kind, defaultValue, summary)
    self.isRepeatable = isRepeatable
  }
}

extension [OptionDescription] {
  /// A help text: a line for each option, by name, with kind, summary and default.
  public var helpText: String {
    sorted { $0.name < $1.name }.map { option in
      var line = "  \(option.name)=<\(option.kind.name)>"
      if !option.summary.isEmpty || option.defaultValue != nil {
        line += String(repeating: " ", count: Swift.max(1, 26 - line.count)) + "- " + option.summary
        if let value = option.defaultValue {
          line += (option.summary.isEmpty ? "" : " ") + "(default: \(value))"
        }
      }
      return line + "\n"
    }.joined()
  }
}

/// A sentence about options that cannot be used.
public struct OptionError: Error, Equatable, CustomStringConvertible {
  public var description: String
  public init(_ description: String) { self.description = description }
}

/// The options that a user gave for one device or back end, checked against their descriptions.
///
/// Reads give the user's value or else the described default.
public struct OptionReader: Sendable {
  public typealias Pair = (name: String, value: String)
  private let owner: String
  private let values: [Pair]
  private let descriptions: [OptionDescription]
  private let reads = ReadLog()

  /// - Parameters:
  ///   - owner: what the options are for, as the user wrote it: "virtio-blk-pci", "netdev user".
  /// - Throws: for an option that has no description, or a repeated one.
  public init(owner: String, _ values: [Pair], _ descriptions: [OptionDescription]) throws(OptionError) {
    (self.owner, self.values, self.descriptions) = (owner, values, descriptions)
    var seen: Set<String> = []
    for (name, _) in values {
      guard let description = descriptions.first(where: { $0.name == name }) else {
        throw OptionError("'\(owner)' has no option '\(name)'; '\(owner),help' lists those it has")
      }
      if !seen.insert(name).inserted, !description.isRepeatable {
        throw OptionError("option '\(name)' of '\(owner)' is given twice")
      }
    }
  }
  public init(owner: String, _ values: [String: String], _ descriptions: [OptionDescription])
    throws(OptionError)
  {
    let pairs = values.sorted { $0.key < $1.key }.map { (name: $0.key, value: $0.value) }
    try self.init(owner: owner, pairs, descriptions)
  }

  /// The user's value only.
  public func given(_ name: String) -> String? {
    reads.note(name)
    return values.last { $0.name == name }?.value
  }
  /// All of a repeatable option's values, in order.
  public func all(_ name: String) -> [String] {
    reads.note(name)
    return values.filter { $0.name == name }.map(\.value)
  }
  public func string(_ name: String) -> String? {
    given(name) ?? descriptions.first { $0.name == name }?.defaultValue
  }

  public func bool(_ name: String) throws(OptionError) -> Bool {
    guard let text = string(name) else { return false }
    guard let value = Self.parseBool(text) else { throw invalid(name, text, "'on' or 'off'") }
    return value
  }
  /// `nil` for `auto` (or nothing given).
  public func onOffAuto(_ name: String) throws(OptionError) -> Bool? {
    guard let text = string(name), text != "auto" else { return nil }
    guard let value = Self.parseBool(text) else { throw invalid(name, text, "'on', 'off' or 'auto'") }
    return value
  }
  private static func parseBool(_ text: String) -> Bool? {
    switch text {
    case "on", "yes", "true", "y": return true
    case "off", "no", "false", "n": return false
    default: return nil
    }
  }

  /// A whole number, decimal or 0x hexadecimal, inside the described range; `nil` if there is neither value nor default.
  public func integer(_ name: String) throws(OptionError) -> Int64? {
    guard let text = string(name) else { return nil }
    let isHexadecimal = text.hasPrefix("0x") || text.hasPrefix("0X")
    let value = isHexadecimal ? Int64(text.dropFirst(2), radix: 16) : Int64(text)
    var range = Int64.min...Int64.max
    if case .integer(let described)? = descriptions.first(where: { $0.name == name })?.kind {
      range = described
    }
    guard let value, range.contains(value) else {
      throw invalid(name, text, "a whole number from \(range.lowerBound) to \(range.upperBound)")
    }
    return value
  }

  public func size(_ name: String) throws(OptionError) -> UInt64? {
    guard let text = string(name) else { return nil }
    let suffixes: [Character: Int] = [
      "b": 0, "B": 0, "k": 10, "K": 10, "m": 20, "M": 20, "g": 30, "G": 30, "t": 40, "T": 40,
    ]
    let shift = text.last.flatMap { suffixes[$0] }
    let digits = shift == nil ? Substring(text) : text.dropLast()
    guard let value = UInt64(digits), value <= UInt64.max >> UInt64(shift ?? 0) else {
      throw invalid(name, text, "a number of bytes such as 4096, 64k or 2G")
    }
    return value << UInt64(shift ?? 0)
  }

  public func macAddress(_ name: String) throws(OptionError) -> [UInt8]? {
    guard let text = string(name) else { return nil }
    let parts = text.split(whereSeparator: { $0 == ":" || $0 == "-" })
    let bytes = parts.compactMap { $0.count <= 2 ? UInt8($0, radix: 16) : nil }
    guard parts.count == 6, bytes.count == 6 else {
      throw invalid(name, text, "an address such as 52:54:00:12:34:56")
    }
    return bytes
  }

  public func choice(_ name: String) throws(OptionError) -> String? {
    guard let text = string(name) else { return nil }
    if case .choice(let values)? = descriptions.first(where: { $0.name == name })?.kind,
      !values.contains(text)
    {
      throw invalid(name, text, "one of \(values.joined(separator: ", "))")
    }
    return text
  }

  /// Ends the reading: an option that is described but that nothing has read is refused, never ignored.
  public func finish() throws(OptionError) {
    if let name = reads.firstUnread(among: values.map(\.name)) {
      throw OptionError("option '\(name)' of '\(owner)' has no effect here; leave it out")
    }
  }

  /// The error for a value that does not fit.
  public func invalid(_ name: String, _ value: String, _ expected: String) -> OptionError {
    OptionError("option '\(name)' of '\(owner)' cannot be '\(value)': it takes \(expected)")
  }
}

/// Which options were asked for.
private final class ReadLog: Sendable {
  private let names = Mutex<Set<String>>([])
  func note(_ name: String) { names.withLock { _ = $0.insert(name) } }
  func firstUnread(among given: [String]) -> String? {
    names.withLock { names in given.first { !names.contains($0) } }
  }
}
