/// The operation of an instruction: the case is the mnemonic, or the class where a class has one row.
public enum AArch64Opcode: UInt8, CaseIterable, Sendable {
  /// No row matches, or its feature is off.
  case undefined
  case adr, adrp, addImmediate, addsImmediate, subImmediate, subsImmediate, andImmediate, orrImmediate
  case eorImmediate, andsImmediate, movn, movz, movk, sbfm, bfm, ubfm, extr, bCond, svc, hvc, smc, eret,
    msrImmediate, brk, hlt, hint, clrex
  case barrier, isb, sys, msr, mrs, br, blr, ret, b, bl, cbz, cbnz, tbz, tbnz, vectorStructures
  case vectorElement, stxr, ldxr, stxp, ldxp, casp, cas, stlr, ldar, loadLiteral, loadLiteralVector, pair
  case pairVector, ldapr, atomicMemory, loadStore, loadStoreVector, and, bic, orr, orn, eor, eon, ands
  case bics, add, adds, sub, subs, addExtended, addsExtended, subExtended, subsExtended, adc, adcs, sbc
  case sbcs, ccmn, ccmp, csel, csinc, csinv, csneg, udiv, sdiv, lslv, lsrv, asrv, rorv, crc32, rbit
  case rev16, rev, rev32, clz, cls, madd, msub, smaddl, smsubl, umaddl, umsubl, smulh, umulh
  case cfinv, xaflag, axflag, rmif, setf, sb, unscaledOrdered
  case pointerAuthentication, stripAuthentication, pacga, brAuthenticated, blrAuthenticated, retAuthenticated
  case eretAuthenticated, loadAuthenticated, addTag, irg, gmi, subp, ldg, storeTag, stgp
  case floatToInteger, integerToFloat, fmovToGeneral, fmovFromGeneral, fixedToFloat, floatToFixed, fmov
  case fabs, fneg, fsqrt, fcvt, frint, fcmp, fmovImmediate, fccmp, fmul, fdiv, fadd, fsub, fmax, fmin
  case fmaxnm, fminnm, fnmul, fcsel, fused, vectorImmediate, vectorMiscellaneous, vectorAcross
  case vectorThreeSame, vectorThreeDifferent, vectorCopy, vectorShift, vectorPermute, vectorExtract
  case vectorTable, vectorIndexed, scalarMiscellaneous, scalarPairwise, scalarThreeSame
  case scalarThreeDifferent, scalarCopy, scalarShift, scalarIndexed
  case fjcvtzs, aese, aesd, aesmc, aesimc, pmull64, sha1c, sha1p, sha1m, sha1su0, sha256h, sha256h2, sha256su1
  case sha1h, sha1su1, sha256su0, sha512h, sha512h2, sha512su1, sha512su0, rax1, eor3, bcax, xar
  case sm3ss1, sm3tt1a, sm3tt1b, sm3tt2a, sm3tt2b, sm3partw1, sm3partw2, sm4ekey, sm4e
  case sqrdmlah, sqrdmlsh, sqrdmlahIndexed, sqrdmlshIndexed, dot, dotIndexed, matrixMultiply
  case bfdot, bfdotIndexed, bfmmla, bfmlal, bfmlalIndexed, bfcvtn, bfcvt, fcmla, fcadd, fcmlaIndexed
  case fmlal, fmlalIndexed, frintts, vectorFrintts
  case halfFloat, halfToGeneral, halfFromGeneral, halfCompare, halfImmediate, halfSelect, halfVector
  case halfVectorImmediate

  /// What CPACR_EL1 can forbid: floating point and Advanced SIMD, their loads and stores included.
  public var usesVectorRegisters: Bool {
    switch self {
    case .vectorStructures, .vectorElement, .loadLiteralVector, .pairVector, .loadStoreVector: true
    default: rawValue >= Self.floatToInteger.rawValue
    }
  }
}
