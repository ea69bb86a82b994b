import ApusFloat

// Immediates, shifts by them, and conversions with a fraction [Arm ARM C4.1.96].

extension AArch64VectorUnit {
  /// Shifts by the lowest byte of `amount`: left, or right if it is negative, perhaps rounded and saturated.
  mutating func shifted(
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

  func immediate() -> AArch64Vector? {
    guard bits(11, 1) == 0, let value = Self.expandedImmediate(word) else { return nil }
    let cmode = bits(12, 4)
    guard cmode & 1 == 1, cmode < 12 else { return AArch64Vector(low: value, high: value) }
    // orr; bic has its immediate inverted already.
    if u { return AArch64Vector(low: d.low & value, high: d.high & value) }
    return AArch64Vector(low: d.low | value, high: d.high | value)
  }

  mutating func shift() -> AArch64Vector? {
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
  mutating func narrowedShift(_ scale: Int, _ right: Int, _ opcode: Int) -> AArch64Vector {
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
}
