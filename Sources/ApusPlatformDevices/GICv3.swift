import ApusCPU
import ApusDevice
import ApusMemory

/// GICv3's distributor: affinity routing only [IHI 0069H §12.9].
public final class GICv3Distributor: MMIODevice {
  public static let byteCount: UInt64 = 0x10000
  private let gic: GIC
  private let isRestricted: Bool
  /// - Parameter isSecure: the secure state's view; there are two where the controller has two states.
  public init(_ gic: GIC, isSecure: Bool = false) {
    (self.gic, isRestricted) = (gic, gic.hasSecurity && !isSecure)
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let offset32 = Int(offset)
    let isRestricted = self.isRestricted
    switch offset32 {
    case 0: return gic.read { control($0) }
    // 16 bits of numbers; perhaps LPIs; no 1-of-N routing.
    case 4:
      return UInt64(gic.sharedCount / 32) | (gic.memory == nil ? 0 : 1 << 17) | 15 << 19 | 1 << 24 | 1 << 25
        | (gic.hasSecurity ? 1 << 10 : 0)
    case 8: return 0x43b
    case 0xc, 0x10: return 0
    case 0x6000..<0x8000:
      return gic.read { state in
        let number = (offset32 - 0x6000) / 8 - 32
        guard number >= 0, number < state.sharedCount, reachesTarget(number, state) else { return 0 }
        return byteCount == 8
          ? state.routes[number] : state.routes[number] >> UInt64(8 * (offset32 & 4)) & 0xffff_ffff
      }
    case 0xffe8: return 0x3b
    case 0xffd0..<0x10000: return 0
    case 0xd04..<0xd80 where gic.hasSecurity:
      return isRestricted ? 0 : gic.read { $0.readModifier(offset32 - 0xd00, cpu: 0) }
    case 0xe08..<0xf00 where gic.hasSecurity:
      return isRestricted ? 0 : gic.read { $0.readOpenness(offset32 - 0xe00, cpu: 0) }
    // The private interrupts are the redistributors'; priorities, groups and triggers of them read as zero here.
    case _ where Self.isPrivate(offset32), 0x800..<0xc00, 0xd00..<0xf30: return 0
    default:
      let value = gic.read { $0.read(offset32, byteCount, cpu: 0, isRestricted: isRestricted) }
      if let value { return value }
      GIC.misuse("distributor", "read", offset, byteCount)
      return 0
    }
  }

  /// GICD_CTLR. Affinity routing is always on; with one state DS is set, with two it never is.
  private func control(_ state: borrowing GICState) -> UInt64 {
    func bit(_ number: UInt64, _ group: Int) -> UInt64 { state.isGroupForwarded[group] ? 1 << number : 0 }
    if isRestricted { return 1 << 4 | bit(1, 1) }
    return gic.hasSecurity ? 3 << 4 | bit(0, 0) | bit(1, 1) | bit(2, 2) : 0x50 | bit(0, 0) | bit(1, 1)
  }
  /// Whether an access reaches a shared interrupt's target.
  private func reachesTarget(_ number: Int, _ state: borrowing GICState) -> Bool {
    !isRestricted || state.shared.group[number] || state.shared.openness[number] == 3
  }

  private static func isPrivate(_ offset: Int) -> Bool {
    switch offset {
    case 0x80..<0x400: offset & 0x7f < 4
    case 0x400..<0x420, 0xc00..<0xc08: true
    default: false
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let offset32 = Int(offset)
    let isRestricted = self.isRestricted
    if gic.hasSecurity, !isRestricted {
      switch offset32 {
      case 0xd04..<0xd80: return gic.change { $0.writeModifier(offset32 - 0xd00, value, cpu: 0) }
      case 0xe08..<0xf00: return gic.change { $0.writeOpenness(offset32 - 0xe00, value, cpu: 0) }
      default: break
      }
    }
    if Self.isPrivate(offset32) || (0x800..<0xc00).contains(offset32) || (0xd00..<0xf30).contains(offset32) {
      return
    }
    let cpuCount = gic.cpuCount
    let isKnown = gic.change { state in
      switch offset32 {
      case 0 where isRestricted: state.isGroupForwarded[1] = value & 2 != 0
      case 0: state.isGroupForwarded = [value & 1 != 0, value & 2 != 0, gic.hasSecurity && value & 4 != 0]
      case 0x6000..<0x8000:
        let number = (offset32 - 0x6000) / 8 - 32
        guard number >= 0, number < state.sharedCount, reachesTarget(number, state) else { return true }
        if byteCount == 8 {
          state.routes[number] = value
        } else {
          let shift = UInt64(8 * (offset32 & 4))
          state.routes[number] =
            state.routes[number] & ~(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift
        }
        // Any CPU (bit 31) is the first one here.
        let route = state.routes[number]
        let cpu = route >> 31 & 1 != 0 ? 0 : Int(route & 0xff) + Int(route >> 8 & 0xff) * 16
        state.targets[number] = cpu < cpuCount ? 1 << UInt64(cpu) : 0
      default: return state.write(offset32, byteCount, value, cpu: 0, isRestricted: isRestricted)
      }
      return true
    }
    if !isKnown { GIC.misuse("distributor", "write", offset, byteCount) }
  }
}

/// GICv3's redistributors, one behind the other: 64 KiB of control and 64 KiB for a CPU's own interrupts [§12.10].
public final class GICv3Redistributors: MMIODevice {
  public static let byteCountOfEach: UInt64 = 0x20000
  private let gic: GIC
  private let isRestricted: Bool
  /// - Parameter isSecure: the secure state's view; there are two where the controller has two states.
  public init(_ gic: GIC, isSecure: Bool = false) {
    (self.gic, isRestricted) = (gic, gic.hasSecurity && !isSecure)
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let isRestricted = self.isRestricted
    let cpu = Int(offset / Self.byteCountOfEach)
    guard cpu < gic.cpuCount else { return 0 }
    let within = Int(offset % Self.byteCountOfEach)
    switch within {
    case 0: return gic.read { $0.lpis[cpu].isEnabled ? 1 : 0 }
    case 0x10: return 0
    case 0x70..<0x80:
      let value = gic.read { within < 0x78 ? $0.lpis[cpu].properties : $0.lpis[cpu].pendingTable }
      return byteCount == 8 ? value : value >> UInt64(8 * (within & 4)) & 0xffff_ffff
    case 4: return 0x43b
    case 8, 0xc:
      let type =
        UInt64(cpu) << 32 | UInt64(cpu) << 8 | (cpu == gic.cpuCount - 1 ? 1 << 4 : 0)
        | (gic.memory == nil ? 0 : 1)
      return within == 8 ? (byteCount == 8 ? type : type & 0xffff_ffff) : type >> 32
    case 0x14: return gic.read { $0.isAsleep[cpu] && !isRestricted ? 6 : 0 }
    case 0xffe8: return 0x3b
    case 0xffd0..<0x10000: return 0
    case 0x10d00 where gic.hasSecurity && !isRestricted: return gic.read { $0.readModifier(0, cpu: cpu) }
    case 0x10e00 where gic.hasSecurity && !isRestricted: return gic.read { $0.readOpenness(0, cpu: cpu) }
    case 0x10d00, 0x10e00: return 0
    case 0x10080..<0x10d00:
      return gic.read { $0.read(within - 0x10000, byteCount, cpu: cpu, isRestricted: isRestricted) } ?? 0
    default:
      GIC.misuse("redistributor", "read", offset, byteCount)
      return 0
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let cpu = Int(offset / Self.byteCountOfEach)
    guard cpu < gic.cpuCount else { return }
    let within = Int(offset % Self.byteCountOfEach)
    let isRestricted = self.isRestricted
    switch within {
    case 0: if gic.memory != nil { gic.enableLPIs(cpu, value & 1 != 0) }
    case 0x70..<0x80:
      guard gic.memory != nil else { break }
      gic.change { state in
        guard !state.lpis[cpu].isEnabled else { return }
        func merged(_ old: UInt64) -> UInt64 {
          if byteCount == 8 { return value }
          let shift = UInt64(8 * (within & 4))
          return old & ~(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift
        }
        if within < 0x78 {
          state.lpis[cpu].properties = merged(state.lpis[cpu].properties)
        } else {
          state.lpis[cpu].pendingTable = merged(state.lpis[cpu].pendingTable)
        }
      }
    case 0x10d00 where gic.hasSecurity && !isRestricted: gic.change { $0.writeModifier(0, value, cpu: cpu) }
    case 0x10e00 where gic.hasSecurity && !isRestricted: gic.change { $0.writeOpenness(0, value, cpu: cpu) }
    case 0x10d00, 0x10e00: break
    case 0x14: if !isRestricted { gic.change { $0.isAsleep[cpu] = value & 2 != 0 } }
    case 0x10080..<0x10d00:
      _ = gic.change {
        $0.write(within - 0x10000, byteCount, value, cpu: cpu, isRestricted: isRestricted)
      }
    default: GIC.misuse("redistributor", "write", offset, byteCount)
    }
  }
}

/// GICv3's CPU interface: the system registers ICC_* [§12.2].
extension GIC {
  private static func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16, op1: UInt16 = 0) -> UInt16 {
    3 << 14 | op1 << 11 | n << 7 | m << 3 | op2
  }
  /// The group that names of group 1's registers mean.
  private func group1(_ access: ArmCPUEnvironment.Interface) -> Int { hasSecurity && access.isSecure ? 2 : 1 }
  /// The index in `splitsEnd`.
  private func accessor(_ access: ArmCPUEnvironment.Interface) -> Int {
    hasSecurity ? access.isMonitor ? 2 : access.isSecure ? 0 : 1 : 1
  }
  private func isRestricted(_ access: ArmCPUEnvironment.Interface) -> Bool {
    hasSecurity && !access.isMonitor && !access.isSecure
  }
  /// Whether a register of `group` is about an interrupt of `found`: EL3's accesses to group 1's are about both states'.
  private func concerns(_ group: Int, _ found: Int, _ access: ArmCPUEnvironment.Interface) -> Bool {
    group == found || hasSecurity && access.isMonitor && group != 0 && found != 0
  }
  /// The interrupt that would be acknowledged, or a special number: EL3, which asks for group 0, hears of the others.
  private func pending(
    _ cpu: Int, group: Int, _ access: ArmCPUEnvironment.Interface, _ state: borrowing GICState
  )
    -> (number: UInt32, isSpecial: Bool)
  {
    guard let found = state.signalled(cpu) else { return (GICState.spurious, true) }
    if concerns(group, found.group, access) { return (UInt32(found.number), false) }
    guard hasSecurity, group == 0, access.isMonitor else { return (GICState.spurious, true) }
    return (found.group == 2 ? 1020 : 1021, true)
  }
  private func acknowledge(_ cpu: Int, group: Int, _ access: ArmCPUEnvironment.Interface) -> UInt64 {
    UInt64(
      change { state in
        let pending = pending(cpu, group: group, access, state)
        return pending.isSpecial ? pending.number : state.acknowledge(cpu, group: nil) & 0xff_ffff
      })
  }

  /// - Parameter register: op0 to op2 in 16 bits. `nil`: there is none.
  public func readRegister(
    _ cpu: Int, _ register: UInt16, _ access: ArmCPUEnvironment.Interface = .physical
  ) -> UInt64? {
    guard version == .v3 else { return nil }
    if register >> 11 & 7 == 4 { return readHypervisorRegister(cpu, register) }
    if access.isVirtual { return readVirtualRegister(cpu, register) }
    let isShifted = isRestricted(access) && access.keepsGroup0
    let group1 = group1(access)
    switch register {
    case Self.key(4, 6, 0): return read { UInt64($0.priorityMask(cpu, isShifted: isShifted)) }
    case Self.key(12, 8, 0): return acknowledge(cpu, group: 0, access)
    case Self.key(12, 12, 0): return acknowledge(cpu, group: group1, access)
    case Self.key(12, 8, 2): return read { UInt64(pending(cpu, group: 0, access, $0).number) }
    case Self.key(12, 12, 2): return read { UInt64(pending(cpu, group: group1, access, $0).number) }
    case Self.key(12, 8, 3): return read { UInt64($0.interfaces[cpu].binaryPoint[0]) }
    case Self.key(12, 12, 3):
      return read {
        let interface = $0.interfaces[cpu]
        guard interface.sharesBinaryPoint[group1] else { return UInt64(interface.binaryPoint[group1]) }
        return UInt64(min(7, interface.binaryPoint[0] + (group1 == 1 ? 1 : 0)))
      }
    case Self.key(12, 8, 4): return read { $0.activePriorities(cpu, group: hasSecurity ? 0 : nil) }
    case Self.key(12, 9, 0): return read { $0.activePriorities(cpu, group: hasSecurity ? group1 : nil) }
    case Self.key(12, 11, 3): return read { UInt64($0.runningPriority(cpu, isShifted: isShifted)) }
    case Self.key(12, 12, 4):
      let accessor = hasSecurity && access.isSecure ? 0 : 1
      return read {
        let interface = $0.interfaces[cpu]
        return 4 << 8 | (interface.splitsEnd[accessor] ? 2 : 0)
          | (interface.sharesBinaryPoint[group1] ? 1 : 0)
      }
    case Self.key(12, 12, 5): return 7
    case Self.key(12, 12, 6): return read { $0.interfaces[cpu].isGroupEnabled[0] ? 1 : 0 }
    case Self.key(12, 12, 7): return read { $0.interfaces[cpu].isGroupEnabled[group1] ? 1 : 0 }
    // ICC_CTLR_EL3: security cannot be switched off.
    case Self.key(12, 12, 4, op1: 6) where hasSecurity:
      return read {
        let interface = $0.interfaces[cpu]
        func bit(_ number: UInt64, _ holds: Bool) -> UInt64 { holds ? 1 << number : 0 }
        return 1 << 17 | 4 << 8 | bit(0, interface.sharesBinaryPoint[2])
          | bit(1, interface.sharesBinaryPoint[1]) | bit(2, interface.splitsEnd[2])
          | bit(3, interface.splitsEnd[0]) | bit(4, interface.splitsEnd[1])
      }
    case Self.key(12, 12, 7, op1: 6) where hasSecurity:
      return read {
        ($0.interfaces[cpu].isGroupEnabled[1] ? 1 : 0) | ($0.interfaces[cpu].isGroupEnabled[2] ? 2 : 0)
      }
    default: return nil
    }
  }

  /// False: there is none.
  public func writeRegister(
    _ cpu: Int, _ register: UInt16, _ value: UInt64, _ access: ArmCPUEnvironment.Interface = .physical
  ) -> Bool {
    guard version == .v3 else { return false }
    if register >> 11 & 7 == 4 { return writeHypervisorRegister(cpu, register, value) }
    if access.isVirtual { return writeVirtualRegister(cpu, register, value) }
    let isRestricted = isRestricted(access)
    let group1 = group1(access)
    let number = Int(value & 0xff_ffff)
    func end(_ group: Int, _ state: inout GICState) {
      if hasSecurity {
        guard let running = state.interfaces[cpu].running.last, concerns(group, running.group, access) else {
          return
        }
      }
      state.end(cpu, number, splits: accessor(access), isRestricted: isRestricted)
    }
    return change { state in
      switch register {
      case Self.key(4, 6, 0):
        state.setPriorityMask(cpu, value, isShifted: isRestricted && access.keepsGroup0)
      case Self.key(12, 8, 1): end(0, &state)
      case Self.key(12, 12, 1): end(group1, &state)
      case Self.key(12, 8, 3): state.interfaces[cpu].binaryPoint[0] = max(2, UInt8(value & 7))
      case Self.key(12, 12, 3):
        if !state.interfaces[cpu].sharesBinaryPoint[group1] {
          state.interfaces[cpu].binaryPoint[group1] = max(group1 == 1 ? 3 : 2, UInt8(value & 7))
        }
      case Self.key(12, 8, 4), Self.key(12, 9, 0):
        let group = register == Self.key(12, 8, 4) ? 0 : group1
        if value == 0 { state.interfaces[cpu].running.removeAll { !hasSecurity || $0.group == group } }
      case Self.key(12, 11, 1): state.deactivate(cpu, number, isRestricted: isRestricted)
      // ICC_SGI1R: group 1 of the own state; ICC_ASGI1R: of the other; ICC_SGI0R.
      case Self.key(12, 11, 5): send(value, from: cpu, group: group1, isRestricted, &state)
      case Self.key(12, 11, 6): send(value, from: cpu, group: 3 - group1, isRestricted, &state)
      case Self.key(12, 11, 7): send(value, from: cpu, group: 0, isRestricted, &state)
      case Self.key(12, 12, 4):
        state.interfaces[cpu].splitsEnd[hasSecurity && access.isSecure ? 0 : 1] = value & 2 != 0
        if hasSecurity { state.interfaces[cpu].sharesBinaryPoint[group1] = value & 1 != 0 }
      case Self.key(12, 12, 5): break
      case Self.key(12, 12, 6): state.interfaces[cpu].isGroupEnabled[0] = value & 1 != 0
      case Self.key(12, 12, 7): state.interfaces[cpu].isGroupEnabled[group1] = value & 1 != 0
      case Self.key(12, 12, 4, op1: 6) where hasSecurity:
        state.interfaces[cpu].sharesBinaryPoint = [false, value & 2 != 0, value & 1 != 0]
        state.interfaces[cpu].splitsEnd = [value & 8 != 0, value & 16 != 0, value & 4 != 0]
      case Self.key(12, 12, 7, op1: 6) where hasSecurity:
        state.interfaces[cpu].isGroupEnabled[1] = value & 1 != 0
        state.interfaces[cpu].isGroupEnabled[2] = value & 2 != 0
      default: return false
      }
      return true
    }
  }

  /// ICC_SGI1R_EL1 and its like. With two states the interrupt must be of `group` where it goes to, and open enough if the
  /// non-secure state sends it to the secure one.
  private func send(
    _ value: UInt64, from sender: Int, group: Int, _ isRestricted: Bool, _ state: inout GICState
  ) {
    let number = Int(value >> 24 & 15)
    func send(to cpu: Int) {
      if hasSecurity {
        let found = state.own[cpu].groupNumber(number)
        guard found == group else { return }
        if isRestricted, found != 1, state.own[cpu].openness[number] < (found == 0 ? 1 : 2) { return }
      }
      state.send(number, from: 0, to: cpu)
    }
    if value >> 40 & 1 != 0 {
      for cpu in 0..<cpuCount where cpu != sender { send(to: cpu) }
      return
    }
    let base = Int(value >> 44 & 15) * 16 + Int(value >> 16 & 0xff) * 16
    for bit in 0..<16 where value >> UInt64(bit) & 1 != 0 && base + bit < cpuCount { send(to: base + bit) }
  }
}
