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
import ApusVirtio

/// The RISC-V `virt` machine, QEMU's in its memory map, interrupts and device tree.
///
/// Built on the main thread; then `machine.run()`. The board knows engines and pluggable devices only through the
/// factories it is given.
public final class RISCVVirtBoard: Board {
  private typealias Map = RISCVVirtMap

  public let machine: Machine
  public let space: AddressSpace
  public let ram: GuestRAM
  public let plic: PLIC
  /// Close them when the machine has ended.
  public let backends: MachineBackends
  private let boot: RISCVVirtBoot

  /// - Parameters:
  ///   - configuration: as parsed.
  ///   - characterBackends: what was made of the configuration's `charDevs`, by id.
  ///   - report: shows a sentence to the user.
  public init(
    _ configuration: MachineConfiguration, loop: EventLoop, vcpus factory: any VCPUFactory,
    devices registry: DeviceRegistry, characterBackends: [String: any CharacterBackend],
    report: @escaping @Sendable (String) -> Void
  ) throws(MachineError) {
    var configuration = configuration
    configuration.cpu = try Self.limit(configuration.cpu, to: factory.supportedExtensions)
    let clock = GuestClock()
    machine = BoardBuilder.makeMachine(configuration, loop, clock, report: report)
    let memory = try Self.makeMemory(configuration.memoryByteCount)
    ram = memory.ram
    if !configuration.dumpsGuestMemory { ram.excludeFromCoreDumps() }
    space = AddressSpace(ram: [memory.ram, memory.bootROM] + memory.flash)

    let semihosting = Semihosting.make(configuration, machine, space: space, ram: ram)
    let vcpus = try factory.makeVCPUs(
      .init(
        count: configuration.cpuCount, space: space, clock: clock, loop: loop, cpu: configuration.cpu,
        accelerator: configuration.accelerators.first ?? .init("jit"), semihosting: semihosting))
    plic = PLIC(
      sourceCount: Map.interruptSourceCount,
      outputs: vcpus.flatMap { [BoardBuilder.line($0, 11), BoardBuilder.line($0, 9)] })
    // Without an IMSIC there is nothing that takes PCI's messages.
    let builder = BoardBuilder(
      space: space, loop: loop, clock: clock, machine: machine,
      layout: Self.layout(ramByteCount: ram.byteCount),
      input: { [plic] in plic.input($0) })
    if let semihosting { builder.onReset { semihosting.reset() } }
    let serial = configuration.serials.first?.flatMap { characterBackends[$0] } ?? NullCharacterBackend()
    Self.addCore(builder, plic, vcpus, configuration, serial)
    let banks = try builder.addFlash(memory.flash, configuration)
    let fwCfg = try builder.addFirmwareConfiguration(configuration)
    var added: [MachineConfiguration.Item] = []
    backends = try MachineBackends(
      configuration, loop: loop, characterDevices: characterBackends, addedDevices: &added)
    try builder.addDevices(added + configuration.devices, registry, backends)

    let boot = RISCVVirtBoot(
      configuration: configuration, space: space, ram: ram, hasFlash: banks.contains(0), fwCfg: fwCfg)
    self.boot = boot
    machine.install(
      .init(vcpus: vcpus, resets: builder.resets) { () throws(MachineError) in
        let result = try boot.load()
        return .init(entry: Map.bootROM.base) { [UInt64($0), result.deviceTreeAddress] }
      })
  }

  /// The device tree blob as a start would hand it to the firmware (`-machine dumpdtb=`).
  public func deviceTreeBlob() throws(MachineError) -> [UInt8] { try boot.load().deviceTree }

  /// The extensions that the guest gets: defaults that the engine lacks vanish, the user's own are refused.
  private static func limit(_ cpu: CPUConfiguration, to supported: Set<String>) throws(MachineError)
    -> CPUConfiguration
  {
    var cpu = cpu
    let missing = cpu.extensions.enabled.subtracting(supported)
    if let name = missing.subtracting(RISCVExtensions.rv64.enabled).sorted().first {
      throw MachineError("-cpu \(cpu.model): \(name)=on is not implemented by this accelerator; leave it off")
    }
    cpu.extensions.enabled.subtract(missing)
    return cpu
  }

  private static func makeMemory(_ byteCount: UInt64) throws(MachineError)
    -> (ram: GuestRAM, bootROM: GuestRAM, flash: [GuestRAM])
  {
    do throws(HostError) {
      return (
        try GuestRAM(name: "ram", base: .init(Map.ram), byteCount: byteCount),
        try GuestRAM(
          name: "boot-rom", base: .init(Map.bootROM.base), byteCount: Map.bootROM.byteCount, isReadOnly: true),
        try BoardBuilder.makeFlash(Map.flash)
      )
    } catch { throw MachineError(error.description) }
  }

  private static func addCore(
    _ builder: BoardBuilder, _ plic: PLIC, _ vcpus: [any VCPU], _ configuration: MachineConfiguration,
    _ serial: any CharacterBackend
  ) {
    let (clock, loop) = (builder.clock, builder.loop)
    let aclint = ACLINT(
      clock: clock, software: vcpus.map { BoardBuilder.line($0, 3) },
      timer: vcpus.map { BoardBuilder.line($0, 7) },
      makeTimer: { GuestTimer(clock, loop, $0) })
    builder.map("aclint", Map.aclint, ACLINT.byteCount, aclint)
    builder.map("plic", Map.plic, PLIC.byteCount, plic)
    let finisher = SiFiveTest { [weak machine = builder.machine] request in
      switch request {
      case .powerOff: machine?.request(.powerOff)
      case .fail(let code): machine?.request(.exit(code: Int32(code)))
      case .reset: machine?.request(.reset)
      }
    }
    builder.map("test", Map.testFinisher, SiFiveTest.byteCount, finisher)
    let offset = BoardBuilder.clockOffset(configuration)
    let rtc = GoldfishRTC(plic.input(Map.rtcInterrupt), loop, offsetNanoseconds: offset * 1_000_000_000)
    builder.map("rtc", Map.rtc, GoldfishRTC.byteCount, rtc)
    builder.onReset { aclint.reset() }
    builder.onReset { rtc.reset() }
    builder.onReset { plic.reset() }
    let uart = UART16550(plic.input(Map.uartInterrupt), serial, clock, loop)
    builder.map("uart", Map.uart, UART16550.byteCount, uart)
    builder.onReset { uart.reset() }
  }

  private static func layout(ramByteCount: UInt64) -> BoardBuilder.Layout {
    .init(
      virtio: Map.virtio, virtioInterrupt: Map.virtioInterrupt, fwCfg: Map.fwCfg,
      pci: PCIHostLayout(
        ecamBase: Map.pciConfiguration.base, ecamByteCount: Map.pciConfiguration.byteCount,
        memory32Base: Map.pciMemory.base, memory32ByteCount: Map.pciMemory.byteCount,
        memory64Base: Map.pciMemory64Base(ramByteCount: ramByteCount),
        memory64ByteCount: Map.pciMemory64ByteCount,
        ioBase: Map.pciPorts.base, ioByteCount: Map.pciPorts.byteCount), pciInterrupt: Map.pciInterrupt)
  }
}
