import ApusDevice
import ApusHost
import ApusNet
import ApusTestKit
import Synchronization
import Testing

@Suite struct SocketNetdevTests {
  let loop: EventLoop
  init() throws {
    loop = try EventLoop()
    let loop = loop
    _ = HostThread.spawn("loop") { loop.run() }
  }

  func make(_ kind: String, _ options: [OptionReader.Pair]) throws -> any Netdev {
    try #require(NetdevRegistry.models[kind]).makeNetdev(id: kind, options, loop: loop)
  }

  /// Frames of all sizes pass both ways and in order.
  func exchange(_ a: any Netdev, _ b: any Netdev) throws {
    let (left, right) = (TestPeer(), TestPeer())
    a.attach(left)
    b.attach(right)
    // Frames are lost until the server has accepted.
    let isConnected = eventually {
      a.inject([0])
      return right.frames.withLock { !$0.isEmpty }
    }
    #expect(isConnected)
    for size in [60, 1514, 9000] {
      let frame = [UInt8](repeating: UInt8(truncatingIfNeeded: size), count: size)
      a.inject(frame)
      #expect(right.wait { $0 == frame } != nil, "\(size)")
      b.inject(frame)
      #expect(left.wait { $0 == frame } != nil, "\(size)")
    }
    // Without room frames wait.
    right.takes.store(false, ordering: .relaxed)
    a.inject([UInt8](repeating: 1, count: 64))
    a.inject([UInt8](repeating: 2, count: 64))
    right.takes.store(true, ordering: .relaxed)
    b.post { b.resumeReceiving() }
    #expect(right.wait { $0.first == 1 } != nil)
    #expect(right.wait { $0.first == 2 } != nil)
    a.close()
    b.close()
  }

  @Test func unixStream() throws {
    let path = "/tmp/apus-net-\(HostClock.monotonicNanoseconds())"
    let server = try make("stream", [("server", "on"), ("addr.type", "unix"), ("addr.path", path)])
    let client = try make("stream", [("addr.type", "unix"), ("addr.path", path)])
    try exchange(server, client)
  }

  @Test func tcpSocket() throws {
    let server = try StreamNetdev(
      .init(address: .inet(host: "127.0.0.1", port: 0), isServer: true), loop: loop)
    let port = try #require(server.localPort)
    try exchange(server, try make("socket", [("connect", "127.0.0.1:\(port)")]))
  }

  @Test func udpSocket() throws {
    let free = try (0..<2).map { _ in
      try HostSocket.datagram(local: .inet(host: "127.0.0.1", port: 0), remote: nil)
    }
    let ports = free.compactMap { HostSocket.localPort($0) }
    for descriptor in free { HostSocket.close(descriptor) }
    let a = try make("socket", [("udp", "127.0.0.1:\(ports[1])"), ("localaddr", "127.0.0.1:\(ports[0])")])
    let b = try make("socket", [("udp", "127.0.0.1:\(ports[0])"), ("localaddr", "127.0.0.1:\(ports[1])")])
    try exchange(a, b)
  }

  @Test func badLengthEndsTheConnection() throws {
    let server = try StreamNetdev(
      .init(address: .inet(host: "127.0.0.1", port: 0), isServer: true), loop: loop)
    let peer = TestPeer()
    server.attach(peer)
    let connection = try HostSocket.connect(.inet(host: "127.0.0.1", port: try #require(server.localPort)))
    var bytes: [UInt8] = [0xff, 0xff, 0xff, 0xff, 1]
    bytes.withUnsafeMutableBytes { _ = HostSocket.send(connection, [IOBuffer($0)]) }
    #expect(
      eventually {
        var buffer = [UInt8](repeating: 0, count: 16)
        return buffer.withUnsafeMutableBytes { HostSocket.receive(connection, into: $0) } == .ended
      })
    HostSocket.close(connection)
    server.close()
  }

  @Test func reconnects() throws {
    let path = "/tmp/apus-re-\(HostClock.monotonicNanoseconds())"
    let client = try make("stream", [("addr.type", "unix"), ("addr.path", path), ("reconnect-ms", "20")])
    let server = try make("stream", [("server", "on"), ("addr.type", "unix"), ("addr.path", path)])
    let peer = TestPeer()
    server.attach(peer)
    client.attach(TestPeer())
    let arrived = eventually {
      client.inject([UInt8](repeating: 7, count: 60))
      return peer.frames.withLock { !$0.isEmpty }
    }
    #expect(arrived)
    client.close()
    server.close()
  }

  @Test func refusals() throws {
    #expect(throws: OptionError.self) { try make("tap", [("vhost", "on")]) }
    #expect(throws: OptionError.self) { try make("tap", [("script", "/etc/up")]) }
    #expect(throws: OptionError.self) { try make("socket", [("listen", ":1"), ("connect", "a:2")]) }
    #expect(throws: OptionError.self) { try make("socket", [("listen", "nonsense")]) }
    #expect(throws: OptionError.self) { try make("stream", []) }
    #expect(throws: NetdevError.self) {
      try make("stream", [("addr.type", "unix"), ("addr.path", "/nonexistent/s")])
    }
  }
}

@Suite struct TapTests {
  /// Runs where the host lets this process make interfaces.
  @Test func opens() throws {
    let loop = try EventLoop()
    _ = HostThread.spawn("loop") { loop.run() }
    defer { loop.stop() }
    let tap: any Netdev
    do {
      tap = try #require(NetdevRegistry.models["tap"]).makeNetdev(
        id: "t", [("ifname", "apustest%d"), ("script", "no"), ("downscript", "no")], loop: loop)
    } catch let error as NetdevError {
      #expect(error.description.contains("tap interface"))
      return
    }
    #expect(tap.headerByteCount == 12)
    #expect(tap.sendOffloads.contains(.tso4))
    tap.attach(TestPeer())
    tap.setReceiveOffloads([.checksum, .tso4])
    tap.inject([UInt8](repeating: 0, count: 72))
    tap.close()
  }
}
