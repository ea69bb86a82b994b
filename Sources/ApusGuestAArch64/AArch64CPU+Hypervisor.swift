import ApusCPU
import ApusGuest
import ApusISAAArch64
import CApusHost

// EL2's system registers that are more than plain state [Arm ARM D19.2].

extension AArch64CPU {
  func resetHypervisor() {
    s[.sctlr2] = 0x30c5_0830
    s[.vpidr] = model.mainID
    s[.vmpidr] = 1 << 31 | mpidr
    setHypervisorControl(HCR.wide)
    s[.cptr2] = fixedTraps
    s[.cnthControl] = 3
    s[.mdcr2] = UInt64(PerformanceMonitor.counterCount)
  }

  /// CPTR_EL2's bits that are one without E2H, but for those of traps of what is not there.
  private var fixedTraps: UInt64 { 0x33ff & ~(1 << 10) }

  func readHypervisor(_ key: AArch64SystemKey) -> UInt64? {
    // EL3 asks where there is no EL2.
    guard hasHypervisor else { return 0 }
    return switch (key.n, key.m, key.op2) {
    case (1, 0, 0): s[.sctlr2]
    case (1, 1, 0): s[.hcrWritten]
    case (1, 1, 1): s[.mdcr2]
    case (1, 1, 2): s[.cptr2]
    case (2, 0, 0): s[.ttbr0EL2]
    case (2, 0, 1): hasHostExtensions ? s[.ttbr1EL2] : nil
    case (2, 0, 2): s[.tcr2]
    case (12, 0, 1): 0
    case (14, 0, 3): s[.cntvOffset]
    case (14, 1, 0): s[.cnthControl]
    case (14, 2, let index): readTimer(.hypervisorPhysical, index)
    case (14, 3, let index): hasHostExtensions ? readTimer(.hypervisorVirtual, index) : nil
    // SRE, DFB and DIB are one.
    case (12, 9, 5): system?.environment.hasRegisters == true ? 7 | s[.interfaceEnable] << 3 : nil
    case (12, _, _): system?.environment.readRegister(index, key.rawValue, interface(key))
    default: nil
    }
  }

  func writeHypervisor(_ key: AArch64SystemKey, _ value: UInt64) -> Bool {
    guard hasHypervisor else { return true }
    switch (key.n, key.m, key.op2) {
    case (1, 0, 0):
      s[.sctlr2] = value | 3 << 28 | 1 << 11
      updateAddressSpace(of: .hypervisor)
      controlsChanged()
    case (1, 1, 0): writeHypervisorControl(value)
    case (1, 1, 1):
      s[.mdcr2] = value & MDCR.writable
      controlsChanged()
    case (1, 1, 2):
      s[.cptr2] =
        s[.hcrWritten] & HCR.hostExtensions != 0
        ? value & (3 << 20 | 1 << 31) : value & (1 << 31 | 1 << 10) | fixedTraps
      controlsChanged()
    case (2, 0, 0):
      s[.ttbr0EL2] = value
      updateAddressSpace(of: .hypervisor)
    case (2, 0, 1):
      guard hasHostExtensions else { return false }
      s[.ttbr1EL2] = value
      updateAddressSpace(of: .hypervisor)
    case (2, 0, 2):
      s[.tcr2] = value
      updateAddressSpace(of: .hypervisor)
    case (14, 0, 3):
      s[.cntvOffset] = value
      update(.virtual)
      engine.requestInterruptCheck()
    case (14, 1, 0):
      s[.cnthControl] = value & 0xfff
      controlsChanged()
    case (14, 2, let index):
      writeTimer(.hypervisorPhysical, index, value)
      engine.requestInterruptCheck()
    case (14, 3, let index):
      guard hasHostExtensions else { return false }
      writeTimer(.hypervisorVirtual, index, value)
      engine.requestInterruptCheck()
    case (12, 9, 5):
      guard system?.environment.hasRegisters == true else { return false }
      s[.interfaceEnable] = value >> 3 & 1
      controlsChanged()
    case (12, _, _):
      guard system?.environment.writeRegister(index, key.rawValue, value, interface(key)) ?? false else {
        return false
      }
      if (key.m, key.op2) == (11, 0) { s[.virtualInterface] = value }
      engine.requestInterruptCheck()
    default: return false
    }
    return true
  }

  private func writeHypervisorControl(_ value: UInt64) {
    var writable = HCR.writable
    if hasHostExtensions { writable |= HCR.hostExtensions }
    if features.contains(.pauth) { writable |= HCR.authenticationBits }
    // With EL3, SCR_EL3.HCE is in HCD's place.
    if hasMonitor { writable &= ~HCR.disablesCall }
    let old = s[.hcr]
    // EL1 has AArch64 alone.
    setHypervisorControl(value & writable | HCR.wide)
    if (old ^ s[.hcr]) & HCR.hostExtensions != 0 {
      // CPTR_EL2 keeps its bits, which mean other things; so do EL2's tables.
      updateAddressSpace(of: .hypervisor)
    }
    controlsChanged()
    engine.requestInterruptCheck()
  }
}
