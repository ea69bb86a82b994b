import ApusDevice
import ApusMemory

// GICv2's virtual interface: a frame for EL2, and one that virtual machines have in place of the CPU interface.

extension GICVirtualInterface.ListRegister {
  /// GICH_LR<n> [IHI 0048B.b §5.3.7].
  init(word: UInt32) {
    number = Int(word & 0x3ff)
    physical = Int(word >> 10 & 0x3ff)
    isHardware = word >> 31 != 0
    tellsEnd = !isHardware && word >> 19 & 1 != 0
    priority = UInt8(word >> 23 & 31) << 3
    group = Int(word >> 30 & 1)
    state = UInt8(word >> 28 & 3)
  }
  var word: UInt32 {
    UInt32(number & 0x3ff) | UInt32(physical & 0x3ff) << 10 | UInt32(priority >> 3) << 23
      | UInt32(state) << 28 | UInt32(group) << 30 | (isHardware ? 1 << 31 : 0)
  }
}

/// GICH: the virtual interface's control, each CPU seeing its own [IHI 0048B.b §5.3].
public final class GICv2HypervisorInterface: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private let gic: GIC
  public init(_ gic: GIC) { self.gic = gic }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let cpu = gic.currentCPU
    let value: UInt64? = gic.read { state in
      let interface = state.virtual[cpu]
      switch offset {
      case 0: return interface.control & 0xf800_00ff
      case 4: return GICVirtualInterface.type
      case 8: return interface.machineControl
      case 0x10: return interface.maintenanceStatus
      case 0x20: return interface.ended
      case 0x30: return interface.free
      case 0x24, 0x34: return 0
      case 0xf0: return UInt64(interface.activePriorities[0])
      case 0x100..<0x100 + 4 * UInt64(GICVirtualInterface.listCount):
        return UInt64(interface.lists[Int(offset - 0x100) / 4].word)
      default: return nil
      }
    }
    if value == nil { GIC.misuse("hypervisor interface", "read", offset, byteCount) }
    return value ?? 0
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let cpu = gic.currentCPU
    let isKnown = gic.change { state in
      switch offset {
      case 0: state.virtual[cpu].setControl(value)
      case 8: state.virtual[cpu].machineControl = value
      case 0xf0: state.virtual[cpu].activePriorities[0] = UInt32(truncatingIfNeeded: value)
      case 0x100..<0x100 + 4 * UInt64(GICVirtualInterface.listCount):
        state.virtual[cpu].lists[Int(offset - 0x100) / 4] = .init(word: UInt32(truncatingIfNeeded: value))
      default: return false
      }
      return true
    }
    if !isKnown { GIC.misuse("hypervisor interface", "write", offset, byteCount) }
  }
}

/// GICV: the virtual CPU interface [IHI 0048B.b §5.5].
public final class GICv2VirtualInterface: MMIODevice {
  public static let byteCount: UInt64 = 0x2000
  private let gic: GIC
  public init(_ gic: GIC) { self.gic = gic }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let cpu = gic.currentCPU
    switch offset {
    case 0x0c: return UInt64(gic.change { $0.virtual[cpu].acknowledge(group: nil, hasGroups: false) })
    case 0x20: return UInt64(gic.change { $0.virtual[cpu].acknowledge(group: 1, hasGroups: false) })
    default: break
    }
    let value: UInt64? = gic.read { state in
      let interface = state.virtual[cpu]
      switch offset {
      case 0: return interface.machineControl & 0x21f
      case 4: return UInt64(interface.priorityMask)
      case 8: return UInt64(interface.binaryPoint[0])
      case 0x14: return UInt64(interface.runningPriority)
      case 0x18: return interface.pendingNumber(group: nil)
      case 0x1c: return UInt64(interface.binaryPoint[1])
      case 0x28: return interface.pendingNumber(group: 1)
      case 0xd0: return UInt64(interface.activePriorities[0])
      case 0xd4..<0xf0: return 0
      case 0xfc: return 0x0202_143b
      default: return nil
      }
    }
    if value == nil { GIC.misuse("virtual interface", "read", offset, byteCount) }
    return value ?? 0
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let cpu = gic.currentCPU
    let isKnown = gic.change { state in
      switch offset {
      case 0:
        let interface = state.virtual[cpu]
        state.virtual[cpu].machineControl = interface.machineControl & ~0x21f | value & 0x21f
      case 4: state.virtual[cpu].priorityMask = UInt8(truncatingIfNeeded: value) & GICState.priorityMask
      case 8: state.virtual[cpu].setBinaryPoint(0, value)
      case 0x10, 0x24: state.endVirtual(cpu, Int(value & 0x3ff), group: nil)
      case 0x1c: state.virtual[cpu].setBinaryPoint(1, value)
      case 0xd0: state.virtual[cpu].activePriorities[0] = UInt32(truncatingIfNeeded: value)
      case 0xd4..<0xf0: break
      case 0x1000: if state.virtual[cpu].splitsEnd { state.deactivateVirtual(cpu, Int(value & 0x3ff)) }
      default: return false
      }
      return true
    }
    if !isKnown { GIC.misuse("virtual interface", "write", offset, byteCount) }
  }
}
