import ApusBlock
import ApusBroadcomDevices
import ApusHost
import ApusMemory
import ApusTestKit
import Glibc
import Testing

/// The SD host with a card, driven by its registers and by DMA.
@Suite struct MemoryCardTests {
  let around: Surroundings
  let wire = Wire()
  let node: MemoryNode
  let host: BCM2835SDHost
  let dma: BCM2835DMA

  init() throws { try self.init(byteCount: 4 << 20) }
  init(byteCount: UInt64) throws {
    around = try Surroundings()
    node = MemoryNode(byteCount: byteCount)
    let dmaBase: UInt64 = 0x3f00_7000
    dma = BCM2835DMA((0..<15).map { _ in .unconnected }, around.space, around.loop, base: dmaBase)
    let dma = dma
    let card = try #require(SDCard(ThreadedBlockNode(name: "card", node, discards: false)))
    host = BCM2835SDHost(wire.line, card: card) { dma.wake() }
    let host = host
    dma.connect(13) { host.readyByteCount }
    around.space.map(.init(name: "sdhost", base: .init(0x3f20_2000), byteCount: 0x1000, device: host))
    around.space.map(.init(name: "dma", base: .init(dmaBase), byteCount: 0x1000, device: dma))
  }

  func write(_ offset: UInt64, _ value: UInt64) { host.writeMMIO(offset: offset, byteCount: 4, value: value) }
  func read(_ offset: UInt64) -> UInt64 { host.readMMIO(offset: offset, byteCount: 4) }

  /// Sends a command; `nil` if the card did not answer.
  @discardableResult
  func command(_ index: UInt64, _ argument: UInt64 = 0, flags: UInt64 = 0) -> UInt64? {
    write(0x20, 0x7f8)
    write(4, argument)
    write(0, 0x8000 | flags | index)
    return read(0) & 0x4000 != 0 ? nil : read(0x10)
  }

  /// Brings the card to the transfer state.
  func identify(highCapacity: Bool = false) {
    #expect(command(8, 0x1aa) == 0x1aa)
    command(55)
    let ocr = command(41, 0x40ff_8000)
    #expect(ocr == 0x80ff_8000 | (highCapacity ? 1 << 30 : 0))
    command(2, flags: 0x200)
    #expect(command(3).map { $0 >> 16 } == 0x4567)
    command(7, 0x4567_0000)
    #expect(command(13, 0x4567_0000) == 4 << 9 | 1 << 8)
  }

  func block(_ count: UInt64) {
    write(0x3c, 512)
    write(0x50, count)
  }
  func waitForData() { around.wait("data") { [host] in host.readyByteCount > 0 } }

  @Test func registersOfTheCard() {
    identify()
    #expect(command(9) == nil)
    command(7, 0)
    command(9, 0x4567_0000, flags: 0x200)
    // C_SIZE of 4 MiB: 16 units of 256 KiB.
    let csd = (0..<4).map { read(0x10 + 4 * $0) }
    let size = (csd[2] & 0x3ff) << 2 | csd[1] >> 30
    #expect(size == 15 && csd[1] >> 15 & 7 == 7 && csd[2] >> 16 & 15 == 9)
    command(7, 0x4567_0000)
    command(55, 0x4567_0000)
    write(0x3c, 8)
    write(0x50, 1)
    command(51, flags: 0x40)
    waitForData()
    #expect(read(0x40) == 0x0280_2502 && read(0x40) == 0)
    #expect(command(13, 0x4567_0000) == 4 << 9 | 1 << 8)
  }

  @Test func blocksByTheProcessor() throws {
    identify()
    block(2)
    #expect(command(25, 1024, flags: 0x80) != nil)
    for word in 0..<256 as Range<UInt64> { write(0x40, word | 0xab00_0000) }
    write(0x38, 1 << 10)
    command(12, flags: 0x800)
    around.wait("the card's end of programming") { [wire] in wire.level }
    #expect(read(0x20) & 0x400 != 0)
    write(0x20, 0x400)
    #expect(!wire.level)
    // As an announced transfer.
    command(23, 2)
    block(2)
    command(18, 1024, flags: 0x40)
    for word in 0..<256 as Range<UInt64> {
      waitForData()
      #expect(read(0x40) == word | 0xab00_0000)
    }
    #expect(command(13, 0x4567_0000).map { $0 >> 9 & 15 } == 4)
    #expect(read(0x34) & 15 == 1)
    // One block.
    block(1)
    command(17, 1536, flags: 0x40)
    waitForData()
    #expect(read(0x40) == 0xab00_0080)
  }

  @Test func erasing() {
    identify()
    block(1)
    command(24, 512, flags: 0x80)
    for _ in 0..<128 { write(0x40, .max) }
    around.wait("the write") { [host] in host.readMMIO(offset: 0x34, byteCount: 4) & 15 == 1 }
    command(32, 512)
    command(33, 512)
    command(38, flags: 0x800)
    block(1)
    command(17, 512, flags: 0x40)
    waitForData()
    #expect(read(0x40) == 0)
    command(12)
    // Out of order.
    command(38)
    #expect(command(13, 0x4567_0000).map { $0 >> 28 & 1 } == 1)
  }

  @Test func wrongCommands() throws {
    #expect(command(17, 0, flags: 0x40) == nil)
    #expect(read(0x20) & 0x40 != 0)
    identify()
    block(1)
    #expect(command(17, 513, flags: 0x40).map { $0 >> 30 & 1 } == 1)
    #expect(command(17, 4 << 20, flags: 0x40).map { $0 >> 31 & 1 } == 1)
    #expect(command(13, 0x4567_0000).map { $0 >> 9 } == 4)
    #expect(command(60) == nil)
    #expect(command(13, 0x4567_0000).map { $0 >> 22 & 1 } == 1)
    // Reading beyond the card's end fails in the middle.
    block(16)
    command(18, 4 << 20 - 4096, flags: 0x40)
    around.wait("the error") { [host] in host.readMMIO(offset: 0x20, byteCount: 4) & 0x80 != 0 }
    #expect(SDCard(ThreadedBlockNode(name: "odd", MemoryNode(byteCount: 3 << 20), discards: false)) == nil)
    let empty = BCM2835SDHost(.unconnected, card: nil) {}
    empty.writeMMIO(offset: 0, byteCount: 4, value: 0x8008)
    #expect(empty.readMMIO(offset: 0, byteCount: 4) & 0x4000 != 0)
  }

  @Test func highCapacity() throws {
    let other = try MemoryCardTests(byteCount: 4 << 30)
    other.identify(highCapacity: true)
    other.block(1)
    other.command(24, 0x7f_ffff, flags: 0x80)
    for word in 0..<128 as Range<UInt64> { other.write(0x40, word) }
    other.around.wait("the write") { [host = other.host] in
      host.readMMIO(offset: 0x34, byteCount: 4) & 15 == 1
    }
    other.command(17, 0x7f_ffff, flags: 0x40)
    other.waitForData()
    #expect((0..<128).map { _ in other.read(0x40) } == Array(0..<128))
  }

  // MARK: DMA

  /// A control block at 0x200.
  func startDMA(information: UInt32, from source: UInt32, to destination: UInt32, count: UInt32) {
    around.setWords(0x200, [information, source, destination, count, 0, 0, 0, 0])
    dma.writeMMIO(offset: 0x104, byteCount: 4, value: 0xc000_0200)
    dma.writeMMIO(offset: 0x100, byteCount: 4, value: 1)
  }
  func waitForDMA() {
    around.wait("the end of the DMA") { [dma] in dma.readMMIO(offset: 0x100, byteCount: 4) & 2 != 0 }
  }

  @Test func blocksByDMA() throws {
    identify()
    let count: UInt32 = 300 << 10
    for index in 0..<count / 4 { around.setWords(0x1000 + UInt64(4 * index), [index ^ 0x5555_aaaa]) }
    block(UInt64(count) / 512)
    // The controller waits for the command, too.
    startDMA(information: 13 << 16 | 1 << 8 | 1 << 6 | 1, from: 0xc000_1000, to: 0x7e20_2040, count: count)
    command(25, 0, flags: 0x80)
    waitForDMA()
    command(12, flags: 0x800)
    around.setWords(0x1000, [UInt32](repeating: 0, count: Int(count) / 4))
    block(UInt64(count) / 512)
    command(18, 0, flags: 0x40)
    dma.writeMMIO(offset: 0x100, byteCount: 4, value: 6)
    startDMA(information: 13 << 16 | 1 << 10 | 1 << 4 | 1, from: 0x7e20_2040, to: 0xc000_1000, count: count)
    waitForDMA()
    #expect((0..<count / 4).allSatisfy { around.word(0x1000 + UInt64(4 * $0)) == $0 ^ 0x5555_aaaa })
  }

  @Test func memoryByDMA() {
    // Rows of 8 bytes, 16 apart at the source, packed at the destination.
    for index in 0..<32 as Range<UInt32> { around.setWords(0x4000 + UInt64(4 * index), [index]) }
    around.setWords(0x200, [1 << 8 | 1 << 4 | 2, 0x4000, 0x5000, 3 << 16 | 8, 8, 0x220, 0, 0])
    around.setWords(0x220, [1 << 4, 0x4000, 0x6000, 8, 0, 0, 0, 0])
    dma.writeMMIO(offset: 4, byteCount: 4, value: 0x200)
    dma.writeMMIO(offset: 0, byteCount: 4, value: 1)
    around.wait("the end") { [dma] in dma.readMMIO(offset: 0, byteCount: 4) & 2 != 0 }
    #expect((0..<8).map { around.word(0x5000 + 4 * $0) } == [0, 1, 4, 5, 8, 9, 12, 13])
    #expect(around.word(0x6000) == 0 && around.word(0x6004) == 0)
    // A chain without an end can be stopped; addresses without anything behind them are errors.
    around.setWords(0x240, [1 << 4 | 1 << 8, 0x4000, 0x5000, 0, 0, 0x240, 0, 0])
    dma.writeMMIO(offset: 4, byteCount: 4, value: 0x240)
    dma.writeMMIO(offset: 0, byteCount: 4, value: 1)
    usleep(1000)
    dma.writeMMIO(offset: 0, byteCount: 4, value: 1 << 31)
    #expect(dma.readMMIO(offset: 0, byteCount: 4) & 1 == 0)
    for (from, to) in [(0x3000_0000, 0x5000), (0x4000, 0x3000_0000), (0x4000, 0x7e00_7004)]
      as [(UInt32, UInt32)]
    {
      startDMA(information: 1 << 8, from: from, to: to, count: 16)
      waitForDMA()
      #expect(dma.readMMIO(offset: 0x100, byteCount: 4) & 0x100 != 0)
      dma.writeMMIO(offset: 0x120, byteCount: 4, value: 7)
      dma.writeMMIO(offset: 0x100, byteCount: 4, value: 6)
    }
  }

  @Test(arguments: 1...3 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for round in 0..<fuzzRounds(4000) {
      switch random.below(10) {
      case 0...2:
        let index: UInt64 = random.pick([
          0, 2, 3, 6, 7, 8, 9, 12, 13, 16, 17, 18, 23, 24, 25, 32, 33, 38, 41, 51, 55, random.next() % 64,
        ])
        let argument: UInt64 = random.pick([
          0x4567_0000, 0x1aa, 0x40ff_8000, 512 * (random.next() % 8200), random.next(),
        ])
        command(index, argument & 0xffff_ffff, flags: random.pick([0, 0x40, 0x80, 0x200, 0x400, 0x800]))
      case 3:
        write(0x3c, random.pick([512, 8, 64, random.next() & 0x3ff]))
        write(0x50, random.pick([0, 1, 2, 200, 0xffff]))
      case 4: for _ in 0..<random.below(300) { write(0x40, random.next()) }
      case 5: for _ in 0..<random.below(300) { _ = read(0x40) }
      case 6:
        host.writeMMIO(
          offset: random.next() % 0x100, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
        _ = host.readMMIO(offset: random.next() % 0x1000, byteCount: 4)
      case 7:
        // Control blocks anywhere near, chained to each other.
        let address = 0x200 + 0x20 * UInt64(random.below(16))
        let place = { (random: inout SeededGenerator) -> UInt32 in
          random.pick([
            0x7e20_2040, 0xc000_1000 + UInt32(random.below(0x8000)), 0x7e00_7000,
            UInt32(truncatingIfNeeded: random.next()),
          ])
        }
        let information = UInt32(truncatingIfNeeded: random.next()) & 0xfff | random.pick([0, 13 << 16])
        around.setWords(
          address,
          [
            information, place(&random), place(&random), UInt32(random.below(1 << 20)),
            UInt32(truncatingIfNeeded: random.next()),
            random.pick([0, 0x200 + 0x20 * UInt32(random.below(16))]),
          ])
        let channel = UInt64(random.below(15)) << 8
        dma.writeMMIO(offset: channel | 4, byteCount: 4, value: address)
        dma.writeMMIO(offset: channel, byteCount: 4, value: random.pick([1, 1, 7, 1 << 31, 1 << 30 | 1]))
      case 8:
        dma.writeMMIO(
          offset: random.next() % 0x1000, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
        _ = dma.readMMIO(offset: random.next() % 0x1000, byteCount: 4)
      default:
        if round % 50 == 0 { usleep(1000) }
        if random.below(40) == 0 {
          host.reset()
          dma.reset()
        }
      }
    }
    dma.reset()
    host.reset()
    // What was under way ends, and the card works.
    around.wait("the end of programming") { [self] in
      command(0)
      return command(8, 0x1aa) == 0x1aa
    }
    identify()
  }
}

/// The other controller, with a card of 4 MiB.
@Suite struct ArasanTests {
  let wire = Wire()
  let host: ArasanSDHost

  init() throws {
    let node = ThreadedBlockNode(name: "card", MemoryNode(byteCount: 4 << 20), discards: false)
    let card = try #require(SDCard(node))
    host = ArasanSDHost(wire.line, card: card) { true }
    write(0x34, 0x7fff_003b)
    write(0x38, 0x7fff_003b)
  }
  func write(_ offset: UInt64, _ value: UInt64) { host.writeMMIO(offset: offset, byteCount: 4, value: value) }
  func read(_ offset: UInt64) -> UInt64 { host.readMMIO(offset: offset, byteCount: 4) }
  /// Waits for a bit of the interrupt status, and clears it.
  func expect(_ bit: UInt64) {
    for _ in 0..<50000 where read(0x30) & bit == 0 { usleep(200) }
    #expect(read(0x30) & bit != 0)
    write(0x30, bit)
  }
  /// - Parameter mode: transfer mode and response type, in CMDTM's bits.
  func command(_ index: UInt64, _ argument: UInt64 = 0, _ mode: UInt64 = 0x2_0000) -> UInt64 {
    write(8, argument)
    write(0xc, index << 24 | mode)
    expect(1)
    return read(0x10)
  }
  func identify() {
    _ = command(0, 0, 0)
    #expect(command(8, 0x1aa) == 0x1aa)
    _ = command(55)
    #expect(command(41, 0x40ff_8000) == 0x80ff_8000)
    _ = command(2, 0, 0x1_0000)
    #expect(read(0x1c) == 0xaa_4150)
    _ = command(3)
    _ = command(7, 0x4567_0000)
  }

  @Test func blocks() {
    #expect(read(0x24) & 0x1_0000 != 0 && read(0xfc) >> 16 == 0x9902)
    write(0x2c, 1)
    #expect(read(0x2c) & 2 != 0)
    identify()
    // Two blocks with CMD23 by itself, then with CMD12.
    for (mode, seed) in [(0x22_002a, 0x10), (0x22_0026, 0x20)] as [(UInt64, UInt64)] {
      write(4, 2 << 16 | 512)
      write(0, 2)
      _ = command(25, 512, mode)
      #expect(wire.level)
      expect(0x10)
      for word in 0..<256 as Range<UInt64> { write(0x20, word << 8 | seed) }
      expect(2)
      _ = command(18, 512, mode | 0x10)
      expect(0x20)
      #expect((0..<256).allSatisfy { read(0x20) == $0 << 8 | seed })
      expect(2)
      #expect(command(13, 0x4567_0000) >> 9 & 15 == 4)
    }
    // No answer.
    write(0x30, 0xffff_ffff)
    write(0xc, 60 << 24 | 0x2_0000)
    #expect(read(0x30) == 0x1_8000 && wire.level)
    write(0x30, 0x1_0000)
    #expect(read(0x30) == 0 && !wire.level)
    write(0x2c, 0x0100_0000)
    #expect(read(0x34) == 0)
  }

  @Test(arguments: 1...2 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<fuzzRounds(4000) {
      switch random.below(5) {
      case 0:
        let index: UInt64 = random.pick([
          0, 2, 3, 6, 7, 8, 12, 13, 17, 18, 23, 24, 25, 32, 33, 38, 41, 51, 55, random.next() % 64,
        ])
        let argument: UInt64 = random.pick([
          0x4567_0000, 0x1aa, 0x40ff_8000, 512 * (random.next() % 8200), random.next(),
        ])
        write(8, argument)
        write(0xc, index << 24 | random.next() & 0x3b_003e)
      case 1: write(4, random.pick([512, 2 << 16 | 512, random.next()]))
      case 2: for _ in 0..<random.below(300) { write(0x20, random.next()) }
      case 3: for _ in 0..<random.below(300) { _ = read(0x20) }
      default:
        let byteCount = random.pick([1, 2, 4, 8])
        host.writeMMIO(offset: random.next() % 0x140, byteCount: byteCount, value: random.next())
        _ = host.readMMIO(offset: random.next() % 0x140, byteCount: byteCount)
      }
      if random.below(300) == 0 { host.reset() }
    }
    host.reset()
    write(0x34, 0x7fff_003b)
    for _ in 0..<50000 {
      write(8, 0)
      write(0xc, 0)
      write(8, 0x1aa)
      write(0x30, 0xffff_ffff)
      write(0xc, 8 << 24 | 0x2_0000)
      if read(0x30) & 1 != 0 { break }
      usleep(200)
    }
    identify()
  }
}
