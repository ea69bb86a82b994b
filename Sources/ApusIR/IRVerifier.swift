/// Checks that a block is well formed: operands are defined before use and have the types that the operation asks.
public enum IRVerifier {
  /// The first violation found, or `nil`.
  public static func check(_ block: IRBlock) -> String? {
    for index in 0..<block.count {
      let i = block.instructions[index]
      let isExit = i.opcode == .exitIf64 || i.opcode == .exitIf32
      let types = i.opcode.operandTypes
      let operands = [(i.a, types.0), (i.b, types.1), (isExit ? .max : i.c, types.2)]
      for (number, (operand, type)) in operands.enumerated() where i.opcode != .instruction {
        let place = "%\(index) (\(i.opcode)), operand \(number)"
        if operand == .max {
          if type != .none && i.opcode != .call { return "\(place): missing" }
          continue
        }
        if type == .none { return "\(place): not wanted" }
        if Int(operand) >= index { return "\(place): %\(operand) is not defined yet" }
        let actual = block.instructions[Int(operand)].opcode.resultType
        if actual != type { return "\(place): %\(operand) is \(actual), not \(type)" }
      }
      if isExit, IRCondition(rawValue: i.c) == nil { return "%\(index): bad condition" }
      if i.opcode == .vector, let problem = check(IRVectorOperand(rawValue: i.immediate), block.optimisations)
      {
        return "%\(index): \(problem)"
      }
    }
    if case .indirect(let target, _, _) = block.terminator {
      guard Int(target.index) < block.count,
        block.instructions[Int(target.index)].opcode.resultType == .i64
      else { return "terminator: target is not an i64 of this block" }
    }
    return nil
  }

  private static func check(_ operand: IRVectorOperand, _ optimisations: IROptimisations) -> String? {
    let operation = operand.operation
    if !operation.isAvailable(scale: operand.scale, optimisations) {
      return "\(operation) has no lanes of \(8 << operand.scale) bits"
    }
    if operand.accumulation != .none, !operation.mayAccumulate || !operand.isFull {
      return "\(operation) does not accumulate"
    }
    if operand.element != nil, !operation.mayHaveElement || operand.slots.b == nil {
      return "\(operation) takes no element"
    }
    if operand.clearsUpper, !operand.isFull { return "\(operation) clears what it does not write" }
    return nil
  }
}
