import ApusFloat

// Floating-point lanes [Arm ARM C4.1.96], by FPCR.

extension AArch64VectorUnit {
  /// An instruction for half precision [FEAT_FP16]: its class and opcode lie elsewhere in the word.
  mutating func half() -> AArch64Vector? {
    isHalf = true
    if word >> 24 & 1 != 0 { return bits(10, 1) == 0 ? indexed() : shift() }
    if bits(21, 1) == 0 { return floatThreeSame(0x18 | bits(11, 3)) }
    if bits(17, 4) == 0xc { return floatMiscellaneous(bits(12, 5)) }
    return isScalar ? scalarPairwise() : across()
  }

  mutating func floatThreeSame(_ opcode: Int) -> AArch64Vector? {
    let (scale, format) = (floatScale, self.format)
    let isUpper = size & 2 != 0
    guard isScalar || isFull || scale != 3 else { return nil }
    if isScalar {
      switch (u, isUpper, opcode) {
      case (false, false, 0x1b), (false, false, 0x1c), (false, false, 0x1f), (false, true, 0x1f),
        (true, false, 0x1c), (true, true, 0x1c), (true, false, 0x1d), (true, true, 0x1d), (true, true, 0x1a):
        break
      default: return nil
      }
    }
    // Comparisons that are true or false keep the second operand's lanes.
    keepLanes(of: (0x1c...0x1d).contains(opcode) ? m : n, scale)
    typealias F = AArch64Float.Operation
    func arithmetic(_ operation: F) -> AArch64Vector {
      mapping(scale) { this, a, b, _ in this.unit.binary(operation, a, b, format) }
    }
    func compared(_ comparison: AArch64Float.Comparison, isAbsolute: Bool = false) -> AArch64Vector {
      mapping(scale) { this, a, b, _ in
        let (x, y) =
          isAbsolute ? (this.unit.absolute(a, format), this.unit.absolute(b, format)) : (a, b)
        return this.unit.compare(comparison, x, y, format) ? .max : 0
      }
    }
    switch (u, opcode) {
    case (false, 0x18), (false, 0x1e):
      return mapping(scale) { this, a, b, _ in
        this.unit.minimum(a, b, format, isMaximum: !isUpper, isNumeric: opcode == 0x18)
      }
    case (true, 0x18), (true, 0x1e):
      return pairwise(scale) {
        $0.unit.minimum($1, $2, format, isMaximum: !isUpper, isNumeric: opcode == 0x18)
      }
    case (false, 0x19):
      return mapping(scale) { $0.unit.fused($1, $2, $3, format, negateProduct: isUpper) }
    case (false, 0x1a): return arithmetic(isUpper ? .subtract : .add)
    case (false, 0x1b): return isUpper ? nil : arithmetic(.multiplyExtended)
    case (false, 0x1c): return isUpper ? nil : compared(.equal)
    case (false, 0x1f):
      return mapping(scale) { this, a, b, _ in
        this.withoutExceptions { $0.reciprocalStep(a, b, format, isSquareRoot: isUpper) }
      }
    case (true, 0x1a):
      if isUpper {
        return mapping(scale) { this, a, b, _ in
          this.unit.absolute(this.unit.binary(.subtract, a, b, format), format)
        }
      }
      return pairwise(scale) { $0.unit.binary(.add, $1, $2, format) }
    case (true, 0x1b): return isUpper ? nil : arithmetic(.multiply)
    case (true, 0x1c): return compared(isUpper ? .greater : .greaterOrEqual)
    case (true, 0x1d): return compared(isUpper ? .greater : .greaterOrEqual, isAbsolute: true)
    case (true, 0x1f): return isUpper ? nil : arithmetic(.divide)
    default: return nil
    }
  }

  mutating func floatMiscellaneous(_ opcode: Int) -> AArch64Vector? {
    let isUpper = size & 2 != 0
    let (scale, format) = (floatScale, self.format)
    // Conversions between formats name their sizes differently.
    if opcode == 0x16 || opcode == 0x17, !isUpper { return convertedWidth(opcode) }
    guard isScalar || isFull || scale != 3 else { return nil }
    let width = self.width(scale)
    // Not those of comparisons with zero.
    if !(0xc...0xe).contains(opcode) { keepLanes(of: d, scale) }
    func integer(_ rounding: FloatRounding) -> AArch64Vector {
      unit.soft.rounding = rounding
      return mapping(scale) { this, a, _, _ in this.unit.toInteger(a, format, width: width, isSigned: !this.u)
      }
    }
    func integral(_ rounding: FloatRounding?, isExact: Bool = false) -> AArch64Vector? {
      if isScalar { return nil }
      if let rounding { unit.soft.rounding = rounding }
      return mapping(scale) { this, a, _, _ in
        this.unit.soft.roundToIntegral(this.unit.input(a, format), format, isExact: isExact)
      }
    }
    func withZero(_ comparison: AArch64Float.Comparison, swapped: Bool = false) -> AArch64Vector {
      mapping(scale) { this, a, _, _ in
        this.unit.compare(comparison, swapped ? 0 : a, swapped ? a : 0, format) ? .max : 0
      }
    }
    switch (u, isUpper, opcode) {
    case (false, true, 0xc): return withZero(.greater)
    case (true, true, 0xc): return withZero(.greaterOrEqual)
    case (false, true, 0xd): return withZero(.equal)
    case (true, true, 0xd): return withZero(.greaterOrEqual, swapped: true)
    case (false, true, 0xe): return withZero(.greater, swapped: true)
    case (false, true, 0xf): return isScalar ? nil : map(scale) { a, _, _ in unit.absolute(a, format) }
    case (true, true, 0xf): return isScalar ? nil : map(scale) { a, _, _ in unit.negated(a, format) }
    case (false, false, 0x18): return integral(.nearestEven)
    case (false, false, 0x19): return integral(.down)
    case (false, true, 0x18): return integral(.up)
    case (false, true, 0x19): return integral(.towardZero)
    case (true, false, 0x18): return integral(.nearestAway)
    case (true, false, 0x19): return integral(nil, isExact: true)
    case (true, true, 0x19): return integral(nil)
    case (_, false, 0x1a): return integer(.nearestEven)
    case (_, false, 0x1b): return integer(.down)
    case (_, true, 0x1a): return integer(.up)
    case (_, true, 0x1b): return integer(.towardZero)
    case (_, false, 0x1c): return integer(.nearestAway)
    case (_, false, 0x1d):
      return mapping(scale) { this, a, _, _ in
        let value = this.u || scale == 3 ? a : UInt64(bitPattern: this.signed(a, scale))
        return this.unit.fromInteger(value, isSigned: !this.u, format)
      }
    case (false, true, 0x1d):
      return mapping(scale) { this, a, _, _ in
        this.withoutExceptions { $0.reciprocalEstimate(a, format) }
      }
    case (true, true, 0x1d):
      return mapping(scale) { this, a, _, _ in
        this.withoutExceptions { $0.squareRootEstimate(a, format) }
      }
    case (false, true, 0x1f):
      guard isScalar else { return nil }
      return mapping(scale) { this, a, _, _ in
        this.withoutExceptions { $0.reciprocalExponent(a, format) }
      }
    case (true, true, 0x1f):
      return isScalar ? nil : mapping(scale) { this, a, _, _ in this.unit.squareRoot(a, format) }
    case (false, true, 0x1c):
      guard !isScalar, scale == 2 else { return nil }
      return map(2) { a, _, _ in
        a >> 31 == 0 ? 0xffff_ffff : Self.estimate(UInt32(a >> 23)) << 23
      }
    case (true, true, 0x1c):
      guard !isScalar, scale == 2 else { return nil }
      return map(2) { a, _, _ in
        a >> 30 == 0 ? 0xffff_ffff : Self.rootEstimate(UInt32(a >> 23)) << 23
      }
    default: return nil
    }
  }

  /// fcvtl, fcvtn, fcvtxn.
  mutating func convertedWidth(_ opcode: Int) -> AArch64Vector? {
    let isDouble = size & 1 == 1
    let (narrow, wide): (FloatFormat, FloatFormat) = isDouble ? (.single, .double) : (.half, .single)
    let scale = isDouble ? 2 : 1
    let isSecond = isFull && !isScalar
    let lanes = isScalar ? 1 : 8 >> scale
    var result = AArch64Vector()
    if opcode == 0x17 {
      guard !u, !isScalar else { return nil }
      for lane in 0..<lanes {
        result[lane, scale + 1] = unit.convert(
          n[isSecond ? lane + lanes : lane, scale], from: narrow, to: wide)
      }
      isWidening = true
      return result
    }
    guard u ? isDouble : !isScalar else { return nil }
    if isSecond { result.low = d.low }
    keepLanes(of: d, scale)
    for lane in 0..<lanes {
      let value = n[lane, scale + 1]
      result[isSecond ? lane + lanes : lane, scale] =
        u ? unit.convertToOdd(value, from: wide, to: narrow) : unit.convert(value, from: wide, to: narrow)
    }
    return result
  }
}
