import ApusGuest
import ApusISAAArch64

// Self-hosted debug: software step, break points, watch points [Arm ARM D2].

/// MDSCR_EL1's bits [D19.3.20].
enum MDSCR {
  static let step: UInt64 = 1
  static let kernelDebug: UInt64 = 1 << 13
  static let monitorDebug: UInt64 = 1 << 15
}

extension AArch64CPU {
  /// Whether debug exceptions of a level are enabled [D2.3].
  func canDebug(level: UInt64) -> Bool {
    guard s[.osLock] == 0, s[.osDoubleLock] == 0, !isSecure || s[.mdcr3] & MDCR.noSecureDebug == 0 else {
      return false
    }
    let target: UInt64 = routesDebugToHypervisor ? 2 : 1
    return level < target
      || level == target && s[.mdscr] & MDSCR.kernelDebug != 0 && s[.daif] & 1 << 9 == 0
  }
  private var routesDebugToHypervisor: Bool {
    s[.hcr] & HCR.general != 0 || s[.mdcr2] & MDCR.debugRoute != 0 && isHypervisorEnabled
  }
  /// The level that takes debug exceptions.
  var debugTarget: UInt64 { max(routesDebugToHypervisor ? 2 : 1, s[.exceptionLevel]) }

  /// What of debug the level's blocks depend on.
  func addDebug(to mode: inout AArch64Mode) {
    let level = s[.exceptionLevel]
    mode.hasKernelDebug = s[.mdscr] & MDSCR.kernelDebug != 0
    guard canDebug(level: level) else { return }
    if s[.mdscr] & MDSCR.step != 0 { mode.step = s[.step] & PState.step != 0 ? .active : .pending }
    mode.checksBreakPoints =
      s[.mdscr] & MDSCR.monitorDebug != 0
      && breakPoints.contains { Self.isEnabled($0.control, level: level) }
  }

  /// A debug register was written.
  func debugStateChanged() {
    updateMode()
    var pages: [UInt64] = []
    if s[.mdscr] & MDSCR.monitorDebug != 0 {
      for point in watchPoints where point.control & 1 != 0 {
        let range = Self.range(point)
        // A large region would be many pages: all that matters is that its bytes are in them.
        var page = range.lowerBound & ~4095
        while page <= range.upperBound, pages.count < 4096 {
          pages.append(page)
          guard page <= .max - 4096 else { break }
          page += 4096
        }
      }
    }
    engine.setWatchedPages(pages)
  }

  private typealias Point = (value: UInt64, control: UInt64)
  private var breakPoints: [Point] {
    AArch64SystemSlot.breakPoints.map { (s[$0.value], s[$0.control]) }
  }
  private var watchPoints: [Point] {
    AArch64SystemSlot.watchPoints.map { (s[$0.value], s[$0.control]) }
  }

  /// E and the privilege field, PMC or PAC: bit 1 EL1, bit 2 EL0; HMC adds EL2.
  private static func isEnabled(_ control: UInt64, level: UInt64) -> Bool {
    control & 1 != 0 && control >> [2, 1, 13][Int(level)] & 1 != 0
  }

  /// The bytes from the first to the last one that a watch point may see.
  private static func range(_ point: Point) -> ClosedRange<UInt64> {
    let mask = point.control >> 24 & 31
    if mask >= 3 {
      let low = point.value & ~((1 << mask) - 1)
      return low...(low | ((1 << mask) - 1))
    }
    return point.value & ~7...(point.value | 7)
  }

  func raiseStep() {
    let lower = Syndrome.softwareStep + (s[.exceptionLevel] == debugTarget ? 1 : 0)
    trap(lower << 26 | 1 << 25 | s[.step] | Syndrome.debug, to: debugTarget)
  }

  /// Before an instruction: takes the exception if a break point is there.
  func checkBreakPoints() {
    let level = s[.exceptionLevel]
    for point in breakPoints where Self.isEnabled(point.control, level: level) {
      let type = point.control >> 20 & 15
      let isHit =
        switch type {
        // The byte address select of an A64 instruction is all ones.
        case 0: point.value & ~3 == s.pc
        case 1: point.value & ~3 == s.pc && holds(link: point.control >> 16 & 15)
        // Those that others name do nothing by themselves.
        default: type & 1 == 0 && matchesContext(point.value, type)
        }
      guard isHit else { continue }
      let lower = Syndrome.breakPoint + (level == debugTarget ? 1 : 0)
      return trap(lower << 26 | 1 << 25 | Syndrome.debug, to: debugTarget)
    }
  }

  /// Whether the context break point that another point names holds [StateMatch].
  private func holds(link number: UInt64) -> Bool {
    guard number >= AArch64SystemSlot.firstContextPoint, number < AArch64SystemSlot.breakPoints.count else {
      return false
    }
    let point = breakPoints[Int(number)]
    let type = point.control >> 20 & 15
    return point.control & 1 != 0 && type & 1 != 0 && matchesContext(point.value, type)
  }

  /// The identifiers that a type of break point compares, without the lowest bit [BreakpointValueMatch]. EL1's and the upper
  /// ones are those of a guest's levels, of a host's EL2's.
  private func matchesContext(_ value: UInt64, _ type: UInt64) -> Bool {
    let level = s[.exceptionLevel]
    let isInHost = level != 3 && s.mode.isHost
    func first(_ slot: AArch64SystemSlot) -> Bool { (s[slot] ^ value) << 32 == 0 }
    let isFirst = level < 2 && !isInHost && first(.contextID)
    func second() -> Bool { isHypervisorEnabled && level != 3 && s[.contextID2] & 0xffff_ffff == value >> 32 }
    func machine() -> Bool {
      let mask: UInt64 = hasHostExtensions && s[.vtcr] >> 19 & 1 != 0 ? 0xffff : 0xff
      return isHypervisorEnabled && level < 2 && !isInHost && (s[.vttbr] >> 48 ^ value >> 32) & mask == 0
    }
    return switch type >> 1 {
    case 1: isInHost ? first(.contextID2) : isFirst
    case 3: features.hasPAN && isFirst
    case 4: machine()
    case 5: machine() && isFirst
    case 6: hasHostExtensions && second()
    case 7: hasHostExtensions && second() && isFirst
    default: false
    }
  }

  public func watchFault(_ address: UInt64, _ byteCount: Int, _ access: GuestAccess, context: Int) -> UInt64?
  {
    let level: UInt64 = Self.isUser(context) ? 0 : Self.isOfGuest(context) ? 1 : 2
    guard canDebug(level: s[.exceptionLevel]) else { return nil }
    let last = address &+ UInt64(byteCount - 1)
    for point in watchPoints where Self.isEnabled(point.control, level: level) {
      // LSC: bit 3 loads, bit 4 stores.
      guard point.control >> (access == .store ? 4 : 3) & 1 != 0 else { continue }
      if point.control >> 20 & 1 != 0, !holds(link: point.control >> 16 & 15) { continue }
      let range = Self.range(point)
      guard range.lowerBound <= last, address <= range.upperBound else { continue }
      if point.control >> 24 & 31 < 3 {
        let bytes = point.control >> 5 & 0xff
        let isHit = (0..<8 as Range<UInt64>).contains { byte in
          bytes >> byte & 1 != 0 && (address...last).contains(range.lowerBound + byte)
        }
        guard isHit else { continue }
      }
      return Syndrome.isWatch | Syndrome.fault(Syndrome.debug, access)
    }
    return nil
  }
}

extension AArch64Opcode {
  /// Whether the instruction ends in a helper that goes to the dispatcher and leaves the PC behind the instruction.
  var endsInHelper: Bool {
    switch self {
    case .svc, .hvc, .smc, .hlt, .eret, .msr, .msrImmediate, .sys, .hint, .barrier: true
    default: false
    }
  }
}
