import ApusCPU
import ApusGuest
import ApusIR
import ApusISAAArch64
import CApusHost

// System registers that are more than plain state [Arm ARM D19.2].

extension AArch64CPU {
  /// The register's value for EL1; `nil`: undefined.
  func readSystem(_ key: AArch64SystemKey) -> UInt64? {
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case _ where system == nil: return readIdentification(key)
    case (3, 0, 0, 0, 0): return model.mainID
    case (3, 0, 0, 0, 5): return 1 << 31 | mpidr
    case (3, 0, 0, 0, 6), (3, 1, 0, 0, 7): return 0
    case (3, 0, 0, _, _): return featureRegister(key)
    case (3, 1, 0, 0, 0):  // CCSIDR: 32 KiB L1 data, 48 KiB L1 instruction, 2 MiB L2
      return [0: 0x701f_e00a, 1: 0x201f_e012, 2: 0x70ff_e07a][s[.csselr]] ?? 0
    case (3, 1, 0, 0, 1): return 0x0a20_0023
    case (3, 0, 1, 0, 0): return s[.sctlr]
    case (3, 0, 1, 0, 2): return s[.cpacr]
    case (3, 0, 2, 0, 0): return s[.ttbr0]
    case (3, 0, 2, 0, 1): return s[.ttbr1]
    case (3, 0, 2, 0, 2): return s[.tcr]
    case (3, 0, 4, 1, 0): return s[.stackSelect] != 0 ? s[.spEL0] : nil
    case (3, 0, 4, 2, 0): return s[.stackSelect]
    case (3, 0, 4, 2, 3): return features.hasPAN ? s[.pan] : nil
    case (3, 0, 12, 0, 1): return 0
    case (3, 0, 12, 1, 0):  // ISR: I and F
      let lines = apus_load_relaxed64(state + AArch64SystemSlot.interruptLines.offset)
      return (lines & 1) << 7 | (lines & 2) << 5
    case (2, 0, 1, 1, 4): return 8 | s[.osLock] << 1
    case (3, 3, 14, 2, let index): return readTimer(.physical, index)
    case (3, 3, 14, 3, let index): return readTimer(.virtual, index)
    case (3, 0, 9, 14, _), (3, 3, 9, 12...14, _), (3, 3, 14, 8...15, _): return readPerformance(key)
    case (3, 0, 4, 6, 0), (3, 0, 12, 8...12, _):
      return system?.environment.readRegister(index, key.rawValue)
    default: return nil
    }
  }

  /// False: undefined.
  func writeSystem(_ key: AArch64SystemKey, _ value: UInt64) -> Bool {
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case (3, 0, 1, 0, 0):
      let changed = s[.sctlr] ^ value
      // Bits that are one without the features that they belong to.
      s[.sctlr] = value | (features.hasPAN ? 0 : 1 << 23) | 3 << 28 | 1 << 11
      // M, WXN
      if changed & (1 | 1 << 19) != 0 { engine.flushTLB(page: nil, keepGlobal: false, asid: nil) }
    case (3, 0, 1, 0, 2):
      s[.cpacr] = value & (3 << 20)
      updateMode()
    case (3, 0, 2, 0, 0): changeTranslation { s[.ttbr0] = value }
    case (3, 0, 2, 0, 1): changeTranslation { s[.ttbr1] = value }
    case (3, 0, 2, 0, 2): changeTranslation { s[.tcr] = value }
    case (3, 0, 4, 1, 0):
      guard s[.stackSelect] != 0 else { return false }
      s[.spEL0] = value
    case (3, 0, 4, 2, 0): selectStack(level: s[.exceptionLevel], selected: value & 1)
    case (3, 0, 4, 2, 3):
      guard features.hasPAN else { return false }
      s[.pan] = value & PState.pan
      updateMode()
    case (2, 0, 1, 0, 4):
      s[.osLock] = value & 1
      debugStateChanged()
    case (2, _, _, _, _):
      guard case .guarded(let slot, let writable) = AArch64SystemRegister.table[key]?.kind else {
        return false
      }
      s[slot] = value & writable
      debugStateChanged()
    case (3, 3, 4, 2, 1):
      s[.daif] = value & PState.daif
      updateMode()
      engine.requestInterruptCheck()
    case (3, 3, 14, 2, let index):
      writeTimer(.physical, index, value)
      engine.requestInterruptCheck()
    case (3, 3, 14, 3, let index):
      writeTimer(.virtual, index, value)
      engine.requestInterruptCheck()
    case (3, 0, 9, 14, _), (3, 3, 9, 12...14, _), (3, 3, 14, 8...15, _): return writePerformance(key, value)
    case (3, 0, 4, 6, 0), (3, 0, 12, 8...12, _):
      guard system?.environment.writeRegister(index, key.rawValue, value) ?? false else { return false }
      engine.requestInterruptCheck()
    default: return false
    }
    return true
  }

  /// What Linux shows to processes that read the registers behind HWCAP_CPUID.
  private func readIdentification(_ key: AArch64SystemKey) -> UInt64 {
    switch (key.m, key.op2) {
    case (0, 0): return model.mainID
    case (0, 5): return 1 << 31
    // CSV2, CSV3 and the interrupt controller's registers are not a process's business.
    case (4, 0): return featureRegister(key) & 0x000f_0000_00ff_00ff
    case (4, 1), (6, 0), (6, 1): return featureRegister(key)
    // The debug architecture.
    case (5, 0): return 6
    // No granule of 4 or 64 KiB to speak of.
    case (7, 0): return 0xff00_0000
    default: return 0
    }
  }

  private func changeTranslation(_ change: () -> Void) {
    let old = addressSpaceIdentifier
    change()
    let new = addressSpaceIdentifier
    if old != new { engine.addressSpaceChanged(asid: new) }
  }

  /// ID_AA64*_EL1: what is there.
  private func featureRegister(_ key: AArch64SystemKey) -> UInt64 {
    func has(_ feature: AArch64Feature, _ value: UInt64 = 1) -> UInt64 {
      features.contains(feature) ? value : 0
    }
    switch (key.m, key.op2) {
    // ID_AA64PFR0: EL0 and EL1 in AArch64 alone; half precision; GIC's registers; CSV2 and CSV3, as nothing is speculated here
    case (4, 0):
      return 1 << 60 | 1 << 56 | has(.dit) << 48 | (system?.environment.hasRegisters == true ? 1 << 24 : 0)
        | has(.fp16) << 20 | has(.fp16) << 16 | 0x11
    // ID_AA64PFR1: MTE without tags; SSBS; BTI for processes
    case (4, 1):
      let branchTargets = system == nil ? has(.bti) : 0
      return has(.mte) << 8 | max(has(.ssbs), has(.ssbs2, 2)) << 4 | branchTargets
    // ID_AA64DFR0: Armv8's debug registers, six break points and four watch points; PMUv3
    case (5, 0): return 3 << 20 | 5 << 12 | 1 << 8 | 6
    // ID_AA64ISAR0
    case (6, 0):
      return has(.rng) << 60 | max(has(.flagm), has(.flagm2, 2)) << 52 | has(.fhm) << 48 | has(.dotprod) << 44
        | has(.sm4) << 40 | has(.sm3) << 36 | has(.sha3) << 32 | has(.rdm) << 28 | has(.lse, 2) << 20
        | has(.crc32) << 16 | max(has(.sha256), has(.sha512, 2)) << 12 | has(.sha1) << 8
        | max(has(.aes), has(.pmull, 2)) << 4
    // ID_AA64ISAR1: the code's algorithm in APA and GPA, or in API and GPI
    case (6, 1):
      let code = has(.pauth)
      return has(.i8mm) << 52 | has(.bf16) << 44 | has(.sb) << 36 | has(.frintts) << 32
        | (authentication == .qarma5 ? code << 24 | code << 4 : code << 28 | code << 8)
        | max(has(.lrcpc), has(.lrcpc2, 2)) << 20 | has(.fcma) << 16 | has(.jscvt) << 12
        | max(has(.dpb), has(.dpb2, 2))
    // ID_AA64MMFR0: granules of 4, 16 and 64 KiB, ASIDs of 16 bits, 48 bits of physical address
    case (7, 0): return 1 << 20 | 2 << 4 | 5
    // ID_AA64MMFR1: PAN, hierarchical permissions off, hardware flags
    case (7, 1): return features.hasPAN ? 1 << 20 | 1 << 12 | 2 : 0
    // ID_AA64MMFR2: E0PD
    case (7, 2): return features.hasPAN ? 1 << 60 : 0
    default: return 0
    }
  }
}

extension AArch64FeatureSet {
  /// Armv8.1's: privileged access never, hardware management of accessed and dirty flags.
  var hasPAN: Bool { contains(.pan) }
  var hasHardwareFlags: Bool { contains(.lse) }
}
