import ApusCPU
import ApusHost
import ApusMemory
import Synchronization

/// A machine at work: its vCPUs' threads, its event loop, and its way from start to end.
///
/// ```
///            run()            pause()
///  built ---------> running <---------> paused
///                     |  ^ reset: vCPUs stopped, devices and memory as at power-on, started again
///                     v  |
///                   ended: run() returns the exit code
/// ```
/// State changes happen on the event loop's thread, which is the one that calls `run`; requests may come from any
/// thread, vCPUs included, and stop the vCPUs at once.
public final class Machine: Sendable {
  /// What the machine does when the guest asks for something final.
  public struct Policy: Sendable {
    /// A reset ends the machine.
    public var noReboot: Bool
    /// Powering off only pauses the machine.
    public var noShutdown: Bool
    public var startsPaused: Bool
    public init(noReboot: Bool = false, noShutdown: Bool = false, startsPaused: Bool = false) {
      (self.noReboot, self.noShutdown, self.startsPaused) = (noReboot, noShutdown, startsPaused)
    }
  }

  /// Something that changes the machine's state.
  public enum Request: Equatable, Sendable {
    /// The guest switched the power off.
    case powerOff
    /// The guest ended with a code (the test finisher's).
    case exit(code: Int32)
    case reset
    /// The user or a signal ends the machine.
    case quit
    case pause
    case resume
    /// The machine cannot go on; the sentence is shown.
    case fail(String)
  }

  /// Where every vCPU begins, and its argument registers by vCPU index.
  public struct Start: Sendable {
    public var entry: UInt64
    public var arguments: @Sendable (Int) -> [UInt64]
    public init(entry: UInt64, arguments: @escaping @Sendable (Int) -> [UInt64]) {
      (self.entry, self.arguments) = (entry, arguments)
    }
  }

  /// Everything that the owner of a machine gives to it.
  public struct Parts: Sendable {
    public var vcpus: [any VCPU]
    /// Put devices in their power-on state; called in order with the vCPUs stopped.
    public var resets: [@Sendable () -> Void]
    /// Fills memory for a start: firmware, kernel, device tree.
    public var load: @Sendable () throws(MachineError) -> Start
    public init(
      vcpus: [any VCPU], resets: [@Sendable () -> Void],
      load: @escaping @Sendable () throws(MachineError) -> Start
    ) {
      (self.vcpus, self.resets, self.load) = (vcpus, resets, load)
    }
  }

  private struct State {
    var isRunning = false
    var hasEnded = false
    /// vCPUs inside `run`.
    var active = 0
    var exitCode: Int32 = 0
    var wantsRun: Bool
  }
  // Guards `state`; signalled at each change.
  private let monitor = Monitor()
  private let state: Mutex<State>
  private let parts: Mutex<Parts>
  private let policy: Policy
  private let report: @Sendable (String) -> Void

  public let loop: EventLoop
  public let clock: GuestClock

  /// - Parameters:
  ///   - loop: not running yet.
  ///   - report: shows a sentence to the user.
  public init(
    loop: EventLoop, clock: GuestClock, policy: Policy, report: @escaping @Sendable (String) -> Void
  ) {
    (self.loop, self.clock, self.policy, self.report) = (loop, clock, policy, report)
    state = Mutex(State(wantsRun: !policy.startsPaused))
    parts = Mutex(
      Parts(vcpus: [], resets: [], load: { () throws(MachineError) in Start(entry: 0) { _ in [] } }))
    clock.pause()
  }

  /// Gives the machine its parts; once, before `run`. Devices made earlier may already hold the machine.
  public func install(_ parts: Parts) { self.parts.withLock { $0 = parts } }

  private var vcpus: [any VCPU] { parts.withLock { $0.vcpus } }
  public var isRunning: Bool { state.withLock { $0.isRunning } }

  // MARK: Requests

  /// Asks for a change of state; returns at once. When called by a vCPU's thread, that vCPU leaves `run` soon.
  public func request(_ request: Request) {
    if request != .resume { haltSoon() }
    loop.post { [weak self] in self?.handle(request) }
  }

  private func haltSoon() {
    monitor.withLock { state.withLock { $0.isRunning = false } }
    for vcpu in vcpus { vcpu.requestExit() }
  }

  // MARK: The loop's thread

  /// Runs the machine to its end, on the calling thread, and returns its exit code.
  public func run() -> Int32 {
    if let failure = powerOn() {
      report(failure.description)
      return 1
    }
    let threads = vcpus.map { vcpu in
      HostThread.spawn("vcpu\(vcpu.index)", stackByteCount: 8 << 20) { [self] in work(vcpu) }
    }
    if state.withLock({ $0.wantsRun }) { start() }
    loop.run()
    monitor.withLock {
      state.withLock { ($0.hasEnded, $0.isRunning) = (true, false) }
      monitor.broadcast()
    }
    for vcpu in vcpus { vcpu.requestExit() }
    for thread in threads { thread.join() }
    return state.withLock { $0.exitCode }
  }

  private func handle(_ request: Request) {
    guard !state.withLock({ $0.hasEnded }) else { return }
    if request != .resume { stop() }
    switch request {
    case .powerOff where policy.noShutdown, .pause: state.withLock { $0.wantsRun = false }
    case .powerOff, .quit: end(0)
    case .exit(let code): end(code)
    case .reset where policy.noReboot: end(0)
    case .reset:
      if let failure = powerOn() {
        report(failure.description)
        end(1)
      } else if state.withLock({ $0.wantsRun }) {
        start()
      }
    case .resume:
      state.withLock { $0.wantsRun = true }
      start()
    case .fail(let reason):
      report(reason)
      end(1)
    }
  }

  private func end(_ code: Int32) {
    monitor.withLock { state.withLock { ($0.exitCode, $0.hasEnded, $0.wantsRun) = (code, true, false) } }
    loop.stop()
  }

  /// Everything as at power-on. The vCPUs are stopped.
  private func powerOn() -> MachineError? {
    let parts = parts.withLock { $0 }
    for reset in parts.resets { reset() }
    do throws(MachineError) {
      let start = try parts.load()
      for vcpu in parts.vcpus { vcpu.reset(entry: start.entry, arguments: start.arguments(vcpu.index)) }
      return nil
    } catch {
      return error
    }
  }

  private func start() {
    guard !isRunning else { return }
    clock.resume()
    monitor.withLock {
      state.withLock { $0.isRunning = true }
      monitor.broadcast()
    }
  }

  /// Waits until no vCPU runs; guest time stands still then.
  private func stop() {
    haltSoon()
    monitor.withLock {
      while state.withLock({ $0.active > 0 }) { monitor.wait() }
    }
    clock.pause()
  }

  // MARK: vCPU threads

  private func work(_ vcpu: any VCPU) {
    while true {
      let goesOn = monitor.withLock {
        while state.withLock({ !$0.isRunning && !$0.hasEnded }) { monitor.wait() }
        return state.withLock { state in
          if state.hasEnded { return false }
          state.active += 1
          return true
        }
      }
      guard goesOn else { return }
      let exit = vcpu.run()
      monitor.withLock {
        state.withLock { $0.active -= 1 }
        monitor.broadcast()
      }
      if case .failed(let reason) = exit { request(.fail("CPU \(vcpu.index) cannot go on: \(reason)")) }
    }
  }
}
