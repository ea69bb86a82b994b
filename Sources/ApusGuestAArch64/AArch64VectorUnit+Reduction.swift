// Across a register, and of its two lanes [Arm ARM C4.1.96].

extension AArch64VectorUnit {
  mutating func across() -> AArch64Vector? {
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

  mutating func scalarPairwise() -> AArch64Vector? {
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
}
