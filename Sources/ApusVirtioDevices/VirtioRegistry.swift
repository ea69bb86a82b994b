import ApusBlock
import ApusDevice
import ApusHost
import ApusMemory
import ApusNet
import ApusPCI
import ApusVirtio

/// Where a factory finds what a device's options name, and the machine's size.
public struct VirtioEnvironment: Sendable {
  public var blockNode: @Sendable (_ id: String) -> (any BlockNode)?
  public var netdev: @Sendable (_ id: String) -> (any Netdev)?
  public var consoleBackend: @Sendable (_ chardevID: String) -> (any ConsoleBackend)?
  /// The type of an `-object`.
  public var objectType: @Sendable (_ id: String) -> String?
  /// Threads for work that takes long.
  public var pool: WorkerPool
  public var vcpuCount: Int
  /// The MAC address for a card that names none (QEMU counts up from 52:54:00:12:34:56).
  public var defaultMACAddress: @Sendable () -> [UInt8]
  public init(
    pool: WorkerPool, vcpuCount: Int = 1,
    blockNode: @escaping @Sendable (String) -> (any BlockNode)? = { _ in nil },
    netdev: @escaping @Sendable (String) -> (any Netdev)? = { _ in nil },
    consoleBackend: @escaping @Sendable (String) -> (any ConsoleBackend)? = { _ in nil },
    objectType: @escaping @Sendable (String) -> String? = { _ in nil },
    defaultMACAddress: @escaping @Sendable () -> [UInt8] = { [0x52, 0x54, 0x00, 0x12, 0x34, 0x56] }
  ) {
    (self.pool, self.vcpuCount, self.blockNode, self.netdev) = (pool, vcpuCount, blockNode, netdev)
    (self.consoleBackend, self.objectType) = (consoleBackend, objectType)
    self.defaultMACAddress = defaultMACAddress
  }

  /// Checks that the option `name`, if given, names an object of one of `types`.
  func checkObject(_ name: String, _ types: [String], _ reader: OptionReader) throws(OptionError) {
    guard let id = reader.given(name) else { return }
    guard let type = objectType(id), types.contains(type) else {
      throw reader.invalid(name, id, "the id of an -object \(types.joined(separator: " or "))")
    }
  }
}

/// `-device` as a user gave it, or a port on a virtio-serial bus.
public struct VirtioDeviceRequest: Sendable {
  /// The driver's name, an alias too.
  public var driver: String
  public var id: String
  /// Without `driver` and `id`; without `bus` too, which the caller resolves.
  public var options: [String: String]
  /// For virtio-serial devices: the ports on their bus, each a `virtconsole` or `virtserialport`.
  public var ports: [VirtioDeviceRequest]
  public init(
    driver: String, id: String = "", options: [String: String] = [:], ports: [VirtioDeviceRequest] = []
  ) {
    (self.driver, self.id, self.options, self.ports) = (driver, id, options, ports)
  }
}

/// A device ready to be put behind a transport.
public struct VirtioDeviceInstance: Sendable {
  public enum Transport: Sendable, Equatable {
    case mmio
    /// - vectorCount: MSI-X vectors, `nil` for the usual number.
    case pci(address: PCIAddress?, vectorCount: Int?, isMultifunction: Bool)
  }
  public var device: any VirtioDevice
  public var transport: Transport
  public var ringOptions: VirtioRingOptions

  /// Puts the device on a PCI host; returns the transport, which the function keeps alive, and its place.
  public func attach(to host: PCIHost, space: AddressSpace) throws(PCIError) -> (VirtioPCI, PCIAddress) {
    guard case .pci(let address, let vectorCount, let isMultifunction) = transport else {
      throw PCIError("'\(device.name)' is no PCI device")
    }
    let function = VirtioPCI(
      device: device, space: space, host: host, options: ringOptions, vectorCount: vectorCount,
      isMultifunction: isMultifunction)
    return (function, try host.attach(function.function, at: address))
  }
}

/// A virtio device model by the name that users know.
public struct VirtioModel: Sendable {
  public var name: String
  public var aliases: [String]
  public var summary: String
  public var isPCI: Bool
  public var options: [OptionDescription]
  let make:
    @Sendable (VirtioDeviceRequest, OptionReader, VirtioEnvironment) throws(OptionError) -> any VirtioDevice

  public func makeInstance(_ request: VirtioDeviceRequest, _ environment: VirtioEnvironment)
    throws(OptionError)
    -> VirtioDeviceInstance
  {
    let reader = try OptionReader(owner: request.driver, request.options, options)
    var rings = VirtioRingOptions()
    rings.eventIndex = try reader.bool("event_idx")
    rings.indirectDescriptors = try reader.bool("indirect_desc")
    rings.packed = try reader.bool("packed")
    rings.queueReset = try reader.bool("queue_reset")
    if try reader.bool("iommu_platform") {
      throw OptionError(
        "'\(request.driver)': iommu_platform=on needs an IOMMU, which this machine has none of")
    }
    guard try reader.bool("ioeventfd") else {
      throw OptionError(
        "'\(request.driver)': ioeventfd=off is not implemented: devices never work on a CPU's thread here")
    }
    let transport = try isPCI ? Self.pciTransport(reader, request) : .mmio
    let device = try make(request, reader, environment)
    try reader.finish()
    return VirtioDeviceInstance(device: device, transport: transport, ringOptions: rings)
  }

  private static func pciTransport(_ reader: OptionReader, _ request: VirtioDeviceRequest) throws(OptionError)
    -> VirtioDeviceInstance.Transport
  {
    if try reader.onOffAuto("disable-legacy") == false {
      throw OptionError(
        "'\(request.driver)': the legacy virtio interface is not implemented; leave disable-legacy out")
    }
    if try reader.bool("disable-modern") {
      throw OptionError("'\(request.driver)': disable-modern=on leaves no interface; leave it out")
    }
    if let file = reader.given("romfile"), !file.isEmpty {
      throw OptionError(
        "'\(request.driver)': romfile=\(file): option ROMs are not implemented; leave it empty")
    }
    _ = try reader.integer("rombar")
    var address: PCIAddress?
    if let text = reader.given("addr") {
      guard let place = PCIAddress(text) else {
        throw reader.invalid(
          "addr", text, "a slot from 0 to 1f, with a function from 0 to 7 if need be: 06.0 or 06")
      }
      address = place
    }
    return .pci(
      address: address, vectorCount: try reader.integer("vectors").map { Int($0) },
      isMultifunction: try reader.bool("multifunction"))
  }
}

/// All virtio device models.
public enum VirtioRegistry {
  /// By name and alias.
  public static let models: [String: VirtioModel] = {
    var table: [String: VirtioModel] = [:]
    for model in all { for name in [model.name] + model.aliases { table[name] = model } }
    return table
  }()

  /// In the order of a help text.
  public static let all: [VirtioModel] =
    block + net + serial
    + pair(
      "virtio-rng", "entropy source",
      [.init("rng", .reference("object"), "rng-random or rng-builtin: both are the host kernel's numbers")]
    ) { request, reader, environment throws(OptionError) in
      try environment.checkObject("rng", ["rng-random", "rng-builtin"], reader)
      return VirtioEntropy(name: label("virtio-rng", request), pool: environment.pool)
    }
    + pair(
      "virtio-balloon", "memory balloon",
      [
        .init("deflate-on-oom", .bool, default: "off", "the guest takes pages back when it runs out"),
        .init("free-page-reporting", .bool, default: "off", "the guest reports free pages"),
      ]
    ) { request, reader, environment throws(OptionError) in
      VirtioBalloon(
        name: label("virtio-balloon", request), deflatesOnOOM: try reader.bool("deflate-on-oom"),
        reportsFreePages: try reader.bool("free-page-reporting"), pool: environment.pool)
    }

  /// Options of ports on a virtio-serial bus.
  public static let portOptions: [OptionDescription] = [
    .init("chardev", .reference("chardev")), .init("name", .string, "the name that the guest sees"),
    .init("nr", .integer(0...511), "port number"),
  ]

  private static let ringOptions: [OptionDescription] = [
    .init("event_idx", .bool, default: "on"), .init("indirect_desc", .bool, default: "on"),
    .init("packed", .bool, default: "off", "offer packed rings"), .init("queue_reset", .bool, default: "on"),
    .init("iommu_platform", .bool, default: "off"),
    .init("ioeventfd", .bool, default: "on", "always on: devices never work on a CPU's thread"),
  ]
  private static let pciOptions: [OptionDescription] = [
    .init("addr", .string, "slot and optional function, 06.0 or 06"),
    .init("multifunction", .bool, default: "off"), .init("vectors", .integer(0...2048), "MSI-X vectors"),
    .init("disable-legacy", .onOffAuto, default: "auto"), .init("disable-modern", .bool, default: "off"),
    .init("romfile", .string, "empty: there are no option ROMs"),
    .init("rombar", .integer(0...0), "there are no option ROMs"), .init("bus", .string),
  ]

  private typealias Make =
    @Sendable (VirtioDeviceRequest, OptionReader, VirtioEnvironment) throws(OptionError) -> any VirtioDevice

  /// The `-device` and `-pci` models of one type; the plain name means PCI.
  private static func pair(
    _ name: String, _ summary: String, _ options: [OptionDescription], aliases: [String] = [],
    _ make: @escaping Make
  ) -> [VirtioModel] {
    [
      VirtioModel(
        name: name + "-device", aliases: [], summary: summary, isPCI: false, options: options + ringOptions,
        make: make),
      VirtioModel(
        name: name + "-pci", aliases: [name, name + "-pci-non-transitional"], summary: summary, isPCI: true,
        options: options + ringOptions + pciOptions, make: make),
    ]
  }

  private static func label(_ type: String, _ request: VirtioDeviceRequest) -> String {
    request.id.isEmpty ? type : "\(type) \(request.id)"
  }

  // MARK: Block

  private static let block = pair(
    "virtio-blk", "block device",
    [
      .init("drive", .reference("drive")), .init("serial", .string, "up to 20 characters"),
      .init("num-queues", .integer(1...1024), "default: one for mmio, one a CPU for pci"),
      .init("queue-size", .integer(4...1024), default: "256", "a power of two"),
      .init("config-wce", .bool, default: "on", "the guest may switch the write cache"),
      .init("write-cache", .onOffAuto, default: "auto"), .init("discard", .bool, default: "on"),
      .init("write-zeroes", .bool, default: "on"), .init("logical_block_size", .size, default: "512"),
      .init("physical_block_size", .size, default: "0"), .init("min_io_size", .size, default: "0"),
      .init("opt_io_size", .size, default: "0"), .init("share-rw", .bool, default: "off"),
      .init("iothread", .reference("object"), "an iothread: disks always work on threads of their own"),
      .init("request-merging", .bool, default: "on", "neighbouring transfers become one"),
      .init("scsi", .bool, default: "off", "SCSI commands in virtio-blk, which VIRTIO 1 has done away with"),
      .init(
        "rerror", .choice(["auto", "report", "ignore", "stop"]), default: "auto", "what a failed read does"),
      .init(
        "werror", .choice(["auto", "report", "ignore", "enospc", "stop"]), default: "auto",
        "what a failed write does"),
    ]
  ) { request, reader, environment throws(OptionError) in
    guard let drive = reader.given("drive") else {
      throw OptionError("'\(request.driver)' needs a drive: drive=ID")
    }
    guard let node = environment.blockNode(drive) else {
      throw OptionError("'\(request.driver)': there is no drive or block node '\(drive)'")
    }
    var configuration = VirtioBlockConfiguration()
    configuration.name = label("virtio-blk", request)
    configuration.serial = reader.given("serial") ?? ""
    let isPCI = !request.driver.hasSuffix("-device")
    configuration.queueCount = Int(
      try reader.integer("num-queues") ?? Int64(isPCI ? max(1, environment.vcpuCount) : 1))
    configuration.queueSize = try powerOfTwo(reader, "queue-size")
    configuration.hasWriteCacheControl = try reader.bool("config-wce")
    configuration.writeCache = try reader.onOffAuto("write-cache")
    configuration.hasDiscard = try reader.bool("discard")
    configuration.hasWriteZeroes = try reader.bool("write-zeroes")
    configuration.logicalBlockSize = try blockSize(reader, "logical_block_size") ?? 512
    configuration.physicalBlockSize = try blockSize(reader, "physical_block_size") ?? 0
    configuration.minimumIOSize = Int(clamping: try reader.size("min_io_size") ?? 0)
    configuration.optimalIOSize = Int(clamping: min(try reader.size("opt_io_size") ?? 0, 1 << 30))
    configuration.readErrors = try errorPolicy(reader, "rerror")
    configuration.writeErrors = try errorPolicy(reader, "werror")
    configuration.mergesRequests = try reader.bool("request-merging")
    try environment.checkObject("iothread", ["iothread"], reader)
    // The drive is opened with it, by whoever made the node.
    _ = try reader.bool("share-rw")
    if try reader.bool("scsi") {
      throw OptionError("'\(request.driver)': scsi=on is a feature of legacy virtio only; leave it out")
    }
    if configuration.physicalBlockSize > 0, configuration.physicalBlockSize < configuration.logicalBlockSize {
      throw OptionError("'\(request.driver)': physical_block_size is below logical_block_size")
    }
    return VirtioBlock(configuration, node: node, pool: environment.pool)
  }

  private static func errorPolicy(_ reader: OptionReader, _ name: String) throws(OptionError)
    -> VirtioBlockConfiguration.ErrorPolicy
  {
    switch try reader.choice(name) {
    case "ignore": return .ignore
    case "stop"?, "enospc"?:
      throw reader.invalid(
        name, reader.given(name) ?? "", "report or ignore: there is no monitor yet to go on from a stop")
    default: return .report
    }
  }

  private static func powerOfTwo(_ reader: OptionReader, _ name: String) throws(OptionError) -> UInt16 {
    let value = try reader.integer(name) ?? 256
    guard value > 0, value & (value - 1) == 0 else {
      throw reader.invalid(name, String(value), "a power of two")
    }
    return UInt16(clamping: value)
  }
  /// 0 and nothing given: `nil`.
  private static func blockSize(_ reader: OptionReader, _ name: String) throws(OptionError) -> Int? {
    guard let size = try reader.size(name), size != 0 else { return nil }
    guard size & (size - 1) == 0, (512...2 << 20).contains(size) else {
      throw reader.invalid(name, String(size), "a power of two from 512 to 2 MiB")
    }
    return Int(size)
  }

  // MARK: Net

  private static let net = pair(
    "virtio-net", "network card",
    [
      .init("netdev", .reference("netdev")), .init("mac", .macAddress, "default 52:54:00:12:34:56 and up"),
      .init("rx_queue_size", .integer(64...1024), default: "256"),
      .init("tx_queue_size", .integer(64...1024), default: "256"),
      .init("host_mtu", .integer(0...65535), default: "0"), .init("mrg_rxbuf", .bool, default: "on"),
      .init("status", .bool, default: "on"), .init("ctrl_vq", .bool, default: "on"),
      .init("ctrl_rx", .bool, default: "on"), .init("ctrl_rx_extra", .bool, default: "on"),
      .init("ctrl_vlan", .bool, default: "on"), .init("ctrl_mac_addr", .bool, default: "on"),
      .init("guest_announce", .bool, default: "on"), .init("csum", .bool, default: "on"),
      .init("guest_csum", .bool, default: "on"), .init("gso", .bool, default: "on"),
      .init("host_tso4", .bool, default: "on"), .init("host_tso6", .bool, default: "on"),
      .init("host_ecn", .bool, default: "on"), .init("guest_tso4", .bool, default: "on"),
      .init("guest_tso6", .bool, default: "on"), .init("guest_ecn", .bool, default: "on"),
      .init("host_ufo", .bool, default: "off"), .init("guest_ufo", .bool, default: "off"),
      .init("ctrl_guest_offloads", .bool, default: "on"), .init("speed", .integer(-1...Int64(Int32.max))),
      .init("duplex", .choice(["half", "full"])), .init("mq", .bool, default: "off"),
      .init("tx", .choice(["bh", "timer"]), default: "bh", "bh: frames go out at once"),
    ]
  ) { request, reader, environment throws(OptionError) in
    var netdev: (any Netdev)?
    if let id = reader.given("netdev") {
      guard let found = environment.netdev(id) else {
        throw OptionError("'\(request.driver)': there is no netdev '\(id)'")
      }
      netdev = found
    }
    if try reader.bool("mq") {
      throw OptionError("'\(request.driver)': several queue pairs (mq=on) are not implemented; leave mq out")
    }
    for name in ["host_ufo", "guest_ufo"] where try reader.bool(name) {
      throw OptionError("'\(request.driver)': \(name)=on: UDP fragmentation offload is not implemented")
    }
    if try reader.choice("tx") == "timer" {
      throw OptionError("'\(request.driver)': tx=timer is not implemented; frames go out at once (tx=bh)")
    }
    var configuration = VirtioNetConfiguration()
    configuration.name = label("virtio-net", request)
    configuration.macAddress = try reader.macAddress("mac") ?? environment.defaultMACAddress()
    if configuration.macAddress[0] & 1 != 0 {
      throw reader.invalid("mac", reader.given("mac") ?? "", "an address that is not a multicast one")
    }
    configuration.receiveQueueSize = try powerOfTwo(reader, "rx_queue_size")
    configuration.transmitQueueSize = try powerOfTwo(reader, "tx_queue_size")
    configuration.mtu = UInt16(clamping: try reader.integer("host_mtu") ?? 0)
    configuration.hasMergeableBuffers = try reader.bool("mrg_rxbuf")
    configuration.hasStatus = try reader.bool("status")
    configuration.hasControlQueue = try reader.bool("ctrl_vq")
    configuration.hasControlReceive = try reader.bool("ctrl_rx")
    configuration.hasControlReceiveExtra = try reader.bool("ctrl_rx_extra")
    configuration.hasControlGuestOffloads = try reader.bool("ctrl_guest_offloads")
    configuration.hasControlVLAN = try reader.bool("ctrl_vlan")
    configuration.hasControlMACAddress = try reader.bool("ctrl_mac_addr")
    configuration.hasGuestAnnounce = try reader.bool("guest_announce")
    configuration.hasChecksum = try reader.bool("csum")
    configuration.hasGuestChecksum = try reader.bool("guest_csum")
    let hasGSO = try reader.bool("gso")
    configuration.hasHostTSO4 = try reader.bool("host_tso4") && hasGSO
    configuration.hasHostTSO6 = try reader.bool("host_tso6") && hasGSO
    configuration.hasHostECN = try reader.bool("host_ecn") && hasGSO
    configuration.hasGuestTSO4 = try reader.bool("guest_tso4")
    configuration.hasGuestTSO6 = try reader.bool("guest_tso6")
    configuration.hasGuestECN = try reader.bool("guest_ecn")
    if let speed = try reader.integer("speed"), speed >= 0 { configuration.speed = UInt32(speed) }
    if let duplex = try reader.choice("duplex") { configuration.isFullDuplex = duplex == "full" }
    return VirtioNet(configuration, netdev: netdev)
  }

  // MARK: Serial

  private static let serial = pair(
    "virtio-serial", "bus of serial ports",
    [
      .init("max_ports", .integer(1...511), default: "31"), .init("emergency-write", .bool, default: "on"),
    ]
  ) { request, reader, environment throws(OptionError) in
    let maximum = Int(try reader.integer("max_ports") ?? 31)
    var ports = [VirtioConsolePort?](repeating: nil, count: maximum)
    for port in request.ports {
      let options = try OptionReader(owner: port.driver, port.options, portOptions)
      let isConsole = port.driver == "virtconsole"
      guard isConsole || port.driver == "virtserialport" else {
        throw OptionError(
          "'\(port.driver)' is no port of a virtio-serial bus; virtconsole and virtserialport are")
      }
      // Port 0 is the console's: plain ports begin at 1, as in QEMU.
      let first = isConsole ? 0 : 1
      let number =
        try options.integer("nr").map { Int($0) } ?? ports.indices.first { $0 >= first && ports[$0] == nil }
      guard let number, ports.indices.contains(number) else {
        throw OptionError("'\(port.driver)': the bus has \(maximum) ports only; raise max_ports")
      }
      guard ports[number] == nil else { throw OptionError("'\(port.driver)': port \(number) is taken") }
      guard isConsole || number != 0 else {
        throw OptionError("'\(port.driver)': port 0 is for a virtconsole; take nr=1 or above")
      }
      var backend: any ConsoleBackend = DiscardingConsoleBackend()
      if let id = options.given("chardev") {
        guard let found = environment.consoleBackend(id) else {
          throw OptionError("'\(port.driver)': there is no chardev '\(id)'")
        }
        backend = found
      }
      ports[number] = VirtioConsolePort(
        isConsole: isConsole, name: options.given("name") ?? "", backend: backend)
      try options.finish()
    }
    return VirtioConsole(
      name: label("virtio-serial", request), ports: ports, maximumPortCount: maximum,
      hasEmergencyWrite: try reader.bool("emergency-write"))
  }
}

/// A port without a chardev: output goes nowhere.
final class DiscardingConsoleBackend: ConsoleBackend {
  func write(_ bytes: [UInt8]) -> Int { bytes.count }
  func connect(receive: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {}
  func resumeReceiving() {}
}
