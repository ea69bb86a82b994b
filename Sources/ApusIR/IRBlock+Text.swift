extension IRBlock {
  /// The block as text, an instruction a line (`-d op`); golden tests compare it.
  public func text() -> String { Self.text(instructions, count: count, terminator: terminator) }

  /// The same for a copy of a block's instructions.
  public static func text(_ instructions: UnsafePointer<IRInstruction>, count: Int, terminator: IRTerminator)
    -> String
  {
    var lines: [String] = []
    for index in 0..<count {
      let i = instructions[index]
      if i.opcode == .instruction {
        lines.append(" ---- 0x\(String(UInt64(bitPattern: i.immediate), radix: 16))")
        continue
      }
      var line = "  "
      if i.opcode.resultType != .none { line += "%\(index): \(i.opcode.resultType) = " }
      line += "\(i.opcode)"
      let operands = [i.a, i.b, i.opcode == .exitIf64 || i.opcode == .exitIf32 ? .max : i.c].filter {
        $0 != .max
      }
      line += operands.map { " %\($0)" }.joined(separator: ",")
      line += immediateText(i)
      lines.append(line)
    }
    switch terminator {
    case .direct(let target): lines.append("  -> 0x\(String(target, radix: 16))")
    case .indirect(let target, let hint): lines.append("  -> %\(target.index) (\(hint))")
    case .dispatch: lines.append("  -> dispatch")
    }
    return lines.joined(separator: "\n") + "\n"
  }

  private static func immediateText(_ i: IRInstruction) -> String {
    let hex = "0x" + String(UInt64(bitPattern: i.immediate), radix: 16)
    switch i.opcode {
    case .const32, .const64, .poll: return " \(hex)"
    case .get32, .get64, .getF64, .set32, .set64, .setF64: return " [\(i.immediate)]"
    case .compare64, .compare32: return " \(IRCondition(rawValue: UInt16(i.immediate))!)"
    case .exitIf64, .exitIf32: return " \(IRCondition(rawValue: i.c)!) -> \(hex)"
    case .call: return " helper \(i.immediate & 0xffff_ffff)"
    default:
      if i.opcode.accessesMemory {
        let operand = IRMemoryOperand(rawValue: i.immediate)
        return " +\(operand.displacement) ctx\(operand.context)"
      }
      if i.opcode.setsFloatFlags { return " \(hex)" }
      return i.immediate == 0 ? "" : " \(hex)"
    }
  }
}
