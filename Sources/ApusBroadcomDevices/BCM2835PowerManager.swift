import ApusCPU
import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// The power manager and its watchdog, by which the machine restarts or ends [Linux `brcm,bcm2835-pm`].
///
/// Any thread. Registers of power domains keep what is written and tell at once that the power is good. After a watchdog's
/// restart the firmware looks at the partition in RSTS: 63 means that the board halts, which is a power-off here.
public final class BCM2835PowerManager: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  public enum Request: Equatable, Sendable { case reset, powerOff }

  private static let password: UInt64 = 0x5a00_0000
  private enum Register {
    static let control = 0x1c
    static let status = 0x20
    static let watchdog = 0x24
    static let image = 0x108
    static let graphics = 0x10c
  }
  /// RSTC's field: 2 restarts when the watchdog has run out.
  private static let fullReset: UInt32 = 0x20
  /// RSTS: how the machine came to start.
  private static let powerOnReset: UInt32 = 0x1000
  private static let watchdogReset: UInt32 = 0x20
  /// RSTS's bits of partition 63.
  private static let haltPartition: UInt32 = 0x555
  /// The watchdog counts 65536 times a second, in 20 bits.
  private static let nanosecondsPerTick: UInt64 = 15_259

  private struct State {
    var registers = [UInt32](repeating: 0, count: Int(byteCount) / 4)
    /// When the watchdog has run out, in guest time; `nil` while it stands.
    var deadline: UInt64?
    init() {
      registers[Register.control / 4] = 0x102
      registers[Register.status / 4] = BCM2835PowerManager.powerOnReset
    }
  }
  private let state = Mutex(State())
  private let clock: GuestClock
  private let timer: GuestTimer
  private let handler: @Sendable (Request) -> Void

  /// - Parameter handler: called on the event loop's thread.
  public init(clock: GuestClock, loop: EventLoop, _ handler: @escaping @Sendable (Request) -> Void) {
    (self.clock, self.handler) = (clock, handler)
    let owner = WeakReference<BCM2835PowerManager>()
    timer = GuestTimer(clock, loop) { owner.value?.watchdogElapsed() }
    owner.value = self
  }

  public func reset() {
    timer.disarm()
    state.withLock { state in
      // How the last run ended stays readable, as the firmware's partition does.
      let status = state.registers[Register.status / 4]
      state = State()
      state.registers[Register.status / 4] = status
    }
  }

  private func watchdogElapsed() {
    let halts = state.withLock { state in
      state.deadline = nil
      let status = state.registers[Register.status / 4]
      state.registers[Register.status / 4] = status & ~Self.powerOnReset | Self.watchdogReset
      let isHalt = state.registers[Register.status / 4] & Self.haltPartition == Self.haltPartition
      if isHalt { state.registers[Register.status / 4] &= ~Self.haltPartition }
      return isHalt
    }
    handler(halts ? .powerOff : .reset)
  }

  /// Starts or stops the watchdog by its two registers.
  private func update(_ state: inout State) {
    guard state.registers[Register.control / 4] & 0x30 == Self.fullReset else {
      state.deadline = nil
      return timer.disarm()
    }
    let ticks = UInt64(state.registers[Register.watchdog / 4] & 0xf_ffff)
    let deadline = clock.nowNanoseconds() + ticks * Self.nanosecondsPerTick
    state.deadline = deadline
    timer.arm(at: deadline)
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let register = Int(offset) & ~3
    return state.withLock { state in
      let value = state.registers[register / 4]
      switch register {
      case Register.watchdog:
        guard let deadline = state.deadline else { return UInt64(value) }
        let now = clock.nowNanoseconds()
        return now >= deadline ? 0 : min((deadline - now) / Self.nanosecondsPerTick, 0xf_ffff)
      // Power that is asked for (0) is good (1), memories that are to be repaired (3) are (4).
      case Register.image, Register.graphics: return UInt64(value & ~0x12 | (value & 9) << 1)
      default: return UInt64(value)
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard value & 0xff00_0000 == Self.password else {
      return GuestErrorTrace.report("bcm2835-pm", "write without the password")
    }
    let register = Int(offset) & ~3
    state.withLock { state in
      state.registers[register / 4] = UInt32(value & 0xff_ffff)
      if register == Register.control || register == Register.watchdog { update(&state) }
    }
  }
}

/// The bridges between the cores' bus and the graphics units [Linux `brcm,bcm2835-pm`, asb]: a stopped bridge says so at once.
///
/// Any thread.
public final class BCM2835AXIBridge: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private let registers = Mutex([UInt32](repeating: 0, count: 8))
  public init() {}
  public func reset() { registers.withLock { $0 = [UInt32](repeating: 0, count: 8) } }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    switch offset & ~3 {
    case 0x00..<0x20: registers.withLock { UInt64($0[Int(offset) / 4]) }
    case 0x20: 0x6272_6467  // "brdg"
    default: 0
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard offset < 0x20, value & 0xff00_0000 == 0x5a00_0000 else {
      return GuestErrorTrace.report("bcm2835-asb", "write of register 0x\(String(offset, radix: 16))")
    }
    // The acknowledgement (1) follows the request (0).
    let word = UInt32(value & 0xff_fffd)
    registers.withLock { $0[Int(offset) / 4] = word | (word & 1) << 1 }
  }
}
