import ApusCPU
import ApusConfig
import ApusDevice
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPCI
import ApusPlatformDevices
import ApusVirtio

/// The RISC-V `virt` machine, QEMU's in its memory map, interrupts and device tree.
///
/// Built on the main thread; then `machine.run()`. The board knows engines and pluggable devices only through the
/// factories it is given.
public final class RISCVVirtBoard {
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
    machine = Machine(
      loop: loop, clock: clock,
      policy: .init(
        noReboot: configuration.noReboot, noShutdown: configuration.noShutdown,
        startsPaused: configuration.startsPaused),
      report: report)
    let memory = try Self.makeMemory(configuration.memoryByteCount)
    ram = memory.ram
    if !configuration.dumpsGuestMemory { ram.excludeFromCoreDumps() }
    space = AddressSpace(ram: [memory.ram, memory.bootROM] + memory.flash)

    let vcpus = try factory.makeVCPUs(
      .init(
        count: configuration.cpuCount, space: space, clock: clock, loop: loop, cpu: configuration.cpu,
        accelerator: configuration.accelerators.first ?? .init("jit")))
    plic = PLIC(
      sourceCount: Map.interruptSourceCount, outputs: vcpus.flatMap { [Self.line($0, 11), Self.line($0, 9)] })
    let builder = Builder(
      space: space, loop: loop, clock: clock, plic: plic, machine: machine, ramByteCount: ram.byteCount)
    builder.addCore(vcpus, configuration)
    let serial = configuration.serials.first?.flatMap { characterBackends[$0] } ?? NullCharacterBackend()
    builder.addUART(serial)
    let banks = try builder.addFlash(memory.flash, configuration)
    let fwCfg = builder.addFirmwareConfiguration(configuration)
    try Self.addFiles(configuration.firmwareFiles, to: fwCfg)
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

  private static func line(_ vcpu: any VCPU, _ number: Int) -> InterruptLine {
    InterruptLine { vcpu.setInterrupt(number, $0) }
  }

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
      var flash: [GuestRAM] = []
      for bank in 0..<Map.flash.bankCount {
        flash.append(
          try GuestRAM(
            name: "flash\(bank)", base: .init(Map.flash.base + UInt64(bank) * Map.flash.bankByteCount),
            byteCount: Map.flash.bankByteCount, isReadOnly: true))
      }
      return (
        try GuestRAM(name: "ram", base: .init(Map.ram), byteCount: byteCount),
        try GuestRAM(
          name: "boot-rom", base: .init(Map.bootROM.base), byteCount: Map.bootROM.byteCount, isReadOnly: true),
        flash
      )
    } catch { throw MachineError(error.description) }
  }

  private static func addFiles(_ files: [OptionList], to fwCfg: FirmwareConfiguration) throws(MachineError) {
    for file in files {
      let name = file["name"] ?? ""
      var bytes = Array((file["string"] ?? "").utf8)
      if let path = file["file"] {
        do throws(HostError) { bytes = try HostDescriptor.contents(path) } catch {
          throw MachineError("-fw_cfg \(name): \(error)")
        }
      }
      guard fwCfg.addFile(name, bytes) else {
        throw MachineError("-fw_cfg: the name '\(name)' must be 1 to 55 printable characters")
      }
    }
  }

  /// Gathers devices and their resets while the board is built.
  private final class Builder {
    let space: AddressSpace
    let loop: EventLoop
    let clock: GuestClock
    let plic: PLIC
    let machine: Machine
    let ramByteCount: UInt64
    private(set) var resets: [@Sendable () -> Void] = []

    init(
      space: AddressSpace, loop: EventLoop, clock: GuestClock, plic: PLIC, machine: Machine,
      ramByteCount: UInt64
    ) {
      (self.space, self.loop, self.clock, self.plic, self.machine) = (space, loop, clock, plic, machine)
      self.ramByteCount = ramByteCount
    }

    private func map(_ name: String, _ base: UInt64, _ byteCount: UInt64, _ device: any MMIODevice) {
      let fits = space.map(.init(name: name, base: .init(base), byteCount: byteCount, device: device))
      precondition(fits, "the board's own map overlaps at \(name)")
    }

    func addCore(_ vcpus: [any VCPU], _ configuration: MachineConfiguration) {
      let aclint = ACLINT(
        clock: clock, software: vcpus.map { RISCVVirtBoard.line($0, 3) },
        timer: vcpus.map { RISCVVirtBoard.line($0, 7) },
        makeTimer: { [clock, loop] in GuestTimer(clock, loop, $0) })
      map("aclint", Map.aclint, ACLINT.byteCount, aclint)
      map("plic", Map.plic, PLIC.byteCount, plic)
      let finisher = SiFiveTest { [weak machine] request in
        switch request {
        case .powerOff: machine?.request(.powerOff)
        case .fail(let code): machine?.request(.exit(code: Int32(code)))
        case .reset: machine?.request(.reset)
        }
      }
      map("test", Map.testFinisher, SiFiveTest.byteCount, finisher)
      let now = Int64(HostClock.realtimeNanoseconds() / 1_000_000_000)
      let offset: Int64 =
        switch configuration.rtcBase {
        case .utc: 0
        case .localTime: Int64(HostProcess.localTimeOffset(Int(now)))
        case .date(let seconds): seconds - now
        }
      let rtc = GoldfishRTC(plic.input(Map.rtcInterrupt), loop, offsetNanoseconds: offset * 1_000_000_000)
      map("rtc", Map.rtc, GoldfishRTC.byteCount, rtc)
      resets += [{ aclint.reset() }, { rtc.reset() }, { [plic] in plic.reset() }]
    }

    func addUART(_ backend: any CharacterBackend) {
      let uart = UART16550(plic.input(Map.uartInterrupt), backend, clock, loop)
      map("uart", Map.uart, UART16550.byteCount, uart)
      resets.append { uart.reset() }
    }

    /// Returns the numbers of the banks that hold an image; the others are empty flash.
    func addFlash(_ arrays: [GuestRAM], _ configuration: MachineConfiguration) throws(MachineError) -> Set<
      Int
    > {
      let banks = try FlashBankConfiguration.all(configuration)
      for (number, array) in arrays.enumerated() {
        let backing = try banks[number]?.open(into: array)
        let flash = CFIFlash(space: space, array: array, backing: backing)
        map("flash\(number)", array.base.rawValue, array.byteCount, flash)
        resets.append { flash.reset() }
      }
      return Set(banks.keys)
    }

    func addFirmwareConfiguration(_ configuration: MachineConfiguration) -> FirmwareConfiguration {
      typealias Key = FirmwareConfiguration.Key
      let device = FirmwareConfiguration(space)
      device.set(Key.cpuCount, integer: UInt16(configuration.cpuCount))
      device.set(Key.maximumCPUCount, integer: UInt16(configuration.cpuCount))
      device.set(Key.ramSize, integer: configuration.memoryByteCount)
      device.set(Key.uuid, configuration.uuid ?? Array(repeating: 0, count: 16))
      map("fw-cfg", Map.fwCfg, FirmwareConfiguration.byteCount, device)
      resets.append { device.reset() }
      return device
    }

    private func addPCIHost() -> PCIHost {
      let layout = PCIHostLayout(
        ecamBase: Map.pciConfiguration.base, ecamByteCount: Map.pciConfiguration.byteCount,
        memory32Base: Map.pciMemory.base, memory32ByteCount: Map.pciMemory.byteCount,
        memory64Base: Map.pciMemory64Base(ramByteCount: ramByteCount),
        memory64ByteCount: Map.pciMemory64ByteCount,
        ioBase: Map.pciPorts.base, ioByteCount: Map.pciPorts.byteCount)
      // Without an IMSIC there is nothing that takes messages.
      let host = PCIHost(
        layout: layout, lines: (0..<4).map { plic.input(Map.pciInterrupt + $0) }, message: nil)
      let fits = host.map(into: space)
      precondition(fits, "the board's own map overlaps at the PCI host")
      resets.append { host.reset() }
      return host
    }

    /// Plugs in devices. Virtio slots are filled from the last one down, as QEMU does; the rest of them are empty.
    func addDevices(
      _ items: [MachineConfiguration.Item], _ registry: DeviceRegistry, _ backends: MachineBackends
    )
      throws(MachineError)
    {
      let host = addPCIHost()
      var freeSlots = Set(0..<Map.virtio.count)
      for request in try Self.withPorts(items, registry) {
        let name = request.item.name
        let factory = try registry.factory(name)
        var place = DevicePlace.pci(host)
        let bus = request.item.options["bus"]
        if factory.bus == .pci, let bus, bus != "pcie.0" {
          throw MachineError("-device \(name): there is no PCI bus '\(bus)'; the machine has pcie.0")
        }
        if factory.bus == .virtioMMIO {
          let named = try bus.map { (bus: String) throws(MachineError) in try Self.slot(bus, name) }
          guard let slot = named ?? freeSlots.max() else {
            throw MachineError(
              "-device \(name): all \(Map.virtio.count) virtio-mmio slots are taken; use a -pci device")
          }
          guard freeSlots.remove(slot) != nil else {
            throw MachineError("-device \(name): slot virtio-mmio-bus.\(slot) is taken")
          }
          place = .virtioMMIO(
            base: .init(slotBase(slot)), line: plic.input(Map.virtioInterrupt + slot))
        }
        resets.append(try factory.make(request, space, backends, place))
      }
      for slot in freeSlots {
        let empty = VirtioMMIO(device: nil, space: space, line: .unconnected)
        map("virtio-mmio\(slot)", slotBase(slot), VirtioMMIO.byteCount, empty)
      }
    }

    /// The number of a memory-mapped slot that `bus=virtio-mmio-bus.N` names.
    private static func slot(_ bus: String, _ name: String) throws(MachineError) -> Int {
      let prefix = "virtio-mmio-bus."
      guard bus.hasPrefix(prefix), let slot = Int(bus.dropFirst(prefix.count)),
        (0..<Map.virtio.count).contains(slot)
      else {
        throw MachineError(
          "-device \(name): there is no bus '\(bus)'; there are \(prefix)0 to \(prefix)\(Map.virtio.count - 1)"
        )
      }
      return slot
    }

    /// The devices, each virtio-serial bus with its ports: those that name it with `bus=ID.0`, or else those behind it.
    private static func withPorts(_ items: [MachineConfiguration.Item], _ registry: DeviceRegistry)
      throws(MachineError) -> [DeviceRequest]
    {
      var requests: [DeviceRequest] = []
      var ports: [MachineConfiguration.Item] = []
      for item in items {
        if try registry.factory(item.name).bus == .virtioSerial {
          ports.append(item)
        } else {
          requests.append(.init(item))
        }
      }
      for port in ports {
        let bus = port.options["bus"].map { String($0.prefix { $0 != "." }) }
        let index = requests.firstIndex {
          $0.item.name.hasPrefix("virtio-serial") && (bus == nil || $0.item.id == bus)
        }
        guard let index else {
          throw MachineError(
            "-device \(port.name): there is no virtio-serial bus\(bus.map { " '\($0)'" } ?? ""); "
              + "add -device virtio-serial-pci first")
        }
        requests[index].ports.append(port)
      }
      return requests
    }

    private func slotBase(_ slot: Int) -> UInt64 { Map.virtio.base + UInt64(slot) * Map.virtio.stride }
  }
}
