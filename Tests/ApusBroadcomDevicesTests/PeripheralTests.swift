import ApusBroadcomDevices
import ApusDevice
import ApusMemory
import ApusTestKit
import Glibc
import Synchronization
import Testing

/// A back end that keeps what is written, and can be full.
final class Terminal: CharacterBackend {
  private let state = Mutex((written: [UInt8](), isFull: false))
  private let frontEnd = Mutex<CharacterFrontEnd?>(nil)
  func attach(_ frontEnd: CharacterFrontEnd?) { self.frontEnd.withLock { $0 = frontEnd } }
  func write(_ bytes: [UInt8]) -> Int {
    state.withLock { state in
      if state.isFull { return 0 }
      state.written += bytes
      return bytes.count
    }
  }
  func acceptInput() {}
  var written: [UInt8] { state.withLock { $0.written } }
  func setFull(_ isFull: Bool) {
    state.withLock { $0.isFull = isFull }
    if !isFull { frontEnd.withLock { $0 }?.becameWritable() }
  }
  /// Sends as much as the device takes.
  func type(_ bytes: [UInt8]) -> Int {
    guard let frontEnd = frontEnd.withLock({ $0 }) else { return 0 }
    let count = min(bytes.count, frontEnd.capacity())
    frontEnd.receive(Array(bytes.prefix(count)))
    return count
  }
}

@Suite struct PeripheralTests {
  let around: Surroundings
  init() throws { around = try Surroundings() }

  @Test func theMiniUART() {
    let (terminal, wire) = (Terminal(), Wire())
    let uart = BCM2835AuxiliaryUART(wire.line, terminal)
    func read(_ offset: UInt64) -> UInt64 { uart.readMMIO(offset: offset, byteCount: 4) }
    func write(_ offset: UInt64, _ value: UInt64) {
      uart.writeMMIO(offset: offset, byteCount: 4, value: value)
    }
    write(4, 1)
    write(0x40, 0x41)
    #expect(terminal.written == [0x41] && read(0x54) == 0x60 && read(0x64) == 0x30e)
    write(0x44, 3)
    #expect(wire.level && read(0) == 1 && read(0x48) == 0xc2)
    #expect(!wire.level && read(0x48) == 0xc1)
    #expect(terminal.type(Array(1...20)) == 8)
    #expect(wire.level && read(0x48) == 0xc4 && read(0x54) & 1 == 1)
    #expect((1...8).allSatisfy { read(0x40) == $0 })
    #expect(!wire.level && read(0x40) == 0)
    // What the back end does not take yet.
    terminal.setFull(true)
    for byte in 0..<10 as Range<UInt64> { write(0x40, byte) }
    #expect(read(0x54) == 0 && read(0x64) >> 24 == 8)
    terminal.setFull(false)
    #expect(terminal.written.count == 9 && read(0x54) == 0x60 && wire.level)
    // The divisor behind the latch.
    write(0x4c, 0x83)
    write(0x40, 0x34)
    write(0x44, 0x12)
    #expect(read(0x68) == 0x1234)
    uart.reset()
    #expect(!wire.level && read(0x68) == 0)
  }

  @Test func theWatchdog() {
    let requests = Mutex<[BCM2835PowerManager.Request]>([])
    let power = BCM2835PowerManager(clock: around.clock, loop: around.loop) { request in
      requests.withLock { $0.append(request) }
    }
    func write(_ offset: UInt64, _ value: UInt64) {
      power.writeMMIO(offset: offset, byteCount: 4, value: 0x5a00_0000 | value)
    }
    func read(_ offset: UInt64) -> UInt64 { power.readMMIO(offset: offset, byteCount: 4) }
    #expect(read(0x20) == 0x1000)
    power.writeMMIO(offset: 0x24, byteCount: 4, value: 10)
    #expect(read(0x24) == 0)
    write(0x24, 0xf_ffff)
    write(0x1c, 0x122)
    #expect(read(0x24) > 0xf_0000)
    write(0x1c, 0x102)
    write(0x24, 10)
    write(0x1c, 0x122)
    around.wait("the restart") { requests.withLock { $0 == [.reset] } }
    #expect(read(0x20) == 0x20)
    power.reset()
    write(0x20, 0x555)
    write(0x24, 10)
    write(0x1c, 0x122)
    around.wait("the power-off") { requests.withLock { $0 == [.reset, .powerOff] } }
    // A domain's power is good at once.
    write(0x10c, 0x9)
    #expect(read(0x10c) == 0x1b)
  }

  @Test func theSystemTimer() {
    let wires = (0..<4).map { _ in Wire() }
    let timer = BCM2835SystemTimer(wires.map(\.line), clock: around.clock, loop: around.loop)
    let now = timer.readMMIO(offset: 4, byteCount: 4)
    timer.writeMMIO(offset: 0x10, byteCount: 4, value: now + 2000)
    #expect(!wires[1].level)
    around.wait("the comparator") { wires[1].level }
    #expect(
      timer.readMMIO(offset: 0, byteCount: 4) == 2 && timer.readMMIO(offset: 4, byteCount: 4) >= now + 2000)
    timer.writeMMIO(offset: 0, byteCount: 4, value: 2)
    #expect(!wires[1].level)
  }

  @Test func pins() {
    let wires = (0..<4).map { _ in Wire() }
    let gpio = BCM2835GPIO(wires.map(\.line))
    func write(_ offset: UInt64, _ value: UInt64) {
      gpio.writeMMIO(offset: offset, byteCount: 4, value: value)
    }
    func read(_ offset: UInt64) -> UInt64 { gpio.readMMIO(offset: offset, byteCount: 4) }
    write(0x10, 1 << 21)  // pin 47 is an output
    write(0x50, 1 << 15)  // its rising edges
    write(0x20, 1 << 15)
    #expect(read(0x38) == 1 << 15 && read(0x44) == 1 << 15)
    #expect(wires.map(\.level) == [false, false, true, true])
    write(0x44, 1 << 15)
    write(0x2c, 1 << 15)
    #expect(read(0x38) == 0 && wires.allSatisfy { !$0.level })
  }

  @Test func clocksAndNoise() {
    let clocks = BCM2835ClockManager()
    clocks.writeMMIO(offset: 0xf0, byteCount: 4, value: 0x16)
    #expect(clocks.readMMIO(offset: 0xf0, byteCount: 4) == 0x296)
    clocks.writeMMIO(offset: 0xf0, byteCount: 4, value: 0x5a00_0006)
    #expect(clocks.readMMIO(offset: 0xf0, byteCount: 4) == 6)
    clocks.writeMMIO(offset: 0xf0, byteCount: 4, value: 0x5a00_0016)
    #expect(clocks.readMMIO(offset: 0xf0, byteCount: 4) == 0x96)
    let noise = BCM2835RandomNumbers()
    #expect(noise.readMMIO(offset: 8, byteCount: 4) == 0 && noise.readMMIO(offset: 4, byteCount: 4) == 0)
    noise.writeMMIO(offset: 0, byteCount: 4, value: 1)
    #expect(noise.readMMIO(offset: 4, byteCount: 4) == 1 << 24)
    #expect(Set((0..<8).map { _ in noise.readMMIO(offset: 8, byteCount: 4) }).count > 1)
  }

  @Test(arguments: 1...2 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let terminal = Terminal()
    let devices: [(any MMIODevice, UInt64)] = [
      (BCM2835AuxiliaryUART(.unconnected, terminal), BCM2835AuxiliaryUART.byteCount),
      (BCM2835PowerManager(clock: around.clock, loop: around.loop) { _ in }, BCM2835PowerManager.byteCount),
      (BCM2835AXIBridge(), BCM2835AXIBridge.byteCount),
      (
        BCM2835SystemTimer((0..<4).map { _ in .unconnected }, clock: around.clock, loop: around.loop),
        BCM2835SystemTimer.byteCount
      ),
      (BCM2835GPIO((0..<4).map { _ in .unconnected }), BCM2835GPIO.byteCount),
      (BCM2835ClockManager(), BCM2835ClockManager.byteCount),
      (BCM2835RandomNumbers(), BCM2835RandomNumbers.byteCount),
      (BCM2835Thermometer(), BCM2835Thermometer.byteCount),
    ]
    for _ in 0..<fuzzRounds(20000) {
      let (device, size) = random.pick(devices)
      let byteCount = random.pick([1, 2, 4, 8])
      let offset = random.pick([random.next() % size, random.next() % min(size, 0x100)])
      guard offset + UInt64(byteCount) <= size else { continue }
      let value = random.pick([random.next(), 0x5a00_0000 | random.next() & 0xff_ffff])
      device.writeMMIO(offset: offset, byteCount: byteCount, value: value)
      _ = device.readMMIO(offset: offset, byteCount: byteCount)
      if random.below(16) == 0 { _ = terminal.type(random.bytes(random.below(12))) }
      if random.below(32) == 0 { terminal.setFull(random.below(2) == 0) }
    }
  }
}
