/// Writes instructions as binutils does with `-M no-aliases,numeric` switched to ABI register names.
public enum RISCVDisassembler {
  static let integerNames = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
    "a7",
    "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
  ]
  static let floatNames = [
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3", "fa4",
    "fa5", "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10", "fs11", "ft8", "ft9",
    "ft10", "ft11",
  ]
  static let roundingModes = ["rne", "rtz", "rdn", "rup", "rmm", "unknown", "unknown", "dyn"]

  public static func registerName(_ number: Int) -> String { integerNames[number] }
  public static func floatRegisterName(_ number: Int) -> String { floatNames[number] }

  /// The instruction at `pc` as text: mnemonic, a tab, operands. Branch targets are absolute.
  public static func text(_ bits: UInt32, pc: UInt64, extensions: RISCVExtensionSet = .default) -> String {
    let i = RISCVDecoder.shared.decode(bits, extensions)
    guard i.opcode != .illegal, let row = RISCVDecoder.shared.row(i.word) else {
      return i.length == 2 ? ".2byte\t\(hex(UInt64(bits & 0xffff)))" : ".4byte\t\(hex(UInt64(bits)))"
    }
    let operands = operandText(i, pc)
    return operands.isEmpty ? name(i, row) : "\(name(i, row))\t\(operands)"
  }

  private static func name(_ i: RISCVInstruction, _ row: RISCVRow) -> String {
    var name = "\(row.name)"
    if i.format == .amo || i.format == .lr {
      name += ["", ".rl", ".aq", ".aqrl"][Int(i.word >> 25 & 3)]
    }
    return name
  }

  private static func operandText(_ i: RISCVInstruction, _ pc: UInt64) -> String {
    let rd = integerNames[Int(i.rd)]
    let rs1 = integerNames[Int(i.rs1)]
    let rs2 = integerNames[Int(i.rs2)]
    let frd = floatNames[Int(i.rd)]
    let frs1 = floatNames[Int(i.rs1)]
    let frs2 = floatNames[Int(i.rs2)]
    let rounding = i.roundingMode == 7 ? "" : ",\(roundingModes[Int(i.roundingMode)])"
    let target = hex(pc &+ UInt64(bitPattern: Int64(i.immediate)))
    switch i.format {
    case .none: return ""
    case .r: return "\(rd),\(rs1),\(rs2)"
    case .r1: return "\(rd),\(rs1)"
    case .i: return "\(rd),\(rs1),\(i.immediate)"
    case .load, .jalr: return "\(rd),\(i.immediate)(\(rs1))"
    case .store: return "\(rs2),\(i.immediate)(\(rs1))"
    case .b: return "\(rs1),\(rs2),\(target)"
    case .u: return "\(rd),\(hex(UInt64(i.word >> 12)))"
    case .j: return "\(rd),\(target)"
    case .shift5, .shift6: return "\(rd),\(rs1),\(hex(UInt64(i.immediate)))"
    case .fence:
      func set(_ value: Int32) -> String {
        let letters = zip([8, 4, 2, 1] as [Int32], ["i", "o", "r", "w"]).filter { value & $0.0 != 0 }.map(\.1)
        return letters.isEmpty ? "unknown" : letters.joined()
      }
      return "\(set(i.immediate >> 4 & 15)),\(set(i.immediate & 15))"
    case .csr: return "\(rd),\(csrName(Int(i.immediate))),\(rs1)"
    case .csri: return "\(rd),\(csrName(Int(i.immediate))),\(i.rs1)"
    case .amo: return "\(rd),\(rs2),(\(rs1))"
    case .lr: return "\(rd),(\(rs1))"
    case .cbo: return "(\(rs1))"
    case .fencevma: return "\(rs1),\(rs2)"
    case .fload: return "\(frd),\(i.immediate)(\(rs1))"
    case .fstore: return "\(frs2),\(i.immediate)(\(rs1))"
    case .fr4: return "\(frd),\(frs1),\(frs2),\(floatNames[Int(i.rs3)])\(rounding)"
    case .frrm: return "\(frd),\(frs1),\(frs2)\(rounding)"
    case .frr: return "\(frd),\(frs1),\(frs2)"
    case .fr1rm: return "\(frd),\(frs1)\(isExactWidening(i.opcode) ? "" : rounding)"
    case .fcmp: return "\(rd),\(frs1),\(frs2)"
    case .fxr: return "\(rd),\(frs1)"
    case .fxrm: return "\(rd),\(frs1)\(rounding)"
    case .ffx: return "\(frd),\(rs1)"
    case .ffxrm: return "\(frd),\(rs1)\(isExactWidening(i.opcode) ? "" : rounding)"
    }
  }

  /// Conversions that cannot round: the assembler does not print their mode.
  private static func isExactWidening(_ opcode: RISCVOpcode) -> Bool {
    switch opcode {
    case .fcvtDS, .fcvtDW, .fcvtDWu, .fcvtSH, .fcvtDH: true
    default: false
    }
  }

  private static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

  static func csrName(_ number: Int) -> String {
    RISCVCSR(rawValue: UInt16(number)).map { "\($0)" } ?? hex(UInt64(number))
  }
}
