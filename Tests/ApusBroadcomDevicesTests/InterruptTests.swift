import ApusBroadcomDevices
import ApusTestKit
import Testing

@Suite struct LocalInterruptTests {
  let around: Surroundings
  let irqs = (0..<4).map { _ in Wire() }
  let fiqs = (0..<4).map { _ in Wire() }
  let local: BCM2836LocalInterrupts
  init() throws {
    around = try Surroundings()
    local = BCM2836LocalInterrupts(
      outputs: zip(irqs, fiqs).map { .init(irq: $0.line, fiq: $1.line) }, clock: around.clock,
      loop: around.loop)
  }
  func write(_ offset: UInt64, _ value: UInt64) {
    local.writeMMIO(offset: offset, byteCount: 4, value: value)
  }
  func read(_ offset: UInt64) -> UInt64 { local.readMMIO(offset: offset, byteCount: 4) }

  @Test func mailboxesInterruptTheirCore() {
    write(0x58, 0x1)  // core 2, mailbox 0, IRQ
    write(0x80 + 0x20, 0x8000_0001)
    #expect(irqs.map(\.level) == [false, false, true, false])
    #expect(read(0x68) == 0x10 && read(0xc0 + 0x20) == 0x8000_0001)
    write(0xc0 + 0x20, 1)
    #expect(irqs[2].level)
    write(0xc0 + 0x20, 0x8000_0000)
    #expect(!irqs[2].level && read(0x68) == 0)
    // As FIQ, which has priority over the IRQ's enable.
    write(0x58, 0x22)
    write(0x80 + 0x24, 5)
    #expect(fiqs[2].level && !irqs[2].level && read(0x78) == 0x20)
  }

  @Test func timersAreRouted() {
    local.set(.virtualTimer, core: 1, true)
    #expect(!irqs[1].level)
    write(0x44, 8)
    #expect(irqs[1].level && read(0x64) == 8)
    local.set(.virtualTimer, core: 1, false)
    #expect(!irqs[1].level)
    local.set(.performance, core: 3, true)
    write(0x10, 8)
    #expect(irqs[3].level && read(0x6c) == 0x200)
    write(0x14, 8)
    #expect(!irqs[3].level)
  }

  @Test func theGPUGoesToOneCore() {
    local.gpuIRQ.set(true)
    #expect(irqs[0].level && read(0x60) == 0x100)
    write(0x0c, 3)
    #expect(!irqs[0].level && irqs[3].level)
    local.gpuIRQ.set(false)
    #expect(!irqs[3].level)
    local.gpuFIQ.set(true)
    write(0x0c, 4)
    #expect(fiqs[1].level)
  }

  @Test func theLocalTimerRuns() {
    write(0x24, 2)
    write(0x34, 0x3000_0000 | 38400)
    around.wait("the local timer") { [irqs] in irqs[2].level }
    #expect(read(0x34) >> 31 == 1 && read(0x68) == 0x800)
    write(0x38, 1 << 31)
    #expect(!irqs[2].level)
    let before = read(0x1c)
    around.wait("the core timer") { [local] in local.readMMIO(offset: 0x1c, byteCount: 4) != before }
  }

  @Test(arguments: 1...3 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let controller = BCM2835InterruptController(irq: local.gpuIRQ, fiq: local.gpuFIQ)
    for _ in 0..<fuzzRounds(20000) {
      let value = random.next() & random.pick([0xff, 0xffff_ffff, 3, .max])
      let byteCount = random.pick([1, 2, 4, 8])
      switch random.below(6) {
      case 0: controller.input(random.below(72)).set(random.below(2) == 0)
      case 1:
        local.set(
          random.pick([.physicalTimer, .virtualTimer, .performance]), core: random.below(4),
          random.below(2) == 0)
      case 2:
        controller.writeMMIO(offset: random.next() % 0x200, byteCount: byteCount, value: value)
        _ = controller.readMMIO(offset: random.next() % 0x200, byteCount: byteCount)
      default:
        local.writeMMIO(
          offset: random.pick([random.next() % 0x100, random.next() % 0x1000]), byteCount: byteCount,
          value: value)
        _ = local.readMMIO(offset: random.next() % 0x1000, byteCount: byteCount)
      }
      if random.below(500) == 0 {
        local.reset()
        controller.reset()
      }
    }
    // It still works.
    local.reset()
    controller.reset()
    for number in 0..<72 { controller.input(number).set(false) }
    for core in 0..<4 {
      for source in [BCM2836LocalInterrupts.Source.physicalTimer, .virtualTimer, .performance] {
        local.set(source, core: core, false)
      }
    }
    #expect(irqs.allSatisfy { !$0.level } && fiqs.allSatisfy { !$0.level })
    controller.writeMMIO(offset: 0x14, byteCount: 4, value: 1 << 25)
    controller.input(57).set(true)
    #expect(irqs[0].level)
  }
}

@Suite struct GPUInterruptTests {
  let irq = Wire()
  let fiq = Wire()
  let controller: BCM2835InterruptController
  init() { controller = BCM2835InterruptController(irq: irq.line, fiq: fiq.line) }
  func write(_ offset: UInt64, _ value: UInt64) {
    controller.writeMMIO(offset: offset, byteCount: 4, value: value)
  }
  func read(_ offset: UInt64) -> UInt64 { controller.readMMIO(offset: offset, byteCount: 4) }

  @Test func pendingAndItsShortcuts() {
    controller.input(57).set(true)
    #expect(!irq.level)
    write(0x14, 1 << 25)
    #expect(irq.level && read(8) == 1 << 25)
    // The UART has its own bit in basic pending, and does not show in bit 9.
    #expect(read(0) == 1 << 19)
    controller.input(29).set(true)
    write(0x10, 1 << 29)
    #expect(read(0) == 1 << 19 | 1 << 8 && read(4) == 1 << 29)
    write(0x20, 1 << 25)
    write(0x1c, 1 << 29)
    #expect(!irq.level && read(0) == 0)
    controller.input(65).set(true)
    write(0x18, 2)
    #expect(irq.level && read(0) == 2)
  }

  @Test func theFIQ() {
    controller.input(3).set(true)
    write(0x0c, 0x83)
    #expect(fiq.level && !irq.level)
    write(0x0c, 0xff)
    #expect(!fiq.level)
    controller.input(65).set(true)
    write(0x0c, 0x80 | 65)
    #expect(fiq.level)
  }
}
