import ApusCPU
import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// The interrupt controller beside the four cores of a BCM2836 or BCM2837: timers, mailboxes (which carry IPIs), the local
/// timer, and the wires of the GPU's controller and the performance monitors [QA7 rev3.4].
///
/// Any thread. Not modelled: the AXI counters and their interrupt, and the prescaler's other clock sources.
public final class BCM2836LocalInterrupts: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  public static let coreCount = 4
  /// The crystal, in Hz; the local timer counts both of its edges.
  static let crystalFrequency: UInt64 = 19_200_000

  /// Bits of the source registers [QA7 §4.10].
  public enum Source: Int, Sendable {
    case securePhysicalTimer = 0
    case physicalTimer = 1
    case hypervisorTimer = 2
    case virtualTimer = 3
    /// The first of four.
    case mailbox = 4
    case gpu = 8
    case performance = 9
    case localTimer = 11
  }
  /// What a core receives.
  public struct Outputs: Sendable {
    public var irq: InterruptLine
    public var fiq: InterruptLine
    public init(irq: InterruptLine, fiq: InterruptLine) { (self.irq, self.fiq) = (irq, fiq) }
  }

  struct Core: Equatable {
    /// The levels of the four timers and, at their places, the performance monitor's.
    var lines: UInt32 = 0
    var timerControl: UInt32 = 0
    var mailboxControl: UInt32 = 0
    var mailboxes: [UInt32] = [0, 0, 0, 0]
  }
  struct State {
    var cores = [Core](repeating: Core(), count: coreCount)
    var control: UInt32 = 0
    var prescaler: UInt32 = 0x8000_0000
    /// IRQ core in bits 1:0, FIQ core in bits 3:2.
    var gpuRouting: UInt32 = 0
    /// IRQ enables in bits 3:0, FIQ enables in bits 7:4.
    var performanceRouting: UInt32 = 0
    var localRouting: UInt32 = 0
    /// Reload value, enable (28), interrupt enable (29), interrupt (31).
    var localTimer: UInt32 = 0
    var axiControl: (UInt32, UInt32) = (0, 0)
    var gpuIRQ = false
    var gpuFIQ = false
    /// The outputs' levels: IRQs in bits 3:0, FIQs in bits 7:4.
    var outputs: UInt32 = 0
  }
  private let state = Mutex(State())
  private let outputs: [Outputs]
  private let clock: GuestClock
  private let timer: GuestTimer

  public init(outputs: [Outputs], clock: GuestClock, loop: EventLoop) {
    precondition(outputs.count == Self.coreCount, "the controller has four cores")
    (self.outputs, self.clock) = (outputs, clock)
    let owner = WeakReference<BCM2836LocalInterrupts>()
    timer = GuestTimer(clock, loop) { owner.value?.localTimerElapsed() }
    owner.value = self
  }

  public func reset() {
    timer.disarm()
    change { state in
      // Levels from outside stay.
      let old = state
      state = State()
      for core in state.cores.indices { state.cores[core].lines = old.cores[core].lines }
      (state.gpuIRQ, state.gpuFIQ, state.outputs) = (old.gpuIRQ, old.gpuFIQ, old.outputs)
    }
  }

  // MARK: Wires

  /// The level of one of a core's timers or its performance monitor.
  public func set(_ source: Source, core: Int, _ level: Bool) {
    change { state in
      let bit = UInt32(1) << UInt32(source.rawValue)
      if level { state.cores[core].lines |= bit } else { state.cores[core].lines &= ~bit }
    }
  }
  /// The GPU's interrupt controller.
  public var gpuIRQ: InterruptLine {
    InterruptLine { [weak self] level in self?.change { $0.gpuIRQ = level } }
  }
  public var gpuFIQ: InterruptLine {
    InterruptLine { [weak self] level in self?.change { $0.gpuFIQ = level } }
  }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      var levels: UInt32 = 0
      for core in 0..<Self.coreCount {
        if Self.sources(state, core, isFast: false) != 0 { levels |= 1 << UInt32(core) }
        if Self.sources(state, core, isFast: true) != 0 { levels |= 0x10 << UInt32(core) }
      }
      // Most changes reach no core.
      let changed = levels ^ state.outputs
      state.outputs = levels
      for (core, output) in outputs.enumerated() where changed >> UInt32(core) & 0x11 != 0 {
        output.irq.set(levels >> UInt32(core) & 1 != 0)
        output.fiq.set(levels >> UInt32(core) & 0x10 != 0)
      }
    }
  }

  /// The source register of a core: what is asserted and routed to its IRQ or FIQ.
  private static func sources(_ state: State, _ core: Int, isFast: Bool) -> UInt32 {
    let own = state.cores[core]
    let fast = isFast ? own.timerControl >> 4 : own.timerControl & ~(own.timerControl >> 4)
    var result = own.lines & 0xf & fast
    let boxes = isFast ? own.mailboxControl >> 4 : own.mailboxControl & ~(own.mailboxControl >> 4)
    for (index, box) in own.mailboxes.enumerated() where box != 0 && boxes >> UInt32(index) & 1 != 0 {
      result |= 0x10 << UInt32(index)
    }
    let gpuCore = Int(state.gpuRouting >> (isFast ? 2 : 0) & 3)
    if gpuCore == core, isFast ? state.gpuFIQ : state.gpuIRQ { result |= 1 << 8 }
    let isFastMonitor = state.performanceRouting >> UInt32(4 + core) & 1 != 0
    let isMonitorRouted =
      isFast ? isFastMonitor : !isFastMonitor && state.performanceRouting >> UInt32(core) & 1 != 0
    if isMonitorRouted { result |= own.lines & 1 << 9 }
    let local = state.localRouting & 7
    if Int(local & 3) == core, (local & 4 != 0) == isFast, state.localTimer & 0xa000_0000 == 0xa000_0000 {
      result |= 1 << 11
    }
    return result
  }

  // MARK: The local timer [QA7 §4.11]

  private func localTimerElapsed() {
    change { state in
      guard state.localTimer & 1 << 28 != 0 else { return }
      state.localTimer |= 1 << 31
      armLocalTimer(state)
    }
  }

  private func armLocalTimer(_ state: State) {
    let count = UInt64(state.localTimer & 0xfff_ffff)
    guard state.localTimer & 1 << 28 != 0, count > 0 else { return timer.disarm() }
    // A guest that asks for a period of nanoseconds gets one of 50 µs: the event loop has other work.
    let period = max(50_000, count * 1_000_000_000 / (2 * Self.crystalFrequency))
    timer.arm(at: clock.nowNanoseconds() + period)
  }

  /// The core timer: 64 bits at the crystal's frequency times the prescaler / 2^31 [QA7 §3.1.1].
  private func coreTimer(_ prescaler: UInt32) -> UInt64 {
    let ticks = clock.nowNanoseconds().multipliedFullWidth(by: Self.crystalFrequency)
    let crystal = UInt64(1_000_000_000).dividingFullWidth(ticks).quotient
    let scaled = crystal.multipliedFullWidth(by: UInt64(prescaler))
    return scaled.high << 33 | scaled.low >> 31
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state -> UInt64 in
      let index = Int(offset >> 2 & 3)
      switch offset & ~3 {
      case 0x00: return UInt64(state.control)
      case 0x08: return UInt64(state.prescaler)
      case 0x0c: return UInt64(state.gpuRouting)
      case 0x10, 0x14: return UInt64(state.performanceRouting)
      case 0x1c: return coreTimer(state.prescaler) & 0xffff_ffff
      case 0x20: return coreTimer(state.prescaler) >> 32
      case 0x24: return UInt64(state.localRouting)
      case 0x2c: return UInt64(state.axiControl.0)
      case 0x30: return UInt64(state.axiControl.1)
      case 0x34: return UInt64(state.localTimer)
      case 0x40..<0x50: return UInt64(state.cores[index].timerControl)
      case 0x50..<0x60: return UInt64(state.cores[index].mailboxControl)
      case 0x60..<0x70: return UInt64(Self.sources(state, index, isFast: false))
      case 0x70..<0x80: return UInt64(Self.sources(state, index, isFast: true))
      case 0xc0..<0x100: return UInt64(state.cores[Int(offset >> 4 & 3)].mailboxes[index])
      // The write-only ones, and past the registers.
      default: return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let value = UInt32(truncatingIfNeeded: value)
    change { state in
      let index = Int(offset >> 2 & 3)
      switch offset & ~3 {
      case 0x00: state.control = value & 0x300
      case 0x08: state.prescaler = value
      case 0x0c: state.gpuRouting = value & 15
      case 0x10: state.performanceRouting |= value & 0xff
      case 0x14: state.performanceRouting &= ~value
      case 0x1c, 0x20: break  // The core timer goes on counting.
      case 0x24: state.localRouting = value & 7
      case 0x2c: state.axiControl.0 = value
      case 0x30: state.axiControl.1 = value
      case 0x34:
        state.localTimer = state.localTimer & 1 << 31 | value & 0x3fff_ffff
        armLocalTimer(state)
      case 0x38:
        if value & 1 << 31 != 0 { state.localTimer &= ~(1 << 31) }
        if value & 1 << 30 != 0 { armLocalTimer(state) }
      case 0x40..<0x50: state.cores[index].timerControl = value & 0xff
      case 0x50..<0x60: state.cores[index].mailboxControl = value & 0xff
      case 0x80..<0xc0: state.cores[Int(offset >> 4 & 3)].mailboxes[index] |= value
      case 0xc0..<0x100: state.cores[Int(offset >> 4 & 3)].mailboxes[index] &= ~value
      default:
        GuestErrorTrace.report("bcm2836-local", "write of register 0x\(String(offset, radix: 16))")
      }
    }
  }
}
