// Compressed instructions expand to the 32-bit instruction that they stand for [RV-Unpriv 27, RV64C].

/// The 32-bit encoding that a 16-bit instruction stands for, or `nil` for a reserved encoding.
public func expandCompressed(_ half: UInt16) -> UInt32? {
  let c = UInt32(half)
  func bits(_ low: UInt32, _ count: UInt32) -> UInt32 { c >> low & (1 << count - 1) }
  func signed(_ value: UInt32, _ width: UInt32) -> UInt32 {
    UInt32(bitPattern: Int32(bitPattern: value << (32 - width)) >> Int32(32 - width))
  }
  let full = bits(7, 5)  // rd or rs1
  let full2 = bits(2, 5)  // rs2
  let low1 = bits(7, 3) + 8  // rd' or rs1'
  let low2 = bits(2, 3) + 8  // rd' or rs2'
  // imm[5|4:0] of c.addi and its like
  let imm6 = signed(bits(12, 1) << 5 | bits(2, 5), 6)
  let shift = bits(12, 1) << 5 | bits(2, 5)
  let offset8 = bits(5, 2) << 6 | bits(10, 3) << 3  // c.ld
  let offset4 = bits(5, 1) << 6 | bits(10, 3) << 3 | bits(6, 1) << 2  // c.lw

  func iType(_ imm: UInt32, _ rs1: UInt32, _ funct3: UInt32, _ rd: UInt32, _ op: UInt32) -> UInt32 {
    imm << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | op
  }
  func sType(_ imm: UInt32, _ rs2: UInt32, _ rs1: UInt32, _ funct3: UInt32, _ op: UInt32) -> UInt32 {
    (imm >> 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (imm & 31) << 7 | op
  }
  func rType(_ funct7: UInt32, _ rs2: UInt32, _ rs1: UInt32, _ funct3: UInt32, _ rd: UInt32, _ op: UInt32)
    -> UInt32
  { funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | op }

  switch (c & 3, bits(13, 3)) {
  case (0, 0):  // c.addi4spn
    let imm = bits(7, 4) << 6 | bits(11, 2) << 4 | bits(5, 1) << 3 | bits(6, 1) << 2
    return imm == 0 ? nil : iType(imm, 2, 0, low2, 0x13)
  case (0, 1): return iType(offset8, low1, 3, low2, 0x07)  // c.fld
  case (0, 2): return iType(offset4, low1, 2, low2, 0x03)  // c.lw
  case (0, 3): return iType(offset8, low1, 3, low2, 0x03)  // c.ld
  case (0, 5): return sType(offset8, low2, low1, 3, 0x27)  // c.fsd
  case (0, 6): return sType(offset4, low2, low1, 2, 0x23)  // c.sw
  case (0, 7): return sType(offset8, low2, low1, 3, 0x23)  // c.sd
  case (1, 0): return iType(imm6 & 0xfff, full, 0, full, 0x13)  // c.addi, c.nop
  case (1, 1): return full == 0 ? nil : iType(imm6 & 0xfff, full, 0, full, 0x1b)  // c.addiw
  case (1, 2): return iType(imm6 & 0xfff, 0, 0, full, 0x13)  // c.li
  case (1, 3):
    if full == 2 {  // c.addi16sp
      let imm = signed(
        bits(12, 1) << 9 | bits(3, 2) << 7 | bits(5, 1) << 6 | bits(2, 1) << 5 | bits(6, 1) << 4, 10)
      return imm == 0 ? nil : iType(imm & 0xfff, 2, 0, 2, 0x13)
    }
    return imm6 == 0 ? nil : imm6 << 12 | full << 7 | 0x37  // c.lui
  case (1, 4):
    switch bits(10, 2) {
    case 0: return iType(shift, low1, 5, low1, 0x13)  // c.srli
    case 1: return iType(0x400 | shift, low1, 5, low1, 0x13)  // c.srai
    case 2: return iType(imm6 & 0xfff, low1, 7, low1, 0x13)  // c.andi
    default:
      switch (bits(12, 1), bits(5, 2)) {
      case (0, 0): return rType(0x20, low2, low1, 0, low1, 0x33)  // c.sub
      case (0, 1): return rType(0, low2, low1, 4, low1, 0x33)  // c.xor
      case (0, 2): return rType(0, low2, low1, 6, low1, 0x33)  // c.or
      case (0, 3): return rType(0, low2, low1, 7, low1, 0x33)  // c.and
      case (1, 0): return rType(0x20, low2, low1, 0, low1, 0x3b)  // c.subw
      case (1, 1): return rType(0, low2, low1, 0, low1, 0x3b)  // c.addw
      default: return nil
      }
    }
  case (1, 5):  // c.j
    let imm = signed(
      bits(12, 1) << 11 | bits(8, 1) << 10 | bits(9, 2) << 8 | bits(6, 1) << 7 | bits(7, 1) << 6
        | bits(2, 1) << 5 | bits(11, 1) << 4 | bits(3, 3) << 1, 12)
    return (imm >> 20 & 1) << 31 | (imm >> 1 & 1023) << 21 | (imm >> 11 & 1) << 20 | (imm >> 12 & 255) << 12
      | 0x6f
  case (1, 6), (1, 7):  // c.beqz, c.bnez
    let imm = signed(
      bits(12, 1) << 8 | bits(5, 2) << 6 | bits(2, 1) << 5 | bits(10, 2) << 3 | bits(3, 2) << 1, 9)
    return (imm >> 12 & 1) << 31 | (imm >> 5 & 63) << 25 | low1 << 15 | (c >> 13 & 1) << 12
      | (imm >> 1 & 15) << 8 | (imm >> 11 & 1) << 7 | 0x63
  case (2, 0): return iType(shift, full, 1, full, 0x13)  // c.slli
  // c.fldsp
  case (2, 1): return iType(bits(2, 3) << 6 | bits(12, 1) << 5 | bits(5, 2) << 3, 2, 3, full, 0x07)
  case (2, 2):  // c.lwsp
    return full == 0 ? nil : iType(bits(2, 2) << 6 | bits(12, 1) << 5 | bits(4, 3) << 2, 2, 2, full, 0x03)
  case (2, 3):  // c.ldsp
    return full == 0 ? nil : iType(bits(2, 3) << 6 | bits(12, 1) << 5 | bits(5, 2) << 3, 2, 3, full, 0x03)
  case (2, 4):
    switch (bits(12, 1), full, full2) {
    case (0, 0, 0): return nil
    case (0, _, 0): return iType(0, full, 0, 0, 0x67)  // c.jr
    case (0, _, _): return rType(0, full2, 0, 0, full, 0x33)  // c.mv
    case (1, 0, 0): return 0x0010_0073  // c.ebreak
    case (1, _, 0): return iType(0, full, 0, 1, 0x67)  // c.jalr
    default: return rType(0, full2, full, 0, full, 0x33)  // c.add
    }
  case (2, 5): return sType(bits(7, 3) << 6 | bits(10, 3) << 3, full2, 2, 3, 0x27)  // c.fsdsp
  case (2, 6): return sType(bits(7, 2) << 6 | bits(9, 4) << 2, full2, 2, 2, 0x23)  // c.swsp
  case (2, 7): return sType(bits(7, 3) << 6 | bits(10, 3) << 3, full2, 2, 3, 0x23)  // c.sdsp
  default: return nil
  }
}
