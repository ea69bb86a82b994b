import ApusFloat
import ApusTestKit
import Glibc
import Testing

/// Soft float against the host's unit, in its four rounding modes: random and special operands, results and flags.
struct HostFloatTests {
  /// The host's constant for a rounding mode.
  private static func hostMode(_ rounding: FloatRounding) -> Int32 {
    switch rounding {
    case .nearestEven, .nearestAway: FE_TONEAREST
    case .towardZero: FE_TOWARDZERO
    case .down: FE_DOWNWARD
    case .up: FE_UPWARD
    }
  }
  /// FE_ALL_EXCEPT, which is not imported from C.
  private static let allExceptions: Int32 =
    FE_INEXACT | FE_UNDERFLOW | FE_OVERFLOW | FE_DIVBYZERO | FE_INVALID
  static let hostRoundings: [FloatRounding] = [.nearestEven, .towardZero, .down, .up]

  /// Not optimised: the compiler thinks that floating point has neither modes nor flags.
  @_optimize(none)
  private static func onHost<T>(_ rounding: FloatRounding, _ body: () -> T) -> (T, UInt8) {
    fesetround(hostMode(rounding))
    feclearexcept(allExceptions)
    let result = body()
    let raised = fetestexcept(allExceptions)
    fesetround(FE_TONEAREST)
    var flags: UInt8 = 0
    if raised & FE_INEXACT != 0 { flags |= FloatFlags.inexact }
    if raised & FE_UNDERFLOW != 0 { flags |= FloatFlags.underflow }
    if raised & FE_OVERFLOW != 0 { flags |= FloatFlags.overflow }
    if raised & FE_DIVBYZERO != 0 { flags |= FloatFlags.divideByZero }
    if raised & FE_INVALID != 0 { flags |= FloatFlags.invalid }
    return (result, flags)
  }

  @_optimize(none) private static func add(_ a: Double, _ b: Double) -> Double { a + b }
  @_optimize(none) private static func subtract(_ a: Double, _ b: Double) -> Double { a - b }
  @_optimize(none) private static func multiply(_ a: Double, _ b: Double) -> Double { a * b }
  @_optimize(none) private static func divide(_ a: Double, _ b: Double) -> Double { a / b }
  @_optimize(none) private static func root(_ a: Double) -> Double { a.squareRoot() }
  @_optimize(none) private static func add(_ a: Float, _ b: Float) -> Float { a + b }
  @_optimize(none) private static func subtract(_ a: Float, _ b: Float) -> Float { a - b }
  @_optimize(none) private static func multiply(_ a: Float, _ b: Float) -> Float { a * b }
  @_optimize(none) private static func divide(_ a: Float, _ b: Float) -> Float { a / b }
  @_optimize(none) private static func root(_ a: Float) -> Float { a.squareRoot() }
  @_optimize(none) private static func narrow(_ a: Double) -> Float { Float(a) }
  @_optimize(none) private static func widen(_ a: Float) -> Double { Double(a) }
  @_optimize(none) private static func from(_ a: Int64) -> Double { Double(a) }
  @_optimize(none) private static func fromToFloat(_ a: Int64) -> Float { Float(a) }

  private static func operand(_ random: inout SeededGenerator, _ format: FloatFormat) -> UInt64 {
    let fraction = UInt64(format.fractionBits)
    let sign = random.next() & format.signMask
    let ones = (UInt64(1) << fraction) - 1
    let exponentOfOne = (format.infinity >> 1) & ~ones
    switch random.next() % 14 {
    case 0: return sign
    case 1: return sign | format.infinity
    case 2: return sign | format.defaultNaN
    case 3: return sign | format.infinity | 1
    case 4: return sign | 1
    case 5: return sign | ones
    case 6: return sign | 1 << fraction
    case 7: return sign | (format.infinity - 1)
    case 8: return sign | exponentOfOne
    case 9: return sign | random.next() & ones
    case 10, 11:
      // Near one, few bits: exact results and ties are likely.
      return sign | (exponentOfOne &+ ((random.next() % 17) << fraction) &- (8 << fraction))
        | (random.next() & 7) << (fraction - 3)
    default: return random.next() & format.mask
    }
  }

  private static func check(
    _ what: String, _ rounding: FloatRounding, _ format: FloatFormat?, _ operands: [UInt64],
    _ soft: (UInt64, UInt8),
    _ host: (UInt64, UInt8)
  ) {
    // The host keeps NaN payloads; soft float gives the default NaN.
    var expected = host.0
    if let format, format.isNaN(host.0) { expected = format.defaultNaN }
    if soft.0 == expected, soft.1 == host.1 { return }
    let texts = operands.map { String($0, radix: 16) }
    Issue.record(
      "\(what) \(rounding) \(texts): soft \(String(soft.0, radix: 16)) flags \(soft.1), host \(String(expected, radix: 16)) flags \(host.1)"
    )
  }

  private static func soft(_ rounding: FloatRounding, _ body: (inout SoftFloat) -> UInt64) -> (UInt64, UInt8)
  {
    var unit = SoftFloat(rounding)
    let result = body(&unit)
    return (result, unit.flags)
  }

  static let count = 20_000

  @Test(arguments: hostRoundings)
  func doublePrecision(_ rounding: FloatRounding) {
    var random = SeededGenerator(seed: 11 + UInt64(rounding.rawValue))
    for _ in 0..<Self.count {
      let (a, b, c) = (
        Self.operand(&random, .double), Self.operand(&random, .double), Self.operand(&random, .double)
      )
      let (x, y, z) = (Double(bitPattern: a), Double(bitPattern: b), Double(bitPattern: c))
      func two(_ what: String, _ soft: (inout SoftFloat) -> UInt64, _ host: @escaping () -> Double) {
        let (value, flags) = Self.onHost(rounding, host)
        Self.check(what, rounding, .double, [a, b, c], Self.soft(rounding, soft), (value.bitPattern, flags))
      }
      two("add", { $0.add(a, b, .double) }, { Self.add(x, y) })
      two("subtract", { $0.subtract(a, b, .double) }, { Self.subtract(x, y) })
      two("multiply", { $0.multiply(a, b, .double) }, { Self.multiply(x, y) })
      two("divide", { $0.divide(a, b, .double) }, { Self.divide(x, y) })
      two("squareRoot", { $0.squareRoot(a, .double) }, { Self.root(x) })
      // Hosts differ about infinity times zero plus a quiet NaN.
      let isProductInvalid = x.isInfinite && y.isZero || x.isZero && y.isInfinite
      if !(isProductInvalid && z.isNaN) {
        two("multiplyAdd", { $0.multiplyAdd(a, b, c, .double) }, { Glibc.fma(x, y, z) })
      }
      let (narrow, flags) = Self.onHost(rounding) { Self.narrow(x) }
      Self.check(
        "narrow", rounding, .single, [a], Self.soft(rounding) { $0.convert(a, from: .double, to: .single) },
        (UInt64(narrow.bitPattern), flags))
      let integer = Int64(bitPattern: a)
      let (converted, integerFlags) = Self.onHost(rounding) { Self.from(integer) }
      Self.check(
        "from integer", rounding, .double, [a],
        Self.soft(rounding) { $0.fromInteger(a, isSigned: true, .double) },
        (converted.bitPattern, integerFlags))
      if x.magnitude < 0x1p62 {
        let (rounded, roundFlags) = Self.onHost(rounding) { lrint(x) }
        Self.check(
          "to integer", rounding, nil, [a],
          Self.soft(rounding) { $0.toInteger(a, .double, width: 64, isSigned: true) },
          (UInt64(bitPattern: Int64(rounded)), roundFlags))
      }
    }
  }

  @Test(arguments: hostRoundings)
  func singlePrecision(_ rounding: FloatRounding) {
    var random = SeededGenerator(seed: 77 + UInt64(rounding.rawValue))
    for _ in 0..<Self.count {
      let (a, b, c) = (
        Self.operand(&random, .single), Self.operand(&random, .single), Self.operand(&random, .single)
      )
      let (x, y, z) = (
        Float(bitPattern: UInt32(a)), Float(bitPattern: UInt32(b)), Float(bitPattern: UInt32(c))
      )
      func two(_ what: String, _ soft: (inout SoftFloat) -> UInt64, _ host: @escaping () -> Float) {
        let (value, flags) = Self.onHost(rounding, host)
        Self.check(
          what, rounding, .single, [a, b, c], Self.soft(rounding, soft), (UInt64(value.bitPattern), flags))
      }
      two("add", { $0.add(a, b, .single) }, { Self.add(x, y) })
      two("subtract", { $0.subtract(a, b, .single) }, { Self.subtract(x, y) })
      two("multiply", { $0.multiply(a, b, .single) }, { Self.multiply(x, y) })
      two("divide", { $0.divide(a, b, .single) }, { Self.divide(x, y) })
      two("squareRoot", { $0.squareRoot(a, .single) }, { Self.root(x) })
      let isProductInvalid = x.isInfinite && y.isZero || x.isZero && y.isInfinite
      if !(isProductInvalid && z.isNaN) {
        two("multiplyAdd", { $0.multiplyAdd(a, b, c, .single) }, { Glibc.fmaf(x, y, z) })
      }
      let integer = Int64(bitPattern: a << 32 | b) >> Int64(c & 63)
      let (converted, integerFlags) = Self.onHost(rounding) { Self.fromToFloat(integer) }
      Self.check(
        "from integer", rounding, .single, [UInt64(bitPattern: integer)],
        Self.soft(rounding) { $0.fromInteger(UInt64(bitPattern: integer), isSigned: true, .single) },
        (UInt64(converted.bitPattern), integerFlags))
      let (wide, flags) = Self.onHost(rounding) { Self.widen(x) }
      Self.check(
        "widen", rounding, .double, [a], Self.soft(rounding) { $0.convert(a, from: .single, to: .double) },
        (wide.bitPattern, flags))
    }
  }
}
