import ApusCPU
import ApusConfig
import ApusDevice
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPCI
import ApusPlatformDevices
import ApusSemihosting

/// The AArch64 `virt` machine, QEMU's in its memory map, interrupts and device tree.
///
/// Built on the main thread; then `machine.run()`. The board knows engines and pluggable devices only through the
/// factories it is given.
public final class ArmVirtBoard: Board {
  private typealias Map = ArmVirtMap

  public let machine: Machine
  public let space: AddressSpace
  public let ram: GuestRAM
  public let backends: MachineBackends
  private let boot: ArmVirtBoot
  public let pressPowerKey: (@Sendable () -> Void)?

  /// - Parameters: as for `RISCVVirtBoard`.
  public init(
    _ configuration: MachineConfiguration, loop: EventLoop, vcpus factory: any VCPUFactory,
    devices registry: DeviceRegistry, characterBackends: [String: any CharacterBackend],
    report: @escaping @Sendable (String) -> Void
  ) throws(MachineError) {
    let clock = GuestClock()
    let machine = BoardBuilder.makeMachine(configuration, loop, clock, report: report)
    self.machine = machine
    guard configuration.memoryByteCount <= Map.ramLimit else {
      throw MachineError("-m: machine virt takes at most 255G of memory")
    }
    let hasSecurity = configuration.arm.hasSecurity
    let memory = try Self.makeMemory(configuration.memoryByteCount, hasSecurity: hasSecurity)
    ram = memory.ram
    if !configuration.dumpsGuestMemory {
      for one in [memory.ram] + memory.secure { one.excludeFromCoreDumps() }
    }
    let space = AddressSpace(ram: [memory.ram] + memory.secure + memory.flash)
    self.space = space

    // Firmware at EL3 answers PSCI's calls itself.
    let hasFlash = try FlashBankConfiguration.all(configuration)[0] != nil
    let hasFirmware = configuration.firmware.isFile || hasFlash
    let hasPSCI = !(hasSecurity && hasFirmware)
    let version: GIC.Version = configuration.arm.gicVersion == 3 ? .v3 : .v2
    let wires = GICWires()
    let semihosting = Semihosting.make(configuration, machine, space: space, ram: ram)
    let vcpus = try factory.makeVCPUs(
      .init(
        count: configuration.cpuCount, space: space, clock: clock, loop: loop, cpu: configuration.cpu,
        accelerator: configuration.accelerators.first ?? .init("jit"),
        arm: Self.environment(wires, version, configuration.arm, machine, hasPSCI: hasPSCI),
        semihosting: semihosting))
    let gic = GIC(
      version: version, sharedCount: Map.sharedInterruptCount,
      outputs: vcpus.map {
        .init(
          irq: BoardBuilder.line($0, 0), fiq: BoardBuilder.line($0, 1), virtualIRQ: BoardBuilder.line($0, 2),
          virtualFIQ: BoardBuilder.line($0, 3), secureIRQ: BoardBuilder.line($0, 7))
      },
      memory: configuration.arm.hasTranslationService ? space.ramTable : nil,
      maintenanceInterrupt: configuration.arm.hasVirtualization ? Map.maintenanceInterrupt : nil,
      security: !hasSecurity ? .single : hasPSCI ? .nonSecure : .secure)
    wires.gic = gic
    let builder = BoardBuilder(
      space: space, loop: loop, clock: clock, machine: machine, layout: Self.layout, input: { gic.input($0) })
    if let semihosting { builder.onReset { semihosting.reset() } }
    Self.addInterruptController(
      builder, gic, memory: configuration.arm.hasTranslationService ? space.ramTable : nil)
    let serial = configuration.serials.first?.flatMap { characterBackends[$0] } ?? NullCharacterBackend()
    let gpio = Self.addPeripherals(builder, gic, serial, configuration)
    if hasSecurity {
      let serial =
        configuration.serials.dropFirst().first?.flatMap { characterBackends[$0] } ?? NullCharacterBackend()
      Self.addSecurePeripherals(builder, gic, serial)
    }
    pressPowerKey = {
      gpio.setInput(Map.powerKeyPin, true)
      // Long enough for the guest to see it, and for its debouncing.
      loop.schedule(at: HostClock.monotonicNanoseconds() + 100_000_000) {
        gpio.setInput(Map.powerKeyPin, false)
      }
    }
    let banks = try builder.addFlash(memory.flash, configuration)
    let fwCfg = try builder.addFirmwareConfiguration(configuration)
    if configuration.arm.hasACPI, hasFirmware {
      let acpi = ArmVirtACPI(
        cpuCount: configuration.cpuCount, gicVersion: version,
        hasVirtualization: configuration.arm.hasVirtualization,
        hasHypervisorVirtualTimer: configuration.arm.hasHypervisorVirtualTimer,
        hasTranslationService: configuration.arm.hasTranslationService, hasPSCI: hasPSCI)
      for file in acpi.files() {
        guard !configuration.firmwareFiles.contains(where: { $0["name"] == file.name }) else {
          throw MachineError(
            "-fw_cfg: '\(file.name)' is the machine's own; leave it out, or use -machine acpi=off")
        }
        fwCfg.addFile(file.name, file.bytes)
      }
    }
    var added: [MachineConfiguration.Item] = []
    backends = try MachineBackends(
      configuration, loop: loop, characterDevices: characterBackends, addedDevices: &added)
    try builder.addDevices(added + configuration.devices, registry, backends)
    let boot = ArmVirtBoot(
      configuration: configuration, space: space, ram: ram, gicVersion: version,
      hasTranslationService: configuration.arm.hasTranslationService, hasFlash: banks.contains(0),
      hasPSCI: hasPSCI, fwCfg: fwCfg)
    self.boot = boot
    machine.install(
      .init(vcpus: vcpus, resets: builder.resets) { () throws(MachineError) in
        let result = try boot.load()
        return .init(entry: result.start) { _ in [result.deviceTreeAddress] }
      })
  }

  public func deviceTreeBlob() throws(MachineError) -> [UInt8] { try boot.load().deviceTree }

  /// The interrupt controller, for the CPUs that are made before it.
  private final class GICWires: @unchecked Sendable {
    // SAFETY: set once, before any CPU runs.
    var gic: GIC!
  }

  private static func environment(
    _ wires: GICWires, _ version: GIC.Version, _ arm: ArmConfiguration, _ machine: Machine, hasPSCI: Bool
  ) -> ArmCPUEnvironment {
    ArmCPUEnvironment(
      model: arm.cpuDescription, hasRegisters: version == .v3, hasHypervisor: arm.hasVirtualization,
      readRegister: { wires.gic.readRegister($0, $1, $2) },
      writeRegister: { wires.gic.writeRegister($0, $1, $2, $3) },
      setTimer: { cpu, timer, level in
        let interrupt =
          switch timer {
          case .physical: Map.physicalTimerInterrupt
          case .virtual: Map.virtualTimerInterrupt
          case .hypervisorPhysical: Map.hypervisorTimerInterrupt
          case .hypervisorVirtual: Map.hypervisorVirtualTimerInterrupt
          case .secure: Map.secureTimerInterrupt
          }
        // Resets of CPUs may come before the controller is there.
        wires.gic?.setPrivate(cpu, interrupt, level)
      },
      setPerformanceLine: { wires.gic?.setPrivate($0, Map.performanceInterrupt, $1) },
      switchPower: { [weak machine] isReset in machine?.request(isReset ? .reset : .powerOff) },
      hasPSCI: hasPSCI, security: arm.hasSecurity ? .init(ranges: secureRanges(version)) : nil)
  }

  /// What only the secure state reaches, and the interrupt controller, which shows it more.
  private static func secureRanges(_ version: GIC.Version) -> [Range<UInt64>] {
    func range(_ base: UInt64, _ byteCount: UInt64) -> Range<UInt64> { base..<base + byteCount }
    let own = [
      range(Map.flash.base, Map.flash.bankByteCount), range(Map.secureUART, PL011.byteCount),
      range(Map.secureGPIO, PL061.byteCount), range(Map.secureRAM.base, Map.secureRAM.byteCount),
    ]
    return own
      + (version == .v2
        ? [
          range(Map.gicDistributor, GICv2Distributor.byteCount),
          range(Map.gicInterface, GICv2Interface.byteCount),
        ]
        : [
          range(Map.gicDistributor, GICv3Distributor.byteCount),
          range(Map.gicRedistributors.base, Map.gicRedistributors.byteCount),
        ])
  }

  private static func makeMemory(_ byteCount: UInt64, hasSecurity: Bool) throws(MachineError) -> (
    ram: GuestRAM, secure: [GuestRAM], flash: [GuestRAM]
  ) {
    do throws(HostError) {
      let ram = try GuestRAM(name: "ram", base: .init(Map.ram), byteCount: byteCount)
      guard hasSecurity else { return (ram, [], try BoardBuilder.makeFlash(Map.flash)) }
      let secure = try GuestRAM(
        name: "secure-ram", base: .init(Map.secure(Map.secureRAM.base)), byteCount: Map.secureRAM.byteCount,
        isSecure: true)
      return (
        ram, [secure], try BoardBuilder.makeFlash(Map.flash, secureBase: Map.secure(Map.flash.base))
      )
    } catch { throw MachineError(error.description) }
  }

  private static var layout: BoardBuilder.Layout {
    .init(
      virtio: Map.virtio, virtioInterrupt: Map.virtioInterrupt, fwCfg: Map.fwCfg,
      pci: PCIHostLayout(
        ecamBase: Map.pciConfiguration.base, ecamByteCount: Map.pciConfiguration.byteCount,
        memory32Base: Map.pciMemory.base, memory32ByteCount: Map.pciMemory.byteCount,
        memory64Base: Map.pciMemory64.base, memory64ByteCount: Map.pciMemory64.byteCount,
        ioBase: Map.pciPorts.base, ioByteCount: Map.pciPorts.byteCount), pciInterrupt: Map.pciInterrupt)
  }

  private static func addInterruptController(_ builder: BoardBuilder, _ gic: GIC, memory: GuestRAMTable?) {
    switch gic.version {
    case .v2:
      builder.map("gic-distributor", Map.gicDistributor, GICv2Distributor.byteCount, GICv2Distributor(gic))
      builder.map("gic-interface", Map.gicInterface, GICv2Interface.byteCount, GICv2Interface(gic))
      if gic.hasSecurity {
        builder.map(
          "gic-distributor-secure", Map.secure(Map.gicDistributor), GICv2Distributor.byteCount,
          GICv2Distributor(gic, isSecure: true))
        builder.map(
          "gic-interface-secure", Map.secure(Map.gicInterface), GICv2Interface.byteCount,
          GICv2Interface(gic, isSecure: true))
      }
      if gic.maintenanceInterrupt != nil {
        builder.map(
          "gic-hypervisor", Map.gicHypervisor, GICv2HypervisorInterface.byteCount,
          GICv2HypervisorInterface(gic))
        builder.map(
          "gic-virtual", Map.gicVirtual, GICv2VirtualInterface.byteCount, GICv2VirtualInterface(gic))
      }
      let frame = GICv2MessageFrame(gic, first: Map.messageInterrupt.first, count: Map.messageInterrupt.count)
      builder.map("gic-messages", Map.gicMessages, GICv2MessageFrame.byteCount, frame)
      builder.message = { address, data, _ in
        if address == Map.gicMessages + 0x40 { frame.send(data) }
      }
    case .v3:
      builder.map("gic-distributor", Map.gicDistributor, GICv3Distributor.byteCount, GICv3Distributor(gic))
      builder.map(
        "gic-redistributors", Map.gicRedistributors.base, Map.gicRedistributors.byteCount,
        GICv3Redistributors(gic))
      if gic.hasSecurity {
        builder.map(
          "gic-distributor-secure", Map.secure(Map.gicDistributor), GICv3Distributor.byteCount,
          GICv3Distributor(gic, isSecure: true))
        builder.map(
          "gic-redistributors-secure", Map.secure(Map.gicRedistributors.base),
          Map.gicRedistributors.byteCount, GICv3Redistributors(gic, isSecure: true))
      }
      guard let memory else { break }
      let service = GICTranslationService(gic, memory: memory)
      builder.map("gic-its", Map.gicTranslation, GICTranslationService.byteCount, service)
      builder.onReset { service.reset() }
      builder.message = { address, data, requester in
        guard address == Map.gicTranslation + GICTranslationService.translaterOffset else { return }
        service.send(device: UInt64(requester), event: UInt64(data))
      }
    }
    builder.onReset { gic.reset() }
  }

  private static func addPeripherals(
    _ builder: BoardBuilder, _ gic: GIC, _ serial: any CharacterBackend, _ configuration: MachineConfiguration
  ) -> PL061 {
    let uart = PL011(gic.input(Map.uartInterrupt), serial)
    builder.map("pl011", Map.uart, PL011.byteCount, uart)
    builder.onReset { uart.reset() }
    let rtc = PL031(
      gic.input(Map.rtcInterrupt), builder.loop, offsetSeconds: BoardBuilder.clockOffset(configuration))
    builder.map("pl031", Map.rtc, PL031.byteCount, rtc)
    builder.onReset { rtc.reset() }
    let gpio = PL061(gic.input(Map.gpioInterrupt))
    builder.map("pl061", Map.gpio, PL061.byteCount, gpio)
    builder.onReset { gpio.reset() }
    return gpio
  }

  /// The secure state's serial port, and its pins that switch the machine off or restart it.
  private static func addSecurePeripherals(
    _ builder: BoardBuilder, _ gic: GIC, _ serial: any CharacterBackend
  ) {
    let uart = PL011(gic.input(Map.secureUARTInterrupt), serial)
    builder.map("pl011-secure", Map.secure(Map.secureUART), PL011.byteCount, uart)
    builder.onReset { uart.reset() }
    let gpio = PL061(.unconnected) { [weak machine = builder.machine] pin in
      switch pin {
      case Map.powerOffPin: machine?.request(.powerOff)
      case Map.resetPin: machine?.request(.reset)
      default: break
      }
    }
    builder.map("pl061-secure", Map.secure(Map.secureGPIO), PL061.byteCount, gpio)
    builder.onReset { gpio.reset() }
  }
}
