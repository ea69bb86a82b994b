import ApusCPU
import ApusDevice
import ApusMemory
import Synchronization

/// A Generic Interrupt Controller with its wires; versions 2 and 3 are what its registers look like.
///
/// Any thread. Registers that each CPU has for itself are those of the vCPU whose thread makes the access.
public final class GIC: Sendable {
  public enum Version: Int, Sendable {
    case v2 = 2
    case v3 = 3
  }

  /// The wires to a CPU.
  public struct Outputs: Sendable {
    public var irq: InterruptLine
    public var fiq: InterruptLine
    public var virtualIRQ: InterruptLine
    public var virtualFIQ: InterruptLine
    /// Version 3's secure group 1; `irq` is the non-secure one then. Which of them the CPU takes for an FIQ depends on its
    /// state.
    public var secureIRQ: InterruptLine
    public init(
      irq: InterruptLine, fiq: InterruptLine, virtualIRQ: InterruptLine = InterruptLine { _ in },
      virtualFIQ: InterruptLine = InterruptLine { _ in }, secureIRQ: InterruptLine = InterruptLine { _ in }
    ) {
      (self.irq, self.fiq, self.virtualIRQ, self.virtualFIQ) = (irq, fiq, virtualIRQ, virtualFIQ)
      self.secureIRQ = secureIRQ
    }
  }

  /// The security states.
  public enum Security: Sendable {
    case single
    /// Two. After reset every interrupt is secure, or, as emulated firmware leaves it, the non-secure state's.
    case secure, nonSecure
  }

  public let version: Version
  public let cpuCount: Int
  /// Shared interrupts, a multiple of 32.
  public let sharedCount: Int
  /// Where tables of LPIs lie; `nil` without a translation service.
  let memory: GuestRAMTable?
  /// Of CPUs with EL2, the private interrupt that tells it of its virtual interface.
  public let maintenanceInterrupt: Int?
  private let security: Security
  /// There are two security states.
  public var hasSecurity: Bool { security != .single }
  private let state: Mutex<GICState>
  private let outputs: [Outputs]

  /// - Parameters:
  ///   - memory: for LPIs, of version 3; outlives the controller.
  ///   - maintenanceInterrupt: there are virtual interfaces, which signal this private interrupt.
  public init(
    version: Version, sharedCount: Int, outputs: [Outputs], memory: GuestRAMTable? = nil,
    maintenanceInterrupt: Int? = nil, security: Security = .single
  ) {
    (self.maintenanceInterrupt, self.security) = (maintenanceInterrupt, security)
    (self.version, self.sharedCount, self.outputs, self.memory) = (version, sharedCount, outputs, memory)
    cpuCount = outputs.count
    state = Mutex(GICState(cpuCount: outputs.count, sharedCount: sharedCount, security: security))
  }

  /// The levels of the inputs stay: they are the devices'.
  public func reset() {
    change { state in
      let old = state
      state = GICState(cpuCount: cpuCount, sharedCount: sharedCount, security: security)
      state.shared.level = old.shared.level
      for cpu in 0..<cpuCount {
        state.own[cpu].level = old.own[cpu].level
        (state.interfaces[cpu].irq, state.interfaces[cpu].fiq) = (
          old.interfaces[cpu].irq, old.interfaces[cpu].fiq
        )
        state.interfaces[cpu].secureIRQ = old.interfaces[cpu].secureIRQ
        (state.virtual[cpu].irq, state.virtual[cpu].fiq) = (old.virtual[cpu].irq, old.virtual[cpu].fiq)
        state.virtual[cpu].maintenance = old.virtual[cpu].maintenance
      }
    }
  }

  /// The wire into shared interrupt `number`, from 0.
  public func input(_ number: Int) -> InterruptLine {
    precondition((0..<sharedCount).contains(number), "the GIC has no shared interrupt \(number)")
    return InterruptLine { [weak self] level in self?.change { $0.setLevel(0, 32 + number, level) } }
  }
  /// A level of a CPU's own interrupt, 16 to 31.
  public func setPrivate(_ cpu: Int, _ number: Int, _ level: Bool) {
    change { $0.setLevel(cpu, number, level) }
  }
  /// A message: shared interrupt `number`, from 0, happens once.
  public func pulse(_ number: Int) {
    guard (0..<sharedCount).contains(number) else { return }
    change { $0.shared.latched[number] = true }
  }

  /// The vCPU that this thread runs; 0 for others, like a debugger's.
  var currentCPU: Int { min(VCPUThread.index ?? 0, cpuCount - 1) }

  func read<T: Sendable>(_ body: (borrowing GICState) -> T) -> T { state.withLock { body($0) } }

  /// Changes the state and brings the outputs in line.
  @discardableResult
  func change<T: Sendable>(_ body: (inout GICState) -> T) -> T {
    state.withLock { state in
      let result = body(&state)
      for cpu in 0..<cpuCount {
        if let maintenanceInterrupt { updateVirtual(cpu, &state, maintenanceInterrupt) }
        let signalled = state.signalled(cpu)
        let isFIQ = signalled?.group == 0 && (version == .v3 || state.interfaces[cpu].signalsFIQ)
        let secureIRQ = signalled?.group == 2
        let irq = signalled != nil && !isFIQ && !secureIRQ
        if secureIRQ != state.interfaces[cpu].secureIRQ {
          state.interfaces[cpu].secureIRQ = secureIRQ
          outputs[cpu].secureIRQ.set(secureIRQ)
        }
        if irq != state.interfaces[cpu].irq {
          state.interfaces[cpu].irq = irq
          outputs[cpu].irq.set(irq)
        }
        if isFIQ != state.interfaces[cpu].fiq {
          state.interfaces[cpu].fiq = isFIQ
          outputs[cpu].fiq.set(isFIQ)
        }
      }
      return result
    }
  }

  private func updateVirtual(_ cpu: Int, _ state: inout GICState, _ maintenanceInterrupt: Int) {
    let group = state.virtual[cpu].signalled.map { state.virtual[cpu].lists[$0].group }
    let fiq = group == 0 && (version == .v3 || state.virtual[cpu].signalsFIQ)
    let irq = group != nil && !fiq
    if irq != state.virtual[cpu].irq {
      state.virtual[cpu].irq = irq
      outputs[cpu].virtualIRQ.set(irq)
    }
    if fiq != state.virtual[cpu].fiq {
      state.virtual[cpu].fiq = fiq
      outputs[cpu].virtualFIQ.set(fiq)
    }
    let maintenance = state.virtual[cpu].maintenanceStatus != 0
    if maintenance != state.virtual[cpu].maintenance {
      state.virtual[cpu].maintenance = maintenance
      state.setLevel(cpu, maintenanceInterrupt, maintenance)
    }
  }

  static func misuse(_ part: String, _ what: String, _ offset: UInt64, _ byteCount: Int) {
    GuestErrorTrace.report(
      "gic", "\(part): \(what) of \(byteCount) bytes at offset 0x\(String(offset, radix: 16))")
  }

  /// GICD_TYPER's lines, CPUs and security states.
  var typeRegister: UInt64 {
    UInt64(sharedCount / 32) | UInt64(cpuCount - 1) << 5 | (hasSecurity ? 1 << 10 : 0)
  }
}

// MARK: Version 2

/// GICv2's distributor [IHI 0048B.b §4.3].
public final class GICv2Distributor: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private let gic: GIC
  private let isRestricted: Bool
  /// - Parameter isSecure: the secure state's view; there are two where the controller has two states.
  public init(_ gic: GIC, isSecure: Bool = false) {
    (self.gic, isRestricted) = (gic, gic.hasSecurity && !isSecure)
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let cpu = gic.currentCPU
    let offset32 = Int(offset)
    let isRestricted = self.isRestricted
    switch offset32 {
    case 0:
      return gic.read {
        let group1: UInt64 = $0.isGroupForwarded[1] ? 1 : 0
        return isRestricted ? group1 : ($0.isGroupForwarded[0] ? 1 : 0) | group1 << 1
      }
    case 4: return gic.typeRegister
    case 8: return 0x43b
    case 0x800..<0xc00:
      return gic.read { state in
        (0..<byteCount).reduce(0) { $0 | target(offset32 - 0x800 + $1, cpu, state) << UInt64(8 * $1) }
      }
    case 0xf10..<0xf30:
      return gic.read { state in
        (0..<byteCount).reduce(0) {
          let number = (offset32 + $1) & 15
          guard !isRestricted || state.own[cpu].group[number] else { return $0 }
          return $0 | UInt64(state.senders[cpu][number]) << UInt64(8 * $1)
        }
      }
    case 0xe00..<0xf00 where gic.hasSecurity:
      return isRestricted ? 0 : gic.read { $0.readOpenness(offset32 - 0xe00, cpu: cpu) }
    case 0xfe8: return 0x2b
    case 0xfd0..<0x1000: return 0
    default:
      let value = gic.read { $0.read(offset32, byteCount, cpu: cpu, isRestricted: isRestricted) }
      if let value { return value }
      GIC.misuse("distributor", "read", offset, byteCount)
      return 0
    }
  }

  /// Whether an access reaches a shared interrupt's target.
  private func reachesTarget(_ number: Int, _ state: borrowing GICState) -> Bool {
    !isRestricted || state.shared.group[number - 32] || state.shared.openness[number - 32] == 3
  }
  private func target(_ number: Int, _ cpu: Int, _ state: borrowing GICState) -> UInt64 {
    // With one CPU there is nothing to choose.
    if gic.cpuCount == 1 { return 0 }
    if number < 32 { return 1 << UInt64(cpu) }
    return state.exists(number) && reachesTarget(number, state) ? state.targets[number - 32] & 0xff : 0
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let cpu = gic.currentCPU
    let offset32 = Int(offset)
    let gic = self.gic
    let isRestricted = self.isRestricted
    let isKnown = gic.change { state in
      func reaches(_ number: Int) -> Bool { !isRestricted || state.own[cpu].group[number] }
      switch offset32 {
      case 0 where isRestricted: state.isGroupForwarded[1] = value & 1 != 0
      case 0: state.isGroupForwarded = [value & 1 != 0, value & 2 != 0, false]
      case 0x800..<0xc00:
        for k in 0..<byteCount where gic.cpuCount > 1 {
          let number = offset32 - 0x800 + k
          if number >= 32, state.exists(number), reachesTarget(number, state) {
            state.targets[number - 32] = value >> UInt64(8 * k) & 0xff & (1 << UInt64(gic.cpuCount) - 1)
          }
        }
      case 0xf00:
        let list: UInt64 =
          switch value >> 24 & 3 {
          case 0: value >> 16 & 0xff
          case 1: 0xff & ~(1 << UInt64(cpu))
          default: 1 << UInt64(cpu)
          }
        for target in 0..<gic.cpuCount where list >> UInt64(target) & 1 != 0 {
          // With two states NSATT (bit 15) says which group it must be; the non-secure one sends its own.
          if gic.hasSecurity,
            state.own[target].group[Int(value & 15)] != (isRestricted || value >> 15 & 1 != 0)
          {
            continue
          }
          state.send(Int(value & 15), from: cpu, to: target)
        }
      case 0xe00..<0xf00 where gic.hasSecurity:
        if !isRestricted { state.writeOpenness(offset32 - 0xe00, value, cpu: cpu) }
      case 0xf10..<0xf20:
        for k in 0..<byteCount where reaches((offset32 + k) & 15) {
          let number = (offset32 + k) & 15
          state.senders[cpu][number] &= ~UInt8(truncatingIfNeeded: value >> UInt64(8 * k))
          if state.senders[cpu][number] == 0 { state.own[cpu].latched[number] = false }
        }
      case 0xf20..<0xf30:
        for k in 0..<byteCount where reaches((offset32 + k) & 15) {
          let number = (offset32 + k) & 15
          state.senders[cpu][number] |= UInt8(truncatingIfNeeded: value >> UInt64(8 * k))
          if state.senders[cpu][number] != 0 { state.own[cpu].latched[number] = true }
        }
      default: return state.write(offset32, byteCount, value, cpu: cpu, isRestricted: isRestricted)
      }
      return true
    }
    if !isKnown { GIC.misuse("distributor", "write", offset, byteCount) }
  }
}

/// GICv2's CPU interfaces, each CPU seeing its own [IHI 0048B.b §4.4].
public final class GICv2Interface: MMIODevice {
  public static let byteCount: UInt64 = 0x2000
  private let gic: GIC
  private let isRestricted: Bool
  /// - Parameter isSecure: the secure state's view; there are two where the controller has two states.
  public init(_ gic: GIC, isSecure: Bool = false) {
    (self.gic, isRestricted) = (gic, gic.hasSecurity && !isSecure)
  }
  /// The index in `splitsEnd`.
  private var accessor: Int { gic.hasSecurity && !isRestricted ? 0 : 1 }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let cpu = gic.currentCPU
    let isRestricted = self.isRestricted
    switch offset {
    case 0: return gic.read { control($0.interfaces[cpu]) }
    case 4: return gic.read { UInt64($0.priorityMask(cpu, isShifted: isRestricted)) }
    case 8: return gic.read { UInt64($0.interfaces[cpu].binaryPoint[isRestricted ? 1 : 0]) }
    case 0x0c:
      return UInt64(gic.change { state in seen(&state, cpu) { $0.acknowledge(cpu, group: nil) } })
    case 0x14: return gic.read { UInt64($0.runningPriority(cpu, isShifted: isRestricted)) }
    case 0x18:
      return gic.read { state in
        let number = state.signalled(cpu)?.number ?? 1023
        return UInt64(refusal(state, cpu) ?? UInt32(number))
      }
    // The other names of the non-secure registers.
    case 0x1c...0x28 where isRestricted: return 0
    case 0x1c: return gic.read { UInt64($0.interfaces[cpu].binaryPoint[1]) }
    case 0x20: return UInt64(gic.change { $0.acknowledge(cpu, group: 1) })
    case 0x28:
      return gic.read { state in
        UInt64(state.signalled(cpu).map { $0.group == 1 ? $0.number : 1023 } ?? 1023)
      }
    case 0xd0: return gic.read { $0.activePriorities(cpu) }
    case 0xd4..<0xf0: return 0
    case 0xfc: return 0x0202_143b
    default:
      GIC.misuse("CPU interface", "read", offset, byteCount)
      return 0
    }
  }

  private func control(_ interface: GICState.Interface) -> UInt64 {
    func bit(_ number: UInt64, _ holds: Bool) -> UInt64 { holds ? 1 << number : 0 }
    if isRestricted { return bit(0, interface.isGroupEnabled[1]) | bit(9, interface.splitsEnd[1]) }
    return bit(0, interface.isGroupEnabled[0]) | bit(1, interface.isGroupEnabled[1])
      | bit(2, interface.acknowledgesBoth) | bit(3, interface.signalsFIQ)
      | bit(4, interface.sharesBinaryPoint[1]) | bit(9, interface.splitsEnd[accessor])
      | (gic.hasSecurity ? bit(10, interface.splitsEnd[1]) : 0)
  }
  private func setControl(_ interface: inout GICState.Interface, _ value: UInt64) {
    if isRestricted {
      interface.isGroupEnabled[1] = value & 1 != 0
      interface.splitsEnd[1] = value & 0x200 != 0
      return
    }
    interface.isGroupEnabled = [value & 1 != 0, value & 2 != 0, false]
    interface.signalsFIQ = value & 8 != 0
    interface.splitsEnd[accessor] = value & 0x200 != 0
    guard gic.hasSecurity else { return }
    interface.acknowledgesBoth = value & 4 != 0
    interface.sharesBinaryPoint[1] = value & 0x10 != 0
    interface.splitsEnd[1] = value & 0x400 != 0
  }

  /// With two states, what an access reads in place of an interrupt that is not its own: of the non-secure state nothing,
  /// of the secure one that there is a group 1.
  private func refusal(_ state: borrowing GICState, _ cpu: Int) -> UInt32? {
    guard gic.hasSecurity, let found = state.signalled(cpu) else { return nil }
    if isRestricted { return found.group == 1 ? nil : GICState.spurious }
    return found.group == 0 || state.interfaces[cpu].acknowledgesBoth ? nil : 1022
  }
  private func seen(_ state: inout GICState, _ cpu: Int, _ body: (inout GICState) -> UInt32) -> UInt32 {
    if let refusal = refusal(state, cpu) { return refusal }
    return body(&state)
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let cpu = gic.currentCPU
    let isRestricted = self.isRestricted
    let isKnown = gic.change { state in
      switch offset {
      case 0: setControl(&state.interfaces[cpu], value)
      case 4: state.setPriorityMask(cpu, value, isShifted: isRestricted)
      case 8:
        let group = isRestricted ? 1 : 0
        state.interfaces[cpu].binaryPoint[group] = max(group == 0 ? 2 : 3, UInt8(value & 7))
      case 0x1c where isRestricted, 0x24 where isRestricted: break
      case 0x10:
        state.end(
          cpu, Int(value & 0x3ff), group: isRestricted ? 1 : nil, splits: accessor,
          isRestricted: isRestricted)
      case 0x24: state.end(cpu, Int(value & 0x3ff), group: gic.hasSecurity ? 1 : nil, splits: 1)
      case 0x1c: state.interfaces[cpu].binaryPoint[1] = max(3, UInt8(value & 7))
      case 0xd0..<0xf0: break  // what runs is kept by the interface itself
      case 0x1000: state.deactivate(cpu, Int(value & 0x3ff), isRestricted: isRestricted)
      default: return false
      }
      return true
    }
    if !isKnown { GIC.misuse("CPU interface", "write", offset, byteCount) }
  }
}

/// GICv2m: messages as shared interrupts [Arm Base System Architecture, appendix on GICv2m].
public final class GICv2MessageFrame: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private let gic: GIC
  private let first: Int
  private let count: Int
  /// - Parameter first: the first shared interrupt, from 0.
  public init(_ gic: GIC, first: Int, count: Int) { (self.gic, self.first, self.count) = (gic, first, count) }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    switch offset {
    case 8: UInt64(first + 32) << 16 | UInt64(count)
    case 0xfcc: 0x1
    case 0xfe8: 0x2b
    default: 0
    }
  }
  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard offset == 0x40 else { return GIC.misuse("message frame", "write", offset, byteCount) }
    send(UInt32(truncatingIfNeeded: value))
  }
  /// - Parameter number: the interrupt's number with the 32 that are private.
  public func send(_ number: UInt32) {
    let index = Int(number & 0x3ff) - 32
    if (first..<first + count).contains(index) { gic.pulse(index) }
  }
}

extension GICState {
  /// GICC_APR0 and ICC_AP1R0: a bit for each group priority that is being handled.
  /// - Parameter group: `nil`: of all groups.
  func activePriorities(_ cpu: Int, group: Int? = nil) -> UInt64 {
    interfaces[cpu].running.reduce(0) {
      group == nil || $1.group == group ? $0 | 1 << UInt64($1.priority >> 3) : $0
    }
  }
}
