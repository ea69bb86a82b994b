import ApusCharDev
import ApusConfig
import ApusDevice
import ApusHost
import Synchronization
import Testing

/// A device that takes a limited number of bytes.
final class FakeDevice: Sendable {
  struct State {
    var received: [UInt8] = []
    var capacity = Int.max
    var writable = 0
    var isConnected = false
  }
  let state = Mutex(State())
  var frontEnd: CharacterFrontEnd {
    CharacterFrontEnd(
      capacity: { self.state.withLock { $0.capacity } },
      receive: { bytes in
        self.state.withLock { state in
          state.received += bytes
          if state.capacity != .max { state.capacity -= bytes.count }
        }
      },
      becameWritable: { self.state.withLock { $0.writable += 1 } },
      connectionChanged: { connected in self.state.withLock { $0.isConnected = connected } })
  }
  var text: String { String(decoding: state.withLock { $0.received }, as: UTF8.self) }
}

@Suite struct CharDevTests {
  let loop: EventLoop
  let factory: CharacterBackendFactory
  let device = FakeDevice()
  let notices: Notices

  final class Notices: Sendable { let text = Mutex("") }

  init() throws {
    loop = try EventLoop()
    let notices = Notices()
    self.notices = notices
    factory = CharacterBackendFactory(loop) { text in notices.text.withLock { $0 += text } }
  }

  func runLoop(_ milliseconds: UInt64 = 30) throws {
    let loop = loop
    loop.schedule(at: HostClock.monotonicNanoseconds() + milliseconds * 1_000_000) { loop.stop() }
    loop.run()
  }
  /// Runs the loop, once for a test, until each condition in turn has come true and its action is done; ten seconds at
  /// most, for hosts are busy.
  func runLoop(_ steps: (until: @Sendable () -> Bool, then: @Sendable () -> Void)...) {
    let next = Mutex(0)
    let deadline = HostClock.monotonicNanoseconds() + 10_000_000_000
    let loop = loop
    @Sendable func look() {
      let index = next.withLock { $0 }
      if index == steps.count || HostClock.monotonicNanoseconds() > deadline { return loop.stop() }
      if steps[index].until() {
        steps[index].then()
        next.withLock { $0 += 1 }
      }
      loop.schedule(at: HostClock.monotonicNanoseconds() + 2_000_000, look)
    }
    look()
    loop.run()
  }
  func path(_ name: String) -> String { "/tmp/apus-test-\(HostProcess.identifier)-\(name)" }

  @Test func filesGetWhatIsWritten() throws {
    let path = path("file")
    defer { HostDescriptor.remove(path) }
    let backend = try factory.make(.init(id: "f", kind: .file(path: path, append: false)))
    backend.attach(device.frontEnd)
    #expect(backend.write(Array("hello".utf8)) == 5)
    try runLoop()
    #expect(try HostDescriptor.contents(path) == Array("hello".utf8))
  }

  @Test func socketsServeOneClient() throws {
    let path = path("socket")
    var socket = CharDevConfiguration.Socket(address: .unix(path: path))
    (socket.isServer, socket.waits) = (true, false)
    let server = try factory.make(.init(id: "s", kind: .socket(socket)))
    let client = try factory.make(.init(id: "c", kind: .socket(.init(address: .unix(path: path)))))
    let other = FakeDevice()
    server.attach(device.frontEnd)
    client.attach(other.frontEnd)
    _ = client.write(Array("ping".utf8))
    runLoop(
      ({ [device] in device.text == "ping" }, { _ = server.write(Array("pong".utf8)) }),
      ({ other.text == "pong" }, {}))
    #expect(device.text == "ping" && other.text == "pong")
    #expect(device.state.withLock { $0.isConnected })
  }

  @Test func aSlowReaderPushesBack() throws {
    let path = path("slow")
    let listener = try HostSocket.listen(.unix(path: path))
    defer { HostDescriptor.remove(path) }
    let backend = try factory.make(.init(id: "c", kind: .socket(.init(address: .unix(path: path)))))
    backend.attach(device.frontEnd)
    let peer = try #require(HostSocket.accept(listener))
    let chunk = [UInt8](repeating: 7, count: 1 << 20)
    let sent = Mutex(0)
    let refused = Mutex(false)
    @Sendable func push() {
      let count = backend.write(chunk)
      sent.withLock { $0 += count }
      if count < chunk.count { refused.withLock { $0 = true } }
    }
    for delay in 1...20 as ClosedRange<UInt64> {
      loop.schedule(at: HostClock.monotonicNanoseconds() + delay * 1_000_000) { push() }
    }
    let received = Mutex(0)
    loop.schedule(at: HostClock.monotonicNanoseconds() + 40_000_000) { [loop] in
      loop.add(peer, .read) { _ in
        var bytes: [UInt8] = []
        if case .transferred(let count) = HostDescriptor.readSome(peer, limit: 65536, into: &bytes) {
          received.withLock { $0 += count }
        }
      }
    }
    let start = HostClock.monotonicNanoseconds()
    runLoop(
      ({ HostClock.monotonicNanoseconds() > start + 60_000_000 }, {}),
      ({ received.withLock { $0 } == sent.withLock { $0 } }, {}))
    #expect(refused.withLock { $0 })
    #expect(device.state.withLock { $0.writable } > 0)
    #expect(received.withLock { $0 } == sent.withLock { $0 })
  }

  @Test func aBusyDeviceHoldsInputBack() throws {
    let path = path("held")
    let listener = try HostSocket.listen(.unix(path: path))
    defer { HostDescriptor.remove(path) }
    let backend = try factory.make(.init(id: "c", kind: .socket(.init(address: .unix(path: path)))))
    device.state.withLock { $0.capacity = 2 }
    backend.attach(device.frontEnd)
    let peer = try #require(HostSocket.accept(listener))
    try HostDescriptor.writeAll(peer, Array("abcd".utf8))
    runLoop(
      (
        { [device] in device.text == "ab" },
        { [device] in
          device.state.withLock { $0.capacity = 10 }
          backend.acceptInput()
        }
      ), ({ [device] in device.text == "abcd" }, {}))
    #expect(device.text == "abcd")
  }

  @Test func pseudoTerminalsTalkAndDropStaleOutput() throws {
    let backend = try factory.make(.init(id: "p", kind: .pty))
    backend.attach(device.frontEnd)
    let notice = notices.text.withLock { $0 }
    let slave = try #require(
      notice.split(separator: " ").first { $0.hasPrefix("/dev/pts/") }.map(String.init))
    #expect(notice.hasSuffix("(label p)\n"))
    let terminal = try HostDescriptor.openTerminal(slave)
    try HostDescriptor.writeAll(terminal, Array("typed".utf8))
    _ = backend.write(Array("shown".utf8))
    runLoop(({ [device] in device.text == "typed" }, {}))
    #expect(device.text == "typed")
    var bytes: [UInt8] = []
    #expect(HostDescriptor.readSome(terminal, limit: 100, into: &bytes) == .transferred(5))
    #expect(bytes == Array("shown".utf8))
  }

  @Test func theMultiplexerHearsCommands() throws {
    let inner = LoopbackBackend()
    let commands = Mutex<[CharacterMultiplexer.Command]>([])
    let multiplexer = CharacterMultiplexer(inner, loop) { _, command in
      commands.withLock { $0.append(command) }
    }
    device.state.withLock { $0.capacity = 0 }
    multiplexer.attach(device.frontEnd)
    // Even while the device takes nothing.
    inner.type([0x61, 0x01, 0x63, 0x01, 0x78, 0x01, 0x01, 0x62, 0x01, 0x68])
    #expect(commands.withLock { $0 } == [.switchToMonitor, .quit])
    device.state.withLock { $0.capacity = 10 }
    multiplexer.acceptInput()
    runLoop(({ [device] in device.state.withLock { $0.received.count } == 3 }, {}))
    #expect(device.state.withLock { $0.received } == [0x61, 0x01, 0x62])
    #expect(inner.output.contains("Ctrl-a x"))
  }
}

final class LoopbackBackend: CharacterBackend {
  private let state = Mutex<(frontEnd: CharacterFrontEnd?, output: [UInt8])>((nil, []))
  func attach(_ frontEnd: CharacterFrontEnd?) { state.withLock { $0.frontEnd = frontEnd } }
  func write(_ bytes: [UInt8]) -> Int {
    state.withLock { $0.output += bytes }
    return bytes.count
  }
  func acceptInput() {}
  func type(_ bytes: [UInt8]) { state.withLock { $0.frontEnd }?.receive(bytes) }
  var output: String { String(decoding: state.withLock { $0.output }, as: UTF8.self) }
}
