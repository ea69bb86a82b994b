import ApusCPU
import ApusGuest
import ApusIR
import ApusISAAArch64
import CApusHost

// System registers that are more than plain state [Arm ARM D19.2].

extension AArch64CPU {
  /// The register's value for the current level; `nil`: undefined.
  func readSystem(_ key: AArch64SystemKey) -> UInt64? {
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case _ where system == nil: return readIdentification(key)
    // EL1 sees VPIDR_EL2 and VMPIDR_EL2.
    case (3, 0, 0, 0, 0): return isHypervisorEnabled && s[.exceptionLevel] < 2 ? s[.vpidr] : model.mainID
    case (3, 0, 0, 0, 5): return isHypervisorEnabled && s[.exceptionLevel] < 2 ? s[.vmpidr] : 1 << 31 | mpidr
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
    case (3, 0, 14, 1, 0): return s[.cntkctl]
    case (3, 0, 4, 1, 0): return s[.stackSelect] != 0 ? s[.spEL0] : nil
    case (3, 0, 4, 2, 0): return s[.stackSelect]
    case (3, 0, 4, 2, 3): return features.hasPAN ? s[.pan] : nil
    case (3, 0, 4, 2, 4): return features.hasPAN ? s[.uao] : nil
    case (3, 0, 12, 0, 1): return hasHypervisor || hasMonitor ? nil : 0
    case (3, 0, 12, 1, 0): return interruptStatus
    case (2, 0, 1, 1, 4): return 8 | s[.osLock] << 1
    case (3, 3, 14, 2, let index): return readTimer(.physical, index)
    case (3, 3, 14, 3, let index): return readTimer(.virtual, index)
    case (3, 3, 4, 2, 1): return s[.daif]
    case (3, 4, _, _, _): return readHypervisor(key)
    case (3, 6, _, _, _): return readMonitor(key)
    case (3, 7, 14, 2, let index): return hasSecureTimer ? readTimer(.secure, index) : nil
    case (3, 0, 9, 14, _), (3, 3, 9, 12...14, _), (3, 3, 14, 8...15, _): return readPerformance(key)
    case (3, 0, 4, 6, 0), (3, 0, 12, 8...12, _):
      return system?.environment.readRegister(index, key.rawValue, interface(key))
    default: return nil
    }
  }

  /// Whose interrupt controller's registers EL1 has: group 0's by HCR_EL2.FMO, group 1's by IMO.
  func interface(_ key: AArch64SystemKey) -> ArmCPUEnvironment.Interface {
    let physical = ArmCPUEnvironment.Interface(
      isMonitor: s[.exceptionLevel] == 3, isSecure: isSecure, keepsGroup0: s[.scr] & SCR.fiq != 0)
    guard s[.exceptionLevel] == 1 else { return physical }
    let route: UInt64 =
      switch (key.n, key.m, key.op2) {
      // ICC_SRE_EL1 is nobody's.
      case (12, 12, 5): 0
      case (12, 8, _), (12, 12, 6): HCR.fiq
      case (12, 9, _), (12, 12, 0...3), (12, 12, 7): HCR.irq
      default: HCR.fiq | HCR.irq
      }
    return s[.hcr] & route != 0 ? .virtual : physical
  }

  /// ISR_EL1: A, I and F, of virtual interrupts where EL2 has the physical ones.
  private var interruptStatus: UInt64 {
    let lines = interruptLines
    func isPending(_ physical: UInt64, _ virtual: UInt64, _ route: UInt64) -> Bool {
      lines & (s[.exceptionLevel] < 2 && s[.hcr] & route != 0 ? virtual : physical) != 0
    }
    return (isPending(0, 1 << 6, HCR.error) ? 1 << 8 : 0)
      | (isPending(1, 1 << 2 | 1 << 4, HCR.irq) ? 1 << 7 : 0)
      | (isPending(2, 1 << 3 | 1 << 5, HCR.fiq) ? 1 << 6 : 0)
  }

  /// False: undefined.
  func writeSystem(_ key: AArch64SystemKey, _ value: UInt64) -> Bool {
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case (3, 0, 1, 0, 0):
      // Bits that are one without the features that they belong to.
      s[.sctlr] = value | (features.hasPAN ? 0 : 1 << 23) | 3 << 28 | 1 << 11
      translationChanged()
      controlsChanged()
    case (3, 0, 1, 0, 2):
      s[.cpacr] = value & (3 << 20)
      controlsChanged()
    case (3, 0, 2, 0, 0):
      s[.ttbr0] = value
      translationChanged()
    case (3, 0, 2, 0, 1):
      s[.ttbr1] = value
      translationChanged()
    case (3, 0, 2, 0, 2):
      s[.tcr] = value
      translationChanged()
    case (3, 0, 14, 1, 0):
      s[.cntkctl] = value & 0x3ff
      controlsChanged()
    case (3, 0, 4, 1, 0):
      guard s[.stackSelect] != 0 else { return false }
      s[.spEL0] = value
    case (3, 0, 4, 2, 0): selectStack(level: s[.exceptionLevel], selected: value & 1)
    case (3, 0, 4, 2, 3):
      guard features.hasPAN else { return false }
      s[.pan] = value & PState.pan
      updateMode()
    case (3, 0, 4, 2, 4):
      guard features.hasPAN else { return false }
      s[.uao] = value & PState.userAccessOverride
      updateMode()
    case (3, 4, _, _, _): return writeHypervisor(key, value)
    case (3, 6, _, _, _): return writeMonitor(key, value)
    case (3, 7, 14, 2, let index):
      guard hasSecureTimer else { return false }
      writeTimer(.secure, index, value)
      engine.requestInterruptCheck()
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
      guard system?.environment.writeRegister(index, key.rawValue, value, interface(key)) ?? false else {
        return false
      }
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
    case (4, 1), (6, 1), (6, 2): return featureRegister(key)
    // Neither is TLB maintenance.
    case (6, 0): return featureRegister(key) & ~(0xf << 56)
    // The debug architecture.
    case (5, 0): return 6
    // No granule of 4 or 64 KiB to speak of.
    case (7, 0): return 0xff00_0000
    case (7, 1): return featureRegister(key) & 0xf << 44
    default: return 0
    }
  }

  /// EL1's tables or controls changed; what EL2 changes counts when EL1 comes back.
  private func translationChanged() {
    if s[.exceptionLevel] < 2 { updateKernelAddressSpace() }
  }

  /// ID_AA64*_EL1: what is there.
  private func featureRegister(_ key: AArch64SystemKey) -> UInt64 {
    func has(_ feature: AArch64Feature, _ value: UInt64 = 1) -> UInt64 {
      features.contains(feature) ? value : 0
    }
    switch (key.m, key.op2) {
    // ID_AA64PFR0: EL0, EL1 and perhaps EL2 and EL3 in AArch64 alone; half precision; GIC's registers; CSV2 and CSV3, as nothing is speculated here
    case (4, 0):
      return 1 << 60 | 1 << 56 | has(.dit) << 48 | (system?.environment.hasRegisters == true ? 1 << 24 : 0)
        | has(.fp16) << 20 | has(.fp16) << 16 | (hasHypervisor ? 0x111 : 0x11) | (hasMonitor ? 1 << 12 : 0)
    // ID_AA64PFR1: MTE without tags; SSBS; BTI
    case (4, 1):
      return has(.mte) << 8 | max(has(.ssbs), has(.ssbs2, 2)) << 4 | has(.bti)
    // ID_AA64DFR0: Armv8's debug registers (of 8.1 with virtual hosts), six break points, two of them for contexts, and four watch points; PMUv3
    case (5, 0): return 1 << 28 | 3 << 20 | 5 << 12 | 1 << 8 | (hasHostExtensions ? 7 : 6)
    // ID_AA64ISAR0
    case (6, 0):
      return has(.rng) << 60 | (features.hasRangeInvalidation ? 2 << 56 : 0) | max(
        has(.flagm), has(.flagm2, 2)) << 52 | has(.fhm) << 48 | has(.dotprod) << 44
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
    // ID_AA64ISAR2
    case (6, 2): return has(.rpres) << 4
    // ID_AA64MMFR0: granules of 4, 16 and 64 KiB, of stage 2, too; ASIDs of 16 bits; 48 or 52 bits of physical address
    case (7, 0):
      return hasLargeAddresses
        ? 3 << 40 | 2 << 36 | 3 << 32 | 1 << 28 | 2 << 20 | 2 << 4 | 6
        : (hasHypervisor ? 2 << 40 | 2 << 36 | 2 << 32 : 0) | 1 << 20 | 2 << 4 | 5
    // ID_AA64MMFR1: AFP, XNX, PAN with at s1e1rp, hierarchical permissions off, virtual hosts, VMIDs of 16 bits, hardware flags
    case (7, 1):
      guard features.hasPAN else { return 0 }
      return has(.afp) << 44 | 2 << 20 | 1 << 12 | 2 | (hasHypervisor ? 1 << 28 | 1 << 8 | 2 << 4 : 0)
    // ID_AA64MMFR2: E0PD, TTL hints, EL0's traps of identification registers, 52 bits of virtual address, UAO
    case (7, 2):
      guard features.hasPAN else { return 0 }
      return 1 << 60 | (features.hasRangeInvalidation ? 1 << 48 | 1 << 36 : 0)
        | (hasLargeAddresses ? 1 << 16 : 0) | 1 << 4
    default: return 0
    }
  }
}

extension AArch64FeatureSet {
  /// Armv8.1's: privileged access never, hardware management of accessed and dirty flags.
  var hasPAN: Bool { contains(.pan) }
  var hasHardwareFlags: Bool { contains(.lse) }
  /// Armv8.4's: TLB maintenance of ranges and of the outer shareable domain, and what came with it.
  var hasRangeInvalidation: Bool { contains(.flagm2) }
  /// Armv8.2's and 8.7's: 52 bits of address with each granule.
  var hasLargeAddresses: Bool { contains(.flagm2) }
}
