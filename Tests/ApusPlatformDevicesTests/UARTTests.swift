import ApusCPU
import ApusDevice
import ApusHost
import ApusPlatformDevices
import ApusTestKit
import Synchronization
import Testing

/// A back end under the test's control.
final class FakeBackend: CharacterBackend {
  struct State {
    var frontEnd: CharacterFrontEnd?
    var output: [UInt8] = []
    var room = Int.max
  }
  let state = Mutex(State())
  func attach(_ frontEnd: CharacterFrontEnd?) { state.withLock { $0.frontEnd = frontEnd } }
  func write(_ bytes: [UInt8]) -> Int {
    state.withLock { state in
      let count = min(bytes.count, state.room)
      state.output += bytes.prefix(count)
      state.room -= count
      return count
    }
  }
  func acceptInput() {}
  var frontEnd: CharacterFrontEnd? { state.withLock { $0.frontEnd } }
  var output: [UInt8] { state.withLock { $0.output } }
  func send(_ text: String) { frontEnd?.receive(Array(text.utf8)) }
}

@Suite struct UARTTests {
  let interrupt = Probe()
  let backend = FakeBackend()
  let loop: EventLoop
  let uart: UART16550

  init() throws {
    loop = try EventLoop()
    uart = UART16550(interrupt.line, backend, GuestClock(), loop)
  }
  func write(_ register: UInt64, _ value: UInt64) {
    uart.writeMMIO(offset: register, byteCount: 1, value: value)
  }
  func read(_ register: UInt64) -> UInt64 { uart.readMMIO(offset: register, byteCount: 1) }

  /// As qemu-system-riscv64 7.2 shows them.
  @Test func resetValues() {
    #expect((0..<8).map { read($0) } == [0x00, 0x00, 0x01, 0x00, 0x08, 0x60, 0xb0, 0x00])
  }

  @Test func divisorLatch() {
    write(3, 0x83)
    write(0, 0x10)
    write(1, 0x01)
    #expect(read(0) == 0x10 && read(1) == 0x01)
    write(3, 0x03)
    #expect(read(0) == 0 && read(1) == 0)
  }

  @Test func transmitsAndRaisesTHRE() {
    write(1, 0x02)
    #expect(interrupt.level && read(2) == 0x02)
    #expect(!interrupt.level && read(2) == 0x01)  // reading IIR cleared it
    write(0, 0x41)
    #expect(backend.output == [0x41] && interrupt.level)
  }

  @Test func aFullBackEndHoldsTHREDown() {
    write(2, 0x01)
    write(1, 0x02)
    _ = read(2)
    backend.state.withLock { $0.room = 1 }
    write(0, 0x41)
    write(0, 0x42)
    write(0, 0x43)
    #expect(read(5) == 0)
    backend.state.withLock { $0.room = 10 }
    backend.frontEnd?.becameWritable()
    #expect(read(5) == 0x60 && interrupt.level)
    #expect(backend.output == Array("ABC".utf8))
  }

  @Test func receivesByTriggerAndTimeout() {
    write(2, 0x81)  // FIFOs, trigger at 8
    write(1, 0x01)
    backend.send("1234567")
    #expect(!interrupt.level && read(5) & 1 == 1)
    loop.schedule(at: HostClock.monotonicNanoseconds() + 30_000_000) { [loop] in loop.stop() }
    loop.run()
    #expect(interrupt.level && read(2) == 0xcc)
    #expect(read(0) == 0x31 && !interrupt.level)
    backend.send("89")
    #expect(interrupt.level && read(2) == 0xc4)
    #expect(backend.frontEnd?.capacity() == 8)
  }

  @Test func loopbackStaysInside() {
    write(4, 0x1f)
    #expect(read(6) & 0xf0 == 0xf0)
    write(0, 0x55)
    #expect(backend.output.isEmpty && read(5) == 0x61 && read(0) == 0x55)
    #expect(backend.frontEnd?.capacity() == 0)
  }

  @Test func breaksAndOverrunsAreLineErrors() {
    write(1, 0x04)
    backend.frontEnd?.receiveBreak()
    #expect(interrupt.level && read(2) == 0x06)
    #expect(read(5) & 0x10 != 0 && read(5) & 0x10 == 0 && !interrupt.level)
    write(4, 0x10)
    write(0, 1)
    write(0, 2)
    #expect(read(5) & 0x02 != 0)
  }

  @Test func scratchAndStray() {
    write(7, 0x5a)
    #expect(read(7) == 0x5a && read(8) == 0)
    write(0x80, 1)
  }

  @Test(arguments: 1...4 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<fuzzRounds(20000) {
      switch random.below(5) {
      case 0:
        let room = backend.frontEnd?.capacity() ?? 0
        backend.frontEnd?.receive(random.bytes(min(room, random.below(20))))
      case 1:
        backend.state.withLock { $0.room = random.below(30) }
        backend.frontEnd?.becameWritable()
      case 2:
        uart.writeMMIO(
          offset: random.next() % 16, byteCount: random.pick([1, 2, 4, 8]), value: random.next())
      default: _ = uart.readMMIO(offset: random.next() % 16, byteCount: random.pick([1, 2, 4, 8]))
      }
      if random.below(16) == 0 { backend.frontEnd?.receiveBreak() }
    }
    // With DLAB clear, the line says what IIR says.
    write(3, 0)
    let before = interrupt.level
    #expect(before == (read(2) & 1 == 0))
  }
}
