import ApusGuest
import ApusIR
import ApusISAAArch64

/// Turns A64 instructions into IR, a block at a time.
///
/// A value on the stack of `AArch64CPU.translate`; the methods append to `block`. Instruction groups live in the files
/// `AArch64Translator+*.swift`. Flags stay what was compared until somebody needs the packed form: a conditional branch
/// behind a comparison is one compare and jump.
struct AArch64Translator {
  /// Where the condition flags come from.
  enum Flags {
    /// The state's packed form.
    case stored
    /// Of a - b, a + b, or of a result.
    case subtraction(a: IRValue, b: IRValue, isWide: Bool)
    case addition(a: IRValue, b: IRValue, result: IRValue, isWide: Bool)
    case logic(IRValue, isWide: Bool)
    /// Of two floats.
    case floats(a: IRValue, b: IRValue, isDouble: Bool, packed: IRValue)
    /// `IRPackedFlags`.
    case packed(IRValue)
  }

  let block: IRBlock
  let mode: AArch64Mode
  let features: AArch64FeatureSet
  let helpers: [IRHelper]
  /// The machine has EL2.
  let hasHypervisor: Bool
  /// The machine's EL3: none, emulated firmware's that nobody else is at, or the guest's.
  enum Monitor { case none, firmware, guest }
  let monitor: Monitor
  /// The PC of the instruction at hand, and its encoding.
  var pc: UInt64
  var word: UInt32 = 0
  /// Set when the instruction at hand ended the block.
  var isFinished = false
  var flags = Flags.stored
  /// Whether the state holds the newest flags.
  var areFlagsStored = true
  /// The branch that need not look for requests: the instruction before it did.
  var polledBranch: UInt64?

  init(
    block: IRBlock, mode: AArch64Mode, features: AArch64FeatureSet, helpers: [IRHelper],
    hasHypervisor: Bool, monitor: Monitor, pc: UInt64
  ) {
    (self.block, self.mode, self.features, self.helpers, self.pc) = (block, mode, features, helpers, pc)
    (self.hasHypervisor, self.monitor) = (hasHypervisor, monitor)
  }

  mutating func run(_ code: GuestCodeWindow, instructionLimit: Int) -> GuestTranslationResult {
    let decoder = AArch64Decoder.shared
    var offset = 0
    if mode.step == .pending {
      block.instruction(pc: pc, length: 4)
      call(.raiseStep)
      block.finish(.dispatch)
      return .block
    }
    if mode.hasBranchType {
      block.instruction(pc: pc, length: 4)
      if mode.checksBreakPoints { call(.checkBreakPoints) }
      call(.checkBranchTarget)
      block.finish(.dispatch)
      return .block
    }
    while true {
      word = UnsafeRawPointer(code.bytes + offset).loadUnaligned(as: UInt32.self)
      block.instruction(pc: pc, length: 4)
      if mode.checksBreakPoints { call(.checkBreakPoints) }
      let opcode = decoder.decode(word, features)
      if offset &+ 8 <= code.count {
        pollEarly(opcode, next: UnsafeRawPointer(code.bytes + offset + 4).loadUnaligned(as: UInt32.self))
      }
      if mode.step == .active, opcode.endsInHelper { completeStep() }
      translate(opcode)
      if isFinished { return .block }
      if mode.step == .active {
        finish(.direct(target: pc &+ 4))
        return .block
      }
      offset &+= 4
      pc &+= 4
      if offset &+ 4 > code.count || block.isNearlyFull || block.guestInstructionCount >= instructionLimit {
        storeFlags()
        block.finish(.direct(target: pc))
        return .block
      }
    }
  }

  /// Looks for requests before a comparison instead of behind it, if a backward branch follows: then nothing comes between
  /// the two.
  private mutating func pollEarly(_ opcode: AArch64Opcode, next: UInt32) {
    // b.cond with a negative offset.
    guard next & 0xff80_0010 == 0x5480_0000, next & 15 < 14, areFlagsStored, mode.step == .none else {
      return
    }
    switch opcode {
    case .subsImmediate, .subs, .subsExtended, .addsImmediate, .adds, .addsExtended, .andsImmediate, .ands,
      .bics,
      .fcmp:
      block.poll(pc: pc)
      polledBranch = pc &+ 4
    default: break
    }
  }

  // MARK: Fields

  func bits(_ low: UInt32, _ count: UInt32) -> UInt32 { word >> low & (1 << count &- 1) }
  func signedBits(_ low: UInt32, _ count: UInt32) -> Int64 {
    Int64(Int32(bitPattern: word << (32 &- low &- count)) >> Int32(32 &- count))
  }
  var rd: Int { Int(word & 31) }
  var rn: Int { Int(word >> 5 & 31) }
  var rm: Int { Int(word >> 16 & 31) }
  var ra: Int { Int(word >> 10 & 31) }
  var isWide: Bool { word >> 31 != 0 }

  // MARK: Operands

  /// A general register; 31 is zero.
  func x(_ number: Int) -> IRValue { number == 31 ? block.const64(0) : block.get64(AArch64State.x(number)) }
  /// A general register; 31 is the stack pointer.
  func xsp(_ number: Int) -> IRValue { block.get64(AArch64State.x(number)) }
  func setX(_ number: Int, _ value: IRValue) {
    if number != 31 { block.set64(AArch64State.x(number), value) }
  }
  func setXSP(_ number: Int, _ value: IRValue) { block.set64(AArch64State.x(number), value) }
  /// The lower 32 bits as an i32.
  func narrow(_ value: IRValue) -> IRValue { block.unary(.truncate32, value) }
  /// A register of the instruction's width: i64 with the upper half clear for 32 bits.
  func operand(_ number: Int) -> IRValue {
    isWide ? x(number) : block.unary(.zeroExtend32, narrow(x(number)))
  }
  func constant(_ value: UInt64) -> IRValue { block.const64(value) }

  /// The result of an operation in the instruction's width, as an i64 with the upper half clear for 32 bits.
  func binary(_ wide: IROpcode, _ narrowOpcode: IROpcode, _ a: IRValue, _ b: IRValue) -> IRValue {
    isWide
      ? block.binary(wide, a, b)
      : block.unary(.zeroExtend32, block.binary(narrowOpcode, narrow(a), narrow(b)))
  }

  func memory(_ displacement: Int64 = 0, ordered: Bool = false, _ operation: IRAtomicOperation = .exchange)
    -> IRMemoryOperand
  {
    IRMemoryOperand(
      displacement: Int32(truncatingIfNeeded: displacement), context: mode.context, ordered: ordered,
      operation: operation)
  }

  @discardableResult
  mutating func call(
    _ helper: AArch64Helper, _ a: IRValue = .none, _ b: IRValue = .none, _ c: IRValue = .none
  ) -> IRValue {
    let one = helpers[helper.rawValue]
    if one.effects.contains(.readsState) || one.effects.contains(.mayExit) { storeFlags() }
    let result = block.call(helper.rawValue, one, a, b, c)
    if one.effects.contains(.writesState) { flags = .stored }
    return result
  }

  mutating func finish(_ terminator: IRTerminator) {
    isFinished = true
    guard mode.step == .active else { return block.finish(terminator) }
    // A step ends in another mode, which the dispatcher finds.
    switch terminator {
    case .direct(let target):
      completeStep()
      block.set64(StateHeader.pc, constant(target))
    case .indirect(let target, _, _):
      completeStep()
      block.set64(StateHeader.pc, target)
    case .dispatch: break
    }
    block.finish(.dispatch)
  }

  /// Before the step's last effect, which cannot fail.
  private mutating func completeStep() {
    storeFlags()
    var next = mode
    next.step = .pending
    let isExclusive = word & 0x3f40_0000 == 0x0840_0000 && word >> 23 & 1 == 0
    block.set64(AArch64SystemSlot.step.offset, constant(1 << 24 | (isExclusive ? 1 << 6 : 0)))
    block.set32(StateHeader.mode, block.const32(next.rawValue))
  }

  /// Raises an undefined-instruction exception; the block ends.
  mutating func undefined() {
    call(.raiseUndefined)
    finish(.dispatch)
  }

  // MARK: Flags

  mutating func setFlags(_ new: Flags) {
    flags = new
    areFlagsStored = false
  }

  /// Writes the packed form to the state if it is not there: before whatever may leave the block.
  mutating func storeFlags() {
    if areFlagsStored { return }
    areFlagsStored = true
    block.set64(AArch64State.Field.packedFlags.offset, packedFlags())
  }

  func packedFlags() -> IRValue {
    func width(_ isWide: Bool) -> Int64 { IRFlagsOperand(width: isWide ? 64 : 32, isNZCVOnly: true).rawValue }
    switch flags {
    case .stored: return block.get64(AArch64State.Field.packedFlags.offset)
    case .subtraction(let a, let b, let isWide):
      return block.unary(.flagsPack, block.binary(.flagsSub, a, b, immediate: width(isWide)))
    case .addition(let a, let b, _, let isWide):
      return block.unary(.flagsPack, block.binary(.flagsAdd, a, b, immediate: width(isWide)))
    case .logic(let result, let isWide):
      return block.unary(.flagsPack, block.unary(.flagsLogic, result, immediate: width(isWide)))
    case .floats(_, _, _, let packed), .packed(let packed): return packed
    }
  }
  /// The flags with N 31, Z 30, C 29, V 28, and back.
  func conditionBits() -> IRValue {
    let packed = packedFlags()
    func part(_ mask: UInt64, _ shift: UInt64) -> IRValue {
      block.binary(.shl64, block.binary(.and64, packed, constant(mask)), constant(shift))
    }
    let high = part(IRPackedFlags.negative | IRPackedFlags.zero, 16)
    return block.binary(
      .or64, high, block.binary(.or64, part(IRPackedFlags.carry, 21), part(IRPackedFlags.overflow, 28)))
  }
  mutating func setConditionBits(_ value: IRValue) {
    func part(_ mask: UInt64, _ shift: UInt64) -> IRValue {
      block.binary(.and64, block.binary(.shrU64, value, constant(shift)), constant(mask))
    }
    let high = part(IRPackedFlags.negative | IRPackedFlags.zero, 16)
    setFlags(
      .packed(
        block.binary(
          .or64, high, block.binary(.or64, part(IRPackedFlags.carry, 21), part(IRPackedFlags.overflow, 28)))))
  }
  /// An instruction's four bits N, Z, C, V as packed flags.
  func immediateFlags() -> IRValue { constant(AArch64State.packed(nzcv: UInt64(bits(0, 4)) << 28)) }

  /// A comparison that holds when a condition does.
  struct Comparison {
    var condition: IRCondition
    var a: IRValue
    var b: IRValue
    /// The operands are compared as i32.
    var isNarrow = false
  }

  /// The condition [Arm ARM C1.2.4], not `al`.
  mutating func comparison(_ condition: UInt32) -> Comparison {
    func narrowed(_ c: IRCondition, _ a: IRValue, _ b: IRValue, _ isWide: Bool) -> Comparison {
      isWide
        ? Comparison(condition: c, a: a, b: b)
        : Comparison(condition: c, a: narrow(a), b: narrow(b), isNarrow: true)
    }
    switch flags {
    case .subtraction(let a, let b, let isWide):
      switch condition {
      case 0: return narrowed(.equal, a, b, isWide)
      case 1: return narrowed(.notEqual, a, b, isWide)
      case 2: return narrowed(.greaterOrEqualUnsigned, a, b, isWide)
      case 3: return narrowed(.lessUnsigned, a, b, isWide)
      case 8: return narrowed(.lessUnsigned, b, a, isWide)
      case 9: return narrowed(.greaterOrEqualUnsigned, b, a, isWide)
      case 10: return narrowed(.greaterOrEqualSigned, a, b, isWide)
      case 11: return narrowed(.lessSigned, a, b, isWide)
      case 12: return narrowed(.lessSigned, b, a, isWide)
      case 13: return narrowed(.greaterOrEqualSigned, b, a, isWide)
      case 4, 5:
        let result =
          isWide
          ? block.binary(.sub64, a, b)
          : block.unary(.zeroExtend32, block.binary(.sub32, narrow(a), narrow(b)))
        return narrowed(condition == 4 ? .lessSigned : .greaterOrEqualSigned, result, constant(0), isWide)
      default: break
      }
    case .addition(let a, _, let result, let isWide):
      switch condition {
      case 0: return narrowed(.equal, result, constant(0), isWide)
      case 1: return narrowed(.notEqual, result, constant(0), isWide)
      case 2: return narrowed(.lessUnsigned, result, a, isWide)
      case 3: return narrowed(.greaterOrEqualUnsigned, result, a, isWide)
      case 4: return narrowed(.lessSigned, result, constant(0), isWide)
      case 5: return narrowed(.greaterOrEqualSigned, result, constant(0), isWide)
      default: break
      }
    case .logic(let result, let isWide):
      // C and V are clear.
      switch condition {
      case 0: return narrowed(.equal, result, constant(0), isWide)
      case 2, 6, 8: return Comparison(condition: .notEqual, a: constant(0), b: constant(0))
      case 3, 7, 9: return Comparison(condition: .equal, a: constant(0), b: constant(0))
      case 1: return narrowed(.notEqual, result, constant(0), isWide)
      case 4, 11: return narrowed(.lessSigned, result, constant(0), isWide)
      case 5, 10: return narrowed(.greaterOrEqualSigned, result, constant(0), isWide)
      case 12: return narrowed(.lessSigned, constant(0), result, isWide)
      case 13: return narrowed(.greaterOrEqualSigned, constant(0), result, isWide)
      default: break
      }
    case .floats(let a, let b, let isDouble, _):
      // None of these raises what the comparison has not raised.
      func test(_ kind: IRFloatComparison, _ a: IRValue, _ b: IRValue, _ holds: Bool) -> Comparison {
        let value = block.binary(
          isDouble ? .compareF64 : .compareF32, a, b, immediate: floatOperand(kind: kind.rawValue))
        return Comparison(condition: holds ? .notEqual : .equal, a: value, b: constant(0))
      }
      switch condition {
      case 0, 1: return test(.equal, a, b, condition == 0)
      case 2, 5: return test(.lessQuiet, a, b, false)
      case 3, 4: return test(.lessQuiet, a, b, true)
      case 8, 9: return test(.lessOrEqualQuiet, a, b, condition == 9)
      case 10, 11: return test(.lessOrEqualQuiet, b, a, condition == 10)
      case 12, 13: return test(.lessQuiet, b, a, condition == 12)
      default: break
      }
    case .stored, .packed: break
    }
    let tests: [IRFlagTest] = [
      .zero, .notZero, .carry, .notCarry, .negative, .notNegative, .overflow, .notOverflow, .greaterUnsigned,
      .lessOrEqualUnsigned, .greaterOrEqualSigned, .lessSigned, .greaterSigned, .lessOrEqualSigned,
    ]
    let test = block.unary(
      .flagTest, block.unary(.flagsUnpack, packedFlags()), immediate: Int64(tests[Int(condition)].rawValue))
    return Comparison(condition: .notEqual, a: test, b: constant(0))
  }

  /// 1 if the condition holds, else 0.
  mutating func value(of condition: UInt32) -> IRValue {
    if condition >= 14 { return constant(1) }
    let c = comparison(condition)
    if !c.isNarrow, c.condition == .notEqual, block.constant(c.b) == 0,
      block.instructions[Int(c.a.index)].opcode == .flagTest
    {
      return c.a
    }
    return block.binary(
      c.isNarrow ? .compare32 : .compare64, c.a, c.b, immediate: Int64(c.condition.rawValue))
  }

  mutating func exit(if c: Comparison, to target: UInt64) {
    storeFlags()
    if c.isNarrow {
      block.exitIf32(c.condition, c.a, c.b, target: target)
    } else {
      block.exitIf(c.condition, c.a, c.b, target: target)
    }
  }

  // MARK: One instruction

  private mutating func translate(_ opcode: AArch64Opcode) {
    if mode.trapsFloat, opcode.usesVectorRegisters {
      call(.raiseFloatTrap)
      return finish(.dispatch)
    }
    switch opcode {
    case .undefined: undefined()
    case .adr, .adrp, .addImmediate, .addsImmediate, .subImmediate, .subsImmediate, .andImmediate,
      .orrImmediate, .eorImmediate, .andsImmediate, .movn, .movz, .movk, .sbfm, .bfm, .ubfm, .extr, .and,
      .bic,
      .orr, .orn, .eor, .eon, .ands, .bics, .add, .adds, .sub, .subs, .addExtended, .addsExtended,
      .subExtended, .subsExtended, .adc, .adcs, .sbc, .sbcs, .ccmn, .ccmp, .csel, .csinc, .csinv, .csneg,
      .udiv,
      .sdiv, .lslv, .lsrv, .asrv, .rorv, .crc32, .rbit, .rev16, .rev, .rev32, .clz, .cls, .madd, .msub,
      .smaddl,
      .smsubl, .umaddl, .umsubl, .smulh, .umulh:
      integer(opcode)
    case .bCond, .svc, .hvc, .smc, .eret, .msrImmediate, .brk, .hlt, .hint, .clrex, .barrier, .isb, .sys,
      .msr, .mrs, .br, .blr, .ret, .b, .bl, .cbz,
      .cbnz, .tbz, .tbnz:
      control(opcode)
    case .vectorStructures, .vectorElement, .stxr, .ldxr, .stxp, .ldxp, .casp, .cas, .stlr, .ldar,
      .loadLiteral,
      .loadLiteralVector, .pair, .pairVector, .ldapr, .atomicMemory, .loadStore, .loadStoreVector:
      storeFlags()  // every access may fault
      access(opcode)
    case .floatToInteger, .integerToFloat, .fmovToGeneral, .fmovFromGeneral, .fixedToFloat, .floatToFixed,
      .fmov,
      .fabs, .fneg, .fsqrt, .fcvt, .frint, .fcmp, .fmovImmediate, .fccmp, .fmul, .fdiv, .fadd, .fsub, .fmax,
      .fmin, .fmaxnm, .fminnm, .fnmul, .fcsel, .fused:
      floatingPoint(opcode)
    case .vectorImmediate, .vectorMiscellaneous, .vectorAcross, .vectorThreeSame, .vectorThreeDifferent,
      .vectorCopy, .vectorShift, .vectorPermute, .vectorExtract, .vectorTable, .vectorIndexed,
      .scalarMiscellaneous, .scalarPairwise, .scalarThreeSame, .scalarThreeDifferent, .scalarCopy,
      .scalarShift,
      .scalarIndexed:
      vector(opcode)
    case .cfinv, .xaflag, .axflag, .rmif, .setf: flagManipulation(opcode)
    case .sb: block.fence()
    case .unscaledOrdered:
      storeFlags()
      unscaledOrdered()
    case .pointerAuthentication, .stripAuthentication, .pacga, .brAuthenticated, .blrAuthenticated,
      .retAuthenticated, .eretAuthenticated, .loadAuthenticated:
      authentication(opcode)
    case .addTag, .irg, .gmi, .subp, .ldg, .storeTag, .stgp: memoryTagging(opcode)
    case .aese, .aesd, .aesmc, .aesimc, .pmull64, .sha1c, .sha1p, .sha1m, .sha1su0, .sha256h, .sha256h2,
      .sha256su1, .sha1h, .sha1su1, .sha256su0, .sha512h, .sha512h2, .sha512su1, .sha512su0, .rax1, .eor3,
      .bcax, .xar, .sm3ss1, .sm3tt1a, .sm3tt1b, .sm3tt2a, .sm3tt2b, .sm3partw1, .sm3partw2, .sm4ekey, .sm4e:
      cipher(opcode)
    case .sqrdmlah, .sqrdmlsh, .sqrdmlahIndexed, .sqrdmlshIndexed, .dot, .dotIndexed, .matrixMultiply, .bfdot,
      .bfdotIndexed, .bfmmla, .bfmlal, .bfmlalIndexed, .bfcvtn, .bfcvt, .fcmla, .fcadd, .fcmlaIndexed, .fmlal,
      .fmlalIndexed, .frintts, .vectorFrintts, .halfVector:
      extensionVector(opcode)
    case .halfFloat, .halfToGeneral, .halfFromGeneral, .halfCompare, .halfImmediate, .halfSelect,
      .halfVectorImmediate, .fjcvtzs:
      half(opcode)
    }
  }
}
