import ApusDevice
import ApusHost
import ApusMemory
import ApusTestKit
import ApusVirtio
import ApusVirtioDevices
import Synchronization
import Testing

/// Remembers output, takes a limited amount, offers input.
final class TestBackend: ConsoleBackend {
  struct State {
    var output: [UInt8] = []
    var room = Int.max
    var pending: [UInt8] = []
    var receive: (@Sendable ([UInt8]) -> Int)?
    var writable: (@Sendable () -> Void)?
  }
  let state = Mutex(State())
  func write(_ bytes: [UInt8]) -> Int {
    state.withLock { state in
      let count = min(bytes.count, state.room)
      state.output += bytes.prefix(count)
      if state.room != .max { state.room -= count }
      return count
    }
  }
  func connect(receive: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
    state.withLock { ($0.receive, $0.writable) = (receive, writable) }
  }
  func resumeReceiving() { offer([]) }
  func offer(_ bytes: [UInt8]) {
    let (all, receive) = state.withLock { state in
      let all = state.pending + bytes
      state.pending = []
      return (all, state.receive)
    }
    guard !all.isEmpty else { return }
    let count = receive?(all) ?? 0
    state.withLock { $0.pending = Array(all.dropFirst(count)) + $0.pending }
  }
  func makeRoom() {
    let writable = state.withLock { state in
      state.room = .max
      return state.writable
    }
    writable?()
  }
  var output: [UInt8] { state.withLock { $0.output } }
}

@Suite struct OtherDeviceTests {
  let machine: VirtioTestMachine
  let pool = WorkerPool("test", threadLimit: 2)
  init() throws { machine = try VirtioTestMachine() }

  @Test func entropy() throws {
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: VirtioEntropy(pool: pool), space: machine.space, line: .unconnected))
    let (queues, _) = machine.start(transport, queueCount: 1)
    queues[0].add([.writable(64)])
    queues[0].add([.writable(3000), .writable(3000)])
    transport.notify(0)
    let first = try #require(queues[0].wait())
    #expect(first.written == 64)
    #expect(Set(first.data).count > 20)
    #expect(try #require(queues[0].wait()).written == 4096)
  }

  @Test func singlePortConsole() throws {
    let backend = TestBackend()
    let console = VirtioConsole(
      ports: [VirtioConsolePort(isConsole: true, backend: backend)], maximumPortCount: 1, size: (80, 25))
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: console, space: machine.space, line: .unconnected))
    let (queues, _) = machine.start(transport, queueCount: 2)
    #expect(transport.readConfiguration(0, 2) == 80)
    backend.state.withLock { $0.room = 3 }
    queues[1].add([.readable(Array("hello".utf8)), .readable(Array(" world".utf8))])
    transport.notify(1)
    #expect(queues[1].take() == nil)
    #expect(String(decoding: backend.output, as: UTF8.self) == "hel")
    backend.makeRoom()
    #expect(queues[1].take() != nil)
    #expect(String(decoding: backend.output, as: UTF8.self) == "hello world")
    // Input waits for buffers.
    backend.offer(Array("abcdef".utf8))
    queues[0].add([.writable(4)])
    transport.notify(0)
    #expect(queues[0].take()?.data == Array("abcd".utf8))
    queues[0].add([.writable(4)])
    transport.notify(0)
    let rest = try #require(queues[0].take())
    #expect(rest.written == 2)
    #expect(rest.data.prefix(2) == Array("ef".utf8)[...])
    // Emergency write.
    transport.writeConfiguration(8, 4, 33)
    #expect(backend.output.last == 33)
  }

  @Test func multiport() throws {
    let backend = TestBackend()
    let agent = TestBackend()
    let console = VirtioConsole(ports: [
      VirtioConsolePort(isConsole: true, backend: backend), nil,
      VirtioConsolePort(isConsole: false, name: "org.apus.agent", backend: agent),
    ])
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: console, space: machine.space, line: .unconnected))
    #expect(transport.readConfiguration(4, 4) == 31)
    let (queues, _) = machine.start(transport, queueCount: 8)
    for _ in 0..<16 { queues[2].add([.writable(64)]) }
    transport.notify(2)
    func control(_ port: UInt32, _ event: UInt16, _ value: UInt16) {
      var message = VirtioConfiguration()
      message.append(port)
      message.append(event)
      message.append(value)
      queues[3].add([.readable(message.bytes)])
      transport.notify(3)
    }
    func next() throws -> (port: UInt8, event: UInt8, extra: [UInt8]) {
      let message = try #require(queues[2].take())
      return (message.data[0], message.data[4], Array(message.data[8..<message.written]))
    }
    control(0, 0, 1)
    #expect(try next() == (0, 1, []))
    #expect(try next() == (2, 1, []))
    control(0, 3, 1)
    #expect(try next() == (0, 4, []))
    #expect(try next() == (0, 6, []))
    control(2, 3, 1)
    #expect(try next() == (2, 7, Array("org.apus.agent\0".utf8)))
    #expect(try next() == (2, 6, []))
    // Port 2's queues are 6 and 7; input waits until the guest opens the port.
    agent.offer([1])
    control(2, 6, 1)
    queues[6].add([.writable(8)])
    transport.notify(6)
    agent.offer([2, 3])
    #expect(try #require(queues[6].take()).data.prefix(2) == [2, 3])
    queues[7].add([.readable([9, 8])])
    transport.notify(7)
    #expect(agent.output == [9, 8])
    control(99, 3, 1)
    #expect(transport.readStatus() == 15)
  }

  @Test func balloon() throws {
    let balloon = VirtioBalloon(reportsFreePages: true, pool: pool)
    let line = TestLine()
    let transport = VirtioMMIOTestTransport(
      VirtioMMIO(device: balloon, space: machine.space, line: line.line))
    let (queues, _) = machine.start(transport, queueCount: 4)
    balloon.setTarget(byteCount: 8 << 20)
    #expect(transport.readConfiguration(0, 4) == 2048)
    #expect(line.level)
    let page = VirtioTestMachine.base + (12 << 20)
    for index in 0..<4 as Range<UInt64> { machine.store(page + 4096 * index, UInt32(0xdead)) }
    var numbers = VirtioConfiguration()
    for index in [0, 1, 3] as [UInt64] { numbers.append(UInt32(truncatingIfNeeded: page >> 12 + index)) }
    numbers.append(UInt32(5))  // no RAM there
    queues[0].add([.readable(numbers.bytes)])
    transport.notify(0)
    #expect(queues[0].wait() != nil)
    let left = (0..<4 as Range<UInt64>).map { machine.load(page + 4096 * $0, as: UInt32.self) }
    #expect(left == [0, 0, 0xdead, 0])
    queues[2].add([.readable([4, 0, 1, 2, 0, 0, 0, 0, 0, 0])])
    transport.notify(2)
    #expect(eventually { balloon.statistics == [VirtioBalloon.Statistic(tag: 4, value: 0x201)] })
    balloon.requestStatistics()
    #expect(queues[2].wait() != nil)
    // Reporting discards what the buffers cover; the test queue allocates them for us.
    queues[3].add([.writable(8192)])
    transport.notify(3)
    #expect(queues[3].wait() != nil)
    transport.writeConfiguration(4, 4, 77)
    #expect(balloon.actualByteCount == 77 << 12)
  }
}
