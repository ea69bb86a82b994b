import ApusConfig
import ApusDevice
import ApusMachine
import ApusMemory
import ApusPCI

/// Where a device is plugged in.
public enum DevicePlace: Sendable {
  /// A memory-mapped virtio slot: its window and its interrupt. The factory maps the window.
  case virtioMMIO(base: GuestPhysicalAddress, byteCount: UInt64, line: InterruptLine)
  /// The board's PCI bus.
  case pci(PCIHost)
}

/// A line of `-device`, with the ports that belong to it if it is a virtio-serial bus.
public struct DeviceRequest: Sendable {
  public var item: MachineConfiguration.Item
  public var ports: [MachineConfiguration.Item] = []
  public init(_ item: MachineConfiguration.Item) { self.item = item }
}

/// Makes the devices of one `-device` name.
public struct DeviceFactory: Sendable {
  public enum Bus: String, Sendable {
    case virtioMMIO = "virtio-bus"
    case pci = "PCI"
    /// A port of a virtio-serial bus, which makes it: `make` is not called.
    case virtioSerial = "virtio-serial-bus"
  }
  public var bus: Bus
  /// One line for `-device help`.
  public var summary: String
  /// What `-device NAME,help` lists.
  public var propertyHelp: String
  /// Makes the device at `place`; returns what resets it (nothing to do on PCI: the host resets its functions).
  public var make:
    @Sendable (DeviceRequest, AddressSpace, MachineBackends, DevicePlace) throws(MachineError) -> (
      @Sendable () -> Void
    )

  public init(
    bus: Bus, summary: String, propertyHelp: String,
    make:
      @escaping @Sendable (DeviceRequest, AddressSpace, MachineBackends, DevicePlace) throws(MachineError) ->
      (
        @Sendable () -> Void
      )
  ) {
    (self.bus, self.summary, self.propertyHelp, self.make) = (bus, summary, propertyHelp, make)
  }
}

/// The devices that `-device` can name.
public struct DeviceRegistry: Sendable {
  public private(set) var factories: [String: DeviceFactory] = [:]
  public init() {}

  public mutating func register(_ names: String..., factory: DeviceFactory) {
    for name in names { factories[name] = factory }
  }

  public func factory(_ name: String) throws(MachineError) -> DeviceFactory {
    guard let factory = factories[name] else {
      throw MachineError(
        "-device: " + ConfigurationError.unknown("device", name, among: factories.keys).description)
    }
    return factory
  }

  /// What `-device help` prints.
  public var help: String {
    factories.sorted { $0.key < $1.key }.map { name, factory in
      "name \"\(name)\", bus \(factory.bus.rawValue), desc \"\(factory.summary)\"\n"
    }.joined()
  }

  /// What `-device NAME,help` prints.
  public func help(for name: String) throws(MachineError) -> String {
    let factory = try factory(name)
    return "\(name) options:\n" + factory.propertyHelp
  }
}
