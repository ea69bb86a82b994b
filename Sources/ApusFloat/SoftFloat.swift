// IEEE 754 arithmetic in integers: the oracle for what the host's unit computes, and what stands in for it where
// the host has no such rounding mode or format. Written for clarity over speed.

/// A binary interchange format.
public struct FloatFormat: Sendable, Equatable {
  public let exponentBits: Int
  public let fractionBits: Int
  public static let half = FloatFormat(exponentBits: 5, fractionBits: 10)
  public static let single = FloatFormat(exponentBits: 8, fractionBits: 23)
  public static let double = FloatFormat(exponentBits: 11, fractionBits: 52)
  public static let brain = FloatFormat(exponentBits: 8, fractionBits: 7)

  public var bitCount: Int { 1 + exponentBits + fractionBits }
  public var bias: Int { (1 << (exponentBits - 1)) - 1 }
  public var maxExponent: Int { (1 << exponentBits) - 1 }
  public var fractionMask: UInt64 { (1 << UInt64(fractionBits)) - 1 }
  public var signMask: UInt64 { 1 << UInt64(bitCount - 1) }
  public var infinity: UInt64 { UInt64(maxExponent) << UInt64(fractionBits) }
  /// The quiet NaN with a clear sign and no payload.
  public var defaultNaN: UInt64 { infinity | 1 << UInt64(fractionBits - 1) }
  public var mask: UInt64 { bitCount == 64 ? .max : (1 << UInt64(bitCount)) - 1 }

  public func isNaN(_ x: UInt64) -> Bool { x & ~signMask & mask > infinity }
  public func isSignalling(_ x: UInt64) -> Bool { isNaN(x) && x >> UInt64(fractionBits - 1) & 1 == 0 }
}

/// Rounding directions, by RISC-V's numbers.
public enum FloatRounding: UInt8, Sendable, CaseIterable {
  case nearestEven, towardZero, down, up, nearestAway
}

/// Exception flags, in RISC-V's layout.
public enum FloatFlags {
  public static let inexact: UInt8 = 1
  public static let underflow: UInt8 = 2
  public static let overflow: UInt8 = 4
  public static let divideByZero: UInt8 = 8
  public static let invalid: UInt8 = 16
}

/// How a NaN result is made.
public enum FloatNaNRule: UInt8, Sendable {
  /// Always the default NaN (RISC-V; AArch64 with FPCR.DN).
  case defaultNaN
  /// The first signalling operand, else the first quiet one, quieted [Arm ARM FPProcessNaNs].
  case arm
}

/// Soft float with a rounding mode and accumulated flags [RV-Unpriv 20.3, IEEE 754-2019 7.5, Arm ARM A1.5].
public struct SoftFloat {
  public var rounding: FloatRounding
  public var flags: UInt8 = 0
  public var nanRule: FloatNaNRule
  /// Underflow is looked for before rounding (Arm), not after it.
  public var isTinyBeforeRounding = false
  /// Tiny results are zero, with underflow and without inexact; half precision is exempt (Arm's FZ).
  public var flushesToZero = false
  /// The same for half precision (Arm's FZ16).
  public var flushesHalfToZero = false
  /// Arm's alternate behaviour (FPCR.AH): the default NaN is negative, of several NaNs the first operand's counts, negation
  /// leaves NaNs alone, tiny results are looked for (and flushed, then inexact) after rounding.
  public var isAlternate = false
  public func flushes(_ format: FloatFormat) -> Bool { format == .half ? flushesHalfToZero : flushesToZero }
  public init(_ rounding: FloatRounding, nanRule: FloatNaNRule = .defaultNaN) {
    (self.rounding, self.nanRule) = (rounding, nanRule)
  }

  /// A finite value: (-1)^sign * significand * 2^exponent, or a special.
  private enum Kind { case zero, finite, infinity, nan }
  private struct Unpacked {
    var kind: Kind
    var sign: Bool
    var exponent: Int
    var significand: UInt64
    /// With the leading one at bit 63 (finite values only).
    func normalized() -> Unpacked {
      var result = self
      let shift = significand.leadingZeroBitCount
      result.significand <<= UInt64(shift)
      result.exponent -= shift
      return result
    }
  }

  private func unpack(_ x: UInt64, _ format: FloatFormat) -> Unpacked {
    let sign = x & format.signMask != 0
    let exponent = Int(x >> UInt64(format.fractionBits)) & format.maxExponent
    let fraction = x & format.fractionMask
    if exponent == format.maxExponent {
      return Unpacked(kind: fraction == 0 ? .infinity : .nan, sign: sign, exponent: 0, significand: fraction)
    }
    if exponent == 0 {
      return Unpacked(
        kind: fraction == 0 ? .zero : .finite, sign: sign, exponent: 1 - format.bias - format.fractionBits,
        significand: fraction)
    }
    return Unpacked(
      kind: .finite, sign: sign, exponent: exponent - format.bias - format.fractionBits,
      significand: fraction | 1 << UInt64(format.fractionBits))
  }

  private func zero(_ sign: Bool, _ format: FloatFormat) -> UInt64 { sign ? format.signMask : 0 }
  private func infinity(_ sign: Bool, _ format: FloatFormat) -> UInt64 {
    format.infinity | (sign ? format.signMask : 0)
  }
  public func defaultNaN(_ format: FloatFormat) -> UInt64 {
    format.defaultNaN | (isAlternate ? format.signMask : 0)
  }
  private mutating func invalid(_ format: FloatFormat) -> UInt64 {
    flags |= FloatFlags.invalid
    return defaultNaN(format)
  }
  private mutating func propagate(_ format: FloatFormat, _ operands: UInt64...) -> UInt64 {
    let signalling = operands.first { format.isSignalling($0) }
    if signalling != nil { flags |= FloatFlags.invalid }
    let first = isAlternate ? nil : signalling
    guard nanRule == .arm, let chosen = first ?? operands.first(where: { format.isNaN($0) }) else {
      return defaultNaN(format)
    }
    return chosen & format.mask | 1 << UInt64(format.fractionBits - 1)
  }

  private func roundsUp(sign: Bool, odd: Bool, half: Bool, sticky: Bool) -> Bool {
    switch rounding {
    case .nearestEven: half && (sticky || odd)
    case .nearestAway: half
    case .towardZero: false
    case .down: sign && (half || sticky)
    case .up: !sign && (half || sticky)
    }
  }

  /// Rounds (-1)^sign * significand * 2^exponent to the format; `sticky` says that a bit below was lost.
  private mutating func round(
    _ sign: Bool, _ exponent: Int, _ significand: UInt128, sticky: Bool, _ format: FloatFormat
  ) -> UInt64 {
    precondition(significand != 0)
    let top = 127 - significand.leadingZeroBitCount  // index of the leading one
    let precision = format.fractionBits + 1
    let minExponent = 1 - format.bias
    let trueExponent = exponent + top

    /// Cuts at the bit of weight 2^unit; returns the kept integer and whether anything was lost.
    func cut(_ unit: Int) -> (kept: UInt128, inexact: Bool) {
      let shift = unit - exponent
      if shift <= 0 { return (significand << UInt128(-shift), sticky) }
      if shift > 128 { return (roundsUp(sign: sign, odd: false, half: false, sticky: true) ? 1 : 0, true) }
      let kept = shift == 128 ? 0 : significand >> UInt128(shift)
      let half = significand >> UInt128(shift - 1) & 1 != 0
      let rest = sticky || (shift > 1 && significand & ((1 << UInt128(shift - 1)) - 1) != 0)
      let up = roundsUp(sign: sign, odd: kept & 1 != 0, half: half, sticky: rest)
      return (kept + (up ? 1 : 0), half || rest)
    }

    if trueExponent < minExponent, flushes(format), !isAlternate {
      flags |= FloatFlags.underflow
      return zero(sign, format)
    }
    // The unit in the last place, as if the exponent had no lower bound.
    let unboundedUnit = trueExponent - precision + 1
    let unit = max(unboundedUnit, minExponent - format.fractionBits)
    let (kept, inexact) = cut(unit)
    let isFlushed = isAlternate && flushes(format)
    if inexact { flags |= FloatFlags.inexact }
    if inexact || isFlushed, trueExponent < minExponent {
      // Tiny after rounding: would the unbounded result still lie below the smallest normal number?
      let (unboundedKept, _) = cut(unboundedUnit)
      let carried = unboundedKept >> UInt128(precision) != 0
      if isTinyBeforeRounding || trueExponent + (carried ? 1 : 0) < minExponent {
        flags |= FloatFlags.underflow
        if isFlushed {
          flags |= FloatFlags.inexact
          return zero(sign, format)
        }
      }
    }
    if kept == 0 { return zero(sign, format) }
    var result = UInt64(truncatingIfNeeded: kept)
    var resultUnit = unit
    if result >> UInt64(precision) != 0 {
      result >>= 1
      resultUnit += 1
    }
    let isSubnormal = result >> UInt64(format.fractionBits) == 0
    let biased = isSubnormal ? 0 : resultUnit + format.fractionBits + format.bias
    if biased >= format.maxExponent {
      flags |= FloatFlags.overflow | FloatFlags.inexact
      let toInfinity: Bool
      switch rounding {
      case .nearestEven, .nearestAway: toInfinity = true
      case .towardZero: toInfinity = false
      case .down: toInfinity = sign
      case .up: toInfinity = !sign
      }
      return toInfinity ? infinity(sign, format) : infinity(sign, format) - 1
    }
    return (sign ? format.signMask : 0) | UInt64(biased) << UInt64(format.fractionBits)
      | result & format.fractionMask
  }

  // MARK: Arithmetic. Operands are the format's bits in the low end of a word.

  public mutating func add(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unpack(a, format)
    let y = unpack(b, format)
    if x.kind == .nan || y.kind == .nan { return propagate(format, a, b) }
    if x.kind == .infinity || y.kind == .infinity {
      if x.kind == y.kind && x.sign != y.sign { return invalid(format) }
      return infinity(x.kind == .infinity ? x.sign : y.sign, format)
    }
    return addFinite(
      x.sign, x.exponent, UInt128(x.kind == .zero ? 0 : x.significand),
      y.sign, y.exponent, UInt128(y.kind == .zero ? 0 : y.significand), format)
  }

  public mutating func subtract(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    format.isNaN(b) ? add(a, b, format) : add(a, b ^ format.signMask, format)
  }

  /// Sum of two finite values whose significands have at most 106 bits.
  private mutating func addFinite(
    _ signX: Bool, _ exponentX: Int, _ x: UInt128, _ signY: Bool, _ exponentY: Int, _ y: UInt128,
    _ format: FloatFormat
  ) -> UInt64 {
    if x == 0 && y == 0 {
      return zero(signX == signY ? signX : rounding == .down, format)
    }
    if x == 0 { return round(signY, exponentY, y, sticky: false, format) }
    if y == 0 { return round(signX, exponentX, x, sticky: false, format) }
    // Move both up to 120 bits, so that the one with the larger leading bit is `big`.
    var (bigSign, big, bigExponent) = (signX, x, exponentX)
    var (smallSign, small, smallExponent) = (signY, y, exponentY)
    let liftBig = big.leadingZeroBitCount - 2
    big <<= UInt128(liftBig)
    bigExponent -= liftBig
    let liftSmall = small.leadingZeroBitCount - 2
    small <<= UInt128(liftSmall)
    smallExponent -= liftSmall
    if smallExponent > bigExponent || (smallExponent == bigExponent && small > big) {
      swap(&bigSign, &smallSign)
      swap(&big, &small)
      swap(&bigExponent, &smallExponent)
    }
    let distance = bigExponent - smallExponent
    var lost = false
    if distance >= 127 {
      lost = small != 0
      small = 0
    } else if distance > 0 {
      lost = small & ((1 << UInt128(distance)) - 1) != 0
      small >>= UInt128(distance)
    }
    if bigSign == smallSign { return round(bigSign, bigExponent, big + small, sticky: lost, format) }
    // big - (small + fraction): borrow one unit where a fraction was lost.
    let difference = big - small - (lost ? 1 : 0)
    if difference == 0 { return zero(rounding == .down, format) }
    return round(bigSign, bigExponent, difference, sticky: lost, format)
  }

  public mutating func multiply(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unpack(a, format)
    let y = unpack(b, format)
    if x.kind == .nan || y.kind == .nan { return propagate(format, a, b) }
    let sign = x.sign != y.sign
    if x.kind == .infinity || y.kind == .infinity {
      return x.kind == .zero || y.kind == .zero ? invalid(format) : infinity(sign, format)
    }
    if x.kind == .zero || y.kind == .zero { return zero(sign, format) }
    return round(
      sign, x.exponent + y.exponent, UInt128(x.significand) * UInt128(y.significand), sticky: false, format)
  }

  public mutating func divide(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unpack(a, format)
    let y = unpack(b, format)
    if x.kind == .nan || y.kind == .nan { return propagate(format, a, b) }
    let sign = x.sign != y.sign
    if x.kind == .infinity { return y.kind == .infinity ? invalid(format) : infinity(sign, format) }
    if y.kind == .infinity { return zero(sign, format) }
    if y.kind == .zero {
      if x.kind == .zero { return invalid(format) }
      flags |= FloatFlags.divideByZero
      return infinity(sign, format)
    }
    if x.kind == .zero { return zero(sign, format) }
    let (n, d) = (x.normalized(), y.normalized())
    let numerator = UInt128(n.significand) << 63
    let (quotient, remainder) = numerator.quotientAndRemainder(dividingBy: UInt128(d.significand))
    return round(sign, n.exponent - d.exponent - 63, quotient, sticky: remainder != 0, format)
  }

  public mutating func squareRoot(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unpack(a, format)
    switch x.kind {
    case .nan: return propagate(format, a)
    case .zero: return a & format.mask
    case .infinity where !x.sign: return a & format.mask
    default: break
    }
    if x.sign { return invalid(format) }
    let n = x.normalized()
    // sqrt(s * 2^e) with e even: take s * 2^62 or 2^63 so that the root has 63 bits and more.
    let shift = (n.exponent & 1 == 0) ? 62 : 63
    let radicand = UInt128(n.significand) << UInt128(shift)
    var root: UInt128 = 0
    var bit: UInt128 = 1 << 63
    while bit != 0 {
      let candidate = root | bit
      if candidate * candidate <= radicand { root = candidate }
      bit >>= 1
    }
    return round(false, (n.exponent - shift) / 2, root, sticky: root * root != radicand, format)
  }

  /// a * b + c with one rounding, product and addend negated on request.
  public mutating func multiplyAdd(
    _ a: UInt64, _ b: UInt64, _ c: UInt64, _ format: FloatFormat, negateProduct: Bool = false,
    negateAddend: Bool = false
  ) -> UInt64 {
    if let result = multiplyAddNormal(
      a, b, c, format, negateProduct: negateProduct, negateAddend: negateAddend)
    {
      return result
    }
    let x = unpack(a, format)
    let y = unpack(b, format)
    var z = unpack(c, format)
    let infiniteTimesZero =
      x.kind == .infinity && y.kind == .zero || x.kind == .zero && y.kind == .infinity
    // Even where c is a quiet NaN [RV-Unpriv 20.6, Arm ARM FPMulAdd].
    if infiniteTimesZero, isAlternate ? z.kind != .nan : nanRule == .defaultNaN || !format.isSignalling(c) {
      return invalid(format)
    }
    if x.kind == .nan || y.kind == .nan || z.kind == .nan {
      if isAlternate { return propagate(format, a, b, c) }
      // Arm negates operands before it looks at them.
      let sign = format.signMask
      return propagate(format, c ^ (negateAddend ? sign : 0), a ^ (negateProduct ? sign : 0), b)
    }
    z.sign = z.sign != negateAddend
    let sign = (x.sign != y.sign) != negateProduct
    if x.kind == .infinity || y.kind == .infinity {
      return z.kind == .infinity && z.sign != sign ? invalid(format) : infinity(sign, format)
    }
    if z.kind == .infinity { return infinity(z.sign, format) }
    let product =
      x.kind == .zero || y.kind == .zero ? 0 : UInt128(x.significand) * UInt128(y.significand)
    return addFinite(
      sign, x.exponent + y.exponent, product, z.sign, z.exponent,
      UInt128(z.kind == .zero ? 0 : z.significand), format)
  }

  /// The same for normal numbers with a normal result, quickly: hosts without fused instructions call it for each. `nil`:
  /// an operand or the result is none.
  private mutating func multiplyAddNormal(
    _ a: UInt64, _ b: UInt64, _ c: UInt64, _ format: FloatFormat, negateProduct: Bool, negateAddend: Bool
  ) -> UInt64? {
    let fractionBits = format.fractionBits
    let (maxExponent, fractionMask, signMask) = (format.maxExponent, format.fractionMask, format.signMask)
    func exponent(_ x: UInt64) -> Int { Int(truncatingIfNeeded: x &>> UInt64(fractionBits)) & maxExponent }
    func isNormal(_ exponent: Int) -> Bool { exponent &- 1 < maxExponent &- 1 && exponent != 0 }
    func significand(_ x: UInt64) -> UInt64 { x & fractionMask | 1 &<< UInt64(fractionBits) }
    let (exponentA, exponentB, exponentC) = (exponent(a), exponent(b), exponent(c))
    guard isNormal(exponentA), isNormal(exponentB), isNormal(exponentC) else { return nil }
    // Leading ones at bit 124, the product's perhaps at 125. A bit lost on the right stays in bit 0, far below where the
    // result is cut: numbers that may cancel each other lie close together, and lose none.
    let factors = significand(a).multipliedFullWidth(by: significand(b))
    var product = (UInt128(factors.high) &<< 64 | UInt128(factors.low)) &<< UInt128(124 &- 2 &* fractionBits)
    var addend = UInt128(significand(c)) &<< UInt128(124 &- fractionBits)
    let productExponent = exponentA &+ exponentB &- format.bias
    let distance = productExponent &- exponentC
    func moveRight(_ x: inout UInt128, _ count: Int) {
      let lost = count > 127 || x.trailingZeroBitCount < count
      x = (count > 127 ? 0 : x &>> UInt128(count)) | (lost ? 1 : 0)
    }
    if distance > 0 { moveRight(&addend, distance) } else if distance < 0 { moveRight(&product, -distance) }
    var sign = ((a ^ b) & signMask != 0) != negateProduct
    let addendSign = (c & signMask != 0) != negateAddend
    var sum: UInt128
    if sign == addendSign {
      sum = product &+ addend
    } else if product >= addend {
      sum = product &- addend
    } else {
      sum = addend &- product
      sign = addendSign
    }
    guard sum != 0 else { return nil }
    let top = 127 &- sum.leadingZeroBitCount
    let biased = max(productExponent, exponentC) &+ top &- 124
    guard biased > 1, biased < maxExponent &- 1 else { return nil }
    let shift = top &- fractionBits
    var kept: UInt64
    if shift <= 0 {
      kept = UInt64(truncatingIfNeeded: sum) &<< UInt64(-shift)
    } else {
      kept = UInt64(truncatingIfNeeded: sum &>> UInt128(shift))
      let zeros = sum.trailingZeroBitCount
      if zeros < shift {
        flags |= FloatFlags.inexact
        let half = sum &>> UInt128(shift &- 1) & 1 != 0
        if roundsUp(sign: sign, odd: kept & 1 != 0, half: half, sticky: zeros < shift &- 1) { kept &+= 1 }
      }
    }
    // The leading one, or the carry, counts the exponent up.
    return (sign ? signMask : 0) | (UInt64(biased &- 1) &<< UInt64(fractionBits) &+ kept)
  }

  // MARK: Arm's operations

  /// FPMin and FPMax: a NaN wins; with `isNumeric` FPMinNum and FPMaxNum: a quiet NaN loses. By the alternate behaviour the
  /// former return b, as it is, for any NaN and for two zeros.
  public mutating func armMinimum(
    _ a: UInt64, _ b: UInt64, _ format: FloatFormat, isMaximum: Bool, isNumeric: Bool
  ) -> UInt64 {
    let (aIsQuiet, bIsQuiet) = (
      format.isNaN(a) && !format.isSignalling(a), format.isNaN(b) && !format.isSignalling(b)
    )
    if isAlternate, !isNumeric {
      if format.isNaN(a) || format.isNaN(b) {
        flags |= FloatFlags.invalid
        return b & format.mask
      }
      if bothZero(a, b, format) { return b & format.mask }
    }
    if isNumeric {
      if aIsQuiet, !format.isNaN(b) { return alternateResult(b, format) }
      if bIsQuiet, !format.isNaN(a) { return alternateResult(a, format) }
    }
    if format.isNaN(a) || format.isNaN(b) { return propagate(format, a, b) }
    let less = order(a, format) < order(b, format)
    let result = less != isMaximum ? a : b
    return isNumeric ? alternateResult(result, format) : result & format.mask
  }
  /// FPMinNum and FPMaxNum round their result, which by the alternate behaviour flushes denormal numbers.
  private mutating func alternateResult(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    guard isAlternate, flushes(format), a & format.infinity == 0, a & format.fractionMask != 0 else {
      return a & format.mask
    }
    flags |= FloatFlags.underflow | FloatFlags.inexact
    return a & format.signMask
  }

  /// The nearest integral value in the format, by the rounding mode.
  public mutating func roundToIntegral(_ a: UInt64, _ format: FloatFormat, isExact: Bool) -> UInt64 {
    let x = unpack(a, format)
    switch x.kind {
    case .nan: return propagate(format, a)
    case .zero, .infinity: return a & format.mask
    case .finite: break
    }
    if x.exponent >= 0 { return a & format.mask }
    var soft = SoftFloat(rounding)
    let integer = soft.toInteger(a, format, width: 64, isSigned: true)
    if isExact { flags |= soft.flags & FloatFlags.inexact }
    if integer == 0 { return x.sign ? format.signMask : 0 }
    var exact = SoftFloat(.nearestEven)
    return exact.fromInteger(integer, isSigned: true, format)
  }

  /// a * b where infinity times zero is 2 with the product's sign (FPMulX).
  public mutating func multiplyExtended(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    let x = unpack(a, format)
    let y = unpack(b, format)
    if x.kind == .infinity && y.kind == .zero || x.kind == .zero && y.kind == .infinity {
      return (x.sign != y.sign ? format.signMask : 0) | UInt64(format.bias + 1) << UInt64(format.fractionBits)
    }
    return multiply(a, b, format)
  }

  // MARK: Comparison

  /// minimumNumber and maximumNumber: a NaN loses, -0 < +0 [RV-Unpriv 20.6].
  public mutating func minimum(_ a: UInt64, _ b: UInt64, _ format: FloatFormat, isMaximum: Bool) -> UInt64 {
    if format.isSignalling(a) || format.isSignalling(b) { flags |= FloatFlags.invalid }
    if format.isNaN(a) { return format.isNaN(b) ? format.defaultNaN : b & format.mask }
    if format.isNaN(b) { return a & format.mask }
    let less = order(a, format) < order(b, format)
    return (less != isMaximum ? a : b) & format.mask
  }
  /// A key that sorts like the values, -0 below +0.
  private func order(_ x: UInt64, _ format: FloatFormat) -> Int64 {
    let magnitude = Int64(x & format.mask & ~format.signMask)
    return x & format.signMask != 0 ? -1 - magnitude : magnitude
  }
  private func bothZero(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> Bool {
    (a | b) & format.mask & ~format.signMask == 0
  }
  public mutating func equal(_ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> Bool {
    if format.isNaN(a) || format.isNaN(b) {
      if format.isSignalling(a) || format.isSignalling(b) { flags |= FloatFlags.invalid }
      return false
    }
    return bothZero(a, b, format) || (a ^ b) & format.mask == 0
  }
  /// - Parameter isQuiet: only a signalling NaN is invalid.
  public mutating func less(
    _ a: UInt64, _ b: UInt64, _ format: FloatFormat, orEqual: Bool, isQuiet: Bool = false
  ) -> Bool {
    if format.isNaN(a) || format.isNaN(b) {
      if !isQuiet || format.isSignalling(a) || format.isSignalling(b) { flags |= FloatFlags.invalid }
      return false
    }
    if bothZero(a, b, format) { return orEqual }
    let (x, y) = (order(a, format), order(b, format))
    return orEqual ? x <= y : x < y
  }

  /// The ten classes of fclass, one bit each [RV-Unpriv 20.9].
  public static func classify(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    let sign = a & format.signMask != 0
    let exponent = Int(a >> UInt64(format.fractionBits)) & format.maxExponent
    let fraction = a & format.fractionMask
    if exponent == format.maxExponent {
      if fraction == 0 { return sign ? 1 << 0 : 1 << 7 }
      return format.isSignalling(a) ? 1 << 8 : 1 << 9
    }
    if exponent == 0 {
      if fraction == 0 { return sign ? 1 << 3 : 1 << 4 }
      return sign ? 1 << 2 : 1 << 5
    }
    return sign ? 1 << 1 : 1 << 6
  }

  // MARK: Conversion

  public mutating func convert(_ a: UInt64, from: FloatFormat, to: FloatFormat) -> UInt64 {
    let x = unpack(a, from)
    switch x.kind {
    case .nan:
      if from.isSignalling(a) { flags |= FloatFlags.invalid }
      guard nanRule == .arm else { return defaultNaN(to) }
      // The payload's upper bits stay.
      let payload = (a & from.fractionMask) << UInt64(63 - from.fractionBits)
      return (x.sign ? to.signMask : 0) | to.defaultNaN | payload >> UInt64(63 - to.fractionBits)
    case .infinity: return infinity(x.sign, to)
    case .zero: return zero(x.sign, to)
    case .finite: return round(x.sign, x.exponent, UInt128(x.significand), sticky: false, to)
    }
  }

  /// To a signed or unsigned integer of `width` bits; out of range saturates and is invalid, a NaN counts as the
  /// largest value [RV-Unpriv 20.7]. The result is the two's complement integer, sign-extended for signed ones.
  public mutating func toInteger(_ a: UInt64, _ format: FloatFormat, width: Int, isSigned: Bool) -> UInt64 {
    let largest: UInt64 =
      isSigned ? (1 << UInt64(width - 1)) - 1 : width == 64 ? .max : (1 << UInt64(width)) - 1
    let smallest: UInt64 = isSigned ? ~largest : 0
    let x = unpack(a, format)
    switch x.kind {
    case .zero: return 0
    case .nan:
      flags |= FloatFlags.invalid
      return largest
    case .infinity:
      flags |= FloatFlags.invalid
      return x.sign ? smallest : largest
    case .finite: break
    }
    var magnitude: UInt128
    var inexact = false
    if x.exponent >= 0 {
      if x.exponent > 64 {
        flags |= FloatFlags.invalid
        return x.sign ? smallest : largest
      }
      magnitude = UInt128(x.significand) << UInt128(x.exponent)
    } else {
      let shift = -x.exponent
      if shift > 64 {
        inexact = true
        magnitude = roundsUp(sign: x.sign, odd: false, half: false, sticky: true) ? 1 : 0
      } else {
        let wide = UInt128(x.significand)
        magnitude = wide >> UInt128(shift)
        let half = wide >> UInt128(shift - 1) & 1 != 0
        let rest = wide & ((1 << UInt128(shift - 1)) - 1) != 0
        inexact = half || rest
        if roundsUp(sign: x.sign, odd: magnitude & 1 != 0, half: half, sticky: rest) { magnitude += 1 }
      }
    }
    let limit = x.sign ? (isSigned ? UInt128(largest) + 1 : 0) : UInt128(largest)
    if magnitude > limit {
      flags |= FloatFlags.invalid
      return x.sign ? smallest : largest
    }
    if inexact { flags |= FloatFlags.inexact }
    let result = UInt64(truncatingIfNeeded: magnitude)
    return x.sign ? 0 &- result : result
  }

  /// - Parameter scale: the value's lowest bits that stand behind the point.
  public mutating func fromInteger(
    _ value: UInt64, isSigned: Bool, _ format: FloatFormat, scale: Int = 0
  ) -> UInt64 {
    if value == 0 { return 0 }
    let sign = isSigned && Int64(bitPattern: value) < 0
    return round(sign, -scale, UInt128(sign ? 0 &- value : value), sticky: false, format)
  }
}
