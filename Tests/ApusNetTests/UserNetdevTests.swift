import ApusDevice
import ApusHost
import ApusNet
import ApusTestKit
import Synchronization
import Testing

/// A guest's card that keeps what it gets.
final class TestPeer: NetworkPeer {
  let frames = Mutex<[[UInt8]]>([])
  let takes = Atomic<Bool>(true)
  let readyCount = Atomic<Int>(0)
  func receive(_ frame: UnsafeRawBufferPointer) -> Bool {
    guard takes.load(ordering: .relaxed) else { return false }
    frames.withLock { $0.append([UInt8](frame)) }
    return true
  }
  func sendReady() { readyCount.add(1, ordering: .relaxed) }
  func linkChanged(isUp: Bool) {}
  /// Waits for a frame that fits and takes it out.
  func wait(_ fits: ([UInt8]) -> Bool) -> [UInt8]? {
    var found: [UInt8]?
    _ = eventually {
      found = frames.withLock { frames in
        guard let index = frames.firstIndex(where: fits) else { return nil }
        return frames.remove(at: index)
      }
      return found != nil
    }
    return found
  }
}

extension Netdev {
  /// Sends from the netdev's thread.
  func inject(_ frame: [UInt8]) {
    let device = self
    post {
      var copy = frame
      copy.withUnsafeMutableBytes { _ = device.send([IOBuffer($0)]) }
    }
  }
}

@Suite struct UserNetdevTests {
  static let guest: [UInt8] = [10, 0, 2, 15]
  static let host: [UInt8] = [10, 0, 2, 2]

  @Test func addressResolutionAndDHCP() throws {
    let netdev = try UserNetdev(UserNetConfiguration(id: "n", []))
    defer { netdev.close() }
    let peer = TestPeer()
    netdev.attach(peer)
    netdev.inject(TestFrames.arpRequest(for: Self.host, from: Self.guest))
    let reply = try #require(peer.wait { $0.count >= 42 && $0[12] == 8 && $0[13] == 6 && $0[21] == 2 })
    #expect(Array(reply[28..<32]) == Self.host)
    netdev.inject(TestFrames.dhcpDiscover(transaction: 0x1234_5678))
    let offer = try #require(
      peer.wait {
        $0.count > 240 && $0[12] == 8 && $0[13] == 0 && $0[23] == 17 && TestFrames.read16($0, 36) == 68
      })
    #expect(TestFrames.read32(offer, 46) == 0x1234_5678)
    #expect(Array(offer[58..<62]) == Self.guest)
  }

  /// Connects through the stack to a server on the host's loopback; returns the bytes that came back.
  func converse(_ netdev: UserNetdev, _ server: EchoServer, _ data: [UInt8]) throws -> [UInt8] {
    let peer = TestPeer()
    netdev.attach(peer)
    netdev.inject(TestFrames.arpRequest(for: Self.host, from: Self.guest))
    let arp = try #require(peer.wait { $0[12] == 8 && $0[13] == 6 && $0[21] == 2 })
    let mac = Array(arp[6..<12])
    func send(_ sequence: UInt32, _ acknowledge: UInt32, _ flags: UInt8, _ data: [UInt8] = []) {
      netdev.inject(
        TestFrames.tcp(
          to: mac, source: Self.guest, sourcePort: 40000, target: Self.host, targetPort: server.port,
          sequence: sequence, acknowledge: acknowledge, flags: flags, data))
    }
    func isTCP(_ frame: [UInt8]) -> Bool {
      frame.count >= 54 && frame[12] == 8 && frame[13] == 0 && frame[23] == 6
    }
    send(1000, 0, 2)
    let synchronize = try #require(peer.wait { isTCP($0) && $0[47] == 0x12 })
    var next = TestFrames.read32(synchronize, 38) &+ 1
    send(1001, next, 0x10)
    send(1001, next, 0x18, data)
    var back: [UInt8] = []
    while back.count < data.count {
      let frame = try #require(
        peer.wait { isTCP($0) && TestFrames.read32($0, 38) == next && Self.payload($0).count > 0 })
      back += Self.payload(frame)
      next &+= UInt32(Self.payload(frame).count)
      send(1001 &+ UInt32(data.count), next, 0x10)
    }
    return back
  }
  static func payload(_ frame: [UInt8]) -> [UInt8] {
    let end = 14 + Int(TestFrames.read16(frame, 16))
    let start = 34 + Int(frame[46] >> 4) * 4
    return start < end && end <= frame.count ? Array(frame[start..<end]) : []
  }

  @Test func tcpToLoopback() throws {
    let server = try EchoServer()
    let netdev = try UserNetdev(UserNetConfiguration(id: "n", []))
    defer { netdev.close() }
    #expect(try converse(netdev, server, Array("hello, host".utf8)) == Array("hello, host".utf8))
    #expect(netdev.connectionInformation().contains("TCP"))
  }

  /// A segment larger than the MTU, as a guest with TCP segmentation offload sends it.
  @Test func largeSegment() throws {
    let server = try EchoServer()
    let netdev = try UserNetdev(UserNetConfiguration(id: "n", []))
    defer { netdev.close() }
    let data = (0..<40000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
    #expect(try converse(netdev, server, data) == data)
  }

  @Test func restricted() throws {
    let server = try EchoServer()
    let netdev = try UserNetdev(UserNetConfiguration(id: "n", [("restrict", "on")]))
    defer { netdev.close() }
    let peer = TestPeer()
    netdev.attach(peer)
    netdev.inject(
      TestFrames.tcp(
        to: [0x52, 0x55, 10, 0, 2, 2], source: Self.guest, sourcePort: 40000, target: Self.host,
        targetPort: server.port, sequence: 1, acknowledge: 0, flags: 2))
    // The stack answers nothing that would open the connection.
    netdev.inject(TestFrames.arpRequest(for: Self.host, from: Self.guest))
    #expect(peer.wait { $0[12] == 8 && $0[13] == 6 } != nil)
    #expect(peer.frames.withLock { $0.allSatisfy { !($0.count > 47 && $0[23] == 6 && $0[47] == 0x12) } })
    #expect(server.receivedByteCount == 0)
  }

  @Test func hostForward() throws {
    let listener = try HostSocket.listen(.inet(host: "127.0.0.1", port: 0))
    let port = try #require(HostSocket.localPort(listener))
    HostSocket.close(listener)
    let netdev = try UserNetdev(UserNetConfiguration(id: "n", [("hostfwd", "tcp:127.0.0.1:\(port)-:22")]))
    defer { netdev.close() }
    let peer = TestPeer()
    netdev.attach(peer)
    let connection = try HostSocket.connect(.inet(host: "127.0.0.1", port: port))
    defer { HostSocket.close(connection) }
    // The stack asks for the guest's MAC address, then opens the connection.
    let question = try #require(peer.wait { $0[12] == 8 && $0[13] == 6 && $0[21] == 1 })
    var answer = Array(question[6..<12]) + TestFrames.guestMAC + [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
    answer += TestFrames.guestMAC + Self.guest + Array(question[22..<28]) + Self.host
    netdev.inject(answer)
    let open = try #require(peer.wait { $0.count >= 54 && $0[23] == 6 && $0[47] == 2 })
    #expect(TestFrames.read16(open, 36) == 22)
  }

  @Test func guestForwardToServer() throws {
    let server = try EchoServer()
    let netdev = try UserNetdev(
      UserNetConfiguration(id: "n", [("guestfwd", "tcp:10.0.2.100:7-tcp:127.0.0.1:\(server.port)")]))
    defer { netdev.close() }
    let peer = TestPeer()
    netdev.attach(peer)
    let target: [UInt8] = [10, 0, 2, 100]
    func send(_ sequence: UInt32, _ acknowledge: UInt32, _ flags: UInt8, _ data: [UInt8] = []) {
      netdev.inject(
        TestFrames.tcp(
          to: [0x52, 0x55, 10, 0, 2, 2], source: Self.guest, sourcePort: 40001, target: target, targetPort: 7,
          sequence: sequence, acknowledge: acknowledge, flags: flags, data))
    }
    netdev.inject(TestFrames.arpRequest(for: Self.host, from: Self.guest))
    send(1, 0, 2)
    let synchronize = try #require(peer.wait { $0.count >= 54 && $0[23] == 6 && $0[47] == 0x12 })
    let next = TestFrames.read32(synchronize, 38) &+ 1
    send(2, next, 0x18, Array("ping".utf8))
    let frame = try #require(peer.wait { $0.count >= 54 && $0[23] == 6 && !Self.payload($0).isEmpty })
    #expect(Self.payload(frame) == Array("ping".utf8))
  }

  @Test func waitsForRoom() throws {
    let netdev = try UserNetdev(UserNetConfiguration(id: "n", []))
    defer { netdev.close() }
    let peer = TestPeer()
    peer.takes.store(false, ordering: .relaxed)
    netdev.attach(peer)
    netdev.inject(TestFrames.arpRequest(for: Self.host, from: Self.guest))
    _ = netdev.connectionInformation()
    #expect(peer.frames.withLock { $0.isEmpty })
    peer.takes.store(true, ordering: .relaxed)
    netdev.post { netdev.resumeReceiving() }
    #expect(peer.wait { $0[12] == 8 && $0[13] == 6 && $0[21] == 2 } != nil)
  }

  @Test func options() throws {
    let configuration = try UserNetConfiguration(
      id: "n", [("net", "192.168.7.0/24"), ("hostfwd", "udp::5353-192.168.7.20:53"), ("ipv6", "off")])
    #expect(configuration.host.description == "192.168.7.2")
    #expect(configuration.dhcpStart.description == "192.168.7.15")
    #expect(configuration.hostForwards[0].isUDP)
    for bad in [
      ("net", "300.0.0.0/8"), ("hostfwd", "tcp::x-:22"), ("hostfwd", "tcp::22"), ("dns", "1.2.3.4"),
      ("colour", "red"),
      ("restrict", "perhaps"), ("smb", "/tmp"), ("guestfwd", "tcp:10.0.2.100:7"),
    ] {
      #expect(throws: OptionError.self, "\(bad)") { try UserNetConfiguration(id: "n", [bad]) }
    }
  }
}
