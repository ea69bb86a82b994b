import ApusBits
import ApusDevice
import ApusHost
import ApusMemory
import ApusPlatformDevices
import ApusTestKit
import Synchronization
import Testing

@Suite struct FirmwareConfigurationTests {
  let space: AddressSpace
  let device: FirmwareConfiguration

  init() throws {
    space = AddressSpace(ram: [try GuestRAM(name: "ram", base: .init(0x8000_0000), byteCount: 1 << 20)])
    device = FirmwareConfiguration(space)
    device.addFile("opt/b", [1, 2, 3])
    device.addFile("opt/a", Array("hello".utf8))
  }

  func select(_ key: UInt16) { device.writeMMIO(offset: 8, byteCount: 2, value: UInt64(key.byteSwapped)) }
  func bytes(_ count: Int) -> [UInt8] {
    (0..<count).map { _ in UInt8(truncatingIfNeeded: device.readMMIO(offset: 0, byteCount: 1)) }
  }

  @Test func signatureAndDirectory() {
    select(0)
    #expect(device.readMMIO(offset: 0, byteCount: 8) == 0x554d_4551)
    select(0x19)
    #expect(bytes(4) == [0, 0, 0, 2])
    let entry = bytes(64)
    #expect(Array(entry[..<8]) == [0, 0, 0, 5, 0, 0x20, 0, 0])
    #expect(Array(entry[8..<13]) == Array("opt/a".utf8))
    select(0x20)
    #expect(bytes(7) == Array("hello".utf8) + [0, 0])
    #expect(device.readMMIO(offset: 0x10, byteCount: 8) == 0x4746_4320_554d_4551)
  }

  /// Runs a DMA request and returns its control word afterwards.
  func transfer(control: UInt32, length: UInt32, to address: UInt64) -> UInt32 {
    let request = GuestPhysicalAddress(0x8000_0100)
    _ = space.storeInteger(request, control.bigEndian)
    _ = space.storeInteger(request + 4, length.bigEndian)
    _ = space.storeInteger(request + 8, address.bigEndian)
    device.writeMMIO(offset: 0x10, byteCount: 4, value: 0)
    device.writeMMIO(offset: 0x14, byteCount: 4, value: UInt64(UInt32(0x8000_0100).byteSwapped))
    return UInt32(bigEndian: space.loadInteger(request) ?? 0)
  }

  @Test func dmaReadsSkipsAndRefuses() {
    #expect(transfer(control: 0x20 << 16 | 8 | 2, length: 3, to: 0x8000_1000) == 0)
    #expect(space.load(.init(0x8000_1000), 4) == 0x006c_6568)
    #expect(transfer(control: 4, length: 1, to: 0) == 0)
    #expect(bytes(1) == [0x6f])
    #expect(transfer(control: 2, length: 8, to: 0x1000) == 1)
    #expect(transfer(control: 16, length: 1, to: 0x8000_1000) == 1)
    #expect(transfer(control: 0x20 << 16 | 8 | 2, length: 8, to: 0x8000_1000) == 0)
    #expect(space.load(.init(0x8000_1000), 8) == 0x6f_6c6c_6568)
  }

  @Test(arguments: 1...3 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<fuzzRounds(5000) {
      switch random.below(4) {
      case 0:
        _ = transfer(
          control: UInt32(truncatingIfNeeded: random.next()) & random.pick([0x3f_001f, 0xffff_ffff]),
          length: UInt32(truncatingIfNeeded: random.next()) >> UInt32(random.below(32)),
          to: random.pick([0x8000_0000, 0x800f_fff0, 0x1000, random.next()]))
      case 1: select(UInt16(truncatingIfNeeded: random.next()) & random.pick([0x3f, 0xffff]))
      case 2:
        device.writeMMIO(
          offset: random.next() % 24, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
      default: _ = device.readMMIO(offset: random.next() % 24, byteCount: random.pick([1, 2, 4, 8]))
      }
    }
  }
}

@Suite struct SmallDeviceTests {
  @Test func theFinisherTellsWhatTheGuestWants() {
    let requests = Mutex<[SiFiveTest.Request]>([])
    let device = SiFiveTest { request in requests.withLock { $0.append(request) } }
    for value in [0x5555, 0x0007_3333, 0x7777, 0x1234] as [UInt64] {
      device.writeMMIO(offset: 0, byteCount: 4, value: value)
    }
    device.writeMMIO(offset: 4, byteCount: 4, value: 0x5555)
    #expect(requests.withLock { $0 } == [.powerOff, .fail(code: 7), .reset])
  }

  @Test func theClockShowsAndAlarms() throws {
    let loop = try EventLoop()
    let probe = Probe()
    let rtc = GoldfishRTC(probe.line, loop)
    func read(_ offset: UInt64) -> UInt64 { rtc.readMMIO(offset: offset, byteCount: 4) }
    func write(_ offset: UInt64, _ value: UInt64) {
      rtc.writeMMIO(offset: offset, byteCount: 4, value: value)
    }
    let now = read(0) | read(4) << 32
    #expect(now.distance(to: HostClock.realtimeNanoseconds()) < 1_000_000_000)
    write(4, 0)
    write(0, 1000)
    #expect(read(0) < 1_000_000_000 && read(4) == 0)
    write(0x10, 1)
    write(0x0c, 0)
    write(0x08, 20_000_000)
    #expect(read(0x18) == 1 && !probe.level)
    loop.schedule(at: HostClock.monotonicNanoseconds() + 40_000_000) { loop.stop() }
    loop.run()
    #expect(read(0x18) == 0 && probe.level)
    write(0x1c, 1)
    #expect(!probe.level)
  }
}

@Suite struct CFIFlashTests {
  let array: GuestRAM
  let space: AddressSpace
  let flash: CFIFlash
  let base = GuestPhysicalAddress(0x2000_0000)

  init() throws {
    array = try GuestRAM(name: "flash", base: base, byteCount: 32 << 20, isReadOnly: true)
    space = AddressSpace(ram: [array])
    flash = CFIFlash(space: space, array: array, backing: nil)
    space.map(.init(name: "flash", base: base, byteCount: 32 << 20, device: flash))
  }
  func write(_ offset: UInt64, _ value: UInt64, _ byteCount: Int = 4) {
    #expect(space.store(base + offset, byteCount, value))
  }
  func read(_ offset: UInt64, _ byteCount: Int = 4) -> UInt64? { space.load(base + offset, byteCount) }

  /// As qemu-system-riscv64 7.2 shows it.
  @Test func queryAndIdentifiers() {
    write(0x154, 0x0098_0098)
    #expect((0x10..<0x13).map { read($0 * 4) } == [0x51_0051, 0x52_0052, 0x59_0059])
    #expect(
      (0x27..<0x31).map { read($0 * 4) ?? 0 & 0xff }.map { $0 & 0xff } == [
        0x18, 2, 0, 0x0b, 0, 1, 0x7f, 0, 0, 2,
      ])
    write(0, 0x00ff_00ff)
    write(0, 0x0090_0090)
    #expect(
      read(0) == 0x0089_0089 && read(4) == 0x0018_0018 && read(0, 1) == 0x89
        && read(0, 8) == 0x18_0018_0089_0089)
  }

  @Test func erasesAndProgramsBuffers() {
    write(0, 0x0020_0020)
    write(0, 0x00d0_00d0)
    #expect(read(0) == 0x0080_0080)
    write(0, 0x00e8_00e8)
    write(0, 0x0003_0003)
    for index in 0..<4 as Range<UInt64> { write(4 * index, 0x1111_1111 * (index + 1)) }
    write(0, 0x00d0_00d0)
    write(0, 0x00ff_00ff)
    #expect(
      (0..<5).map { read(4 * $0) } == [0x1111_1111, 0x2222_2222, 0x3333_3333, 0x4444_4444, 0xffff_ffff])
    #expect(read(0x3fffc) == 0xffff_ffff && read(0x40000) == 0)
  }

  @Test func lockedBlocksRefuse() {
    write(0, 0x60)
    write(0, 0x01)
    write(0, 0x40)
    write(0, 0x1234)
    #expect(read(0) == 0x0092_0092)
    write(0, 0x50)
    #expect(read(0) == 0)
    write(0, 0x60)
    write(0, 0xd0)
    write(0, 0x40)
    write(0, 0x1234)
    write(0, 0xff)
    #expect(read(0) == 0x1234)
  }

  @Test func fuzz() {
    var random = SeededGenerator(seed: 11)
    let commands: [UInt64] = [0x40, 0x20, 0xd0, 0x60, 0x70, 0x90, 0x98, 0xe8, 0xff, 0x50, 0x01]
    for _ in 0..<fuzzRounds(20000) {
      let byteCount = random.pick([1, 2, 4, 8])
      let offset = random.next() % (32 << 20 - 8)
      if random.below(3) == 0 {
        #expect(space.load(base + offset, byteCount) != nil)
      } else {
        #expect(
          space.store(base + offset, byteCount, random.below(4) == 0 ? random.next() : random.pick(commands)))
      }
    }
  }
}
