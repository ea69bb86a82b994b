import ApusBroadcomDevices
import ApusCPU
import ApusConfig
import ApusDevice
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPlatformDevices
import ApusSemihosting

/// The Raspberry Pi 3 B: a BCM2837 with four Cortex-A53, QEMU's `raspi3b`.
///
/// Built on the main thread; then `machine.run()`. Not modelled: USB and with it Ethernet, HDMI, the
/// wireless module, I2C, SPI, PWM and audio; their registers read as 0. The GPU's firmware is the mailbox's answers.
public final class RaspberryPiBoard: Board {
  private typealias Map = RaspberryPiMap

  public let machine: Machine
  public let space: AddressSpace
  public let backends: MachineBackends
  private let boot: RaspberryPiBoot

  /// - Parameters: as for `RISCVVirtBoard`.
  public init(
    _ configuration: MachineConfiguration, loop: EventLoop, vcpus factory: any VCPUFactory,
    devices registry: DeviceRegistry, characterBackends: [String: any CharacterBackend],
    report: @escaping @Sendable (String) -> Void
  ) throws(MachineError) {
    try Self.refuseOptions(configuration)
    let clock = GuestClock()
    let machine = BoardBuilder.makeMachine(configuration, loop, clock, report: report)
    self.machine = machine
    let memory = try Self.makeMemory()
    if !configuration.dumpsGuestMemory { memory.cores.excludeFromCoreDumps() }
    let space = AddressSpace(ram: [memory.cores, memory.videoCore])
    self.space = space
    var added: [MachineConfiguration.Item] = []
    backends = try MachineBackends(
      configuration, loop: loop, characterDevices: characterBackends, addedDevices: &added)
    if let item = added.first { throw Self.noBus(item.name) }

    let wires = Wires()
    let semihosting = Semihosting.make(configuration, machine, space: space, ram: memory.cores)
    let vcpus = try factory.makeVCPUs(
      .init(
        count: configuration.cpuCount, space: space, clock: clock, loop: loop, cpu: configuration.cpu,
        accelerator: configuration.accelerators.first ?? .init("jit"),
        arm: Self.environment(wires, configuration.arm.cpuDescription, machine), semihosting: semihosting))
    let local = BCM2836LocalInterrupts(
      outputs: vcpus.map { .init(irq: BoardBuilder.line($0, 0), fiq: BoardBuilder.line($0, 1)) },
      clock: clock, loop: loop)
    wires.local = local
    let controller = BCM2835InterruptController(irq: local.gpuIRQ, fiq: local.gpuFIQ)
    let parts = RaspberryPiParts(
      space: space, loop: loop, clock: clock, input: { controller.input($0) }, machine: machine)
    if let semihosting { parts.onReset { semihosting.reset() } }
    parts.map("local-interrupts", Map.localInterrupts, BCM2836LocalInterrupts.byteCount, local) {
      local.reset()
    }
    parts.map(
      "interrupt-controller", Map.interruptController, BCM2835InterruptController.byteCount, controller
    ) { controller.reset() }
    let serials = (0..<2).map { index -> any CharacterBackend in
      let id = configuration.serials.dropFirst(index).first ?? nil
      return id.flatMap { characterBackends[$0] } ?? NullCharacterBackend()
    }
    parts.addPeripherals(serials: serials, commandLine: configuration.commandLine ?? "")
    try parts.addCard(backends.memoryCard)
    parts.fillGaps(Map.peripherals.base, Map.peripherals.byteCount)

    let boot = RaspberryPiBoot(configuration: configuration, space: space, ram: memory.cores)
    self.boot = boot
    machine.install(
      .init(vcpus: vcpus, resets: parts.resets) { () throws(MachineError) in
        let result = try boot.load()
        return .init(entry: result.start) { _ in [] }
      })
  }

  public func deviceTreeBlob() throws(MachineError) -> [UInt8] {
    guard boot.configuration.deviceTree != nil else {
      throw MachineError(
        "-machine dumpdtb: machine raspi3b has no device tree of its own; give it one with -dtb")
    }
    return try boot.load().deviceTree
  }

  /// What `virt` has and this board has not.
  private static func refuseOptions(_ configuration: MachineConfiguration) throws(MachineError) {
    if let item = configuration.devices.first { throw noBus(item.name) }
    if !configuration.firmwareFiles.isEmpty {
      throw MachineError("-fw_cfg: machine raspi3b has no firmware configuration device")
    }
    if configuration.drives.contains(where: { $0["if"] == "pflash" }) {
      throw MachineError("-drive if=pflash: machine raspi3b has no flash; it has a card slot (if=sd)")
    }
  }
  private static func noBus(_ name: String) -> MachineError {
    MachineError("-device \(name): machine raspi3b has no bus that it could be plugged into")
  }

  /// The interrupt controller, for the CPUs that are made before it.
  private final class Wires: @unchecked Sendable {
    // SAFETY: set once, before any CPU runs.
    var local: BCM2836LocalInterrupts?
  }

  private static func environment(_ wires: Wires, _ model: String, _ machine: Machine) -> ArmCPUEnvironment {
    ArmCPUEnvironment(
      model: model, hasRegisters: false, hasHypervisor: true, readRegister: { _, _, _ in nil },
      writeRegister: { _, _, _, _ in false },
      setTimer: { cpu, timer, level in
        switch timer {
        case .physical: wires.local?.set(.physicalTimer, core: cpu, level)
        case .virtual: wires.local?.set(.virtualTimer, core: cpu, level)
        case .hypervisorPhysical: wires.local?.set(.hypervisorTimer, core: cpu, level)
        // A Cortex-A53 has none, and the board no EL3.
        case .hypervisorVirtual, .secure: break
        }
      },
      setPerformanceLine: { wires.local?.set(.performance, core: $0, $1) },
      switchPower: { [weak machine] isReset in machine?.request(isReset ? .reset : .powerOff) },
      hasPSCI: false)
  }

  private static func makeMemory() throws(MachineError) -> (cores: GuestRAM, videoCore: GuestRAM) {
    do throws(HostError) {
      return (
        try GuestRAM(name: "ram", base: .init(0), byteCount: Map.ramByteCount),
        try GuestRAM(
          name: "vcram", base: .init(Map.videoCoreMemory.base), byteCount: Map.videoCoreMemory.byteCount)
      )
    } catch { throw MachineError(error.description) }
  }
}
