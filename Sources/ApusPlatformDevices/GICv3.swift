import ApusCPU
import ApusDevice
import ApusMemory

/// GICv3's distributor: affinity routing only, one security state [IHI 0069H §12.9].
public final class GICv3Distributor: MMIODevice {
  public static let byteCount: UInt64 = 0x10000
  private let gic: GIC
  public init(_ gic: GIC) { self.gic = gic }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let offset32 = Int(offset)
    switch offset32 {
    // ARE and DS are always set.
    case 0: return gic.read { 0x50 | ($0.isGroupForwarded[0] ? 1 : 0) | ($0.isGroupForwarded[1] ? 2 : 0) }
    // 16 bits of numbers; perhaps LPIs; no 1-of-N routing.
    case 4:
      return UInt64(gic.sharedCount / 32) | (gic.memory == nil ? 0 : 1 << 17) | 15 << 19 | 1 << 24 | 1 << 25
    case 8: return 0x43b
    case 0xc, 0x10: return 0
    case 0x6000..<0x8000:
      return gic.read { state in
        let number = (offset32 - 0x6000) / 8 - 32
        guard number >= 0, number < state.sharedCount else { return 0 }
        return byteCount == 8
          ? state.routes[number] : state.routes[number] >> UInt64(8 * (offset32 & 4)) & 0xffff_ffff
      }
    case 0xffe8: return 0x3b
    case 0xffd0..<0x10000: return 0
    // The private interrupts are the redistributors'; priorities, groups and triggers of them read as zero here.
    case _ where Self.isPrivate(offset32), 0x800..<0xc00, 0xd00..<0xf30: return 0
    default:
      if let value = gic.read({ $0.read(offset32, byteCount, cpu: 0) }) { return value }
      GIC.misuse("distributor", "read", offset, byteCount)
      return 0
    }
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
    if Self.isPrivate(offset32) || (0x800..<0xc00).contains(offset32) || (0xd00..<0xf30).contains(offset32) {
      return
    }
    let cpuCount = gic.cpuCount
    let isKnown = gic.change { state in
      switch offset32 {
      case 0: state.isGroupForwarded = [value & 1 != 0, value & 2 != 0]
      case 0x6000..<0x8000:
        let number = (offset32 - 0x6000) / 8 - 32
        guard number >= 0, number < state.sharedCount else { return true }
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
      default: return state.write(offset32, byteCount, value, cpu: 0)
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
  public init(_ gic: GIC) { self.gic = gic }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
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
    case 0x14: return gic.read { $0.isAsleep[cpu] ? 6 : 0 }
    case 0xffe8: return 0x3b
    case 0xffd0..<0x10000: return 0
    case 0x10d00, 0x10e00: return 0
    case 0x10080..<0x10d00:
      return gic.read { $0.read(within - 0x10000, byteCount, cpu: cpu) } ?? 0
    default:
      GIC.misuse("redistributor", "read", offset, byteCount)
      return 0
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let cpu = Int(offset / Self.byteCountOfEach)
    guard cpu < gic.cpuCount else { return }
    let within = Int(offset % Self.byteCountOfEach)
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
    case 0x10d00, 0x10e00: break
    case 0x14: gic.change { $0.isAsleep[cpu] = value & 2 != 0 }
    case 0x10080..<0x10d00: _ = gic.change { $0.write(within - 0x10000, byteCount, value, cpu: cpu) }
    default: GIC.misuse("redistributor", "write", offset, byteCount)
    }
  }
}

/// GICv3's CPU interface: the system registers ICC_* [§12.2].
extension GIC {
  private static func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16) -> UInt16 {
    3 << 14 | n << 7 | m << 3 | op2
  }

  /// - Parameter register: op0 to op2 in 16 bits. `nil`: there is none.
  public func readRegister(
    _ cpu: Int, _ register: UInt16, _ interface: ArmCPUEnvironment.Interface = .physical
  ) -> UInt64? {
    guard version == .v3 else { return nil }
    if register >> 11 & 7 == 4 { return readHypervisorRegister(cpu, register) }
    if interface == .virtual { return readVirtualRegister(cpu, register) }
    switch register {
    case Self.key(4, 6, 0): return read { UInt64($0.interfaces[cpu].priorityMask) }
    case Self.key(12, 8, 0): return UInt64(change { $0.acknowledge(cpu, group: 0) } & 0xff_ffff)
    case Self.key(12, 12, 0): return UInt64(change { $0.acknowledge(cpu, group: 1) } & 0xff_ffff)
    case Self.key(12, 8, 2), Self.key(12, 12, 2):
      let group = register == Self.key(12, 12, 2) ? 1 : 0
      return read { state in
        guard let found = state.signalled(cpu), found.group == group else { return 1023 }
        return UInt64(found.number)
      }
    case Self.key(12, 8, 3): return read { UInt64($0.interfaces[cpu].binaryPoint[0]) }
    case Self.key(12, 12, 3): return read { UInt64($0.interfaces[cpu].binaryPoint[1]) }
    case Self.key(12, 8, 4), Self.key(12, 9, 0): return read { $0.activePriorities(cpu) }
    case Self.key(12, 11, 3): return read { UInt64($0.runningPriority(cpu)) }
    case Self.key(12, 12, 4): return read { 4 << 8 | ($0.interfaces[cpu].splitsEnd ? 2 : 0) }
    case Self.key(12, 12, 5): return 7
    case Self.key(12, 12, 6): return read { $0.interfaces[cpu].isGroupEnabled[0] ? 1 : 0 }
    case Self.key(12, 12, 7): return read { $0.interfaces[cpu].isGroupEnabled[1] ? 1 : 0 }
    default: return nil
    }
  }

  /// False: there is none.
  public func writeRegister(
    _ cpu: Int, _ register: UInt16, _ value: UInt64, _ interface: ArmCPUEnvironment.Interface = .physical
  ) -> Bool {
    guard version == .v3 else { return false }
    if register >> 11 & 7 == 4 { return writeHypervisorRegister(cpu, register, value) }
    if interface == .virtual { return writeVirtualRegister(cpu, register, value) }
    return change { state in
      switch register {
      case Self.key(4, 6, 0):
        state.interfaces[cpu].priorityMask = UInt8(truncatingIfNeeded: value) & GICState.priorityMask
      case Self.key(12, 8, 1), Self.key(12, 12, 1): state.end(cpu, Int(value & 0xff_ffff))
      case Self.key(12, 8, 3): state.interfaces[cpu].binaryPoint[0] = max(2, UInt8(value & 7))
      case Self.key(12, 12, 3): state.interfaces[cpu].binaryPoint[1] = max(3, UInt8(value & 7))
      case Self.key(12, 8, 4), Self.key(12, 9, 0): if value == 0 { state.interfaces[cpu].running.removeAll() }
      case Self.key(12, 11, 1): state.deactivate(cpu, Int(value & 0xff_ffff))
      case Self.key(12, 11, 5), Self.key(12, 11, 6), Self.key(12, 11, 7): send(value, from: cpu, &state)
      case Self.key(12, 12, 4): state.interfaces[cpu].splitsEnd = value & 2 != 0
      case Self.key(12, 12, 5): break
      case Self.key(12, 12, 6): state.interfaces[cpu].isGroupEnabled[0] = value & 1 != 0
      case Self.key(12, 12, 7): state.interfaces[cpu].isGroupEnabled[1] = value & 1 != 0
      default: return false
      }
      return true
    }
  }

  /// ICC_SGI1R_EL1.
  private func send(_ value: UInt64, from sender: Int, _ state: inout GICState) {
    let number = Int(value >> 24 & 15)
    if value >> 40 & 1 != 0 {
      for cpu in 0..<cpuCount where cpu != sender { state.send(number, from: 0, to: cpu) }
      return
    }
    let base = Int(value >> 44 & 15) * 16 + Int(value >> 16 & 0xff) * 16
    for bit in 0..<16 where value >> UInt64(bit) & 1 != 0 && base + bit < cpuCount {
      state.send(number, from: 0, to: base + bit)
    }
  }
}
