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
  func width(_ scale: Int) -> Int { 8 << scale }

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
  var isWidening = false

  mutating func compute() -> AArch64Vector? {
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

  mutating func scalar() -> AArch64Vector? {
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
  func map(_ scale: Int, _ body: (UInt64, UInt64, UInt64) -> UInt64) -> AArch64Vector {
    var result = AArch64Vector()
    for lane in 0..<count(scale) {
      result[lane, scale] = body(n[lane, scale], m[lane, scale], d[lane, scale])
    }
    return result
  }
  @inline(__always)
  mutating func mapping(_ scale: Int, _ body: (inout Self, UInt64, UInt64, UInt64) -> UInt64)
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
  mutating func pairwise(_ scale: Int, _ body: (inout Self, UInt64, UInt64) -> UInt64)
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
  func extended(_ value: UInt64, _ scale: Int, isSigned: Bool) -> Int128 {
    isSigned ? Int128(signed(value, scale)) : Int128(value)
  }

  func ones(_ condition: Bool) -> UInt64 { condition ? .max : 0 }
  /// Of an instruction for half precision: its size field says something else.
  var isHalf = false
  var format: FloatFormat { isHalf ? .half : size & 1 == 1 ? .double : .single }
  var floatScale: Int { isHalf ? 1 : size & 1 == 1 ? 3 : 2 }
}
