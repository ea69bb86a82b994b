/// The operation of a decoded instruction; the case is the mnemonic. Compressed forms decode to what they expand to.
public enum RISCVOpcode: UInt16, CaseIterable, Sendable {
  /// No row matches, or an extension that is off.
  case illegal
  case lui, auipc, jal, jalr, beq, bne, blt, bge, bltu, bgeu, lb, lh, lw, ld, lbu, lhu, lwu, sb, sh
  case sw, sd, addi, slti, sltiu, xori, ori, andi, slli, srli, srai, add, sub, sll, slt, sltu, xor
  case srl, sra, or, and, addiw, slliw, srliw, sraiw, addw, subw, sllw, srlw, sraw, fenceTso, pause
  case fence, ecall, ebreak, fenceI, csrrw, csrrs, csrrc, csrrwi, csrrsi, csrrci, mul, mulh, mulhsu
  case mulhu, div, divu, rem, remu, mulw, divw, divuw, remw, remuw, lrW, scW, amoswapW, amoaddW
  case amoxorW, amoandW, amoorW, amominW, amomaxW, amominuW, amomaxuW, lrD, scD, amoswapD, amoaddD
  case amoxorD, amoandD, amoorD, amominD, amomaxD, amominuD, amomaxuD, amocasW, amocasD, amocasQ
  case wrsNto, wrsSto, flw, fsw, fmaddS, fmsubS, fnmsubS, fnmaddS, faddS, fsubS, fmulS, fdivS
  case fsqrtS, fsgnjS, fsgnjnS, fsgnjxS, fminS, fmaxS, fleS, fltS, feqS, fclassS, fcvtWS, fcvtWuS
  case fcvtLS, fcvtLuS, fcvtSW, fcvtSWu, fcvtSL, fcvtSLu, fmvXW, fmvWX, fld, fsd, fmaddD, fmsubD
  case fnmsubD, fnmaddD, faddD, fsubD, fmulD, fdivD, fsqrtD, fsgnjD, fsgnjnD, fsgnjxD, fminD, fmaxD
  case fleD, fltD, feqD, fclassD, fcvtWD, fcvtWuD, fcvtLD, fcvtLuD, fcvtDW, fcvtDWu, fcvtDL
  case fcvtDLu, fmvXD, fmvDX, fcvtSD, fcvtDS, flh, fsh, fmaddH, fmsubH, fnmsubH, fnmaddH, faddH
  case fsubH, fmulH, fdivH, fsqrtH, fsgnjH, fsgnjnH, fsgnjxH, fminH, fmaxH, fleH, fltH, feqH
  case fclassH, fcvtWH, fcvtWuH, fcvtLH, fcvtLuH, fcvtHW, fcvtHWu, fcvtHL, fcvtHLu, fmvXH, fmvHX
  case fcvtSH, fcvtHS, fcvtDH, fcvtHD, addUw, slliUw, sh1add, sh1addUw, sh2add, sh2addUw, sh3add
  case sh3addUw, andn, orn, xnor, clz, ctz, cpop, sextB, sextH, clzw, ctzw, cpopw, min, minu, max
  case maxu, zextH, rol, ror, rori, rolw, rorw, roriw, orcB, rev8, clmul, clmulr, clmulh, bclr
  case bclri, bext, bexti, binv, binvi, bset, bseti, czeroEqz, czeroNez, cboInval, cboClean
  case cboFlush, cboZero, sret, mret, wfi, sfenceVma, sinvalVma, sfenceWInval, sfenceInvalIr
}
