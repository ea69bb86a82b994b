import ApusIR
import ApusISAAArch64

// Scalar floating point [Arm ARM C4.1.96]. What the host's unit does exactly is IR; minimum, maximum, half precision,
// rounding to integral values and everything under FPCR's FZ, NEP, AH and FIZ are soft float.

extension AArch64Translator {
  private var isDouble: Bool { bits(22, 1) == 1 }

  /// A register as an f32 or f64.
  private func f(_ number: Int) -> IRValue {
    let slot = block.getF64(AArch64State.v(number))
    return isDouble ? slot : block.unary(.unboxF32, slot, immediate: 1)
  }
  /// Writes an f32 or f64 result; the rest of the register becomes zero.
  private func setF(_ number: Int, _ value: IRValue, isDouble: Bool) {
    block.setF64(AArch64State.v(number), isDouble ? value : block.unary(.boxF32, value, immediate: 1))
    setHigh(number, nil)
  }

  func floatOperand(
    _ rounding: IRRounding? = nil, negateProduct: Bool = false, negateAddend: Bool = false, kind: UInt8 = 0
  ) -> Int64 {
    IRFloatOperand(
      rounding: rounding ?? mode.rounding, isCurrent: rounding == nil || rounding == mode.rounding,
      nanRule: mode.isDefaultNaN ? .positiveDefault : .propagateARM, negateProduct: negateProduct,
      negateAddend: negateAddend, isTinyBeforeRounding: true, kind: kind
    ).rawValue
  }

  mutating func floatingPoint(_ opcode: AArch64Opcode) {
    switch opcode {
    case .fmovToGeneral:
      if bits(22, 2) == 2 {
        setX(rd, half(rn, true))
      } else {
        let value = half(rn, false)
        setX(rd, isWide ? value : block.unary(.zeroExtend32, narrow(value)))
      }
    case .fmovFromGeneral:
      if bits(22, 2) == 2 {
        setHalf(rd, true, x(rn))
      } else {
        let value = isWide ? x(rn) : block.unary(.zeroExtend32, narrow(x(rn)))
        setVector(rd, Halves(low: block.unary(.moveI64ToF64, value)))
      }
    case .fmovImmediate:
      let value = Self.expanded(bits(13, 8), isDouble: isDouble)
      setVector(rd, Halves(low: block.unary(.moveI64ToF64, constant(value))))
    case .fmov: bitwise(opcode)
    case .fabs, .fneg:
      // With AH a NaN keeps its sign.
      if mode.needsSoftFloat { soft() } else { bitwise(opcode) }
    case .fcsel:
      let condition = bits(12, 4)
      let holds = condition >= 14 ? constant(1) : value(of: condition)
      let chosen = block.ternary(.select64, holds, half(rn, false), half(rm, false))
      setVector(
        rd,
        Halves(
          low: block.unary(.moveI64ToF64, isDouble ? chosen : block.unary(.zeroExtend32, narrow(chosen)))))
    case .fcmp, .fccmp: compare(isConditional: opcode == .fccmp)
    case .frint where bits(15, 3) == 4 && canRound:
      setF(rd, roundedAway(isExact: false), isDouble: isDouble)
    case .frint, .fmax, .fmin, .fmaxnm, .fminnm: if !floatScalar(opcode) { soft() }
    case .fixedToFloat: fromInteger(fraction: 64 - Int(bits(10, 6)))
    case .floatToFixed: toFixed(fraction: 64 - Int(bits(10, 6)))
    case .fcvt:
      guard bits(22, 2) != 3, bits(15, 2) != 3, !mode.needsSoftFloat else { return soft() }
      if isDouble {
        setF(rd, block.unary(.convertF64ToF32, f(rn), immediate: floatOperand()), isDouble: false)
      } else {
        setF(rd, block.unary(.convertF32ToF64, f(rn), immediate: floatOperand()), isDouble: true)
      }
    case .fadd: arithmetic(.addF32, .addF64)
    case .fsub: arithmetic(.subF32, .subF64)
    case .fmul: arithmetic(.mulF32, .mulF64)
    case .fdiv: arithmetic(.divF32, .divF64)
    case .fnmul:
      guard !mode.needsSoftFloat else { return soft() }
      let product = block.binary(isDouble ? .mulF64 : .mulF32, f(rn), f(rm), immediate: floatOperand())
      let negated = block.binary(
        isDouble ? .signInjectF64 : .signInjectF32, product, product,
        immediate: Int64(IRSignInjection.negate.rawValue))
      setF(rd, negated, isDouble: isDouble)
    case .fsqrt:
      guard !mode.needsSoftFloat else { return soft() }
      setF(
        rd, block.unary(isDouble ? .sqrtF64 : .sqrtF32, f(rn), immediate: floatOperand()), isDouble: isDouble)
    case .fused:
      guard !mode.needsSoftFloat else { return soft() }
      // fmadd a + n*m, fmsub a - n*m, fnmadd -a - n*m, fnmsub -a + n*m
      let negateAddend = bits(21, 1) == 1
      let result = block.ternary(
        isDouble ? .mulAddF64 : .mulAddF32, f(rn), f(rm), f(ra),
        immediate: floatOperand(negateProduct: (bits(15, 1) == 1) != negateAddend, negateAddend: negateAddend)
      )
      setF(rd, result, isDouble: isDouble)
    case .integerToFloat: fromInteger()
    case .floatToInteger: toInteger()
    default: preconditionFailure("not a floating-point instruction")
    }
  }

  private mutating func soft() { call(.softFloat, constant(UInt64(word))) }

  /// VFPExpandImm.
  static func expanded(_ immediate: UInt32, isDouble: Bool) -> UInt64 {
    let imm = UInt64(immediate)
    let sign = imm >> 7 & 1
    let exponent = imm >> 6 & 1
    if isDouble {
      return sign << 63 | (exponent ^ 1) << 62 | (exponent == 1 ? 0xff : 0) << 54 | (imm & 0x3f) << 48
    }
    return sign << 31 | (exponent ^ 1) << 30 | (exponent == 1 ? 0x1f : 0) << 25 | (imm & 0x3f) << 19
  }

  private func bitwise(_ opcode: AArch64Opcode) {
    let value = half(rn, false)
    let sign: UInt64 = isDouble ? 1 << 63 : 1 << 31
    var result: IRValue
    switch opcode {
    case .fabs: result = block.binary(.and64, value, constant(isDouble ? ~sign : 0x7fff_ffff))
    case .fneg:
      result = block.binary(.xor64, value, constant(sign))
      if !isDouble { result = block.unary(.zeroExtend32, narrow(result)) }
    default:
      if isDouble { return setVector(rd, Halves(low: block.getF64(AArch64State.v(rn)))) }
      result = block.unary(.zeroExtend32, narrow(value))
    }
    setVector(rd, Halves(low: block.unary(.moveI64ToF64, result)))
  }

  private mutating func arithmetic(_ single: IROpcode, _ double: IROpcode) {
    guard !mode.needsSoftFloat else { return soft() }
    setF(
      rd, block.binary(isDouble ? double : single, f(rn), f(rm), immediate: floatOperand()),
      isDouble: isDouble)
  }

  private mutating func compare(isConditional: Bool) {
    guard !mode.needsSoftFloat else {
      // The helper looks at the state's flags, and sets them.
      storeFlags()
      call(.softCompare, constant(UInt64(word)))
      flags = .stored
      areFlagsStored = true
      return
    }
    let isSignalling = bits(4, 1) == 1
    guard isConditional, bits(12, 4) < 14 else {
      let isZero = !isConditional && bits(3, 1) == 1
      let b = isZero ? block.unary(isDouble ? .moveI64ToF64 : .moveI64ToF32, constant(0)) : f(rm)
      let a = f(rn)
      let packed = compared(a, b, isSignalling: isSignalling)
      return setFlags(.floats(a: a, b: b, isDouble: isDouble, packed: packed))
    }
    // A comparison that is not made raises nothing: it is one of zeros.
    let holds = value(of: bits(12, 4))
    func operand(_ number: Int) -> IRValue {
      block.unary(
        isDouble ? .moveI64ToF64 : .moveI64ToF32,
        block.ternary(.select64, holds, half(number, false), constant(0)))
    }
    let result = compared(operand(rn), operand(rm), isSignalling: isSignalling)
    setFlags(.packed(block.ternary(.select64, holds, result, immediateFlags())))
  }

  /// N, Z, C and V of a comparison, packed.
  private func compared(_ a: IRValue, _ b: IRValue, isSignalling: Bool) -> IRValue {
    let kind: IRFloatComparison = isSignalling ? .less : .lessQuiet
    return block.unary(
      .flagsPack,
      block.binary(
        isDouble ? .flagsCompareF64 : .flagsCompareF32, a, b, immediate: floatOperand(kind: kind.rawValue)))
  }

  // MARK: Conversions

  /// - Parameter fraction: the lowest bits that stand behind the point, 0 to 64.
  private mutating func fromInteger(fraction: Int = 0) {
    guard !mode.needsSoftFloat else { return soft() }
    let isUnsigned = bits(16, 1) == 1
    let opcode: IROpcode
    switch (isWide, isUnsigned, isDouble) {
    case (false, false, false): opcode = .convertS32ToF32
    case (false, false, true): opcode = .convertS32ToF64
    case (false, true, false): opcode = .convertU32ToF32
    case (false, true, true): opcode = .convertU32ToF64
    case (true, false, false): opcode = .convertS64ToF32
    case (true, false, true): opcode = .convertS64ToF64
    case (true, true, false): opcode = .convertU64ToF32
    case (true, true, true): opcode = .convertU64ToF64
    }
    var result = block.unary(opcode, x(rn), immediate: floatOperand())
    if fraction > 0 {
      result = block.binary(
        isDouble ? .mulF64 : .mulF32, result, power(-fraction, isDouble: isDouble), immediate: floatOperand())
    }
    setF(rd, result, isDouble: isDouble)
  }

  private mutating func toInteger() {
    let isUnsigned = bits(16, 1) == 1
    let isAway = bits(18, 1) == 1
    guard !mode.needsSoftFloat else { return soft() }
    if !isAway, bits(19, 2) == 3 {
      return setInteger(truncated(f(rn), isDouble: isDouble, isWide: isWide, isUnsigned: isUnsigned))
    }
    // Unsigned ones with another rounding are rare.
    guard !isUnsigned, canRound else { return soft() }
    let roundings: [IRRounding] = [.nearestEven, .up, .down]
    func integral(isExact: Bool) -> IRValue {
      isAway ? roundedAway(isExact: isExact) : rounded(roundings[Int(bits(19, 2))], isExact: isExact)
    }
    guard isDouble, !isWide else {
      // What is out of range has no fraction, so that it is not inexact.
      return setInteger(truncated(integral(isExact: true), isDouble: isDouble, isWide: isWide))
    }
    let value = integral(isExact: false)
    let wide = truncated(value, isDouble: true, isWide: true)
    let isInRange = block.binary(
      .compare64, wide, block.unary(.signExtend32, narrow(wide)),
      immediate: Int64(IRCondition.equal.rawValue))
    // The value itself is inexact if it has a fraction; its integral one is invalid.
    let source = block.ternary(
      .select64, isInRange, half(rn, false), block.unary(.moveF64ToI64, value))
    let result = truncated(block.unary(.moveI64ToF64, source), isDouble: true, isWide: false)
    setInteger(block.ternary(.select64, isInRange, wide, result))
  }

  /// fcvtzs and fcvtzu with a fraction: times a power of two, which is exact, as singles become doubles, and doubles that
  /// would overflow, which saturate anyway, are left alone.
  private mutating func toFixed(fraction: Int) {
    guard !mode.needsSoftFloat else { return soft() }
    let isUnsigned = bits(16, 1) == 1
    var source = f(rn)
    var factor = power(fraction, isDouble: true)
    if isDouble {
      let isSmall = block.binary(
        .compare64, block.binary(.and64, half(rn, false), constant(.max >> 1)), constant(Self.bits(900)),
        immediate: Int64(IRCondition.lessUnsigned.rawValue))
      factor = block.unary(
        .moveI64ToF64,
        block.ternary(.select64, isSmall, constant(Self.bits(fraction)), constant(Self.bits(0))))
    } else {
      source = block.unary(.convertF32ToF64, source, immediate: floatOperand())
    }
    let product = block.binary(.mulF64, source, factor, immediate: floatOperand())
    setInteger(truncated(product, isDouble: true, isWide: isWide, isUnsigned: isUnsigned))
  }

  private func setInteger(_ value: IRValue) {
    setX(rd, isWide ? value : block.unary(.zeroExtend32, narrow(value)))
  }

  /// A power of two as a double.
  private static func bits(_ exponent: Int) -> UInt64 { UInt64(1023 + exponent) << 52 }
  private func power(_ exponent: Int, isDouble: Bool) -> IRValue {
    isDouble
      ? block.unary(.moveI64ToF64, constant(Self.bits(exponent)))
      : block.unary(.moveI64ToF32, constant(UInt64(127 + exponent) << 23))
  }

  private var canRound: Bool { block.optimisations.contains(.hostVector) && !mode.needsSoftFloat }

  /// The first operand as an integral value, an f32 or f64.
  private func rounded(_ rounding: IRRounding, isExact: Bool) -> IRValue {
    let slot = block.getF64(rounded(rn, .scalar, rounding, isExact: isExact))
    return isDouble ? slot : block.unary(.unboxF32, slot, immediate: 1)
  }

  /// The same to the nearest, half away from zero, which hosts do not have: cut, and 1 added if half or more was cut off.
  private func roundedAway(isExact: Bool) -> IRValue {
    let toBits: IROpcode = isDouble ? .moveF64ToI64 : .moveF32ToI64
    let toFloat: IROpcode = isDouble ? .moveI64ToF64 : .moveI64ToF32
    let sign: UInt64 = isDouble ? 1 << 63 : 1 << 31
    let (one, half): (UInt64, UInt64) =
      isDouble ? (Self.bits(0), Self.bits(-1)) : (127 << 23, 126 << 23)
    // Nothing is cut off from here on, infinities and NaNs included.
    let integral: UInt64 = isDouble ? Self.bits(52) : (127 + 23) << 23
    let cut = rounded(.towardZero, isExact: isExact)
    let value = block.unary(toBits, f(rn))
    func magnitude(_ bits: IRValue) -> IRValue { block.binary(.and64, bits, constant(sign - 1)) }
    func isLess(_ a: IRValue, _ b: UInt64) -> IRValue {
      block.binary(.compare64, a, constant(b), immediate: Int64(IRCondition.lessUnsigned.rawValue))
    }
    let hasFraction = isLess(magnitude(value), integral)
    func fractional(_ bits: IRValue) -> IRValue {
      block.unary(toFloat, block.ternary(.select64, hasFraction, bits, constant(0)))
    }
    let rest = block.binary(
      isDouble ? .subF64 : .subF32, fractional(value), fractional(block.unary(toBits, cut)),
      immediate: floatOperand())
    let isBelowHalf = isLess(magnitude(block.unary(toBits, rest)), half)
    // A zero of the value's sign leaves zeros alone.
    let step = block.binary(
      .or64, block.ternary(.select64, isBelowHalf, constant(0), constant(one)),
      block.binary(.and64, value, constant(sign)))
    return block.binary(
      isDouble ? .addF64 : .addF32, cut, block.unary(toFloat, step), immediate: floatOperand())
  }

  /// A float as an integer of 32 or 64 bits, truncated; an i64.
  func truncated(_ source: IRValue, isDouble: Bool, isWide: Bool, isUnsigned: Bool = false) -> IRValue {
    let opcode: IROpcode
    switch (isWide, isDouble) {
    case (false, false): opcode = isUnsigned ? .convertF32ToU32 : .convertF32ToS32
    case (false, true): opcode = isUnsigned ? .convertF64ToU32 : .convertF64ToS32
    case (true, false): opcode = isUnsigned ? .convertF32ToU64 : .convertF32ToS64
    case (true, true): opcode = isUnsigned ? .convertF64ToU64 : .convertF64ToS64
    }
    let converted = block.unary(opcode, source, immediate: floatOperand(.towardZero))
    // The IR's NaN is the largest integer, Arm's is 0.
    let isNumber = block.binary(
      isDouble ? .compareF64 : .compareF32, source, source,
      immediate: floatOperand(kind: IRFloatComparison.equal.rawValue))
    return block.ternary(.select64, isNumber, converted, constant(0))
  }
}
