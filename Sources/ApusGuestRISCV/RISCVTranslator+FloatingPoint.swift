import ApusIR
import ApusISARISCV

extension RISCVTranslator {
  private func f(_ number: UInt8) -> IRValue { block.getF64(RISCVState.f(Int(number))) }
  private func setF(_ value: IRValue) { block.setF64(RISCVState.f(Int(instruction.rd)), value) }
  /// A single-precision source: a register that holds no boxed single reads as the default NaN [RV-Unpriv 21.2].
  private func single(_ number: UInt8) -> IRValue {
    let value = f(number)
    let maker = block.instructions[Int(value.index)]
    if maker.opcode == .boxF32, block.optimisations.contains(.fold) { return IRValue(index: maker.a) }
    return block.unary(.unboxF32, value)
  }
  private func setSingle(_ value: IRValue) { setF(block.unary(.boxF32, value)) }

  /// Sees to it that the unit is on. False: the block ended with an exception.
  mutating func requireFloat() -> Bool {
    if mode.floatState == 0 {
      illegal()
      return false
    }
    if mode.floatState == RISCVMode.floatStateIsDynamic, !hasCheckedFloat {
      call(.requireFloat, block.const64(UInt64(instruction.word)))
      hasCheckedFloat = true
    }
    return true
  }

  /// F, D, Zfh [RV-Unpriv 20-22].
  mutating func floatingPoint() {
    guard requireFloat() else { return }
    let opcode = instruction.opcode
    var changesState = true
    switch opcode {
    case .fsw, .fsd, .fsh, .fmvXW, .fmvXD, .fmvXH, .fclassS, .fclassD, .fclassH: changesState = false
    default: break
    }
    if changesState, mode.floatState == 1 {
      // FS becomes dirty; the same instruction again, in a block of that mode.
      call(.setFloatDirty)
      return finish(.dispatch)
    }

    var rounding = mode.frm
    switch instruction.format {
    case .fr4, .frrm, .fr1rm, .fxrm, .ffxrm:
      if instruction.roundingMode != 7 { rounding = UInt32(instruction.roundingMode) }
      guard rounding <= 4 else { return illegal() }
    default: break
    }
    if translateMove() { return }
    let isHalf = instruction.word >> 25 & 3 == 2
    let hostRounding = mode.frm <= 3 ? mode.frm : 0
    let truncates = isSignedTruncation(rounding)
    let isRounded = isRoundedFormat
    guard !isHalf, !isHalfConversion, block.optimisations.contains(.hostFloat),
      !isRounded || truncates || (rounding == hostRounding && rounding <= 3)
    else {
      call(.executeFloat, block.const64(UInt64(instruction.word)), block.const64(UInt64(rounding)))
      return
    }
    if instruction.word >> 25 & 1 == 0 && opcode != .fcvtSD || opcode == .fcvtDS {
      translateSingle(rounding)
    } else {
      translateDouble(rounding)
    }
  }

  private var isRoundedFormat: Bool {
    switch instruction.format {
    case .fr4, .frrm, .fr1rm, .fxrm, .ffxrm: true
    default: false
    }
  }
  private var isHalfConversion: Bool {
    switch instruction.opcode {
    case .fcvtSH, .fcvtHS, .fcvtDH, .fcvtHD: true
    default: false
    }
  }
  /// Conversions to signed integers have a truncating form on every host.
  private func isSignedTruncation(_ rounding: UInt32) -> Bool {
    guard rounding == 1 else { return false }
    switch instruction.opcode {
    case .fcvtWS, .fcvtLS, .fcvtWD, .fcvtLD, .fcvtWuS, .fcvtWuD, .fcvtLuS, .fcvtLuD: return true
    default: return false
    }
  }

  private func operand(
    _ rounding: UInt32, negateProduct: Bool = false, negateAddend: Bool = false, kind: UInt8 = 0
  ) -> Int64 {
    IRFloatOperand(
      rounding: IRRounding(rawValue: UInt8(rounding)) ?? .nearestEven,
      isCurrent: rounding == (mode.frm <= 3 ? mode.frm : 0), nanRule: .positiveDefault,
      negateProduct: negateProduct, negateAddend: negateAddend, kind: kind
    ).rawValue
  }

  /// Loads, stores and moves, which work for all formats and never round. False if it is none of these.
  private func translateMove() -> Bool {
    switch instruction.opcode {
    case .fld: setF(block.load(.loadF64, rs1, memory()))
    case .flw: setSingle(block.load(.loadF32, rs1, memory()))
    case .flh:
      let value = block.load(.loadU16, rs1, memory())
      setF(block.unary(.moveI64ToF64, block.binary(.or64, value, block.const64(~0xffff))))
    case .fsd: block.store(.storeF64, rs1, f(instruction.rs2), memory())
    case .fsw: block.store(.store32, rs1, block.unary(.moveF64ToI64, f(instruction.rs2)), memory())
    case .fsh: block.store(.store16, rs1, block.unary(.moveF64ToI64, f(instruction.rs2)), memory())
    case .fmvXD: setRD(block.unary(.moveF64ToI64, f(instruction.rs1)))
    case .fmvXW:
      setRD(
        block.unary(.signExtend32, block.unary(.truncate32, block.unary(.moveF64ToI64, f(instruction.rs1)))))
    case .fmvXH: setRD(block.unary(.signExtend16, block.unary(.moveF64ToI64, f(instruction.rs1))))
    case .fmvDX: setF(block.unary(.moveI64ToF64, rs1))
    case .fmvWX: setSingle(block.unary(.moveI64ToF32, rs1))
    case .fmvHX: setF(block.unary(.moveI64ToF64, block.binary(.or64, rs1, block.const64(~0xffff))))
    case .fclassS, .fclassD, .fclassH:
      let format = instruction.word >> 25 & 3
      setRD(
        call(.classifyFloat, block.unary(.moveF64ToI64, f(instruction.rs1)), block.const64(UInt64(format))))
    default: return false
    }
    return true
  }

  private func translateSingle(_ rounding: UInt32) {
    let plain = operand(rounding)
    func two(_ opcode: IROpcode) {
      setSingle(block.binary(opcode, single(instruction.rs1), single(instruction.rs2), immediate: plain))
    }
    func fused(_ negateProduct: Bool, _ negateAddend: Bool) {
      setSingle(
        block.ternary(
          .mulAddF32, single(instruction.rs1), single(instruction.rs2), single(instruction.rs3),
          immediate: operand(rounding, negateProduct: negateProduct, negateAddend: negateAddend)))
    }
    func compare(_ kind: IRFloatComparison) {
      setRD(
        block.binary(
          .compareF32, single(instruction.rs1), single(instruction.rs2),
          immediate: operand(0, kind: kind.rawValue)))
    }
    func sign(_ kind: IRSignInjection) {
      setSingle(
        block.binary(
          .signInjectF32, single(instruction.rs1), single(instruction.rs2), immediate: Int64(kind.rawValue)))
    }
    func toInteger(_ opcode: IROpcode) {
      setRD(block.unary(opcode, single(instruction.rs1), immediate: plain))
    }
    func fromInteger(_ opcode: IROpcode) { setSingle(block.unary(opcode, rs1, immediate: plain)) }
    switch instruction.opcode {
    case .faddS: two(.addF32)
    case .fsubS: two(.subF32)
    case .fmulS: two(.mulF32)
    case .fdivS: two(.divF32)
    case .fminS: two(.minF32)
    case .fmaxS: two(.maxF32)
    case .fsqrtS: setSingle(block.unary(.sqrtF32, single(instruction.rs1), immediate: plain))
    case .fmaddS: fused(false, false)
    case .fmsubS: fused(false, true)
    case .fnmsubS: fused(true, false)
    case .fnmaddS: fused(true, true)
    case .fsgnjS: sign(.copy)
    case .fsgnjnS: sign(.negate)
    case .fsgnjxS: sign(.xor)
    case .feqS: compare(.equal)
    case .fltS: compare(.less)
    case .fleS: compare(.lessOrEqual)
    case .fcvtWS: toInteger(.convertF32ToS32)
    case .fcvtWuS: toInteger(.convertF32ToU32)
    case .fcvtLS: toInteger(.convertF32ToS64)
    case .fcvtLuS: toInteger(.convertF32ToU64)
    case .fcvtSW: fromInteger(.convertS32ToF32)
    case .fcvtSWu: fromInteger(.convertU32ToF32)
    case .fcvtSL: fromInteger(.convertS64ToF32)
    case .fcvtSLu: fromInteger(.convertU64ToF32)
    case .fcvtDS: setF(block.unary(.convertF32ToF64, single(instruction.rs1), immediate: plain))
    default: preconditionFailure("not a single-precision instruction")
    }
  }

  private func translateDouble(_ rounding: UInt32) {
    let plain = operand(rounding)
    func two(_ opcode: IROpcode) {
      setF(block.binary(opcode, f(instruction.rs1), f(instruction.rs2), immediate: plain))
    }
    func fused(_ negateProduct: Bool, _ negateAddend: Bool) {
      setF(
        block.ternary(
          .mulAddF64, f(instruction.rs1), f(instruction.rs2), f(instruction.rs3),
          immediate: operand(rounding, negateProduct: negateProduct, negateAddend: negateAddend)))
    }
    func compare(_ kind: IRFloatComparison) {
      setRD(
        block.binary(
          .compareF64, f(instruction.rs1), f(instruction.rs2), immediate: operand(0, kind: kind.rawValue)))
    }
    func sign(_ kind: IRSignInjection) {
      if kind == .copy, instruction.rs1 == instruction.rs2 { return setF(f(instruction.rs1)) }
      setF(
        block.binary(.signInjectF64, f(instruction.rs1), f(instruction.rs2), immediate: Int64(kind.rawValue)))
    }
    func toInteger(_ opcode: IROpcode) { setRD(block.unary(opcode, f(instruction.rs1), immediate: plain)) }
    func fromInteger(_ opcode: IROpcode) { setF(block.unary(opcode, rs1, immediate: plain)) }
    switch instruction.opcode {
    case .faddD: two(.addF64)
    case .fsubD: two(.subF64)
    case .fmulD: two(.mulF64)
    case .fdivD: two(.divF64)
    case .fminD: two(.minF64)
    case .fmaxD: two(.maxF64)
    case .fsqrtD: setF(block.unary(.sqrtF64, f(instruction.rs1), immediate: plain))
    case .fmaddD: fused(false, false)
    case .fmsubD: fused(false, true)
    case .fnmsubD: fused(true, false)
    case .fnmaddD: fused(true, true)
    case .fsgnjD: sign(.copy)
    case .fsgnjnD: sign(.negate)
    case .fsgnjxD: sign(.xor)
    case .feqD: compare(.equal)
    case .fltD: compare(.less)
    case .fleD: compare(.lessOrEqual)
    case .fcvtWD: toInteger(.convertF64ToS32)
    case .fcvtWuD: toInteger(.convertF64ToU32)
    case .fcvtLD: toInteger(.convertF64ToS64)
    case .fcvtLuD: toInteger(.convertF64ToU64)
    case .fcvtDW: fromInteger(.convertS32ToF64)
    case .fcvtDWu: fromInteger(.convertU32ToF64)
    case .fcvtDL: fromInteger(.convertS64ToF64)
    case .fcvtDLu: fromInteger(.convertU64ToF64)
    case .fcvtSD: setSingle(block.unary(.convertF64ToF32, f(instruction.rs1), immediate: plain))
    default: preconditionFailure("not a double-precision instruction")
    }
  }
}
