import ApusIR
import ApusISAAArch64
import CApusHost

// Traps of system instructions: to EL3 and EL2 by SCR_EL3, HCR_EL2 and their like, to EL1 by SCTLR_EL1 and CNTKCTL_EL1 [Arm ARM D1.3.5].

/// SCTLR_EL1's bits that let EL0 use system instructions [D19.2.133].
enum SystemControl {
  static let interruptMasks: UInt64 = 1 << 9
  static let zero: UInt64 = 1 << 14
  static let cacheType: UInt64 = 1 << 15
  static let wait: UInt64 = 1 << 16
  static let waitForEvent: UInt64 = 1 << 18
  static let maintenance: UInt64 = 1 << 26
  /// What must be set for blocks of EL0 that do not ask. UMA is asked for at each use.
  static let permissive = zero | cacheType | wait | waitForEvent | maintenance
}

extension AArch64CPU {
  /// Whether blocks of a level must ask at system instructions. Those of EL0 always ask at registers that it rarely has.
  func needsTrapChecks(level: UInt64) -> Bool {
    if level == 3 { return false }
    if monitorNeedsTrapChecks { return true }
    if level == 2 { return false }
    if level == 0 {
      let control = s[isHost ? .sctlr2 : .sctlr]
      // EL0VCTEN.
      let counter = isHost ? s[.cnthControl] : s[.cntkctl]
      if control & SystemControl.permissive != SystemControl.permissive || counter & 2 == 0 { return true }
      if isHost { return false }
    }
    guard isHypervisorEnabled else { return false }
    let hasAuthentication =
      features.contains(.pauth) && s[.hcr] & HCR.authenticationBits != HCR.authenticationBits
    return s[.hcr] & HCR.traps != 0 || hasAuthentication || s[.cptr2] >> 31 & 1 != 0
      || s[.mdcr2] & MDCR.traps != 0 || !permitsPhysicalTimer || !permitsPhysicalCounter
      || s[.interfaceEnable] == 0 && system?.environment.hasRegisters == true
  }

  /// CNTHCTL_EL2 has two layouts [D19.12.4].
  private var permitsPhysicalCounter: Bool {
    s[.cnthControl] >> (s[.hcr] & HCR.hostExtensions != 0 ? 10 : 0) & 1 != 0
  }
  private var permitsPhysicalTimer: Bool {
    s[.cnthControl] >> (s[.hcr] & HCR.hostExtensions != 0 ? 11 : 1) & 1 != 0
  }

  /// Takes the exception that the instruction at the PC is trapped with, if it is.
  /// - Parameter request: of an instruction that authenticates pointers, what it asks for.
  func checkTrap(_ word: UInt32, _ request: AArch64PointerAuthentication.Request) {
    let level = s[.exceptionLevel]
    switch word {
    case 0xd503_207f, 0xd503_205f: checkWait(isEvent: word == 0xd503_205f, level)
    case _ where word & 0xffe0_001f == 0xd400_0003:
      if level == 1, s[.hcr] & HCR.monitorCall != 0 {
        trap(Syndrome.call(Syndrome.secureMonitorCall, UInt64(word >> 5 & 0xffff)), to: 2)
      }
    // Not the hints, which authenticate pointers.
    case _ where word & 0xffc0_0000 == 0xd500_0000 && word & 0xffff_f01f != 0xd503_201f:
      let key = AArch64SystemKey(rawValue: UInt16(truncatingIfNeeded: word >> 5))
      let isRead = word >> 21 & 1 != 0
      if let target = trapTarget(key, isRead: isRead, level: level) {
        trap(systemSyndrome(word), to: target)
      }
    default:
      // Pointer authentication.
      guard isEnabled(request.key) else { break }
      if isHypervisorEnabled, s[.hcr] & HCR.authentication == 0, level == 1 || level == 0 && !isHost {
        trap(Syndrome.authenticationTrap, to: 2)
      } else if hasMonitor, level < 3, s[.scr] & SCR.authentication == 0 {
        trap(Syndrome.authenticationTrap, to: 3)
      }
    }
  }

  private func checkWait(isEvent: Bool, _ level: UInt64) {
    let syndrome = Syndrome.waitTrap | (isEvent ? 1 : 0)
    let permitted = isEvent ? SystemControl.waitForEvent : SystemControl.wait
    if level == 0, s[isHost ? .sctlr2 : .sctlr] & permitted == 0 { return trap(syndrome) }
    if level < 2, !isHost, s[.hcr] & (isEvent ? HCR.waitForEvent : HCR.wait) != 0 {
      return trap(syndrome, to: 2)
    }
    if hasMonitor, level < 3, s[.scr] & (isEvent ? SCR.waitForEvent : SCR.wait) != 0 { trap(syndrome, to: 3) }
  }

  /// The syndrome of a trapped msr, mrs or system instruction.
  func systemSyndrome(_ word: UInt32) -> UInt64 {
    func field(_ low: UInt32, _ count: UInt32, at position: UInt64) -> UInt64 {
      UInt64(word >> low & (1 << count - 1)) << position
    }
    // Op0, Op2, Op1, CRn, Rt, CRm, direction.
    return Syndrome.systemTrap << 26 | 1 << 25 | field(19, 2, at: 20) | field(5, 3, at: 17)
      | field(16, 3, at: 14) | field(12, 4, at: 10) | field(0, 5, at: 5) | field(8, 4, at: 1)
      | field(21, 1, at: 0)
  }

  /// The level that an access of EL0 to EL2 is trapped to; `nil`: it is not.
  private func trapTarget(_ key: AArch64SystemKey, isRead: Bool, level: UInt64) -> UInt64? {
    if level == 0, isTrappedFromUser(key, isRead: isRead) { return defaultTarget }
    if isHypervisorEnabled, level < 2, !(level == 0 && isHost),
      isTrappedToHypervisor(key, isRead: isRead, level: level)
    {
      return 2
    }
    return isTrappedToMonitor(key) ? 3 : nil
  }

  /// What the level above EL0 keeps from it.
  private func isTrappedFromUser(_ key: AArch64SystemKey, isRead: Bool) -> Bool {
    let control = s[isHost ? .sctlr2 : .sctlr]
    let timers = isHost ? s[.cnthControl] : s[.cntkctl]
    func lacks(_ bit: UInt64) -> Bool { control & bit == 0 }
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case (3, 3, 0, 0, 1): return lacks(SystemControl.cacheType)
    case (3, 3, 4, 2, 1), (0, 3, 4, _, 6), (0, 3, 4, _, 7): return lacks(SystemControl.interruptMasks)
    case (1, 3, 7, 4, 1): return lacks(SystemControl.zero)
    case (1, 3, 7, _, _): return lacks(SystemControl.maintenance)
    // CNTFRQ, CNTPCT, CNTVCT, CNTP_*, CNTV_*; in the host's layout and the kernel's the bits are the same.
    case (3, 3, 14, 0, 0): return timers & 3 == 0
    case (3, 3, 14, 0, 1): return timers & 1 == 0
    case (3, 3, 14, 0, 2): return timers & 2 == 0
    case (3, 3, 14, 2, _): return timers >> 9 & 1 == 0
    case (3, 3, 14, 3, _): return timers >> 8 & 1 == 0
    case (3, 3, 9, 12...14, _), (3, 3, 14, 8...15, _): return !isPerformanceAccessible(key, isWrite: !isRead)
    // Identification registers, since Armv8.4.
    case (3, 0, 0, _, _), (3, 1, 0, 0, _), (3, 2, 0, 0, _): return true
    default: return false
    }
  }

  private func isTrappedToHypervisor(_ key: AArch64SystemKey, isRead: Bool, level: UInt64) -> Bool {
    func traps(_ bit: UInt64) -> Bool { s[.hcr] & bit != 0 }
    switch (key.op0, key.op1, key.n, key.m, key.op2) {
    case (3, 0, 0, 0, 6), (3, 1, 0, 0, 7): return traps(HCR.identification1)
    case (3, 1, 0, 0, _), (3, 2, 0, 0, 0), (3, 3, 0, 0, 1): return traps(HCR.identification2)
    case (3, 0, 0, 1...7, _): return traps(HCR.identification3)
    case (3, 0, 1, 0, 1): return traps(HCR.auxiliary)
    case (3, 0, 1, 0, 2): return s[.cptr2] >> 31 & 1 != 0
    case (3, 0, 1, 0, 0), (3, 0, 2, 0, _), (3, 0, 5, 1...2, _), (3, 0, 6, 0, 0), (3, 0, 10, 2...3, 0),
      (3, 0, 13, 0, 1):
      return traps(isRead ? HCR.readsTranslation : HCR.writesTranslation)
    case (3, 0, 2, 1...3, _): return s[.hcr] & HCR.authenticationKeys == 0
    // Physical counter and timer.
    case (3, 3, 14, 0, 1): return !permitsPhysicalCounter
    case (3, 3, 14, 2, _): return !permitsPhysicalTimer
    // Debug: OSLAR, OSLSR, OSDLR; the rest.
    case (2, 0, 1, 0...3, 4): return s[.mdcr2] & (MDCR.lockTraps | MDCR.debugRoute) != 0
    case (2, _, 1, 0, 0): return s[.mdcr2] & (MDCR.addressTraps | MDCR.debugRoute) != 0
    case (2, _, _, _, _): return s[.mdcr2] & (MDCR.debugTraps | MDCR.debugRoute) != 0
    case (3, 3, 9, 12, 0): return s[.mdcr2] & (MDCR.performanceTraps | MDCR.controlTraps) != 0
    case (3, 0, 9, 14, _), (3, 3, 9, 12...14, _), (3, 3, 14, 8...15, _):
      return s[.mdcr2] & MDCR.performanceTraps != 0
    // Caches.
    case (1, 0, 7, 1, 0), (1, 0, 7, 5, 0), (1, 3, 7, 5, 1), (1, 3, 7, 11, 1): return traps(HCR.unification)
    case (1, 0, 7, 6, 2), (1, 0, 7, 10, 2), (1, 0, 7, 14, 2): return traps(HCR.setWay)
    case (1, 3, 7, 4, 1): return traps(HCR.zero)
    case (1, 0, 7, 6, 1), (1, 3, 7, _, _): return traps(HCR.coherency)
    case (1, 0, 7, 8...9, _): return traps(HCR.addressTranslation)
    case (1, 0, 8, _, _): return traps(HCR.tlb)
    // The interrupt controller's: software-generated interrupts, ICC_SRE_EL1, what ICH_HCR_EL2 says.
    case (3, 0, 12, 11, 5...7): return traps(HCR.irq | HCR.fiq)
    case (3, 0, 12, 12, 5): return s[.interfaceEnable] == 0
    case (3, 0, 12, 8...12, _), (3, 0, 4, 6, 0): return isTrappedInterface(key)
    default: return false
    }
  }

  /// ICH_HCR_EL2's TC, TALL0, TALL1 and TDIR [IHI 0069H §12.4.8].
  private func isTrappedInterface(_ key: AArch64SystemKey) -> Bool {
    let control = s[.virtualInterface]
    func has(_ bit: UInt64) -> Bool { control >> bit & 1 != 0 }
    switch (key.n, key.m, key.op2) {
    case (4, 6, 0), (12, 12, 4), (12, 11, 3): return has(10)
    case (12, 11, 1): return has(10) || has(14)
    case (12, 8, 0...3), (12, 8, 4...7), (12, 12, 6): return has(11)
    case (12, 9, _), (12, 12, 0...3), (12, 12, 7): return has(12)
    default: return false
    }
  }

  // MARK: What an access was

  /// Of the load or store at the PC, what lets EL2 carry it out: ISV and what follows it [D19.2.37, data aborts].
  func instructionSyndrome() -> UInt64 {
    guard case .page(let page) = walk(s.pc, .fetch, context: Int(s.mode.context)),
      let pair = physicalMemory?.load(page.physical & ~7)
    else { return 0 }
    return Self.instructionSyndrome(UInt32(truncatingIfNeeded: pair >> (page.physical & 4 != 0 ? 32 : 0)))
  }

  static func instructionSyndrome(_ word: UInt32) -> UInt64 {
    let size = UInt64(word >> 30)
    var isSigned = false
    var isWide = size == 3
    var isOrdered = false
    switch word {
    // Unsigned offset, then unscaled, unprivileged and register offset.
    case _ where word & 0x3f00_0000 == 0x3900_0000,
      _ where word & 0x3f20_0400 == 0x3800_0000,
      _ where word & 0x3f20_0c00 == 0x3820_0800:
      let operation = word >> 22 & 3
      isSigned = operation >= 2
      if isSigned { isWide = operation == 2 }
    // ldapur, stlur
    case _ where word & 0x3f20_0c00 == 0x1900_0000:
      let operation = word >> 22 & 3
      isSigned = operation >= 2
      if isSigned { isWide = operation == 2 }
      isOrdered = true
    // ldar, stlr, ldapr
    case _ where word & 0x3fa0_0000 == 0x0880_0000, _ where word & 0x3fff_fc00 == 0x38bf_c000:
      isOrdered = true
    default: return 0
    }
    return 1 << 24 | size << 22 | (isSigned ? 1 << 21 : 0) | UInt64(word & 31) << 16 | (isWide ? 1 << 15 : 0)
      | (isOrdered ? 1 << 14 : 0)
  }
}

/// MDCR_EL2's bits [D19.3.18], and MDCR_EL3's [D19.3.19], which has the traps in the same places.
enum MDCR {
  static let counters: UInt64 = 0x1f
  static let controlTraps: UInt64 = 1 << 5
  static let performanceTraps: UInt64 = 1 << 6
  /// TDE: EL2 takes debug exceptions.
  static let debugRoute: UInt64 = 1 << 8
  static let debugTraps: UInt64 = 1 << 9
  static let lockTraps: UInt64 = 1 << 10
  static let addressTraps: UInt64 = 1 << 11
  static let traps = controlTraps | performanceTraps | debugRoute | debugTraps | lockTraps | addressTraps
  static let writable: UInt64 = 0xfff
  /// MDCR_EL3's SDD, and SPME: events of the secure state are counted.
  static let noSecureDebug: UInt64 = 1 << 16
  static let secureCounting: UInt64 = 1 << 17
  static let monitorTraps = performanceTraps | debugTraps | lockTraps
  static let monitorWritable = monitorTraps | noSecureDebug | secureCounting
}
