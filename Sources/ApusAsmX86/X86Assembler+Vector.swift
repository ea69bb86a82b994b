/// How vector instructions with a destination of their own are encoded.
public enum X86VectorEncoding: Sendable {
  /// With a VEX prefix: AVX.
  case vex
  /// As SSE's, which overwrite their first operand, behind a move. `scratch`: 16 bytes of memory, aligned, for a second
  /// operand that the move would overwrite.
  case legacy(scratch: X86Memory)
}

// Vector registers. `sse` writes what SSE has as it is; `vector` writes to = a op b on 128 bits for AVX and for SSE
// [SDM 2A 2.1, 2.3]. Maps: 1 0F, 2 0F38, 3 0F3A. Their prefixes, as VEX has them: 0 none, 1 66, 2 F3, 3 F2.

extension X86Assembler {
  // MARK: SSE

  /// A scalar or packed SSE instruction: prefix 0xf2 double, 0xf3 single, 0x66 packed double, 0 packed single.
  public mutating func sse(_ prefix: UInt8, _ opcode: UInt8, _ to: X86Vector, _ from: X86Vector) {
    registerForm(to.rawValue, from.rawValue, wide: false, prefix: prefix, escape: true, opcode)
  }
  public mutating func sse(_ prefix: UInt8, _ opcode: UInt8, _ to: X86Vector, _ memory: X86Memory) {
    memoryForm(to.rawValue, memory, wide: false, prefix: prefix, escape: true, opcode)
  }
  /// movaps between registers.
  public mutating func move(_ to: X86Vector, _ from: X86Vector) { sse(0, 0x28, to, from) }
  /// movsd / movss with memory; loads clear the rest.
  public mutating func load(_ to: X86Vector, _ memory: X86Memory, double: Bool) {
    sse(double ? 0xf2 : 0xf3, 0x10, to, memory)
  }
  public mutating func store(_ memory: X86Memory, _ from: X86Vector, double: Bool) {
    sse(double ? 0xf2 : 0xf3, 0x11, from, memory)
  }
  /// movq / movd between register files.
  public mutating func move(_ to: X86Vector, _ from: X86Register, wide: Bool) {
    registerForm(to.rawValue, from.rawValue, wide: wide, prefix: 0x66, escape: true, 0x6e)
  }
  public mutating func move(_ to: X86Register, _ from: X86Vector, wide: Bool) {
    registerForm(from.rawValue, to.rawValue, wide: wide, prefix: 0x66, escape: true, 0x7e)
  }
  /// movups.
  public mutating func loadWhole(_ to: X86Vector, _ memory: X86Memory) { sse(0, 0x10, to, memory) }
  public mutating func storeWhole(_ memory: X86Memory, _ from: X86Vector) { sse(0, 0x11, from, memory) }
  /// movhps: the upper 64 bits.
  public mutating func storeUpper(_ memory: X86Memory, _ from: X86Vector) { sse(0, 0x17, from, memory) }
  /// movq: the lower 64 bits; the upper ones become 0.
  public mutating func moveLower(_ to: X86Vector, _ from: X86Vector) { sse(0xf3, 0x7e, to, from) }
  /// movsd: the lower 64 bits; the upper ones stay.
  public mutating func mergeLower(_ to: X86Vector, _ from: X86Vector) { sse(0xf2, 0x10, to, from) }
  /// movmskps, movmskpd: the lanes' highest bits.
  public mutating func moveSigns(_ to: X86Register, _ from: X86Vector, double: Bool) {
    registerForm(
      to.rawValue, from.rawValue, wide: false, prefix: double ? 0x66 : 0, escape: true, 0x50)
  }
  /// cvtsi2sd/ss and cvttsd2si/cvtsd2si.
  public mutating func convertFromInteger(_ to: X86Vector, _ from: X86Register, double: Bool, wide: Bool) {
    registerForm(to.rawValue, from.rawValue, wide: wide, prefix: double ? 0xf2 : 0xf3, escape: true, 0x2a)
  }
  public mutating func convertToInteger(
    _ to: X86Register, _ from: X86Vector, double: Bool, wide: Bool, truncating: Bool
  ) {
    registerForm(
      to.rawValue, from.rawValue, wide: wide, prefix: double ? 0xf2 : 0xf3, escape: true,
      truncating ? 0x2c : 0x2d)
  }
  public mutating func loadMXCSR(_ memory: X86Memory) {
    memoryForm(2, memory, wide: false, escape: true, 0xae)
  }
  public mutating func storeMXCSR(_ memory: X86Memory) {
    memoryForm(3, memory, wide: false, escape: true, 0xae)
  }
  /// A SHA instruction (0F38) on xmm0 to xmm7; sha256rnds2 (CB) reads xmm0, too.
  public mutating func sha(_ opcode: UInt8, _ to: X86Vector, _ from: X86Vector) {
    for one in [0x0f, 0x38, opcode, 0xc0 | to.rawValue << 3 | from.rawValue] { byte(one) }
  }
  public mutating func sha1Rounds(_ to: X86Vector, _ from: X86Vector, _ function: UInt8) {
    for one in [0x0f, 0x3a, 0xcc, 0xc0 | to.rawValue << 3 | from.rawValue, function] { byte(one) }
  }
  /// crc32: the sum in `to`, with 1 << `scale` bytes of `from`.
  public mutating func crc32c(_ to: X86Register, _ from: X86Register, scale: Int) {
    if scale == 1 { byte(0x66) }
    byte(0xf2)
    byte(0x40 | (scale == 3 ? 8 : 0) | (to.rawValue >> 3) << 2 | from.rawValue >> 3)
    for one in [0x0f, 0x38, scale == 0 ? 0xf0 : 0xf1, 0xc0 | (to.rawValue & 7) << 3 | from.rawValue & 7] {
      byte(one)
    }
  }

  // MARK: AVX, or SSE behind a move

  /// to = a op b.
  public mutating func vector(
    _ opcode: UInt8, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector, immediate: UInt8? = nil,
    map: UInt8 = 1, prefix: UInt8 = 1
  ) {
    switch vectorEncoding {
    case .vex:
      vex(to.rawValue, vvvv: a.rawValue, rm: b.rawValue, map: map, prefix: prefix, wide: false, opcode)
    case .legacy(let scratch):
      guard to == b, to != a else {
        if to != a { move(to, a) }
        legacy(opcode, to.rawValue, b.rawValue, map: map, prefix: prefix)
        break
      }
      if Self.commutes(opcode, map: map, prefix: prefix) {
        legacy(opcode, to.rawValue, a.rawValue, map: map, prefix: prefix)
      } else if map == 1, opcode == 0xdf || opcode == 0x55 {
        // pandn, andnps: ~a & b = (a | b) ^ a
        legacy(opcode == 0xdf ? 0xeb : 0x56, to.rawValue, a.rawValue, map: 1, prefix: prefix)
        legacy(opcode == 0xdf ? 0xef : 0x57, to.rawValue, a.rawValue, map: 1, prefix: prefix)
      } else {
        sse(0, 0x29, b, scratch)  // movaps to memory
        move(to, a)
        legacy(opcode, to.rawValue, scratch, map: map, prefix: prefix)
      }
    }
    if let immediate { byte(immediate) }
  }

  /// to = a op memory, which SSE's packed instructions want aligned.
  public mutating func vector(
    _ opcode: UInt8, _ to: X86Vector, _ a: X86Vector, _ memory: X86Memory, immediate: UInt8? = nil,
    map: UInt8 = 1, prefix: UInt8
  ) {
    switch vectorEncoding {
    case .vex: vex(to.rawValue, vvvv: a.rawValue, memory, map: map, prefix: prefix, opcode)
    case .legacy:
      if to != a { move(to, a) }
      legacy(opcode, to.rawValue, memory, map: map, prefix: prefix)
    }
    if let immediate { byte(immediate) }
  }

  /// to = op from.
  public mutating func vector(
    _ opcode: UInt8, _ to: X86Vector, _ from: X86Vector, immediate: UInt8? = nil, map: UInt8 = 1,
    prefix: UInt8 = 1
  ) {
    switch vectorEncoding {
    case .vex: vex(to.rawValue, vvvv: 0, rm: from.rawValue, map: map, prefix: prefix, wide: false, opcode)
    case .legacy: legacy(opcode, to.rawValue, from.rawValue, map: map, prefix: prefix)
    }
    if let immediate { byte(immediate) }
  }

  /// A shift by an immediate: to = a shifted. opcode 71 words, 72 double words, 73 quad words; the group is ModRM's.
  public mutating func vectorShift(
    _ opcode: UInt8, _ group: UInt8, _ to: X86Vector, _ a: X86Vector, by count: UInt8
  ) {
    switch vectorEncoding {
    case .vex: vex(group, vvvv: to.rawValue, rm: a.rawValue, map: 1, prefix: 1, wide: false, opcode)
    case .legacy:
      if to != a { move(to, a) }
      legacy(opcode, group, to.rawValue, map: 1, prefix: 1)
    }
    byte(count)
  }

  /// pextrq and pinsrq of the upper 64 bits.
  public mutating func extractUpper(_ to: X86Register, _ from: X86Vector) {
    switch vectorEncoding {
    case .vex: vex(from.rawValue, vvvv: 0, rm: to.rawValue, map: 3, prefix: 1, wide: true, 0x16)
    case .legacy: legacy(0x16, from.rawValue, to.rawValue, map: 3, prefix: 1, wide: true)
    }
    byte(1)
  }
  public mutating func insertUpper(_ to: X86Vector, _ from: X86Register) {
    switch vectorEncoding {
    case .vex: vex(to.rawValue, vvvv: to.rawValue, rm: from.rawValue, map: 3, prefix: 1, wide: true, 0x22)
    case .legacy: legacy(0x22, to.rawValue, from.rawValue, map: 3, prefix: 1, wide: true)
    }
    byte(1)
  }

  /// pclmulqdq: to = a.low x b.low.
  public mutating func carrylessMultiply(_ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    vector(0x44, to, a, b, immediate: 0, map: 3)
  }

  /// vfmadd231 and relatives (FMA): to = ±(a * b) ± to. opcode b9 fmadd, bb fmsub, bd fnmadd, bf fnmsub.
  public mutating func fused231(
    _ opcode: UInt8, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector, double: Bool
  ) {
    vex(to.rawValue, vvvv: a.rawValue, rm: b.rawValue, map: 2, prefix: 1, wide: double, opcode)
  }

  /// AVX2's shifts by lanes: vpsllv 47, vpsrlv 45, vpsrav 46 (not of 64 bits).
  public mutating func shiftByLanes(
    _ opcode: UInt8, _ to: X86Vector, _ a: X86Vector, _ counts: X86Vector, wide: Bool
  ) {
    vex(to.rawValue, vvvv: a.rawValue, rm: counts.rawValue, map: 2, prefix: 1, wide: wide, opcode)
  }

  // MARK: Parts

  /// Whether SSE's instruction may have its operands the other way round. Of two NaNs, the other may win then.
  private static func commutes(_ opcode: UInt8, map: UInt8, prefix: UInt8) -> Bool {
    switch (map, opcode) {
    // and, or, xor, add, multiply of floats; the upper lanes of scalar ones are the first operand's.
    case (1, 0x54), (1, 0x56), (1, 0x57), (1, 0x58), (1, 0x59): prefix < 2
    // pcmpeq; paddq, pmullw; pminub, pand, paddus, pmaxub; pavg; pmulh; pminsw, por, padds, pmaxsw, pxor; pmuludq,
    // pmaddwd; padd.
    case (1, 0x74...0x76), (1, 0xd4...0xd5), (1, 0xda...0xde), (1, 0xe0), (1, 0xe3...0xe5), (1, 0xea...0xef),
      (1, 0xf4...0xf5), (1, 0xfc...0xfe):
      true
    // pmulhrsw; pmuldq, pcmpeqq; pmin, pmax, pmulld.
    case (2, 0x0b), (2, 0x28...0x29), (2, 0x38...0x40): true
    default: false
    }
  }

  /// Prefix, REX, the map's escape and the opcode: at most five bytes.
  private static func legacyStart(_ opcode: UInt8, rex: UInt8, map: UInt8, prefix: UInt8) -> Bytes {
    var bytes = Bytes()
    if prefix != 0 { bytes.append(prefix == 1 ? 0x66 : prefix == 2 ? 0xf3 : 0xf2) }
    if rex != 0x40 { bytes.append(rex) }
    bytes.append(0x0f)
    if map > 1 { bytes.append(map == 2 ? 0x38 : 0x3a) }
    bytes.append(opcode)
    return bytes
  }
  private mutating func legacy(
    _ opcode: UInt8, _ reg: UInt8, _ rm: UInt8, map: UInt8, prefix: UInt8, wide: Bool = false
  ) {
    let rex: UInt8 = 0x40 | (wide ? 8 : 0) | (reg &>> 3) << 2 | rm &>> 3
    var bytes = Self.legacyStart(opcode, rex: rex, map: map, prefix: prefix)
    bytes.append(0xc0 | (reg & 7) << 3 | rm & 7)
    flush(bytes)
  }
  private mutating func legacy(
    _ opcode: UInt8, _ reg: UInt8, _ memory: X86Memory, map: UInt8, prefix: UInt8
  ) {
    let indexNumber = memory.index?.rawValue ?? 0
    let rex: UInt8 = 0x40 | (reg &>> 3) << 2 | (indexNumber &>> 3) << 1 | memory.base.rawValue &>> 3
    var bytes = Self.legacyStart(opcode, rex: rex, map: map, prefix: prefix)
    appendMemory(&bytes, reg, memory)
  }

  /// VEX with a memory operand.
  private mutating func vex(
    _ reg: UInt8, vvvv: UInt8, _ memory: X86Memory, map: UInt8, prefix: UInt8, _ opcode: UInt8
  ) {
    let indexNumber = memory.index?.rawValue ?? 0
    var bytes = Bytes()
    bytes.append(0xc4)
    bytes.append(
      (reg & 8 == 0 ? 0x80 : 0) | (indexNumber & 8 == 0 ? 0x40 : 0)
        | (memory.base.rawValue & 8 == 0 ? 0x20 : 0)
        | map)
    bytes.append((~vvvv & 15) << 3 | prefix)
    bytes.append(opcode)
    appendMemory(&bytes, reg, memory)
  }
}
