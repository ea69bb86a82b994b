import ApusDevice
import ApusHost
import ApusMemory
import ApusVirtio
import Synchronization

/// A deterministic random source (splitmix64) for tests and fuzzers.
public struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64
  public init(seed: UInt64) { state = seed }
  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
    return z ^ z >> 31
  }
}

/// A level that tests look at and wait for.
public final class TestLine: Sendable {
  private let monitor = Monitor()
  private let state = Mutex((level: false, raised: 0))
  public init() {}
  public var line: InterruptLine {
    InterruptLine { [self] level in
      state.withLock { state in
        if level, !state.level { state.raised += 1 }
        state.level = level
      }
      monitor.withLock { monitor.broadcast() }
    }
  }
  public var level: Bool { state.withLock { $0.level } }
  public var raisedCount: Int { state.withLock { $0.raised } }
}

/// Waits until `condition` holds, at most five seconds.
public func eventually(seconds: Double = 5, _ condition: () -> Bool) -> Bool {
  let deadline = HostClock.monotonicNanoseconds() + UInt64(seconds * 1e9)
  let monitor = Monitor()
  while !condition() {
    if HostClock.monotonicNanoseconds() > deadline { return false }
    monitor.withLock { _ = monitor.wait(until: HostClock.monotonicNanoseconds() + 200_000) }
  }
  return true
}

/// How a test driver reaches a device's registers, the same for all transports.
public protocol VirtioTestTransport {
  func readStatus() -> UInt8
  func writeStatus(_ value: UInt8)
  func deviceFeatures() -> UInt64
  func writeDriverFeatures(_ value: UInt64)
  func queueSizeMaximum(_ queue: Int) -> UInt16
  func setUp(_ queue: Int, _ setup: VirtQueueSetup)
  func resetQueue(_ queue: Int)
  func notify(_ queue: Int)
  func readConfiguration(_ offset: Int, _ byteCount: Int) -> UInt64
  func writeConfiguration(_ offset: Int, _ byteCount: Int, _ value: UInt64)
}

public struct VirtioMMIOTestTransport: VirtioTestTransport {
  public let registers: any MMIODevice
  public init(_ registers: any MMIODevice) { self.registers = registers }
  public func read(_ offset: UInt64) -> UInt32 {
    UInt32(truncatingIfNeeded: registers.readMMIO(offset: offset, byteCount: 4))
  }
  public func write(_ offset: UInt64, _ value: UInt32) {
    registers.writeMMIO(offset: offset, byteCount: 4, value: UInt64(value))
  }
  public func readStatus() -> UInt8 { UInt8(read(0x70)) }
  public func writeStatus(_ value: UInt8) { write(0x70, UInt32(value)) }
  public func deviceFeatures() -> UInt64 {
    write(0x14, 0)
    let low = UInt64(read(0x10))
    write(0x14, 1)
    return low | UInt64(read(0x10)) << 32
  }
  public func writeDriverFeatures(_ value: UInt64) {
    write(0x24, 0)
    write(0x20, UInt32(truncatingIfNeeded: value))
    write(0x24, 1)
    write(0x20, UInt32(value >> 32))
  }
  public func queueSizeMaximum(_ queue: Int) -> UInt16 {
    write(0x30, UInt32(queue))
    return UInt16(read(0x34))
  }
  public func setUp(_ queue: Int, _ setup: VirtQueueSetup) {
    write(0x30, UInt32(queue))
    write(0x38, UInt32(setup.size))
    for (offset, address) in [
      (UInt64(0x80), setup.descriptorArea), (0x90, setup.driverArea), (0xa0, setup.deviceArea),
    ] {
      write(offset, UInt32(truncatingIfNeeded: address))
      write(offset + 4, UInt32(address >> 32))
    }
    write(0x44, 1)
  }
  public func resetQueue(_ queue: Int) {
    write(0x30, UInt32(queue))
    write(0xc0, 1)
  }
  public func notify(_ queue: Int) { write(0x50, UInt32(queue)) }
  public func readConfiguration(_ offset: Int, _ byteCount: Int) -> UInt64 {
    registers.readMMIO(offset: UInt64(0x100 + offset), byteCount: byteCount)
  }
  public func writeConfiguration(_ offset: Int, _ byteCount: Int, _ value: UInt64) {
    registers.writeMMIO(offset: UInt64(0x100 + offset), byteCount: byteCount, value: value)
  }
}

/// A piece of a request, as a test driver offers it.
public enum TestBuffer {
  case readable([UInt8])
  case writable(Int)
}

/// A used buffer that came back: which request, how much was written, and the writable parts' contents.
public struct TestCompletion {
  public var token: Int
  public var written: Int
  public var data: [UInt8]
}

/// The driver's side of one queue, split or packed, over guest RAM.
///
/// Places rings and buffers with a bump allocator; one thread.
public final class VirtioTestQueue {
  public let setup: VirtQueueSetup
  public let isPacked: Bool
  public let hasEventIndex: Bool
  private let machine: VirtioTestMachine
  private struct Outstanding {
    var token: Int
    var slots: [UInt16]
    var writable: [(address: UInt64, count: Int)]
  }
  private var outstanding: [UInt16: Outstanding] = [:]
  private var freeSlots: [UInt16]
  private var availableIndex: UInt16 = 0
  private var usedIndex: UInt16 = 0
  private var availableWrap = true
  private var usedWrap = true
  private var packedFree: Int
  private var nextToken = 0

  public init(_ machine: VirtioTestMachine, size: UInt16, packed: Bool, eventIndex: Bool) {
    (self.machine, isPacked, hasEventIndex) = (machine, packed, eventIndex)
    setup = VirtQueueSetup(
      size: size, descriptorArea: machine.allocate(16 * Int(size), alignment: 16),
      driverArea: machine.allocate(packed ? 4 : 6 + 2 * Int(size), alignment: 4),
      deviceArea: machine.allocate(packed ? 4 : 6 + 8 * Int(size), alignment: 4))
    freeSlots = (0..<size).reversed()
    packedFree = Int(size)
  }

  private func write<T: FixedWidthInteger>(_ address: UInt64, _ value: T) { machine.store(address, value) }
  private func read<T: FixedWidthInteger>(_ address: UInt64, _ type: T.Type) -> T {
    machine.load(address, as: type)
  }

  /// Puts a request into the ring; returns its token.
  @discardableResult
  public func add(_ buffers: [TestBuffer], indirect: Bool = false) -> Int {
    let token = nextToken
    nextToken += 1
    var writable: [(address: UInt64, count: Int)] = []
    let parts: [(address: UInt64, count: UInt32, flags: UInt16)] = buffers.map { buffer in
      switch buffer {
      case .readable(let bytes): return (machine.place(bytes), UInt32(bytes.count), 0)
      case .writable(let count):
        let address = machine.allocate(count, alignment: 16)
        writable.append((address, count))
        return (address, UInt32(count), 2)
      }
    }
    var ring = parts
    if indirect {
      let table = machine.allocate(16 * parts.count, alignment: 16)
      for (index, part) in parts.enumerated() {
        let entry = table + UInt64(16 * index)
        write(entry, part.address)
        write(entry + 8, part.count)
        let isLast = index == parts.count - 1
        write(entry + 12, isPacked ? UInt16(0) : part.flags | (isLast ? 0 : 1))
        write(entry + 14, isPacked ? part.flags : UInt16(index + 1))
      }
      ring = [(table, UInt32(16 * parts.count), 4)]
    }
    if isPacked { addPacked(ring, token, writable) } else { addSplit(ring, token, writable) }
    return token
  }

  private func addSplit(
    _ parts: [(address: UInt64, count: UInt32, flags: UInt16)], _ token: Int, _ writable: [(UInt64, Int)]
  ) {
    precondition(parts.count <= freeSlots.count, "the test queue is full")
    let slots = parts.map { _ in freeSlots.removeLast() }
    for (index, part) in parts.enumerated() {
      let entry = setup.descriptorArea + 16 * UInt64(slots[index])
      write(entry, part.address)
      write(entry + 8, part.count)
      write(entry + 12, part.flags | (index < parts.count - 1 ? 1 : 0))
      write(entry + 14, index < parts.count - 1 ? slots[index + 1] : UInt16(0))
    }
    outstanding[slots[0]] = Outstanding(token: token, slots: slots, writable: writable.map { ($0.0, $0.1) })
    write(setup.driverArea + 4 + 2 * UInt64(availableIndex % setup.size), slots[0])
    availableIndex &+= 1
    GuestWindow.fullFence()
    write(setup.driverArea + 2, availableIndex)
    GuestWindow.fullFence()
  }

  private func addPacked(
    _ parts: [(address: UInt64, count: UInt32, flags: UInt16)], _ token: Int, _ writable: [(UInt64, Int)]
  ) {
    precondition(parts.count <= packedFree, "the test queue is full")
    packedFree -= parts.count
    let id = freeSlots.removeLast()
    let head = availableIndex
    var headFlags: UInt16 = 0
    for (index, part) in parts.enumerated() {
      let entry = setup.descriptorArea + 16 * UInt64(availableIndex)
      write(entry, part.address)
      write(entry + 8, part.count)
      write(entry + 12, id)
      var flags = part.flags | (index < parts.count - 1 ? 1 : 0)
      flags |= availableWrap ? 1 << 7 : 1 << 15
      if index == 0 { headFlags = flags } else { write(entry + 14, flags) }
      availableIndex += 1
      if availableIndex == setup.size {
        availableIndex = 0
        availableWrap.toggle()
      }
    }
    outstanding[id] = Outstanding(
      token: token, slots: parts.map { _ in id }, writable: writable.map { ($0.0, $0.1) })
    GuestWindow.fullFence()
    write(setup.descriptorArea + 16 * UInt64(head) + 14, headFlags)
    GuestWindow.fullFence()
  }

  /// The next used request, if there is one.
  public func take() -> TestCompletion? {
    let id: UInt16
    let written: Int
    if isPacked {
      let entry = setup.descriptorArea + 16 * UInt64(usedIndex)
      let flags = read(entry + 14, UInt16.self)
      guard (flags & 1 << 7 != 0) == usedWrap, (flags & 1 << 15 != 0) == usedWrap else { return nil }
      GuestWindow.fullFence()
      id = read(entry + 12, UInt16.self)
      written = Int(read(entry + 8, UInt32.self))
    } else {
      guard read(setup.deviceArea + 2, UInt16.self) != usedIndex else { return nil }
      GuestWindow.fullFence()
      let entry = setup.deviceArea + 4 + 8 * UInt64(usedIndex % setup.size)
      id = UInt16(read(entry, UInt32.self))
      written = Int(read(entry + 4, UInt32.self))
      usedIndex &+= 1
      if hasEventIndex { write(setup.driverArea + 4 + 2 * UInt64(setup.size), usedIndex) }
    }
    guard let request = outstanding.removeValue(forKey: id) else {
      preconditionFailure("the device returned id \(id), which is not outstanding")
    }
    if isPacked {
      usedIndex += UInt16(request.slots.count)
      if usedIndex >= setup.size {
        usedIndex -= setup.size
        usedWrap.toggle()
      }
      packedFree += request.slots.count
      freeSlots.append(id)
    } else {
      freeSlots.append(contentsOf: request.slots)
    }
    var data: [UInt8] = []
    for part in request.writable { data += machine.bytes(part.address, part.count) }
    return TestCompletion(token: request.token, written: written, data: data)
  }

  /// Waits for the next used request.
  public func wait(seconds: Double = 5) -> TestCompletion? {
    var result: TestCompletion?
    _ = eventually(seconds: seconds) {
      result = take()
      return result != nil
    }
    return result
  }
}

/// Guest RAM with a bump allocator, and the steps of a driver's start.
public final class VirtioTestMachine {
  public static let base: UInt64 = 0x8000_0000
  public let ram: GuestRAM
  public let space: AddressSpace
  private var next: UInt64
  private let limit: UInt64

  public init(byteCount: UInt64 = 16 << 20) throws {
    ram = try GuestRAM(name: "test", base: GuestPhysicalAddress(Self.base), byteCount: byteCount)
    space = AddressSpace(ram: [ram])
    next = Self.base + 4096
    limit = Self.base + byteCount
  }

  /// Gives all room back: what was placed may be overwritten.
  public func releaseAll() { next = Self.base + 4096 }

  /// Room for `count` bytes.
  public func allocate(_ count: Int, alignment: UInt64) -> UInt64 {
    next = (next + alignment - 1) & ~(alignment - 1)
    precondition(next + UInt64(count) <= limit, "the test machine's RAM is used up")
    defer { next += UInt64(count) }
    return next
  }
  public func place(_ bytes: [UInt8]) -> UInt64 {
    let address = allocate(bytes.count, alignment: 16)
    _ = bytes.withUnsafeBytes { space.write(GuestPhysicalAddress(address), from: $0) }
    return address
  }
  public func bytes(_ address: UInt64, _ count: Int) -> [UInt8] {
    var result = [UInt8](repeating: 0, count: count)
    _ = result.withUnsafeMutableBytes { space.read(GuestPhysicalAddress(address), into: $0) }
    return result
  }
  public func store<T: FixedWidthInteger>(_ address: UInt64, _ value: T) {
    let isDone = space.storeInteger(GuestPhysicalAddress(address), value)
    precondition(isDone, "the test stored outside RAM")
  }
  public func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type) -> T {
    space.loadInteger(GuestPhysicalAddress(address), as: type) ?? 0
  }

  /// Negotiates and starts a device; returns its queues and the accepted features.
  public func start(
    _ transport: some VirtioTestTransport, queueCount: Int, packed: Bool = false, eventIndex: Bool = true,
    size: UInt16 = 64, without: UInt64 = 0
  ) -> (queues: [VirtioTestQueue], features: UInt64) {
    transport.writeStatus(0)
    transport.writeStatus(1)
    transport.writeStatus(3)
    var features = transport.deviceFeatures() & ~without
    if !packed { features &= ~VirtioFeature.packedRing }
    if !eventIndex { features &= ~VirtioFeature.eventIndex }
    transport.writeDriverFeatures(features)
    transport.writeStatus(11)
    let queues = (0..<queueCount).map { index in
      let queue = VirtioTestQueue(
        self, size: min(size, transport.queueSizeMaximum(index)), packed: packed, eventIndex: eventIndex)
      transport.setUp(index, queue.setup)
      return queue
    }
    transport.writeStatus(15)
    return (queues, features)
  }
}
