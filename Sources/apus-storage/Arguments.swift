import ApusBlock
import ApusConfig
import ApusHost
import ApusStorage

/// A failure that ends a tool: the message and the exit code.
struct ToolError: Error {
  var message: String
  var code: Int32
  init(_ message: String, code: Int32 = 1) { (self.message, self.code) = (message, code) }
  init(_ error: StorageError, code: Int32 = 1) { self.init(error.description, code: code) }
  init(_ error: BlockError, code: Int32 = 1) { self.init(error.description, code: code) }
}

/// Runs what throws a storage error, and names it as the tool's.
func tool<R>(code: Int32 = 1, _ body: () throws(StorageError) -> R) throws(ToolError) -> R {
  do throws(StorageError) { return try body() } catch { throw ToolError(error, code: code) }
}
/// The same for a request that failed; `what` comes before the reason.
func request<R>(_ what: String = "", code: Int32 = 1, _ body: () throws(BlockError) -> R) throws(ToolError)
  -> R
{
  do throws(BlockError) { return try body() } catch {
    throw ToolError(what.isEmpty ? error.description : "\(what): \(error.description)", code: code)
  }
}

/// A command line as getopt reads it: `-f FMT`, `-fFMT`, `-pq`, `--output=json`, `--output json`, `--`.
struct Arguments {
  struct Option: Sendable {
    /// The letter, or empty.
    var short: String
    /// The word, or empty.
    var long: String
    var takesValue: Bool
    init(_ short: String, _ long: String, value: Bool = false) {
      (self.short, self.long, takesValue) = (short, long, value)
    }
    var name: String { long.isEmpty ? short : long }
  }

  private(set) var values: [(name: String, value: String)] = []
  private(set) var operands: [String] = []

  /// - Parameter lastIsOperand: the last word is no option even if it begins with `-`, such as a size to take away.
  init(_ arguments: [String], _ options: [Option], of what: String, lastIsOperand: Bool = false)
    throws(ToolError)
  {
    var rest = arguments[...]
    let last = lastIsOperand ? rest.popLast() : nil
    defer { if let last { operands.append(last) } }
    while let argument = rest.popFirst() {
      if argument == "--" {
        operands += rest
        break
      }
      if argument.hasPrefix("--") {
        let parts = argument.dropFirst(2).split(
          separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let word = String(parts[0])
        guard let option = options.first(where: { $0.long == word }) else {
          throw Self.unknown("--\(word)", options, what)
        }
        if option.takesValue {
          guard let value = parts.count == 2 ? String(parts[1]) : rest.popFirst() else {
            throw ToolError("\(what): option --\(word) needs a value")
          }
          values.append((option.name, value))
        } else {
          guard parts.count == 1 else { throw ToolError("\(what): option --\(word) takes no value") }
          values.append((option.name, ""))
        }
      } else if argument.hasPrefix("-"), argument.count > 1 {
        var letters = argument.dropFirst()
        while let letter = letters.popFirst() {
          guard let option = options.first(where: { $0.short == String(letter) }) else {
            throw Self.unknown("-\(letter)", options, what)
          }
          guard option.takesValue else {
            values.append((option.name, ""))
            continue
          }
          if letters.isEmpty {
            guard let value = rest.popFirst() else {
              throw ToolError("\(what): option -\(letter) needs a value")
            }
            values.append((option.name, value))
          } else {
            values.append((option.name, String(letters)))
            letters = ""
          }
        }
      } else {
        operands.append(argument)
      }
    }
  }

  private static func unknown(_ given: String, _ options: [Option], _ what: String) -> ToolError {
    let known = options.flatMap {
      ($0.short.isEmpty ? [] : ["-" + $0.short]) + ($0.long.isEmpty ? [] : ["--" + $0.long])
    }
    return ToolError("\(what): \(ConfigurationError.unknown("option", given, among: known).description)")
  }

  func has(_ name: String) -> Bool { values.contains { $0.name == name } }
  /// The last value of an option.
  subscript(name: String) -> String? { values.last { $0.name == name }?.value }
  func all(_ name: String) -> [String] { values.filter { $0.name == name }.map(\.value) }

  func size(_ name: String) throws(ToolError) -> UInt64? {
    guard let text = self[name] else { return nil }
    guard let size = parseSize(text), size < 1 << 63 else {
      throw ToolError("invalid value '\(text)' of \(name): it must be a size like 4096, 64K or 10G")
    }
    return size
  }
  func number(_ name: String, in range: ClosedRange<Int>) throws(ToolError) -> Int? {
    guard let text = self[name] else { return nil }
    guard let number = Int(text), range.contains(number) else {
      throw ToolError(
        "invalid value '\(text)' of \(name): it must be a number from \(range.lowerBound) to \(range.upperBound)"
      )
    }
    return number
  }
}

/// Numbers as people read them.
enum Format {
  /// `1.5 GiB`: three digits, the largest unit that leaves less than 1000.
  static func size(_ byteCount: UInt64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    var value = Double(byteCount)
    var unit = 0
    while value >= 1000, unit < units.count - 1 {
      value /= 1024
      unit += 1
    }
    return "\(significant(value)) \(units[unit])"
  }

  /// Up to three significant digits without zeros at the end.
  private static func significant(_ value: Double) -> String {
    var decimals = value >= 100 ? 0 : value >= 10 ? 1 : 2
    if value < 1 { decimals = 3 }
    var text = fixed(value, decimals)
    if text.contains(".") {
      while text.last == "0" { text.removeLast() }
      if text.last == "." { text.removeLast() }
    }
    return text
  }

  static func fixed(_ value: Double, _ decimals: Int) -> String {
    var scale = 1.0
    for _ in 0..<decimals { scale *= 10 }
    let scaled = UInt64(max(0, (value * scale).rounded(.toNearestOrEven)))
    let whole = scaled / UInt64(scale)
    if decimals == 0 { return "\(whole)" }
    let fraction = String(scaled % UInt64(scale))
    return "\(whole)." + String(repeating: "0", count: decimals - fraction.count) + fraction
  }

  static func padded(_ text: String, _ width: Int, left: Bool = false) -> String {
    let fill = String(repeating: " ", count: max(0, width - text.count))
    return left ? fill + text : text + fill
  }
  static func hex(_ value: UInt64) -> String { value == 0 ? "0" : "0x" + String(value, radix: 16) }
}

func printLine(_ text: String) { writeStandardOutput(text + "\n") }
