import ApusBits
import ApusFloat
import ApusISAAArch64

// What Armv8.1 and later add to Advanced SIMD, in software [Arm ARM C7.2]. The rows allow only what is allocated.

extension AArch64VectorUnit {
  mutating func executeExtension(_ opcode: AArch64Opcode) {
    guard let result = extended(opcode) else { preconditionFailure("the rows allow only what is there") }
    write(
      result,
      isWhole: (isFull || isWhole(opcode))
        && !(isScalar && opcode.rawValue >= AArch64Opcode.sqrdmlah.rawValue))
  }

  /// Instructions whose bit 30 does not give the length of the result.
  private func isWhole(_ opcode: AArch64Opcode) -> Bool {
    switch opcode {
    case .pmull64, .bfmlal, .bfmlalIndexed: true
    default: false
    }
  }

  private mutating func extended(_ opcode: AArch64Opcode) -> AArch64Vector? {
    switch opcode {
    case .halfVector: return half()
    case .sqrdmlah, .sqrdmlsh, .sqrdmlahIndexed, .sqrdmlshIndexed: return roundingMultiplyAdd(opcode)
    case .dot, .dotIndexed: return dotProduct(isIndexed: opcode == .dotIndexed)
    case .matrixMultiply: return matrixProduct()
    case .bfdot, .bfdotIndexed: return brainDot(isIndexed: opcode == .bfdotIndexed)
    case .bfmmla: return brainMatrix()
    case .bfmlal, .bfmlalIndexed: return brainMultiplyAdd(isIndexed: opcode == .bfmlalIndexed)
    case .bfcvtn:
      var narrow: UInt64 = 0
      for lane in 0..<4 { narrow |= toBrain(n[lane, 2]) << UInt64(16 * lane) }
      return isFull ? AArch64Vector(low: d.low, high: narrow) : AArch64Vector(low: narrow)
    case .bfcvt:
      keepLanes(of: d, 1, isScalar: true)
      return AArch64Vector(low: toBrain(n[0, 2]))
    case .fcmla, .fcmlaIndexed: return complexMultiplyAdd(isIndexed: opcode == .fcmlaIndexed)
    case .fcadd: return complexAdd()
    case .fmlal, .fmlalIndexed: return longMultiplyAdd(isIndexed: opcode == .fmlalIndexed)
    case .frintts:
      let isDouble = bits(22, 1) == 1
      keepLanes(of: d, isDouble ? 3 : 2, isScalar: true)
      return AArch64Vector(
        low: rounded(
          n[0, isDouble ? 3 : 2], isDouble ? .double : .single, width: bits(16, 1) == 1 ? 64 : 32,
          truncates: bits(15, 1) == 0))
    case .vectorFrintts:
      let isDouble = bits(22, 1) == 1
      var result = AArch64Vector()
      for lane in 0..<count(isDouble ? 3 : 2) {
        result[lane, isDouble ? 3 : 2] = rounded(
          n[lane, isDouble ? 3 : 2], isDouble ? .double : .single, width: bits(12, 1) == 1 ? 64 : 32,
          truncates: !u)
      }
      return result
    default: return cipher(opcode)
    }
  }

  // MARK: Ciphers and hash functions

  private func cast<V>(_ value: AArch64Vector) -> V { unsafeBitCast(value, to: V.self) }

  private func cipher(_ opcode: AArch64Opcode) -> AArch64Vector? {
    func vector<V>(_ value: V) -> AArch64Vector { unsafeBitCast(value, to: AArch64Vector.self) }
    func bytes(_ value: AArch64Vector) -> SIMD16<UInt8> { cast(value) }
    func words(_ value: AArch64Vector) -> SIMD4<UInt32> { cast(value) }
    func rotated(_ value: UInt64, _ count: UInt64) -> UInt64 {
      count == 0 ? value : value >> count | value << (64 - count)
    }
    var whole: AArch64Vector { s[v: bits(0, 5)] }
    var a: AArch64Vector { s[v: bits(10, 5)] }
    let result: AArch64Vector
    switch opcode {
    case .aese: result = vector(AESRound.encrypt(bytes(d) ^ bytes(n)))
    case .aesd: result = vector(AESRound.decrypt(bytes(d) ^ bytes(n)))
    case .aesmc: result = vector(AESRound.mixColumns(bytes(n)))
    case .aesimc: result = vector(AESRound.inverseMixColumns(bytes(n)))
    case .pmull64:
      let product = isFull ? carrylessProduct(n.high, m.high) : carrylessProduct(n.low, m.low)
      result = AArch64Vector(low: product.low, high: product.high)
    case .sha1c: result = vector(SHA1Rounds.rounds(.choose, words(d), words(n)[0], words(m)))
    case .sha1p: result = vector(SHA1Rounds.rounds(.parity, words(d), words(n)[0], words(m)))
    case .sha1m: result = vector(SHA1Rounds.rounds(.majority, words(d), words(n)[0], words(m)))
    case .sha1su0: result = vector(SHA1Rounds.scheduleFirst(words(d), words(n), words(m)))
    case .sha1su1: result = vector(SHA1Rounds.scheduleSecond(words(d), words(n)))
    case .sha1h:
      let word = words(n)[0]
      result = AArch64Vector(low: UInt64(word << 30 | word >> 2))
    case .sha256h: result = vector(SHA256Rounds.rounds(words(d), words(n), words(m)).x)
    case .sha256h2: result = vector(SHA256Rounds.rounds(words(n), words(d), words(m)).y)
    case .sha256su0: result = vector(SHA256Rounds.scheduleFirst(words(d), words(n)))
    case .sha256su1: result = vector(SHA256Rounds.scheduleSecond(words(d), words(n), words(m)))
    case .rax1:
      result = AArch64Vector(low: n.low ^ rotated(m.low, 63), high: n.high ^ rotated(m.high, 63))
    case .eor3: result = AArch64Vector(low: n.low ^ m.low ^ a.low, high: n.high ^ m.high ^ a.high)
    case .bcax: result = AArch64Vector(low: n.low ^ m.low & ~a.low, high: n.high ^ m.high & ~a.high)
    case .xar:
      let count = UInt64(bits(10, 6))
      result = AArch64Vector(low: rotated(n.low ^ m.low, count), high: rotated(n.high ^ m.high, count))
    case .sm3ss1: result = vector(SM3Rounds.shared(words(n), words(m), words(a)))
    case .sm3tt1a, .sm3tt1b:
      result = vector(
        SM3Rounds.first(words(d), words(n), word: words(m)[bits(12, 2)], isLate: opcode == .sm3tt1b))
    case .sm3tt2a, .sm3tt2b:
      result = vector(
        SM3Rounds.second(words(d), words(n), word: words(m)[bits(12, 2)], isLate: opcode == .sm3tt2b))
    case .sm3partw1: result = vector(SM3Rounds.scheduleFirst(words(d), words(n), words(m)))
    case .sm3partw2: result = vector(SM3Rounds.scheduleSecond(words(d), words(n), words(m)))
    case .sm4e: result = vector(SM4Rounds.rounds(words(d), words(n), isKeySchedule: false))
    case .sm4ekey: result = vector(SM4Rounds.rounds(words(n), words(m), isKeySchedule: true))
    default: return nil
    }
    return result
  }

  // MARK: Integers

  private mutating func roundingMultiplyAdd(_ opcode: AArch64Opcode) -> AArch64Vector {
    let scale = size
    let width = Int128(8 << scale)
    let isIndexed = opcode == .sqrdmlahIndexed || opcode == .sqrdmlshIndexed
    let isSubtraction = opcode == .sqrdmlsh || opcode == .sqrdmlshIndexed
    var result = AArch64Vector()
    for lane in 0..<count(scale) {
      let other = isIndexed ? element(scale) : m[lane, scale]
      let product = 2 * Int128(signed(n[lane, scale], scale)) * Int128(signed(other, scale))
      let sum =
        Int128(signed(d[lane, scale], scale)) << width + (isSubtraction ? -product : product)
        + Int128(1) << (width - 1)
      result[lane, scale] = saturate(sum >> width, scale, isSigned: true)
    }
    return result
  }

  /// The element of m that an instruction by element names: of 16 bits from the lower registers, or of 32 bits.
  private func element(_ scale: Int) -> UInt64 {
    let (h, l) = (bits(11, 1), bits(21, 1))
    return scale == 1
      ? s[v: bits(16, 4)][h << 2 | l << 1 | bits(20, 1), 1] : s[v: bits(16, 5)][h << 1 | l, 2]
  }

  private func product(_ a: UInt64, _ aIsSigned: Bool, _ b: UInt64, _ bIsSigned: Bool) -> UInt64 {
    let x = aIsSigned ? signed(a, 0) : Int64(a)
    let y = bIsSigned ? signed(b, 0) : Int64(b)
    return UInt64(bitPattern: x * y)
  }

  private func dotProduct(isIndexed: Bool) -> AArch64Vector {
    var (nIsSigned, mIsSigned) = (!u, !u)
    if isIndexed ? bits(12, 1) == 1 : bits(11, 1) == 1 {
      // usdot, or sudot where the size is 0
      nIsSigned = isIndexed && size == 0
      mIsSigned = !nIsSigned
    }
    var result = d
    for lane in 0..<count(2) {
      let other = isIndexed ? element(2) : m[lane, 2]
      var sum = d[lane, 2]
      for byte in 0..<4 {
        sum &+= product(n[4 * lane + byte, 0], nIsSigned, other >> UInt64(8 * byte) & 0xff, mIsSigned)
      }
      result[lane, 2] = sum
    }
    return result
  }

  private func matrixProduct() -> AArch64Vector {
    let isMixed = bits(11, 1) == 1
    var result = d
    for row in 0..<2 {
      for column in 0..<2 {
        var sum = d[2 * row + column, 2]
        for k in 0..<8 {
          sum &+= product(n[8 * row + k, 0], !u && !isMixed, m[8 * column + k, 0], !u || isMixed)
        }
        result[2 * row + column, 2] = sum
      }
    }
    return result
  }

  // MARK: Complex numbers

  private var complexFormat: (FloatFormat, Int) {
    switch size {
    case 1: (.half, 1)
    case 2: (.single, 2)
    default: (.double, 3)
    }
  }

  private mutating func complexMultiplyAdd(isIndexed: Bool) -> AArch64Vector {
    let (format, scale) = complexFormat
    let rotation = isIndexed ? bits(13, 2) : bits(11, 2)
    let index = scale == 1 ? bits(11, 1) << 1 | bits(21, 1) : bits(11, 1)
    var result = d
    for pair in 0..<count(scale) / 2 {
      let other = isIndexed ? index : pair
      let (re, im) = (m[2 * other, scale], m[2 * other + 1, scale])
      let multiplier = n[2 * pair + (rotation & 1), scale]
      // Times 1, i, -1, -i.
      let toReal: UInt64
      let toImaginary: UInt64
      switch rotation {
      case 0: (toReal, toImaginary) = (re, im)
      case 1: (toReal, toImaginary) = (unit.negated(im, format), re)
      case 2: (toReal, toImaginary) = (unit.negated(re, format), unit.negated(im, format))
      default: (toReal, toImaginary) = (im, unit.negated(re, format))
      }
      result[2 * pair, scale] = unit.fused(multiplier, toReal, d[2 * pair, scale], format)
      result[2 * pair + 1, scale] = unit.fused(multiplier, toImaginary, d[2 * pair + 1, scale], format)
    }
    return result
  }

  private mutating func complexAdd() -> AArch64Vector {
    let (format, scale) = complexFormat
    let isBackward = bits(12, 1) == 1
    var result = AArch64Vector()
    for pair in 0..<count(scale) / 2 {
      let (re, im) = (m[2 * pair, scale], m[2 * pair + 1, scale])
      result[2 * pair, scale] = unit.binary(
        .add, n[2 * pair, scale], isBackward ? im : unit.negated(im, format), format)
      result[2 * pair + 1, scale] = unit.binary(
        .add, n[2 * pair + 1, scale], isBackward ? unit.negated(re, format) : re, format)
    }
    return result
  }

  // MARK: Half precision and bfloat16 into single

  /// fmlal, fmlsl: products of half precision, which are exact in single.
  private mutating func longMultiplyAdd(isIndexed: Bool) -> AArch64Vector {
    let isSubtraction = isIndexed ? bits(14, 1) == 1 : bits(23, 1) == 1
    let lanes = count(2)
    let first = u ? lanes : 0
    func widened(_ half: UInt64) -> UInt64 {
      let half = unit.input(half, .half)
      // A NaN keeps its kind: which operand wins is decided later.
      if FloatFormat.half.isNaN(half) { return (half >> 15) << 31 | 0x7f80_0000 | (half & 0x3ff) << 13 }
      return unit.soft.convert(half, from: .half, to: .single)
    }
    var result = AArch64Vector()
    for lane in 0..<lanes {
      let other = isIndexed ? element(1) : m[first + lane, 1]
      let (a, b) = (widened(n[first + lane, 1]), widened(other))
      result[lane, 2] = unit.fused(a, b, d[lane, 2], .single, negateProduct: isSubtraction)
    }
    return result
  }

  private mutating func toBrain(_ value: UInt64) -> UInt64 {
    unit.withoutExceptions { $0.soft.convert($0.input(value, .single), from: .single, to: .brain) }
  }

  /// a op b in single precision as bfloat16's dot products do it: no flags, default NaN, no denormals, and an inexact result
  /// has its lowest bit set.
  private func roundedToOdd(_ body: (inout SoftFloat) -> UInt64) -> UInt64 {
    var soft = SoftFloat(.towardZero, nanRule: .defaultNaN)
    soft.flushesToZero = true
    soft.isTinyBeforeRounding = true
    let result = body(&soft)
    if soft.flags & FloatFlags.overflow != 0 { return result & 0x8000_0000 | 0x7f80_0000 }
    if FloatFormat.single.isNaN(result) { return unit.soft.defaultNaN(.single) }
    return soft.flags & FloatFlags.inexact != 0 ? result | 1 : result
  }
  private func flushed(_ a: UInt64) -> UInt64 { a & 0x7f80_0000 == 0 ? a & 0x8000_0000 : a }

  /// addend + (a1 b1 + a2 b2); `a` and `b` hold two each.
  private func brainDot(_ addend: UInt64, _ a: UInt64, _ b: UInt64) -> UInt64 {
    func product(_ shift: UInt64) -> UInt64 {
      roundedToOdd {
        $0.multiply(flushed((a >> shift & 0xffff) << 16), flushed((b >> shift & 0xffff) << 16), .single)
      }
    }
    let (first, second) = (product(0), product(16))
    let sum = roundedToOdd { $0.add(first, second, .single) }
    return roundedToOdd { $0.add(flushed(addend), sum, .single) }
  }
  private func brainDot(isIndexed: Bool) -> AArch64Vector {
    var result = d
    for lane in 0..<count(2) {
      result[lane, 2] = brainDot(d[lane, 2], n[lane, 2], isIndexed ? element(2) : m[lane, 2])
    }
    return result
  }
  private func brainMatrix() -> AArch64Vector {
    var result = d
    for row in 0..<2 {
      for column in 0..<2 {
        var sum = d[2 * row + column, 2]
        for k in 0..<2 { sum = brainDot(sum, n[2 * row + k, 2], m[2 * column + k, 2]) }
        result[2 * row + column, 2] = sum
      }
    }
    return result
  }
  /// Of the even elements, or of the odd ones for the full form (which both write whole registers).
  private mutating func brainMultiplyAdd(isIndexed: Bool) -> AArch64Vector {
    let odd = bits(30, 1)
    var result = d
    for lane in 0..<4 {
      let other = isIndexed ? element(1) : m[2 * lane + odd, 1]
      result[lane, 2] = unit.withoutExceptions {
        $0.fused(n[2 * lane + odd, 1] << 16, other << 16, d[lane, 2], .single)
      }
    }
    return result
  }

  // MARK: Rounding

  /// To an integer of `width` bits that stays in the format; what does not fit is the smallest one.
  private mutating func rounded(_ value: UInt64, _ format: FloatFormat, width: Int, truncates: Bool) -> UInt64
  {
    let x = unit.input(value, format)
    let tooLarge =
      format.signMask | UInt64(format.bias + width - 1) << UInt64(format.fractionBits)
    var soft = SoftFloat(truncates ? .towardZero : unit.soft.rounding)
    let integer = soft.toInteger(x, format, width: width, isSigned: true)
    unit.soft.flags |= soft.flags
    if soft.flags & FloatFlags.invalid != 0 { return tooLarge }
    if integer == 0 { return x & format.signMask }
    // A number that is larger than the format's fraction is an integer already.
    var exact = SoftFloat(.nearestEven)
    return exact.fromInteger(integer, isSigned: true, format)
  }
}
