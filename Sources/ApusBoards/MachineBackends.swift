import ApusBlock
import ApusConfig
import ApusDevice
import ApusHost
import ApusMachine
import ApusNet
import ApusStorage
import ApusVirtioDevices
import Synchronization

/// The host's side of a machine's devices by id: disks, networks, character devices.
public final class MachineBackends: Sendable {
  private struct State {
    var blockNodes: [String: any BlockNode] = [:]
    /// The images of nodes that have a name, for others that refer to them.
    var images: [String: OpenedImage] = [:]
    var netdevs: [String: any Netdev] = [:]
    var characterDevices: [String: any CharacterBackend]
    /// MAC addresses given out.
    var cards: UInt8 = 0
    /// The disk in the slot for memory cards.
    var memoryCard: (any BlockNode)?
  }
  private let state: Mutex<State>
  private let pool = WorkerPool("device")
  private let vcpuCount: Int
  let model: MachineModel
  /// Types of `-object` by id.
  private let objects: [String: String]
  /// Passphrases and TLS credentials that disks refer to.
  let storageObjects: StorageObjects
  /// Drives and nodes that others may write to, too, as their devices have `share-rw=on`.
  private let sharedNodes: Set<String>
  private let loop: EventLoop

  /// Opens what `configuration` names and returns the devices that `-drive` and `-nic` add.
  init(
    _ configuration: MachineConfiguration, loop: EventLoop, characterDevices: [String: any CharacterBackend],
    addedDevices: inout [MachineConfiguration.Item]
  ) throws(MachineError) {
    state = Mutex(State(characterDevices: characterDevices))
    (vcpuCount, model) = (configuration.cpuCount, configuration.model)
    self.loop = loop
    objects = try Self.objects(configuration)
    storageObjects = try Self.storageObjects(configuration)
    sharedNodes = try Self.sharedNodes(configuration)
    for item in configuration.blockDevices { try addBlockNode(item) }
    for (index, drive) in configuration.drives.enumerated() where drive["if"] != "pflash" {
      if let device = try addDrive(drive, index) { addedDevices.append(device) }
    }
    for item in configuration.netDevices { try addNetdev(item) }
    for (index, nic) in configuration.nics.enumerated() {
      if let device = try addNIC(nic, index) { addedDevices.append(device) }
    }
  }

  private static func objects(_ configuration: MachineConfiguration) throws(MachineError) -> [String: String]
  {
    var objects: [String: String] = [:]
    for item in configuration.objects {
      do throws(ConfigurationError) { try check(object: item) } catch {
        throw MachineError(error.description)
      }
      guard let id = item.id else { throw MachineError("-object \(item.name): it has no id; add id=NAME") }
      guard objects.updateValue(item.name, forKey: id) == nil else {
        throw MachineError("-object: there are two with id '\(id)'")
      }
    }
    return objects
  }

  private static func storageObjects(_ configuration: MachineConfiguration) throws(MachineError)
    -> StorageObjects
  {
    var result = StorageObjects()
    for item in configuration.objects where StorageObjects.types.contains(item.name) {
      do throws(StorageError) { try result.add(item.name, item.options) } catch {
        throw MachineError("-object \(item.name): \(error.description)")
      }
    }
    return result
  }

  /// Refuses drives with two users.
  private static func sharedNodes(_ configuration: MachineConfiguration) throws(MachineError) -> Set<String> {
    var drives: Set<String> = []
    var shared: Set<String> = []
    for device in configuration.devices {
      guard let drive = device.options["drive"] else { continue }
      guard drives.insert(drive).inserted else {
        throw MachineError("-device \(device.name): the drive '\(drive)' has a device already")
      }
      if device.options["share-rw"].flatMap(parseBool) == true { shared.insert(drive) }
    }
    // A format's node is shared as far down as its data lie.
    for node in configuration.blockDevices.reversed() {
      if let name = node.options["node-name"], shared.contains(name), let file = node.options["file"] {
        shared.insert(file)
      }
    }
    return shared
  }

  func isShared(_ id: String) -> Bool { sharedNodes.contains(id) }

  /// The kinds of `-object`: sources of random numbers for virtio-rng, which are all the host kernel's generator, and
  /// names for the threads of disks, which every disk has anyhow.
  private static func check(object item: MachineConfiguration.Item) throws(ConfigurationError) {
    let owner = "-object \(item.name)"
    switch item.name {
    case _ where StorageObjects.types.contains(item.name): break  // see storageObjects
    case "rng-builtin", "iothread": try item.options.check(known: ["id"], of: owner)
    case "rng-random":
      try item.options.check(known: ["id", "filename"], of: owner)
      if let file = item.options["filename"], file != "/dev/urandom", file != "/dev/random" {
        throw ConfigurationError("\(owner): filename is /dev/urandom or /dev/random, not '\(file)'")
      }
    default:
      throw ConfigurationError(
        "-object: \(ConfigurationError.unknown("object type", item.name, among: ["rng-random", "rng-builtin", "iothread"] + StorageObjects.types))"
      )
    }
  }

  /// Closes disks, with their caches flushed. The machine has ended.
  public func close() {
    let (nodes, netdevs) = state.withLock { (Array($0.blockNodes.values), Array($0.netdevs.values)) }
    for netdev in netdevs { netdev.close() }
    var closed: [ObjectIdentifier] = []
    for node in nodes where !closed.contains(ObjectIdentifier(node)) {
      closed.append(ObjectIdentifier(node))
      node.close()
    }
  }

  public func characterDevice(_ id: String) -> (any CharacterBackend)? {
    state.withLock { $0.characterDevices[id] }
  }

  /// For virtio devices.
  var virtioEnvironment: VirtioEnvironment {
    VirtioEnvironment(
      pool: pool, vcpuCount: vcpuCount,
      blockNode: { [self] id in state.withLock { $0.blockNodes[id] } },
      netdev: { [self] id in state.withLock { $0.netdevs[id] } },
      consoleBackend: { [self] id in characterDevice(id).map { ConsoleAdapter($0) } },
      objectType: { [objects] in objects[$0] },
      defaultMACAddress: { [self] in
        let number = state.withLock { state in
          defer { state.cards += 1 }
          return state.cards
        }
        return [0x52, 0x54, 0x00, 0x12, 0x34, 0x56 &+ number]
      })
  }

  // MARK: Disks

  func register(_ id: String, _ node: any BlockNode, _ what: String) throws(MachineError) {
    let isFree = state.withLock { state in
      guard state.blockNodes[id] == nil else { return false }
      state.blockNodes[id] = node
      return true
    }
    guard isFree else { throw MachineError("\(what): the name '\(id)' is used twice") }
  }

  /// The memory card of `-sd` or `-drive if=sd`.
  var memoryCard: (any BlockNode)? { state.withLock { $0.memoryCard } }

  func insertCard(_ id: String, _ what: String) throws(MachineError) {
    let isFree = state.withLock { state in
      guard state.memoryCard == nil else { return false }
      state.memoryCard = state.blockNodes[id]
      return true
    }
    guard isFree else { throw MachineError("\(what): the card slot is taken by another drive") }
  }

  func image(_ name: String) -> OpenedImage? { state.withLock { $0.images[name] } }
  func remember(_ name: String, _ image: OpenedImage) { state.withLock { $0.images[name] = image } }

  // MARK: Networks

  private func addNetdev(_ item: MachineConfiguration.Item) throws(MachineError) {
    let id = item.id ?? ""
    guard let model = NetdevRegistry.models[item.name] else {
      throw MachineError(
        "-netdev: "
          + ConfigurationError.unknown(
            "network back end", item.name, among: NetdevRegistry.all.map(\.name)
          ).description)
    }
    let pairs = item.options.entries.filter { $0.key != "id" }.map { (name: $0.key, value: $0.value) }
    let netdev: any Netdev
    do { netdev = try model.makeNetdev(id: id, pairs, loop: loop) } catch {
      throw MachineError("-netdev \(id): \(error)")
    }
    let isFree = state.withLock { state in
      defer { state.netdevs[id] = netdev }
      return state.netdevs[id] == nil
    }
    guard isFree else { throw MachineError("-netdev: the id '\(id)' is used twice") }
  }

  private func addNIC(_ nic: OptionList, _ index: Int) throws(MachineError) -> MachineConfiguration.Item? {
    var options = nic
    let type = options.take("type") ?? "user"
    if type == "none" { return nil }
    var model = options.take("model") ?? "virtio-net-pci"
    if model == "virtio" { model = "virtio-net-pci" }
    let id = options.take("id") ?? "nic\(index)"
    var device = OptionList([.init("netdev", id)])
    if let mac = options.take("mac") { device.entries.append(.init("mac", mac)) }
    options.entries.append(.init("id", id))
    try addNetdev(.init(type, options))
    return .init(model, device)
  }

  func checked<T>(_ body: () throws(ConfigurationError) -> T) throws(MachineError) -> T {
    do throws(ConfigurationError) { return try body() } catch { throw MachineError(error.description) }
  }
}

/// Shows a character device to a virtio console port.
private final class ConsoleAdapter: ConsoleBackend {
  private struct State {
    /// What the guest had no room for.
    var unread: [UInt8] = []
    var receive: (@Sendable ([UInt8]) -> Int)?
  }
  private let state = Mutex(State())
  private let backend: any CharacterBackend
  init(_ backend: any CharacterBackend) { self.backend = backend }

  func write(_ bytes: [UInt8]) -> Int { backend.write(bytes) }

  func connect(receive: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
    state.withLock { $0.receive = receive }
    backend.attach(
      CharacterFrontEnd(
        capacity: { [self] in state.withLock { $0.unread.isEmpty ? 4096 : 0 } },
        receive: { [self] bytes in
          state.withLock { $0.unread += bytes }
          deliver()
        },
        becameWritable: writable))
  }

  func resumeReceiving() {
    deliver()
    backend.acceptInput()
  }

  /// Called by the loop's and by vCPUs' threads: the bytes are taken out while the port has them.
  private func deliver() {
    let (bytes, receive) = state.withLock { state in
      defer { state.unread = [] }
      return (state.unread, state.receive)
    }
    guard let receive, !bytes.isEmpty else { return }
    let taken = receive(bytes)
    if taken < bytes.count { state.withLock { $0.unread = bytes[taken...] + $0.unread } }
  }
}
