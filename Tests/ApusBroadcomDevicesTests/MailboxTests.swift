import ApusBroadcomDevices
import ApusTestKit
import Testing

@Suite struct MailboxTests {
  let around: Surroundings
  let wire = Wire()
  let mailbox: VideoCoreMailbox
  init() throws {
    around = try Surroundings()
    let firmware = VideoCoreFirmware(
      .init(
        revision: 0xa02082, macAddress: [0x52, 0x54, 0, 1, 2, 3], armByteCount: 0x3c00_0000,
        videoCoreByteCount: 64 << 20, visibleVideoCoreByteCount: 48 << 20, commandLine: "quiet"), around.space
    )
    mailbox = VideoCoreMailbox(wire.line, firmware)
  }
  func read(_ offset: UInt64) -> UInt64 { mailbox.readMMIO(offset: offset, byteCount: 4) }
  func send(_ value: UInt64) { mailbox.writeMMIO(offset: 0x20, byteCount: 4, value: value) }

  /// Sends tags as a message at 0x1000; returns the words behind the header.
  func properties(_ words: [UInt32]) -> [UInt32] {
    let message = [UInt32(4 * (words.count + 3)), 0] + words + [0]
    around.setWords(0x1000, message)
    send(0xc000_1008)
    #expect(read(0) == 0xc000_1008)
    #expect(around.word(0x1004) == 0x8000_0000)
    return (0..<UInt64(words.count)).map { around.word(0x1008 + 4 * $0) }
  }

  @Test func repliesInterruptWhereWanted() {
    #expect(read(0x18) == 1 << 30)
    around.setWords(0x1000, [12, 0, 0])
    send(0x1008)
    #expect(!wire.level && read(0x18) == 0)
    mailbox.writeMMIO(offset: 0x1c, byteCount: 4, value: 1)
    #expect(wire.level && read(0x10) == 0x1008 && read(0) == 0x1008)
    #expect(!wire.level && read(0x18) == 1 << 30)
    // No answer to channels that are not there.
    send(0x1005)
    #expect(read(0x18) == 1 << 30)
  }

  @Test func whatTheBoardIs() {
    #expect(properties([0x0001_0002, 4, 0, 0]) == [0x0001_0002, 4, 0x8000_0004, 0xa02082])
    #expect(properties([0x0001_0003, 8, 0, 0, 0]) == [0x0001_0003, 8, 0x8000_0006, 0x0100_5452, 0x0302])
    #expect(properties([0x0001_0005, 8, 0, 0, 0]) == [0x0001_0005, 8, 0x8000_0008, 0, 0x3c00_0000])
    #expect(properties([0x0001_0006, 8, 0, 0, 0]) == [0x0001_0006, 8, 0x8000_0008, 0x3c00_0000, 64 << 20])
    // Two tags, the second of which is not known.
    #expect(
      properties([0x0003_0002, 8, 4, 2, 0, 0x0009_9999, 4, 0, 7])
        == [0x0003_0002, 8, 0x8000_0008, 2, 48_000_000, 0x0009_9999, 4, 0, 7])
    #expect(properties([0x0003_0043, 20, 0, 132, 0, 0, 0, 0])[3] == 0)
    #expect(properties([0x0002_8001, 8, 0, 3, 3]) == [0x0002_8001, 8, 0x8000_0008, 3, 1])
    // A buffer that is too short gets the beginning, and the whole length.
    #expect(properties([0x0001_0005, 4, 0, 9]) == [0x0001_0005, 4, 0x8000_0008, 0])
  }

  @Test func theFramebuffer() {
    let answer = properties([
      0x0004_8003, 8, 8, 800, 600, 0x0004_8004, 8, 8, 800, 600, 0x0004_8005, 4, 4, 32, 0x0004_0001, 8, 4,
      4096, 0,
      0x0004_0008, 4, 0, 0,
    ])
    #expect(answer[14...18] == [0x0004_0001, 8, 0x8000_0008, 0x3c10_0000, 800 * 600 * 4])
    #expect(answer[22] == 3200)
    // Larger than the VideoCore's memory.
    #expect(properties([0x0004_8004, 8, 8, 8192, 8192, 0x0004_0001, 8, 4, 16, 0])[8...9] == [0, 0])
    around.setWords(0x2000, [1024, 768, 1024, 768, 0, 24, 0, 0, 0, 0])
    send(0x2001)
    #expect(read(0) == 1)
    #expect(around.word(0x2010) == 3072 && around.word(0x2020) == 0x3c10_0000)
    around.setWords(0x2000, [0, 768, 1024, 768, 0, 24, 0, 0, 0, 0])
    send(0x2001)
    #expect(read(0) != 1)
  }

  @Test func damagedMessages() {
    for size in [0, 4, 11, 13, 1 << 20, 0xffff_fffc] as [UInt32] {
      around.setWords(0x1000, [size, 0, 0x0001_0002, 4, 0, 0, 0])
      send(0x1008)
      #expect(read(0) == 0x1008 && around.word(0x1004) == 0)
    }
    // A tag that goes beyond the message, and one without an end.
    around.setWords(0x1000, [24, 0, 0x0001_0002, 400, 0, 0])
    send(0x1008)
    #expect(read(0) == 0x1008 && around.word(0x1004) == 0x8000_0001)
    // Not in memory.
    send(0x3fff_fff8)
    #expect(read(0) == 0x3fff_fff8)
    for _ in 0..<20 { send(0x1008) }
    #expect(read(0x18) == 1 << 31 && read(0x38) == 1 << 31)
    for _ in 0..<8 { _ = read(0) }
    #expect(read(0x18) == 1 << 30)
  }

  @Test(arguments: 1...3 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<fuzzRounds(5000) {
      // Something like a message, at one of several places, and anything behind it.
      let base = random.pick([0x1000, 0x1010, 0xfff00, 0xffff0] as [UInt64])
      var words: [UInt32] = [UInt32(4 * random.below(200)), 0]
      for _ in 0..<random.below(8) {
        let value =
          UInt32(random.below(8)) << 16 | UInt32(random.pick([0, 0x4000, 0x8000]))
          | UInt32(random.below(0x50))
        let count = random.below(8)
        words += [value, UInt32(random.pick([4 * count, count, 4096])), 0]
        for _ in 0..<count {
          words.append(UInt32(truncatingIfNeeded: random.next() & random.pick([7, 255, .max])))
        }
      }
      around.setWords(base, words + [0])
      switch random.below(8) {
      case 0:
        mailbox.writeMMIO(
          offset: random.next() % 0x40, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
      case 1: _ = read(random.next() % 0x40)
      default: send(base & ~15 | random.pick([8, 8, 8, 1, 0, random.next() % 16]))
      }
      if random.below(4) == 0 { _ = read(0) }
      if random.below(100) == 0 { mailbox.reset() }
    }
    mailbox.reset()
    #expect(properties([0x0001_0002, 4, 0, 0])[3] == 0xa02082)
  }
}
