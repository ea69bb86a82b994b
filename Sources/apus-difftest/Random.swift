/// xorshift64*.
struct Random {
  var state: UInt64
  init(seed: UInt64) {
    state = seed &* 0x9e37_79b9_7f4a_7c15 ^ 0xd1b5_4a32_d192_ed03
    if state == 0 { state = 1 }
    for _ in 0..<8 { _ = next() }
  }
  mutating func next() -> UInt64 {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return state &* 0x2545_f491_4f6c_dd1d
  }
  mutating func below(_ bound: Int) -> Int { Int(truncatingIfNeeded: (next() >> 33) % UInt64(bound)) }
  mutating func chance(_ oneIn: Int) -> Bool { below(oneIn) == 0 }

  // MARK: Values with many special ones among them

  mutating func integer() -> UInt64 {
    switch below(8) {
    case 0: return UInt64(below(16))
    case 1: return UInt64(bitPattern: -Int64(below(16)))
    case 2:
      return [0, .max, 1 << 63, 1 << 31, 0x7fff_ffff, 0xffff_ffff, .max >> 1, 0xffff_ffff_8000_0000][
        below(8)]
    case 3: return UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: next())))
    case 4: return 1 << UInt64(below(64))
    default: return next()
    }
  }

  private mutating func special(_ exponentBits: Int, _ fractionBits: Int) -> UInt64 {
    let sign = next() & 1 << UInt64(exponentBits + fractionBits)
    let infinity = ((UInt64(1) << UInt64(exponentBits)) - 1) << UInt64(fractionBits)
    let one = infinity >> 1 & ~((UInt64(1) << UInt64(fractionBits)) - 1)
    let fraction = (UInt64(1) << UInt64(fractionBits)) - 1
    switch below(12) {
    case 0: return sign
    case 1: return sign | infinity
    case 2: return sign | infinity | 1 << UInt64(fractionBits - 1)
    case 3: return sign | infinity | 1
    case 4: return sign | next() & fraction
    case 5: return sign | 1
    case 6: return sign | fraction
    case 7: return sign | 1 << UInt64(fractionBits)
    case 8: return sign | (infinity - 1)
    case 9: return sign | one
    case 10:
      return sign | (one &+ (next() & 0xff) &<< UInt64(fractionBits) &- 0x40 &<< UInt64(fractionBits))
        & (infinity | fraction)
    default: return sign | (one &+ (next() & 0xf))
    }
  }
  mutating func double() -> UInt64 {
    switch below(4) {
    case 0, 1: return special(11, 52)
    case 2:
      return (1023 &- 64 &+ UInt64(below(128))) << 52 | next() & (1 << 52 - 1) | next()
        & 1 << 63
    default: return Double(Int32(truncatingIfNeeded: next())).bitPattern
    }
  }
  mutating func single() -> UInt64 {
    switch below(4) {
    case 0, 1: return special(8, 23)
    case 2:
      return (127 &- 40 &+ UInt64(below(80))) << 23 | next() & (1 << 23 - 1) | next() & 1
        << 31
    default: return UInt64(Float(Int32(truncatingIfNeeded: next())).bitPattern)
    }
  }
  mutating func half() -> UInt64 { chance(2) ? special(5, 10) : next() & 0xffff }
}
