import ApusCPU
import ApusDevice
import ApusHost
import ApusMemory
import ApusPlatformDevices
import ApusTestKit
import Testing

/// A controller with two CPUs; accesses come from the CPU of `on`.
@Suite(.serialized) struct GICTests {
  let irq = [Probe(), Probe()]
  let fiq = [Probe(), Probe()]

  func gic(_ version: GIC.Version) -> GIC {
    GIC(
      version: version, sharedCount: 96, outputs: (0..<2).map { .init(irq: irq[$0].line, fiq: fiq[$0].line) })
  }
  func on<T>(_ cpu: Int, _ body: () -> T) -> T {
    VCPUThread.index = cpu
    defer { VCPUThread.index = nil }
    return body()
  }

  /// Version 2 with everything on, as Linux leaves it.
  struct V2 {
    let gic: GIC
    let distributor: GICv2Distributor
    let interface: GICv2Interface
    init(_ gic: GIC) {
      self.gic = gic
      (distributor, interface) = (GICv2Distributor(gic), GICv2Interface(gic))
      distributor.writeMMIO(offset: 0, byteCount: 4, value: 1)
      for cpu in 0..<2 {
        VCPUThread.index = cpu
        interface.writeMMIO(offset: 4, byteCount: 4, value: 0xf0)
        interface.writeMMIO(offset: 0, byteCount: 4, value: 1)
        distributor.writeMMIO(offset: 0x100, byteCount: 4, value: 0xffff_ffff)
      }
      VCPUThread.index = nil
      for word in 1..<4 as Range<UInt64> {
        distributor.writeMMIO(offset: 0x100 + 4 * word, byteCount: 4, value: 0xffff_ffff)
      }
      for number in 0..<128 as Range<UInt64> {
        distributor.writeMMIO(offset: 0x400 + number, byteCount: 1, value: 0xa0)
      }
    }
    func acknowledge() -> UInt64 { interface.readMMIO(offset: 0x0c, byteCount: 4) }
    func end(_ value: UInt64) { interface.writeMMIO(offset: 0x10, byteCount: 4, value: value) }
  }

  @Test func levelInterruptsComeAgainUntilTheyFall() {
    let v2 = V2(gic(.v2))
    let line = v2.gic.input(1)
    line.set(true)
    #expect(irq[0].level && !irq[1].level)
    on(0) {
      #expect(v2.acknowledge() == 33)
      #expect(!irq[0].level)
      #expect(v2.acknowledge() == 1023)
      v2.end(33)
      #expect(irq[0].level)
      #expect(v2.acknowledge() == 33)
      line.set(false)
      v2.end(33)
      #expect(!irq[0].level)
    }
  }

  @Test func targetsChooseTheCPU() {
    let v2 = V2(gic(.v2))
    v2.distributor.writeMMIO(offset: 0x800 + 40, byteCount: 1, value: 2)
    v2.gic.input(8).set(true)
    #expect(!irq[0].level && irq[1].level)
    on(1) { #expect(v2.acknowledge() == 40) }
  }

  @Test func softwareInterruptsNameTheirSender() {
    let v2 = V2(gic(.v2))
    on(1) { v2.distributor.writeMMIO(offset: 0xf00, byteCount: 4, value: 1 << 16 | 5) }
    #expect(irq[0].level)
    on(0) {
      #expect(v2.acknowledge() == 1 << 10 | 5)
      v2.end(1 << 10 | 5)
    }
    #expect(!irq[0].level)
  }

  @Test func urgentInterruptsComeFirstAndInterrupt() {
    let v2 = V2(gic(.v2))
    v2.distributor.writeMMIO(offset: 0x400 + 50, byteCount: 1, value: 0x20)
    v2.gic.input(4).set(true)
    on(0) {
      #expect(v2.acknowledge() == 36)
      v2.gic.input(18).set(true)
      #expect(irq[0].level)
      #expect(v2.acknowledge() == 50)
      #expect(v2.interface.readMMIO(offset: 0x14, byteCount: 4) == 0x20)
      v2.gic.input(18).set(false)
      v2.end(50)
      #expect(!irq[0].level)
      v2.gic.input(4).set(false)
      v2.end(36)
      // The mask keeps what is not urgent enough away.
      v2.interface.writeMMIO(offset: 4, byteCount: 4, value: 0x50)
      v2.gic.input(4).set(true)
      #expect(!irq[0].level)
    }
  }

  @Test func messagesHappenOnce() {
    let v2 = V2(gic(.v2))
    let frame = GICv2MessageFrame(v2.gic, first: 48, count: 32)
    #expect(frame.readMMIO(offset: 8, byteCount: 4) == 80 << 16 | 32)
    v2.distributor.writeMMIO(offset: 0xc00 + 80 / 4, byteCount: 4, value: 0xaaaa_aaaa)
    frame.writeMMIO(offset: 0x40, byteCount: 4, value: 81)
    frame.writeMMIO(offset: 0x40, byteCount: 4, value: 5)  // no message's number
    on(0) {
      #expect(v2.acknowledge() == 81)
      v2.end(81)
      #expect(v2.acknowledge() == 1023)
    }
  }

  private func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16) -> UInt16 { 3 << 14 | n << 7 | m << 3 | op2 }

  @Test func version3RoutesByAffinityAndSplitsGroups() {
    let gic = gic(.v3)
    let distributor = GICv3Distributor(gic)
    let redistributors = GICv3Redistributors(gic)
    #expect(redistributors.readMMIO(offset: 0x20008, byteCount: 8) == 1 << 32 | 1 << 8 | 1 << 4)
    distributor.writeMMIO(offset: 0, byteCount: 4, value: 0x53)
    distributor.writeMMIO(offset: 0x84, byteCount: 4, value: 0xffff_fffe)
    distributor.writeMMIO(offset: 0x104, byteCount: 4, value: 0xffff_ffff)
    distributor.writeMMIO(offset: 0x6000 + 8 * 33, byteCount: 8, value: 1)
    for cpu in 0..<2 {
      #expect(gic.writeRegister(cpu, key(4, 6, 0), 0xf0))
      #expect(gic.writeRegister(cpu, key(12, 12, 7), 1))
      #expect(gic.writeRegister(cpu, key(12, 12, 6), 1))
    }
    gic.input(1).set(true)
    #expect(irq[1].level && !irq[0].level)
    #expect(gic.readRegister(1, key(12, 12, 0)) == 33)
    gic.input(1).set(false)
    #expect(gic.writeRegister(1, key(12, 12, 1), 33))
    // Group 0 is FIQ.
    gic.input(0).set(true)
    #expect(fiq[0].level && !irq[0].level)
    #expect(gic.readRegister(0, key(12, 12, 0)) == 1023)
    #expect(gic.readRegister(0, key(12, 8, 0)) == 32)
    // ICC_SGI1R: interrupt 3 for CPU 1.
    redistributors.writeMMIO(offset: 0x30080, byteCount: 4, value: 0xffff_ffff)
    redistributors.writeMMIO(offset: 0x30100, byteCount: 4, value: 8)
    #expect(gic.writeRegister(0, key(12, 11, 5), 3 << 24 | 2))
    #expect(gic.readRegister(1, key(12, 12, 0)) == 3)
    #expect(gic.readRegister(0, key(15, 0, 0)) == nil)
  }

  /// Random accesses to every register: an output is up exactly if something can be acknowledged.
  @Test(arguments: [2, 3]) func fuzz(version: Int) {
    let gic = gic(GIC.Version(rawValue: version)!)
    var random = SeededGenerator(seed: UInt64(version))
    let distributor = GICv2Distributor(gic)
    let interface = GICv2Interface(gic)
    let distributor3 = GICv3Distributor(gic)
    let redistributors = GICv3Redistributors(gic)
    for _ in 0..<fuzzRounds(20000) {
      let cpu = random.below(2)
      on(cpu) {
        let value = random.next() & random.pick([0xff, 0xffff_ffff, 0xa0a0_a0a0, 3])
        let byteCount = random.pick([1, 2, 4, 8])
        switch random.below(6) {
        case 0: gic.input(random.below(96)).set(random.below(2) == 0)
        case 1: gic.setPrivate(cpu, 16 + random.below(16), random.below(2) == 0)
        case 2:
          let offset = random.next() % 0x1000
          if version == 2 {
            distributor.writeMMIO(offset: offset, byteCount: byteCount, value: value)
            _ = distributor.readMMIO(offset: offset, byteCount: byteCount)
          } else {
            distributor3.writeMMIO(
              offset: random.pick([offset, 0x6000 + offset]), byteCount: byteCount, value: value)
            _ = distributor3.readMMIO(offset: random.next() % 0x10000, byteCount: byteCount)
          }
        case 3 where version == 3:
          let offset = random.next() % 0x50000
          redistributors.writeMMIO(offset: offset, byteCount: byteCount, value: value)
          _ = redistributors.readMMIO(offset: offset, byteCount: byteCount)
        case 4 where version == 3:
          let register = key(random.pick([4, 12]), UInt16(6 + random.below(7)), UInt16(random.below(8)))
          _ = gic.writeRegister(cpu, register, value)
          _ = gic.readRegister(cpu, register)
        default:
          let offset = random.next() % 0x1010
          interface.writeMMIO(offset: offset, byteCount: 4, value: value)
          _ = interface.readMMIO(offset: offset & ~3, byteCount: 4)
        }
      }
      for cpu in 0..<2 where irq[cpu].level && version == 2 {
        let next = on(cpu) { interface.readMMIO(offset: 0x18, byteCount: 4) }
        #expect(next != 1023)
      }
    }
  }
}

/// A controller of version 3 with a translation service and 1 MiB of memory at 1 GiB.
@Suite(.serialized) struct GICTranslationServiceTests {
  let irq = [Probe(), Probe()]
  let ram: GuestRAM
  let space: AddressSpace
  let gic: GIC
  let redistributors: GICv3Redistributors
  let service: GICTranslationService

  static let base: UInt64 = 1 << 30
  static let queue = base
  static let devices = base + 0x10000
  static let collections = base + 0x20000
  static let interrupts = base + 0x30000
  static let properties = base + 0x40000
  static let pending = base + 0x50000

  init() throws {
    ram = try GuestRAM(name: "ram", base: .init(Self.base), byteCount: 1 << 20)
    space = AddressSpace(ram: [ram])
    let irq = self.irq
    let probe = Probe()
    gic = GIC(
      version: .v3, sharedCount: 96, outputs: (0..<2).map { .init(irq: irq[$0].line, fiq: probe.line) },
      memory: space.ramTable)
    redistributors = GICv3Redistributors(gic)
    service = GICTranslationService(gic, memory: space.ramTable)
    GICv3Distributor(gic).writeMMIO(offset: 0, byteCount: 4, value: 0x53)
    for cpu in 0..<2 as Range<UInt64> {
      redistributors.writeMMIO(offset: cpu * 0x20000 + 0x70, byteCount: 8, value: Self.properties | 13)
      redistributors.writeMMIO(
        offset: cpu * 0x20000 + 0x78, byteCount: 8, value: Self.pending + cpu * 0x10000 | 1 << 62)
      redistributors.writeMMIO(offset: cpu * 0x20000, byteCount: 4, value: 1)
      _ = gic.writeRegister(Int(cpu), Self.key(4, 6, 0), 0xf0)
      _ = gic.writeRegister(Int(cpu), Self.key(12, 12, 7), 1)
    }
    service.writeMMIO(offset: 0x100, byteCount: 8, value: Self.devices | 1 << 63)
    service.writeMMIO(offset: 0x108, byteCount: 8, value: Self.collections | 1 << 63)
    service.writeMMIO(offset: 0x80, byteCount: 8, value: Self.queue | 1 << 63)
    service.writeMMIO(offset: 0, byteCount: 4, value: 1)
  }
  static func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16) -> UInt16 { 3 << 14 | n << 7 | m << 3 | op2 }

  func store(_ address: UInt64, _ value: UInt64) {
    (ram.host + Int(address - Self.base)).storeBytes(of: value, as: UInt64.self)
  }
  func command(_ words: UInt64...) {
    let writer = service.readMMIO(offset: 0x88, byteCount: 8)
    for (index, word) in words.enumerated() { store(Self.queue + writer + UInt64(8 * index), word) }
    service.writeMMIO(offset: 0x88, byteCount: 8, value: (writer + 32) % 4096)
    #expect(service.readMMIO(offset: 0x90, byteCount: 8) == (writer + 32) % 4096)
  }
  func acknowledge(_ cpu: Int) -> UInt64? { gic.readRegister(cpu, Self.key(12, 12, 0)) }

  @Test func translatesMessages() {
    let device: UInt64 = 0x18
    // Collections 3 on CPU 1 and 4 on CPU 0; the device with 4 bits of events; event 5 is interrupt 8200.
    command(9, 0, 1 << 63 | 1 << 16 | 3, 0)
    command(9, 0, 1 << 63 | 4, 0)
    command(device << 32 | 8, 3, 1 << 63 | Self.interrupts, 0)
    command(device << 32 | 0xa, 8200 << 32 | 5, 3, 0)
    // Not enabled yet, then with priority 0xa0.
    service.send(device: device, event: 5)
    #expect(!irq[1].level)
    store(Self.properties + 8, 0xa1)
    command(device << 32 | 0xc, 5, 0, 0)
    #expect(irq[1].level && !irq[0].level)
    #expect(acknowledge(1) == 8200)
    #expect(!irq[1].level && acknowledge(1) == 1023)
    #expect(gic.writeRegister(1, Self.key(12, 12, 1), 8200))
    // It happens again, and moves to CPU 0 before anybody takes it.
    service.send(device: device, event: 5)
    command(device << 32 | 1, 5, 4, 0)
    #expect(irq[0].level && !irq[1].level)
    #expect(acknowledge(0) == 8200)
    #expect(gic.writeRegister(0, Self.key(12, 12, 1), 8200))
    // Other events, other devices, and what was discarded.
    service.send(device: device, event: 6)
    service.send(device: 0x20, event: 5)
    command(device << 32 | 0xf, 5, 0, 0)
    service.send(device: device, event: 5)
    #expect(!irq[0].level && !irq[1].level)
  }

  @Test func pendingTableIsRead() {
    redistributors.writeMMIO(offset: 0, byteCount: 4, value: 0)
    store(Self.properties + 16, 0x81)
    store(Self.pending + (8192 + 16) / 8, 1)
    redistributors.writeMMIO(offset: 0x78, byteCount: 8, value: Self.pending)
    redistributors.writeMMIO(offset: 0, byteCount: 4, value: 1)
    #expect(irq[0].level && acknowledge(0) == 8208)
  }

  /// Random commands over random tables: nothing crashes, the queue is always worked off.
  @Test(arguments: 1...3 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<fuzzRounds(5000) {
      switch random.below(8) {
      case 0:
        let offset = random.pick([0, 0x80, 0x88, 0x90, 0x100, 0x108, random.next() % 0x20000])
        service.writeMMIO(offset: offset, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
        _ = service.readMMIO(offset: random.next() % 0x20000, byteCount: random.pick([4, 8]))
        // Back to what works.
        service.writeMMIO(offset: 0, byteCount: 4, value: 0)
        service.writeMMIO(offset: 0x100, byteCount: 8, value: Self.devices | 1 << 63 | random.next() % 4)
        service.writeMMIO(offset: 0x108, byteCount: 8, value: Self.collections | 1 << 63)
        service.writeMMIO(offset: 0x80, byteCount: 8, value: Self.queue | 1 << 63)
        service.writeMMIO(offset: 0x88, byteCount: 8, value: 0)
        service.writeMMIO(offset: 0, byteCount: 4, value: 1)
      case 1: store(Self.base + random.next() % 0x1fff0 & ~7, random.next())
      case 2: service.send(device: random.next() % 40, event: random.next() % 70)
      case 3: _ = acknowledge(random.below(2))
      case 4:
        redistributors.writeMMIO(
          offset: UInt64(random.below(2)) * 0x20000, byteCount: 4, value: random.next() & 1)
      default:
        command(
          random.next() % 40 << 32 | random.next() % 17,
          random.pick([random.next() % 64, 8192 << 32 | random.next() % 60]),
          random.pick([
            1 << 63 | Self.interrupts | random.next() % 3, 1 << 63 | random.next() % 0x3_0000, random.next(),
          ]),
          random.next() % 0x3_0000)
      }
    }
  }
}

@Suite struct PL011Tests {
  let interrupt = Probe()
  let backend = FakeBackend()
  let uart: PL011
  init() { uart = PL011(interrupt.line, backend) }
  func write(_ register: UInt64, _ value: UInt64) {
    uart.writeMMIO(offset: register, byteCount: 4, value: value)
  }
  func read(_ register: UInt64) -> UInt64 { uart.readMMIO(offset: register, byteCount: 4) }

  @Test func sendsAndReceives() {
    write(0x2c, 0x70)
    write(0x38, 0x10)
    for byte in "hello".utf8 { write(0, UInt64(byte)) }
    #expect(backend.output == Array("hello".utf8))
    #expect(read(0x18) == 0x90)
    backend.send("ab")
    #expect(interrupt.level)
    #expect(read(0) == 0x61 && read(0) == 0x62)
    #expect(!interrupt.level && read(0x18) == 0x90)
  }

  @Test func waitsForRoom() {
    write(0x2c, 0x70)
    write(0x38, 0x20)
    backend.state.withLock { $0.room = 1 }
    write(0, 0x41)
    write(0, 0x42)
    #expect(read(0x18) & 0x88 == 8)
    write(0x44, 0x20)
    #expect(!interrupt.level)
    backend.state.withLock { $0.room = 10 }
    backend.frontEnd?.becameWritable()
    #expect(backend.output == [0x41, 0x42] && interrupt.level)
  }

  @Test func identifiesItself() {
    let bytes = stride(from: 0xfe0 as UInt64, to: 0x1000, by: 4).map { read($0) }
    #expect(bytes == [0x11, 0x10, 0x14, 0, 0x0d, 0xf0, 5, 0xb1])
  }

  @Test func fuzz() {
    var random = SeededGenerator(seed: 11)
    for _ in 0..<fuzzRounds(20000) {
      let offset = random.next() % 0x1000 & ~3
      switch random.below(4) {
      case 0: backend.send(random.below(2) == 0 ? "x" : String(repeating: "y", count: 40))
      case 1: _ = read(offset)
      case 2: backend.frontEnd?.receiveBreak()
      default: write(random.pick([offset, offset & 0x4c]), random.next())
      }
    }
  }
}

@Suite struct PL061Tests {
  let interrupt = Probe()
  let gpio: PL061
  init() { gpio = PL061(interrupt.line) }
  func write(_ register: UInt64, _ value: UInt64) {
    gpio.writeMMIO(offset: register, byteCount: 4, value: value)
  }
  func read(_ register: UInt64) -> UInt64 { gpio.readMMIO(offset: register, byteCount: 4) }

  @Test func edgesInterrupt() {
    write(0x40c, 8)
    write(0x410, 8)
    write(0x41c, 0xff)
    gpio.setInput(3, true)
    #expect(interrupt.level && read(0x20) == 8 && read(0x3fc) == 8 && read(0x3f0 & ~0x20) == 0)
    write(0x41c, 8)
    #expect(!interrupt.level)
    gpio.setInput(3, false)
    #expect(!interrupt.level)
    write(0x408, 8)
    gpio.setInput(3, true)
    write(0x41c, 8)
    gpio.setInput(3, false)
    #expect(interrupt.level)
  }

  @Test func outputsAreMaskedByAddress() {
    write(0x400, 0x0f)
    write(0x3fc, 0xff)
    write(0x3fc & 0x14, 0)
    #expect(read(0x3fc) == 0x0a)
  }
}
