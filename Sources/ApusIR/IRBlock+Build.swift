// Appending operations. Folding and forwarding happen here, while the block is built: one pass, no rewriting.

extension IRBlock {
  // MARK: Markers and exits

  /// Begins the guest instruction at `pc`.
  public func instruction(pc: UInt64, length: UInt8) {
    guestInstructionCount &+= 1
    _ = append(IRInstruction(.instruction, c: UInt16(length), immediate: Int64(bitPattern: pc)))
  }
  public func finish(_ terminator: IRTerminator) { self.terminator = terminator }
  /// Leaves before the current instruction if an exit was requested; `pc` is that instruction's.
  public func poll(pc: UInt64) { _ = append(IRInstruction(.poll, immediate: Int64(bitPattern: pc))) }
  /// Side exit to `target` if `a condition b`.
  public func exitIf(_ condition: IRCondition, _ a: IRValue, _ b: IRValue, target: UInt64) {
    _ = append(
      IRInstruction(
        .exitIf64, a: a.index, b: b.index, c: condition.rawValue, immediate: Int64(bitPattern: target)))
  }
  /// The same for two i32.
  public func exitIf32(_ condition: IRCondition, _ a: IRValue, _ b: IRValue, target: UInt64) {
    _ = append(
      IRInstruction(
        .exitIf32, a: a.index, b: b.index, c: condition.rawValue, immediate: Int64(bitPattern: target)))
  }
  /// Calls helper number `index` of the guest's table.
  @discardableResult
  public func call(
    _ index: Int, _ helper: IRHelper, _ a: IRValue = .none, _ b: IRValue = .none, _ c: IRValue = .none
  ) -> IRValue {
    if helper.effects.contains(.writesState) { forgetSlots() }
    return append(
      IRInstruction(
        .call, a: a.index, b: b.index, c: c.index,
        immediate: Int64(index) | Int64(helper.effects.rawValue) << 32))
  }

  // MARK: State

  public func get64(_ offset: Int) -> IRValue { get(.get64, offset) }
  public func getF64(_ offset: Int) -> IRValue { get(.getF64, offset) }
  public func set64(_ offset: Int, _ value: IRValue) { set(.set64, offset, value) }
  public func setF64(_ offset: Int, _ value: IRValue) { set(.setF64, offset, value) }
  /// State that another thread may write: read anew each time.
  public func getVolatile64(_ offset: Int) -> IRValue {
    append(IRInstruction(.get64, immediate: Int64(offset)))
  }
  /// The constant that a slot is known to hold.
  public func knownConstant(_ offset: Int) -> UInt64? {
    let slot = offset >> 3
    guard slot < Self.slotCount, slots[slot] != .max else { return nil }
    return constant(IRValue(index: slots[slot]))
  }
  /// 32-bit state outside the slots that are forwarded.
  public func get32(_ offset: Int) -> IRValue { append(IRInstruction(.get32, immediate: Int64(offset))) }
  public func set32(_ offset: Int, _ value: IRValue) {
    _ = append(IRInstruction(.set32, a: value.index, immediate: Int64(offset)))
  }

  public func getFloatFlags() -> IRValue { append(IRInstruction(.getFloatFlags)) }
  /// Compilers put flags back that a comparison may have raised: only a NaN has them do anything.
  public func setFloatFlags(_ value: IRValue) {
    if optimisations.contains(.fold), let comparison = onlyComparison(since: value) {
      let opcode: IROpcode =
        comparison.opcode == .compareF32 ? .setFloatFlagsIfNaNF32 : .setFloatFlagsIfNaNF64
      _ = append(IRInstruction(opcode, a: value.index, b: comparison.a, c: comparison.b))
    } else {
      _ = append(IRInstruction(.setFloatFlags, a: value.index))
    }
  }
  /// The comparison that alone may have changed the flags since `value` was read from them, if that is so.
  private func onlyComparison(since value: IRValue) -> IRInstruction? {
    let start = Int(value.index)
    guard instructions[start].opcode == .getFloatFlags else { return nil }
    var comparison: IRInstruction?
    for number in start + 1..<count {
      let i = instructions[number]
      switch i.opcode {
      case .compareF32 where comparison == nil, .compareF64 where comparison == nil: comparison = i
      case .instruction, .const64, .get64, .getF64, .set64, .unboxF32, .getFloatFlags: break
      default: return nil
      }
    }
    return comparison
  }

  private func get(_ opcode: IROpcode, _ offset: Int) -> IRValue {
    let slot = offset >> 3
    if slot < Self.slotCount, optimisations.contains(.forward) {
      let known = slots[slot]
      if known != .max { return IRValue(index: known) }
      let value = append(IRInstruction(opcode, immediate: Int64(offset)))
      slots[slot] = value.index
      return value
    }
    return append(IRInstruction(opcode, immediate: Int64(offset)))
  }
  private func set(_ opcode: IROpcode, _ offset: Int, _ value: IRValue) {
    _ = append(IRInstruction(opcode, a: value.index, immediate: Int64(offset)))
    let slot = offset >> 3
    if slot < Self.slotCount { slots[slot] = optimisations.contains(.forward) ? value.index : .max }
  }

  // MARK: Values

  public func const64(_ value: UInt64) -> IRValue {
    append(IRInstruction(.const64, immediate: Int64(bitPattern: value)))
  }
  public func const32(_ value: UInt32) -> IRValue { append(IRInstruction(.const32, immediate: Int64(value))) }

  /// The value's constant, if it is one.
  @inline(__always)
  public func constant(_ value: IRValue) -> UInt64? {
    let instruction = instructions[Int(value.index)]
    return instruction.opcode == .const64 || instruction.opcode == .const32
      ? UInt64(bitPattern: instruction.immediate) : nil
  }

  @inline(__always)
  public func unary(_ opcode: IROpcode, _ a: IRValue, immediate: Int64 = 0) -> IRValue {
    if optimisations.contains(.fold) {
      if let x = constant(a), let folded = foldUnary(opcode, x) { return folded }
      if let same = foldExtension(opcode, a) { return same }
    }
    return append(IRInstruction(opcode, a: a.index, immediate: immediate))
  }

  /// The value that an extension to 64 bits or its truncation leaves as it is.
  @inline(__always)
  private func foldExtension(_ opcode: IROpcode, _ a: IRValue) -> IRValue? {
    let maker = instructions[Int(a.index)]
    switch (opcode, maker.opcode) {
    case (.truncate32, .zeroExtend32), (.truncate32, .signExtend32): return IRValue(index: maker.a)
    case (.zeroExtend32, .truncate32), (.signExtend32, .truncate32):
      return instructions[Int(maker.a)].opcode == opcode ? IRValue(index: maker.a) : nil
    default: return nil
    }
  }

  @inline(__always)
  public func binary(_ opcode: IROpcode, _ a: IRValue, _ b: IRValue, immediate: Int64 = 0) -> IRValue {
    if optimisations.contains(.fold) {
      if let y = constant(b) {
        if let folded = foldBinary(opcode, a, y, immediate) { return folded }
      } else if let x = constant(a), opcode.isCommutative {
        // Constants stand on the right.
        if let folded = foldBinary(opcode, b, x, immediate) { return folded }
        return append(IRInstruction(opcode, a: b.index, b: a.index, immediate: immediate))
      }
    }
    return append(IRInstruction(opcode, a: a.index, b: b.index, immediate: immediate))
  }

  public func ternary(_ opcode: IROpcode, _ a: IRValue, _ b: IRValue, _ c: IRValue, immediate: Int64 = 0)
    -> IRValue
  { append(IRInstruction(opcode, a: a.index, b: b.index, c: c.index, immediate: immediate)) }

  public func compare(_ condition: IRCondition, _ a: IRValue, _ b: IRValue) -> IRValue {
    binary(.compare64, a, b, immediate: Int64(condition.rawValue))
  }
  public func load(_ opcode: IROpcode, _ address: IRValue, _ operand: IRMemoryOperand) -> IRValue {
    append(IRInstruction(opcode, a: address.index, immediate: operand.rawValue))
  }
  public func store(_ opcode: IROpcode, _ address: IRValue, _ value: IRValue, _ operand: IRMemoryOperand) {
    _ = append(IRInstruction(opcode, a: address.index, b: value.index, immediate: operand.rawValue))
  }
  /// 128 bits from memory into the register of the state at `offset`.
  public func loadV128(_ offset: Int, _ address: IRValue, _ operand: IRMemoryOperand) {
    _ = append(
      IRInstruction(
        .loadV128, a: address.index, immediate: operand.with(vectorRegister: offset).rawValue))
    forgetVector(offset)
  }
  public func storeV128(_ offset: Int, _ address: IRValue, _ operand: IRMemoryOperand) {
    _ = append(
      IRInstruction(
        .storeV128, a: address.index, immediate: operand.with(vectorRegister: offset).rawValue))
  }
  /// An operation on vector registers of the state; what was known of its destination is forgotten.
  public func vector(_ operand: IRVectorOperand) {
    appendVector(IRInstruction(.vector, immediate: operand.rawValue), operand.slots)
  }
  public func vector(_ operand: IRVectorFloatOperand) {
    appendVector(IRInstruction(.vectorFloat, immediate: operand.rawValue), operand.slots)
  }
  private func appendVector(_ instruction: IRInstruction, _ operands: IRVectorSlots) {
    _ = append(instruction)
    forgetVector(operands.destination)
  }
  private func forgetVector(_ register: Int) {
    for offset in [register, register + 8] where offset >> 3 < Self.slotCount { slots[offset >> 3] = .max }
  }
  /// Replaces the vector operation of the guest instruction before the one at hand, if that was all it did.
  ///
  /// - Parameter replacement: the operand to have instead; `nil`: it does not fit.
  /// - Returns: whether it was replaced.
  public func replaceVector(_ replacement: (IRVectorOperand) -> IRVectorOperand?) -> Bool {
    guard count >= 3, instructions[count - 1].opcode == .instruction,
      instructions[count - 2].opcode == .vector,
      let operand = replacement(IRVectorOperand(rawValue: instructions[count - 2].immediate))
    else { return false }
    instructions[count - 2].immediate = operand.rawValue
    return true
  }
  public func fence() { _ = append(IRInstruction(.fence)) }

  // MARK: Folding

  private func foldUnary(_ opcode: IROpcode, _ x: UInt64) -> IRValue? {
    switch opcode {
    case .truncate32: return const32(UInt32(truncatingIfNeeded: x))
    case .signExtend32: return const64(UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: x))))
    case .zeroExtend32: return const64(x & 0xffff_ffff)
    case .signExtend8: return const64(UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: x))))
    case .signExtend16: return const64(UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: x))))
    case .zeroExtend8: return const64(x & 0xff)
    case .zeroExtend16: return const64(x & 0xffff)
    default: return nil
    }
  }

  private func foldBinary(_ opcode: IROpcode, _ a: IRValue, _ y: UInt64, _ immediate: Int64) -> IRValue? {
    if y == 0 {
      switch opcode {
      case .add64, .sub64, .or64, .xor64, .shl64, .shrU64, .shrS64, .rotr64, .andNot64: return a
      case .add32, .sub32, .or32, .xor32, .shl32, .shrU32, .shrS32, .rotr32: return a
      default: break
      }
    }
    guard let x = constant(a) else { return nil }
    switch opcode {
    case .add64: return const64(x &+ y)
    case .sub64: return const64(x &- y)
    case .and64: return const64(x & y)
    case .or64: return const64(x | y)
    case .xor64: return const64(x ^ y)
    case .shl64: return const64(x &<< y)
    case .shrU64: return const64(x &>> y)
    case .shrS64: return const64(UInt64(bitPattern: Int64(bitPattern: x) &>> Int64(bitPattern: y)))
    case .mul64: return const64(x &* y)
    case .add32: return const32(UInt32(truncatingIfNeeded: x &+ y))
    case .sub32: return const32(UInt32(truncatingIfNeeded: x &- y))
    default: return nil
    }
  }
}
