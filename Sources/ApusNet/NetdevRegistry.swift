import ApusDevice
import ApusHost

/// A netdev kind by the name that users know.
public struct NetdevModel: Sendable {
  public var name: String
  public var summary: String
  public var options: [OptionDescription]
  let make: @Sendable (_ id: String, OptionReader, EventLoop) throws -> any Netdev

  /// - Parameters:
  ///   - values: what the user gave, without type and id; repeated options in order.
  ///   - loop: where the netdev works, except `user`, which has a thread of its own.
  /// - Throws: `OptionError` or `NetdevError`.
  public func makeNetdev(id: String, _ values: [OptionReader.Pair], loop: EventLoop) throws -> any Netdev {
    let reader = try OptionReader(owner: "netdev " + name, values, options)
    let netdev = try make(id, reader, loop)
    do { try reader.finish() } catch {
      netdev.close()
      throw error
    }
    return netdev
  }
}

/// All netdev kinds.
public enum NetdevRegistry {
  public static let models: [String: NetdevModel] = Dictionary(
    uniqueKeysWithValues: all.map { ($0.name, $0) })
  public static let all = [user, tap, socket, stream, dgram]

  private static let user = NetdevModel(
    name: "user", summary: "NAT'ed network over the host's sockets", options: UserNetConfiguration.options
  ) { id, reader, _ in try UserNetdev(UserNetConfiguration(id: id, reader)) }

  // MARK: Tap

  private static let tap = NetdevModel(
    name: "tap", summary: "a Linux tap interface",
    options: [
      .init("ifname", .string, default: "tap%d"),
      .init("fd", .integer(0...Int64(Int32.max)), "an open tap descriptor"),
      .init("script", .string, "'no': scripts are not run"), .init("downscript", .string, "'no'"),
      .init("vnet_hdr", .bool, default: "on", "let the host finish checksums and segments"),
      .init("vhost", .bool, default: "off"), .init("vhostforce", .bool, default: "off"),
      .init("queues", .integer(1...256), default: "1"), .init("br", .string),
      .init("helper", .string),
    ]
  ) { id, reader, loop in
    if try reader.bool("vhost") || reader.bool("vhostforce") {
      throw OptionError("netdev tap: vhost=on needs a guest run by KVM; leave vhost out")
    }
    for name in ["script", "downscript"] {
      if let script = reader.given(name), script != "no", !script.isEmpty {
        throw OptionError(
          "netdev tap: scripts are not run; set the interface up beforehand and use \(name)=no")
      }
    }
    if reader.given("helper") != nil || reader.given("br") != nil {
      throw OptionError("netdev tap: helpers and bridges are not implemented; use ifname=")
    }
    if try reader.integer("queues") != 1 { throw OptionError("netdev tap: only queues=1 is implemented") }
    let wantsHeader = try reader.bool("vnet_hdr")
    let descriptor: Int32
    var hasHeader = wantsHeader
    if let number = try reader.integer("fd") {
      guard reader.given("vnet_hdr") == nil else {
        throw OptionError("netdev tap: fd= has its header already; leave vnet_hdr= out")
      }
      descriptor = Int32(number)
      HostSocket.setNonBlocking(descriptor)
      hasHeader = HostTap.hasHeader(descriptor)
    } else {
      do {
        descriptor = try HostTap.open(
          name: reader.string("ifname") ?? "tap%d", headerByteCount: wantsHeader ? 12 : 0
        ).descriptor
      } catch let error as HostError { throw NetdevError(id, error) }
    }
    if hasHeader, !HostTap.setHeaderByteCount(descriptor, 12) {
      throw NetdevError("netdev '\(id)': the tap's header cannot be set to 12 bytes; use vnet_hdr=off")
    }
    return PacketNetdev(
      id: id, kind: "tap", receiver: descriptor, sender: descriptor, isSocket: false,
      headerByteCount: hasHeader ? 12 : 0, sendOffloads: hasHeader ? [.checksum, .tso4, .tso6, .ecn] : [],
      loop: loop)
  }

  // MARK: Sockets

  private static let socket = NetdevModel(
    name: "socket", summary: "another emulator over TCP, UDP or multicast",
    options: [
      .init("listen", .string, "[host]:port"), .init("connect", .string, "host:port"),
      .init("udp", .string, "host:port, with localaddr"), .init("mcast", .string, "group:port"),
      .init("localaddr", .string, "host:port (udp) or address (mcast)"),
    ]
  ) { id, reader, loop in
    let modes = ["listen", "connect", "udp", "mcast"].filter { reader.given($0) != nil }
    guard modes.count == 1, let mode = modes.first, let text = reader.given(mode) else {
      throw OptionError("netdev socket: exactly one of listen=, connect=, udp= and mcast= is needed")
    }
    guard let (host, port) = hostAndPort(text) else { throw reader.invalid(mode, text, "host:port") }
    let local = reader.given("localaddr")
    if local != nil, mode == "listen" || mode == "connect" {
      throw OptionError("netdev socket: localaddr= goes with udp= or mcast=, not with \(mode)=")
    }
    do {
      switch mode {
      case "mcast":
        let sockets = try HostSocket.multicast(group: host, port: port, interface: local)
        return PacketNetdev(
          id: id, kind: "socket", receiver: sockets.receiver, sender: sockets.sender, isSocket: true,
          loop: loop)
      case "udp":
        guard let local, let (localHost, localPort) = hostAndPort(local) else {
          throw OptionError("netdev socket: udp= needs localaddr=host:port")
        }
        return try datagram(
          id, "socket", .inet(host: localHost, port: localPort), .inet(host: host, port: port), loop)
      default:
        var configuration = StreamNetdev.Configuration(
          address: .inet(host: host, port: port), isServer: mode == "listen")
        (configuration.id, configuration.kind) = (id, "socket")
        return try StreamNetdev(configuration, loop: loop)
      }
    } catch let error as HostError { throw NetdevError(id, error) }
  }

  private static let stream = NetdevModel(
    name: "stream", summary: "frames with lengths over a stream socket",
    options: [
      .init("server", .bool, default: "off"), .init("reconnect", .integer(0...3600), default: "0", "seconds"),
      .init("reconnect-ms", .integer(0...3_600_000), "milliseconds"),
    ] + addressOptions("addr")
  ) { id, reader, loop in
    guard let address = try address("addr", reader, "stream") else {
      throw OptionError(
        "netdev stream: addr.type= is needed: inet with addr.host and addr.port, or unix with addr.path")
    }
    var configuration = StreamNetdev.Configuration(address: address, isServer: try reader.bool("server"))
    configuration.id = id
    for key in ["reconnect", "reconnect-ms"] where reader.given(key) != nil && configuration.isServer {
      throw OptionError("netdev stream: \(key)= is for clients; leave it out with server=on")
    }
    guard reader.given("reconnect") == nil || reader.given("reconnect-ms") == nil else {
      throw OptionError("netdev stream: reconnect= and reconnect-ms= are the same; give one")
    }
    let seconds = try reader.integer("reconnect") ?? 0
    configuration.reconnectMilliseconds = UInt64(try reader.integer("reconnect-ms") ?? seconds * 1000)
    return try StreamNetdev(configuration, loop: loop)
  }

  private static let dgram = NetdevModel(
    name: "dgram", summary: "frames as datagrams", options: addressOptions("local") + addressOptions("remote")
  ) { id, reader, loop in
    let local = try address("local", reader, "dgram")
    let remote = try address("remote", reader, "dgram")
    do { return try datagram(id, "dgram", local, remote, loop) } catch let error as HostError {
      throw NetdevError(id, error)
    }
  }

  private static func datagram(
    _ id: String, _ kind: String, _ local: HostSocketAddress?, _ remote: HostSocketAddress?, _ loop: EventLoop
  ) throws(HostError) -> PacketNetdev {
    let descriptor = try HostSocket.datagram(local: local, remote: remote)
    return PacketNetdev(
      id: id, kind: kind, receiver: descriptor, sender: descriptor, isSocket: true, loop: loop)
  }

  private static func addressOptions(_ prefix: String) -> [OptionDescription] {
    [
      .init(prefix + ".type", .choice(["inet", "unix"])), .init(prefix + ".host", .string),
      .init(prefix + ".port", .integer(0...65535)), .init(prefix + ".path", .string),
    ]
  }
  private static func address(_ prefix: String, _ reader: OptionReader, _ kind: String) throws(OptionError)
    -> HostSocketAddress?
  {
    guard let type = try reader.choice(prefix + ".type") else { return nil }
    if type == "unix" {
      guard let path = reader.given(prefix + ".path") else {
        throw OptionError("netdev \(kind): \(prefix).type=unix needs \(prefix).path=")
      }
      return .unix(path: path)
    }
    guard let port = try reader.integer(prefix + ".port") else {
      throw OptionError("netdev \(kind): \(prefix).type=inet needs \(prefix).port=")
    }
    return .inet(host: reader.given(prefix + ".host") ?? "", port: UInt16(clamping: port))
  }

  /// Splits `host:port`; the host may be empty or an IPv6 address in brackets.
  private static func hostAndPort(_ text: String) -> (String, UInt16)? {
    guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else {
      return nil
    }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
    return (String(host), port)
  }
}
