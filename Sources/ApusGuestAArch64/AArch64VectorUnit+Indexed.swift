// By an element of the second register [Arm ARM C4.1.96].

extension AArch64VectorUnit {
  mutating func indexed() -> AArch64Vector? {
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
}
