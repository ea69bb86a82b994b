import ApusCPU
import ApusGuest

// The generic timer: physical and virtual counter and timer of EL1 [Arm ARM D11]. Both counters are the same.

extension AArch64CPU {
  private static let nanosecondsPerTick = 1_000_000_000 / counterFrequency

  /// CNTPCT_EL0 and CNTVCT_EL0.
  func counter() -> UInt64 { clock.nowNanoseconds() / Self.nanosecondsPerTick }

  private func slots(_ timer: ArmCPUEnvironment.Timer) -> (
    control: AArch64SystemSlot, compare: AArch64SystemSlot
  ) {
    timer == .physical ? (.cntpControl, .cntpCompare) : (.cntvControl, .cntvCompare)
  }

  /// - Parameter index: 0 TVAL, 1 CTL, 2 CVAL.
  func readTimer(_ timer: ArmCPUEnvironment.Timer, _ index: UInt16) -> UInt64 {
    let (control, compare) = slots(timer)
    switch index {
    case 0: return (s[compare] &- counter()) & 0xffff_ffff
    case 1:
      let isDue = s[control] & 1 != 0 && counter() >= s[compare]
      return s[control] | (isDue ? 4 : 0)
    default: return s[compare]
    }
  }

  func writeTimer(_ timer: ArmCPUEnvironment.Timer, _ index: UInt16, _ value: UInt64) {
    let (control, compare) = slots(timer)
    switch index {
    case 0: s[compare] = counter() &+ UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value)))
    case 1: s[control] = value & 3
    default: s[compare] = value
    }
    update(timer)
  }

  /// Brings the lines and the event loop's timers in line with the registers.
  func updateTimers() { for timer in ArmCPUEnvironment.Timer.allCases { update(timer) } }

  private func update(_ timer: ArmCPUEnvironment.Timer) {
    guard let system else { return }
    if let old = scheduled[timer.rawValue] { system.eventLoop.cancel(old) }
    scheduled[timer.rawValue] = nil
    let (control, compare) = slots(timer)
    let isEnabled = s[control] & 1 != 0
    let isDue = isEnabled && counter() >= s[compare]
    system.environment.setTimer(index, timer, isDue && s[control] & 2 == 0)
    guard isEnabled, !isDue, s[control] & 2 == 0 else { return }
    let (deadline, overflow) = s[compare].multipliedReportingOverflow(by: Self.nanosecondsPerTick)
    guard !overflow else { return }
    // The CPU's own thread sets the line: the registers may change before the loop gets to it.
    scheduled[timer.rawValue] = system.eventLoop.schedule(at: clock.hostDeadline(deadline)) {
      [dueFlag, wake] in
      dueFlag.value.store(true, ordering: .releasing)
      wake()
    }
  }
}
