import ApusAsmX86
import ApusIR

// Condition flags. A `flags` value is its packed form in a general register: `flagsPack` and `flagsUnpack` are other names
// of it, and a value that nobody uses is not computed. Guests that compare and branch do so with `exitIf`.

extension IROpcode {
  /// Whether the result is its operand under another type.
  var isAlias: Bool { self == .truncate32 || self == .flagsPack || self == .flagsUnpack }
}

extension X86Emitter {
  /// OF 0, and in the second byte CF 0, ZF 6, SF 7: V, C, Z, N from the lowest up.
  private static let flagBits: Int32 = 0xc101

  func emitFlags(_ i: IRInstruction) {
    let operand = IRFlagsOperand(rawValue: i.immediate)
    precondition(operand.isNZCVOnly && operand.width >= 32, "flags of this kind have no emitter")
    let isWide = operand.width == 64
    claim(.rax)
    let isSubtraction = i.opcode == .flagsSub || i.opcode == .flagsSubBorrow
    if i.opcode == .flagsSub {
      // Before anything is computed: the comparison takes its operands where they are.
      let condition = emitCompare(i.a, i.b, .greaterOrEqualUnsigned, wide: isWide, keepsOrder: true)
      precondition(condition == .aboveOrEqual)
    } else {
      let a = use(i.a)
      switch i.opcode {
      case .flagsLogic: asm.test(a, a, wide: isWide)
      case .flagsAdd:
        let b = use(i.b)
        asm.move(.rax, a, wide: isWide)
        asm.arithmetic(.add, .rax, b, wide: isWide)
      default:
        let b = use(i.b)
        let carry = use(i.c)
        // The carry flag is the third operand's lowest bit.
        asm.bitTest(carry, bit: 0)
        asm.move(.rax, a, wide: isWide)
        asm.arithmetic(isSubtraction ? .sbb : .adc, .rax, b, wide: isWide)
      }
    }
    if isSubtraction { asm.complementCarry() }
    asm.set(.overflow, .rax)
    asm.loadFlagsToAH()
    locked = 1 << UInt16(X86Register.rax.rawValue)
    let mask = takeTemporary()
    asm.moveKeepingFlags(mask, immediate: UInt64(Self.flagBits))
    asm.extractBits(.rax, .rax, mask)
    asm.shift(.left, .rax, by: 28, wide: false)
    finishIn(.rax)
  }

  /// The bits of N, Z, C, V (8, 4, 2, 1) for which a test holds, as a table of 16.
  private static let testTables: [Int32] = (0..<14).map { test in
    var table: Int32 = 0
    for nibble in 0..<16 {
      let (n, z, c, v) = (nibble & 8 != 0, nibble & 4 != 0, nibble & 2 != 0, nibble & 1 != 0)
      let holds: Bool
      switch IRFlagTest(rawValue: UInt8(test)).unsafelyUnwrapped {
      case .zero: holds = z
      case .notZero: holds = !z
      case .negative: holds = n
      case .notNegative: holds = !n
      case .carry: holds = c
      case .notCarry: holds = !c
      case .overflow: holds = v
      case .notOverflow: holds = !v
      case .lessSigned: holds = n != v
      case .greaterOrEqualSigned: holds = n == v
      case .lessOrEqualSigned: holds = z || n != v
      case .greaterSigned: holds = !z && n == v
      case .lessOrEqualUnsigned: holds = !c || z
      case .greaterUnsigned: holds = c && !z
      }
      if holds { table |= 1 << Int32(nibble) }
    }
    return table
  }

  func emitFlagTest(_ i: IRInstruction) {
    let source = use(i.a)
    let result = takeTemporary()
    let single: UInt8? =
      switch IRFlagTest(rawValue: UInt8(i.immediate)).unsafelyUnwrapped {
      case .negative: 31
      case .zero: 30
      case .carry: 29
      case .overflow: 28
      default: nil
      }
    asm.move(result, source, wide: false)
    if let single {
      asm.shift(.right, result, by: single, wide: false)
      asm.arithmetic(.and, result, immediate: 1, wide: false)
      return finishIn(result)
    }
    asm.shift(.right, result, by: 28, wide: false)
    let table = takeTemporary()
    asm.move(table, immediate: UInt64(Self.testTables[Int(i.immediate)]))
    asm.bitTest(table, result)
    asm.set(.below, result)
    asm.extend(result, result, bits: 8, signed: false)
    finishIn(result)
  }
}
