import ApusFloat

// Reciprocals and their roots [Arm ARM RecipEstimate, RecipSqrtEstimate, FPRecipStepFused].

extension AArch64VectorUnit {
  /// See `AArch64Float.withoutExceptions`.
  @inline(__always)
  mutating func withoutExceptions(_ body: (inout Self) -> UInt64) -> UInt64 {
    guard unit.soft.isAlternate else { return body(&self) }
    let kept = unit
    unit.ignoreExceptions()
    defer { unit = kept }
    return body(&self)
  }

  /// frecps: 2 - ab; frsqrts: (3 - ab) / 2; both fused. Infinity times zero gives 2 and 1.5.
  mutating func reciprocalStep(_ a: UInt64, _ b: UInt64, _ format: FloatFormat, isSquareRoot: Bool)
    -> UInt64
  {
    let fraction = UInt64(format.fractionBits)
    let two = UInt64(format.bias + 1) << fraction
    let (x, y) = (unit.input(a, format), unit.input(b, format))
    let magnitude = format.mask & ~format.signMask
    let (p, q) = (x & magnitude, y & magnitude)
    if p == format.infinity && q == 0 || p == 0 && q == format.infinity {
      return isSquareRoot ? UInt64(format.bias) << fraction | 1 << (fraction - 1) : two
    }
    if format.isNaN(x) || format.isNaN(y) {
      // The first operand is negated before NaNs are looked at.
      return unit.binary(.multiply, unit.negated(x, format), y, format)
    }
    guard isSquareRoot else { return unit.fused(x, y, two, format, negateProduct: true) }
    // 1.5 - (a / 2) b, the larger operand halved: exact unless both are so small that the product's size does not count.
    let isFirst = p >= q
    let larger = isFirst ? p : q
    let half = larger >> fraction > 1 && larger != format.infinity ? UInt64(1) << fraction : 0
    let constant = UInt64(format.bias) << fraction | 1 << (fraction - 1)
    return unit.fused(
      isFirst ? x - half : x, isFirst ? y : y - half, constant, format, negateProduct: true)
  }

  /// - Parameter a: 9 bits with the highest set. The result has 9 bits, too.
  static func estimate(_ a: UInt32) -> UInt64 {
    let b = (1 << 19) / (UInt64(a) * 2 + 1)
    return (b + 1) / 2
  }
  static func rootEstimate(_ value: UInt32) -> UInt64 {
    var a = UInt64(value)
    // Below 256 for odd exponents; both forms name the middle of the interval.
    a = a < 256 ? a * 2 + 1 : (a & ~1 + 1) * 2
    var b: UInt64 = 512
    while a * (b + 1) * (b + 1) < 1 << 28 { b += 1 }
    return (b + 1) / 2
  }

  /// With 12 bits [FEAT_RPRES]: 2^25 divided by the middle of the interval of `a`, to the nearest.
  /// - Parameter a: 12 bits with the highest set. The result has 13 bits.
  static func preciseEstimate(_ a: UInt64) -> UInt64 {
    let divisor = 2 * a + 1
    let (quotient, remainder) = (UInt64(1) << 25).quotientAndRemainder(dividingBy: divisor)
    return quotient + (2 * remainder > divisor ? 1 : 0)
  }
  /// 2^18 divided by the root of the middle of the interval, to the nearest: no such quotient is near the middle of two
  /// integers, so that the order in which the manual rounds does not count.
  static func preciseRootEstimate(_ value: UInt64) -> UInt64 {
    // Twice the middle.
    let a = value < 2048 ? 2 * value + 1 : (value & ~1 + 1) * 2
    // The largest r with (r - 1/2)^2 a / 2 <= 2^36.
    var low: UInt64 = 4096
    var high: UInt64 = 8192
    while low + 1 < high {
      let middle = (low + high) / 2
      let twice = 2 * middle - 1
      if twice * twice * a <= 1 << 39 { low = middle } else { high = middle }
    }
    return low
  }

  mutating func reciprocalEstimate(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unit.input(a, format)
    if format.isNaN(x) { return unit.binary(.add, x, x, format) }
    let sign = x & format.signMask
    let magnitude = x & format.mask & ~format.signMask
    if magnitude == format.infinity { return sign }
    if magnitude == 0 {
      unit.soft.flags |= FloatFlags.divideByZero
      return sign | format.infinity
    }
    let bits = UInt64(format.fractionBits)
    var exponent = Int(magnitude >> bits)
    var fraction = (magnitude & format.fractionMask) << (52 - bits)
    if exponent == 0 {
      if fraction >> 50 == 0 {
        // The result overflows.
        unit.soft.flags |= FloatFlags.overflow | FloatFlags.inexact
        let toInfinity: Bool
        switch unit.soft.rounding {
        case .nearestEven, .nearestAway: toInfinity = true
        case .up: toInfinity = sign == 0
        case .down: toInfinity = sign != 0
        case .towardZero: toInfinity = false
        }
        return sign | (toInfinity ? format.infinity : format.infinity - 1)
      }
      if fraction >> 51 & 1 == 0 {
        exponent = -1
        fraction = fraction << 2 & ((1 << 52) - 1)
      } else {
        fraction = fraction << 1 & ((1 << 52) - 1)
      }
    }
    var resultExponent = 2 * format.bias - 1 - exponent
    if resultExponent <= 0, unit.soft.flushes(format) {
      unit.soft.flags |= FloatFlags.underflow
      return sign
    }
    var result =
      unit.hasPreciseEstimates && format == .single
      ? (Self.preciseEstimate(2048 | fraction >> 41) & 0xfff) << 40
      : (Self.estimate(UInt32(256 | fraction >> 44)) & 0xff) << 44
    if resultExponent == 0 {
      result = 1 << 51 | result >> 1
    } else if resultExponent == -1 {
      result = 1 << 50 | result >> 2
      resultExponent = 0
    }
    return sign | UInt64(resultExponent) << bits | result >> (52 - bits)
  }

  mutating func squareRootEstimate(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unit.input(a, format)
    if format.isNaN(x) { return unit.binary(.add, x, x, format) }
    let sign = x & format.signMask
    let magnitude = x & format.mask & ~format.signMask
    if magnitude == 0 {
      unit.soft.flags |= FloatFlags.divideByZero
      return sign | format.infinity
    }
    if sign != 0 {
      unit.soft.flags |= FloatFlags.invalid
      return unit.soft.defaultNaN(format)
    }
    if magnitude == format.infinity { return 0 }
    let bits = UInt64(format.fractionBits)
    var exponent = Int(magnitude >> bits)
    var fraction = (magnitude & format.fractionMask) << (52 - bits)
    if exponent == 0 {
      while fraction >> 51 & 1 == 0 {
        fraction = fraction << 1 & ((1 << 52) - 1)
        exponent -= 1
      }
      fraction = fraction << 1 & ((1 << 52) - 1)
    }
    let resultExponent = (3 * format.bias - 1 - exponent) >> 1
    if unit.hasPreciseEstimates, format == .single {
      let scaled = exponent & 1 == 0 ? 2048 | fraction >> 41 : 1024 | fraction >> 42
      return UInt64(resultExponent) << bits | ((Self.preciseRootEstimate(scaled) & 0xfff) << 40)
        >> (52 - bits)
    }
    let scaled = exponent & 1 == 0 ? 256 | fraction >> 44 : 128 | fraction >> 45
    let estimated = Self.rootEstimate(UInt32(scaled))
    return UInt64(resultExponent) << bits | ((estimated & 0xff) << 44) >> (52 - bits)
  }

  mutating func reciprocalExponent(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    if format.isNaN(a) { return unit.binary(.add, a, a, format) }
    let x = unit.input(a, format)
    let exponent = x & format.infinity
    let flipped =
      exponent == 0 ? format.infinity - (1 << UInt64(format.fractionBits)) : ~exponent & format.infinity
    return x & format.signMask | flipped
  }
}
