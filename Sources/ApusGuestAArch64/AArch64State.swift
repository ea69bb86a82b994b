import ApusFloat
import ApusIR
import ApusISAAArch64

/// An AArch64 CPU's state as a view of raw memory; generated code uses the same offsets.
///
/// ```
///    0  x0 .. x30, sp       1024  v0 .. v31, 16 bytes each      1536  fields, a u64 each, in the order below
/// 1792  five vectors for what lies between operations       1872  `AArch64SystemSlot`s
/// ```
public struct AArch64State: @unchecked Sendable {
  // SAFETY: base points at StateHeader.byteCount bytes that outlive this view.
  public let base: UnsafeMutableRawPointer
  public init(_ base: UnsafeMutableRawPointer) { self.base = base }

  /// 31 is the stack pointer; the zero register has no place.
  public static func x(_ number: Int) -> Int { number * 8 }
  /// The lower half; the upper one follows.
  public static func v(_ number: Int) -> Int { 1024 + number * 16 }
  static let scratch = 1792

  public enum Field: Int, CaseIterable, Sendable {
    /// The condition flags as `IRPackedFlags`; `nzcv` has them as the manual does.
    case packedFlags
    case fpcr
    /// FPSR's IDC, in its place; the other flags are the state header's.
    case inputDenormal
    case tpidr, tpidrro
    /// The upper half of an exclusive pair.
    case monitorHigh
    public var offset: Int { 1536 + rawValue * 8 }
  }

  @inlinable
  public subscript(_ field: Field) -> UInt64 {
    get { base.load(fromByteOffset: 1536 + field.rawValue * 8, as: UInt64.self) }
    nonmutating set {
      base.storeBytes(of: newValue, toByteOffset: 1536 + field.rawValue * 8, as: UInt64.self)
    }
  }
  /// N 31, Z 30, C 29, V 28.
  public var nzcv: UInt64 {
    get { Self.nzcv(packed: self[.packedFlags]) }
    nonmutating set { self[.packedFlags] = Self.packed(nzcv: newValue) }
  }
  static func nzcv(packed: UInt64) -> UInt64 {
    (packed & (IRPackedFlags.negative | IRPackedFlags.zero)) << 16 | (packed & IRPackedFlags.carry) << 21
      | (packed & IRPackedFlags.overflow) << 28
  }
  static func packed(nzcv: UInt64) -> UInt64 {
    nzcv >> 16 & (IRPackedFlags.negative | IRPackedFlags.zero) | nzcv >> 21 & IRPackedFlags.carry
      | nzcv >> 28 & IRPackedFlags.overflow
  }
  /// x0 to x30; 31 is the stack pointer.
  @inlinable
  public subscript(x number: Int) -> UInt64 {
    get { base.load(fromByteOffset: number * 8, as: UInt64.self) }
    nonmutating set { base.storeBytes(of: newValue, toByteOffset: number * 8, as: UInt64.self) }
  }
  @inlinable
  public subscript(v number: Int) -> AArch64Vector {
    get { base.load(fromByteOffset: 1024 + number * 16, as: AArch64Vector.self) }
    nonmutating set {
      base.storeBytes(of: newValue, toByteOffset: 1024 + number * 16, as: AArch64Vector.self)
    }
  }
  public var pc: UInt64 {
    get { base.load(fromByteOffset: StateHeader.pc, as: UInt64.self) }
    nonmutating set { base.storeBytes(of: newValue, toByteOffset: StateHeader.pc, as: UInt64.self) }
  }
  public var mode: AArch64Mode {
    get { AArch64Mode(rawValue: base.load(fromByteOffset: StateHeader.mode, as: UInt32.self)) }
    nonmutating set {
      base.storeBytes(of: newValue.rawValue, toByteOffset: StateHeader.mode, as: UInt32.self)
    }
  }
  /// Asks generated code to go to the dispatcher after the current helper.
  public func requestDispatch() {
    base.storeBytes(of: 1, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
  }

  /// FPSR's QC.
  var isSaturated: Bool {
    get { base.load(fromByteOffset: StateHeader.saturation, as: UInt32.self) != 0 }
    nonmutating set {
      base.storeBytes(of: newValue ? 1 : 0, toByteOffset: StateHeader.saturation, as: UInt32.self)
    }
  }
  /// FPSR: QC 27; IDC 7; IXC 4, UFC 3, OFC 2, DZC 1, IOC 0.
  public var fpsr: UInt64 {
    get {
      let soft = base.load(fromByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
      let host = base.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
      return Self.fpsr(fromIEEE: UInt64((soft | StateHeader.floatFlags(mxcsr: host)) & 31))
        | self[.inputDenormal] | (isSaturated ? 1 << 27 : 0)
    }
    nonmutating set {
      self[.inputDenormal] = newValue & 1 << 7
      isSaturated = newValue >> 27 & 1 != 0
      base.storeBytes(
        of: UInt32(Self.fpsr(fromIEEE: newValue & 31)), toByteOffset: StateHeader.softFloatFlags,
        as: UInt32.self)
      let host = base.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
      base.storeBytes(of: host & ~0x3f, toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    }
  }
  /// RISC-V's flags (NX 1, UF 2, OF 4, DZ 8, NV 16) as FPSR's (IOC 1, DZC 2, OFC 4, UFC 8, IXC 16); its own inverse.
  static func fpsr(fromIEEE flags: UInt64) -> UInt64 {
    flags >> 4 & 1 | (flags >> 3 & 1) << 1 | (flags >> 2 & 1) << 2 | (flags >> 1 & 1) << 3 | (flags & 1) << 4
  }
  func raiseFloatFlags(_ flags: UInt8) {
    let soft = base.load(fromByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
    base.storeBytes(of: soft | UInt32(flags), toByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
  }
}

/// FPCR [Arm ARM C5.2.8].
public enum FPCR {
  public static let defaultNaN: UInt64 = 1 << 25
  static let flush: UInt64 = 1 << 24
  /// FZ16, which half precision has.
  static let flushHalf: UInt64 = 1 << 19
  /// NEP, AH and FIZ, which FEAT_AFP has.
  static let merge: UInt64 = 1 << 2
  static let alternate: UInt64 = 1 << 1
  static let flushInputs: UInt64 = 1 << 0
  /// What may be written: AHP, DN, FZ, RMode. Traps and short vectors are not implemented.
  static func writable(_ features: AArch64FeatureSet) -> UInt64 {
    1 << 26 | defaultNaN | flush | 3 << 22 | (features.contains(.fp16) ? flushHalf : 0)
      | (features.contains(.afp) ? merge | alternate | flushInputs : 0)
  }
  static func rounding(_ value: UInt64) -> FloatRounding {
    [.nearestEven, .up, .down, .towardZero][Int(value >> 22 & 3)]
  }
}

/// What translated code depends on besides the bytes: the key of a block. Bit 20: the process has guarded pages; bit 21:
/// PSTATE.BTYPE is not 0; bit 22: EL1's contexts are those of the other upper table.
///
/// ```
///  19    18      17     16        15
/// | UAO | traps | host | context | level |
///  14             13            12 11  10            9       8        7      6             3 2     1 0
/// | kernel debug | break points | step | float traps | level | system | soft | default NaN | RMode | context |
/// ```
/// Contexts of EL1&0: 0 EL0, 1 EL1, 2 EL1 without PAN; of EL2: 4; of EL2&0: 3 EL2, 4 EL2 without PAN, 5 EL0; 6 and 7: as 3
/// and 4, where EL2 traps floating point, which it does around a virtual machine's turn; of EL3, which the level says: 8. The
/// upper bits of level and context are bits 15 and 16. EL1 has contexts for two upper tables, so that a kernel whose exceptions
/// come to tables of their own (Linux's KPTI) finds the entries of each again: 9 and 10 are 1 and 2 with the other one.
/// What EL1 accesses as EL0 has contexts 11 and 12, because its address space identifier may not be the one that EL0 has.
public struct AArch64Mode: Hashable, Sendable {
  public var rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// - Parameter fpcr: rounding and the default NaN are part of the key; with FZ, NEP, AH or FIZ all runs in soft float.
  public init(context: UInt32, fpcr: UInt64) {
    rawValue =
      context | UInt32(fpcr >> 22 & 3) << 2 | (fpcr & FPCR.defaultNaN != 0 ? 1 << 6 : 0)
      | (fpcr & (FPCR.flush | FPCR.merge | FPCR.alternate | FPCR.flushInputs) != 0 ? 1 << 7 : 0)
  }
  /// For system emulation.
  /// - Parameters:
  ///   - level: 0 to 3.
  ///   - trapsFloat: CPACR_EL1, CPTR_EL2 or CPTR_EL3 keeps this level from floating point.
  init(level: UInt32, context: UInt32, trapsFloat: Bool) {
    rawValue = 1 << 8 | (level & 1) << 9 | (level >> 1) << 15 | (trapsFloat ? 1 << 10 : 0)
    setContext(context)
  }
  mutating func setContext(_ context: UInt32) {
    rawValue = rawValue & ~(3 | 1 << 16) | context & 3 | (context >> 2 & 1) << 16
  }
  private func bit(_ number: UInt32) -> Bool { rawValue >> number & 1 != 0 }
  private mutating func setBit(_ number: UInt32, _ value: Bool) {
    rawValue = rawValue & ~(1 << number) | (value ? 1 << number : 0)
  }
  /// HCR_EL2.E2H at EL2 and EL3, with TGE at EL0: names of EL1's registers mean EL2's, and names of EL12's anything.
  var isHost: Bool {
    get { bit(17) }
    set { setBit(17, newValue) }
  }
  /// System instructions may be trapped by a control register: each asks.
  var checksTraps: Bool {
    get { bit(18) }
    set { setBit(18, newValue) }
  }
  /// PSTATE.UAO: unprivileged accesses are as others.
  var overridesUserAccess: Bool {
    get { bit(19) }
    set { setBit(19, newValue) }
  }
  /// The context of ldtr and sttr; for hosts that is EL0's, whether or not HCR_EL2.TGE is set.
  var unprivilegedContext: UInt8 {
    switch level {
    case _ where overridesUserAccess: context
    case 1: hasOtherTable ? 12 : 11
    case 2: isHost ? 5 : context
    default: context
    }
  }
  /// A single step: none, to be made, made.
  enum Step: UInt32 { case none, active, pending }
  var step: Step {
    get { Step(rawValue: rawValue >> 11 & 3) ?? .none }
    set { rawValue = rawValue & ~(3 << 11) | newValue.rawValue << 11 }
  }
  /// Each instruction may hit a break point.
  var checksBreakPoints: Bool {
    get { rawValue >> 13 & 1 != 0 }
    set { rawValue = rawValue & ~(1 << 13) | (newValue ? 1 << 13 : 0) }
  }
  /// EL1 may take its own debug exceptions: PSTATE.D matters.
  var hasKernelDebug: Bool {
    get { rawValue >> 14 & 1 != 0 }
    set { rawValue = rawValue & ~(1 << 14) | (newValue ? 1 << 14 : 0) }
  }
  /// A process has guarded pages.
  var checksBranchTargets: Bool {
    get { bit(20) }
    set { setBit(20, newValue) }
  }
  /// The last branch is still to be checked.
  var hasBranchType: Bool {
    get { bit(21) }
    set { setBit(21, newValue) }
  }
  /// EL1: the upper table is the other one of two.
  var hasOtherTable: Bool {
    get { bit(22) }
    set { setBit(22, newValue) }
  }
  public var context: UInt8 {
    level == 3 ? 8 : UInt8(rawValue & 3 | (rawValue >> 16 & 1) << 2 | (rawValue >> 22 & 1) << 3)
  }
  var isSystem: Bool { rawValue >> 8 & 1 != 0 }
  /// 0 to 3; 0 in user-mode emulation.
  var level: UInt8 { UInt8(rawValue >> 9 & 1 | (rawValue >> 15 & 1) << 1) }
  var trapsFloat: Bool { rawValue >> 10 & 1 != 0 }
  var rounding: IRRounding { [.nearestEven, .up, .down, .towardZero][Int(rawValue >> 2 & 3)] }
  var isDefaultNaN: Bool { rawValue >> 6 & 1 != 0 }
  /// FPCR wants what the host does not have: every operation is a helper's.
  var needsSoftFloat: Bool { rawValue >> 7 & 1 != 0 }
}
