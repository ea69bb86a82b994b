extension CharDevConfiguration {
  static let kinds = ["null", "stdio", "file", "pipe", "pty", "socket"]

  /// Reads the value of `-chardev`: `kind,id=…,…`.
  init(chardev text: String) throws(ConfigurationError) {
    var list = try OptionList(parsing: text, impliedKey: "backend")
    guard let kind = list.take("backend") else {
      throw ConfigurationError("-chardev \(text): the kind is missing")
    }
    guard let id = list.take("id"), !id.isEmpty else {
      throw ConfigurationError("-chardev \(text): id= is missing")
    }
    let what = "-chardev \(kind)"
    let multiplexed = try list.bool("mux", of: what) ?? false
    _ = list.take("mux")
    func path() throws(ConfigurationError) -> String {
      guard let path = list["path"], !path.isEmpty else {
        throw ConfigurationError("\(what): path= is missing")
      }
      return path
    }
    switch kind {
    case "null", "pty":
      try list.check(known: [], of: what)
      self.init(id: id, kind: kind == "pty" ? .pty : .null)
    case "stdio":
      try list.check(known: ["signal"], of: what)
      self.init(id: id, kind: .stdio(signals: try list.bool("signal", of: what) ?? true))
    case "file":
      try list.check(known: ["path", "append"], of: what)
      self.init(id: id, kind: .file(path: try path(), append: try list.bool("append", of: what) ?? false))
    case "pipe":
      try list.check(known: ["path"], of: what)
      self.init(id: id, kind: .pipe(path: try path()))
    case "socket": self.init(id: id, kind: .socket(try Self.socket(list, what)))
    default: throw .unknown("character device", kind, among: Self.kinds)
    }
    isMultiplexed = multiplexed
  }

  private static func socket(_ list: OptionList, _ what: String) throws(ConfigurationError) -> Socket {
    try list.check(known: ["path", "host", "port", "server", "wait", "nodelay", "reconnect"], of: what)
    let address: SocketAddress
    if let path = list["path"] {
      guard list["host"] == nil, list["port"] == nil else {
        throw ConfigurationError(
          "\(what): path= is for a Unix socket, host= and port= for TCP; give one kind")
      }
      address = .unix(path: path)
    } else {
      guard let port = try list.number("port", of: what, in: 0...65535) else {
        throw ConfigurationError("\(what): path= or port= is missing")
      }
      address = .tcp(host: list["host"] ?? "", port: UInt16(port))
    }
    return try socket(address, list, what)
  }

  private static func socket(_ address: SocketAddress, _ list: OptionList, _ what: String)
    throws(ConfigurationError) -> Socket
  {
    var socket = Socket(address: address)
    socket.isServer = try list.bool("server", of: what) ?? false
    socket.waits = try list.bool("wait", of: what) ?? true
    guard socket.isServer || list["wait"] == nil else {
      throw ConfigurationError("\(what): wait= goes with server=on only; leave it out")
    }
    socket.isUndelayed = try list.bool("nodelay", of: what) ?? false
    if case .unix = address, socket.isUndelayed {
      throw ConfigurationError("\(what): nodelay= is for TCP; leave it out")
    }
    if try list.number("reconnect", of: what) ?? 0 != 0 {
      throw ConfigurationError("\(what): reconnect= is not implemented; start the server first")
    }
    return socket
  }

  /// Reads the value of `-serial` (what is not `none` or `chardev:`): `stdio`, `file:PATH`, `tcp:HOST:PORT,…`.
  init(legacy text: String, id: String) throws(ConfigurationError) {
    if text.hasPrefix("mon:") {
      try self.init(legacy: String(text.dropFirst(4)), id: id)
      isMultiplexed = true
      if case .stdio = kind { kind = .stdio(signals: false) }
      return
    }
    let what = "character device '\(text)'"
    func rest(_ prefix: String) throws(ConfigurationError) -> String {
      let rest = String(text.dropFirst(prefix.count))
      guard !rest.isEmpty else { throw ConfigurationError("\(what): the path is missing") }
      return rest
    }
    func parts(_ prefix: String) throws(ConfigurationError) -> (String, OptionList) {
      var list = try OptionList(parsing: try rest(prefix), impliedKey: "address")
      let address = list.take("address") ?? ""
      // The old spelling of wait=off.
      if let flag = list.take("nowait") { list.entries.append(.init("wait", flag == "on" ? "off" : "on")) }
      try list.check(known: ["server", "wait", "nodelay", "reconnect"], of: what)
      return (address, list)
    }
    switch text {
    case "stdio": self.init(id: id, kind: .stdio(signals: true))
    case "null": self.init(id: id, kind: .null)
    case "pty": self.init(id: id, kind: .pty)
    case "vc":
      throw ConfigurationError("\(what): virtual consoles need a display, which there is not yet; try stdio")
    case _ where text.hasPrefix("file:"):
      self.init(id: id, kind: .file(path: try rest("file:"), append: false))
    case _ where text.hasPrefix("pipe:"): self.init(id: id, kind: .pipe(path: try rest("pipe:")))
    case _ where text.hasPrefix("unix:"):
      let (path, list) = try parts("unix:")
      self.init(id: id, kind: .socket(try Self.socket(.unix(path: path), list, what)))
    case _ where text.hasPrefix("tcp:"):
      let (address, list) = try parts("tcp:")
      guard let colon = address.lastIndex(of: ":"), let port = UInt16(address[address.index(after: colon)...])
      else { throw ConfigurationError("\(what): the address must be host:port") }
      var host = address[..<colon]
      if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
      self.init(id: id, kind: .socket(try Self.socket(.tcp(host: String(host), port: port), list, what)))
    default:
      throw .unknown(
        "character device", text,
        among: [
          "stdio", "mon:stdio", "file:PATH", "pipe:PATH", "unix:PATH", "tcp:HOST:PORT", "pty", "null", "none",
          "chardev:ID",
        ])
    }
  }
}
