import ApusIR
import ApusISAAArch64

/// What only system emulation keeps in the state, a u64 each, behind the registers that processes see.
public enum AArch64SystemSlot: Int, CaseIterable, Sendable {
  /// PSTATE: the exception level (0 to 3), SP (0 SP_EL0, 1 the level's own), D A I F as bits 9 to 6, PAN as bit 22, UAO as
  /// bit 23, SS as bit 21; when that is clear `step` is the syndrome of the step that was made.
  case exceptionLevel, stackSelect, daif, pan, uao, step
  /// The stack pointers that are not in use.
  case spEL0, spEL1, spEL2, spEL3
  case sctlr, actlr, cpacr, ttbr0, ttbr1, tcr, mair, amair, contextID, vbar, esr, far, afsr0, afsr1, par
  case elr, spsr, tpidr1, csselr
  case cntkctl, cntpControl, cntpCompare, cntvControl, cntvCompare
  case mdscr, osLock, osDoubleLock
  case breakValue0, breakControl0, breakValue1, breakControl1, breakValue2, breakControl2
  case breakValue3, breakControl3, breakValue4, breakControl4, breakValue5, breakControl5
  case watchValue0, watchControl0, watchValue1, watchControl1, watchValue2, watchControl2, watchValue3,
    watchControl3
  /// PSTATE.SSBS and DIT, as bits 12 and 24.
  case statusBits
  /// PSTATE.BTYPE.
  case branchType
  /// Keys of pointer authentication.
  case apiaLow, apiaHigh, apibLow, apibHigh, apdaLow, apdaHigh, apdbLow, apdbHigh, apgaLow, apgaHigh
  // EL2's. HCR_EL2 as it has effect, and as it reads.
  case hcr, hcrWritten, mdcr2, cptr2, hstr, hacr, sctlr2, actlr2, ttbr0EL2, ttbr1EL2, tcr2, vttbr, vtcr,
    mair2, amair2,
    contextID2
  case vbar2, esr2, far2, hpfar, afsr02, afsr12, elr2, spsr2, tpidr2, vpidr, vmpidr
  case cntvOffset, cnthControl, cnthpControl, cnthpCompare, cnthvControl, cnthvCompare
  // EL3's, and the secure timer.
  case scr, sctlr3, actlr3, mdcr3, cptr3, ttbr0EL3, tcr3, mair3, amair3, vbar3, esr3, far3, afsr03, afsr13,
    elr3,
    spsr3, tpidr3
  case cntpsControl, cntpsCompare
  /// ICC_SRE_EL2.Enable, and ICH_HCR_EL2 where its traps are looked for.
  case interfaceEnable, virtualInterface
  /// Levels of the interrupt inputs: bit 0 IRQ, bit 1 FIQ, bits 2 and 3 the virtual ones; bits 4 to 6 HCR_EL2's VI, VF and
  /// VSE; bit 7 GICv3's secure group 1, while bit 0 is the non-secure one. Written by any thread.
  case interruptLines

  public var offset: Int { 1872 + rawValue * 8 }

  static let breakPoints: [(value: Self, control: Self)] = [
    (.breakValue0, .breakControl0), (.breakValue1, .breakControl1), (.breakValue2, .breakControl2),
    (.breakValue3, .breakControl3), (.breakValue4, .breakControl4), (.breakValue5, .breakControl5),
  ]
  /// From this one on they can compare contexts (ID_AA64DFR0_EL1.CTX_CMPs).
  static let firstContextPoint = 4
  static let watchPoints: [(value: Self, control: Self)] = [
    (.watchValue0, .watchControl0), (.watchValue1, .watchControl1), (.watchValue2, .watchControl2),
    (.watchValue3, .watchControl3),
  ]
}

extension AArch64State {
  @inlinable
  public subscript(_ slot: AArch64SystemSlot) -> UInt64 {
    get { base.load(fromByteOffset: 1872 + slot.rawValue * 8, as: UInt64.self) }
    nonmutating set {
      base.storeBytes(of: newValue, toByteOffset: 1872 + slot.rawValue * 8, as: UInt64.self)
    }
  }
}

/// A system register's encoding: op0, op1, CRn, CRm and op2, as in bits 20 to 5 of `mrs` and `msr`.
struct AArch64SystemKey: Hashable, Sendable {
  var rawValue: UInt16
  init(rawValue: UInt16) { self.rawValue = rawValue }
  init(_ op0: UInt16, _ op1: UInt16, _ n: UInt16, _ m: UInt16, _ op2: UInt16) {
    rawValue = op0 << 14 | op1 << 11 | n << 7 | m << 3 | op2
  }
  var op0: UInt16 { rawValue >> 14 }
  var op1: UInt16 { rawValue >> 11 & 7 }
  var n: UInt16 { rawValue >> 7 & 15 }
  var m: UInt16 { rawValue >> 3 & 15 }
  var op2: UInt16 { rawValue & 7 }
}

/// A system register [Arm ARM D19]; EL2's are in `hypervisorRows`, EL3's in `monitorRows`.
struct AArch64SystemRegister: Sendable {
  enum Kind: Sendable {
    /// Plain state: reads and writes are inline.
    case slot(AArch64SystemSlot, writable: UInt64)
    /// Plain state that what is translated depends on: reads are inline, writes are `writeSystem`'s.
    case guarded(AArch64SystemSlot, writable: UInt64)
    /// The translator or `AArch64CPU.readSystem` and `writeSystem` know it.
    case special
    case zero
  }
  let key: AArch64SystemKey
  let kind: Kind
  /// The lowest levels that may read and write it; 4: none.
  let reader: UInt8
  let writer: UInt8
  /// What it belongs to.
  var feature = AArch64Feature.base

  /// op1 4 is EL2's, 6 EL3's.
  static func slot(
    _ op1: UInt16, _ n: UInt16, _ m: UInt16, _ op2: UInt16, _ slot: AArch64SystemSlot,
    _ feature: AArch64Feature = .base, writable: UInt64 = .max, op0: UInt16 = 3
  ) -> Self {
    let level: UInt8 = op1 == 4 ? 2 : op1 == 6 ? 3 : 1
    return .init(
      key: .init(op0, op1, n, m, op2), kind: .slot(slot, writable: writable), reader: level, writer: level,
      feature: feature)
  }
  static func special(
    _ op1: UInt16, _ n: UInt16, _ m: UInt16, _ op2: UInt16, reader: UInt8 = 1, writer: UInt8 = 1,
    op0: UInt16 = 3
  ) -> Self {
    .init(key: .init(op0, op1, n, m, op2), kind: .special, reader: reader, writer: writer)
  }

  /// A debug register [D19.3].
  private static func guarded(
    _ n: UInt16, _ m: UInt16, _ op2: UInt16, _ slot: AArch64SystemSlot, writable: UInt64
  ) -> Self {
    .init(key: .init(2, 0, n, m, op2), kind: .guarded(slot, writable: writable), reader: 1, writer: 1)
  }

  /// By encoding.
  static let table: [AArch64SystemKey: AArch64SystemRegister] = Dictionary(
    uniqueKeysWithValues: all.map { ($0.key, $0) })

  /// The register that a CPU with `features` has.
  static func named(_ key: AArch64SystemKey, _ features: AArch64FeatureSet) -> Self? {
    if let row = table[key] { return features.contains(row.feature) ? row : nil }
    guard key.n == 15 || key.n == 11, (features.hasPAN ? laterCoreKeys : firstCoreKeys).contains(key),
      !features.hasLargeAddresses
    else { return nil }
    return .init(key: key, kind: .zero, reader: 1, writer: 1)
  }
  /// What firmware sets in Cortex-A53, A57 and A72: L2CTLR, L2ECTLR, L2ACTLR, CPUACTLR, CPUECTLR, CPUMERRSR, L2MERRSR, CBAR.
  private static let firstCoreKeys: Set<AArch64SystemKey> = [
    .init(3, 1, 11, 0, 2), .init(3, 1, 11, 0, 3), .init(3, 1, 15, 0, 0), .init(3, 1, 15, 2, 0),
    .init(3, 1, 15, 2, 1), .init(3, 1, 15, 2, 2), .init(3, 1, 15, 2, 3), .init(3, 1, 15, 3, 0),
  ]
  /// In Cortex-A76 and Neoverse N1: CPUCFR, CPUACTLR, CPUACTLR2, CPUACTLR3, CPUECTLR, CPUPWRCTLR; the patch registers.
  private static let laterCoreKeys: Set<AArch64SystemKey> = [
    .init(3, 0, 15, 0, 0), .init(3, 0, 15, 1, 0), .init(3, 0, 15, 1, 1), .init(3, 0, 15, 1, 2),
    .init(3, 0, 15, 1, 4), .init(3, 0, 15, 2, 7), .init(3, 6, 15, 8, 0), .init(3, 6, 15, 8, 1),
    .init(3, 6, 15, 8, 2), .init(3, 6, 15, 8, 3),
  ]

  private static var all: [Self] {
    var rows: [Self] = [
      slot(0, 1, 0, 1, .actlr), slot(0, 5, 1, 0, .afsr0), slot(0, 5, 1, 1, .afsr1),
      slot(0, 5, 2, 0, .esr), slot(0, 6, 0, 0, .far), slot(0, 7, 4, 0, .par),
      slot(0, 10, 2, 0, .mair), slot(0, 10, 3, 0, .amair), slot(0, 12, 0, 0, .vbar, writable: ~0x7ff),
      slot(0, 13, 0, 1, .contextID), slot(0, 13, 0, 4, .tpidr1),
      slot(0, 4, 0, 0, .spsr), slot(0, 4, 0, 1, .elr),
      slot(2, 0, 0, 0, .csselr, writable: 15),
      // MDSCR_EL1, OSDLR_EL1
      guarded(0, 2, 2, .mdscr, writable: 0xa001), guarded(1, 3, 4, .osDoubleLock, writable: 1),
      slot(0, 2, 1, 0, .apiaLow, .pauth), slot(0, 2, 1, 1, .apiaHigh, .pauth),
      slot(0, 2, 1, 2, .apibLow, .pauth), slot(0, 2, 1, 3, .apibHigh, .pauth),
      slot(0, 2, 2, 0, .apdaLow, .pauth), slot(0, 2, 2, 1, .apdaHigh, .pauth),
      slot(0, 2, 2, 2, .apdbLow, .pauth), slot(0, 2, 2, 3, .apdbHigh, .pauth),
      slot(0, 2, 3, 0, .apgaLow, .pauth), slot(0, 2, 3, 1, .apgaHigh, .pauth),
      special(0, 1, 0, 4, reader: 4, op0: 2), special(0, 1, 1, 4, writer: 4, op0: 2),  // OSLAR, OSLSR
      .init(key: .init(2, 3, 0, 1, 0), kind: .zero, reader: 0, writer: 4),  // MDCCSR_EL0
      .init(key: .init(2, 0, 1, 0, 0), kind: .zero, reader: 1, writer: 4),  // MDRAR_EL1
      // SCTLR, CPACR, TTBR0, TTBR1, TCR
      special(0, 1, 0, 0), special(0, 1, 0, 2), special(0, 2, 0, 0), special(0, 2, 0, 1), special(0, 2, 0, 2),
      // SP_EL0, SPSel, CurrentEL, PAN, DAIF
      special(0, 4, 1, 0), special(0, 4, 2, 0), special(0, 4, 2, 2, writer: 4), special(0, 4, 2, 3),
      special(3, 4, 2, 1, reader: 0, writer: 0),
      // UAO, CNTKCTL
      special(0, 4, 2, 4), special(0, 14, 1, 0),
      // ISR, RVBAR, CCSIDR, CLIDR, AIDR
      special(0, 12, 1, 0, writer: 4), special(0, 12, 0, 1, writer: 4), special(1, 0, 0, 0, writer: 4),
      special(1, 0, 0, 1, writer: 4), special(1, 0, 0, 7, writer: 4),
      // MIDR, MPIDR, REVIDR
      special(0, 0, 0, 0, writer: 4), special(0, 0, 0, 5, writer: 4), special(0, 0, 0, 6, writer: 4),
    ]
    // CNTP_TVAL, CTL, CVAL; CNTV_*
    for op2 in 0...2 as ClosedRange<UInt16> {
      rows += [special(3, 14, 2, op2, reader: 0, writer: 0), special(3, 14, 3, op2, reader: 0, writer: 0)]
    }
    // Of external debug nothing is there: OSDTRRX, MDCCINT, OSDTRTX, OSECCR, DBGPRCR, DBGCLAIMSET and CLR, DBGDTR and
    // DBGDTRRX; what only reads is DBGAUTHSTATUS.
    for (op1, n, m, op2) in [
      (0, 0, 0, 2), (0, 0, 2, 0), (0, 0, 3, 2), (0, 0, 6, 2), (0, 1, 4, 4), (0, 7, 8, 6), (0, 7, 9, 6),
      (3, 0, 4, 0),
      (3, 0, 5, 0),
    ] as [(UInt16, UInt16, UInt16, UInt16)] {
      rows.append(.init(key: .init(2, op1, n, m, op2), kind: .zero, reader: 1, writer: 1))
    }
    rows.append(.init(key: .init(2, 0, 7, 14, 6), kind: .zero, reader: 1, writer: 4))
    // Feature registers; those that are not there read as zero [D19.2].
    for m in 1...7 as ClosedRange<UInt16> {
      for op2 in 0...7 as ClosedRange<UInt16> { rows.append(special(0, 0, m, op2, writer: 4)) }
    }
    // DBGBVR, DBGBCR, DBGWVR and DBGWCR.
    for (number, point) in AArch64SystemSlot.breakPoints.enumerated() {
      let hasContext = number >= AArch64SystemSlot.firstContextPoint
      rows.append(guarded(0, UInt16(number), 4, point.value, writable: hasContext ? .max : ~3))
      rows.append(guarded(0, UInt16(number), 5, point.control, writable: hasContext ? 0xff_e1e7 : 0x1f_e1e7))
    }
    for (number, point) in AArch64SystemSlot.watchPoints.enumerated() {
      rows.append(guarded(0, UInt16(number), 6, point.value, writable: ~3))
      rows.append(guarded(0, UInt16(number), 7, point.control, writable: 0x1f1f_ffff))
    }
    // The performance monitors'.
    for op2 in 0...7 as ClosedRange<UInt16> { rows.append(special(3, 9, 12, op2, reader: 0, writer: 0)) }
    for op2 in 0...2 as ClosedRange<UInt16> { rows.append(special(3, 9, 13, op2, reader: 0, writer: 0)) }
    for op2 in [0, 3] as [UInt16] { rows.append(special(3, 9, 14, op2, reader: 0, writer: 0)) }
    for op2 in [1, 2] as [UInt16] { rows.append(special(0, 9, 14, op2)) }
    for m in 8...15 as ClosedRange<UInt16> {
      for op2 in 0...7 as ClosedRange<UInt16> { rows.append(special(3, 14, m, op2, reader: 0, writer: 0)) }
    }
    // The interrupt controller's: ICC_*.
    rows += [special(0, 4, 6, 0)]
    for op2 in 0...7 as ClosedRange<UInt16> {
      rows += [
        special(0, 12, 8, op2), special(0, 12, 9, op2), special(0, 12, 11, op2), special(0, 12, 12, op2),
      ]
    }
    return rows + hypervisorRows + monitorRows
  }
}
