/// A refused option value: one sentence for the user, ready to print.
public struct ConfigurationError: Error, Equatable, CustomStringConvertible {
  public var description: String
  public init(_ description: String) { self.description = description }

  /// The sentence for a name that is not among `known`, with the nearest of them.
  public static func unknown(_ what: String, _ name: String, among known: some Sequence<String>)
    -> ConfigurationError
  {
    let known = Array(known)
    if let near = nearest(name, among: known) {
      return ConfigurationError("unknown \(what) '\(name)'; did you mean '\(near)'?")
    }
    let list = known.sorted().prefix(12).joined(separator: ", ")
    return ConfigurationError("unknown \(what) '\(name)'; there \(known.count == 1 ? "is" : "are"): \(list)")
  }
}

/// The name among `known` that `name` was probably meant to be: by edit distance, within a third of its length.
public func nearest(_ name: String, among known: some Sequence<String>) -> String? {
  let target = Array(name.lowercased().utf8.prefix(64))
  var best: (name: String, distance: Int)?
  for candidate in known {
    let distance = editDistance(target, Array(candidate.lowercased().utf8.prefix(64)))
    if distance <= max(1, target.count / 3) && distance < best?.distance ?? .max {
      best = (candidate, distance)
    }
  }
  return best?.name
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from `a` to `b`.
private func editDistance(_ a: [UInt8], _ b: [UInt8]) -> Int {
  var rows = [Array(0...b.count)]
  for i in 0..<a.count {
    var row = [i + 1]
    for j in 0..<b.count {
      var best = min(rows[i][j] + (a[i] == b[j] ? 0 : 1), rows[i][j + 1] + 1, row[j] + 1)
      if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { best = min(best, rows[i - 1][j - 1] + 1) }
      row.append(best)
    }
    rows.append(row)
  }
  return rows[a.count][b.count]
}

/// Keys and values in the order given: `type,key=value,flag`. JSON objects become dotted keys.
public struct OptionList: Equatable, Sendable {
  public struct Entry: Equatable, Sendable {
    public var key: String
    public var value: String
    public init(_ key: String, _ value: String) { (self.key, self.value) = (key, value) }
  }
  public var entries: [Entry] = []
  public init(_ entries: [Entry] = []) { self.entries = entries }

  /// Reads QEMU's list syntax: `,,` is a comma in a value, a key alone is `on`, and a first item without `=` is the
  /// value of `impliedKey`. A value that starts with `{` is JSON.
  public init(parsing text: String, impliedKey: String? = nil) throws(ConfigurationError) {
    if text.first == "{" {
      let value = try JSONValue(parsing: text)
      guard case .object = value else { throw ConfigurationError("'\(text)' is no JSON object") }
      flatten(value, "")
      return
    }
    for (index, item) in Self.items(text).enumerated() {
      guard let equals = item.firstIndex(of: UInt8(ascii: "=")) else {
        let word = String(decoding: item, as: UTF8.self)
        if index == 0, let impliedKey {
          entries.append(.init(impliedKey, word))
        } else if word.isEmpty {
          throw ConfigurationError("'\(text)' has an empty item; items look like key=value")
        } else {
          entries.append(.init(word, "on"))
        }
        continue
      }
      guard equals > 0 else { throw ConfigurationError("'\(text)' has a value without a key") }
      entries.append(
        .init(
          String(decoding: item[..<equals], as: UTF8.self),
          String(decoding: item[(equals + 1)...], as: UTF8.self)))
    }
  }

  /// The items between single commas, with double commas undone. Nothing gives no items.
  private static func items(_ text: String) -> [[UInt8]] {
    let bytes = Array(text.utf8)
    guard !bytes.isEmpty else { return [] }
    var items: [[UInt8]] = [[]]
    var index = 0
    while index < bytes.count {
      if bytes[index] == UInt8(ascii: ",") {
        if index + 1 < bytes.count, bytes[index + 1] == UInt8(ascii: ",") {
          items[items.count - 1].append(bytes[index])
          index += 2
          continue
        }
        items.append([])
      } else {
        items[items.count - 1].append(bytes[index])
      }
      index += 1
    }
    // A comma at the end is harmless.
    if items.count > 1, items[items.count - 1].isEmpty { items.removeLast() }
    return items
  }

  private mutating func flatten(_ value: JSONValue, _ key: String) {
    switch value {
    case .object(let members):
      for member in members { flatten(member.value, key.isEmpty ? member.key : "\(key).\(member.key)") }
    case .array(let elements):
      for (index, element) in elements.enumerated() { flatten(element, "\(key).\(index)") }
    case .string(let text): entries.append(.init(key, text))
    case .number(let text): entries.append(.init(key, text))
    case .bool(let flag): entries.append(.init(key, flag ? "on" : "off"))
    // The only one that says more than nothing: no backing file.
    case .null where key == "backing" || key.hasSuffix(".backing"): entries.append(.init(key, ""))
    case .null: break
    }
  }

  // MARK: Looking up

  public var keys: [String] { entries.map(\.key) }
  /// The last value given for `key`.
  public subscript(key: String) -> String? { entries.last { $0.key == key }?.value }

  /// Removes `key` and returns its last value.
  public mutating func take(_ key: String) -> String? {
    defer { entries.removeAll { $0.key == key } }
    return self[key]
  }

  /// The entries below `prefix` with it cut off: `file.filename` as `filename` for prefix `file`.
  public func nested(_ prefix: String) -> OptionList {
    OptionList(
      entries.compactMap { entry in
        entry.key.hasPrefix(prefix + ".")
          ? .init(String(entry.key.dropFirst(prefix.count + 1)), entry.value) : nil
      })
  }

  /// A boolean property; `nil` if it is not there.
  public func bool(_ key: String, of what: String) throws(ConfigurationError) -> Bool? {
    guard let value = self[key] else { return nil }
    guard let flag = parseBool(value) else {
      throw ConfigurationError("\(what): \(key) is '\(value)'; it must be on or off")
    }
    return flag
  }

  /// An unsigned number, decimal or 0x hexadecimal; `nil` if it is not there.
  public func number(_ key: String, of what: String, in range: ClosedRange<UInt64> = 0...UInt64.max)
    throws(ConfigurationError) -> UInt64?
  {
    guard let value = self[key] else { return nil }
    guard let number = parseNumber(value), range.contains(number) else {
      let limits =
        range.upperBound == .max ? "a number" : "a number from \(range.lowerBound) to \(range.upperBound)"
      throw ConfigurationError("\(what): \(key) is '\(value)'; it must be \(limits)")
    }
    return number
  }

  /// Refuses keys that are not in `known`.
  public func check(known: [String], of what: String) throws(ConfigurationError) {
    for key in keys where !known.contains(key) {
      throw .unknown("property of \(what)", key, among: known)
    }
  }
}

/// `on`, `off` and their synonyms.
public func parseBool(_ text: String) -> Bool? {
  switch text {
  case "on", "yes", "true", "y": true
  case "off", "no", "false", "n": false
  default: nil
  }
}

/// A decimal or 0x hexadecimal number.
public func parseNumber(_ text: String) -> UInt64? {
  if text.hasPrefix("0x") || text.hasPrefix("0X") { return UInt64(text.dropFirst(2), radix: 16) }
  return text.first == "+" ? nil : UInt64(text)
}

/// A size in bytes: a number, maybe with a fraction, and one of the suffixes B, K, M, G, T, P (powers of 1024).
///
/// - Parameter unit: what a number without a suffix counts, in bytes.
public func parseSize(_ text: String, unit: UInt64 = 1) -> UInt64? {
  let suffixes: [Character: UInt64] = [
    "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60,
  ]
  var digits = Substring(text)
  var factor = unit
  if !text.hasPrefix("0x"), let last = text.last, let scale = suffixes[Character(last.lowercased())] {
    digits = digits.dropLast()
    factor = scale
  }
  if let number = parseNumber(String(digits)) {
    let product = number.multipliedReportingOverflow(by: factor)
    return product.overflow ? nil : product.partialValue
  }
  // "1.5G"
  let parts = digits.split(separator: ".", omittingEmptySubsequences: false)
  guard parts.count == 2, let whole = parseNumber(String(parts[0])), parts[1].count <= 9,
    let fraction = parts[1].isEmpty ? 0 : UInt64(parts[1]), parts[1].first != "+"
  else { return nil }
  var scale: UInt64 = 1
  for _ in parts[1] { scale *= 10 }
  let product = whole.multipliedReportingOverflow(by: factor)
  let part = fraction.multipliedFullWidth(by: factor)
  guard !product.overflow, part.high < scale else { return nil }
  let sum = product.partialValue.addingReportingOverflow(scale.dividingFullWidth(part).quotient)
  return sum.overflow ? nil : sum.partialValue
}
