import ApusDevice
import ApusMemory
import ApusPCI
import ApusTestKit
import Synchronization
import Testing

/// Answers BAR reads with the BAR's number and offset, keeps the last write.
final class RegisterDevice: PCIDevice {
  let last = Mutex<(Int, UInt64, UInt64)?>(nil)
  func readBAR(_ index: Int, offset: UInt64, byteCount: Int) -> UInt64 { UInt64(index) << 16 | offset }
  func writeBAR(_ index: Int, offset: UInt64, byteCount: Int, value: UInt64) {
    last.withLock { $0 = (index, offset, value) }
  }
}

@Suite struct PCITests {
  let space: AddressSpace
  let host: PCIHost
  let lines = (0..<4).map { _ in TestLine() }
  let messages = TestMessages()
  final class TestMessages: Sendable {
    let list = Mutex<[UInt64]>([])
  }

  init() throws {
    space = AddressSpace(ram: [
      try GuestRAM(name: "ram", base: GuestPhysicalAddress(0x8000_0000), byteCount: 1 << 20)
    ])
    let messages = messages
    host = PCIHost(lines: lines.map(\.line)) { address, _, _ in messages.list.withLock { $0.append(address) }
    }
    #expect(host.map(into: space))
  }

  func function(
    _ name: String = "f", bars: [PCIBAR] = [], multifunction: Bool = false, msix: Bool = false
  ) -> (PCIFunction, RegisterDevice) {
    let function = PCIFunction(
      name: name, identity: PCIIdentity(vendorID: 0x1234, deviceID: 0x5678, revision: 3, classCode: 0x010802),
      bars: bars, interruptPin: 1, isMultifunction: multifunction)
    let device = RegisterDevice()
    function.setDevice(device)
    if msix { function.addMSIX(vectorCount: 5, bar: bars[0].index, pendingOffset: 0x800) }
    function.addExpressCapability(portType: 0)
    return (function, device)
  }

  func config(_ slot: UInt64, _ offset: UInt64, _ function: UInt64 = 0) -> GuestPhysicalAddress {
    GuestPhysicalAddress(0x3000_0000 + slot << 15 + function << 12 + offset)
  }
  func read(_ slot: UInt64, _ offset: UInt64, _ count: Int = 4) -> UInt64 {
    space.load(config(slot, offset), count) ?? 0
  }
  func write(_ slot: UInt64, _ offset: UInt64, _ value: UInt64, _ count: Int = 4) {
    _ = space.store(config(slot, offset), count, value)
  }

  @Test func sweep() throws {
    let (function, _) = function()
    try host.attach(function)
    #expect(read(0, 0) == 0x0008_1b36)
    #expect(read(0, 8) >> 8 == 0x060000)
    #expect(read(1, 0) == 0x5678_1234)
    #expect(read(1, 8) == 0x0108_0203)
    #expect(read(1, 2, 2) == 0x5678)
    #expect(read(1, 0x34, 1) != 0)
    for slot in 2..<32 as Range<UInt64> { #expect(read(slot, 0) == 0xffff_ffff) }
    #expect(space.load(GuestPhysicalAddress(0x3010_0000), 4) == 0xffff_ffff)
    #expect(space.load(GuestPhysicalAddress(0x3fff_fffc), 4) == 0xffff_ffff)
    // The identity is read-only.
    write(1, 0, 0)
    #expect(read(1, 0) == 0x5678_1234)
  }

  @Test func sizesAndMapsBARs() throws {
    let bars = [
      PCIBAR(0, .memory32, byteCount: 0x1000), PCIBAR(1, .io, byteCount: 0x40),
      PCIBAR(4, .memory64(isPrefetchable: true), byteCount: 0x4000),
    ]
    let (function, device) = function(bars: bars)
    try host.attach(function)
    for (offset, expected) in [
      (UInt64(0x10), UInt64(0xffff_f000)), (0x14, 0xffff_ffc1), (0x18, 0), (0x20, 0xffff_c00c),
      (0x24, 0xffff_ffff),
    ] {
      write(1, offset, 0xffff_ffff)
      #expect(read(1, offset) == expected, "BAR at \(offset)")
    }
    write(1, 0x10, 0x4000_0000)
    write(1, 0x14, 0x100)
    write(1, 0x20, 0x1000_0000)
    write(1, 0x24, 4)
    let places: [(UInt64, UInt64)] = [
      (0x4000_0010, 0x10), (0x300_0120, 1 << 16 | 0x20), (0x4_1000_2000, 4 << 16 | 0x2000),
    ]
    for (address, _) in places { #expect(space.load(GuestPhysicalAddress(address), 4) == 0xffff_ffff) }
    write(1, 4, 3, 2)
    for (address, value) in places { #expect(space.load(GuestPhysicalAddress(address), 4) == value) }
    #expect(space.store(GuestPhysicalAddress(0x4000_0ffc), 4, 99))
    #expect(device.last.withLock { $0.map { [UInt64($0.0), $0.1, $0.2] } } == [0, 0xffc, 99])
    // Moving and switching off.
    write(1, 0x10, 0x4123_4000)
    #expect(space.load(GuestPhysicalAddress(0x4000_0010), 4) == 0xffff_ffff)
    #expect(space.load(GuestPhysicalAddress(0x4123_4010), 4) == 0x10)
    write(1, 4, 1, 2)
    #expect(space.load(GuestPhysicalAddress(0x4123_4010), 4) == 0xffff_ffff)
    #expect(space.load(GuestPhysicalAddress(0x300_0120), 4) == 1 << 16 | 0x20)
  }

  @Test func interrupts() throws {
    let functions = try (0..<5).map { _ in
      let (function, _) = function()
      try host.attach(function)
      return function
    }
    // Slots 1 and 5 share line 1.
    functions[0].setInterrupt(true)
    functions[4].setInterrupt(true)
    #expect(lines.map(\.level) == [false, true, false, false])
    #expect(read(1, 6, 2) & 8 == 8)
    functions[0].setInterrupt(false)
    #expect(lines[1].level)
    write(5, 4, 0x400, 2)
    #expect(!lines[1].level)
    #expect(read(5, 6, 2) & 8 == 8)
    write(5, 4, 0, 2)
    #expect(lines[1].level)
    functions[4].reset()
    #expect(!lines[1].level)
  }

  @Test func messageSignalledInterrupts() throws {
    let (function, device) = function(bars: [PCIBAR(1, .memory32, byteCount: 0x1000)], msix: true)
    try host.attach(function)
    write(1, 0x14, 0x4000_0000)
    write(1, 4, 6, 2)
    let capability = read(1, 0x34, 1)
    #expect(read(1, capability) & 0x7ff_00ff == 0x004_0011)
    func table(_ offset: UInt64, _ value: UInt64, _ count: Int = 4) {
      _ = space.store(GuestPhysicalAddress(0x4000_0000 + offset), count, value)
    }
    table(2 * 16, 0x1_2345_6788, 8)
    table(2 * 16 + 8, 42, 8)
    #expect(space.load(GuestPhysicalAddress(0x4000_0020), 8) == 0x1_2345_6788)
    function.signal(vector: 2)
    #expect(messages.list.withLock { $0 } == [])
    write(1, capability + 2, 0x8000, 2)
    function.signal(vector: 2)
    function.signal(vector: 99)
    #expect(messages.list.withLock { $0 } == [0x1_2345_6788])
    // The function mask holds messages back.
    write(1, capability + 2, 0xc000, 2)
    function.signal(vector: 2)
    #expect(space.load(GuestPhysicalAddress(0x4000_0800), 8) == 4)
    write(1, capability + 2, 0x8000, 2)
    #expect(messages.list.withLock { $0.count } == 2)
    function.setInterrupt(true)
    #expect(!lines[1].level)
    #expect(device.last.withLock { $0 == nil })
    #expect(space.load(GuestPhysicalAddress(0x4000_0900), 4) == 1 << 16 | 0x900)
  }

  @Test func places() throws {
    #expect(PCIAddress("1f.7") == PCIAddress(slot: 31, function: 7))
    #expect(PCIAddress("0x5") == PCIAddress(slot: 5))
    for bad in ["", "20", "1.8", "1.2.3", "x"] { #expect(PCIAddress(bad) == nil) }
    try host.attach(function("a", multifunction: true).0, at: PCIAddress("2"))
    try host.attach(function("b").0, at: PCIAddress("2.1"))
    try host.attach(function("c").0, at: PCIAddress("1"))
    #expect(try host.attach(function("d").0) == PCIAddress(slot: 3))
    for taken in ["2", "2.1", "1.1", "7.3"] {
      #expect(throws: PCIError.self, "\(taken)") { try host.attach(function("e").0, at: PCIAddress(taken)) }
    }
    #expect(read(2, 0xe, 1) == 0x80)
    for _ in 0..<28 { try host.attach(function().0) }
    #expect(throws: PCIError.self) { try host.attach(function().0) }
  }

  @Test func fuzz() throws {
    let bars = [
      PCIBAR(0, .memory32, byteCount: 0x1000),
      PCIBAR(2, .memory64(isPrefetchable: false), byteCount: 0x10000),
    ]
    let (first, _) = function(bars: bars, msix: true)
    let (second, _) = function(bars: bars + [PCIBAR(4, .io, byteCount: 0x20)])
    try host.attach(first)
    try host.attach(second)
    for seed in 0..<UInt64(fuzzRounds(2000)) {
      var random = SeededRandom(seed: seed)
      for _ in 0..<200 {
        let count = [1, 2, 4, 8].randomElement(using: &random)!
        let windows: [(UInt64, UInt64)] = [
          (0x3000_0000, 0x18000), (0x3000_8000, 0x100), (0x3001_0000, 0x100), (0x4000_0000, 0x4000_0000),
          (0x4_0000_0000, 0x20000), (0x300_0000, 0x1_0000),
        ]
        let (base, size) = windows.randomElement(using: &random)!
        let address = GuestPhysicalAddress(base + random.next() % size)
        if Bool.random(using: &random) {
          _ = space.load(address, count)
        } else {
          _ = space.store(
            address, count, Bool.random(using: &random) ? random.next() : random.next() & 0x4000_f407)
        }
        if random.next() % 16 == 0 { first.signal(vector: Int(random.next() % 8)) }
        if random.next() % 16 == 0 { second.setInterrupt(Bool.random(using: &random)) }
      }
    }
    #expect(read(1, 0) == 0x5678_1234)
    host.reset()
    #expect(read(1, 4, 2) == 0)
    #expect(lines.allSatisfy { !$0.level })
  }
}
