/// The operation of an instruction: the case is the mnemonic, or the class where a class has one row.
public enum AArch64Opcode: UInt8, CaseIterable, Sendable {
  /// No row matches, or its feature is off.
  case undefined
  case adr, adrp, addImmediate, addsImmediate, subImmediate, subsImmediate, andImmediate, orrImmediate
  case eorImmediate, andsImmediate, movn, movz, movk, sbfm, bfm, ubfm, extr, bCond, svc, hvc, smc, eret,
    msrImmediate, brk, hint, clrex
  case barrier, isb, sys, msr, mrs, br, blr, ret, b, bl, cbz, cbnz, tbz, tbnz, vectorStructures
  case vectorElement, stxr, ldxr, stxp, ldxp, casp, cas, stlr, ldar, loadLiteral, loadLiteralVector, pair
  case pairVector, ldapr, atomicMemory, loadStore, loadStoreVector, and, bic, orr, orn, eor, eon, ands
  case bics, add, adds, sub, subs, addExtended, addsExtended, subExtended, subsExtended, adc, adcs, sbc
  case sbcs, ccmn, ccmp, csel, csinc, csinv, csneg, udiv, sdiv, lslv, lsrv, asrv, rorv, crc32, rbit
  case rev16, rev, rev32, clz, cls, madd, msub, smaddl, smsubl, umaddl, umsubl, smulh, umulh
  case floatToInteger, integerToFloat, fmovToGeneral, fmovFromGeneral, fixedToFloat, floatToFixed, fmov
  case fabs, fneg, fsqrt, fcvt, frint, fcmp, fmovImmediate, fccmp, fmul, fdiv, fadd, fsub, fmax, fmin
  case fmaxnm, fminnm, fnmul, fcsel, fused, vectorImmediate, vectorMiscellaneous, vectorAcross
  case vectorThreeSame, vectorThreeDifferent, vectorCopy, vectorShift, vectorPermute, vectorExtract
  case vectorTable, vectorIndexed, scalarMiscellaneous, scalarPairwise, scalarThreeSame
  case scalarThreeDifferent, scalarCopy, scalarShift, scalarIndexed

  /// What CPACR_EL1 can forbid: floating point and Advanced SIMD, their loads and stores included.
  public var usesVectorRegisters: Bool {
    switch self {
    case .vectorStructures, .vectorElement, .loadLiteralVector, .pairVector, .loadStoreVector: true
    default: rawValue >= Self.floatToInteger.rawValue
    }
  }
}
