import ApusGuest
import ApusIR
import CApusHost

/// Exception syndromes [Arm ARM D19.2.37].
enum Syndrome {
  static let undefined: UInt64 = 0x02 << 24
  static let floatTrap: UInt64 = 0x07 << 26 | 1 << 25 | 0x1e << 20
  static func call(_ exceptionClass: UInt64, _ immediate: UInt64) -> UInt64 {
    exceptionClass << 26 | 1 << 25 | immediate
  }
  static let supervisorCall: UInt64 = 0x15
  static let hypervisorCall: UInt64 = 0x16
  static let secureMonitorCall: UInt64 = 0x17
  static let breakpoint: UInt64 = 0x3c
  // Debug exceptions from EL0; those from the same level are one more.
  static let breakPoint: UInt64 = 0x30
  static let softwareStep: UInt64 = 0x32
  static let watchPoint: UInt64 = 0x34
  static let debug: UInt64 = 0x22
  static let misalignedPC: UInt64 = 0x22 << 26 | 1 << 25

  // Fault numbers: what faulted from bit 32, and the syndrome's lower bits without the class.
  static let isData: UInt64 = 1 << 32
  static let isWrite: UInt64 = 1 << 6
  static let isWatch: UInt64 = 1 << 33
  static func fault(_ status: UInt64, _ access: GuestAccess) -> UInt64 {
    switch access {
    case .fetch: status
    case .load: isData | status
    case .store: isData | isWrite | status
    }
  }
}

/// SPSR_EL1's bits [C5.2.19].
enum PState {
  static let condition: UInt64 = 0xf000_0000
  static let pan: UInt64 = 1 << 22
  static let step: UInt64 = 1 << 21
  static let illegal: UInt64 = 1 << 20
  static let daif: UInt64 = 0x3c0
  static let irqMask: UInt64 = 1 << 7
  static let fiqMask: UInt64 = 1 << 6
}

extension AArch64CPU {
  // MARK: Entry and return

  enum Vector: UInt64 {
    case synchronous = 0
    case irq = 0x80
    case fiq = 0x100
  }

  /// Takes an exception to EL1 [D1.3]. Afterwards the state is the handler's.
  func enterException(_ vector: Vector, syndrome: UInt64?, address: UInt64? = nil, returnTo pc: UInt64) {
    if let syndrome { s[.esr] = syndrome }
    if let address { s[.far] = address }
    onException?(vector.rawValue, syndrome ?? 0, address ?? 0, pc)
    let level = s[.exceptionLevel]
    if performance.isRunning { countPerformance() }
    let usesOwnStack = s[.stackSelect]
    s[.elr] = pc
    s[.spsr] =
      s.nzcv | s[.daif] | s[.pan] | s[.statusBits] | s[.step] & PState.step | level << 2 | usesOwnStack
    s[.step] = 0
    // SSBS becomes SCTLR_EL1.DSSBS.
    s[.statusBits] = features.contains(.ssbs) ? s[.sctlr] >> 44 & 1 << 12 : 0
    selectStack(level: 1, selected: 1)
    s[.daif] = PState.daif
    if features.hasPAN, s[.sctlr] >> 23 & 1 == 0 { s[.pan] = PState.pan }
    let origin: UInt64 = level == 0 ? 0x400 : usesOwnStack != 0 ? 0x200 : 0
    s.pc = s[.vbar] &+ origin &+ vector.rawValue
    forgetReservation()
    updateMode()
    s.requestDispatch()
  }

  /// eret.
  func returnFromException() {
    let status = s[.spsr]
    s.pc = s[.elr]
    forgetReservation()
    // AArch32, higher levels and EL0 with a stack pointer that it does not have [D1.4.4].
    let level = status >> 2 & 3
    if performance.isRunning { countPerformance() }
    let couldStep = canDebug(level: s[.exceptionLevel])
    s[.step] = 0
    guard status & 0x12 == 0, level <= 1, level == 1 || status & 1 == 0 else {
      s.nzcv = status & PState.condition
      s[.daif] = status & PState.daif
      return enterException(.synchronous, syndrome: 0x0e << 26 | 1 << 25, returnTo: s.pc)
    }
    selectStack(level: level, selected: status & 1)
    s.nzcv = status & PState.condition
    s[.daif] = status & PState.daif
    if features.hasPAN { s[.pan] = status & PState.pan }
    s[.statusBits] = status & statusMask
    if s[.mdscr] & MDSCR.step != 0, !couldStep, canDebug(level: level) { s[.step] = status & PState.step }
    updateMode()
    engine.requestInterruptCheck()
    s.requestDispatch()
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
    let wasOwn = s[.stackSelect] != 0
    let isOwn = selected != 0
    if wasOwn != isOwn {
      s[wasOwn ? AArch64SystemSlot.spEL1 : .spEL0] = s[x: 31]
      s[x: 31] = s[isOwn ? AArch64SystemSlot.spEL1 : .spEL0]
    }
    s[.exceptionLevel] = level
    s[.stackSelect] = selected
  }

  // MARK: Causes

  /// The instruction at the PC causes an exception with this syndrome.
  func trap(_ syndrome: UInt64, address: UInt64? = nil) {
    enterException(.synchronous, syndrome: syndrome, address: address, returnTo: s.pc)
  }

  /// An access's fault number as an exception.
  func enterAbort(_ fault: UInt64, address: UInt64) {
    let isSame = s[.exceptionLevel] != 0
    let lower: UInt64 =
      fault & Syndrome.isWatch != 0 ? Syndrome.watchPoint : fault & Syndrome.isData != 0 ? 0x24 : 0x20
    let exceptionClass = lower + (isSame ? 1 : 0)
    trap(exceptionClass << 26 | 1 << 25 | fault & 0x1ff_ffff, address: address)
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
    let lines = apus_load_relaxed64(state + AArch64SystemSlot.interruptLines.offset)
    if lines == 0 { return false }
    if lines & 2 != 0, s[.daif] & PState.fiqMask == 0 {
      enterException(.fiq, syndrome: nil, returnTo: s.pc)
      return true
    }
    if lines & 1 != 0, s[.daif] & PState.irqMask == 0 {
      enterException(.irq, syndrome: nil, returnTo: s.pc)
      return true
    }
    return false
  }
}
