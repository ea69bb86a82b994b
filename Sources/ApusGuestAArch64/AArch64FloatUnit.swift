import ApusFloat
import ApusIR

/// Floating point in software, by FPCR: rounding, default NaN, flush to zero [Arm ARM A1.5].
struct AArch64Float {
  var soft: SoftFloat
  private let flushes: Bool
  /// Half precision's (FZ16); it does not note flushed operands.
  private let flushesHalf: Bool
  /// Conversions take half precision's largest exponent for numbers, not for infinities and NaNs (AHP).
  private let isAlternative: Bool
  /// FPSR.IDC: a denormal operand was flushed.
  private var flushedOperand = false

  init(_ fpcr: UInt64, rounding: FloatRounding? = nil) {
    soft = SoftFloat(
      rounding ?? FPCR.rounding(fpcr), nanRule: fpcr & FPCR.defaultNaN != 0 ? .defaultNaN : .arm)
    flushes = fpcr >> 24 & 1 != 0
    soft.isTinyBeforeRounding = true
    soft.flushesToZero = flushes
    flushesHalf = fpcr >> 19 & 1 != 0
    isAlternative = fpcr >> 26 & 1 != 0
    soft.flushesHalfToZero = flushesHalf
  }

  /// Adds the flags that were raised to the state's.
  func finish(_ s: AArch64State) {
    if soft.flags != 0 { s.raiseFloatFlags(soft.flags) }
    if flushedOperand { s[.inputDenormal] = 1 << 7 }
  }

  mutating func input(_ x: UInt64, _ format: FloatFormat) -> UInt64 {
    guard format == .half ? flushesHalf : flushes, x & format.infinity == 0, x & format.fractionMask != 0
    else {
      return x
    }
    if format != .half { flushedOperand = true }
    return x & format.signMask
  }

  enum Operation { case add, subtract, multiply, divide, multiplyExtended }

  mutating func binary(_ operation: Operation, _ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    let (a, b) = (input(a, format), input(b, format))
    return switch operation {
    case .add: soft.add(a, b, format)
    case .subtract: soft.subtract(a, b, format)
    case .multiply: soft.multiply(a, b, format)
    case .divide: soft.divide(a, b, format)
    case .multiplyExtended: soft.multiplyExtended(a, b, format)
    }
  }
  mutating func minimum(
    _ a: UInt64, _ b: UInt64, _ format: FloatFormat, isMaximum: Bool, isNumeric: Bool
  ) -> UInt64 {
    soft.armMinimum(
      input(a, format), input(b, format), format, isMaximum: isMaximum, isNumeric: isNumeric)
  }
  mutating func fused(
    _ a: UInt64, _ b: UInt64, _ c: UInt64, _ format: FloatFormat, negateProduct: Bool = false,
    negateAddend: Bool = false
  ) -> UInt64 {
    soft.multiplyAdd(
      input(a, format), input(b, format), input(c, format), format, negateProduct: negateProduct,
      negateAddend: negateAddend)
  }
  mutating func squareRoot(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    soft.squareRoot(input(a, format), format)
  }
  mutating func convert(_ a: UInt64, from: FloatFormat, to: FloatFormat) -> UInt64 {
    // Conversions between formats do not flush half precision.
    soft.flushesHalfToZero = false
    defer { soft.flushesHalfToZero = flushesHalf }
    if isAlternative, from == .half, a & FloatFormat.half.infinity == FloatFormat.half.infinity {
      // 1.f times 2^16, which is half of what the exponent below says, doubled.
      let halved = soft.convert(a - (1 << 10), from: .half, to: to)
      return halved + (1 << UInt64(to.fractionBits))
    }
    if isAlternative, to == .half { return toAlternativeHalf(input(a, from), from) }
    return soft.convert(from == .half ? a : input(a, from), from: from, to: to)
  }
  /// Numbers up to 2^17; what is larger becomes the largest one, and a NaN zero, both invalid.
  private mutating func toAlternativeHalf(_ a: UInt64, _ from: FloatFormat) -> UInt64 {
    let sign = a & from.signMask != 0 ? FloatFormat.half.signMask : 0
    let magnitude = a & from.mask & ~from.signMask
    let one = UInt64(from.bias) << UInt64(from.fractionBits)
    if from.isNaN(a) {
      soft.flags |= FloatFlags.invalid
      return sign
    }
    if magnitude < one { return soft.convert(a, from: from, to: .half) }
    // Halved, it is rounded as it would be with one more exponent.
    let before = soft.flags
    let halved =
      magnitude < from.infinity
      ? soft.convert(a - (1 << UInt64(from.fractionBits)), from: from, to: .half) & 0x7fff : 0x7c00
    if magnitude >= from.infinity || halved >= 0x7c00 || soft.flags & ~before & FloatFlags.overflow != 0 {
      soft.flags = before | FloatFlags.invalid
      return sign | 0x7fff
    }
    return sign | (halved + 0x400)
  }
  /// Arm's conversion: a NaN is 0.
  mutating func toInteger(_ a: UInt64, _ format: FloatFormat, width: Int, isSigned: Bool, scale: Int = 0)
    -> UInt64
  {
    var a = input(a, format)
    if format.isNaN(a) {
      soft.flags |= FloatFlags.invalid
      return 0
    }
    if scale > 0 {
      // Multiplied exactly in a wider exponent range: double's for singles; doubles near the top saturate anyway.
      let wide = format == .double ? a : soft.convert(a, from: format, to: .double)
      let exponent = wide >> 52 & 0x7ff
      if exponent != 0, exponent != 0x7ff {
        a =
          exponent + UInt64(scale) >= 0x7ff
          ? wide & 1 << 63 | 0x7fef_ffff_ffff_ffff : wide + UInt64(scale) << 52
        return masked(soft.toInteger(a, .double, width: width, isSigned: isSigned), width)
      }
      return masked(soft.toInteger(wide, .double, width: width, isSigned: isSigned), width)
    }
    return masked(soft.toInteger(a, format, width: width, isSigned: isSigned), width)
  }
  private func masked(_ value: UInt64, _ width: Int) -> UInt64 { width == 64 ? value : value & 0xffff_ffff }

  mutating func fromInteger(_ value: UInt64, isSigned: Bool, _ format: FloatFormat, scale: Int = 0) -> UInt64
  {
    soft.fromInteger(value, isSigned: isSigned, format, scale: scale)
  }

  /// The lowest 32 bits of a double's integer part, and whether nothing was lost [FPToFixedJS].
  mutating func toJavaScriptInteger(_ value: UInt64) -> (value: UInt32, isExact: Bool) {
    let x = input(value, .double)
    let exponent = Int(x >> 52 & 0x7ff)
    guard exponent != 0x7ff else {
      soft.flags |= FloatFlags.invalid
      return (0, false)
    }
    if x << 1 == 0 { return (0, value == 0) }
    let significand = x & FloatFormat.double.fractionMask | (exponent == 0 ? 0 : 1 << 52)
    let shift = exponent - 1075
    let isNegative = x >> 63 != 0
    func signed(_ magnitude: UInt64) -> UInt32 {
      UInt32(truncatingIfNeeded: isNegative ? 0 &- magnitude : magnitude)
    }
    guard shift < 0 else {
      soft.flags |= FloatFlags.invalid
      return (shift < 32 ? signed(significand << UInt64(shift)) : 0, false)
    }
    let magnitude = shift < -52 ? 0 : significand >> UInt64(-shift)
    if magnitude > (isNegative ? 1 << 31 : (1 << 31) - 1) {
      soft.flags |= FloatFlags.invalid
      return (signed(magnitude), false)
    }
    let isExact = shift >= -52 && magnitude << UInt64(-shift) == significand
    if !isExact { soft.flags |= FloatFlags.inexact }
    return (signed(magnitude), isExact)
  }

  enum Comparison { case equal, greaterOrEqual, greater }
  mutating func compare(_ comparison: Comparison, _ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> Bool {
    let (a, b) = (input(a, format), input(b, format))
    return switch comparison {
    case .equal: soft.equal(a, b, format)
    case .greaterOrEqual: soft.less(b, a, format, orEqual: true)
    case .greater: soft.less(b, a, format, orEqual: false)
    }
  }
}

/// The scalar instructions that generated code leaves to software.
enum AArch64FloatUnit {
  private static func format(_ word: UInt32) -> FloatFormat {
    switch word >> 22 & 3 {
    case 0: .single
    case 1: .double
    default: .half
    }
  }

  /// False for a word that is not allocated.
  static func execute(_ word: UInt32, _ s: AArch64State) -> Bool {
    let format = self.format(word)
    let mask = format.mask
    let n = s[v: Int(word >> 5 & 31)].low & mask
    let m = s[v: Int(word >> 16 & 31)].low & mask
    var unit = AArch64Float(s[.fpcr])
    func set(_ value: UInt64) { s[v: Int(word & 31)] = AArch64Vector(low: value) }
    defer { unit.finish(s) }
    if word >> 24 & 0x1f == 0x1f {  // fused
      let negateAddend = word >> 21 & 1 != 0
      set(
        unit.fused(
          n, m, s[v: Int(word >> 10 & 31)].low & mask, format,
          negateProduct: (word >> 15 & 1 != 0) != negateAddend, negateAddend: negateAddend))
      return true
    }
    let isWide = word >> 31 != 0
    let width = isWide ? 64 : 32
    func general(_ number: UInt32) -> UInt64 {
      let value = number == 31 ? 0 : s[x: Int(number)]
      return isWide ? value : value & 0xffff_ffff
    }
    if word >> 21 & 1 == 0 {  // fixed point
      let scale = 64 - Int(word >> 10 & 63)
      guard scale <= width else { return false }
      let isUnsigned = word >> 16 & 1 != 0
      if word >> 18 & 1 == 0, word >> 17 & 1 != 0 {
        let value = general(word >> 5 & 31)
        set(
          unit.fromInteger(
            isUnsigned || isWide ? value : UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value))),
            isSigned: !isUnsigned, format, scale: scale))
      } else {
        unit.soft.rounding = .towardZero
        let result = unit.toInteger(n, format, width: width, isSigned: !isUnsigned, scale: scale)
        if word & 31 != 31 { s[x: Int(word & 31)] = result }
      }
      return true
    }
    if word & 0xffff_fc00 == 0x1e7e_0000 {
      let result = unit.toJavaScriptInteger(n)
      if word & 31 != 31 { s[x: Int(word & 31)] = UInt64(result.value) }
      s.nzcv = result.isExact ? 1 << 30 : 0
      return true
    }
    if word >> 10 & 63 == 0 {  // conversions with general registers
      let operation = word >> 16 & 7
      if operation == 2 || operation == 3 {
        let value = general(word >> 5 & 31)
        let isSigned = operation == 2
        set(
          unit.fromInteger(
            isSigned && !isWide ? UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value))) : value,
            isSigned: isSigned, format))
        return true
      }
      unit.soft.rounding =
        operation >= 4 ? .nearestAway : [.nearestEven, .up, .down, .towardZero][Int(word >> 19 & 3)]
      let result = unit.toInteger(n, format, width: width, isSigned: operation & 1 == 0)
      if word & 31 != 31 { s[x: Int(word & 31)] = result }
      return true
    }
    if word >> 10 & 3 == 2 {  // two sources
      switch word >> 12 & 15 {
      case 0: set(unit.binary(.multiply, n, m, format))
      case 1: set(unit.binary(.divide, n, m, format))
      case 2: set(unit.binary(.add, n, m, format))
      case 3: set(unit.binary(.subtract, n, m, format))
      case 4: set(unit.minimum(n, m, format, isMaximum: true, isNumeric: false))
      case 5: set(unit.minimum(n, m, format, isMaximum: false, isNumeric: false))
      case 6: set(unit.minimum(n, m, format, isMaximum: true, isNumeric: true))
      case 7: set(unit.minimum(n, m, format, isMaximum: false, isNumeric: true))
      default: set(unit.binary(.multiply, n, m, format) ^ format.signMask)
      }
      return true
    }
    // One source.
    switch word >> 15 & 63 {
    case 0: set(n)
    case 1: set(n & ~format.signMask)
    case 2: set(n ^ format.signMask)
    case 3: set(unit.squareRoot(n, format))
    case 4, 5, 7:
      let formats: [UInt32: FloatFormat] = [0: .single, 1: .double, 3: .half]
      guard let from = formats[word >> 22 & 3], let to = formats[word >> 15 & 3] else { return false }
      set(unit.convert(s[v: Int(word >> 5 & 31)].low & from.mask, from: from, to: to))
    case 8...15:
      let mode = word >> 15 & 7
      let roundings: [FloatRounding] = [.nearestEven, .up, .down, .towardZero, .nearestAway]
      if mode < 5 { unit.soft.rounding = roundings[Int(mode)] }
      set(unit.soft.roundToIntegral(unit.input(n, format), format, isExact: mode == 6))
    default: return false
    }
    return true
  }

  /// fcmp, fcmpe, fccmp and fccmpe.
  static func compare(_ word: UInt32, _ s: AArch64State) {
    let format = self.format(word)
    let isConditional = word >> 10 & 3 == 1
    if isConditional, !holds(word >> 12 & 15, s.nzcv) {
      s.nzcv = UInt64(word & 15) << 28
      return
    }
    let isZero = !isConditional && word >> 3 & 1 != 0
    let isSignalling = word >> 4 & 1 != 0
    var unit = AArch64Float(s[.fpcr])
    let a = unit.input(s[v: Int(word >> 5 & 31)].low & format.mask, format)
    let b = isZero ? 0 : unit.input(s[v: Int(word >> 16 & 31)].low & format.mask, format)
    let flags: UInt64
    if format.isNaN(a) || format.isNaN(b) {
      _ = unit.soft.less(a, b, format, orEqual: false, isQuiet: !isSignalling)
      flags = 3
    } else if unit.soft.equal(a, b, format) {
      flags = 6
    } else {
      flags = unit.soft.less(a, b, format, orEqual: false) ? 8 : 2
    }
    s.nzcv = flags << 28
    unit.finish(s)
  }

  static func holds(_ condition: UInt32, _ nzcv: UInt64) -> Bool {
    let (n, z, c, v) = (
      nzcv >> 31 & 1 != 0, nzcv >> 30 & 1 != 0, nzcv >> 29 & 1 != 0, nzcv >> 28 & 1 != 0
    )
    let result =
      switch condition >> 1 {
      case 0: z
      case 1: c
      case 2: n
      case 3: v
      case 4: c && !z
      case 5: n == v
      case 6: n == v && !z
      default: true
      }
    return condition & 1 != 0 && condition != 15 ? !result : result
  }
}
