/// Writes A64 instructions as binutils does with `-M no-aliases`: the real instruction, a tab, operands. System registers
/// have their encoding as their name (s3_0_c1_c0_0).
public struct AArch64Disassembler {
  let word: UInt32
  let pc: UInt64
  let row: AArch64Row

  /// The instruction at `pc` as text. Branch targets are absolute.
  public static func text(_ word: UInt32, pc: UInt64) -> String {
    guard let row = AArch64Decoder.shared.row(word), !row.isReserved(word),
      let text = AArch64Disassembler(word: word, pc: pc, row: row).text
    else {
      let digits = String(word, radix: 16)
      return ".inst\t0x" + String(repeating: "0", count: 8 - digits.count) + digits + " ; undefined"
    }
    return text
  }

  private var text: String? {
    guard let operation = operation else { return nil }
    return operation.operands.isEmpty
      ? operation.name : operation.name + "\t" + operation.operands.joined(separator: ", ")
  }

  /// A mnemonic with its operands.
  struct Operation {
    var name: String
    var operands: [String]
    init(_ name: String, _ operands: String...) { (self.name, self.operands) = (name, operands) }
    init(_ name: String, list: [String]) { (self.name, operands) = (name, list) }
  }

  /// `nil`: the encoding is reserved.
  private var operation: Operation? {
    if row.opcode.usesVectorRegisters {
      switch row.opcode {
      case .vectorStructures, .vectorElement: return structures
      case .loadLiteralVector, .pairVector, .loadStoreVector: return access
      default: return float ?? vector
      }
    }
    return integer ?? control ?? access
  }

  // MARK: Fields

  func bits(_ low: UInt32, _ count: UInt32) -> UInt32 { word >> low & ((1 << count) - 1) }
  func signed(_ low: UInt32, _ count: UInt32) -> Int64 {
    Int64(Int32(bitPattern: bits(low, count) << (32 - count)) >> Int32(32 - count))
  }
  var rd: UInt32 { bits(0, 5) }
  var rn: UInt32 { bits(5, 5) }
  var ra: UInt32 { bits(10, 5) }
  var rm: UInt32 { bits(16, 5) }
  var isWide: Bool { word >> 31 == 1 }
  /// The row's name, which is the mnemonic where a row has only one.
  var name: String { "\(row.name)" }

  // MARK: Operands

  func x(_ number: UInt32) -> String { number == 31 ? "xzr" : "x\(number)" }
  func w(_ number: UInt32) -> String { number == 31 ? "wzr" : "w\(number)" }
  func xsp(_ number: UInt32) -> String { number == 31 ? "sp" : "x\(number)" }
  func wsp(_ number: UInt32) -> String { number == 31 ? "wsp" : "w\(number)" }
  /// A register of the instruction's width.
  func r(_ number: UInt32) -> String { isWide ? x(number) : w(number) }
  func rsp(_ number: UInt32) -> String { isWide ? xsp(number) : wsp(number) }
  func hex(_ value: some FixedWidthInteger & UnsignedInteger) -> String { "#0x" + String(value, radix: 16) }
  func address(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
  func target(_ offset: Int64) -> String { address(pc &+ UInt64(bitPattern: offset)) }
  static let conditions = [
    "eq", "ne", "cs", "cc", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al", "nv",
  ]
  func condition(_ number: UInt32) -> String { Self.conditions[Int(number)] }
  /// A base register in brackets, with an offset that is not zero.
  func memory(_ offset: Int64 = 0) -> String {
    offset == 0 ? "[\(xsp(rn))]" : "[\(xsp(rn)), #\(offset)]"
  }
  /// The three forms with an offset: 1 behind the access, 2 none, 3 before it.
  func indexed(_ form: UInt32, _ offset: Int64) -> [String] {
    switch form {
    case 1: ["[\(xsp(rn))]", "#\(offset)"]
    case 3: ["[\(xsp(rn)), #\(offset)]!"]
    default: [memory(offset)]
    }
  }
}
