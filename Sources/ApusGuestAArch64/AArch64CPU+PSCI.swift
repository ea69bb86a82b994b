import ApusGuest
import Synchronization

/// The CPUs of a machine, as each of them and its firmware see the others.
///
/// Filled before the CPUs run; any thread afterwards.
public final class AArch64Cluster: @unchecked Sendable {
  // SAFETY: written before any vCPU runs, while one thread has it.
  private var members: [Member] = []
  private struct Member {
    let mpidr: UInt64
    let power: AArch64Power
    let wake: @Sendable () -> Void
  }
  /// A translation ignored a top byte: entries of TLBs may have addresses with tags.
  let hasSeenTags = Atomic<Bool>(false)
  public init() {}

  func add(mpidr: UInt64, _ power: AArch64Power, wake: @escaping @Sendable () -> Void) {
    members.append(Member(mpidr: mpidr, power: power, wake: wake))
  }

  fileprivate func powerOn(_ target: UInt64, entry: UInt64, context: UInt64) -> PSCI.Status {
    guard let member = members.first(where: { $0.mpidr == target & 0xff_00ff_ffff }) else {
      return .invalidParameters
    }
    guard member.power.requestOn(entry: entry, context: context) else { return .alreadyOn }
    member.wake()
    return .success
  }
  fileprivate func isOff(_ target: UInt64) -> Bool? {
    members.first { $0.mpidr == target & 0xff_00ff_ffff }?.power.isOff
  }
}

/// A CPU's power: on, off, or on its way from off to on. Any thread.
final class AArch64Power: Sendable {
  struct Start: Sendable {
    var entry: UInt64
    var context: UInt64
  }
  private struct State {
    var isOff = false
    var start: Start?
  }
  private let state = Mutex(State())
  var isOff: Bool { state.withLock { $0.isOff } }
  func set(isOff: Bool) { state.withLock { $0 = State(isOff: isOff) } }
  /// False if it is on, or about to be.
  func requestOn(entry: UInt64, context: UInt64) -> Bool {
    state.withLock { state in
      guard state.isOff, state.start == nil else { return false }
      state.start = Start(entry: entry, context: context)
      return true
    }
  }
  var hasStart: Bool { state.withLock { $0.start != nil } }
  func takeStart() -> Start? {
    state.withLock { state in
      guard let start = state.start else { return nil }
      state = State()
      return start
    }
  }
}

/// The Power State Coordination Interface [DEN0022 1.1]: calls by `hvc` or `smc`.
enum PSCI {
  enum Status: Int64 {
    case success = 0
    case notSupported = -1
    case invalidParameters = -2
    case alreadyOn = -4
  }
  enum Function: UInt32 {
    case version = 0x8400_0000
    case cpuSuspend = 0x8400_0001
    case cpuOff = 0x8400_0002
    case cpuOn = 0x8400_0003
    case affinityInfo = 0x8400_0004
    case migrateInfoType = 0x8400_0006
    case systemOff = 0x8400_0008
    case systemReset = 0x8400_0009
    case features = 0x8400_000a
    case cpuSuspend64 = 0xc400_0001
    case cpuOn64 = 0xc400_0003
    case affinityInfo64 = 0xc400_0004
  }
}

extension AArch64CPU {
  /// Answers the firmware call in x0 to x3; the PC is behind it.
  func callFirmware() {
    guard let system else { return }
    func answer(_ status: PSCI.Status) { s[x: 0] = UInt64(bitPattern: status.rawValue) }
    guard let function = PSCI.Function(rawValue: UInt32(truncatingIfNeeded: s[x: 0])) else {
      return answer(.notSupported)
    }
    switch function {
    case .version: s[x: 0] = 1 << 16 | 1
    // Every power state is a standby: wait for an interrupt, and return.
    case .cpuSuspend, .cpuSuspend64:
      answer(.success)
      engine.requestSleep()
    case .cpuOff:
      power.set(isOff: true)
      engine.requestSleep()
    case .cpuOn, .cpuOn64:
      let status = system.cluster.powerOn(s[x: 1], entry: s[x: 2], context: s[x: 3])
      answer(status)
    case .affinityInfo, .affinityInfo64:
      guard let isOff = system.cluster.isOff(s[x: 1]), s[x: 2] == 0 else { return answer(.invalidParameters) }
      s[x: 0] = isOff ? 1 : 0
    // There is no trusted operating system that would have to move.
    case .migrateInfoType: s[x: 0] = 2
    case .systemOff: system.environment.switchPower(false)
    case .systemReset: system.environment.switchPower(true)
    case .features:
      let isKnown = PSCI.Function(rawValue: UInt32(truncatingIfNeeded: s[x: 1])) != nil
      answer(isKnown ? .success : .notSupported)
    }
  }

  var isPoweredOff: Bool { power.isOff }

  /// Begins where another CPU told this one to. False: nobody did.
  func takePowerOn() -> Bool {
    guard let start = power.takeStart() else { return false }
    powerUp(entry: start.entry, arguments: [start.context])
    return true
  }
}
