import ApusFloat
import ApusIR

/// Floating point in software, by FPCR: rounding, default NaN, flush to zero, alternate behaviour [Arm ARM A1.5].
struct AArch64Float {
  var soft: SoftFloat
  /// Denormal operands count as zero (FIZ; FZ without AH).
  private var flushesOperands: Bool
  /// IDC notes the operands that were flushed (FZ without AH). With AH it notes denormal ones that were not.
  private let notesFlushed: Bool
  /// Half precision's (FZ16); it does not note flushed operands.
  private let flushesHalf: Bool
  /// Conversions take half precision's largest exponent for numbers, not for infinities and NaNs (AHP).
  private let hasAlternativeHalf: Bool
  /// FPSR.IDC.
  private var hadDenormal = false
  /// The other lanes of a scalar result stay those of a register that the instruction names (NEP).
  let mergesScalars: Bool
  /// Estimates of single precision have 12 bits (RPRES, AH).
  let hasPreciseEstimates: Bool

  init(_ fpcr: UInt64) {
    soft = SoftFloat(FPCR.rounding(fpcr), nanRule: fpcr & FPCR.defaultNaN != 0 ? .defaultNaN : .arm)
    let isAlternate = fpcr & FPCR.alternate != 0
    soft.isAlternate = isAlternate
    soft.isTinyBeforeRounding = !isAlternate
    soft.flushesToZero = fpcr & FPCR.flush != 0
    notesFlushed = soft.flushesToZero && !isAlternate
    flushesOperands = notesFlushed || fpcr & FPCR.flushInputs != 0
    flushesHalf = fpcr & FPCR.flushHalf != 0
    hasAlternativeHalf = fpcr >> 26 & 1 != 0
    soft.flushesHalfToZero = flushesHalf
    mergesScalars = fpcr & FPCR.merge != 0
    // Each model that has AH has RPRES.
    hasPreciseEstimates = isAlternate
  }

  /// What AH makes of reciprocals and of bfloat16: nearest, denormal numbers flushed on both sides, no exceptions.
  mutating func withoutExceptions(_ body: (inout Self) -> UInt64) -> UInt64 {
    guard soft.isAlternate else { return body(&self) }
    var other = self
    other.ignoreExceptions()
    return body(&other)
  }
  mutating func ignoreExceptions() {
    soft.rounding = .nearestEven
    soft.flushesToZero = true
    flushesOperands = true
  }

  /// Adds the flags that were raised to the state's.
  func finish(_ s: AArch64State) {
    if soft.flags != 0 { s.raiseFloatFlags(soft.flags) }
    if hadDenormal { s[.inputDenormal] = 1 << 7 }
  }

  mutating func input(_ x: UInt64, _ format: FloatFormat) -> UInt64 {
    guard format == .half ? flushesHalf : flushesOperands, Self.isDenormal(x, format) else { return x }
    if format != .half, notesFlushed { hadDenormal = true }
    return x & format.signMask
  }
  private static func isDenormal(_ x: UInt64, _ format: FloatFormat) -> Bool {
    x & format.infinity == 0 && x & format.fractionMask != 0
  }
  /// With AH: IDC for operands that were not flushed [FPProcessDenorms].
  mutating func noteDenormals(_ format: FloatFormat, _ a: UInt64, _ b: UInt64 = 0, _ c: UInt64 = 0) {
    guard soft.isAlternate, format != .half else { return }
    guard Self.isDenormal(a, format) || Self.isDenormal(b, format) || Self.isDenormal(c, format) else {
      return
    }
    if !format.isNaN(a), !format.isNaN(b), !format.isNaN(c) { hadDenormal = true }
  }

  /// FPNeg and FPAbs: with AH a NaN keeps its sign.
  func negated(_ x: UInt64, _ format: FloatFormat) -> UInt64 {
    soft.isAlternate && format.isNaN(x) ? x : x ^ format.signMask
  }
  func absolute(_ x: UInt64, _ format: FloatFormat) -> UInt64 {
    soft.isAlternate && format.isNaN(x) ? x : x & ~format.signMask
  }

  enum Operation { case add, subtract, multiply, divide, multiplyExtended }

  mutating func binary(_ operation: Operation, _ a: UInt64, _ b: UInt64, _ format: FloatFormat) -> UInt64 {
    let (a, b) = (input(a, format), input(b, format))
    // Division by zero does not look at them.
    if operation != .divide || b & format.mask & ~format.signMask != 0 { noteDenormals(format, a, b) }
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
    let (a, b) = (input(a, format), input(b, format))
    func isQuiet(_ x: UInt64) -> Bool { format.isNaN(x) && !format.isSignalling(x) }
    // A quiet NaN that loses counts as an infinity.
    if isNumeric, isQuiet(a) || isQuiet(b) {
      if !(format.isNaN(a) && format.isNaN(b)) { noteDenormals(format, isQuiet(a) ? b : a) }
    } else {
      noteDenormals(format, a, b)
    }
    return soft.armMinimum(a, b, format, isMaximum: isMaximum, isNumeric: isNumeric)
  }
  mutating func fused(
    _ a: UInt64, _ b: UInt64, _ c: UInt64, _ format: FloatFormat, negateProduct: Bool = false,
    negateAddend: Bool = false
  ) -> UInt64 {
    let (a, b, c) = (input(a, format), input(b, format), input(c, format))
    let before = soft.flags
    soft.flags = 0
    let result = soft.multiplyAdd(a, b, c, format, negateProduct: negateProduct, negateAddend: negateAddend)
    if soft.flags & FloatFlags.invalid == 0 { noteDenormals(format, a, b, c) }
    soft.flags |= before
    return result
  }
  mutating func squareRoot(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    let a = input(a, format)
    if a & format.signMask == 0 { noteDenormals(format, a) }
    return soft.squareRoot(a, format)
  }
  mutating func convert(_ a: UInt64, from: FloatFormat, to: FloatFormat) -> UInt64 {
    // Conversions between formats do not flush half precision.
    soft.flushesHalfToZero = false
    defer { soft.flushesHalfToZero = flushesHalf }
    if hasAlternativeHalf, from == .half, a & FloatFormat.half.infinity == FloatFormat.half.infinity {
      // 1.f times 2^16, which is half of what the exponent below says, doubled.
      let halved = soft.convert(a - (1 << 10), from: .half, to: to)
      return halved + (1 << UInt64(to.fractionBits))
    }
    let a = from == .half ? a : input(a, from)
    noteDenormals(from, a)
    if hasAlternativeHalf, to == .half { return toAlternativeHalf(a, from) }
    return soft.convert(a, from: from, to: to)
  }
  /// FCVTXN: truncated, with the lowest bit set if that was inexact.
  mutating func convertToOdd(_ a: UInt64, from: FloatFormat, to: FloatFormat) -> UInt64 {
    let before = (flags: soft.flags, rounding: soft.rounding)
    (soft.flags, soft.rounding) = (0, .towardZero)
    let result = convert(a, from: from, to: to)
    let isOdd = soft.flags & FloatFlags.inexact != 0
    let isFlushed = soft.flushes(to) && result & ~to.signMask == 0
    (soft.flags, soft.rounding) = (soft.flags | before.flags, before.rounding)
    return isOdd && !isFlushed ? result | 1 : result
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
    noteDenormals(format, a, b)
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
    /// - Parameters:
    ///   - other: gives the other lanes with NEP; without it they become zero.
    ///   - format: of the result, if it is not the operand's.
    func set(_ value: UInt64, _ other: UInt32, _ format: FloatFormat) {
      let rest = unit.mergesScalars ? s[v: Int(other & 31)] : AArch64Vector()
      s[v: Int(word & 31)] = AArch64Vector(low: rest.low & ~format.mask | value, high: rest.high)
    }
    let (d, first) = (word, word >> 5)
    defer { unit.finish(s) }
    if word >> 24 & 0x1f == 0x1f {  // fused
      let negateAddend = word >> 21 & 1 != 0
      set(
        unit.fused(
          n, m, s[v: Int(word >> 10 & 31)].low & mask, format,
          negateProduct: (word >> 15 & 1 != 0) != negateAddend, negateAddend: negateAddend), word >> 10,
        format)
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
            isSigned: !isUnsigned, format, scale: scale), d, format)
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
            isSigned: isSigned, format), d, format)
        return true
      }
      unit.soft.rounding =
        operation >= 4 ? .nearestAway : [.nearestEven, .up, .down, .towardZero][Int(word >> 19 & 3)]
      let result = unit.toInteger(n, format, width: width, isSigned: operation & 1 == 0)
      if word & 31 != 31 { s[x: Int(word & 31)] = result }
      return true
    }
    if word >> 10 & 3 == 2 {  // two sources
      let result: UInt64
      switch word >> 12 & 15 {
      case 0: result = unit.binary(.multiply, n, m, format)
      case 1: result = unit.binary(.divide, n, m, format)
      case 2: result = unit.binary(.add, n, m, format)
      case 3: result = unit.binary(.subtract, n, m, format)
      case 4: result = unit.minimum(n, m, format, isMaximum: true, isNumeric: false)
      case 5: result = unit.minimum(n, m, format, isMaximum: false, isNumeric: false)
      case 6: result = unit.minimum(n, m, format, isMaximum: true, isNumeric: true)
      case 7: result = unit.minimum(n, m, format, isMaximum: false, isNumeric: true)
      default: result = unit.negated(unit.binary(.multiply, n, m, format), format)
      }
      set(result, first, format)
      return true
    }
    // One source.
    switch word >> 15 & 63 {
    // A move leaves nothing of the old register.
    case 0: s[v: Int(d & 31)] = AArch64Vector(low: n)
    case 1: set(unit.absolute(n, format), d, format)
    case 2: set(unit.negated(n, format), d, format)
    case 3: set(unit.squareRoot(n, format), d, format)
    case 4, 5, 7:
      let formats: [UInt32: FloatFormat] = [0: .single, 1: .double, 3: .half]
      guard let from = formats[word >> 22 & 3], let to = formats[word >> 15 & 3] else { return false }
      set(unit.convert(s[v: Int(word >> 5 & 31)].low & from.mask, from: from, to: to), d, to)
    case 8...15:
      let mode = word >> 15 & 7
      let roundings: [FloatRounding] = [.nearestEven, .up, .down, .towardZero, .nearestAway]
      if mode < 5 { unit.soft.rounding = roundings[Int(mode)] }
      set(unit.soft.roundToIntegral(unit.input(n, format), format, isExact: mode == 6), d, format)
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
    unit.noteDenormals(format, a, b)
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
