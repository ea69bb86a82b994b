import ApusCPU
import ApusGuest

/// PMUv3's counters [Arm ARM D13]: cycles, at one a nanosecond, and software's increments.
struct PerformanceMonitor {
  static let counterCount = 6
  /// The cycle counter's index, as its bit in the registers.
  static let cycleCounter = 31
  enum Event {
    static let softwareIncrement: UInt64 = 0
    static let cycles: UInt64 = 0x11
    /// PMCEID0_EL0.
    static let implemented: UInt64 = 1 << softwareIncrement | 1 << cycles
  }
  struct Counter {
    var value: UInt64 = 0
    /// PMEVTYPER or PMCCFILTR: the event; bit 31 P not in EL1, bit 30 U not in EL0.
    var type: UInt64 = 0
  }
  static let implementedBits: UInt64 = 1 << UInt64(cycleCounter) | (1 << UInt64(counterCount) - 1)

  /// EL2 is there, which counters leave out unless their NSH (bit 27) says otherwise.
  var hasHypervisor = false
  /// EL3 is there: filters for it, NSK, NSU and M (bits 29, 28 and 26), tell states apart.
  var hasMonitor = false
  /// PMCR_EL0's E, D and LC.
  var control: UInt64 = 0
  var enabled: UInt64 = 0
  var overflowed: UInt64 = 0
  var interrupts: UInt64 = 0
  var selected: UInt64 = 0
  /// PMUSERENR_EL0.
  var userAccess: UInt64 = 0
  /// The event counters, then the cycle counter.
  var counters = Array(repeating: Counter(), count: counterCount + 1)
  /// When time was counted last; nanoseconds.
  var countedUntil: UInt64 = 0

  var isRunning: Bool { control & 1 != 0 && enabled != 0 }
  var isInterrupting: Bool { control & 1 != 0 && overflowed & interrupts != 0 }

  func bit(_ index: Int) -> UInt64 { 1 << UInt64(index == Self.counterCount ? Self.cycleCounter : index) }
  private func isCounting(_ index: Int, _ place: Place) -> Bool {
    guard control & 1 != 0, enabled & bit(index) != 0 else { return false }
    let type = counters[index].type
    func has(_ bit: UInt64) -> Bool { type >> bit & 1 != 0 }
    if place.isProhibited, index != Self.counterCount { return false }
    switch place.level {
    case 3: return has(26) == has(31)
    case 2: return has(27)
    // Where there are two states, the other filter says whether the non-secure one is as the secure one.
    case 1: return hasMonitor && !place.isSecure ? has(29) == has(31) : !has(31)
    default: return hasMonitor && !place.isSecure ? has(28) == has(30) : !has(30)
    }
  }
  private func countsCycles(_ index: Int) -> Bool {
    index == Self.counterCount || counters[index].type & 0x3ff == Event.cycles
  }
  /// A counter's bits; the cycle counter has 64 where PMCR_EL0.LC says so.
  private func width(_ index: Int) -> UInt64 { index == Self.counterCount && control >> 6 & 1 != 0 ? 64 : 32 }

  private mutating func add(_ amount: UInt64, to index: Int) {
    let old = counters[index].value
    let (sum, carry) = old.addingReportingOverflow(amount)
    let overflows = width(index) == 64 ? carry : (old & 0xffff_ffff + amount) >> 32 != 0
    counters[index].value = index == Self.counterCount ? sum : sum & 0xffff_ffff
    if overflows { overflowed |= bit(index) }
  }

  /// Where a CPU is, as far as counters care.
  struct Place {
    var level: UInt64
    var isSecure = false
    /// MDCR_EL3 keeps event counters from the secure state.
    var isProhibited = false
  }

  /// Counts the time since the last call, in which the CPU was at `place`.
  mutating func count(until now: UInt64, _ place: Place) {
    // PMCR_EL0.D: every 64th cycle, of the cycle counter.
    let elapsed = now &- countedUntil
    countedUntil = now
    for index in counters.indices where countsCycles(index) && isCounting(index, place) {
      let isDivided = index == Self.counterCount && control & 8 != 0
      add(isDivided ? now / 64 - (now - elapsed) / 64 : elapsed, to: index)
    }
  }

  /// PMSWINC_EL0.
  mutating func increment(_ bits: UInt64, _ place: Place) {
    for index in 0..<Self.counterCount
    where bits & bit(index) != 0 && counters[index].type & 0x3ff == Event.softwareIncrement
      && isCounting(index, place)
    {
      add(1, to: index)
    }
  }

  /// Nanoseconds until a counter that may interrupt overflows, if it goes on as now.
  func timeToOverflow(_ place: Place) -> UInt64? {
    var soonest: UInt64?
    for index in counters.indices
    where countsCycles(index) && isCounting(index, place) && interrupts & bit(index) != 0
      && overflowed & bit(index) == 0 && width(index) == 32
    {
      var left = 1 << 32 - counters[index].value & 0xffff_ffff
      if index == Self.counterCount, control & 8 != 0 { left *= 64 }
      soonest = min(soonest ?? .max, left)
    }
    return soonest
  }

  mutating func writeControl(_ value: UInt64) {
    control = value & (1 | 1 << 3 | 1 << 6)
    if value & 2 != 0 { for index in 0..<Self.counterCount { counters[index].value = 0 } }
    if value & 4 != 0 { counters[Self.counterCount].value = 0 }
  }
  /// PMCR_EL0: the number of counters in bits 15 to 11.
  var controlRegister: UInt64 { UInt64(Self.counterCount) << 11 | control }
}

extension AArch64CPU {
  /// Before the exception level or anything about the counters changes.
  func countPerformance() { performance.count(until: clock.nowNanoseconds(), performancePlace) }

  private var performancePlace: PerformanceMonitor.Place {
    let isSecure = isSecure || s[.exceptionLevel] == 3
    return .init(
      level: s[.exceptionLevel], isSecure: isSecure,
      isProhibited: isSecure && s[.mdcr3] & MDCR.secureCounting == 0)
  }

  /// After a change: the interrupt's level, and when to look again.
  func updatePerformanceMonitor() {
    guard let system else { return }
    if let old = performanceTimer { system.eventLoop.cancel(old) }
    performanceTimer = nil
    system.environment.setPerformanceLine(index, performance.isInterrupting)
    guard let left = performance.timeToOverflow(performancePlace) else { return }
    performanceTimer = system.eventLoop.schedule(at: clock.hostDeadline(clock.nowNanoseconds() + left)) {
      [dueFlag, wake] in
      dueFlag.value.store(true, ordering: .releasing)
      wake()
    }
  }

  /// The index of a counter register: CRm's lower two bits and op2; `nil` if it is not there.
  private func counterIndex(_ key: AArch64SystemKey) -> Int? {
    let number = Int(key.m & 3) << 3 | Int(key.op2)
    if number == PerformanceMonitor.cycleCounter { return PerformanceMonitor.counterCount }
    return number < PerformanceMonitor.counterCount ? number : nil
  }
  private var selectedIndex: Int? {
    if performance.selected == 31 { return PerformanceMonitor.counterCount }
    return performance.selected < PerformanceMonitor.counterCount ? Int(performance.selected) : nil
  }

  /// PMUSERENR_EL0 [D19.5.28]: EN everything, SW increments, CR the cycle counter, ER the others.
  func isPerformanceAccessible(_ key: AArch64SystemKey, isWrite: Bool) -> Bool {
    guard s[.exceptionLevel] == 0 else { return true }
    if performance.userAccess & 1 != 0 { return !(isWrite && key == .init(3, 3, 9, 14, 0)) && key.op1 == 3 }
    switch (key.n, key.m, key.op2) {
    case (9, 14, 0): return !isWrite
    case (9, 12, 4): return performance.userAccess & 2 != 0
    case (9, 13, 0): return !isWrite && performance.userAccess & 4 != 0
    case (9, 12, 5): return performance.userAccess & 8 != 0
    case (9, 13, 2), (14, 8...11, _): return !isWrite && performance.userAccess & 8 != 0
    default: return false
    }
  }

  /// `nil`: undefined.
  func readPerformance(_ key: AArch64SystemKey) -> UInt64? {
    guard isPerformanceAccessible(key, isWrite: false) else { return nil }
    countPerformance()
    switch (key.op1, key.n, key.m, key.op2) {
    case (3, 9, 12, 0): return performance.controlRegister
    case (3, 9, 12, 1), (3, 9, 12, 2): return performance.enabled
    case (3, 9, 12, 3), (3, 9, 14, 3): return performance.overflowed
    case (3, 9, 12, 5): return performance.selected
    case (3, 9, 12, 6): return PerformanceMonitor.Event.implemented
    case (3, 9, 12, 7): return 0
    case (3, 9, 13, 0): return performance.counters[PerformanceMonitor.counterCount].value
    case (3, 9, 13, 1): return selectedIndex.map { performance.counters[$0].type } ?? 0
    case (3, 9, 13, 2):
      return selectedIndex.map { $0 < PerformanceMonitor.counterCount ? performance.counters[$0].value : 0 }
        ?? 0
    case (3, 9, 14, 0): return performance.userAccess
    case (0, 9, 14, 1), (0, 9, 14, 2): return performance.interrupts
    case (3, 14, 8...11, _):
      guard let index = counterIndex(key), index < PerformanceMonitor.counterCount else { return nil }
      return performance.counters[index].value
    case (3, 14, 12...15, _): return counterIndex(key).map { performance.counters[$0].type }
    default: return nil
    }
  }

  /// False: undefined.
  func writePerformance(_ key: AArch64SystemKey, _ value: UInt64) -> Bool {
    guard isPerformanceAccessible(key, isWrite: true) else { return false }
    countPerformance()
    let bits = value & PerformanceMonitor.implementedBits
    func setType(_ index: Int) {
      // Event, and the filters P, U, NSH; NSK, NSU and M.
      var filters: UInt64 = performance.hasHypervisor ? 0xc800_0000 : 0xc000_0000
      if performance.hasMonitor { filters |= 0x3400_0000 }
      performance.counters[index].type =
        value & (index == PerformanceMonitor.counterCount ? filters : filters | 0x3ff)
    }
    switch (key.op1, key.n, key.m, key.op2) {
    case (3, 9, 12, 0): performance.writeControl(value)
    case (3, 9, 12, 1): performance.enabled |= bits
    case (3, 9, 12, 2): performance.enabled &= ~bits
    case (3, 9, 12, 3): performance.overflowed &= ~bits
    case (3, 9, 14, 3): performance.overflowed |= bits
    case (3, 9, 12, 4): performance.increment(bits, performancePlace)
    case (3, 9, 12, 5): performance.selected = value & 31
    case (3, 9, 13, 0): performance.counters[PerformanceMonitor.counterCount].value = value
    case (3, 9, 13, 1): if let index = selectedIndex { setType(index) }
    case (3, 9, 13, 2):
      if let index = selectedIndex, index < PerformanceMonitor.counterCount {
        performance.counters[index].value = value & 0xffff_ffff
      }
    case (3, 9, 14, 0): performance.userAccess = value & 15
    case (0, 9, 14, 1): performance.interrupts |= bits
    case (0, 9, 14, 2): performance.interrupts &= ~bits
    case (3, 14, 8...11, _):
      guard let index = counterIndex(key), index < PerformanceMonitor.counterCount else { return false }
      performance.counters[index].value = value & 0xffff_ffff
    case (3, 14, 12...15, _):
      guard let index = counterIndex(key) else { return false }
      setType(index)
    default: return false
    }
    updatePerformanceMonitor()
    engine.requestInterruptCheck()
    return true
  }
}
