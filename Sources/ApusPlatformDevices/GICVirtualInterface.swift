/// A CPU's virtual interface: interrupts that EL2 puts into list registers, and what a virtual machine does with them
/// [IHI 0048B.b §5, IHI 0069H §6].
///
/// Versions 2 and 3 give registers the same fields but for those of list registers.
struct GICVirtualInterface {
  struct ListRegister {
    /// The interrupt's number for the virtual machine.
    var number = 0
    /// Of hardware's interrupts the physical number; of version 2's software-generated ones the sender.
    var physical = 0
    var priority: UInt8 = 0
    var group = 0
    var isHardware = false
    /// Software wants a maintenance interrupt when the interrupt has been handled.
    var tellsEnd = false
    /// Bit 0 pending, bit 1 active.
    var state: UInt8 = 0
    var hasEnded: Bool { state == 0 && !isHardware && tellsEnd }
  }

  static let listCount = 4
  /// ICH_VTR_EL2: five bits of priority, all of which preempt; no direct injection.
  static let type: UInt64 = 4 << 29 | 4 << 26 | UInt64(listCount - 1)
  private static let controlWritable: UInt64 = 0xf800_7cff

  /// ICH_HCR_EL2: bit 0 En, bits 1 to 7 which maintenance interrupts are wanted, from bit 27 how many interrupts ended
  /// that are in no list register.
  private(set) var control: UInt64 = 0
  var lists = Array(repeating: ListRegister(), count: listCount)
  var isGroupEnabled = [false, false]
  var priorityMask: UInt8 = 0
  var binaryPoint: [UInt8] = [2, 3]
  var splitsEnd = false
  /// CBPR: the first binary point is both groups'.
  var sharesBinaryPoint = false
  /// Version 2's AckCtl and FIQEn; version 3 always signals group 0 as FIQ.
  var acknowledgesBoth = false
  var signalsFIQ = false
  /// The priorities being handled, as bits, by group; version 2 has one register.
  var activePriorities: [UInt32] = [0, 0]
  // The wires.
  var irq = false
  var fiq = false
  var maintenance = false

  mutating func setControl(_ value: UInt64) { control = value & Self.controlWritable }
  var isEnabled: Bool { control & 1 != 0 }

  /// ICH_VMCR_EL2, GICH_VMCR.
  var machineControl: UInt64 {
    get {
      UInt64(priorityMask) << 24 | UInt64(binaryPoint[0]) << 21 | UInt64(binaryPoint[1]) << 18
        | (splitsEnd ? 1 << 9 : 0) | (sharesBinaryPoint ? 1 << 4 : 0) | (signalsFIQ ? 1 << 3 : 0)
        | (acknowledgesBoth ? 1 << 2 : 0) | (isGroupEnabled[1] ? 2 : 0) | (isGroupEnabled[0] ? 1 : 0)
    }
    set {
      priorityMask = UInt8(newValue >> 24 & 0xff) & GICState.priorityMask
      setBinaryPoint(0, newValue >> 21)
      setBinaryPoint(1, newValue >> 18)
      splitsEnd = newValue >> 9 & 1 != 0
      (sharesBinaryPoint, signalsFIQ) = (newValue >> 4 & 1 != 0, newValue >> 3 & 1 != 0)
      acknowledgesBoth = newValue >> 2 & 1 != 0
      isGroupEnabled = [newValue & 1 != 0, newValue & 2 != 0]
    }
  }
  mutating func setBinaryPoint(_ group: Int, _ value: UInt64) {
    binaryPoint[group] = max(group == 0 ? 2 : 3, UInt8(value & 7))
  }

  // MARK: Maintenance

  /// ICH_EISR_EL2: list registers whose interrupts have ended and whose end was to be told.
  var ended: UInt64 { bits { $0.hasEnded } }
  /// ICH_ELRSR_EL2: those that are free.
  var free: UInt64 { bits { $0.state == 0 && !$0.hasEnded } }
  private func bits(_ holds: (ListRegister) -> Bool) -> UInt64 {
    lists.indices.reduce(0) { $0 | (holds(lists[$1]) ? 1 << UInt64($1) : 0) }
  }

  /// ICH_MISR_EL2.
  var maintenanceStatus: UInt64 {
    guard isEnabled else { return 0 }
    func wants(_ bit: UInt64) -> Bool { control >> bit & 1 != 0 }
    var status: UInt64 = ended != 0 ? 1 : 0
    if wants(1), lists.count(where: { $0.state != 0 }) <= 1 { status |= 1 << 1 }
    if wants(2), control >> 27 != 0 { status |= 1 << 2 }
    if wants(3), !lists.contains(where: { $0.state == 1 }) { status |= 1 << 3 }
    for group in 0..<2 as Range<UInt64> {
      if wants(4 + 2 * group), isGroupEnabled[Int(group)] { status |= 1 << (4 + 2 * group) }
      if wants(5 + 2 * group), !isGroupEnabled[Int(group)] { status |= 1 << (5 + 2 * group) }
    }
    return status
  }

  // MARK: Handling

  /// The list register of the most urgent pending interrupt.
  private var best: Int? {
    var best: Int?
    for (index, list) in lists.enumerated() where list.state == 1 && isGroupEnabled[list.group] {
      if let found = best, lists[found].priority <= list.priority { continue }
      best = index
    }
    return best
  }
  var runningPriority: UInt8 {
    let active = activePriorities[0] | activePriorities[1]
    return active == 0 ? 0xff : UInt8(active.trailingZeroBitCount) << 3
  }
  private func preemptionMask(_ group: Int) -> UInt8 {
    let shift = group == 0 || sharesBinaryPoint ? binaryPoint[0] + 1 : binaryPoint[1]
    return shift >= 8 ? 0 : 0xff << shift
  }

  /// The list register whose interrupt is signalled to the virtual machine.
  var signalled: Int? {
    guard isEnabled, let best, lists[best].priority < priorityMask else { return nil }
    let active = activePriorities[0] | activePriorities[1]
    let mask = preemptionMask(lists[best].group)
    guard active == 0 || lists[best].priority & mask < runningPriority & mask else { return nil }
    return best
  }

  /// - Parameters:
  ///   - group: `nil` for version 2's register of both.
  ///   - hasGroups: the priorities of the groups are kept apart (version 3).
  mutating func acknowledge(group: Int?, hasGroups: Bool) -> UInt32 {
    guard let index = signalled, group == nil || lists[index].group == group else { return GICState.spurious }
    let list = lists[index]
    // Version 2's first register tells of the other group only.
    if group == nil, list.group == 1, !acknowledgesBoth { return 1022 }
    // Messages have no active state.
    lists[index].state = list.number >= LPIs.first ? 0 : 2
    let priority = list.priority & preemptionMask(list.group)
    activePriorities[hasGroups ? list.group : 0] |= 1 << UInt32(priority >> 3)
    let sender = !hasGroups && !list.isHardware && list.number < 16 ? UInt32(list.physical & 7) << 10 : 0
    return UInt32(list.number) | sender
  }
  /// What `acknowledge` would give.
  func pendingNumber(group: Int?) -> UInt64 {
    guard let index = signalled, group == nil || lists[index].group == group else {
      return UInt64(GICState.spurious)
    }
    return group == nil && lists[index].group == 1 && !acknowledgesBoth ? 1022 : UInt64(lists[index].number)
  }

  /// Ends an interrupt. Gives the physical one that is to be deactivated, if there is one.
  mutating func end(_ number: Int, group: Int?) -> Int? {
    if (1020..<LPIs.first).contains(number) { return nil }
    let active = activePriorities
    let mostUrgent = active[0].trailingZeroBitCount <= active[1].trailingZeroBitCount ? 0 : 1
    guard active[mostUrgent] != 0, group == nil || group == mostUrgent else { return nil }
    activePriorities[mostUrgent] &= active[mostUrgent] - 1
    return splitsEnd || number >= LPIs.first ? nil : deactivate(number)
  }
  mutating func deactivate(_ number: Int) -> Int? {
    guard let index = lists.firstIndex(where: { $0.number == number && $0.state & 2 != 0 }) else {
      control = (control & 0x7ff_ffff) | (control >> 27 + 1) << 27 & 0xf800_0000
      return nil
    }
    lists[index].state &= 1
    return lists[index].isHardware ? lists[index].physical : nil
  }
}

extension GICState {
  /// Ends or deactivates a virtual machine's interrupt, and the physical one that it stands for.
  mutating func endVirtual(_ cpu: Int, _ number: Int, group: Int?) {
    if let physical = virtual[cpu].end(number, group: group) { deactivate(cpu, physical) }
  }
  mutating func deactivateVirtual(_ cpu: Int, _ number: Int) {
    if let physical = virtual[cpu].deactivate(number) { deactivate(cpu, physical) }
  }
}
