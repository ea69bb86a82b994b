// GICv3's virtual interface: ICH_* of EL2, and ICV_*, which virtual machines have in place of ICC_* [IHI 0069H §12.3, §12.4].

extension GICVirtualInterface.ListRegister {
  /// ICH_LR<n>_EL2.
  init(_ value: UInt64) {
    number = Int(value & 0xffff_ffff)
    isHardware = value >> 61 & 1 != 0
    physical = Int(value >> 32 & 0x1fff)
    tellsEnd = !isHardware && value >> 41 & 1 != 0
    priority = UInt8(value >> 48 & 0xff) & GICState.priorityMask
    group = Int(value >> 60 & 1)
    state = UInt8(value >> 62)
  }
  var register: UInt64 {
    UInt64(number) | UInt64(physical) << 32 | UInt64(priority) << 48 | UInt64(group) << 60
      | (isHardware ? 1 << 61 : 0) | UInt64(state) << 62
  }
}

extension GIC {
  private static func hypervisor(_ m: UInt16, _ op2: UInt16) -> UInt16 {
    3 << 14 | 4 << 11 | 12 << 7 | m << 3 | op2
  }
  private static func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16) -> UInt16 {
    3 << 14 | n << 7 | m << 3 | op2
  }
  /// The number of a list register; `nil`: none of them.
  private static func list(_ register: UInt16) -> Int? {
    let first = hypervisor(12, 0)
    guard (first..<first + UInt16(GICVirtualInterface.listCount)).contains(register) else { return nil }
    return Int(register - first)
  }

  func readHypervisorRegister(_ cpu: Int, _ register: UInt16) -> UInt64? {
    guard maintenanceInterrupt != nil else { return nil }
    return read { state in
      let interface = state.virtual[cpu]
      if let list = Self.list(register) { return interface.lists[list].register }
      switch register {
      case Self.hypervisor(8, 0): return UInt64(interface.activePriorities[0])
      case Self.hypervisor(9, 0): return UInt64(interface.activePriorities[1])
      case Self.hypervisor(11, 0): return interface.control
      // Besides: 16 bits of numbers, affinity 3, TDIR, and no version 4.
      case Self.hypervisor(11, 1): return GICVirtualInterface.type | 1 << 21 | 1 << 20 | 1 << 19
      case Self.hypervisor(11, 2): return interface.maintenanceStatus
      case Self.hypervisor(11, 3): return interface.ended
      case Self.hypervisor(11, 5): return interface.free
      case Self.hypervisor(11, 7): return interface.machineControl
      default: return nil
      }
    }
  }

  func writeHypervisorRegister(_ cpu: Int, _ register: UInt16, _ value: UInt64) -> Bool {
    guard maintenanceInterrupt != nil else { return false }
    return change { state in
      if let list = Self.list(register) {
        state.virtual[cpu].lists[list] = .init(value)
        return true
      }
      switch register {
      case Self.hypervisor(8, 0): state.virtual[cpu].activePriorities[0] = UInt32(truncatingIfNeeded: value)
      case Self.hypervisor(9, 0): state.virtual[cpu].activePriorities[1] = UInt32(truncatingIfNeeded: value)
      case Self.hypervisor(11, 0): state.virtual[cpu].setControl(value)
      case Self.hypervisor(11, 7):
        state.virtual[cpu].machineControl = value
        state.virtual[cpu].signalsFIQ = true
      default: return false
      }
      return true
    }
  }

  func readVirtualRegister(_ cpu: Int, _ register: UInt16) -> UInt64? {
    switch register {
    case Self.key(12, 8, 0): return UInt64(change { $0.virtual[cpu].acknowledge(group: 0, hasGroups: true) })
    case Self.key(12, 12, 0): return UInt64(change { $0.virtual[cpu].acknowledge(group: 1, hasGroups: true) })
    default: break
    }
    return read { state in
      let interface = state.virtual[cpu]
      switch register {
      case Self.key(4, 6, 0): return UInt64(interface.priorityMask)
      case Self.key(12, 8, 2): return interface.pendingNumber(group: 0)
      case Self.key(12, 12, 2): return interface.pendingNumber(group: 1)
      case Self.key(12, 8, 3): return UInt64(interface.binaryPoint[0])
      case Self.key(12, 12, 3):
        return UInt64(
          interface.sharesBinaryPoint ? min(7, interface.binaryPoint[0] + 1) : interface.binaryPoint[1])
      case Self.key(12, 8, 4): return UInt64(interface.activePriorities[0])
      case Self.key(12, 9, 0): return UInt64(interface.activePriorities[1])
      case Self.key(12, 11, 3): return UInt64(interface.runningPriority)
      case Self.key(12, 12, 4):
        return 1 << 15 | 4 << 8 | (interface.splitsEnd ? 2 : 0) | (interface.sharesBinaryPoint ? 1 : 0)
      case Self.key(12, 12, 6): return interface.isGroupEnabled[0] ? 1 : 0
      case Self.key(12, 12, 7): return interface.isGroupEnabled[1] ? 1 : 0
      default: return nil
      }
    }
  }

  func writeVirtualRegister(_ cpu: Int, _ register: UInt16, _ value: UInt64) -> Bool {
    change { state in
      let number = Int(value & 0xff_ffff)
      switch register {
      case Self.key(4, 6, 0):
        state.virtual[cpu].priorityMask = UInt8(truncatingIfNeeded: value) & GICState.priorityMask
      case Self.key(12, 8, 1): state.endVirtual(cpu, number, group: 0)
      case Self.key(12, 12, 1): state.endVirtual(cpu, number, group: 1)
      case Self.key(12, 11, 1): if state.virtual[cpu].splitsEnd { state.deactivateVirtual(cpu, number) }
      case Self.key(12, 8, 3): state.virtual[cpu].setBinaryPoint(0, value)
      case Self.key(12, 12, 3):
        if !state.virtual[cpu].sharesBinaryPoint { state.virtual[cpu].setBinaryPoint(1, value) }
      case Self.key(12, 8, 4): state.virtual[cpu].activePriorities[0] = UInt32(truncatingIfNeeded: value)
      case Self.key(12, 9, 0): state.virtual[cpu].activePriorities[1] = UInt32(truncatingIfNeeded: value)
      case Self.key(12, 12, 4):
        state.virtual[cpu].splitsEnd = value & 2 != 0
        state.virtual[cpu].sharesBinaryPoint = value & 1 != 0
      case Self.key(12, 12, 6): state.virtual[cpu].isGroupEnabled[0] = value & 1 != 0
      case Self.key(12, 12, 7): state.virtual[cpu].isGroupEnabled[1] = value & 1 != 0
      default: return false
      }
      return true
    }
  }
}
