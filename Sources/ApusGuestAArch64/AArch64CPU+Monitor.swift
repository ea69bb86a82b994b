import ApusCPU
import ApusGuest
import ApusISAAArch64

// EL3: its registers, and what it keeps from the levels below [Arm ARM D1.3, D19.2].

/// SCR_EL3's bits [D19.2.117].
enum SCR {
  /// NS: the levels below EL3 are not secure.
  static let nonSecure: UInt64 = 1
  static let irq: UInt64 = 1 << 1
  static let fiq: UInt64 = 1 << 2
  /// EA: external aborts and errors come to EL3.
  static let externalAborts: UInt64 = 1 << 3
  /// SMD.
  static let disablesCall: UInt64 = 1 << 7
  /// HCE.
  static let hypervisorCall: UInt64 = 1 << 8
  /// SIF.
  static let fetchesSecure: UInt64 = 1 << 9
  static let wide: UInt64 = 1 << 10
  /// ST: the secure EL1 has the secure timer.
  static let secureTimer: UInt64 = 1 << 11
  static let wait: UInt64 = 1 << 12
  static let waitForEvent: UInt64 = 1 << 13
  // APK and API: these permit.
  static let authenticationKeys: UInt64 = 1 << 16
  static let authentication: UInt64 = 1 << 17
  static let authenticationBits = authenticationKeys | authentication
  /// Levels below have AArch64 alone; bits 4 and 5 are one.
  static let fixed = wide | 3 << 4
  /// What may be written besides HCE, APK and API.
  static let writable =
    nonSecure | irq | fiq | externalAborts | disablesCall | fetchesSecure | secureTimer | wait | waitForEvent
}

/// CPTR_EL3's bits [D19.2.36].
enum CPTR {
  /// TFP.
  static let float: UInt64 = 1 << 10
  /// TCPAC: CPACR_EL1 and CPTR_EL2.
  static let access: UInt64 = 1 << 31
}

extension AArch64CPU {
  /// SCR_EL3.NS is clear: EL1 and EL0 are secure, and EL2 has no place. Without EL3 there is one state, not secure.
  var isSecure: Bool { hasMonitor && s[.scr] & SCR.nonSecure == 0 }
  /// EL2 is there for the levels below it.
  var isHypervisorEnabled: Bool { hasHypervisor && !isSecure }
  /// Whose EL3 is.
  var monitorOwner: AArch64Translator.Monitor {
    hasMonitor ? system?.environment.hasPSCI == true ? .firmware : .guest : .none
  }
  /// Whether `hvc` is there for the current level, EL1 at least.
  var permitsHypervisorCall: Bool {
    guard isHypervisorEnabled || s[.exceptionLevel] > 1 else { return false }
    return hasMonitor ? s[.scr] & SCR.hypervisorCall != 0 : s[.hcr] & HCR.disablesCall == 0
  }

  /// Begins at EL3, or where emulated firmware has left it: in the non-secure state.
  func resetMonitor() {
    s[.sctlr3] = 0x30c5_0830
    s[.scr] = SCR.fixed
    // Without EL2 its registers read as zero, but for those that EL1 sees.
    s[.vpidr] = model.mainID
    s[.vmpidr] = 1 << 31 | mpidr
    guard monitorOwner == .firmware else {
      s[.exceptionLevel] = 3
      return
    }
    s[.scr] |= SCR.nonSecure | monitorWritable & (SCR.hypervisorCall | SCR.authenticationBits)
    // SDD.
    s[.mdcr3] = MDCR.noSecureDebug
  }

  private var monitorWritable: UInt64 {
    SCR.writable | (hasHypervisor ? SCR.hypervisorCall : 0)
      | (features.contains(.pauth) ? SCR.authenticationBits : 0)
  }

  // MARK: Registers

  func readMonitor(_ key: AArch64SystemKey) -> UInt64? {
    switch (key.n, key.m, key.op2) {
    case (1, 0, 0): s[.sctlr3]
    case (1, 1, 0): s[.scr]
    case (1, 1, 2): s[.cptr3]
    case (1, 3, 1): s[.mdcr3]
    case (2, 0, 0): s[.ttbr0EL3]
    case (2, 0, 2): s[.tcr3]
    case (12, 0, 1): 0
    // SRE, DFB, DIB and Enable are one.
    case (12, 12, 5): system?.environment.hasRegisters == true ? 15 : nil
    case (12, _, _): system?.environment.readRegister(index, key.rawValue, interface(key))
    default: nil
    }
  }

  func writeMonitor(_ key: AArch64SystemKey, _ value: UInt64) -> Bool {
    switch (key.n, key.m, key.op2) {
    case (1, 0, 0):
      s[.sctlr3] = value | 3 << 28 | 1 << 11
      updateAddressSpace(of: .monitor)
    case (1, 1, 0):
      s[.scr] = value & monitorWritable | SCR.fixed
      setHypervisorControl(s[.hcrWritten])
      controlsChanged()
      engine.requestInterruptCheck()
    case (1, 1, 2):
      s[.cptr3] = value & (CPTR.float | CPTR.access)
      controlsChanged()
    case (1, 3, 1):
      if performance.isRunning { countPerformance() }
      s[.mdcr3] = value & MDCR.monitorWritable
      controlsChanged()
    case (2, 0, 0):
      s[.ttbr0EL3] = value
      updateAddressSpace(of: .monitor)
    case (2, 0, 2):
      s[.tcr3] = value
      updateAddressSpace(of: .monitor)
    case (12, 12, 5): return system?.environment.hasRegisters == true
    case (12, _, _):
      guard system?.environment.writeRegister(index, key.rawValue, value, interface(key)) ?? false else {
        return false
      }
      engine.requestInterruptCheck()
    default: return false
    }
    return true
  }

  /// CNTPS_*: EL3's, and the secure EL1's.
  var hasSecureTimer: Bool { s[.exceptionLevel] == 3 || s[.exceptionLevel] == 1 && isSecure }

  // MARK: Traps

  /// Whether blocks of a level below EL3 must ask at system instructions for EL3's sake.
  var monitorNeedsTrapChecks: Bool {
    guard hasMonitor else { return false }
    return s[.scr] & (SCR.wait | SCR.waitForEvent) != 0 || s[.cptr3] & CPTR.access != 0
      || s[.mdcr3] & MDCR.monitorTraps != 0
      || features.contains(.pauth) && s[.scr] & SCR.authenticationBits != SCR.authenticationBits
  }

  /// Whether EL3 takes an access of a level below it, which no level between does.
  func isTrappedToMonitor(_ key: AArch64SystemKey) -> Bool {
    guard hasMonitor, s[.exceptionLevel] < 3 else { return false }
    func keeps(_ bits: UInt64) -> Bool { s[.scr] & bits == bits && !interface(key).isVirtual }
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case (3, 0, 1, 0, 2), (3, 4, 1, 1, 2): return s[.cptr3] & CPTR.access != 0
    case (3, 0, 2, 1...3, _): return s[.scr] & SCR.authenticationKeys == 0
    case (2, 0, 1, 0...3, 4): return s[.mdcr3] & MDCR.lockTraps != 0
    case (2, _, _, _, _): return s[.mdcr3] & MDCR.debugTraps != 0
    case (3, 0, 9, 14, _), (3, 3, 9, 12...14, _), (3, 3, 14, 8...15, _):
      return s[.mdcr3] & MDCR.performanceTraps != 0
    case (3, 7, 14, 2, _): return hasSecureTimer && s[.scr] & SCR.secureTimer == 0
    // Of the interrupt controller group 0's, group 1's, and what is about both.
    case (3, 0, 12, 8, _), (3, 0, 12, 12, 6): return keeps(SCR.fiq)
    case (3, 0, 12, 9, _), (3, 0, 12, 12, 0...3), (3, 0, 12, 12, 7): return keeps(SCR.irq)
    case (3, 0, 4, 6, 0), (3, 0, 12, 11, _), (3, 0, 12, 12, 4): return keeps(SCR.irq | SCR.fiq)
    default: return false
    }
  }
}
