/// Mask registers of AVX-512 that code uses. k0 cannot be asked for: as a condition it stands for all lanes.
public enum X86Mask: UInt8, Sendable { case k1 = 1 }

// AVX-512's instructions on 128 bits, in its EVEX encoding [SDM 2A 2.7]. Maps and prefixes are those of VEX; `wide` is W.
//
//   62 | R X B R' 0 map | W vvvv 1 prefix | z L'L b V' aaa | opcode | ModRM
//
// R, X, B, R', vvvv and V' are inverted. Registers above 15 and operands in memory are not used.

extension X86Assembler {
  /// to = a op b; with `mask` only in the lanes whose bit is set.
  public mutating func evex(
    _ opcode: UInt8, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector, immediate: UInt8? = nil, map: UInt8,
    prefix: UInt8 = 1, wide: Bool, mask: X86Mask? = nil
  ) {
    evex(
      to.rawValue, vvvv: a.rawValue, rm: b.rawValue, map: map, prefix: prefix, wide: wide, opcode,
      mask: mask?.rawValue ?? 0)
    if let immediate { byte(immediate) }
  }
  /// to = op from.
  public mutating func evex(
    _ opcode: UInt8, _ to: X86Vector, _ from: X86Vector, map: UInt8, prefix: UInt8 = 1, wide: Bool
  ) {
    evex(to.rawValue, vvvv: 0, rm: from.rawValue, map: map, prefix: prefix, wide: wide, opcode)
  }
  /// A shift or a rotation by an immediate: vprold 72 /1, vprord 72 /0, vpsraq 72 /4 with W.
  public mutating func evexShift(
    _ opcode: UInt8, _ group: UInt8, _ to: X86Vector, _ a: X86Vector, by count: UInt8, wide: Bool
  ) {
    evex(group, vvvv: to.rawValue, rm: a.rawValue, map: 1, prefix: 1, wide: wide, opcode)
    byte(count)
  }
  /// A comparison or test of lanes: a bit each in the mask.
  public mutating func evex(
    _ opcode: UInt8, _ to: X86Mask, _ a: X86Vector, _ b: X86Vector, immediate: UInt8? = nil, map: UInt8,
    prefix: UInt8 = 1, wide: Bool
  ) {
    evex(to.rawValue, vvvv: a.rawValue, rm: b.rawValue, map: map, prefix: prefix, wide: wide, opcode)
    if let immediate { byte(immediate) }
  }
  /// vpmovm2b, w, d, q: all ones where the mask has its bit; by scale.
  public mutating func expand(_ to: X86Vector, _ mask: X86Mask, scale: Int) {
    evex(
      to.rawValue, vvvv: 0, rm: mask.rawValue, map: 2, prefix: 2, wide: scale & 1 != 0,
      scale < 2 ? 0x28 : 0x38)
  }
  /// vpmovb2m, w2m, d2m, q2m: the highest bit of each lane.
  public mutating func moveSigns(_ to: X86Mask, _ from: X86Vector, scale: Int) {
    evex(
      to.rawValue, vvvv: 0, rm: from.rawValue, map: 2, prefix: 2, wide: scale & 1 != 0,
      scale < 2 ? 0x29 : 0x39)
  }
  /// vpbroadcastd, q: a general register to all lanes.
  public mutating func broadcast(_ to: X86Vector, _ from: X86Register, wide: Bool) {
    evex(to.rawValue, vvvv: 0, rm: from.rawValue, map: 2, prefix: 1, wide: wide, 0x7c)
  }
  /// vcvttsd2usi, vcvtsd2usi and those of ss.
  public mutating func convertToUnsigned(
    _ to: X86Register, _ from: X86Vector, double: Bool, wide: Bool, truncating: Bool
  ) {
    evex(
      to.rawValue, vvvv: 0, rm: from.rawValue, map: 1, prefix: double ? 3 : 2, wide: wide,
      truncating ? 0x78 : 0x79)
  }

  /// Registers by their numbers, 0 to 15.
  private mutating func evex(
    _ reg: UInt8, vvvv: UInt8, rm: UInt8, map: UInt8, prefix: UInt8, wide: Bool, _ opcode: UInt8,
    mask: UInt8 = 0
  ) {
    var bytes = Bytes()
    bytes.append(0x62)
    bytes.append((reg & 8 == 0 ? 0x80 : 0) | 0x40 | (rm & 8 == 0 ? 0x20 : 0) | 0x10 | map)
    bytes.append((wide ? 0x80 : 0) | (~vvvv & 15) << 3 | 4 | prefix)
    bytes.append(8 | mask)
    bytes.append(opcode)
    bytes.append(0xc0 | (reg & 7) << 3 | rm & 7)
    flush(bytes)
  }
}
