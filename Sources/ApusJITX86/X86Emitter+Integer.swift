import ApusAsmX86
import ApusIR

extension X86Emitter {
  /// Emits the instruction at `index`.
  func emit(_ i: IRInstruction) {
    switch i.opcode {
    case .instruction: currentPC = UInt64(bitPattern: i.immediate)
    case .const32, .const64: values[index].place = .constant
    case .truncate32, .flagsPack, .flagsUnpack: break  // another name of its operand
    case .get64, .getF64: emitGet(i)
    case .set64, .setF64: emitSet(i)
    case .get32: asm.load(destination(), state(Int(i.immediate)), wide: false)
    case .set32:
      if let constant = constant(i.a) {
        asm.store(state(Int(i.immediate)), immediate: Int32(truncatingIfNeeded: constant), byteCount: 4)
      } else {
        asm.store(state(Int(i.immediate)), use(i.a), wide: false)
      }
    case .add64: emitAdd(i, wide: true)
    case .add32: emitAdd(i, wide: false)
    case .sub64: emitSubtract(i, wide: true)
    case .sub32: emitSubtract(i, wide: false)
    case .and64: emitCommutative(.and, i, wide: true)
    case .and32: emitCommutative(.and, i, wide: false)
    case .or64: emitCommutative(.or, i, wide: true)
    case .or32: emitCommutative(.or, i, wide: false)
    case .xor64: emitCommutative(.xor, i, wide: true)
    case .xor32: emitCommutative(.xor, i, wide: false)
    case .andNot64: emitAndNot(i)
    case .shl64: emitShift(.left, i, wide: true)
    case .shl32: emitShift(.left, i, wide: false)
    case .shrU64: emitShift(.right, i, wide: true)
    case .shrU32: emitShift(.right, i, wide: false)
    case .shrS64: emitShift(.rightSigned, i, wide: true)
    case .shrS32: emitShift(.rightSigned, i, wide: false)
    case .rotr64: emitShift(.rotateRight, i, wide: true)
    case .rotr32: emitShift(.rotateRight, i, wide: false)
    case .mul64: emitMultiply(i, wide: true)
    case .mul32: emitMultiply(i, wide: false)
    case .mulHighS64, .mulHighU64, .mulHighSU64: emitMultiplyHigh(i)
    case .divS64: emitDivide(i, signed: true, wide: true, remainder: false)
    case .divU64: emitDivide(i, signed: false, wide: true, remainder: false)
    case .remS64: emitDivide(i, signed: true, wide: true, remainder: true)
    case .remU64: emitDivide(i, signed: false, wide: true, remainder: true)
    case .divS32: emitDivide(i, signed: true, wide: false, remainder: false)
    case .divU32: emitDivide(i, signed: false, wide: false, remainder: false)
    case .remS32: emitDivide(i, signed: true, wide: false, remainder: true)
    case .remU32: emitDivide(i, signed: false, wide: false, remainder: true)
    case .compare64, .compare32:
      let condition = emitCompare(
        i.a, i.b, IRCondition(rawValue: UInt16(i.immediate)).unsafelyUnwrapped, wide: i.opcode == .compare64)
      let register = destination()
      asm.set(condition, register)
      asm.extend(register, register, bits: 8, signed: false)
    case .select64: emitSelect(i)
    case .minS64: emitMinMax(i, .less)
    case .maxS64: emitMinMax(i, .greater)
    case .minU64: emitMinMax(i, .below)
    case .maxU64: emitMinMax(i, .above)
    case .countLeadingZeros64: emitCount(i, 0xbd, wide: true)
    case .countLeadingZeros32: emitCount(i, 0xbd, wide: false)
    case .countTrailingZeros64: emitCount(i, 0xbc, wide: true)
    case .countTrailingZeros32: emitCount(i, 0xbc, wide: false)
    case .countOnes64: emitCount(i, 0xb8, wide: true)
    case .countOnes32: emitCount(i, 0xb8, wide: false)
    case .byteSwap64:
      let register = destination()
      let source = use(i.a)
      if register != source { asm.move(register, source) }
      asm.byteSwap(register)
    case .carrylessMultiply64, .carrylessMultiplyHigh64: emitCarrylessMultiply(i)
    case .crc32: emitCRC32(i)
    case .signExtend8: emitExtend(i, 8, signed: true)
    case .signExtend16: emitExtend(i, 16, signed: true)
    case .zeroExtend8: emitExtend(i, 8, signed: false)
    case .zeroExtend16: emitExtend(i, 16, signed: false)
    case .signExtend32: emitExtend(i, 32, signed: true)
    case .zeroExtend32: emitExtend(i, 32, signed: false)
    case .fence: asm.memoryFence()
    case .vector: emitVector(IRVectorOperand(rawValue: i.immediate))
    case .vectorFloat: emitVectorFloat(i)
    case .getFloatFlags: emitGetFloatFlags()
    case .setFloatFlags: emitSetFloatFlags(i)
    case .setFloatFlagsIfNaNF32, .setFloatFlagsIfNaNF64: emitSetFloatFlagsIfNaN(i)
    case .call: emitCall(i)
    case .exitIf64, .exitIf32: emitExitIf(i)
    case .poll: emitPoll(i)
    case .flagsAdd, .flagsAddCarry, .flagsSub, .flagsSubBorrow, .flagsLogic: emitFlags(i)
    case .flagsCompareF32, .flagsCompareF64: emitFloatFlags(i)
    case .flagTest: emitFlagTest(i)
    default:
      if i.opcode.accessesMemory { emitMemory(i) } else { emitFloat(i) }
    }
  }

  private func emitAdd(_ i: IRInstruction, wide: Bool) {
    let register = destination()
    var (a, b) = (i.a, i.b)
    if constant(a) != nil { swap(&a, &b) }
    let right = wide ? operand(b) : operand32(b)
    switch right {
    case .immediate(let immediate):
      let left = use(a)
      if left == register {
        asm.arithmetic(.add, register, immediate: immediate, wide: wide)
      } else {
        asm.loadAddress(register, X86Memory(left, immediate), wide: wide)
      }
    case .register(let other):
      let left = use(a)
      if left == register {
        asm.arithmetic(.add, register, other, wide: wide)
      } else if other == register {
        asm.arithmetic(.add, register, left, wide: wide)
      } else {
        // r13 and rbp as base cost a displacement byte; either order will do.
        asm.loadAddress(register, X86Memory(left, index: other), wide: wide)
      }
    case .memory(let memory):
      let left = use(a)
      if left != register { asm.move(register, left, wide: wide) }
      asm.arithmetic(.add, register, memory, wide: wide)
    }
  }

  private func emitSubtract(_ i: IRInstruction, wide: Bool) {
    let register = destination()
    if let immediate = constant(i.b).flatMap({ wide ? Int32(exactly: $0) : Int32(truncatingIfNeeded: $0) }),
      immediate != .min
    {
      let left = use(i.a)
      if left == register {
        asm.arithmetic(.sub, register, immediate: immediate, wide: wide)
      } else {
        asm.loadAddress(register, X86Memory(left, -immediate), wide: wide)
      }
      return
    }
    if let value = constant(i.a), value == 0 {
      let right = use(i.b)
      if right != register { asm.move(register, right, wide: wide) }
      asm.negate(register, wide: wide)
      return
    }
    let right = wide ? operand(i.b) : operand32(i.b)
    let left = use(i.a)
    switch right {
    case .register(let other):
      if left == register {
        asm.arithmetic(.sub, register, other, wide: wide)
      } else if other == register {
        asm.negate(register, wide: wide)
        asm.arithmetic(.add, register, left, wide: wide)
      } else {
        asm.move(register, left, wide: wide)
        asm.arithmetic(.sub, register, other, wide: wide)
      }
    case .memory(let memory):
      if left != register { asm.move(register, left, wide: wide) }
      asm.arithmetic(.sub, register, memory, wide: wide)
    case .immediate(let immediate):
      if left != register { asm.move(register, left, wide: wide) }
      asm.arithmetic(.sub, register, immediate: immediate, wide: wide)
    }
  }

  private func emitCommutative(_ op: X86Arithmetic, _ i: IRInstruction, wide: Bool) {
    let register = destination()
    var (a, b) = (i.a, i.b)
    if constant(a) != nil { swap(&a, &b) }
    let right = wide ? operand(b) : operand32(b)
    let left = use(a)
    switch right {
    case .immediate(let immediate):
      if op == .and, wide, immediate == 0xff || immediate == 0xffff {
        asm.extend(register, left, bits: immediate == 0xff ? 8 : 16, signed: false)
        return
      }
      if left != register { asm.move(register, left, wide: wide) }
      if op == .xor, immediate == -1 {
        asm.not(register, wide: wide)
      } else {
        // A non-negative mask clears the upper half: the short form does.
        asm.arithmetic(op, register, immediate: immediate, wide: op == .and && immediate >= 0 ? false : wide)
      }
    case .register(let other):
      if other == register {
        asm.arithmetic(op, register, left, wide: wide)
      } else {
        if left != register { asm.move(register, left, wide: wide) }
        asm.arithmetic(op, register, other, wide: wide)
      }
    case .memory(let memory):
      if left != register { asm.move(register, left, wide: wide) }
      asm.arithmetic(op, register, memory, wide: wide)
    }
  }

  private func emitAndNot(_ i: IRInstruction) {
    let register = destination()
    let left = use(i.a)
    let right = use(i.b)
    if features.hasBMI {
      asm.andNot(register, right, left)
    } else if right == left {
      asm.move(register, immediate: 0)
    } else if right == register {
      asm.not(register)
      asm.arithmetic(.and, register, left)
    } else {
      // a & ~b = ~(~a | b)
      if left != register { asm.move(register, left) }
      asm.not(register)
      asm.arithmetic(.or, register, right)
      asm.not(register)
    }
  }

  private func emitShift(_ op: X86Shift, _ i: IRInstruction, wide: Bool) {
    let mask: Int64 = wide ? 63 : 31
    if let count = constant(i.b) {
      let register = destination()
      let left = use(i.a)
      if left != register { asm.move(register, left, wide: wide) }
      if count & mask != 0 { asm.shift(op, register, by: UInt8(count & mask), wide: wide) }
      return
    }
    if features.hasBMI, op != .rotateRight {
      let register = destination()
      let left = use(i.a)
      let count = use(i.b)
      asm.shiftX(op, register, left, count, wide: wide)
      return
    }
    claim(.rcx)
    let count = use(i.b)
    if count != .rcx { asm.move(.rcx, count) }
    let left = use(i.a)
    let result = takeTemporary()
    asm.move(result, left, wide: wide)
    asm.shiftByCL(op, result, wide: wide)
    finishIn(result)
  }

  /// The result is in a temporary: hand it over, or copy it to the pinned register that wants it.
  func finishIn(_ register: X86Register) {
    // The operands have been read: their registers may serve to save the pinned register's old value.
    locked = 1 << UInt16(register.rawValue)
    if let pinned = pinnedDestination(.set64) {
      asm.move(X86Register(rawValue: pinned).unsafelyUnwrapped, register)
    } else {
      content[Int(register.rawValue)] = UInt16(index)
      values[index].place = .register
      values[index].register = register.rawValue
    }
  }

  private func emitMultiply(_ i: IRInstruction, wide: Bool) {
    let register = destination()
    if let immediate = constant(i.b).flatMap({ wide ? Int32(exactly: $0) : Int32(truncatingIfNeeded: $0) }) {
      asm.multiply(register, use(i.a), immediate: immediate, wide: wide)
      return
    }
    let left = use(i.a)
    let right = use(i.b)
    if right == register {
      asm.multiply(register, left, wide: wide)
    } else {
      if left != register { asm.move(register, left, wide: wide) }
      asm.multiply(register, right, wide: wide)
    }
  }

  private func emitMultiplyHigh(_ i: IRInstruction) {
    claim(.rax)
    claim(.rdx)
    let right = use(i.b)
    let left = use(i.a)
    asm.move(.rax, left)
    asm.multiplyFull(right, signed: i.opcode == .mulHighS64)
    if i.opcode == .mulHighSU64 {
      // Unsigned product minus b where a is negative.
      asm.move(.rax, left)
      asm.shift(.rightSigned, .rax, by: 63)
      asm.arithmetic(.and, .rax, right)
      asm.arithmetic(.sub, .rdx, .rax)
    }
    finishIn(.rdx)
  }

  private func emitDivide(_ i: IRInstruction, signed: Bool, wide: Bool, remainder: Bool) {
    claim(.rax)
    claim(.rdx)
    let divisor = use(i.b)
    let dividend = use(i.a)
    // A constant divisor that is neither 0 nor -1 needs no checks.
    let known = constant(i.b).map { wide ? $0 : Int64(Int32(truncatingIfNeeded: $0)) }
    let needsZeroCheck = known == nil || known == 0
    let needsOverflowCheck = signed && (known == nil || known == -1)
    asm.move(.rax, dividend, wide: wide)
    var done: [Int] = []
    if needsZeroCheck {
      asm.test(divisor, divisor, wide: wide)
      let nonzero = asm.jumpShort(.notEqual)
      if remainder { asm.move(.rdx, .rax, wide: wide) } else { asm.move(.rax, immediate: .max) }
      done.append(asm.jumpShort())
      asm.bindShort(nonzero)
    }
    if needsOverflowCheck {
      asm.arithmetic(.cmp, divisor, immediate: -1, wide: wide)
      let normal = asm.jumpShort(.notEqual)
      if remainder { asm.move(.rdx, immediate: 0) } else { asm.negate(.rax, wide: wide) }
      done.append(asm.jumpShort())
      asm.bindShort(normal)
    }
    if signed { asm.signToRDX(wide: wide) } else { asm.move(.rdx, immediate: 0) }
    asm.divide(divisor, signed: signed, wide: wide)
    for site in done { asm.bindShort(site) }
    finishIn(remainder ? .rdx : .rax)
  }

  private func emitSelect(_ i: IRInstruction) {
    let condition = use(i.a)
    let other = use(i.c)
    let result = takeTemporary()
    asm.move(result, other)
    asm.test(condition, condition)
    asm.conditionalMove(.notEqual, result, use(i.b))
    finishIn(result)
  }

  private func emitMinMax(_ i: IRInstruction, _ condition: X86Condition) {
    let left = use(i.a)
    let right = use(i.b)
    let result = takeTemporary()
    asm.move(result, right)
    asm.arithmetic(.cmp, left, right)
    asm.conditionalMove(condition, result, left)
    finishIn(result)
  }

  private func emitCount(_ i: IRInstruction, _ opcode: UInt8, wide: Bool) {
    let register = destination()
    let source = use(i.a)
    let isOnes = opcode == 0xb8
    if isOnes || features.hasBMI { return asm.count(opcode, register, source, wide: wide) }
    // What a scan for the highest bit finds is counted from below.
    let width: UInt8 = wide ? 64 : 32
    let isLeading = opcode == 0xbd
    let ofZero = takeTemporary()
    asm.moveKeepingFlags(ofZero, immediate: UInt64(isLeading ? 2 * width - 1 : width))
    asm.bitScan(opcode, register, source, wide: wide)
    asm.conditionalMove(.equal, register, ofZero, wide: false)
    if isLeading { asm.arithmetic(.xor, register, immediate: Int32(width - 1), wide: false) }
  }

  private func emitExtend(_ i: IRInstruction, _ bits: Int, signed: Bool) {
    let register = destination()
    let value = root(i.a)
    if values[value].place == .slot || values[value].place == .spill, diesHere(value) {
      asm.loadExtended(register, memory(value), bits: bits, signed: signed)
      return
    }
    asm.extend(register, use(i.a), bits: bits, signed: signed)
  }

  private func emitCarrylessMultiply(_ i: IRInstruction) {
    guard features.hasCarrylessMultiply else {
      asm.store(state(StateHeader.argument0), use(i.a))
      asm.store(state(StateHeader.argument1), use(i.b))
      callSlowPath(i)
      return asm.load(destination(), state(StateHeader.result))
    }
    let left = takeVectorTemporary()
    let right = takeVectorTemporary()
    asm.move(left, use(i.a), wide: true)
    asm.move(right, use(i.b), wide: true)
    asm.carrylessMultiply(left, left, right)
    if i.opcode == .carrylessMultiplyHigh64 {
      asm.sse(0x66, 0x70, left, left)  // pshufd: the upper half down
      asm.byte(0xee)
    }
    asm.move(destination(), left, wide: true)
  }
}
