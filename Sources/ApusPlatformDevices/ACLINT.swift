import ApusCPU
import ApusDevice
import ApusMemory
import Synchronization

/// The core-local interruptor of RISC-V machines: software interrupts and the machine timer of each hart
/// [RISC-V ACLINT 1.0-rc4], laid out as SiFive's CLINT.
///
/// ```
/// 0x0000 + 4 * hart  msip      0x4000 + 8 * hart  mtimecmp      0xbff8  mtime, 10 MHz
/// ```
/// Any thread. Power-on state: msip 0, mtimecmp all ones (no interrupt), where the specification leaves it open.
/// Not modelled: the supervisor's sswi device; a write to mtime moves this device's time but not the `time` CSR.
public final class ACLINT: MMIODevice {
  public static let byteCount: UInt64 = 0x10000
  /// Ticks of mtime per second.
  public static let frequency: UInt64 = 10_000_000
  static let nanosecondsPerTick = 1_000_000_000 / frequency

  private struct State {
    var softwareInterrupts: [Bool]
    var timeCompares: [UInt64]
    /// What a write to mtime added, in ticks.
    var timeOffset: UInt64 = 0
  }
  private let state: Mutex<State>
  private let clock: GuestClock
  private let software: [InterruptLine]
  private let timer: [InterruptLine]
  private let timers: [GuestTimer]

  /// - Parameters:
  ///   - software: each hart's MSIP input.
  ///   - timer: each hart's MTIP input.
  ///   - makeTimer: makes a timer that calls its argument when due.
  public init(
    clock: GuestClock, software: [InterruptLine], timer: [InterruptLine],
    makeTimer: (@escaping @Sendable () -> Void) -> GuestTimer
  ) {
    precondition(software.count == timer.count, "one line of each kind per hart")
    let count = software.count
    state = Mutex(
      State(
        softwareInterrupts: Array(repeating: false, count: count),
        timeCompares: Array(repeating: .max, count: count)))
    (self.clock, self.software, self.timer) = (clock, software, timer)
    // The timers' closures need self, which is complete only once they are there.
    let owner = WeakReference()
    timers = (0..<count).map { hart in makeTimer { owner.value?.updateTimer(hart) } }
    owner.value = self
  }

  /// A weak reference that is set once, before any timer is armed.
  private final class WeakReference: Sendable {
    private struct Box { weak var object: ACLINT? }
    private let box = Mutex(Box())
    var value: ACLINT? {
      get { box.withLock { $0.object } }
      set { box.withLock { $0.object = newValue } }
    }
  }

  public func reset() {
    state.withLock { state in
      for hart in software.indices {
        state.softwareInterrupts[hart] = false
        state.timeCompares[hart] = .max
        software[hart].set(false)
        update(hart, state)
      }
      state.timeOffset = 0
    }
  }

  private func time(_ state: State) -> UInt64 {
    clock.nowNanoseconds() / Self.nanosecondsPerTick &+ state.timeOffset
  }

  private func updateTimer(_ hart: Int) { state.withLock { update(hart, $0) } }

  private func update(_ hart: Int, _ state: State) {
    let due = time(state) >= state.timeCompares[hart]
    timer[hart].set(due)
    let wait = (state.timeCompares[hart] &- state.timeOffset).multipliedReportingOverflow(
      by: Self.nanosecondsPerTick)
    if due || wait.overflow || state.timeCompares[hart] < state.timeOffset {
      timers[hart].disarm()
    } else {
      timers[hart].arm(at: wait.partialValue)
    }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    guard byteCount >= 4, offset % UInt64(byteCount) == 0 else { return misuse("read", offset, byteCount) }
    return state.withLock { state in
      switch offset {
      case 0..<UInt64(4 * software.count):
        if byteCount == 8 { break }
        return state.softwareInterrupts[Int(offset / 4)] ? 1 : 0
      case 0x4000..<0x4000 + UInt64(8 * software.count):
        return part(of: state.timeCompares[Int(offset - 0x4000) / 8], offset, byteCount)
      case 0xbff8..<0xc000: return part(of: time(state), offset, byteCount)
      case 0..<0xbff8: return 0  // harts that are not there
      default: break
      }
      return misuse("read", offset, byteCount)
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard byteCount >= 4, offset % UInt64(byteCount) == 0 else {
      _ = misuse("write", offset, byteCount)
      return
    }
    state.withLock { state in
      switch offset {
      case 0..<UInt64(4 * software.count) where byteCount == 4:
        let hart = Int(offset / 4)
        state.softwareInterrupts[hart] = value & 1 != 0
        software[hart].set(value & 1 != 0)
      case 0x4000..<0x4000 + UInt64(8 * software.count):
        let hart = Int(offset - 0x4000) / 8
        replace(&state.timeCompares[hart], offset, byteCount, value)
        update(hart, state)
      case 0xbff8..<0xc000:
        var time = time(state)
        let before = time
        replace(&time, offset, byteCount, value)
        state.timeOffset &+= time &- before
        for hart in software.indices { update(hart, state) }
      default: _ = misuse("write", offset, byteCount)
      }
    }
  }

  private func part(of value: UInt64, _ offset: UInt64, _ byteCount: Int) -> UInt64 {
    byteCount == 8 ? value : value >> (8 * (offset & 4)) & 0xffff_ffff
  }

  private func replace(_ value: inout UInt64, _ offset: UInt64, _ byteCount: Int, _ new: UInt64) {
    guard byteCount == 4 else {
      value = new
      return
    }
    let shift = 8 * (offset & 4)
    value = value & ~(0xffff_ffff << shift) | (new & 0xffff_ffff) << shift
  }

  private func misuse(_ what: String, _ offset: UInt64, _ byteCount: Int) -> UInt64 {
    GuestErrorTrace.report("aclint", "\(what) of \(byteCount) bytes at offset 0x\(String(offset, radix: 16))")
    return 0
  }
}
