import ApusBlock
import ApusDevice
import ApusHost
import ApusMemory
import ApusPCI
import ApusTestKit
import ApusVirtio
import ApusVirtioDevices
import Synchronization
import Testing

/// A sparse file that goes with the test.
final class TemporaryFile {
  let path: String
  init(_ name: String, byteCount: UInt64) throws {
    path = "/tmp/apus-test-\(name)-\(HostClock.monotonicNanoseconds())"
    try HostFile(path: path, [.writable, .create]).truncate(byteCount)
  }
  deinit { removeFile(path) }
}

@Suite struct BlockTests {
  static let size: UInt64 = 1 << 20
  let machine: VirtioTestMachine
  let file: TemporaryFile
  let pool = WorkerPool("test", threadLimit: 2)

  init() throws {
    machine = try VirtioTestMachine()
    file = try TemporaryFile("blk", byteCount: Self.size)
  }

  func device(readOnly: Bool = false, queues: Int = 1) throws -> VirtioBlock {
    var node = FileNode.Configuration(path: file.path)
    node.isReadOnly = readOnly
    node.unmapsDiscards = true
    var configuration = VirtioBlockConfiguration()
    configuration.serial = "apus-0815"
    configuration.queueCount = queues
    return VirtioBlock(configuration, node: ThreadedBlockNode(try FileNode(node), pool: pool), pool: pool)
  }

  static func header(_ type: UInt32, _ sector: UInt64) -> [UInt8] {
    var header = VirtioConfiguration()
    header.append(type)
    header.append(UInt32(0))
    header.append(sector)
    return header.bytes
  }

  func request(
    _ transport: some VirtioTestTransport, _ queue: VirtioTestQueue, index: Int = 0, _ type: UInt32,
    _ sector: UInt64 = 0,
    data: [UInt8] = [], reading: Int = 0, indirect: Bool = true
  ) throws -> (status: UInt8, data: [UInt8]) {
    var buffers: [TestBuffer] = [.readable(Self.header(type, sector))]
    if !data.isEmpty { buffers.append(.readable(data)) }
    if reading > 0 { buffers.append(.writable(reading)) }
    buffers.append(.writable(1))
    queue.add(buffers, indirect: indirect)
    transport.notify(index)
    let done = try #require(queue.wait())
    return (try #require(done.data.last), Array(done.data.dropLast()))
  }

  func exercise(_ transport: some VirtioTestTransport, packed: Bool, index: Int = 0, queueCount: Int = 1)
    throws
  {
    let (queues, _) = machine.start(transport, queueCount: queueCount, packed: packed)
    let queue = queues[index]
    func send(
      _ type: UInt32, _ sector: UInt64 = 0, data: [UInt8] = [], reading: Int = 0, indirect: Bool = true
    ) throws
      -> (status: UInt8, data: [UInt8])
    {
      try request(
        transport, queue, index: index, type, sector, data: data, reading: reading, indirect: indirect)
    }
    #expect(transport.readConfiguration(0, 8) == Self.size / 512)
    let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 * 7) }
    #expect(try send(1, 8, data: pattern).status == 0)
    let back = try send(0, 8, reading: 4096)
    #expect(back.status == 0)
    #expect(back.data == pattern)
    #expect(try send(4).status == 0)
    let id = try send(8, reading: 20)
    #expect(String(decoding: id.data.prefix { $0 != 0 }, as: UTF8.self) == "apus-0815")
    // Beyond the end, unaligned length, unknown type.
    #expect(try send(0, Self.size / 512, reading: 512).status == 1)
    #expect(try send(0, .max, reading: 512).status == 1)
    #expect(try send(0, 0, reading: 100).status == 1)
    #expect(try send(77).status == 2)
    // Discard and write zeroes.
    var range = VirtioConfiguration()
    range.append(UInt64(8))
    range.append(UInt32(4))
    range.append(UInt32(0))
    #expect(try send(13, data: range.bytes).status == 0)
    let zeroed = try send(0, 8, reading: 4096, indirect: false)
    #expect(zeroed.data.prefix(2048).allSatisfy { $0 == 0 })
    #expect(Array(zeroed.data.dropFirst(2048)) == Array(pattern.dropFirst(2048)))
    #expect(try send(11, data: range.bytes).status == 0)
    #expect(try send(11, data: Array(range.bytes.dropLast())).status == 2)
  }

  @Test(arguments: [false, true]) func overMMIO(packed: Bool) throws {
    var options = VirtioRingOptions()
    options.packed = packed
    let device = try device()
    let mmio = VirtioMMIO(device: device, space: machine.space, line: .unconnected, options: options)
    try exercise(VirtioMMIOTestTransport(mmio), packed: packed)
  }

  @Test(arguments: [false, true]) func overPCI(packed: Bool) throws {
    var options = VirtioRingOptions()
    options.packed = packed
    let lines = (0..<4).map { _ in TestLine() }
    let host = PCIHost(lines: lines.map(\.line), message: nil)
    host.map(into: machine.space)
    let pci = VirtioPCI(device: try device(queues: 4), space: machine.space, host: host, options: options)
    let place = try host.attach(pci.function)
    #expect(place == PCIAddress(slot: 1))
    let transport = try #require(
      VirtioPCITestTransport(
        space: machine.space, layout: host.layout, address: place, barAddress: 0x4_0000_0000))
    #expect(transport.readConfigurationSpace(0, 4) == 0x1042_1af4)
    try exercise(transport, packed: packed, index: 3, queueCount: 4)
    // Slot 1, pin A: line 1; reading the status lets go.
    #expect(lines[1].level)
    #expect(transport.readInterruptStatus() & 1 == 1)
    #expect(!lines[1].level)
    #expect(transport.readConfiguration(34, 2) == 4)
    #expect(lines[0].raisedCount + lines[2].raisedCount + lines[3].raisedCount == 0)
  }

  @Test func messages() throws {
    let sent = Mutex<[(UInt64, UInt32)]>([])
    let host = PCIHost(lines: (0..<4).map { _ in .unconnected }) { address, data, _ in
      sent.withLock { $0.append((address, data)) }
    }
    host.map(into: machine.space)
    let pci = VirtioPCI(device: try device(), space: machine.space, host: host)
    let place = try host.attach(pci.function, at: PCIAddress("05"))
    let transport = try #require(
      VirtioPCITestTransport(
        space: machine.space, layout: host.layout, address: place, barAddress: 0x4000_0000))
    let capability = UInt64(transport.readConfigurationSpace(0x34, 1))
    #expect(transport.readConfigurationSpace(capability, 1) == 0x11)
    #expect(transport.readConfigurationSpace(capability + 2, 2) & 0x7ff == 1)
    let table = UInt64(transport.readConfigurationSpace(0x14, 4)) & ~15
    func setEntry(_ offset: UInt64, _ value: UInt64) {
      #expect(machine.space.store(GuestPhysicalAddress(table + offset), 4, value))
    }
    setEntry(16, 0x2800_0000)
    setEntry(20, 0)
    setEntry(24, 77)
    setEntry(28, 1)
    transport.writeConfigurationSpace(capability + 2, 2, 0x8000)
    let (queues, _) = machine.start(transport, queueCount: 1)
    #expect(transport.setVector(0, 9) == 0xffff)
    #expect(transport.setVector(0, 1) == 1)
    #expect(try request(transport, queues[0], 4).status == 0)
    // Masked: pending, then sent when the mask goes.
    let pending = GuestPhysicalAddress(table + 0x800)
    #expect(eventually { machine.space.load(pending, 8) == 2 })
    #expect(sent.withLock { $0.isEmpty })
    setEntry(28, 0)
    #expect(sent.withLock { $0.count } == 1)
    #expect(sent.withLock { $0[0].0 } == 0x2800_0000)
    #expect(sent.withLock { $0[0].1 } == 77)
    #expect(machine.space.load(pending, 8) == 0)
  }

  @Test func readOnly() throws {
    let mmio = VirtioMMIO(device: try device(readOnly: true), space: machine.space, line: .unconnected)
    let transport = VirtioMMIOTestTransport(mmio)
    let (queues, features) = machine.start(transport, queueCount: 1)
    #expect(features & 1 << 5 != 0)
    #expect(features & 1 << 13 == 0)
    #expect(try request(transport, queues[0], 1, data: [UInt8](repeating: 1, count: 512)).status == 1)
    #expect(try request(transport, queues[0], 0, reading: 512).status == 0)
  }

  @Test func resetWithRequestsUnderWay() throws {
    let mmio = VirtioMMIO(device: try device(), space: machine.space, line: .unconnected)
    let transport = VirtioMMIOTestTransport(mmio)
    for _ in 0..<50 {
      let (queues, _) = machine.start(transport, queueCount: 1)
      for sector in 0..<16 as Range<UInt64> {
        queues[0].add([.readable(Self.header(0, sector)), .writable(512), .writable(1)])
      }
      transport.notify(0)
      transport.writeStatus(0)
      #expect(transport.readStatus() == 0)
    }
  }

  @Test func headerTooShort() throws {
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: try device(), space: machine.space, line: .unconnected))
    let (queues, _) = machine.start(transport, queueCount: 1)
    queues[0].add([.readable([1, 2, 3]), .writable(1)])
    transport.notify(0)
    #expect(transport.readStatus() & 64 != 0)
  }

  @Test func writeCacheSwitch() throws {
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: try device(), space: machine.space, line: .unconnected))
    #expect(transport.readConfiguration(32, 1) == 1)
    transport.writeConfiguration(32, 1, 0)
    #expect(transport.readConfiguration(32, 1) == 0)
    transport.writeStatus(0)
    #expect(transport.readConfiguration(32, 1) == 1)
  }

  /// A node that keeps what it is asked for; writes that begin at `badOffset` or reach over it fail.
  final class RecordingNode: BlockNode {
    let name = "recording"
    let driverName = "test"
    let byteCount: UInt64 = 1 << 20
    let isReadOnly = false
    let limits = BlockLimits()
    let hasWriteCache = true
    let writes = Mutex<[(offset: UInt64, byteCount: Int)]>([])
    let badOffset: UInt64
    init(badOffset: UInt64 = .max) { self.badOffset = badOffset }
    func read(offset: UInt64, into buffers: [IOBuffer], completion: @escaping Completion) {
      completion(BlockError(.io, "no sector can be read"))
    }
    func write(
      offset: UInt64, from buffers: [IOBuffer], forceUnitAccess: Bool, completion: @escaping Completion
    ) {
      let count = buffers.totalByteCount
      writes.withLock { $0.append((offset, count)) }
      let isBad = offset <= badOffset && badOffset < offset + UInt64(count)
      completion(isBad ? BlockError(.io, "a bad sector") : nil)
    }
    func flush(completion: @escaping Completion) { completion(nil) }
    func discard(offset: UInt64, byteCount: UInt64, completion: @escaping Completion) { completion(nil) }
    func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool, completion: @escaping Completion) {
      completion(nil)
    }
    func close() {}
  }

  /// Writes the sectors in one notification; returns each one's status.
  private func write(_ sectors: [UInt64], _ node: RecordingNode, _ configuration: VirtioBlockConfiguration)
    throws
    -> [UInt8]
  {
    let device = VirtioBlock(configuration, node: node, pool: pool)
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: device, space: machine.space, line: .unconnected))
    let (queues, _) = machine.start(transport, queueCount: 1)
    for sector in sectors {
      queues[0].add([
        .readable(Self.header(1, sector)), .readable([UInt8](repeating: 7, count: 512)), .writable(1),
      ])
    }
    transport.notify(0)
    return try sectors.map { _ in try #require(queues[0].wait()?.data.last) }
  }

  @Test func mergesNeighbours() throws {
    let node = RecordingNode()
    let statuses = try write([4, 5, 6, 9, 10, 2], node, .init())
    #expect(statuses == [UInt8](repeating: 0, count: 6))
    let offsets: [UInt64] = [2048, 4608, 1024]
    let byteCounts = [1536, 1024, 512]
    #expect(node.writes.withLock { $0.map(\.offset) } == offsets)
    #expect(node.writes.withLock { $0.map(\.byteCount) } == byteCounts)
    var separate = VirtioBlockConfiguration()
    separate.mergesRequests = false
    let other = RecordingNode()
    _ = try write([4, 5, 6], other, separate)
    #expect(other.writes.withLock { $0.count } == 3)
    // A bad sector fails alone.
    let mixed = try write([4, 5, 6, 7], RecordingNode(badOffset: 2560), .init())
    #expect(mixed == [0, 1, 0, 0])
  }

  @Test func errorPolicies() throws {
    var ignoring = VirtioBlockConfiguration()
    ignoring.writeErrors = .ignore
    let ignored = try write([5], RecordingNode(badOffset: 2560), ignoring)
    #expect(ignored == [0])
    for (policy, status) in [(VirtioBlockConfiguration.ErrorPolicy.report, UInt8(1)), (.ignore, 0)] {
      var configuration = VirtioBlockConfiguration()
      configuration.readErrors = policy
      let device = VirtioBlock(configuration, node: RecordingNode(), pool: pool)
      let transport = VirtioMMIOTestTransport(
        VirtioMMIO(device: device, space: machine.space, line: .unconnected))
      let (queues, _) = machine.start(transport, queueCount: 1)
      #expect(try request(transport, queues[0], 0, reading: 512).status == status)
    }
  }

  /// Every option that a device's help shows is read by the device: none is taken and then ignored.
  @Test func everyOptionIsRead() throws {
    let node = ThreadedBlockNode(name: "n", NullNode())
    let environment = VirtioEnvironment(
      pool: pool, blockNode: { _ in node }, objectType: { ["o": "iothread", "r": "rng-random"][$0] })
    let values = [
      "drive": "n", "iothread": "o", "rng": "r", "serial": "abc", "addr": "5", "romfile": "", "rombar": "0",
      "vectors": "2", "mac": "52:54:00:00:00:01", "num-queues": "2", "speed": "10", "duplex": "full",
    ]
    for model in VirtioRegistry.all {
      var options: [String: String] = [:]
      for option in model.options where !["bus", "netdev"].contains(option.name) {
        options[option.name] = values[option.name] ?? option.defaultValue
        #expect(options[option.name] != nil, "no value for \(model.name)'s \(option.name)")
      }
      #expect(throws: Never.self) {
        try model.makeInstance(VirtioDeviceRequest(driver: model.name, options: options), environment)
      }
    }
  }

  @Test func registry() throws {
    let node = ThreadedBlockNode(name: "n", NullNode())
    let environment = VirtioEnvironment(pool: pool, vcpuCount: 3, blockNode: { $0 == "n" ? node : nil })
    let model = try #require(VirtioRegistry.models["virtio-blk"])
    let request = VirtioDeviceRequest(
      driver: "virtio-blk", id: "d0", options: ["drive": "n", "addr": "07", "packed": "on"])
    let instance = try model.makeInstance(request, environment)
    #expect(instance.device.queues.count == 3)
    #expect(instance.ringOptions.packed)
    let host = PCIHost(lines: (0..<4).map { _ in .unconnected }, message: nil)
    #expect(try instance.attach(to: host, space: machine.space).1 == PCIAddress(slot: 7))
    #expect(throws: OptionError.self) {
      try model.makeInstance(VirtioDeviceRequest(driver: "virtio-blk", options: ["drvie": "n"]), environment)
    }
    #expect(throws: OptionError.self) {
      try model.makeInstance(VirtioDeviceRequest(driver: "virtio-blk", options: ["drive": "x"]), environment)
    }
    for name in ["blk", "net", "serial", "rng", "balloon"] {
      for suffix in ["", "-pci", "-device"] {
        #expect(VirtioRegistry.models["virtio-\(name)\(suffix)"] != nil)
      }
    }
  }
}
