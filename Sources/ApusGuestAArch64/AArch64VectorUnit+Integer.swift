import ApusBits

// Integer lanes of registers: three of a size, of different sizes, and the miscellaneous ones of two [Arm ARM C4.1.96].

extension AArch64VectorUnit {
  mutating func threeSame() -> AArch64Vector? {
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
  mutating func doublingHigh(_ a: UInt64, _ b: UInt64, _ scale: Int, rounds: Bool) -> UInt64 {
    let bits = Int128(8 << scale)
    var product = 2 * Int128(signed(a, scale)) * Int128(signed(b, scale))
    if rounds { product += Int128(1) << (bits - 1) }
    return saturate(product >> bits, scale, isSigned: true)
  }

  func bitwise() -> AArch64Vector? {
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

  // MARK: Different widths

  mutating func threeDifferent() -> AArch64Vector? {
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
  mutating func doublingLong(
    _ a: UInt64, _ b: UInt64, _ accumulator: UInt64, _ scale: Int, _ opcode: Int
  ) -> UInt64 {
    let product = saturate(2 * Int128(signed(a, scale)) * Int128(signed(b, scale)), scale + 1, isSigned: true)
    if opcode == 0xd { return product }
    let (old, new) = (Int128(signed(accumulator, scale + 1)), Int128(signed(product, scale + 1)))
    return saturate(opcode == 9 ? old + new : old - new, scale + 1, isSigned: true)
  }

  // MARK: Two-register miscellaneous

  mutating func miscellaneous() -> AArch64Vector? {
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
  mutating func narrowed(_ body: (inout Self, UInt64) -> UInt64) -> AArch64Vector {
    let scale = size
    let isSecond = isFull && !isScalar
    var result = isSecond ? AArch64Vector(low: d.low) : AArch64Vector()
    let lanes = isScalar ? 1 : 8 >> scale
    for lane in 0..<lanes {
      result[isSecond ? lane + lanes : lane, scale] = body(&self, n[lane, scale + 1])
    }
    return result
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
