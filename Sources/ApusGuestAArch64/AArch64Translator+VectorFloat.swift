import ApusIR
import ApusISAAArch64

// Floating-point lanes, and the scalar instructions that are alike [Arm ARM C4.1.96]. Under FPCR's FZ, NEP, AH and
// FIZ, and for what is not here, `AArch64VectorUnit` and `AArch64FloatUnit` do.

extension AArch64Translator {
  /// Translates the instruction if it is one of these.
  mutating func floatVector(_ opcode: AArch64Opcode) -> Bool {
    guard block.optimisations.contains(.hostVector), !mode.needsSoftFloat else { return false }
    switch opcode {
    case .vectorThreeSame: return threeSame(lanes)
    case .scalarThreeSame: return threeSame(.scalar)
    case .vectorMiscellaneous: return miscellaneous(lanes)
    case .scalarMiscellaneous: return miscellaneous(.scalar)
    case .vectorIndexed: return indexed(lanes)
    case .scalarIndexed: return indexed(.scalar)
    case .vectorShift: return fixedPoint(lanes)
    case .scalarShift: return fixedPoint(.scalar)
    case .scalarPairwise:
      guard isUpperBit(29), bits(12, 5) == 0xd, !isSecond else { return false }
      return emit(.addPairs, .scalar, a: rn, b: nil)
    default: return false
    }
  }

  /// The scalar instructions that have no values of their own in the IR.
  mutating func floatScalar(_ opcode: AArch64Opcode) -> Bool {
    guard block.optimisations.contains(.hostVector), !mode.needsSoftFloat, bits(23, 1) == 0 else {
      return false
    }
    switch opcode {
    case .fmax: return emit(.maximum, .scalar, a: rn, b: rm)
    case .fmin: return emit(.minimum, .scalar, a: rn, b: rm)
    case .fmaxnm: return emit(.maximumNumber, .scalar, a: rn, b: rm)
    case .fminnm: return emit(.minimumNumber, .scalar, a: rn, b: rm)
    case .frint:
      let roundings: [IRRounding] = [.nearestEven, .up, .down, .towardZero]
      switch bits(15, 3) {
      case let kind where kind < 4: return round(roundings[Int(kind)], .scalar)
      case 6: return round(mode.rounding, .scalar, isExact: true)
      case 7: return round(mode.rounding, .scalar)
      default: return false
      }
    default: return false
    }
  }

  /// Whether conversions between doubles and integers are operations on vectors, too.
  private var hasWideLanes: Bool { block.optimisations.contains(.hostWideLanes) }
  private func isUpperBit(_ bit: UInt32) -> Bool { bits(bit, 1) == 1 }
  private var isDouble: Bool { bits(22, 1) == 1 }
  /// Bit 23, which tells operations apart.
  private var isSecond: Bool { bits(23, 1) == 1 }
  private var lanes: IRVectorShape { isUpperBit(30) ? .full : .half }

  private func floatOperand(
    _ operation: IRVectorFloatOperation, _ shape: IRVectorShape, destination: Int, a: Int, b: Int? = nil,
    element: Int? = nil, isDouble: Bool? = nil, fraction: Int = 0, rounding: IRRounding? = nil
  ) -> IRVectorFloatOperand {
    IRVectorFloatOperand(
      operation, isDouble: isDouble ?? self.isDouble, shape: shape, destination: destination, a: a, b: b,
      element: element, fraction: fraction, rounding: rounding ?? mode.rounding,
      nanRule: mode.isDefaultNaN ? .positiveDefault : .propagateARM, isTinyBeforeRounding: true)
  }

  private func emit(
    _ operation: IRVectorFloatOperation, _ shape: IRVectorShape, a: Int, b: Int?, element: Int? = nil,
    isDouble: Bool? = nil, fraction: Int = 0, rounding: IRRounding? = nil, keepsUpper: Bool = false
  ) -> Bool {
    let isDouble = isDouble ?? self.isDouble
    guard !isDouble || shape != .half || operation == .narrowLow || operation == .narrowHigh else {
      return false
    }
    block.vector(
      floatOperand(
        operation, shape, destination: AArch64State.v(rd), a: AArch64State.v(a), b: b.map(AArch64State.v),
        element: element, isDouble: isDouble, fraction: fraction, rounding: rounding))
    if shape != .full, !keepsUpper { setHigh(rd, nil) }
    return true
  }

  private func threeSame(_ shape: IRVectorShape) -> Bool {
    let isScalar = shape == .scalar
    let operation: IRVectorFloatOperation
    switch (isUpperBit(29), isSecond, bits(11, 5)) {
    case (false, false, 0x18) where !isScalar: operation = .maximumNumber
    case (false, true, 0x18) where !isScalar: operation = .minimumNumber
    case (false, false, 0x19) where !isScalar: operation = .multiplyAdd
    case (false, true, 0x19) where !isScalar: operation = .multiplySubtract
    case (false, false, 0x1a) where !isScalar: operation = .add
    case (false, true, 0x1a) where !isScalar: operation = .subtract
    case (false, false, 0x1c): operation = .equal
    case (false, false, 0x1e) where !isScalar: operation = .maximum
    case (false, true, 0x1e) where !isScalar: operation = .minimum
    case (true, false, 0x1a) where !isScalar: operation = .addPairs
    case (true, true, 0x1a): operation = .absoluteDifference
    case (true, false, 0x1b) where !isScalar: operation = .multiply
    case (true, false, 0x1c): operation = .greaterOrEqual
    case (true, true, 0x1c): operation = .greater
    case (true, false, 0x1d): operation = .absoluteGreaterOrEqual
    case (true, true, 0x1d): operation = .absoluteGreater
    case (true, false, 0x1f) where !isScalar: operation = .divide
    default: return false
    }
    return emit(operation, shape, a: rn, b: rm)
  }

  private func round(_ rounding: IRRounding, _ shape: IRVectorShape, isExact: Bool = false) -> Bool {
    guard rounding != .nearestAway else { return false }
    return emit(isExact ? .roundToIntegralExact : .roundToIntegral, shape, a: rn, b: nil, rounding: rounding)
  }

  private mutating func miscellaneous(_ shape: IRVectorShape) -> Bool {
    let isScalar = shape == .scalar
    let u = isUpperBit(29)
    switch (u, isSecond, bits(12, 5)) {
    case (false, true, 0xc): return emit(.greater, shape, a: rn, b: nil)
    case (true, true, 0xc): return emit(.greaterOrEqual, shape, a: rn, b: nil)
    case (false, true, 0xd): return emit(.equal, shape, a: rn, b: nil)
    case (true, true, 0xd): return emit(.lessOrEqual, shape, a: rn, b: nil)
    case (false, true, 0xe): return emit(.less, shape, a: rn, b: nil)
    case (_, true, 0xf) where !isScalar && (!isDouble || shape == .full):
      block.vector(
        IRVectorOperand(
          u ? .flipSigns : .clearSigns, scale: isDouble ? 3 : 2, isFull: shape == .full,
          destination: AArch64State.v(rd), a: AArch64State.v(rn), b: nil))
      if shape == .half { setHigh(rd, nil) }
      return true
    case (false, false, 0x16) where !isScalar && isDouble:  // fcvtn
      return shape == .full
        ? emit(.narrowHigh, .half, a: rn, b: nil, keepsUpper: true) : emit(.narrowLow, .half, a: rn, b: nil)
    case (false, false, 0x17) where !isScalar && isDouble:  // fcvtl
      return emit(shape == .full ? .widenHigh : .widenLow, .full, a: rn, b: nil)
    case (false, false, 0x18) where !isScalar: return round(.nearestEven, shape)
    case (false, false, 0x19) where !isScalar: return round(.down, shape)
    case (false, true, 0x18) where !isScalar: return round(.up, shape)
    case (false, true, 0x19) where !isScalar: return round(.towardZero, shape)
    case (true, false, 0x19) where !isScalar: return round(mode.rounding, shape, isExact: true)
    case (true, true, 0x19) where !isScalar: return round(mode.rounding, shape)
    case (false, false, 0x1a): return roundedToSigned(.nearestEven, shape)
    case (false, false, 0x1b): return roundedToSigned(.down, shape)
    case (false, true, 0x1a): return roundedToSigned(.up, shape)
    case (_, true, 0x1b):
      if isDouble {
        if hasWideLanes, u || shape == .full {
          return emit(u ? .toUnsigned : .toSigned, shape, a: rn, b: nil)
        }
        return !u && toInteger(shape)
      }
      return emit(u ? .toUnsigned : .toSigned, shape, a: rn, b: nil)
    case (_, false, 0x1d):
      if isDouble {
        if hasWideLanes, shape == .full, !u { return emit(.fromSigned, shape, a: rn, b: nil) }
        return fromInteger(shape, isUnsigned: u)
      }
      return emit(u ? .fromUnsigned : .fromSigned, shape, a: rn, b: nil)
    case (true, true, 0x1f) where !isScalar: return emit(.squareRoot, shape, a: rn, b: nil)
    default: return false
    }
  }

  /// fcvtns, fcvtms, fcvtps: rounded first, which raises inexact; out of range is no number with a fraction.
  private func roundedToSigned(_ rounding: IRRounding, _ shape: IRVectorShape) -> Bool {
    guard !isDouble else { return false }
    let integral = rounded(rn, shape, rounding, isExact: true)
    block.vector(floatOperand(.toSigned, shape, destination: AArch64State.v(rd), a: integral))
    if shape != .full { setHigh(rd, nil) }
    return true
  }
  /// A register rounded to integral values, in the scratch area; whether that raises inexact.
  func rounded(_ register: Int, _ shape: IRVectorShape, _ rounding: IRRounding, isExact: Bool) -> Int {
    block.vector(
      floatOperand(
        isExact ? .roundToIntegralExact : .roundToIntegral, shape, destination: AArch64State.scratch,
        a: AArch64State.v(register), rounding: rounding))
    return AArch64State.scratch
  }

  /// scvtf, ucvtf, fcvtzs between floats and integers of 32 bits with a fraction.
  private func fixedPoint(_ shape: IRVectorShape) -> Bool {
    let field = Int(bits(16, 7))
    guard (32..<64).contains(field) else { return false }
    let u = isUpperBit(29)
    switch bits(11, 5) {
    case 0x1c:
      return emit(
        u ? .fromUnsigned : .fromSigned, shape, a: rn, b: nil, isDouble: false, fraction: 64 - field)
    case 0x1f where !u: return emit(.toSigned, shape, a: rn, b: nil, isDouble: false, fraction: 64 - field)
    default: return false
    }
  }

  private func indexed(_ shape: IRVectorShape) -> Bool {
    guard isSecond, !isUpperBit(29), !isDouble || !isUpperBit(21) else { return false }
    let element = Int(isDouble ? bits(11, 1) : bits(11, 1) << 1 | bits(21, 1))
    let operation: IRVectorFloatOperation
    switch bits(12, 4) {
    case 1: operation = .multiplyAdd
    case 5: operation = .multiplySubtract
    case 9: operation = .multiply
    default: return false
    }
    return emit(operation, shape, a: rn, b: Int(bits(16, 5)), element: element)
  }

  // MARK: 64-bit integers, a half at a time

  private func fromInteger(_ shape: IRVectorShape, isUnsigned: Bool) -> Bool {
    guard shape != .half else { return false }
    func convert(_ isHigh: Bool) -> IRValue {
      block.unary(
        isUnsigned ? .convertU64ToF64 : .convertS64ToF64, half(rn, isHigh), immediate: floatOperand())
    }
    let low = convert(false)
    let high = shape == .full ? block.unary(.moveF64ToI64, convert(true)) : nil
    setVector(rd, Halves(low: low, high: high))
    return true
  }

  private func toInteger(_ shape: IRVectorShape) -> Bool {
    guard shape != .half else { return false }
    func convert(_ isHigh: Bool) -> IRValue {
      truncated(
        isHigh
          ? block.unary(.moveI64ToF64, half(rn, true)) : block.getF64(AArch64State.v(rn)), isDouble: true,
        isWide: true)
    }
    let low = block.unary(.moveI64ToF64, convert(false))
    setVector(rd, Halves(low: low, high: shape == .full ? convert(true) : nil))
    return true
  }
}
