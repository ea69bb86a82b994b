import ApusDevice
import ApusHost
import ApusMemory
import ApusTestKit
import ApusVirtio
import Synchronization
import Testing

/// Returns each request's readable bytes, each plus one, in its writable part.
final class EchoDevice: VirtioDevice {
  let name = "echo"
  let deviceID: UInt16 = 42
  let features: UInt64 = 1
  let queues = [VirtQueue(maximumSize: 64), VirtQueue(maximumSize: 64)]
  let activations = Atomic<Int>(0)
  let resets = Atomic<Int>(0)
  let link = Mutex(VirtioDriverLink())
  func attach(_ link: VirtioDriverLink) { self.link.withLock { $0 = link } }
  func activate(features: UInt64) { activations.add(1, ordering: .relaxed) }
  func reset() { resets.add(1, ordering: .relaxed) }
  func resetQueue(_ index: Int) {}
  func readConfiguration(offset: Int, byteCount: Int) -> UInt64 { UInt64(offset) }
  func notify(queue index: Int) {
    let queue = queues[index]
    _ = queue.process(limit: 1000) { chain in
      let reply = chain.readable.bytes().map { $0 &+ 1 }
      let count = reply.withUnsafeBytes { chain.writable.copyIn(from: $0) }
      queue.push(chain, written: count)
    }
    queue.signal()
  }
}

struct Rig {
  let machine: VirtioTestMachine
  let device = EchoDevice()
  let line = TestLine()
  let transport: VirtioMMIOTestTransport
  init(packed: Bool = false) throws {
    machine = try VirtioTestMachine()
    var options = VirtioRingOptions()
    options.packed = packed
    transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: device, space: machine.space, line: line.line, options: options))
  }
}

@Suite struct VirtQueueTests {
  @Test func identification() throws {
    let rig = try Rig()
    #expect(rig.transport.read(0) == 0x7472_6976)
    #expect(rig.transport.read(4) == 2)
    #expect(rig.transport.read(8) == 42)
    #expect(rig.transport.queueSizeMaximum(0) == 64)
    #expect(rig.transport.queueSizeMaximum(2) == 0)
    let empty = VirtioMMIOTestTransport(VirtioMMIO(device: nil, space: rig.machine.space, line: .unconnected))
    #expect(empty.read(0) == 0x7472_6976)
    #expect(empty.read(8) == 0)
  }

  @Test(arguments: [false, true], [false, true])
  func echo(packed: Bool, eventIndex: Bool) throws {
    let rig = try Rig(packed: packed)
    let (queues, _) = rig.machine.start(
      rig.transport, queueCount: 2, packed: packed, eventIndex: eventIndex, size: 16)
    #expect(rig.device.activations.load(ordering: .relaxed) == 1)
    // Several laps around the ring, with chains of different lengths, direct and indirect, alone and in batches.
    for round in 0..<100 {
      let batch = 1 + round % 3
      for index in 0..<batch {
        let text = [UInt8](repeating: UInt8(round), count: 5 + index)
        queues[0].add(
          [.readable(text), .readable([1, 2]), .writable(3), .writable(20)], indirect: round % 2 == 1)
      }
      rig.transport.notify(0)
      for index in 0..<batch {
        let done = try #require(queues[0].take())
        #expect(done.written == 7 + index)
        #expect(Array(done.data.prefix(5)) == [UInt8](repeating: UInt8(round) + 1, count: 5))
        #expect(done.data[(5 + index)..<(7 + index)] == [2, 3])
      }
      #expect(queues[0].take() == nil)
      #expect(rig.line.level, "round \(round)")
      rig.transport.write(0x64, rig.transport.read(0x60))
      #expect(!rig.line.level)
    }
    #expect(rig.transport.readStatus() & 64 == 0)
  }

  @Test(arguments: [false, true]) func interruptSuppression(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let (queues, _) = rig.machine.start(rig.transport, queueCount: 1, packed: packed, eventIndex: false)
    // Split: VIRTQ_AVAIL_F_NO_INTERRUPT; packed: RING_EVENT_FLAGS_DISABLE.
    rig.machine.store(queues[0].setup.driverArea + (packed ? 2 : 0), UInt16(1))
    queues[0].add([.readable([1]), .writable(1)])
    rig.transport.notify(0)
    #expect(queues[0].take() != nil)
    #expect(rig.line.raisedCount == 0)
  }

  @Test func splitEventIndex() throws {
    let rig = try Rig()
    let (queues, _) = rig.machine.start(rig.transport, queueCount: 1)
    func send() {
      queues[0].add([.readable([1]), .writable(1)])
      rig.transport.notify(0)
    }
    send()  // the first one always tells
    #expect(rig.line.raisedCount == 1)
    rig.transport.write(0x64, 3)
    // Ask for an interrupt after the fourth used buffer (index 3).
    rig.machine.store(queues[0].setup.driverArea + 4 + 2 * 64, UInt16(3))
    send()
    send()
    #expect(rig.line.raisedCount == 1)
    send()
    #expect(rig.line.raisedCount == 2)
  }

  @Test func packedEventIndex() throws {
    let rig = try Rig(packed: true)
    let (queues, _) = rig.machine.start(rig.transport, queueCount: 1, packed: true, size: 8)
    func send() {
      queues[0].add([.readable([1]), .writable(1)], indirect: true)
      rig.transport.notify(0)
      _ = queues[0].take()
    }
    rig.machine.store(queues[0].setup.driverArea + 2, UInt16(2))
    send()
    #expect(rig.line.raisedCount == 1)
    rig.transport.write(0x64, 3)
    // Used so far: slot 0. Tell at slot 3, wrap counter 1.
    rig.machine.store(queues[0].setup.driverArea, UInt16(3 | 0x8000))
    send()
    send()
    #expect(rig.line.raisedCount == 1)
    send()
    #expect(rig.line.raisedCount == 2)
    rig.transport.write(0x64, 3)
    // Next lap: slot 1 with wrap counter 0.
    rig.machine.store(queues[0].setup.driverArea, UInt16(1))
    for _ in 0..<5 { send() }
    #expect(rig.line.raisedCount == 2)
    send()
    #expect(rig.line.raisedCount == 3)
  }

  @Test func negotiation() throws {
    let rig = try Rig()
    rig.transport.writeStatus(3)
    // With a bit that was not offered FEATURES_OK does not stick.
    rig.transport.writeDriverFeatures(VirtioFeature.version1 | 2)
    rig.transport.writeStatus(11)
    #expect(rig.transport.readStatus() == 3)
    rig.transport.writeDriverFeatures(VirtioFeature.version1)
    rig.transport.writeStatus(11)
    #expect(rig.transport.readStatus() == 11)
    rig.transport.writeStatus(15)
    rig.transport.writeStatus(0)
    #expect(rig.transport.readStatus() == 0)
    #expect(rig.device.resets.load(ordering: .relaxed) == 1)
  }

  @Test func queueReset() throws {
    let rig = try Rig()
    let (queues, _) = rig.machine.start(rig.transport, queueCount: 2)
    queues[0].add([.readable([1]), .writable(1)])
    rig.transport.resetQueue(0)
    rig.transport.notify(0)
    #expect(queues[0].take() == nil)
    let again = VirtioTestQueue(rig.machine, size: 8, packed: false, eventIndex: true)
    rig.transport.setUp(0, again.setup)
    again.add([.readable([5]), .writable(1)])
    rig.transport.notify(0)
    #expect(again.take()?.data == [6])
  }

  @Test func configurationChange() throws {
    let rig = try Rig()
    _ = rig.machine.start(rig.transport, queueCount: 1)
    let before = rig.transport.read(0xfc)
    rig.device.link.withLock { $0 }.configurationChanged()
    #expect(rig.transport.read(0xfc) != before)
    #expect(rig.transport.read(0x60) == 2)
    #expect(rig.line.level)
  }
}

/// What drivers must not do: each breaks the queue, sets NEEDS_RESET, and a reset repairs it.
@Suite struct MalformedQueueTests {
  struct Case: Sendable, CustomTestStringConvertible {
    let name: String
    let isPacked: Bool
    let spoil: @Sendable (VirtioTestMachine, VirtQueueSetup) -> Void
    var testDescription: String { name }
  }

  static func descriptor(
    _ machine: VirtioTestMachine, _ table: UInt64, _ index: Int, _ address: UInt64, _ count: UInt32,
    _ a: UInt16,
    _ b: UInt16
  ) {
    let entry = table + UInt64(16 * index)
    machine.store(entry, address)
    machine.store(entry + 8, count)
    machine.store(entry + 12, a)
    machine.store(entry + 14, b)
  }
  static let ramAddress = VirtioTestMachine.base + (8 << 20)

  static let split: [(String, @Sendable (VirtioTestMachine, VirtQueueSetup) -> Void)] = [
    ("head out of range", { m, s in m.store(s.driverArea + 4, UInt16(64)) }),
    ("index jumps", { m, s in m.store(s.driverArea + 2, UInt16(100)) }),
    ("next out of range", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 16, 1, 64) }),
    ("loop", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 16, 1, 0) }),
    ("address outside", { m, s in descriptor(m, s.descriptorArea, 0, 0x1000, 16, 0, 0) }),
    ("address wraps", { m, s in descriptor(m, s.descriptorArea, 0, .max - 3, 16, 0, 0) }),
    ("length beyond RAM", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, .max, 0, 0) }),
    (
      "readable after writable",
      { m, s in
        descriptor(m, s.descriptorArea, 0, ramAddress, 16, 3, 1)
        descriptor(m, s.descriptorArea, 1, ramAddress, 16, 0, 0)
      }
    ),
    ("indirect and next", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 16, 5, 1) }),
    ("indirect length", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 17, 4, 0) }),
    ("indirect empty", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 0, 4, 0) }),
    ("indirect outside", { m, s in descriptor(m, s.descriptorArea, 0, 0x1000, 16, 4, 0) }),
    (
      "indirect nested",
      { m, s in
        descriptor(m, s.descriptorArea, 0, ramAddress, 32, 4, 0)
        descriptor(m, ramAddress, 0, ramAddress, 16, 4, 0)
      }
    ),
    (
      "indirect loop",
      { m, s in
        descriptor(m, s.descriptorArea, 0, ramAddress, 32, 4, 0)
        descriptor(m, ramAddress, 0, ramAddress, 16, 1, 1)
        descriptor(m, ramAddress, 1, ramAddress, 16, 1, 0)
      }
    ),
    (
      "indirect next out of range",
      { m, s in
        descriptor(m, s.descriptorArea, 0, ramAddress, 32, 4, 0)
        descriptor(m, ramAddress, 0, ramAddress, 16, 1, 2)
      }
    ),
  ]
  static let packed: [(String, @Sendable (VirtioTestMachine, VirtQueueSetup) -> Void)] = [
    ("address outside", { m, s in descriptor(m, s.descriptorArea, 0, 0x1000, 16, 0, 0x80) }),
    (
      "endless chain",
      { m, s in for index in 0..<64 { descriptor(m, s.descriptorArea, index, ramAddress, 16, 0, 0x81) } }
    ),
    ("indirect and next", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 16, 0, 0x85) }),
    ("indirect length", { m, s in descriptor(m, s.descriptorArea, 0, ramAddress, 8, 0, 0x84) }),
    (
      "readable after writable",
      { m, s in
        descriptor(m, s.descriptorArea, 0, ramAddress, 16, 0, 0x83)
        descriptor(m, s.descriptorArea, 1, ramAddress, 16, 0, 0x80)
      }
    ),
  ]
  static let cases =
    split.map { Case(name: "split: " + $0.0, isPacked: false, spoil: $0.1) }
    + packed.map { Case(name: "packed: " + $0.0, isPacked: true, spoil: $0.1) }

  @Test(arguments: cases) func breaksTheQueue(_ test: Case) throws {
    let rig = try Rig(packed: test.isPacked)
    let (queues, _) = rig.machine.start(rig.transport, queueCount: 1, packed: test.isPacked)
    if !test.isPacked { rig.machine.store(queues[0].setup.driverArea + 2, UInt16(1)) }
    test.spoil(rig.machine, queues[0].setup)
    rig.transport.notify(0)
    #expect(rig.transport.readStatus() == 15 | 64)
    #expect(rig.transport.read(0x60) == 2)
    rig.transport.notify(0)
    let (again, _) = rig.machine.start(rig.transport, queueCount: 1, packed: test.isPacked)
    #expect(rig.transport.readStatus() == 15)
    again[0].add([.readable([9]), .writable(1)])
    rig.transport.notify(0)
    #expect(again[0].take()?.data == [10])
  }

  @Test func ringOutsideRAM() throws {
    let rig = try Rig()
    rig.transport.writeStatus(3)
    rig.transport.writeDriverFeatures(VirtioFeature.version1)
    rig.transport.writeStatus(11)
    rig.transport.setUp(
      0, VirtQueueSetup(size: 64, descriptorArea: 0x1000, driverArea: 0x2000, deviceArea: .max - 3))
    rig.transport.setUp(1, VirtQueueSetup(size: 3, descriptorArea: VirtioTestMachine.base))
    rig.transport.writeStatus(15)
    rig.transport.notify(0)
    rig.transport.notify(1)
    #expect(rig.transport.readStatus() & 64 != 0)
  }

  /// Random ring contents and random register writes: nothing may crash or hang.
  @Test(arguments: [false, true]) func fuzz(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    for seed in 0..<UInt64(fuzzRounds(4000)) {
      var random = SeededRandom(seed: seed)
      rig.machine.releaseAll()
      let (queues, _) = rig.machine.start(rig.transport, queueCount: 2, packed: packed, size: 8)
      let setup = queues[0].setup
      for _ in 0..<30 {
        switch Int.random(in: 0..<10, using: &random) {
        case 0..<5:
          let area = [setup.descriptorArea, setup.driverArea, setup.deviceArea].randomElement(using: &random)!
          let offset = UInt64.random(in: 0..<64, using: &random) * 2
          let value = Bool.random(using: &random) ? random.next() & 7 : random.next()
          rig.machine.store(area + offset, UInt16(truncatingIfNeeded: value))
        case 5:
          MalformedQueueTests.descriptor(
            rig.machine, setup.descriptorArea, Int.random(in: 0..<8, using: &random),
            VirtioTestMachine.base + random.next() % (16 << 20),
            UInt32(truncatingIfNeeded: random.next() % 8192),
            UInt16.random(in: 0..<8, using: &random), UInt16.random(in: 0..<8, using: &random))
        case 6:
          rig.transport.registers.writeMMIO(
            offset: random.next() % 0x110, byteCount: [1, 2, 4, 8].randomElement(using: &random)!,
            value: random.next())
        case 7: _ = rig.transport.registers.readMMIO(offset: random.next() % 0x110, byteCount: 4)
        default:
          if !packed {
            rig.machine.store(setup.driverArea + 2, UInt16(truncatingIfNeeded: random.next() % 6))
          }
          rig.transport.notify(Int.random(in: 0..<3, using: &random))
        }
      }
    }
    let (queues, _) = rig.machine.start(rig.transport, queueCount: 2, packed: packed, size: 8)
    queues[0].add([.readable([9]), .writable(1)])
    rig.transport.notify(0)
    #expect(queues[0].take()?.data == [10])
  }
}
