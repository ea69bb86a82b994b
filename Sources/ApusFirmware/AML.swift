/// ACPI Machine Language, as far as tables need it [ACPI 6.5 §20.2]. Each function gives the bytes of one term.
public enum AML {
  public typealias Code = [UInt8]

  // MARK: Data

  public static func integer(_ value: UInt64) -> Code {
    switch value {
    case 0, 1: [UInt8(value)]
    case 2..<0x100: [0x0a] + bytes(value, 1)
    case 0x100..<0x1_0000: [0x0b] + bytes(value, 2)
    case 0x1_0000..<0x1_0000_0000: [0x0c] + bytes(value, 4)
    default: [0x0e] + bytes(value, 8)
    }
  }
  public static func string(_ text: String) -> Code { [0x0d] + Array(text.utf8) + [0] }
  public static func buffer(_ content: Code) -> Code {
    packed([0x11], integer(UInt64(content.count)) + content)
  }
  public static func package(_ elements: [Code]) -> Code {
    packed([0x12], [UInt8(elements.count)] + elements.flatMap { $0 })
  }
  /// A resource template: the descriptors and their end tag [§6.4].
  public static func resources(_ descriptors: Code...) -> Code {
    buffer(descriptors.flatMap { $0 } + [0x79, 0])
  }
  /// ToUUID: the first three fields are little-endian.
  public static func uuid(_ text: String) -> Code {
    let digits = text.filter { $0 != "-" }.map { UInt8($0.hexDigitValue ?? 0) }
    let big = stride(from: 0, to: 32, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    return buffer([3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].map { big[$0] })
  }

  // MARK: Names and blocks

  /// A path like `\_SB.PCI0`; segments have four characters, shorter ones are filled with `_`.
  public static func path(_ text: String) -> Code {
    var code: Code = []
    var rest = Substring(text)
    while let first = rest.first, first == "\\" || first == "^" {
      code.append(first.asciiValue ?? 0)
      rest = rest.dropFirst()
    }
    let segments = rest.split(separator: ".").map { Array(($0 + "____").utf8.prefix(4)) }
    switch segments.count {
    case 0: return code + [0]
    case 1: return code + segments[0]
    case 2: return code + [0x2e] + segments.flatMap { $0 }
    default: return code + [0x2f, UInt8(segments.count)] + segments.flatMap { $0 }
    }
  }
  public static func name(_ name: String, _ value: Code) -> Code { [0x08] + path(name) + value }
  public static func scope(_ name: String, _ terms: Code...) -> Code {
    packed([0x10], path(name) + terms.flatMap { $0 })
  }
  public static func device(_ name: String, _ terms: Code...) -> Code {
    packed([0x5b, 0x82], path(name) + terms.flatMap { $0 })
  }
  /// - Parameter isSerialized: it makes names of its own, and so runs once at a time.
  public static func method(
    _ name: String, argumentCount: UInt8, isSerialized: Bool = false, _ terms: Code...
  )
    -> Code
  {
    packed([0x14], path(name) + [argumentCount | (isSerialized ? 8 : 0)] + terms.flatMap { $0 })
  }

  // MARK: Statements

  public static func argument(_ number: UInt8) -> Code { [0x68 + number] }
  public static func notify(_ object: String, _ value: UInt64) -> Code {
    [0x86] + path(object) + integer(value)
  }
  public static func `return`(_ value: Code) -> Code { [0xa4] + value }
  public static func `if`(_ condition: Code, then: Code..., else other: Code? = nil) -> Code {
    packed([0xa0], condition + then.flatMap { $0 }) + (other.map { packed([0xa1], $0) } ?? [])
  }
  public static func equal(_ a: Code, _ b: Code) -> Code { [0x93] + a + b }
  public static func not(_ a: Code) -> Code { [0x92] + a }
  /// name = name & value, name | value
  public static func and(_ target: String, _ value: UInt64) -> Code {
    [0x7b] + path(target) + integer(value) + path(target)
  }
  public static func or(_ target: String, _ value: UInt64) -> Code {
    [0x7d] + path(target) + integer(value) + path(target)
  }
  public static func doubleWordField(_ buffer: Code, at offset: UInt64, _ name: String) -> Code {
    [0x8a] + buffer + integer(offset) + path(name)
  }

  // MARK: Resources

  public static func memory32(_ base: UInt64, _ byteCount: UInt64) -> Code {
    [0x86, 9, 0, 1] + bytes(base, 4) + bytes(byteCount, 4)
  }
  /// A level-triggered interrupt, active high, by its GSI.
  public static func interrupt(_ number: Int) -> Code { [0x89, 6, 0, 1, 1] + bytes(UInt64(number), 4) }
  /// Buses 0 to `last`.
  public static func buses(last: UInt64) -> Code {
    [0x88, 13, 0, 2, 0x0c, 0] + [0, 0, last, 0, last + 1].flatMap { bytes($0, 2) }
  }
  public static func memoryWindow(_ base: UInt64, _ byteCount: UInt64) -> Code {
    if base + byteCount <= 1 << 32 {
      return [0x87, 23, 0, 0, 0x0c, 1]
        + [0, base, base + byteCount - 1, 0, byteCount].flatMap { bytes($0, 4) }
    }
    return [0x8a, 43, 0, 0, 0x0c, 1] + [0, base, base + byteCount - 1, 0, byteCount].flatMap { bytes($0, 8) }
  }
  /// Ports from 0 that a CPU reaches at `base`.
  public static func portWindow(_ base: UInt64, _ byteCount: UInt64) -> Code {
    [0x87, 23, 0, 1, 0x0c, 3] + [0, 0, byteCount - 1, base, byteCount].flatMap { bytes($0, 4) }
  }
  /// An edge-triggered interrupt of a pin, active high.
  public static func pinInterrupt(_ pin: UInt64, of controller: String) -> Code {
    let name = Array(controller.utf8) + [0]
    let body: Code =
      [1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0] + bytes(23, 2) + [0] + bytes(25, 2)
      + bytes(UInt64(25 + name.count), 2) + [0, 0] + bytes(pin, 2) + name
    return [0x8c] + bytes(UInt64(body.count), 2) + body
  }

  // MARK: Encoding

  static func bytes(_ value: UInt64, _ count: Int) -> Code {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
  }
  /// An opcode with PkgLength, which counts itself.
  private static func packed(_ opcode: Code, _ content: Code) -> Code {
    let length = content.count
    if length + 1 < 64 { return opcode + [UInt8(length + 1)] + content }
    let extra = length + 2 < 1 << 12 ? 1 : length + 3 < 1 << 20 ? 2 : 3
    let total = UInt64(length + 1 + extra)
    return opcode + [UInt8(extra << 6) | UInt8(total & 15)] + bytes(total >> 4, extra) + content
  }
}
