import ApusCPU
import ApusGuest

// The generic timer: physical and virtual counter, the timers of EL1, EL2 and the secure state [Arm ARM D11].

extension AArch64CPU {
  private static let nanosecondsPerTick = 1_000_000_000 / counterFrequency

  /// CNTPCT_EL0.
  func counter() -> UInt64 { clock.nowNanoseconds() / Self.nanosecondsPerTick }
  /// CNTVCT_EL0: CNTVOFF_EL2 has no effect for a host.
  func virtualCounter() -> UInt64 {
    let level = s[.exceptionLevel]
    let isHost = level == 2 ? s[.hcr] & HCR.hostExtensions != 0 : level == 0 && isHost
    return isHost ? counter() : counter() &- s[.cntvOffset]
  }
  /// What a timer compares with.
  private func counter(_ timer: ArmCPUEnvironment.Timer) -> UInt64 {
    timer == .virtual ? counter() &- s[.cntvOffset] : counter()
  }

  private func slots(_ timer: ArmCPUEnvironment.Timer) -> (
    control: AArch64SystemSlot, compare: AArch64SystemSlot
  ) {
    switch timer {
    case .physical: (.cntpControl, .cntpCompare)
    case .virtual: (.cntvControl, .cntvCompare)
    case .hypervisorPhysical: (.cnthpControl, .cnthpCompare)
    case .hypervisorVirtual: (.cnthvControl, .cnthvCompare)
    case .secure: (.cntpsControl, .cntpsCompare)
    }
  }

  /// - Parameter index: 0 TVAL, 1 CTL, 2 CVAL.
  func readTimer(_ timer: ArmCPUEnvironment.Timer, _ index: UInt16) -> UInt64 {
    let (control, compare) = slots(timer)
    switch index {
    case 0: return (s[compare] &- counter(timer)) & 0xffff_ffff
    case 1:
      let isDue = s[control] & 1 != 0 && counter(timer) >= s[compare]
      return s[control] | (isDue ? 4 : 0)
    default: return s[compare]
    }
  }

  func writeTimer(_ timer: ArmCPUEnvironment.Timer, _ index: UInt16, _ value: UInt64) {
    let (control, compare) = slots(timer)
    switch index {
    case 0: s[compare] = counter(timer) &+ UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value)))
    case 1: s[control] = value & 3
    default: s[compare] = value
    }
    update(timer)
  }

  /// Brings the lines and the event loop's timers in line with the registers.
  func updateTimers() { for timer in ArmCPUEnvironment.Timer.allCases { update(timer) } }

  func update(_ timer: ArmCPUEnvironment.Timer) {
    guard let system else { return }
    if let old = scheduled[timer.rawValue] { system.eventLoop.cancel(old) }
    scheduled[timer.rawValue] = nil
    let (control, compare) = slots(timer)
    let isEnabled = s[control] & 1 != 0
    let isDue = isEnabled && counter(timer) >= s[compare]
    system.environment.setTimer(index, timer, isDue && s[control] & 2 == 0)
    guard isEnabled, !isDue, s[control] & 2 == 0 else { return }
    let ticks = timer == .virtual ? s[compare] &+ s[.cntvOffset] : s[compare]
    let (deadline, overflow) = ticks.multipliedReportingOverflow(by: Self.nanosecondsPerTick)
    guard !overflow else { return }
    // The CPU's own thread sets the line: the registers may change before the loop gets to it.
    scheduled[timer.rawValue] = system.eventLoop.schedule(at: clock.hostDeadline(deadline)) {
      [dueFlag, wake] in
      dueFlag.value.store(true, ordering: .releasing)
      wake()
    }
  }
}
