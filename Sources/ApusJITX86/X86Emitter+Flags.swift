import ApusAsmX86
import ApusIR

// Condition flags. A `flags` value is its packed form in a general register: `flagsPack` and `flagsUnpack` are other names
// of it, and a value that nobody uses is not computed. Guests that compare and branch do so with `exitIf`.

extension IROpcode {
  /// Whether the result is its operand under another type.
  var isAlias: Bool { self == .truncate32 || self == .flagsPack || self == .flagsUnpack }
}

extension X86Emitter {
  /// What the host's flags are known to be the comparison of, so that a branch on it needs none of its own.
  struct HostComparison {
    var a: UInt16
    var b: UInt16
    var isWide: Bool
  }

  func emitFlags(_ i: IRInstruction) {
    let operand = IRFlagsOperand(rawValue: i.immediate)
    precondition(operand.isNZCVOnly && operand.width >= 32, "flags of this kind have no emitter")
    let isWide = operand.width == 64
    claim(.rax)
    let isSubtraction = i.opcode == .flagsSub || i.opcode == .flagsSubBorrow
    if i.opcode == .flagsSub {
      // Before anything is computed: the comparison takes its operands where they are.
      let condition = emitCompare(
        i.a, i.b, .greaterOrEqualUnsigned, wide: isWide, keepsOrder: true,
        clearing: .rax)
      precondition(condition == .aboveOrEqual)
      comparison = HostComparison(a: i.a, b: i.b, isWide: isWide)
    } else {
      let a = use(i.a)
      switch i.opcode {
      case .flagsLogic:
        asm.arithmetic(.xor, .rax, .rax, wide: false)
        asm.test(a, a, wide: isWide)
      case .flagsAdd:
        let b = use(i.b)
        let result = takeTemporary()
        asm.move(result, a, wide: isWide)
        asm.arithmetic(.xor, .rax, .rax, wide: false)
        asm.arithmetic(.add, result, b, wide: isWide)
      default:
        let b = use(i.b)
        let carry = use(i.c)
        // The carry flag is the third operand's lowest bit.
        asm.bitTest(carry, bit: 0)
        asm.move(.rax, a, wide: isWide)
        asm.arithmetic(isSubtraction ? .sbb : .adc, .rax, b, wide: isWide)
        asm.moveKeepingFlags(.rax, immediate: 0)
      }
    }
    asm.set(.overflow, .rax)
    asm.loadFlagsToAH()
    // The carry's bit changes, and not the flags: the bit above it, always set, lends what is missing.
    if isSubtraction { asm.loadAddress(.rax, X86Memory(.rax, -0x100), wide: false) }
    finishIn(.rax)
  }

  /// Unordered 0011, greater 0010, less 1000, equal 0110.
  func emitFloatFlags(_ i: IRInstruction) {
    let kind = IRFloatComparison(rawValue: IRFloatOperand(rawValue: i.immediate).kind)
    let (a, b) = (useVector(i.a), useVector(i.b))
    let prefix: UInt8 = i.opcode == .flagsCompareF64 ? 0x66 : 0
    asm.sse(prefix, kind == .less ? 0x2f : 0x2e, a, b)
    // Perhaps only what it raises is wanted.
    guard values[index].lastUse != 0 else { return }
    let result = takeTemporary()
    let other = takeTemporary()
    typealias F = IRPackedFlags
    asm.moveKeepingFlags(result, immediate: F.carry)
    for (condition, flags) in [
      (X86Condition.below, F.negative), (.equal, F.zero | F.carry), (.parity, F.carry | F.overflow),
    ] {
      asm.moveKeepingFlags(other, immediate: flags)
      asm.conditionalMove(condition, result, other, wide: false)
    }
    finishIn(result)
  }

  func emitFlagTest(_ i: IRInstruction) {
    let test = IRFlagTest(rawValue: UInt8(i.immediate)).unsafelyUnwrapped
    let single: (bit: UInt8, isInverted: Bool)? =
      switch test {
      case .negative: (15, false)
      case .notNegative: (15, true)
      case .zero: (14, false)
      case .notZero: (14, true)
      case .carry: (8, false)
      case .notCarry: (8, true)
      case .overflow: (0, false)
      case .notOverflow: (0, true)
      default: nil
      }
    if let single {
      let source = use(i.a)
      let result = takeTemporary()
      asm.move(result, source, wide: false)
      if single.bit != 0 { asm.shift(.right, result, by: single.bit, wide: false) }
      if single.isInverted { asm.arithmetic(.xor, result, immediate: 1, wide: false) }
      asm.arithmetic(.and, result, immediate: 1, wide: false)
      return finishIn(result)
    }
    claim(.rax)
    asm.move(.rax, use(i.a), wide: false)
    // The host's flags again: V first, then the others, the carry the other way round.
    asm.byte(0x04)  // add al, 0x7f
    asm.byte(0x7f)
    asm.byte(0x9e)  // sahf
    let condition: X86Condition
    switch test {
    case .lessSigned: condition = .less
    case .greaterOrEqualSigned: condition = .greaterOrEqual
    case .lessOrEqualSigned: condition = .lessOrEqual
    case .greaterSigned: condition = .greater
    default:
      asm.complementCarry()
      condition = test == .greaterUnsigned ? .above : .belowOrEqual
    }
    asm.set(condition, .rax)
    asm.extend(.rax, .rax, bits: 8, signed: false)
    finishIn(.rax)
  }

  /// The condition of a side exit, if the host's flags are those of the same comparison.
  func conditionInForce(_ i: IRInstruction) -> X86Condition? {
    guard let comparison, comparison.isWide == (i.opcode == .exitIf64) else { return nil }
    let isSame = isSame(comparison.a, i.a) && isSame(comparison.b, i.b)
    guard isSame || self.isSame(comparison.a, i.b) && self.isSame(comparison.b, i.a) else { return nil }
    switch IRCondition(rawValue: i.c).unsafelyUnwrapped {
    case .equal: return .equal
    case .notEqual: return .notEqual
    case .lessSigned: return isSame ? .less : .greater
    case .greaterOrEqualSigned: return isSame ? .greaterOrEqual : .lessOrEqual
    case .lessUnsigned: return isSame ? .below : .above
    case .greaterOrEqualUnsigned: return isSame ? .aboveOrEqual : .belowOrEqual
    }
  }
  /// Whether two operands of the comparison in force are the same number, in its width.
  private func isSame(_ a: UInt16, _ b: UInt16) -> Bool {
    func source(_ operand: UInt16) -> Int {
      var value = root(operand)
      if comparison?.isWide == false {
        while ir[value].opcode == .zeroExtend32 { value = root(ir[value].a) }
      }
      return value
    }
    let (x, y) = (source(a), source(b))
    if x == y { return true }
    func constant(_ value: Int) -> Int64? {
      guard ir[value].opcode == .const64 || ir[value].opcode == .const32 else { return nil }
      return comparison?.isWide == false ? ir[value].immediate & 0xffff_ffff : ir[value].immediate
    }
    guard let number = constant(x) else { return false }
    return number == constant(y)
  }
}
