import ApusGuest
import ApusIR
import CApusHost

extension AArch64CPU {
  // MARK: Entry and return

  enum Vector: UInt64 {
    case synchronous = 0
    case irq = 0x80
    case fiq = 0x100
    case systemError = 0x180
  }

  /// Whether the machine has EL2.
  var hasHypervisor: Bool { system?.environment.hasHypervisor == true }
  /// FEAT_VHE, and what came with it.
  var hasHostExtensions: Bool { hasHypervisor && features.hasPAN }
  var hasLargeAddresses: Bool { features.hasLargeAddresses }

  /// What a level's exceptions are told in [D19.1].
  struct ExceptionRegisters {
    let syndrome, address, link, status, control, vectors: AArch64SystemSlot
    init(level: UInt64) {
      switch level {
      case 3:
        (syndrome, address, link, status, control, vectors) = (.esr3, .far3, .elr3, .spsr3, .sctlr3, .vbar3)
      case 2:
        (syndrome, address, link, status, control, vectors) = (.esr2, .far2, .elr2, .spsr2, .sctlr2, .vbar2)
      default: (syndrome, address, link, status, control, vectors) = (.esr, .far, .elr, .spsr, .sctlr, .vbar)
      }
    }
  }

  /// The level that takes what EL0 and EL1 cause unless something says otherwise.
  var defaultTarget: UInt64 {
    let level = s[.exceptionLevel]
    return level == 0 ? s[.hcr] & HCR.general != 0 ? 2 : 1 : level
  }

  /// Takes an exception [D1.3]. Afterwards the state is the handler's.
  /// - Parameter target: the level that takes it, the current one at least.
  func enterException(
    _ vector: Vector, to target: UInt64, syndrome: UInt64?, address: UInt64? = nil, returnTo pc: UInt64
  ) {
    let registers = ExceptionRegisters(level: target)
    if let syndrome { s[registers.syndrome] = syndrome }
    if let address { s[registers.address] = address }
    onException?(vector.rawValue, syndrome ?? 0, address ?? 0, pc)
    let level = s[.exceptionLevel]
    if performance.isRunning { countPerformance() }
    let usesOwnStack = s[.stackSelect]
    s[registers.link] = pc
    s[registers.status] =
      s.nzcv | s[.daif] | s[.pan] | s[.uao] | s[.statusBits] | s[.step] & PState.step | level << 2
      | s[.branchType] << 10 | usesOwnStack
    s[.branchType] = 0
    s[.step] = 0
    s[.uao] = 0
    // SSBS becomes SCTLR_ELx.DSSBS.
    let control = s[registers.control]
    s[.statusBits] = features.contains(.ssbs) ? control >> 44 & 1 << 12 : 0
    selectStack(level: target, selected: 1)
    s[.daif] = PState.daif
    if features.hasPAN, control >> 23 & 1 == 0, target == 1 || target == 2 && isHost { s[.pan] = PState.pan }
    let origin: UInt64 = level < target ? 0x400 : usesOwnStack != 0 ? 0x200 : 0
    s.pc = s[registers.vectors] &+ origin &+ vector.rawValue
    forgetReservation()
    updateMode()
    s.requestDispatch()
  }

  /// eret.
  func returnFromException() {
    let current = s[.exceptionLevel]
    let registers = ExceptionRegisters(level: current)
    let status = s[registers.status]
    s.pc = s[registers.link]
    forgetReservation()
    // AArch32, higher levels, EL2 where there is none, EL0 with a stack pointer that it does not have, EL1 where EL2 has
    // its place [D1.4.4].
    let level = status >> 2 & 3
    if performance.isRunning { countPerformance() }
    let couldStep = canDebug(level: current)
    s[.step] = 0
    guard status & 0x12 == 0, level <= current, level != 0 || status & 1 == 0,
      level != 1 || s[.hcr] & HCR.general == 0, level != 2 || isHypervisorEnabled
    else {
      s.nzcv = status & PState.condition
      s[.daif] = status & PState.daif
      return enterIllegalState(current)
    }
    selectStack(level: level, selected: status & 1)
    if features.contains(.bti) { s[.branchType] = status >> 10 & 3 }
    s.nzcv = status & PState.condition
    s[.daif] = status & PState.daif
    if features.hasPAN {
      s[.pan] = status & PState.pan
      s[.uao] = status & PState.userAccessOverride
    }
    s[.statusBits] = status & statusMask
    if s[.mdscr] & MDSCR.step != 0, !couldStep, canDebug(level: level) { s[.step] = status & PState.step }
    // EL2 and EL3 may have changed what registers of lower levels say.
    if current == 3, level < 3, isHypervisorEnabled { updateAddressSpace(of: .hypervisor) }
    if level < 2, !isHost {
      if current >= 2 { updateKernelAddressSpace() }
      if level == 0 { updateAddressSpace(of: .user) }
    }
    updateMode()
    // PSTATE.IL as it was saved.
    if status & PState.illegal != 0 { return enterIllegalState(defaultTarget) }
    engine.requestInterruptCheck()
    s.requestDispatch()
  }

  /// The next instruction is executed with PSTATE.IL, which SPSR keeps.
  private func enterIllegalState(_ target: UInt64) {
    enterException(.synchronous, to: target, syndrome: Syndrome.illegalState, returnTo: s.pc)
    s[ExceptionRegisters(level: target).status] |= PState.illegal
  }

  /// The bits of PSTATE that are in `statusBits`.
  private var statusMask: UInt64 {
    (features.contains(.ssbs) ? 1 << 12 : 0) | (features.contains(.dit) ? 1 << 24 : 0)
  }

  private func forgetReservation() {
    state.storeBytes(of: StateHeader.noAddress, toByteOffset: StateHeader.monitorAddress, as: UInt64.self)
  }

  /// Makes another stack pointer the current one.
  func selectStack(level: UInt64, selected: UInt64) {
    let old = stackSlot(level: s[.exceptionLevel], selected: s[.stackSelect])
    let new = stackSlot(level: level, selected: selected)
    if old != new {
      s[old] = s[x: 31]
      s[x: 31] = s[new]
    }
    s[.exceptionLevel] = level
    s[.stackSelect] = selected
  }

  private func stackSlot(level: UInt64, selected: UInt64) -> AArch64SystemSlot {
    selected == 0 ? .spEL0 : level == 3 ? .spEL3 : level == 2 ? .spEL2 : .spEL1
  }

  // MARK: Causes

  /// The instruction at the PC causes an exception with this syndrome.
  func trap(_ syndrome: UInt64, address: UInt64? = nil, to target: UInt64? = nil) {
    enterException(
      .synchronous, to: target ?? defaultTarget, syndrome: syndrome, address: address, returnTo: s.pc)
  }

  /// An access's fault number as an exception.
  func enterAbort(_ fault: UInt64, address: UInt64) {
    let isWatch = fault & Syndrome.isWatch != 0
    let level = s[.exceptionLevel]
    var target = isWatch ? debugTarget : defaultTarget
    var syndrome = fault & Syndrome.lowerBits
    if fault & Syndrome.isStage2 != 0 {
      target = 2
      s[.hpfar] = (fault >> 20) << 4
      if fault & (Syndrome.isData | Syndrome.isWalk) == Syndrome.isData { syndrome |= instructionSyndrome() }
    } else if fault & 0x3f == Syndrome.external, level < 2, s[.hcr] & HCR.externalAborts != 0 {
      target = 2
    }
    if hasMonitor, Syndrome.isExternal(fault), s[.scr] & SCR.externalAborts != 0 { target = 3 }
    let lower: UInt64 = isWatch ? Syndrome.watchPoint : fault & Syndrome.isData != 0 ? 0x24 : 0x20
    let exceptionClass = lower + (target == level ? 1 : 0)
    trap(exceptionClass << 26 | 1 << 25 | syndrome, address: address, to: target)
  }

  /// The float instruction at the PC is one that CPACR_EL1, CPTR_EL2 or CPTR_EL3 traps [D1.3.5].
  func trapFloat() {
    let level = s[.exceptionLevel]
    let isFirst = level < 2 && !isHost && Self.trapsFloat(s[.cpacr], level: level)
    // What EL2 hears in place of EL1 is an undefined instruction.
    let isUndefined = isFirst && level == 0 && s[.hcr] & HCR.general != 0
    let target = isFirst ? defaultTarget : hypervisorTrapsFloat(level: level) ? 2 : 3
    trap(isUndefined ? Syndrome.undefined : Syndrome.floatTrap, to: target)
  }
  /// CPTR_EL2 keeps a level, 2 at most, from floating point. With E2H the field is CPACR_EL1's, whose 1 is about the host's
  /// EL0.
  func hypervisorTrapsFloat(level: UInt64) -> Bool {
    guard isHypervisorEnabled, level < 3 else { return false }
    return s[.hcr] & HCR.hostExtensions != 0
      ? Self.trapsFloat(s[.cptr2], level: level == 0 && isHost ? 0 : 1) : s[.cptr2] >> 10 & 1 != 0
  }
  /// CPACR_EL1.FPEN and its like in CPTR_EL2: 1 traps EL0, 0 and 2 all.
  static func trapsFloat(_ control: UInt64, level: UInt64) -> Bool {
    let field = control >> 20 & 3
    return field & 1 == 0 || field == 1 && level == 0
  }

  // MARK: Interrupts

  /// IRQ or FIQ, if one is there and not masked.
  func takeSystemInterrupt() -> Bool {
    guard !isPoweredOff || takePowerOn() else {
      engine.requestSleep()
      return false
    }
    if dueFlag.value.exchange(false, ordering: .acquiringAndReleasing) {
      updateTimers()
      if performance.isRunning {
        countPerformance()
        updatePerformanceMonitor()
      }
    }
    let lines = interruptLines
    if lines == 0 { return false }
    return takeInterrupt(lines)
  }

  /// Physical interrupts go to EL3 or EL2 if SCR_EL3 or HCR_EL2 says so, whatever the lower levels mask; virtual ones to
  /// EL1 [D1.3.6].
  private func takeInterrupt(_ lines: UInt64) -> Bool {
    let level = s[.exceptionLevel]
    let daif = s[.daif]
    let hcr = s[.hcr]
    let scr = s[.scr]
    func take(
      _ vector: Vector, _ physical: UInt64, _ virtual: UInt64, route: UInt64, monitor: UInt64, mask: UInt64
    ) -> Bool {
      if lines & physical != 0 {
        let target: UInt64 = scr & monitor != 0 ? 3 : hcr & (route | HCR.general) != 0 ? 2 : 1
        // Masks of lower levels do not keep EL2's and EL3's away, and these take none of lower levels.
        if level < target && target >= 2 || level <= target && daif & mask == 0 {
          enterException(vector, to: target, syndrome: nil, returnTo: s.pc)
          return true
        }
      }
      if lines & virtual != 0, level < 2, daif & mask == 0, hcr & (route | HCR.general) == route {
        if vector == .systemError { setHypervisorControl(hcr & ~HCR.virtualError) }
        enterException(
          vector, to: 1, syndrome: vector == .systemError ? Syndrome.systemError : nil, returnTo: s.pc)
        return true
      }
      return false
    }
    return take(
      .systemError, 0, 1 << 6, route: HCR.error, monitor: SCR.externalAborts, mask: PState.errorMask)
      || take(.fiq, 2, 1 << 3 | 1 << 5, route: HCR.fiq, monitor: SCR.fiq, mask: PState.fiqMask)
      || take(.irq, 1, 1 << 2 | 1 << 4, route: HCR.irq, monitor: SCR.irq, mask: PState.irqMask)
  }

  /// The interrupt inputs as they are for the current level: with two security states, GICv3's group 1 of the other state
  /// is an FIQ, and at EL3 both groups 1 are [IHI 0069H §4.6.2].
  var interruptLines: UInt64 {
    let lines = apus_load_relaxed64(state + AArch64SystemSlot.interruptLines.offset)
    guard hasMonitor, lines & (1 | 1 << 7) != 0, system?.environment.hasRegisters == true else {
      return lines
    }
    let own: UInt64 = s[.exceptionLevel] == 3 ? 0 : isSecure ? 1 << 7 : 1
    let groups = lines & (1 | 1 << 7)
    return lines & ~groups | (groups & own != 0 ? 1 : 0) | (groups & ~own != 0 ? 2 : 0)
  }

  /// Sets HCR_EL2, which counts for nothing where EL2 has no place, the secure state. VI, VF and VSE are interrupt lines.
  func setHypervisorControl(_ written: UInt64) {
    s[.hcrWritten] = written
    let hcr = isSecure ? HCR.wide : written
    s[.hcr] = hcr
    let lines = state + AArch64SystemSlot.interruptLines.offset
    _ = apus_fetch_and64(lines, ~(7 << 4))
    let bits = (hcr >> 7 & 1) << 4 | (hcr >> 6 & 1) << 5 | (hcr >> 8 & 1) << 6
    if bits != 0 { _ = apus_fetch_or64(lines, bits) }
  }
}
