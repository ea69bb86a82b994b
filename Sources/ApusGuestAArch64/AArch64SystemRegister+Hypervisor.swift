import ApusISAAArch64

// EL2's system registers [Arm ARM D19.2], and names that mean other registers where EL2 is a host [D8.1.6].

extension AArch64SystemRegister {
  private static func special2(_ n: UInt16, _ m: UInt16, _ op2: UInt16, writer: UInt8 = 2) -> Self {
    special(4, n, m, op2, reader: 2, writer: writer)
  }

  static var hypervisorRows: [Self] {
    var rows: [Self] = [
      slot(4, 0, 0, 0, .vpidr), slot(4, 0, 0, 5, .vmpidr), slot(4, 1, 0, 1, .actlr2),
      slot(4, 1, 1, 3, .hstr), slot(4, 1, 1, 7, .hacr), slot(4, 2, 1, 0, .vttbr), slot(4, 2, 1, 2, .vtcr),
      slot(4, 4, 0, 0, .spsr2), slot(4, 4, 0, 1, .elr2), slot(4, 4, 1, 0, .spEL1),
      slot(4, 5, 1, 0, .afsr02), slot(4, 5, 1, 1, .afsr12), slot(4, 5, 2, 0, .esr2), slot(4, 6, 0, 0, .far2),
      slot(4, 6, 0, 4, .hpfar), slot(4, 10, 2, 0, .mair2), slot(4, 10, 3, 0, .amair2),
      slot(4, 12, 0, 0, .vbar2, writable: ~0x7ff), slot(4, 13, 0, 2, .tpidr2),
      // HVBAR's like of virtual host extensions: TTBR1_EL2, CONTEXTIDR_EL2.
      slot(4, 13, 0, 1, .contextID2, .pan), special2(2, 0, 1),
      // SCTLR, HCR, MDCR, CPTR, TTBR0, TCR
      special2(1, 0, 0), special2(1, 1, 0), special2(1, 1, 1), special2(1, 1, 2), special2(2, 0, 0),
      special2(2, 0, 2),
      // RVBAR
      special2(12, 0, 1, writer: 4),
      // CNTVOFF, CNTHCTL
      special2(14, 0, 3), special2(14, 1, 0),
      // ICC_SRE; ICH_HCR, VTR, MISR, EISR, ELRSR, VMCR
      special2(12, 9, 5), special2(12, 11, 0), special2(12, 11, 1, writer: 4),
      special2(12, 11, 2, writer: 4), special2(12, 11, 3, writer: 4), special2(12, 11, 5, writer: 4),
      special2(12, 11, 7),
    ]
    for op2 in 0...2 as ClosedRange<UInt16> {
      // CNTHP_TVAL, CTL, CVAL; CNTHV_*
      rows += [special2(14, 2, op2), special2(14, 3, op2)]
    }
    for op2 in 0...7 as ClosedRange<UInt16> {
      // ICH_LR<n>; of ICH_AP0R<n> and ICH_AP1R<n> the first one.
      rows += [special2(12, 12, op2), special2(12, 13, op2)]
    }
    rows += [special2(12, 8, 0), special2(12, 9, 0)]
    return rows
  }
}

extension AArch64SystemKey {
  /// EL1's registers whose names mean EL2's there, by CRn, CRm and op2.
  private static let redirected: Set<AArch64SystemKey> = Set(
    [
      (1, 0, 0), (1, 0, 2), (2, 0, 0), (2, 0, 1), (2, 0, 2), (4, 0, 0), (4, 0, 1), (5, 1, 0), (5, 1, 1),
      (5, 2, 0), (6, 0, 0), (10, 2, 0), (10, 3, 0), (12, 0, 0), (13, 0, 1), (14, 1, 0),
    ].map { AArch64SystemKey(3, 0, $0.0, $0.1, $0.2) })

  /// The register that a name means for a level, `host` saying that EL2 is one; `nil`: the name means none.
  func resolved(level: UInt8, host: Bool) -> AArch64SystemKey? {
    guard op0 == 3 else { return self }
    // CNTP_* and CNTV_*, for the host's processes, too.
    let isTimer = n == 14 && (m == 2 || m == 3) && op2 <= 2
    if op1 == 5 {
      guard level >= 2, host else { return nil }
      if isTimer { return .init(3, 3, n, m, op2) }
      let key = AArch64SystemKey(3, 0, n, m, op2)
      return Self.redirected.contains(key) ? key : nil
    }
    guard host, level < 3 else { return self }
    if op1 == 3, isTimer { return .init(3, 4, n, m, op2) }
    guard level == 2, Self.redirected.contains(self) else { return self }
    // CPACR_EL1 is CPTR_EL2, CNTKCTL_EL1 is CNTHCTL_EL2.
    return n == 1 && op2 == 2 ? .init(3, 4, 1, 1, 2) : .init(3, 4, n, m, op2)
  }
}
