import ApusDevice

/// An IPv4 address, most significant byte first in the number.
public struct IPv4Address: Hashable, Sendable, CustomStringConvertible {
  public var rawValue: UInt32
  public init(_ rawValue: UInt32) { self.rawValue = rawValue }
  /// Dotted decimal.
  public init?(_ text: some StringProtocol) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 4 else { return nil }
    var value: UInt32 = 0
    for part in parts {
      guard let byte = UInt8(part) else { return nil }
      value = value << 8 | UInt32(byte)
    }
    rawValue = value
  }
  public var description: String {
    (0..<4).map { String(rawValue >> (24 - 8 * UInt32($0)) & 0xff) }.joined(separator: ".")
  }
}

/// `hostfwd=`: connections to a host port go to a guest port.
public struct HostForward: Sendable, Equatable {
  public var isUDP: Bool
  public var hostAddress: IPv4Address
  public var hostPort: UInt16
  /// `nil`: the first address that DHCP gives out.
  public var guestAddress: IPv4Address?
  public var guestPort: UInt16

  /// Parses `[tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport`.
  public init(_ text: String) throws(OptionError) {
    let sides = text.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
    let host = sides[0].split(separator: ":", omittingEmptySubsequences: false)
    let guest = sides.count == 2 ? sides[1].split(separator: ":", omittingEmptySubsequences: false) : []
    let protocols = ["": false, "tcp": false, "udp": true]
    guard host.count == 3, guest.count == 2, let isUDP = protocols[String(host[0])],
      let hostAddress = host[1].isEmpty ? IPv4Address(0) : IPv4Address(host[1]),
      let hostPort = UInt16(host[2]),
      guest[0].isEmpty || IPv4Address(guest[0]) != nil, let guestPort = UInt16(guest[1]), guestPort != 0
    else {
      throw OptionError(
        "hostfwd '\(text)' is not of the form tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport")
    }
    (self.isUDP, self.hostAddress, self.hostPort) = (isUDP, hostAddress, hostPort)
    (guestAddress, self.guestPort) = (IPv4Address(guest[0]), guestPort)
  }
}

/// `guestfwd=`: connections that the guest makes to an address go somewhere on the host.
public struct GuestForward: Sendable, Equatable {
  public enum Target: Sendable, Equatable {
    /// A command, started for each connection.
    case command(String)
    case tcp(host: String, port: UInt16)
    case unix(String)
  }
  /// `nil`: the host's address in the guest's network.
  public var address: IPv4Address?
  public var port: UInt16
  public var target: Target

  /// Parses `[tcp]:[address]:port-target`, target `cmd:command`, `tcp:host:port` or `unix:path`.
  public init(_ text: String) throws(OptionError) {
    let sides = text.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
    let left = sides[0].split(separator: ":", omittingEmptySubsequences: false)
    guard sides.count == 2, left.count == 3, left[0].isEmpty || left[0] == "tcp",
      left[1].isEmpty || IPv4Address(left[1]) != nil, let port = UInt16(left[2]), port != 0,
      let target = Self.parseTarget(sides[1])
    else {
      throw OptionError(
        "guestfwd '\(text)' is not of the form tcp:server:port-target with a target cmd:command, tcp:host:port or "
          + "unix:path")
    }
    (address, self.port, self.target) = (IPv4Address(left[1]), port, target)
  }

  private static func parseTarget(_ text: Substring) -> Target? {
    if text.hasPrefix("cmd:"), text.count > 4 { return .command(String(text.dropFirst(4))) }
    if text.hasPrefix("unix:"), text.count > 5 {
      return text.contains(",") ? nil : .unix(String(text.dropFirst(5)))
    }
    guard text.hasPrefix("tcp:"), !text.contains(",") else { return nil }
    let address = text.dropFirst(4)
    guard let colon = address.lastIndex(of: ":"), let port = UInt16(address[address.index(after: colon)...])
    else { return nil }
    return .tcp(host: String(address[..<colon]), port: port)
  }
}

/// `-netdev user`: addresses as the guest sees them and what is forwarded.
public struct UserNetConfiguration: Sendable {
  public var id = ""
  /// The guest cannot reach the host or beyond, except by forwardings.
  public var isRestricted = false
  public var isIPv4Enabled = true
  public var isIPv6Enabled = true
  public var network = IPv4Address(0x0a00_0200)
  public var mask = IPv4Address(0xffff_ff00)
  public var host = IPv4Address(0x0a00_0202)
  public var dns = IPv4Address(0x0a00_0203)
  public var dhcpStart = IPv4Address(0x0a00_020f)
  public var ipv6Prefix = "fec0::"
  public var ipv6PrefixLength = 64
  public var ipv6Host: String?
  public var ipv6DNS: String?
  public var hostName: String?
  public var domainName: String?
  public var dnsSearch: [String] = []
  public var tftpPath: String?
  public var tftpServerName: String?
  public var bootFile: String?
  public var hostForwards: [HostForward] = []
  public var guestForwards: [GuestForward] = []

  public init() {}

  public static let options: [OptionDescription] = [
    .init("restrict", .bool, default: "off", "the guest reaches nothing but forwardings"),
    .init("ipv4", .bool, default: "on"), .init("ipv6", .bool, default: "on"),
    .init("net", .string, default: "10.0.2.0/24", "network, as address/bits or address/mask"),
    .init("host", .string, "the host's address in that network (default .2)"),
    .init("dns", .string, "the name server's address (default .3)"),
    .init("dhcpstart", .string, "the first address that DHCP gives out (default .15)"),
    .init("ipv6-net", .string, default: "fec0::/64"), .init("ipv6-prefix", .string),
    .init("ipv6-prefixlen", .integer(0...126)), .init("ipv6-host", .string), .init("ipv6-dns", .string),
    .init("hostname", .string), .init("domainname", .string), .init("dnssearch", .string, isRepeatable: true),
    .init("tftp", .string, "directory that the built-in TFTP server shows"),
    .init("tftp-server-name", .string), .init("bootfile", .string),
    .init("hostfwd", .string, isRepeatable: true, "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport"),
    .init("guestfwd", .string, isRepeatable: true, "tcp:server:port-target"),
    .init("smb", .string), .init("smbserver", .string),
  ]

  public init(id: String, _ values: [OptionReader.Pair]) throws(OptionError) {
    let reader = try OptionReader(owner: "netdev user", values, Self.options)
    try self.init(id: id, reader)
    try reader.finish()
  }
  init(id: String, _ reader: OptionReader) throws(OptionError) {
    self.id = id
    for name in ["smb", "smbserver"] where reader.given(name) != nil {
      throw OptionError("netdev user: '\(name)' is not implemented; share files by virtio-9p or over tftp")
    }
    isRestricted = try reader.bool("restrict")
    isIPv4Enabled = try reader.bool("ipv4")
    isIPv6Enabled = try reader.bool("ipv6")
    if let net = reader.given("net") { try setNetwork(net, reader) }
    func address(_ name: String, _ index: UInt32) throws(OptionError) -> IPv4Address {
      guard let text = reader.given(name) else { return IPv4Address(network.rawValue | index) }
      guard let address = IPv4Address(text), address.rawValue & mask.rawValue == network.rawValue else {
        throw reader.invalid(name, text, "an IPv4 address inside \(network)")
      }
      return address
    }
    host = try address("host", 2)
    dns = try address("dns", 3)
    dhcpStart = try address("dhcpstart", 15)
    try readIPv6(reader)
    hostName = reader.given("hostname")
    domainName = reader.given("domainname")
    dnsSearch = reader.all("dnssearch")
    tftpPath = reader.given("tftp")
    tftpServerName = reader.given("tftp-server-name")
    bootFile = reader.given("bootfile")
    for text in reader.all("hostfwd") { hostForwards.append(try HostForward(text)) }
    for text in reader.all("guestfwd") { guestForwards.append(try GuestForward(text)) }
  }

  private mutating func setNetwork(_ text: String, _ reader: OptionReader) throws(OptionError) {
    let parts = text.split(separator: "/", maxSplits: 1)
    guard let first = parts.first, let address = IPv4Address(first) else {
      throw reader.invalid("net", text, "a network such as 10.0.2.0/24")
    }
    var mask: UInt32 = 0xffff_ff00
    if parts.count == 2 {
      if let bits = UInt32(parts[1]), (1...30).contains(bits) {
        mask = ~0 << (32 - bits)
      } else if let dotted = IPv4Address(parts[1]), ~dotted.rawValue & (~dotted.rawValue &+ 1) == 0 {
        mask = dotted.rawValue
      } else {
        throw reader.invalid("net", text, "a network with 1 to 30 mask bits")
      }
    }
    self.mask = IPv4Address(mask)
    network = IPv4Address(address.rawValue & mask)
  }

  private mutating func readIPv6(_ reader: OptionReader) throws(OptionError) {
    if let net = reader.given("ipv6-net") {
      let parts = net.split(separator: "/", maxSplits: 1)
      guard parts.count == 2, let length = Int(parts[1]), (0...126).contains(length) else {
        throw reader.invalid("ipv6-net", net, "a network such as fec0::/64")
      }
      (ipv6Prefix, ipv6PrefixLength) = (String(parts[0]), length)
    }
    if let prefix = reader.given("ipv6-prefix") { ipv6Prefix = prefix }
    if let length = try reader.integer("ipv6-prefixlen") { ipv6PrefixLength = Int(length) }
    ipv6Host = reader.given("ipv6-host")
    ipv6DNS = reader.given("ipv6-dns")
  }
}
