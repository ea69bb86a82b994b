extension IRBlock {
  /// The block as text, an instruction a line (`-d op`); golden tests compare it.
  /// - Parameter omitsUnused: leave out what only makes values that nothing uses (`-d op_opt`).
  public func text(omitsUnused: Bool = false) -> String {
    Self.text(instructions, count: count, terminator: terminator, omitsUnused: omitsUnused)
  }

  /// Which instructions have an effect, or values that one with an effect depends on.
  private static func uses(
    _ instructions: UnsafePointer<IRInstruction>, _ count: Int, _ terminator: IRTerminator
  ) -> [Bool] {
    var isUsed = [Bool](repeating: false, count: count)
    if case .indirect(let target, _, _) = terminator { isUsed[Int(target.index)] = true }
    for index in (0..<count).reversed() {
      let i = instructions[index]
      guard isUsed[index] || i.opcode.hasEffect else { continue }
      isUsed[index] = true
      for operand in operands(i) { isUsed[Int(operand)] = true }
    }
    return isUsed
  }

  private static func operands(_ i: IRInstruction) -> [UInt16] {
    // `c` may be something else: a condition, a length.
    let hasThree = i.opcode != .exitIf64 && i.opcode != .exitIf32 && i.opcode != .instruction
    return [i.a, i.b, hasThree ? i.c : .max].filter { $0 != .max }
  }

  /// The same for a copy of a block's instructions.
  public static func text(
    _ instructions: UnsafePointer<IRInstruction>, count: Int, terminator: IRTerminator,
    omitsUnused: Bool = false
  ) -> String {
    let isUsed = omitsUnused ? uses(instructions, count, terminator) : []
    var lines: [String] = []
    for index in 0..<count where !omitsUnused || isUsed[index] || instructions[index].opcode == .instruction {
      let i = instructions[index]
      if i.opcode == .instruction {
        lines.append(" ---- 0x\(String(UInt64(bitPattern: i.immediate), radix: 16))")
        continue
      }
      var line = "  "
      if i.opcode.resultType != .none { line += "%\(index): \(i.opcode.resultType) = " }
      line += "\(i.opcode)"
      line += operands(i).map { " %\($0)" }.joined(separator: ",")
      line += immediateText(i)
      lines.append(line)
    }
    switch terminator {
    case .direct(let target): lines.append("  -> 0x\(String(target, radix: 16))")
    case .indirect(let target, let hint, let kind):
      lines.append("  -> %\(target.index) (\(hint)\(kind == 0 ? "" : ", kind \(kind)"))")
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
    case .vector: return " \(IRVectorOperand(rawValue: i.immediate))"
    case .vectorFloat: return " \(IRVectorFloatOperand(rawValue: i.immediate))"
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
