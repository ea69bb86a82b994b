import ApusCPU
import ApusConfig
import ApusDevice
import ApusHost
import ApusMachine
import ApusMemory
import ApusPCI
import ApusPlatformDevices
import ApusVirtio

/// Gathers the devices of a board and their resets while it is built: what boards have in common.
final class BoardBuilder {
  /// Where a board's pluggable devices go.
  struct Layout {
    var virtio: (base: UInt64, stride: UInt64, count: Int)
    /// The interrupt of virtio slot 0; the others follow.
    var virtioInterrupt: Int
    var fwCfg: UInt64
    var fwCfgByteCount = FirmwareConfiguration.byteCount
    var pci: PCIHostLayout
    /// Of INTA; INTB to INTD follow.
    var pciInterrupt: Int
  }
  let space: AddressSpace
  let loop: EventLoop
  let clock: GuestClock
  let machine: Machine
  let layout: Layout
  /// The wire into an interrupt of the board's controller.
  let input: (Int) -> InterruptLine
  /// Delivers a message of PCI devices; `nil` if nothing takes them.
  var message: (@Sendable (_ address: UInt64, _ data: UInt32, _ requester: UInt16) -> Void)?
  private(set) var resets: [@Sendable () -> Void] = []

  init(
    space: AddressSpace, loop: EventLoop, clock: GuestClock, machine: Machine, layout: Layout,
    input: @escaping (Int) -> InterruptLine
  ) {
    (self.space, self.loop, self.clock, self.machine) = (space, loop, clock, machine)
    (self.layout, self.input) = (layout, input)
  }

  static func makeMachine(
    _ configuration: MachineConfiguration, _ loop: EventLoop, _ clock: GuestClock,
    report: @escaping @Sendable (String) -> Void
  ) -> Machine {
    Machine(
      loop: loop, clock: clock,
      policy: .init(
        noReboot: configuration.noReboot, noShutdown: configuration.noShutdown,
        startsPaused: configuration.startsPaused),
      report: report)
  }

  /// The arrays of the flash banks, one behind the other.
  /// - Parameter secureBase: where the first one lies instead, the secure state's alone.
  static func makeFlash(
    _ flash: (base: UInt64, bankByteCount: UInt64, bankCount: Int), secureBase: UInt64? = nil
  ) throws(HostError) -> [GuestRAM] {
    var arrays: [GuestRAM] = []
    for bank in 0..<flash.bankCount {
      let secureBase = bank == 0 ? secureBase : nil
      arrays.append(
        try GuestRAM(
          name: "flash\(bank)", base: .init(secureBase ?? flash.base + UInt64(bank) * flash.bankByteCount),
          byteCount: flash.bankByteCount, isReadOnly: true, isSecure: secureBase != nil))
    }
    return arrays
  }

  /// The wire into a CPU's interrupt input.
  static func line(_ vcpu: any VCPU, _ number: Int) -> InterruptLine {
    InterruptLine { vcpu.setInterrupt(number, $0) }
  }

  func map(_ name: String, _ base: UInt64, _ byteCount: UInt64, _ device: any MMIODevice) {
    let fits = space.map(.init(name: name, base: .init(base), byteCount: byteCount, device: device))
    precondition(fits, "the board's own map overlaps at \(name)")
  }
  func onReset(_ body: @escaping @Sendable () -> Void) { resets.append(body) }

  /// What the guest's clock shows beyond the host's UTC, in seconds (`-rtc base=`).
  static func clockOffset(_ configuration: MachineConfiguration) -> Int64 {
    let now = Int64(HostClock.realtimeNanoseconds() / 1_000_000_000)
    return switch configuration.rtcBase {
    case .utc: 0
    case .localTime: Int64(HostProcess.localTimeOffset(Int(now)))
    case .date(let seconds): seconds - now
    }
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

  func addFirmwareConfiguration(_ configuration: MachineConfiguration) throws(MachineError)
    -> FirmwareConfiguration
  {
    typealias Key = FirmwareConfiguration.Key
    let device = FirmwareConfiguration(space)
    device.set(Key.cpuCount, integer: UInt16(configuration.cpuCount))
    device.set(Key.maximumCPUCount, integer: UInt16(configuration.cpuCount))
    device.set(Key.ramSize, integer: configuration.memoryByteCount)
    device.set(Key.uuid, configuration.uuid ?? Array(repeating: 0, count: 16))
    map("fw-cfg", layout.fwCfg, layout.fwCfgByteCount, device)
    resets.append { device.reset() }
    try Self.addFiles(configuration.firmwareFiles, to: device)
    return device
  }

  private func addPCIHost() -> PCIHost {
    let host = PCIHost(
      layout: layout.pci, lines: (0..<4).map { input(layout.pciInterrupt + $0) }, message: message)
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
    var freeSlots = Set(0..<layout.virtio.count)
    for request in try Self.withPorts(items, registry) {
      let name = request.item.name
      let factory = try registry.factory(name)
      var place = DevicePlace.pci(host)
      let bus = request.item.options["bus"]
      if factory.bus == .pci, let bus, bus != "pcie.0" {
        throw MachineError("-device \(name): there is no PCI bus '\(bus)'; the machine has pcie.0")
      }
      if factory.bus == .virtioMMIO {
        let named = try bus.map { (bus: String) throws(MachineError) in try slot(bus, name) }
        guard let slot = named ?? freeSlots.max() else {
          throw MachineError(
            "-device \(name): all \(layout.virtio.count) virtio-mmio slots are taken; use a -pci device")
        }
        guard freeSlots.remove(slot) != nil else {
          throw MachineError("-device \(name): slot virtio-mmio-bus.\(slot) is taken")
        }
        place = .virtioMMIO(
          base: .init(slotBase(slot)), byteCount: layout.virtio.stride,
          line: input(layout.virtioInterrupt + slot))
      }
      resets.append(try factory.make(request, space, backends, place))
    }
    for slot in freeSlots {
      let empty = VirtioMMIO(device: nil, space: space, line: .unconnected)
      map("virtio-mmio\(slot)", slotBase(slot), layout.virtio.stride, empty)
    }
  }

  /// The number of a memory-mapped slot that `bus=virtio-mmio-bus.N` names.
  private func slot(_ bus: String, _ name: String) throws(MachineError) -> Int {
    let prefix = "virtio-mmio-bus."
    guard bus.hasPrefix(prefix), let slot = Int(bus.dropFirst(prefix.count)),
      (0..<layout.virtio.count).contains(slot)
    else {
      throw MachineError(
        "-device \(name): there is no bus '\(bus)'; there are \(prefix)0 to \(prefix)\(layout.virtio.count - 1)"
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

  private func slotBase(_ slot: Int) -> UInt64 { layout.virtio.base + UInt64(slot) * layout.virtio.stride }

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
}
