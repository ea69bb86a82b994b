import ApusHost
import ApusMemory
import ApusNet
import ApusTestKit
import ApusVirtio
import ApusVirtioDevices
import Synchronization
import Testing

/// A netdev on a loop of its own that keeps what the guest sends.
final class TestNetdev: Netdev {
  let id = "test"
  let kind = "test"
  let loop: EventLoop
  let sent = Mutex<[[UInt8]]>([])
  let takes = Atomic<Bool>(true)
  let refusals = Atomic<Int>(0)
  let resumed = Atomic<Int>(0)
  let peer = Mutex<(any NetworkPeer)?>(nil)
  init() throws {
    loop = try EventLoop()
    let loop = loop
    _ = HostThread.spawn("testnet") { loop.run() }
  }
  deinit { loop.stop() }
  func attach(_ peer: any NetworkPeer) { self.peer.withLock { $0 = peer } }
  func post(_ body: @escaping @Sendable () -> Void) { loop.post(body) }
  func send(_ frame: [IOBuffer]) -> Bool {
    guard takes.load(ordering: .relaxed) else {
      refusals.add(1, ordering: .relaxed)
      return false
    }
    var bytes: [UInt8] = []
    for part in frame { bytes += UnsafeRawBufferPointer(start: part.base, count: part.byteCount) }
    sent.withLock { $0.append(bytes) }
    return true
  }
  func resumeReceiving() { resumed.add(1, ordering: .relaxed) }
  func close() { peer.withLock { $0 = nil } }
  /// Offers a frame to the guest and waits for the answer.
  func deliver(_ frame: [UInt8]) -> Bool {
    let answer = Mutex<Bool?>(nil)
    let peer = peer.withLock { $0 }
    post { answer.withLock { $0 = frame.withUnsafeBytes { peer?.receive($0) ?? false } } }
    _ = eventually { answer.withLock { $0 != nil } }
    return answer.withLock { $0 ?? false }
  }
}

@Suite struct NetTests {
  let machine: VirtioTestMachine
  let netdev: TestNetdev
  init() throws {
    machine = try VirtioTestMachine()
    netdev = try TestNetdev()
  }
  static let header = [UInt8](repeating: 0, count: 12)

  func transport(_ configuration: VirtioNetConfiguration = .init(), packed: Bool = false)
    -> VirtioMMIOTestTransport
  {
    var options = VirtioRingOptions()
    options.packed = packed
    return VirtioMMIOTestTransport(
      VirtioMMIO(
        device: VirtioNet(configuration, netdev: netdev), space: machine.space, line: .unconnected,
        options: options))
  }

  @Test(arguments: [false, true]) func transmit(packed: Bool) throws {
    let transport = transport(packed: packed)
    let (queues, _) = machine.start(transport, queueCount: 3, packed: packed)
    #expect(transport.readConfiguration(0, 4) == 0x1200_5452)
    #expect(transport.readConfiguration(6, 2) == 1)
    let frame = (0..<100).map { UInt8($0) }
    queues[1].add([.readable(Self.header), .readable(frame)])
    queues[1].add([.readable(Self.header + frame.reversed())])
    transport.notify(1)
    #expect(queues[1].wait() != nil)
    #expect(queues[1].wait() != nil)
    #expect(netdev.sent.withLock { $0 } == [frame, frame.reversed()])
    // A netdev that takes nothing holds the request until it is ready.
    netdev.takes.store(false, ordering: .relaxed)
    queues[1].add([.readable(Self.header + frame)])
    transport.notify(1)
    #expect(eventually { netdev.refusals.load(ordering: .relaxed) > 0 })
    #expect(queues[1].take() == nil)
    netdev.takes.store(true, ordering: .relaxed)
    netdev.peer.withLock { $0 }?.sendReady()
    #expect(queues[1].wait() != nil)
  }

  @Test func finishesChecksums() throws {
    let transport = transport()
    let (queues, features) = machine.start(transport, queueCount: 3)
    #expect(features & 1 != 0)
    for data in [Array("odd".utf8), Array("even".utf8)] {
      func frame(_ partial: Bool) -> [UInt8] {
        TestFrames.tcp(
          to: TestFrames.broadcast, source: [10, 0, 2, 15], sourcePort: 1, target: [10, 0, 2, 2],
          targetPort: 2,
          sequence: 3, acknowledge: 4, flags: 0x18, data, partialChecksum: partial)
      }
      var header = Self.header
      (header[0], header[6], header[8]) = (1, 34, 16)
      queues[1].add([.readable(header), .readable(frame(true))])
      transport.notify(1)
      #expect(queues[1].wait() != nil)
      #expect(netdev.sent.withLock { $0.last } == frame(false))
    }
    // A start beyond the frame changes nothing.
    var header = Self.header
    (header[0], header[6], header[7], header[8]) = (1, 0xff, 0xff, 0xff)
    let frame = [UInt8](repeating: 5, count: 60)
    queues[1].add([.readable(header), .readable(frame)])
    transport.notify(1)
    #expect(queues[1].wait() != nil)
    #expect(netdev.sent.withLock { $0.last } == frame)
  }

  @Test(arguments: [false, true]) func receiveMerged(packed: Bool) throws {
    let transport = transport(packed: packed)
    let (queues, _) = machine.start(transport, queueCount: 3, packed: packed, size: 16)
    let frame = (0..<1000).map { UInt8(truncatingIfNeeded: $0) }
    #expect(!netdev.deliver(frame))
    for _ in 0..<3 { queues[0].add([.writable(300)]) }
    transport.notify(0)
    #expect(eventually { netdev.resumed.load(ordering: .relaxed) > 0 })
    #expect(!netdev.deliver(frame))
    for _ in 0..<3 { queues[0].add([.writable(300)]) }
    transport.notify(0)
    #expect(netdev.deliver(frame))
    var received: [UInt8] = []
    for index in 0..<4 {
      let part = try #require(queues[0].wait())
      if index == 0 { #expect(part.data[10] == 4) }
      received += part.data.prefix(part.written)
    }
    #expect(Array(received.dropFirst(12)) == frame)
    #expect(queues[0].take() == nil)
    #expect(netdev.deliver([UInt8](repeating: 1, count: 60)))
    #expect(try #require(queues[0].wait()).written == 72)
  }

  @Test func receiveUnmerged() throws {
    let transport = transport()
    let (queues, _) = machine.start(transport, queueCount: 3, without: 1 << 15)
    queues[0].add([.writable(12), .writable(100)])
    // Too large for the buffer: dropped, the buffer stays.
    #expect(netdev.deliver([UInt8](repeating: 1, count: 200)))
    #expect(queues[0].take() == nil)
    #expect(netdev.deliver([UInt8](repeating: 2, count: 100)))
    let part = try #require(queues[0].wait())
    #expect(part.written == 112)
    #expect(part.data[10] == 1)
  }

  @Test func filterAndControl() throws {
    let transport = transport()
    let (queues, _) = machine.start(transport, queueCount: 3)
    for _ in 0..<8 { queues[0].add([.writable(2000)]) }
    func control(_ group: UInt8, _ command: UInt8, _ data: [UInt8]) throws -> UInt8 {
      queues[2].add([.readable([group, command]), .readable(data), .writable(1)])
      transport.notify(2)
      return try #require(queues[2].wait()).data[0]
    }
    func isReceived(_ mac: [UInt8]) -> Bool {
      _ = netdev.deliver(mac + [UInt8](repeating: 0, count: 60))
      return queues[0].take() != nil
    }
    let other: [UInt8] = [2, 0, 0, 0, 0, 1]
    #expect(isReceived(other))
    #expect(try control(0, 0, [0]) == 0)
    #expect(!isReceived(other))
    #expect(isReceived(TestFrames.broadcast))
    #expect(isReceived(TestFrames.guestMAC))
    #expect(try control(1, 0, [1, 0, 0, 0] + other + [0, 0, 0, 0]) == 0)
    #expect(isReceived(other))
    #expect(try control(1, 0, [1, 0, 0, 0]) == 1)
    #expect(try control(1, 1, [2, 2, 2, 2, 2, 2]) == 0)
    #expect(transport.readConfiguration(0, 4) == 0x0202_0202)
    #expect(try control(4, 0, [1, 0]) == 1)
    #expect(try control(99, 0, []) == 1)
  }

  /// A netdev that can leave checksums and segments to the guest.
  final class OffloadingNetdev: Netdev {
    let id = "offload"
    let kind = "test"
    let headerByteCount = 12
    let loop: EventLoop
    let offloads = Mutex<NetworkOffloads?>(nil)
    init(_ loop: EventLoop) { self.loop = loop }
    func attach(_ peer: any NetworkPeer) {}
    func post(_ body: @escaping @Sendable () -> Void) { loop.post(body) }
    func send(_ frame: [IOBuffer]) -> Bool { true }
    func resumeReceiving() {}
    func setReceiveOffloads(_ offloads: NetworkOffloads) { self.offloads.withLock { $0 = offloads } }
    func close() {}
  }

  @Test func guestOffloads() throws {
    let netdev = OffloadingNetdev(netdev.loop)
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: VirtioNet(.init(), netdev: netdev), space: machine.space, line: .unconnected))
    let (queues, features) = machine.start(transport, queueCount: 3)
    #expect(features & 1 << 2 != 0)
    func set(_ bits: [UInt8]) throws -> UInt8 {
      queues[2].add([.readable([5, 0]), .readable(bits), .writable(1)])
      transport.notify(2)
      return try #require(queues[2].wait()).data[0]
    }
    #expect(netdev.offloads.withLock { $0 } == [.checksum, .tso4, .tso6, .ecn])
    #expect(try set([0x02, 0, 0, 0, 0, 0, 0, 0]) == 0)
    #expect(netdev.offloads.withLock { $0 } == [.checksum])
    #expect(try set([0x82, 1, 0, 0, 0, 0, 0, 0]) == 0)
    #expect(netdev.offloads.withLock { $0 } == [.checksum, .tso4, .tso6])
    // UFO was not negotiated.
    #expect(try set([0x02, 4, 0, 0, 0, 0, 0, 0]) == 1)
    #expect(try set([0x02, 0]) == 1)
    #expect(netdev.offloads.withLock { $0 } == [.checksum, .tso4, .tso6])
    var without = VirtioNetConfiguration()
    without.hasControlGuestOffloads = false
    #expect(VirtioNet(without, netdev: netdev).features & 1 << 2 == 0)
  }

  @Test func linkAndAnnounce() throws {
    let line = TestLine()
    let device = VirtioNet(.init(), netdev: netdev)
    let transport = VirtioMMIOTestTransport(VirtioMMIO(device: device, space: machine.space, line: line.line))
    let (queues, _) = machine.start(transport, queueCount: 3)
    device.linkChanged(isUp: false)
    #expect(line.level)
    #expect(transport.readConfiguration(6, 2) == 0)
    queues[0].add([.writable(2000)])
    #expect(netdev.deliver([UInt8](repeating: 1, count: 60)))
    #expect(queues[0].take() == nil)
    device.linkChanged(isUp: true)
    device.announce()
    #expect(transport.readConfiguration(6, 2) == 3)
    queues[2].add([.readable([3, 0]), .writable(1)])
    transport.notify(2)
    #expect(try #require(queues[2].wait()).data == [0])
    #expect(transport.readConfiguration(6, 2) == 1)
  }

  @Test func resetWhileFramesArrive() throws {
    let transport = transport()
    let isDone = Atomic<Bool>(false)
    let (netdev, peer) = (netdev, netdev.peer.withLock { $0 })
    netdev.post {
      let frame = [UInt8](repeating: 1, count: 500)
      while !isDone.load(ordering: .relaxed) { _ = frame.withUnsafeBytes { peer?.receive($0) } }
    }
    for _ in 0..<100 {
      let (queues, _) = machine.start(transport, queueCount: 3)
      for _ in 0..<32 { queues[0].add([.writable(600)]) }
      transport.notify(0)
      transport.writeStatus(0)
      let before = machine.bytes(queues[0].setup.deviceArea, 200)
      #expect(machine.bytes(queues[0].setup.deviceArea, 200) == before)
    }
    isDone.store(true, ordering: .relaxed)
  }

  /// The whole way: guest driver, virtio-net, libslirp and back.
  @Test(arguments: [false, true]) func userNetwork(packed: Bool) throws {
    let user = try UserNetdev(UserNetConfiguration(id: "u", []))
    defer { user.close() }
    var options = VirtioRingOptions()
    options.packed = packed
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(
        device: VirtioNet(.init(), netdev: user), space: machine.space, line: .unconnected, options: options))
    let (queues, features) = machine.start(transport, queueCount: 3, packed: packed)
    #expect(features & 1 << 11 != 0)
    for _ in 0..<32 { queues[0].add([.writable(1600)]) }
    transport.notify(0)
    queues[1].add([
      .readable(Self.header), .readable(TestFrames.arpRequest(for: [10, 0, 2, 2], from: [10, 0, 2, 15])),
    ])
    queues[1].add([.readable(Self.header), .readable(TestFrames.dhcpDiscover(transaction: 77))])
    transport.notify(1)
    var kinds: Set<UInt8> = []
    while kinds.count < 2, let part = queues[0].wait() {
      let frame = Array(part.data[12..<part.written])
      if frame[12] == 8, frame[13] == 6 { kinds.insert(6) }
      if frame[12] == 8, frame[13] == 0, frame.count > 240 { kinds.insert(0) }
      #expect(part.data[0] == 2)
    }
    #expect(kinds == [0, 6])
  }
}
