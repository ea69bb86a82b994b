import ApusFloat
import ApusTestKit
import Testing

/// Half precision in all five rounding modes against exact integer arithmetic: the result is looked up in the list of
/// all half-precision magnitudes.
struct ExactModelTests {
  /// Magnitudes of the bit patterns 0 ... 0x7c00, in units of 2^-24; the last is where infinity begins.
  private static let magnitudes: [Int128] = (0...0x7c00).map { bits in
    let (exponent, fraction) = (bits >> 10, Int128(bits & 0x3ff))
    return exponent == 0 ? fraction : (1024 + fraction) << Int128(exponent - 1)
  }

  /// Rounds the value `numerator / denominator` (units of 2^-24; both not negative), `sign` aside.
  private static func round(
    _ sign: Bool, _ numerator: Int128, _ denominator: Int128, _ rounding: FloatRounding
  )
    -> (UInt64, UInt8)
  {
    let signBits: UInt64 = sign ? 0x8000 : 0
    func away(_ odd: Bool, _ againstHalf: Int) -> Bool {
      switch rounding {
      case .nearestEven: againstHalf > 0 || (againstHalf == 0 && odd)
      case .nearestAway: againstHalf >= 0
      case .towardZero: false
      case .down: sign
      case .up: !sign
      }
    }
    func compare(_ a: Int128, _ b: Int128) -> Int { a < b ? -1 : a > b ? 1 : 0 }
    var flags: UInt8 = 0
    if numerator >= magnitudes[0x7c00] * denominator {
      let toInfinity = away(true, 1)
      return (signBits | (toInfinity ? 0x7c00 : 0x7bff), FloatFlags.overflow | FloatFlags.inexact)
    }
    var (low, high) = (0, 0x7c00)
    while high - low > 1 {
      let middle = (low + high) / 2
      if magnitudes[middle] * denominator <= numerator { low = middle } else { high = middle }
    }
    guard magnitudes[low] * denominator != numerator else { return (signBits | UInt64(low), 0) }
    flags |= FloatFlags.inexact
    let half = compare(2 * numerator, (magnitudes[low] + magnitudes[low + 1]) * denominator)
    let result = away(low & 1 != 0, half) ? low + 1 : low
    if result == 0x7c00 { return (signBits | 0x7c00, flags | FloatFlags.overflow) }
    // Tiny after rounding: with eleven bits and no least exponent the result is below 2^-14 (1024 units).
    let smallestNormal: Int128 = 1024
    if numerator < smallestNormal * denominator {
      var isTiny = true
      if 2 * numerator >= smallestNormal * denominator {
        // Steps of half a unit between 2^-15 and 2^-14.
        let steps = 2 * numerator / denominator
        let rest = compare(2 * (2 * numerator - steps * denominator), denominator)
        let isExact = steps * denominator == 2 * numerator
        let rounded = steps + (!isExact && away(steps & 1 != 0, rest) ? 1 : 0)
        isTiny = rounded < 2 * smallestNormal
      }
      if isTiny { flags |= FloatFlags.underflow }
    }
    return (signBits | UInt64(result), flags)
  }

  private static func value(_ bits: UInt64) -> Int128 {
    let magnitude = magnitudes[Int(bits & 0x7fff)]
    return bits & 0x8000 != 0 ? -magnitude : magnitude
  }
  private static func isFinite(_ bits: UInt64) -> Bool { bits & 0x7c00 != 0x7c00 }

  private static func expect(
    _ what: String, _ rounding: FloatRounding, _ operands: [UInt64], _ body: (inout SoftFloat) -> UInt64,
    _ model: (UInt64, UInt8)
  ) {
    var unit = SoftFloat(rounding)
    let result = body(&unit)
    if result == model.0, unit.flags == model.1 { return }
    Issue.record(
      "\(what) \(rounding) \(operands.map { String($0, radix: 16) }): \(String(result, radix: 16)) flags \(unit.flags), exactly \(String(model.0, radix: 16)) flags \(model.1)"
    )
  }

  @Test(arguments: FloatRounding.allCases)
  func halfPrecision(_ rounding: FloatRounding) {
    var random = SeededGenerator(seed: 5 + UInt64(rounding.rawValue))
    func operand() -> UInt64 {
      while true {
        var bits = random.next() & 0xffff
        if random.next() & 3 == 0 { bits &= 0x83ff }
        if Self.isFinite(bits) { return bits }
      }
    }
    for _ in 0..<20_000 {
      let (a, b, c) = (operand(), operand(), operand())
      let (x, y, z) = (Self.value(a), Self.value(b), Self.value(c))
      func sum(_ total: Int128, _ signs: (Bool, Bool), _ denominator: Int128) -> (UInt64, UInt8) {
        if total == 0 { return ((signs.0 == signs.1 ? signs.0 : rounding == .down) ? 0x8000 : 0, 0) }
        return Self.round(total < 0, total.magnitudeAsSigned, denominator, rounding)
      }
      Self.expect(
        "add", rounding, [a, b], { $0.add(a, b, .half) }, sum(x + y, (a >> 15 != 0, b >> 15 != 0), 1))
      let sign = (a ^ b) & 0x8000 != 0
      let scale: Int128 = 1 << 24
      let product = x * y
      Self.expect(
        "multiply", rounding, [a, b], { $0.multiply(a, b, .half) },
        product == 0 ? (sign ? 0x8000 : 0, 0) : Self.round(sign, product.magnitudeAsSigned, scale, rounding))
      Self.expect(
        "multiplyAdd", rounding, [a, b, c], { $0.multiplyAdd(a, b, c, .half) },
        sum(product + z * scale, (sign, c >> 15 != 0), scale))
      if y != 0, x != 0 {
        Self.expect(
          "divide", rounding, [a, b], { $0.divide(a, b, .half) },
          Self.round(sign, x.magnitudeAsSigned * scale, y.magnitudeAsSigned, rounding))
      }
      if x > 0 {
        // The root in units of 2^-24 is sqrt(x * 2^24): exactly, or with a sticky half unit of 2^-40 more.
        let radicand = x << 64
        var root: Int128 = 0
        for bit in stride(from: 52, through: 0, by: -1) {
          let candidate = root | 1 << Int128(bit)
          if candidate * candidate <= radicand { root = candidate }
        }
        let isExact = root * root == radicand
        Self.expect(
          "squareRoot", rounding, [a], { $0.squareRoot(a, .half) },
          Self.round(false, 2 * root + (isExact ? 0 : 1), 1 << 21, rounding))
      }
    }
  }

  /// Single precision with ties away from zero: products are exact in double precision.
  @Test func nearestAwaySingle() {
    var random = SeededGenerator(seed: 99)
    for _ in 0..<50_000 {
      // Twelve significant bits or a few more: ties happen.
      let a = UInt64(
        Float(Int32(truncatingIfNeeded: random.next()) >> Int32(15 + random.next() % 8)).bitPattern)
      let b = UInt64(
        Float(Int32(truncatingIfNeeded: random.next()) >> Int32(12 + random.next() % 8)).bitPattern)
      let exact = Double(Float(bitPattern: UInt32(a))) * Double(Float(bitPattern: UInt32(b)))
      if exact == 0 { continue }
      let bits = exact.magnitude.bitPattern
      let kept = bits >> 29 + (bits >> 28 & 1)
      let isExact = bits & (1 << 29 - 1) == 0
      let expected = Double(bitPattern: kept << 29)
      var unit = SoftFloat(.nearestAway)
      let result = unit.multiply(a, b, .single)
      let value = Double(Float(bitPattern: UInt32(result)).magnitude)
      #expect(value == expected && unit.flags == (isExact ? 0 : FloatFlags.inexact))
    }
  }
}

extension Int128 {
  fileprivate var magnitudeAsSigned: Int128 { self < 0 ? -self : self }
}
