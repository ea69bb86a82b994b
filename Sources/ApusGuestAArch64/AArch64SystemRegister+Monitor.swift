import ApusISAAArch64

// EL3's system registers [Arm ARM D19.2].

extension AArch64SystemRegister {
  private static func special3(_ n: UInt16, _ m: UInt16, _ op2: UInt16, writer: UInt8 = 3) -> Self {
    special(6, n, m, op2, reader: 3, writer: writer)
  }

  static var monitorRows: [Self] {
    var rows: [Self] = [
      slot(6, 1, 0, 1, .actlr3), slot(6, 4, 0, 0, .spsr3), slot(6, 4, 0, 1, .elr3), slot(6, 4, 1, 0, .spEL2),
      slot(6, 5, 1, 0, .afsr03), slot(6, 5, 1, 1, .afsr13), slot(6, 5, 2, 0, .esr3), slot(6, 6, 0, 0, .far3),
      slot(6, 10, 2, 0, .mair3), slot(6, 10, 3, 0, .amair3), slot(6, 12, 0, 0, .vbar3, writable: ~0x7ff),
      slot(6, 13, 0, 2, .tpidr3),
      // SCTLR, SCR, CPTR, MDCR, TTBR0, TCR
      special3(1, 0, 0), special3(1, 1, 0), special3(1, 1, 2), special3(1, 3, 1), special3(2, 0, 0),
      special3(2, 0, 2),
      // RVBAR
      special3(12, 0, 1, writer: 4),
      // ICC_CTLR, ICC_SRE, ICC_IGRPEN1
      special3(12, 12, 4), special3(12, 12, 5), special3(12, 12, 7),
    ]
    // CNTPS_TVAL, CTL, CVAL: also the secure EL1's.
    for op2 in 0...2 as ClosedRange<UInt16> { rows.append(special(7, 14, 2, op2)) }
    return rows
  }
}

extension AArch64SystemKey {
  /// ICC_* of EL1.
  var isInterruptInterface: Bool {
    op0 == 3 && op1 == 0 && (n == 12 && (8...12).contains(m) || n == 4 && m == 6)
  }
  /// CNTPS_*_EL1.
  var isSecureTimer: Bool { op0 == 3 && op1 == 7 && n == 14 && m == 2 }
}
