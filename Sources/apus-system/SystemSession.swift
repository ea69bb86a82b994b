import ApusBoards
import ApusCharDev
import ApusConfig
import ApusDevice
import ApusHost
import ApusMachine
import Synchronization

/// One run of one machine.
struct SystemSession {
  private let configuration: MachineConfiguration

  init(_ configuration: MachineConfiguration) { self.configuration = configuration }

  func run() throws(MachineError) -> Int32 {
    Messages.configure(configuration)
    if let name = configuration.processName { HostProcess.setName(name) }
    HostProcess.releaseFreedMemoryEarly()
    // Threads and the event loop's descriptors belong to the process that stays.
    let daemon =
      configuration.daemonize ? try host { () throws(HostError) in try HostProcess.beginDaemon() } : nil
    let loop = try host { () throws(HostError) in try EventLoop() }
    let pidFile = try host { () throws(HostError) in
      if let path = configuration.logFile { try HostLog.open(path) }
      return try writePIDFile()
    }
    let session = Session()
    let backends = try host { () throws(HostError) in try makeBackends(loop, session) }
    let engine = try makeVCPUFactory(
      configuration.accelerators.first ?? .init("jit"), configuration.target, logItems: configuration.logItems
    )
    let board = try makeBoard(loop, engine, backends)
    if let path = configuration.dumpDeviceTree {
      let blob = try board.deviceTreeBlob()
      try host { () throws(HostError) in try HostDescriptor.replace(path, with: blob) }
      Messages.write("info: dtb dumped to \(path). Exiting.")
      return 0
    }
    let machine = board.machine
    session.machine.withLock { $0 = machine }
    session.powerKey.withLock { $0 = board.pressPowerKey }
    if !Set(configuration.logItems).isDisjoint(with: ["guest_errors", "unimp"]) {
      GuestErrorTrace.isEnabled.store(true, ordering: .relaxed)
    }
    try host { () throws(HostError) in
      try HostProcess.onTermination(loop) { number in
        Messages.write("terminating on signal \(number)")
        machine.request(.quit)
      }
    }
    if let daemon { HostProcess.finishDaemon(daemon) }
    let code = machine.run()
    if let statistics = engine.statistics { writeStandardError(statistics) }
    board.backends.close()
    for backend in backends.values { backend.drain() }
    HostTerminal.restore()
    if let pidFile { HostDescriptor.remove(pidFile) }
    return code
  }

  private func makeBoard(
    _ loop: EventLoop, _ engine: TranslatingVCPUFactory, _ backends: [String: any CharacterBackend]
  ) throws(MachineError) -> any Board {
    let devices = makeDeviceRegistry()
    switch configuration.target {
    case .riscv64:
      return try RISCVVirtBoard(
        configuration, loop: loop, vcpus: engine, devices: devices, characterBackends: backends
      ) { Messages.write($0) }
    case .aarch64 where configuration.machine == "raspi3b":
      return try RaspberryPiBoard(
        configuration, loop: loop, vcpus: engine, devices: devices, characterBackends: backends
      ) { Messages.write($0) }
    case .aarch64:
      return try ArmVirtBoard(
        configuration, loop: loop, vcpus: engine, devices: devices, characterBackends: backends
      ) { Messages.write($0) }
    }
  }

  /// Carries a host's failure over to the user.
  private func host<T>(_ body: () throws(HostError) -> T) throws(MachineError) -> T {
    do throws(HostError) { return try body() } catch { throw MachineError(error.description) }
  }

  /// The file's absolute path: a daemon leaves its directory.
  private func writePIDFile() throws(HostError) -> String? {
    guard let path = configuration.pidFile else { return nil }
    try HostDescriptor.replace(path, with: Array("\(HostProcess.identifier)\n".utf8))
    return HostProcess.absolutePath(path) ?? path
  }

  /// What back ends need of the machine, which is made after them.
  private final class Session: Sendable {
    let machine = Mutex<Machine?>(nil)
    let powerKey = Mutex<(@Sendable () -> Void)?>(nil)
  }

  private func makeBackends(_ loop: EventLoop, _ session: Session) throws(HostError)
    -> [String: any CharacterBackend]
  {
    let factory = CharacterBackendFactory(loop) { writeStandardError($0) }
    var backends: [String: any CharacterBackend] = [:]
    for device in configuration.charDevs {
      let backend = try factory.make(device)
      guard device.isMultiplexed else {
        backends[device.id] = backend
        continue
      }
      let multiplexer = CharacterMultiplexer(backend, loop) { multiplexer, command in
        switch command {
        case .quit: session.machine.withLock { $0 }?.request(.quit)
        case .switchToMonitor: multiplexer.print("\r\nmonitor not available yet\r\n")
        case .pressPowerKey:
          if let press = session.powerKey.withLock({ $0 }) {
            press()
          } else {
            multiplexer.print("\r\nthis machine has no power key\r\n")
          }
        }
      }
      backends[device.id] = multiplexer
    }
    return backends
  }
}
