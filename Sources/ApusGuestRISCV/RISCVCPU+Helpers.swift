import ApusFloat
import ApusGuest
import ApusISARISCV

extension RISCVCPU {
  /// Bytes in a cache block, for `cbo.*`; the device tree says the same.
  public static let cacheBlockByteCount: UInt64 = 64

  /// cbo.inval, .clean, .flush, .zero [RV-CMO 3].
  func cacheBlock(word: UInt64, address: UInt64) {
    let operation = word >> 20
    // CBIE bits 5:4, CBCFE bit 6, CBZE bit 7 of menvcfg and senvcfg.
    func isEnabled(_ environment: UInt64) -> Bool {
      switch operation {
      case 0: environment >> 4 & 3 != 0
      case 1, 2: environment >> 6 & 1 != 0
      default: environment >> 7 & 1 != 0
      }
    }
    if userHooks == nil,
      privilege < 3 && !isEnabled(s[.menvcfg]) || privilege == 0 && !isEnabled(s[.senvcfg])
    {
      return trap(RISCVCause.illegalInstruction, value: word, pc: s.pc)
    }
    let block = address & ~(Self.cacheBlockByteCount - 1)
    if operation == 4 {
      for offset in stride(from: UInt64(0), to: Self.cacheBlockByteCount, by: 8) {
        guard storeGuest(block &+ offset, 0, faultAddress: address) else { return }
      }
      return
    }
    // Management needs permission to load or to store; a fault counts as a store's.
    let context = Int(s.mode.context)
    if case .page = translateAddress(block, .load, context: context) { return }
    if case .fault(let cause) = translateAddress(block, .store, context: context) {
      trap(cause, value: address, pc: s.pc)
    }
  }

  /// Stores 8 aligned bytes; on a fault takes the exception and returns false.
  private func storeGuest(_ address: UInt64, _ value: UInt64, faultAddress: UInt64) -> Bool {
    switch engine.storeGuest(address, value, context: Int(s.mode.context)) {
    case .none: return true
    case .some(let cause):
      trap(cause, value: faultAddress, pc: s.pc)
      return false
    }
  }

  /// amocas.q: rd and rs2 name even register pairs, x0 reads as zero in both halves [RV-Unpriv 16].
  func compareExchangeQuad(address: UInt64, word: UInt64) {
    let rd = Int(word >> 7 & 31)
    let rs2 = Int(word >> 20 & 31)
    func pair(_ number: Int) -> (UInt64, UInt64) { number == 0 ? (0, 0) : (s[x: number], s[x: number + 1]) }
    guard address & 15 == 0 else { return trap(RISCVCause.storeMisaligned, value: address, pc: s.pc) }
    var expected = pair(rd)
    switch engine.compareExchange128(address, &expected, pair(rs2), context: Int(s.mode.context)) {
    case .some(let cause): trap(cause, value: address, pc: s.pc)
    case .none:
      if rd != 0 {
        s[x: rd] = expected.0
        s[x: rd + 1] = expected.1
      }
    }
  }

  // MARK: Floating point in software

  /// A register's value in a format (the encoding's field: 0 single, 1 double, 2 half), unboxed.
  static func unbox(_ value: UInt64, _ field: UInt32) -> (UInt64, FloatFormat) {
    switch field {
    case 1: return (value, .double)
    case 0: return (value >> 32 == 0xffff_ffff ? value & 0xffff_ffff : FloatFormat.single.defaultNaN, .single)
    default:
      return (value >> 16 == 0xffff_ffff_ffff ? value & 0xffff : FloatFormat.half.defaultNaN, .half)
    }
  }

  /// Carries out one floating-point instruction in soft float: half precision, and what the host's unit cannot
  /// do (rounding modes other than the one in force).
  func executeFloat(_ word: UInt32, _ rounding: FloatRounding) {
    let i = RISCVDecoder.shared.decode(word, extensions)
    var soft = SoftFloat(rounding)
    let field = word >> 25 & 3
    let format: FloatFormat = field == 0 ? .single : field == 1 ? .double : .half
    func source(_ number: UInt8, _ sourceField: UInt32? = nil) -> UInt64 {
      Self.unbox(s[f: Int(number)], sourceField ?? field).0
    }
    let a = source(i.rs1)
    func setF(_ value: UInt64) { s[f: Int(i.rd)] = value | ~format.mask }
    func setX(_ value: UInt64) { if i.rd != 0 { s[x: Int(i.rd)] = value } }
    func fused(_ negateProduct: Bool, _ negateAddend: Bool) {
      setF(
        soft.multiplyAdd(
          a, source(i.rs2), source(i.rs3), format, negateProduct: negateProduct, negateAddend: negateAddend))
    }
    func sign(_ bit: UInt64) { setF(a & ~format.signMask & format.mask | bit & format.signMask) }
    func word32(_ value: UInt64) -> UInt64 { UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value))) }
    let x = i.rs1 == 0 ? 0 : s[x: Int(i.rs1)]

    switch i.opcode {
    case .faddS, .faddD, .faddH: setF(soft.add(a, source(i.rs2), format))
    case .fsubS, .fsubD, .fsubH: setF(soft.subtract(a, source(i.rs2), format))
    case .fmulS, .fmulD, .fmulH: setF(soft.multiply(a, source(i.rs2), format))
    case .fdivS, .fdivD, .fdivH: setF(soft.divide(a, source(i.rs2), format))
    case .fsqrtS, .fsqrtD, .fsqrtH: setF(soft.squareRoot(a, format))
    case .fmaddS, .fmaddD, .fmaddH: fused(false, false)
    case .fmsubS, .fmsubD, .fmsubH: fused(false, true)
    case .fnmsubS, .fnmsubD, .fnmsubH: fused(true, false)
    case .fnmaddS, .fnmaddD, .fnmaddH: fused(true, true)
    case .fsgnjS, .fsgnjD, .fsgnjH: sign(source(i.rs2))
    case .fsgnjnS, .fsgnjnD, .fsgnjnH: sign(~source(i.rs2))
    case .fsgnjxS, .fsgnjxD, .fsgnjxH: sign(a ^ source(i.rs2))
    case .fminS, .fminD, .fminH: setF(soft.minimum(a, source(i.rs2), format, isMaximum: false))
    case .fmaxS, .fmaxD, .fmaxH: setF(soft.minimum(a, source(i.rs2), format, isMaximum: true))
    case .feqS, .feqD, .feqH: setX(soft.equal(a, source(i.rs2), format) ? 1 : 0)
    case .fltS, .fltD, .fltH: setX(soft.less(a, source(i.rs2), format, orEqual: false) ? 1 : 0)
    case .fleS, .fleD, .fleH: setX(soft.less(a, source(i.rs2), format, orEqual: true) ? 1 : 0)
    case .fcvtWS, .fcvtWD, .fcvtWH: setX(word32(soft.toInteger(a, format, width: 32, isSigned: true)))
    case .fcvtWuS, .fcvtWuD, .fcvtWuH: setX(word32(soft.toInteger(a, format, width: 32, isSigned: false)))
    case .fcvtLS, .fcvtLD, .fcvtLH: setX(soft.toInteger(a, format, width: 64, isSigned: true))
    case .fcvtLuS, .fcvtLuD, .fcvtLuH: setX(soft.toInteger(a, format, width: 64, isSigned: false))
    case .fcvtSW, .fcvtDW, .fcvtHW: setF(soft.fromInteger(word32(x), isSigned: true, format))
    case .fcvtSWu, .fcvtDWu, .fcvtHWu: setF(soft.fromInteger(x & 0xffff_ffff, isSigned: false, format))
    case .fcvtSL, .fcvtDL, .fcvtHL: setF(soft.fromInteger(x, isSigned: true, format))
    case .fcvtSLu, .fcvtDLu, .fcvtHLu: setF(soft.fromInteger(x, isSigned: false, format))
    case .fcvtSD: setF(soft.convert(source(i.rs1, 1), from: .double, to: format))
    case .fcvtDS: setF(soft.convert(source(i.rs1, 0), from: .single, to: format))
    case .fcvtSH, .fcvtDH: setF(soft.convert(source(i.rs1, 2), from: .half, to: format))
    case .fcvtHS: setF(soft.convert(source(i.rs1, 0), from: .single, to: format))
    case .fcvtHD: setF(soft.convert(source(i.rs1, 1), from: .double, to: format))
    default: preconditionFailure("not a floating-point instruction")
    }
    s.raiseFloatFlags(soft.flags)
  }
}
