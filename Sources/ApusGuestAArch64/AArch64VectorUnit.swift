import ApusBits
import ApusFloat

/// A vector register: 128 bits, lanes from the lowest up.
@frozen
public struct AArch64Vector: Equatable, Sendable {
  public var low: UInt64
  public var high: UInt64
  @inlinable public init(low: UInt64 = 0, high: UInt64 = 0) { (self.low, self.high) = (low, high) }

  /// - Parameters: `scale`, the lane's size as a power of two, in bytes.
  @inline(__always)
  subscript(_ lane: Int, _ scale: Int) -> UInt64 {
    get {
      let position = lane << scale
      let half = position >= 8 ? high : low
      return half >> UInt64((position & 7) * 8) & Self.mask(scale)
    }
    set {
      let position = lane << scale
      let shift = UInt64((position & 7) * 8)
      let mask = Self.mask(scale)
      if position >= 8 {
        high = high & ~(mask << shift) | (newValue & mask) << shift
      } else {
        low = low & ~(mask << shift) | (newValue & mask) << shift
      }
    }
  }
  @inline(__always) static func mask(_ scale: Int) -> UInt64 {
    scale == 3 ? .max : (1 << (8 << UInt64(scale))) - 1
  }
}

/// Advanced SIMD in software, an instruction at a time [Arm ARM C4.1.96]: the meaning of what generated code has no
/// operations for.
struct AArch64VectorUnit {
  let word: UInt32
  let s: AArch64State
  let isFull: Bool
  let isScalar: Bool
  /// Bit 29.
  let u: Bool
  let size: Int
  let n: AArch64Vector
  let m: AArch64Vector
  var d: AArch64Vector
  var unit: AArch64Float
  var isSaturated = false

  init(_ word: UInt32, _ s: AArch64State) {
    (self.word, self.s) = (word, s)
    isFull = word >> 30 & 1 != 0
    isScalar = word >> 28 & 1 != 0 && word >> 30 & 1 != 0
    u = word >> 29 & 1 != 0
    size = Int(word >> 22 & 3)
    n = s[v: Int(word >> 5 & 31)]
    m = s[v: Int(word >> 16 & 31)]
    d = s[v: Int(word & 31)]
    unit = AArch64Float(s[.fpcr])
  }

  @inline(__always) func bits(_ low: UInt32, _ count: UInt32) -> Int {
    Int(word >> low & ((1 << count) - 1))
  }

  /// Lanes of `1 << scale` bytes in a result.
  func count(_ scale: Int) -> Int { isScalar ? 1 : (isFull ? 16 : 8) >> scale }
  func signed(_ value: UInt64, _ scale: Int) -> Int64 {
    let unused = Int64(64 - (8 << scale))
    return Int64(bitPattern: value << UInt64(unused)) >> unused
  }
  private func width(_ scale: Int) -> Int { 8 << scale }

  /// Carries the instruction out; false for a word that is not allocated.
  mutating func execute() -> Bool {
    guard let result = compute() else { return false }
    write(result, isWhole: isFull && !isScalar || isWidening)
    return true
  }
  /// - Parameter isWhole: the upper half of the result counts.
  mutating func write(_ result: AArch64Vector, isWhole: Bool) {
    var result = result
    if !isWhole { result.high = 0 }
    if let (rest, scale) = merged {
      let lane = result[0, scale]
      result = rest
      result[0, scale] = lane
    }
    s[v: Int(word & 31)] = result
    if isSaturated { s.isSaturated = true }
    unit.finish(s)
  }
  /// What gives a scalar result the other lanes, and the lane's size (NEP).
  private var merged: (rest: AArch64Vector, scale: Int)?
  /// Keeps the other lanes of a register if the instruction is scalar, and FPCR.NEP is set.
  mutating func keepLanes(of register: AArch64Vector, _ scale: Int, isScalar: Bool? = nil) {
    if isScalar ?? self.isScalar, unit.mergesScalars { merged = (register, scale) }
  }
  /// The result has lanes of twice the width: all of it counts, whatever half the operands come from.
  private var isWidening = false

  private mutating func compute() -> AArch64Vector? {
    if isScalar { return scalar() }
    switch word >> 24 & 0x1f {
    case 0x0e:
      if bits(21, 1) == 1 {
        if bits(10, 1) == 1 { return threeSame() }
        if bits(10, 2) == 0 { return threeDifferent() }
        if bits(17, 4) == 0 { return miscellaneous() }
        if bits(17, 4) == 8 { return across() }
        return nil
      }
      if u { return bits(22, 2) == 0 && bits(15, 1) == 0 && bits(10, 1) == 0 ? extract() : nil }
      // dup, ins, smov and umov run as generated code.
      if bits(10, 1) == 1 { return nil }
      if bits(10, 2) == 2 { return bits(15, 1) == 0 ? permute() : nil }
      return bits(22, 2) == 0 && bits(15, 1) == 0 ? table() : nil
    case 0x0f:
      if bits(10, 1) == 0 { return indexed() }
      if bits(23, 1) == 1 { return nil }
      return bits(19, 4) == 0 ? immediate() : shift()
    default: return nil
    }
  }

  private mutating func scalar() -> AArch64Vector? {
    if word >> 24 & 0x1f == 0x1e {
      if bits(21, 1) == 0 { return bits(10, 6) == 1 && !u && size == 0 ? scalarCopy() : nil }
      if bits(10, 1) == 1 { return threeSame() }
      if bits(10, 2) == 0 { return threeDifferent() }
      if bits(17, 4) == 0 { return miscellaneous() }
      return bits(17, 4) == 8 ? scalarPairwise() : nil
    }
    if bits(10, 1) == 0 { return indexed() }
    return bits(23, 1) == 0 ? shift() : nil
  }

  // MARK: Lane-wise

  @inline(__always)
  private func map(_ scale: Int, _ body: (UInt64, UInt64, UInt64) -> UInt64) -> AArch64Vector {
    var result = AArch64Vector()
    for lane in 0..<count(scale) {
      result[lane, scale] = body(n[lane, scale], m[lane, scale], d[lane, scale])
    }
    return result
  }
  @inline(__always)
  private mutating func mapping(_ scale: Int, _ body: (inout Self, UInt64, UInt64, UInt64) -> UInt64)
    -> AArch64Vector
  {
    var result = AArch64Vector()
    for lane in 0..<count(scale) {
      result[lane, scale] = body(&self, n[lane, scale], m[lane, scale], d[lane, scale])
    }
    return result
  }
  /// Of neighbouring lanes of n, then of m.
  @inline(__always)
  private mutating func pairwise(_ scale: Int, _ body: (inout Self, UInt64, UInt64) -> UInt64)
    -> AArch64Vector
  {
    var result = AArch64Vector()
    let half = count(scale) / 2
    for lane in 0..<half {
      result[lane, scale] = body(&self, n[2 * lane, scale], n[2 * lane + 1, scale])
      result[half + lane, scale] = body(&self, m[2 * lane, scale], m[2 * lane + 1, scale])
    }
    return result
  }

  /// The value held to a lane's range; notes saturation.
  mutating func saturate(_ value: Int128, _ scale: Int, isSigned: Bool) -> UInt64 {
    let bits = Int128(8 << scale)
    let largest = isSigned ? (Int128(1) << (bits - 1)) - 1 : (Int128(1) << bits) - 1
    let smallest = isSigned ? -(Int128(1) << (bits - 1)) : 0
    if value > largest {
      isSaturated = true
      return UInt64(truncatingIfNeeded: largest)
    }
    if value < smallest {
      isSaturated = true
      return UInt64(truncatingIfNeeded: smallest)
    }
    return UInt64(truncatingIfNeeded: value)
  }
  private func extended(_ value: UInt64, _ scale: Int, isSigned: Bool) -> Int128 {
    isSigned ? Int128(signed(value, scale)) : Int128(value)
  }

  /// Shifts by the lowest byte of `amount`: left, or right if it is negative, perhaps rounded and saturated.
  private mutating func shifted(
    _ value: UInt64, _ amount: UInt64, _ scale: Int, isSigned: Bool, rounds: Bool, saturates: Bool
  ) -> UInt64 {
    let count = Int(Int8(truncatingIfNeeded: amount))
    let wide = extended(value, scale, isSigned: isSigned)
    if count < 0 {
      let right = min(-count, 100)
      var result = wide
      if rounds { result += Int128(1) << Int128(right - 1) }
      result >>= Int128(right)
      // All bits are gone: what rounding added may be left of 2^(right-1) only where right is the lane's width.
      return UInt64(truncatingIfNeeded: result)
    }
    if wide == 0 { return 0 }
    if count >= width(scale), !saturates { return 0 }
    let moved = count >= 64 ? (wide > 0 ? Int128.max : Int128.min) : wide << Int128(count)
    if saturates { return saturate(moved, scale, isSigned: isSigned) }
    return UInt64(truncatingIfNeeded: moved)
  }

  private func ones(_ condition: Bool) -> UInt64 { condition ? .max : 0 }
  /// Of an instruction for half precision: its size field says something else.
  var isHalf = false
  private var format: FloatFormat { isHalf ? .half : size & 1 == 1 ? .double : .single }
  private var floatScale: Int { isHalf ? 1 : size & 1 == 1 ? 3 : 2 }

  /// An instruction for half precision [FEAT_FP16]: its class and opcode lie elsewhere in the word.
  mutating func half() -> AArch64Vector? {
    isHalf = true
    if word >> 24 & 1 != 0 { return bits(10, 1) == 0 ? indexed() : shift() }
    if bits(21, 1) == 0 { return floatThreeSame(0x18 | bits(11, 3)) }
    if bits(17, 4) == 0xc { return floatMiscellaneous(bits(12, 5)) }
    return isScalar ? scalarPairwise() : across()
  }

  private mutating func threeSame() -> AArch64Vector? {
    let opcode = bits(11, 5)
    if opcode >= 0x18 { return floatThreeSame(opcode) }
    if opcode == 3 { return isScalar ? nil : bitwise() }
    let scale = size
    let isDoubleAllowed: Bool
    switch opcode {
    case 0, 2, 4, 0xc, 0xd, 0xe, 0xf, 0x12, 0x14, 0x15: isDoubleAllowed = false
    case 0x13: isDoubleAllowed = false
    default: isDoubleAllowed = true
    }
    guard isScalar || scale < 3 || isFull && isDoubleAllowed else { return nil }
    if isScalar {
      switch opcode {
      case 1, 5, 9, 0xb: break
      case 6, 7, 8, 0xa, 0x10, 0x11: guard scale == 3 else { return nil }
      case 0x16: guard scale == 1 || scale == 2 else { return nil }
      default: return nil
      }
    }
    let isSigned = !u
    switch opcode {
    case 0, 2, 4:
      return map(scale) { a, b, _ in
        let (x, y) = (extended(a, scale, isSigned: isSigned), extended(b, scale, isSigned: isSigned))
        return UInt64(truncatingIfNeeded: (opcode == 4 ? x - y : opcode == 0 ? x + y : x + y + 1) >> 1)
      }
    case 1, 5:
      return mapping(scale) { unit, a, b, _ in
        let (x, y) = (
          unit.extended(a, scale, isSigned: isSigned), unit.extended(b, scale, isSigned: isSigned)
        )
        return unit.saturate(opcode == 1 ? x + y : x - y, scale, isSigned: isSigned)
      }
    case 6: return map(scale) { a, b, _ in ones(u ? a > b : signed(a, scale) > signed(b, scale)) }
    case 7: return map(scale) { a, b, _ in ones(u ? a >= b : signed(a, scale) >= signed(b, scale)) }
    case 8, 9, 0xa, 0xb:
      return mapping(scale) { unit, a, b, _ in
        unit.shifted(a, b, scale, isSigned: isSigned, rounds: opcode & 2 != 0, saturates: opcode & 1 != 0)
      }
    case 0xc, 0xd:
      return map(scale) { a, b, _ in
        let less = u ? a < b : signed(a, scale) < signed(b, scale)
        return less == (opcode == 0xd) ? a : b
      }
    case 0xe, 0xf:
      return map(scale) { a, b, d in
        let (x, y) = (extended(a, scale, isSigned: isSigned), extended(b, scale, isSigned: isSigned))
        let difference = UInt64(truncatingIfNeeded: x > y ? x - y : y - x)
        return opcode == 0xe ? difference : d &+ difference
      }
    case 0x10: return map(scale) { a, b, _ in u ? a &- b : a &+ b }
    case 0x11: return map(scale) { a, b, _ in ones(u ? a == b : a & b != 0) }
    case 0x12: return map(scale) { a, b, d in u ? d &- a &* b : d &+ a &* b }
    case 0x13:
      if u {
        guard scale == 0 else { return nil }
        return map(0) { a, b, _ in carrylessProduct(a, b).low }
      }
      return map(scale) { a, b, _ in a &* b }
    case 0x14, 0x15:
      return pairwise(scale) { unit, a, b in
        let less = unit.u ? a < b : unit.signed(a, scale) < unit.signed(b, scale)
        return less == (opcode == 0x15) ? a : b
      }
    case 0x16:
      guard scale == 1 || scale == 2 else { return nil }
      return mapping(scale) { unit, a, b, _ in unit.doublingHigh(a, b, scale, rounds: unit.u) }
    case 0x17:
      guard !u else { return nil }
      return pairwise(scale) { _, a, b in a &+ b }
    default: return nil
    }
  }

  /// The upper half of 2ab, saturated.
  private mutating func doublingHigh(_ a: UInt64, _ b: UInt64, _ scale: Int, rounds: Bool) -> UInt64 {
    let bits = Int128(8 << scale)
    var product = 2 * Int128(signed(a, scale)) * Int128(signed(b, scale))
    if rounds { product += Int128(1) << (bits - 1) }
    return saturate(product >> bits, scale, isSigned: true)
  }

  private func bitwise() -> AArch64Vector? {
    func both(_ body: (UInt64, UInt64, UInt64) -> UInt64) -> AArch64Vector {
      AArch64Vector(low: body(n.low, m.low, d.low), high: body(n.high, m.high, d.high))
    }
    switch (u ? 4 : 0) | size {
    case 0: return both { n, m, _ in n & m }
    case 1: return both { n, m, _ in n & ~m }
    case 2: return both { n, m, _ in n | m }
    case 3: return both { n, m, _ in n | ~m }
    case 4: return both { n, m, _ in n ^ m }
    case 5: return both { n, m, d in m ^ (m ^ n) & d }
    case 6: return both { n, m, d in d ^ (d ^ n) & m }
    default: return both { n, m, d in d ^ (d ^ n) & ~m }
    }
  }

  private mutating func floatThreeSame(_ opcode: Int) -> AArch64Vector? {
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

  /// See `AArch64Float.withoutExceptions`.
  @inline(__always)
  private mutating func withoutExceptions(_ body: (inout Self) -> UInt64) -> UInt64 {
    guard unit.soft.isAlternate else { return body(&self) }
    let kept = unit
    unit.ignoreExceptions()
    defer { unit = kept }
    return body(&self)
  }

  /// frecps: 2 - ab; frsqrts: (3 - ab) / 2; both fused. Infinity times zero gives 2 and 1.5.
  private mutating func reciprocalStep(_ a: UInt64, _ b: UInt64, _ format: FloatFormat, isSquareRoot: Bool)
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

  // MARK: Different widths

  private mutating func threeDifferent() -> AArch64Vector? {
    let opcode = bits(12, 4)
    let scale = size
    let isSecond = isFull && !isScalar
    func narrowLane(_ v: AArch64Vector, _ lane: Int) -> UInt64 {
      v[isSecond ? lane + (8 >> scale) : lane, scale]
    }
    if isScalar {
      guard !u, scale == 1 || scale == 2, opcode == 9 || opcode == 0xb || opcode == 0xd else { return nil }
    }
    if opcode == 0xe {
      guard !u, scale == 0 || scale == 3 else { return nil }
      if scale == 3 { return nil }  // pmull of 64 bits is FEAT_PMULL
      var result = AArch64Vector()
      for lane in 0..<8 {
        result[lane, 1] = carrylessProduct(narrowLane(n, lane), narrowLane(m, lane)).low
      }
      isWidening = true
      return result
    }
    guard scale < 3 else { return nil }
    let isSigned = !u
    let lanes = isScalar ? 1 : 8 >> scale
    let wideScale = scale + 1
    var result = opcode == 4 || opcode == 6 ? d : AArch64Vector()
    if !isSecond, opcode == 4 || opcode == 6 { result.high = 0 }
    for lane in 0..<lanes {
      func wide(_ v: AArch64Vector) -> Int128 { extended(narrowLane(v, lane), scale, isSigned: isSigned) }
      func put(_ value: Int128) { result[lane, wideScale] = UInt64(truncatingIfNeeded: value) }
      let old = Int128(truncatingIfNeeded: d[lane, wideScale])
      switch opcode {
      case 0: put(wide(n) + wide(m))
      case 1: put(Int128(truncatingIfNeeded: n[lane, wideScale]) + wide(m))
      case 2: put(wide(n) - wide(m))
      case 3: put(Int128(truncatingIfNeeded: n[lane, wideScale]) - wide(m))
      case 4, 6:
        let (a, b) = (n[lane, wideScale], m[lane, wideScale])
        var value = opcode == 4 ? a &+ b : a &- b
        if u { value = value &+ 1 << UInt64(width(scale) - 1) }
        result[isSecond ? lane + lanes : lane, scale] = value >> UInt64(width(scale))
      case 5, 7:
        let difference = wide(n) > wide(m) ? wide(n) - wide(m) : wide(m) - wide(n)
        put(opcode == 5 ? old + difference : difference)
      case 8: put(old + wide(n) * wide(m))
      case 0xa: put(old - wide(n) * wide(m))
      case 0xc: put(wide(n) * wide(m))
      case 9, 0xb, 0xd:
        guard !u, scale == 1 || scale == 2 else { return nil }
        result[lane, wideScale] = doublingLong(
          narrowLane(n, lane), narrowLane(m, lane), d[lane, wideScale], scale, opcode)
      default: return nil
      }
    }
    isWidening = opcode != 4 && opcode != 6
    return result
  }

  /// sqdmull (0xd, 0xb of the indexed forms), sqdmlal (9), sqdmlsl (0xb).
  private mutating func doublingLong(
    _ a: UInt64, _ b: UInt64, _ accumulator: UInt64, _ scale: Int, _ opcode: Int
  ) -> UInt64 {
    let product = saturate(2 * Int128(signed(a, scale)) * Int128(signed(b, scale)), scale + 1, isSigned: true)
    if opcode == 0xd { return product }
    let (old, new) = (Int128(signed(accumulator, scale + 1)), Int128(signed(product, scale + 1)))
    return saturate(opcode == 9 ? old + new : old - new, scale + 1, isSigned: true)
  }

  // MARK: Two-register miscellaneous

  private mutating func miscellaneous() -> AArch64Vector? {
    let opcode = bits(12, 5)
    let scale = size
    switch (u, opcode) {
    case (false, 0), (true, 0), (false, 1):  // rev64, rev32, rev16
      guard !isScalar else { return nil }
      let container = u ? 2 : opcode == 0 ? 3 : 1
      guard scale < container else { return nil }
      let flip = (1 << (container - scale)) - 1
      var result = AArch64Vector()
      for lane in 0..<count(scale) { result[lane, scale] = n[lane ^ flip, scale] }
      return result
    case (_, 2), (_, 6):  // addlp, adalp
      guard !isScalar, scale < 3 else { return nil }
      var result = AArch64Vector()
      for lane in 0..<count(scale + 1) {
        let sum =
          extended(n[2 * lane, scale], scale, isSigned: !u)
          + extended(n[2 * lane + 1, scale], scale, isSigned: !u)
        let old = opcode == 6 ? d[lane, scale + 1] : 0
        result[lane, scale + 1] = old &+ UInt64(truncatingIfNeeded: sum)
      }
      return result
    case (_, 3):  // suqadd, usqadd
      guard isScalar || scale < 3 || isFull else { return nil }
      return mapping(scale) { this, a, _, d in
        this.saturate(
          this.extended(a, scale, isSigned: this.u) + this.extended(d, scale, isSigned: !this.u), scale,
          isSigned: !this.u)
      }
    case (false, 4), (true, 4):  // cls, clz
      guard !isScalar, scale < 3 else { return nil }
      return map(scale) { a, _, _ in
        let width = UInt64(width(scale))
        let value = u ? a : (a ^ UInt64(bitPattern: signed(a, scale) >> 1)) & AArch64Vector.mask(scale)
        let zeros = UInt64(value.leadingZeroBitCount) - (64 - width)
        return u ? zeros : zeros - 1
      }
    case (false, 5):
      guard !isScalar, scale == 0 else { return nil }
      return map(0) { a, _, _ in UInt64(a.nonzeroBitCount) }
    case (true, 5):
      guard !isScalar, scale < 2 else { return nil }
      if scale == 0 { return map(0) { a, _, _ in ~a } }
      return map(0) { a, _, _ in UInt64(UInt8(truncatingIfNeeded: a).bitSwapped) }
    case (_, 7):  // sqabs, sqneg
      guard isScalar || scale < 3 || isFull else { return nil }
      return mapping(scale) { this, a, _, _ in
        let value = Int128(this.signed(a, scale))
        return this.saturate(this.u || value < 0 ? -value : value, scale, isSigned: true)
      }
    case (_, 8), (_, 9), (false, 0xa):
      guard isScalar ? scale == 3 : scale < 3 || isFull else { return nil }
      return map(scale) { a, _, _ in
        let value = signed(a, scale)
        switch (u, opcode) {
        case (false, 8): return ones(value > 0)
        case (true, 8): return ones(value >= 0)
        case (false, 9): return ones(value == 0)
        case (true, 9): return ones(value <= 0)
        default: return ones(value < 0)
        }
      }
    case (_, 0xb):
      guard isScalar ? scale == 3 : scale < 3 || isFull else { return nil }
      return map(scale) { a, _, _ in u || signed(a, scale) < 0 ? 0 &- a : a }
    case (false, 0x12), (true, 0x12), (_, 0x14):  // xtn, sqxtun, sqxtn and uqxtn
      guard scale < 3, !isScalar || !(opcode == 0x12 && !u) else { return nil }
      return narrowed { this, value in
        if opcode == 0x12, !this.u { return value }
        let isSource = opcode == 0x12 || !this.u
        return this.saturate(
          this.extended(value, scale + 1, isSigned: isSource), scale, isSigned: opcode == 0x14 && !this.u)
      }
    case (true, 0x13):  // shll
      guard !isScalar, scale < 3 else { return nil }
      var result = AArch64Vector()
      let lanes = 8 >> scale
      for lane in 0..<lanes {
        result[lane, scale + 1] = n[isFull ? lane + lanes : lane, scale] << UInt64(width(scale))
      }
      isWidening = true
      return result
    default: return floatMiscellaneous(opcode)
    }
  }

  /// Lanes of twice the width become lanes of `size`, in the half of the result that the instruction names.
  private mutating func narrowed(_ body: (inout Self, UInt64) -> UInt64) -> AArch64Vector {
    let scale = size
    let isSecond = isFull && !isScalar
    var result = isSecond ? AArch64Vector(low: d.low) : AArch64Vector()
    let lanes = isScalar ? 1 : 8 >> scale
    for lane in 0..<lanes {
      result[isSecond ? lane + lanes : lane, scale] = body(&self, n[lane, scale + 1])
    }
    return result
  }

  private mutating func floatMiscellaneous(_ opcode: Int) -> AArch64Vector? {
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
  private mutating func convertedWidth(_ opcode: Int) -> AArch64Vector? {
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

  // MARK: Estimates [Arm ARM RecipEstimate, RecipSqrtEstimate]

  /// - Parameter a: 9 bits with the highest set. The result has 9 bits, too.
  private static func estimate(_ a: UInt32) -> UInt64 {
    let b = (1 << 19) / (UInt64(a) * 2 + 1)
    return (b + 1) / 2
  }
  private static func rootEstimate(_ value: UInt32) -> UInt64 {
    var a = UInt64(value)
    // Below 256 for odd exponents; both forms name the middle of the interval.
    a = a < 256 ? a * 2 + 1 : (a & ~1 + 1) * 2
    var b: UInt64 = 512
    while a * (b + 1) * (b + 1) < 1 << 28 { b += 1 }
    return (b + 1) / 2
  }

  /// With 12 bits [FEAT_RPRES]: 2^25 divided by the middle of the interval of `a`, to the nearest.
  /// - Parameter a: 12 bits with the highest set. The result has 13 bits.
  private static func preciseEstimate(_ a: UInt64) -> UInt64 {
    let divisor = 2 * a + 1
    let (quotient, remainder) = (UInt64(1) << 25).quotientAndRemainder(dividingBy: divisor)
    return quotient + (2 * remainder > divisor ? 1 : 0)
  }
  /// 2^18 divided by the root of the middle of the interval, to the nearest: no such quotient is near the middle of two
  /// integers, so that the order in which the manual rounds does not count.
  private static func preciseRootEstimate(_ value: UInt64) -> UInt64 {
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

  private mutating func reciprocalEstimate(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
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

  private mutating func squareRootEstimate(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
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

  private mutating func reciprocalExponent(_ a: UInt64, _ format: FloatFormat) -> UInt64 {
    if format.isNaN(a) { return unit.binary(.add, a, a, format) }
    let x = unit.input(a, format)
    let exponent = x & format.infinity
    let flipped =
      exponent == 0 ? format.infinity - (1 << UInt64(format.fractionBits)) : ~exponent & format.infinity
    return x & format.signMask | flipped
  }

  // MARK: Across, pairwise

  private mutating func across() -> AArch64Vector? {
    let opcode = bits(12, 5)
    let scale = size
    if opcode == 0xc || opcode == 0xf {
      guard u != isHalf, isFull || isHalf, scale & 1 == 0 else { return nil }
      // A tree: (0, 1) and (2, 3), then those, and so on.
      let laneScale = floatScale
      var values = (0..<count(laneScale)).map { n[$0, laneScale] }
      while values.count > 1 {
        values = stride(from: 0, to: values.count, by: 2).map {
          unit.minimum(
            values[$0], values[$0 + 1], format, isMaximum: scale & 2 == 0, isNumeric: opcode == 0xc)
        }
      }
      return AArch64Vector(low: values[0])
    }
    guard scale < 2 || scale == 2 && isFull else { return nil }
    let lanes = (isFull ? 16 : 8) >> scale
    switch opcode {
    case 3:
      let sum = (0..<lanes).reduce(Int128(0)) { $0 + extended(n[$1, scale], scale, isSigned: !u) }
      return AArch64Vector(low: UInt64(truncatingIfNeeded: sum) & AArch64Vector.mask(scale + 1))
    case 0xa, 0x1a:
      var best = n[0, scale]
      for lane in 1..<lanes {
        let value = n[lane, scale]
        let less = u ? value < best : signed(value, scale) < signed(best, scale)
        if less == (opcode == 0x1a), value != best { best = value }
      }
      return AArch64Vector(low: best)
    case 0x1b:
      guard !u else { return nil }
      let sum = (0..<lanes).reduce(UInt64(0)) { $0 &+ n[$1, scale] }
      return AArch64Vector(low: sum & AArch64Vector.mask(scale))
    default: return nil
    }
  }

  private mutating func scalarPairwise() -> AArch64Vector? {
    let opcode = bits(12, 5)
    if opcode == 0x1b {
      return !u && size == 3 ? AArch64Vector(low: n.low &+ n.high) : nil
    }
    guard u != isHalf else { return nil }
    let (scale, format) = (floatScale, self.format)
    let (a, b) = (n[0, scale], n[1, scale])
    switch opcode {
    case 0xd: return size & 2 == 0 ? AArch64Vector(low: unit.binary(.add, a, b, format)) : nil
    case 0xc, 0xf:
      return AArch64Vector(
        low: unit.minimum(a, b, format, isMaximum: size & 2 == 0, isNumeric: opcode == 0xc))
    default: return nil
    }
  }

  // MARK: Moves and permutations

  private func scalarCopy() -> AArch64Vector? {
    let imm5 = bits(16, 5)
    guard imm5 & 15 != 0 else { return nil }
    let scale = imm5.trailingZeroBitCount
    return AArch64Vector(low: n[imm5 >> (scale + 1), scale])
  }

  private func permute() -> AArch64Vector? {
    let scale = size
    guard scale < 3 || isFull else { return nil }
    let lanes = count(scale)
    let part = bits(14, 1)
    var result = AArch64Vector()
    for lane in 0..<lanes {
      switch bits(12, 2) {
      case 1:  // uzp
        let from = 2 * lane + part
        result[lane, scale] = from < lanes ? n[from, scale] : m[from - lanes, scale]
      case 2:  // trn
        let from = lane & ~1 | part
        result[lane, scale] = lane & 1 == 0 ? n[from, scale] : m[from, scale]
      case 3:  // zip
        let from = lane / 2 + part * lanes / 2
        result[lane, scale] = lane & 1 == 0 ? n[from, scale] : m[from, scale]
      default: return nil
      }
    }
    return result
  }

  private func extract() -> AArch64Vector? {
    let position = bits(11, 4)
    let total = isFull ? 16 : 8
    guard position < total else { return nil }
    var result = AArch64Vector()
    for lane in 0..<total {
      let from = lane + position
      result[lane, 0] = from < total ? n[from, 0] : m[from - total, 0]
    }
    return result
  }

  private func table() -> AArch64Vector? {
    let registers = bits(13, 2) + 1
    let first = bits(5, 5)
    let isExtension = bits(12, 1) == 1
    var result = AArch64Vector()
    for lane in 0..<(isFull ? 16 : 8) {
      let index = Int(m[lane, 0])
      if index < 16 * registers {
        result[lane, 0] = s[v: (first + index / 16) & 31][index & 15, 0]
      } else if isExtension {
        result[lane, 0] = d[lane, 0]
      }
    }
    return result
  }

  // MARK: Immediates and shifts

  /// AdvSIMDExpandImm; `nil` for an encoding that is not allocated.
  static func expandedImmediate(_ word: UInt32) -> UInt64? {
    let byte = UInt64(word >> 11 & 0xe0 | word >> 5 & 0x1f)
    let isInverted = word >> 29 & 1 != 0
    let cmode = word >> 12 & 15
    func both(_ value: UInt64) -> UInt64 { value | value << 32 }
    var result: UInt64
    switch cmode >> 1 {
    case 0...3: result = both(byte << (8 * UInt64(cmode >> 1)))
    case 4, 5: result = both((byte << (8 * UInt64(cmode >> 1 & 1))) * 0x1_0001)
    case 6: result = both(cmode & 1 == 0 ? byte << 8 | 0xff : byte << 16 | 0xffff)
    default:
      if cmode & 1 == 0 {
        if !isInverted { return byte * 0x0101_0101_0101_0101 }
        result = 0
        for bit in 0..<8 as Range<UInt64> where byte >> bit & 1 != 0 { result |= 0xff << (8 * bit) }
        return result
      }
      if isInverted {
        guard word >> 30 & 1 != 0 else { return nil }
        return AArch64Translator.expanded(UInt32(byte), isDouble: true)
      }
      return both(AArch64Translator.expanded(UInt32(byte), isDouble: false))
    }
    return isInverted ? ~result : result
  }

  private func immediate() -> AArch64Vector? {
    guard bits(11, 1) == 0, let value = Self.expandedImmediate(word) else { return nil }
    let cmode = bits(12, 4)
    guard cmode & 1 == 1, cmode < 12 else { return AArch64Vector(low: value, high: value) }
    // orr; bic has its immediate inverted already.
    if u { return AArch64Vector(low: d.low & value, high: d.high & value) }
    return AArch64Vector(low: d.low | value, high: d.high | value)
  }

  private mutating func shift() -> AArch64Vector? {
    let immh = bits(19, 4)
    guard immh != 0 else { return nil }
    let scale = 3 - (immh << 60).leadingZeroBitCount
    let element = 8 << scale
    let right = 2 * element - bits(16, 7)
    let left = bits(16, 7) - element
    let opcode = bits(11, 5)
    let isNarrowing = (0x10...0x13).contains(opcode)
    let isLong = opcode == 0x14
    guard isScalar || isNarrowing || isLong || scale < 3 || isFull else { return nil }
    if isScalar {
      switch opcode {
      case 0, 2, 4, 6: guard scale == 3 else { return nil }
      case 8: guard u, scale == 3 else { return nil }
      case 0xa: guard scale == 3 else { return nil }
      case 0xc, 0xe, 0x10, 0x11, 0x12, 0x13, 0x1c, 0x1f: break
      default: return nil
      }
      if opcode == 0x10 || opcode == 0x11, !u { return nil }
    }
    switch opcode {
    case 0, 2, 4, 6:  // shr, sra, rshr, rsra
      return mapping(scale) { this, a, _, d in
        var value = this.extended(a, scale, isSigned: !this.u)
        if opcode & 4 != 0 { value += Int128(1) << Int128(right - 1) }
        let result = UInt64(truncatingIfNeeded: value >> Int128(right))
        return opcode & 2 != 0 ? d &+ result : result
      }
    case 8:  // sri
      guard u else { return nil }
      return map(scale) { a, _, d in
        let mask = right == 64 ? 0 : AArch64Vector.mask(scale) >> UInt64(right)
        return d & ~mask | (right == 64 ? 0 : a >> UInt64(right))
      }
    case 0xa:  // shl, sli
      return map(scale) { a, _, d in
        let mask = AArch64Vector.mask(scale) << UInt64(left)
        return u ? d & ~mask | a << UInt64(left) : a << UInt64(left)
      }
    case 0xc:  // sqshlu
      guard u else { return nil }
      return mapping(scale) { this, a, _, _ in
        this.saturate(Int128(this.signed(a, scale)) << Int128(left), scale, isSigned: false)
      }
    case 0xe:
      return mapping(scale) { this, a, _, _ in
        this.saturate(this.extended(a, scale, isSigned: !this.u) << Int128(left), scale, isSigned: !this.u)
      }
    case 0x10, 0x11, 0x12, 0x13:
      guard scale < 3 else { return nil }
      return narrowedShift(scale, right, opcode)
    case 0x14:
      guard !isScalar, scale < 3 else { return nil }
      var result = AArch64Vector()
      let lanes = 8 >> scale
      for lane in 0..<lanes {
        let value = extended(n[isFull ? lane + lanes : lane, scale], scale, isSigned: !u)
        result[lane, scale + 1] = UInt64(truncatingIfNeeded: value << Int128(left))
      }
      isWidening = true
      return result
    case 0x1c, 0x1f:
      guard scale >= 2 || isHalf else { return nil }
      let format: FloatFormat = scale == 3 ? .double : scale == 2 ? .single : .half
      keepLanes(of: d, scale)
      if opcode == 0x1c {
        return mapping(scale) { this, a, _, _ in
          let value = this.u || scale == 3 ? a : UInt64(bitPattern: this.signed(a, scale))
          return this.unit.fromInteger(value, isSigned: !this.u, format, scale: right)
        }
      }
      unit.soft.rounding = .towardZero
      return mapping(scale) { this, a, _, _ in
        this.unit.toInteger(a, format, width: element, isSigned: !this.u, scale: right)
      }
    default: return nil
    }
  }

  /// shrn, rshrn (u clear), sqshrun, sqrshrun (u set); sqshrn and uqshrn with rounding.
  private mutating func narrowedShift(_ scale: Int, _ right: Int, _ opcode: Int) -> AArch64Vector {
    let isSecond = isFull && !isScalar
    var result = isSecond ? AArch64Vector(low: d.low) : AArch64Vector()
    let lanes = isScalar ? 1 : 8 >> scale
    for lane in 0..<lanes {
      let isSignedSource = opcode <= 0x11 ? u : !u
      var value = extended(n[lane, scale + 1], scale + 1, isSigned: isSignedSource)
      if opcode & 1 != 0 { value += Int128(1) << Int128(right - 1) }
      value >>= Int128(right)
      let narrow =
        opcode <= 0x11 && !u
        ? UInt64(truncatingIfNeeded: value) : saturate(value, scale, isSigned: opcode >= 0x12 && !u)
      result[isSecond ? lane + lanes : lane, scale] = narrow
    }
    return result
  }

  // MARK: By element

  private mutating func indexed() -> AArch64Vector? {
    let opcode = bits(12, 4)
    let h = bits(11, 1)
    let l = bits(21, 1)
    let isFloat = opcode == 1 || opcode == 5 || opcode == 9
    if isFloat {
      guard isHalf ? size == 0 : size >= 2 else { return nil }
      let (scale, format) = (floatScale, self.format)
      guard scale != 3 || l == 0 && (isFull || isScalar), !u || opcode == 9 else { return nil }
      let other =
        isHalf
        ? s[v: bits(16, 4)][h << 2 | l << 1 | bits(20, 1), 1]
        : s[v: bits(16, 5)][scale == 2 ? h << 1 | l : h, scale]
      keepLanes(of: opcode == 9 ? n : d, scale)
      return mapping(scale) { this, a, _, d in
        if opcode == 9 { return this.unit.binary(this.u ? .multiplyExtended : .multiply, a, other, format) }
        return this.unit.fused(a, other, d, format, negateProduct: opcode == 5)
      }
    }
    let scale = size
    guard scale == 1 || scale == 2 else { return nil }
    let index = scale == 1 ? h << 2 | l << 1 | bits(20, 1) : h << 1 | l
    let other = s[v: scale == 1 ? bits(16, 4) : bits(16, 5)][index, scale]
    if isScalar {
      switch (u, opcode) {
      case (false, 3), (false, 7), (false, 0xb), (false, 0xc), (false, 0xd): break
      default: return nil
      }
    }
    switch (u, opcode) {
    case (false, 8): return map(scale) { a, _, _ in a &* other }
    case (true, 0): return map(scale) { a, _, d in d &+ a &* other }
    case (true, 4): return map(scale) { a, _, d in d &- a &* other }
    case (false, 0xc), (false, 0xd):
      return mapping(scale) { this, a, _, _ in this.doublingHigh(a, other, scale, rounds: opcode == 0xd) }
    case (_, 2), (_, 6), (_, 0xa), (false, 3), (false, 7), (false, 0xb):
      let isSecond = isFull && !isScalar
      let lanes = isScalar ? 1 : 8 >> scale
      var result = AArch64Vector()
      for lane in 0..<lanes {
        let value = n[isSecond ? lane + lanes : lane, scale]
        let old = d[lane, scale + 1]
        let product = UInt64(
          truncatingIfNeeded: extended(value, scale, isSigned: !u) * extended(other, scale, isSigned: !u))
        switch opcode {
        case 2: result[lane, scale + 1] = old &+ product
        case 6: result[lane, scale + 1] = old &- product
        case 0xa: result[lane, scale + 1] = product
        default:
          result[lane, scale + 1] = doublingLong(
            value, other, old, scale, [3: 9, 7: 0xb, 0xb: 0xd][opcode] ?? 0xd)
        }
      }
      isWidening = true
      return result
    default: return nil
    }
  }

  // MARK: Structures

  private static func structure(_ word: UInt32) -> (elements: Int, scale: Int, byteCount: Int) {
    let counts: [UInt32: Int] = [0: 4, 4: 3, 8: 2]
    return (counts[word >> 12 & 15] ?? 1, Int(word >> 10 & 3), word >> 30 & 1 != 0 ? 16 : 8)
  }

  /// The registers hold memory's bytes one after the other: element i goes to register i mod n.
  static func deinterleave(_ word: UInt32, _ s: AArch64State) {
    let (elements, scale, byteCount) = structure(word)
    let first = Int(word & 31)
    let source = (0..<elements).map { s[v: (first + $0) & 31] }
    let perRegister = byteCount >> scale
    for register in 0..<elements {
      var result = AArch64Vector()
      for lane in 0..<perRegister {
        let position = lane * elements + register
        result[lane, scale] = source[position / perRegister][position % perRegister, scale]
      }
      s[v: (first + register) & 31] = result
    }
  }

  /// Puts the registers' elements into the scratch area, in memory's order.
  static func interleave(_ word: UInt32, _ s: AArch64State) {
    let (elements, scale, byteCount) = structure(word)
    let first = Int(word & 31)
    let perRegister = byteCount >> scale
    for lane in 0..<perRegister {
      for register in 0..<elements {
        var value = s[v: (first + register) & 31][lane, scale]
        let position = (lane * elements + register) << scale
        withUnsafeBytes(of: &value) {
          s.base.advanced(by: AArch64State.scratch + position).copyMemory(
            from: $0.baseAddress.unsafelyUnwrapped, byteCount: 1 << scale)
        }
      }
    }
  }
}

extension UInt8 {
  /// With the order of the bits reversed.
  var bitSwapped: UInt8 {
    var result: UInt8 = 0
    for bit in 0..<8 as Range<UInt8> where self >> bit & 1 != 0 { result |= 0x80 >> bit }
    return result
  }
}
