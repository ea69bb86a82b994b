import ApusCPU
import ApusDevice
import ApusHost
import ApusPlatformDevices
import ApusTestKit
import Synchronization
import Testing

/// A wire whose level can be looked at.
final class Probe: Sendable {
  private let state = Mutex((level: false, rises: 0))
  var line: InterruptLine {
    InterruptLine { level in
      self.state.withLock { state in
        if level && !state.level { state.rises += 1 }
        state.level = level
      }
    }
  }
  var level: Bool { state.withLock { $0.level } }
  var rises: Int { state.withLock { $0.rises } }
}

@Suite struct PLICTests {
  let machine = Probe()
  let supervisor = Probe()
  let plic: PLIC
  init() { plic = PLIC(sourceCount: 95, outputs: [machine.line, supervisor.line]) }

  func write(_ offset: UInt64, _ value: UInt64) { plic.writeMMIO(offset: offset, byteCount: 4, value: value) }
  func read(_ offset: UInt64) -> UInt64 { plic.readMMIO(offset: offset, byteCount: 4) }
  /// Source 10 at priority `priority` for context 1.
  func enable(_ source: UInt64, priority: UInt64) {
    write(4 * source, priority)
    let word = 0x2080 + source / 32 * 4
    write(word, read(word) | 1 << (source % 32))
  }

  @Test func deliversClaimsAndCompletes() {
    enable(10, priority: 1)
    let input = plic.input(10)
    input.set(true)
    #expect(supervisor.level && !machine.level)
    #expect(read(0x1000) == 1 << 10)
    #expect(read(0x201004) == 10)
    #expect(!supervisor.level)
    #expect(read(0x201004) == 0)
    // Still high at completion: pending again.
    write(0x201004, 10)
    #expect(supervisor.level)
    #expect(read(0x201004) == 10)
    input.set(false)
    write(0x201004, 10)
    #expect(!supervisor.level)
  }

  @Test func thePriorityThenTheLowestNumberWins() {
    for (source, priority) in [(3, 1), (40, 7), (41, 7), (95, 6)] as [(UInt64, UInt64)] {
      enable(source, priority: priority)
      plic.input(Int(source)).set(true)
    }
    #expect((0..<5).map { _ in read(0x201004) } == [40, 41, 95, 3, 0])
  }

  @Test func theThresholdMasks() {
    enable(5, priority: 3)
    write(0x201000, 3)
    plic.input(5).set(true)
    #expect(!supervisor.level)
    write(0x201000, 2)
    #expect(supervisor.level)
  }

  @Test func registersKeepTheirLegalBits() {
    write(0, 7)
    #expect(read(0) == 0)
    write(4, 0xffff_ffff)
    #expect(read(4) == 7)
    write(0x2000, 0xffff_ffff)
    #expect(read(0x2000) == 0xffff_fffe)
    write(0x200000, 0xff)
    #expect(read(0x200000) == 7)
    write(4 * 96, 1)
    #expect(read(4 * 96) == 0)
  }

  /// Random accesses and levels: the outputs always agree with what can be claimed.
  @Test(arguments: 1...4 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<fuzzRounds(20000) {
      switch random.below(6) {
      case 0: plic.input(1 + random.below(95)).set(random.below(2) == 0)
      case 1: write(UInt64(random.below(0x400)) & ~3, random.next())
      case 2: write(0x2000 + UInt64(random.below(0x110)) & ~3, random.next())
      case 3:
        write(0x200000 + UInt64(random.below(3)) * 0x1000 + UInt64(random.below(2) * 4), random.next() % 100)
      case 4:
        plic.writeMMIO(
          offset: random.next() % 0x600000, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
      default: _ = plic.readMMIO(offset: random.next() % 0x600000, byteCount: random.pick([1, 2, 4, 8]))
      }
      let expected = supervisor.level
      let claimed = read(0x201004)
      #expect(expected == (claimed != 0))
      if claimed != 0 { write(0x201004, claimed) }
    }
  }
}

@Suite struct ACLINTTests {
  let software = Probe()
  let timer = Probe()
  let clock = GuestClock()
  let loop: EventLoop
  let aclint: ACLINT

  init() throws {
    let loop = try EventLoop()
    let clock = clock
    self.loop = loop
    aclint = ACLINT(
      clock: clock, software: [software.line, Probe().line], timer: [timer.line, Probe().line],
      makeTimer: { GuestTimer(clock, loop, $0) })
  }

  @Test func softwareInterrupts() {
    aclint.writeMMIO(offset: 0, byteCount: 4, value: 0xff)
    #expect(software.level && aclint.readMMIO(offset: 0, byteCount: 4) == 1)
    aclint.writeMMIO(offset: 0, byteCount: 4, value: 0)
    #expect(!software.level)
    #expect(aclint.readMMIO(offset: 8, byteCount: 4) == 0)
  }

  @Test func timeRunsAtTenMegahertz() {
    let first = aclint.readMMIO(offset: 0xbff8, byteCount: 8)
    let low = aclint.readMMIO(offset: 0xbff8, byteCount: 4)
    #expect(low >= first && low - first < 10_000_000)
    aclint.writeMMIO(offset: 0xbff8, byteCount: 8, value: 1 << 40)
    #expect(aclint.readMMIO(offset: 0xbffc, byteCount: 4) == 1 << 8)
  }

  @Test func comparesFireAndClear() {
    #expect(!timer.level)
    aclint.writeMMIO(offset: 0x4000, byteCount: 8, value: 0)
    #expect(timer.level)
    // In two halves, as RV32 and some firmware write it.
    aclint.writeMMIO(offset: 0x4004, byteCount: 4, value: 0xffff_ffff)
    #expect(!timer.level)
    let soon = aclint.readMMIO(offset: 0xbff8, byteCount: 8) + 100_000  // 10 ms
    aclint.writeMMIO(offset: 0x4000, byteCount: 8, value: soon)
    #expect(!timer.level)
    loop.schedule(at: HostClock.monotonicNanoseconds() + 30_000_000) { [loop] in loop.stop() }
    loop.run()
    #expect(timer.level)
  }

  @Test func aPausedClockHoldsTheTimer() {
    let soon = aclint.readMMIO(offset: 0xbff8, byteCount: 8) + 50_000
    aclint.writeMMIO(offset: 0x4000, byteCount: 8, value: soon)
    clock.pause()
    let now = HostClock.monotonicNanoseconds()
    let seen = Mutex(true)
    loop.schedule(at: now + 20_000_000) { [clock, timer] in
      seen.withLock { $0 = timer.level }
      clock.resume()
    }
    loop.schedule(at: now + 60_000_000) { [loop] in loop.stop() }
    loop.run()
    #expect(!seen.withLock { $0 })
    #expect(timer.level)
  }
}
