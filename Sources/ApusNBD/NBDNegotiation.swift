import ApusHost

/// The client's side of the fixed newstyle negotiation.
struct NBDNegotiation {
  private(set) var byteCount: UInt64 = 0
  private(set) var flags: UInt16 = 0
  private(set) var hasStructuredReplies = false
  private(set) var hasExtendedHeaders = false
  /// The number of the context that block status is asked for, if the server has it.
  private(set) var context: UInt32?
  private(set) var minimumBlock: UInt32?
  private(set) var preferredBlock: UInt32?
  private(set) var maximumBlock: UInt32?
  private(set) var description = ""
  /// What the server said when it refused the export.
  private(set) var refusal: String?
  private let omitsZeroes: Bool

  private struct Reply {
    var type: UInt32
    var data: NBDBytes
    var isError: Bool { type >> 31 != 0 }
    var text: String { String(decoding: data.bytes, as: UTF8.self) }
  }

  /// - Parameter tls: the connection has to be encrypted before anything is asked.
  init(_ stream: NBDStream, tls: TLSCredentials? = nil, hostName: String? = nil) throws(HostError) {
    guard var greeting = try stream.receive(18), greeting.take(UInt64.self) == NBD.magic,
      greeting.take(UInt64.self) == NBD.optionMagic, let server = greeting.take(UInt16.self), server & 1 != 0
    else {
      throw HostError("talk to the NBD server: it does not speak the fixed newstyle protocol", errno: 71)
    }
    omitsZeroes = server & 2 != 0
    var answer = NBDBytes()
    answer.append(UInt32(omitsZeroes ? 3 : 1))
    try stream.send(answer)
    guard let tls else { return }
    try send(stream, NBD.Option.startTLS)
    let reply = try receive(stream, NBD.Option.startTLS)
    guard reply.type == NBD.Reply.ack else {
      throw HostError(
        "start TLS: the NBD server refused it\(reply.text.isEmpty ? "" : ": " + reply.text)", errno: 71)
    }
    try stream.startTLS(tls, hostName: hostName)
  }

  private func send(_ stream: NBDStream, _ option: UInt32, _ data: NBDBytes = NBDBytes()) throws(HostError) {
    var message = NBDBytes()
    message.append(NBD.optionMagic)
    message.append(option)
    message.append(UInt32(data.bytes.count))
    message.bytes += data.bytes
    try stream.send(message)
  }

  private func receive(_ stream: NBDStream, _ option: UInt32) throws(HostError) -> Reply {
    guard var head = try stream.receive(20), head.take(UInt64.self) == NBD.optionReplyMagic,
      head.take(UInt32.self) == option, let type = head.take(UInt32.self),
      let length = head.take(UInt32.self),
      length <= 1 << 20, let data = try stream.receive(Int(length))
    else { throw HostError("understand the NBD server's answer to option \(option)", errno: 71) }
    return Reply(type: type, data: data)
  }

  private mutating func askForStructuredReplies(_ stream: NBDStream) throws(HostError) {
    try send(stream, NBD.Option.structuredReply)
    hasStructuredReplies = try receive(stream, NBD.Option.structuredReply).type == NBD.Reply.ack
  }

  /// Asks for contexts; returns the names and numbers granted.
  private func contexts(_ stream: NBDStream, _ option: UInt32, _ export: String, _ queries: [String])
    throws(HostError)
    -> [(String, UInt32)]
  {
    var data = NBDBytes()
    data.append(UInt32(export.utf8.count))
    data.append(export)
    data.append(UInt32(queries.count))
    for query in queries {
      data.append(UInt32(query.utf8.count))
      data.append(query)
    }
    try send(stream, option, data)
    var result: [(String, UInt32)] = []
    while true {
      var reply = try receive(stream, option)
      guard reply.type == NBD.Reply.metaContext else { return result }
      if let number = reply.data.take(UInt32.self), let name = reply.data.takeText(reply.data.bytes.count - 4)
      {
        result.append((name, number))
      }
    }
  }

  /// Takes an export for transmission. `refusal` says why not.
  ///
  /// - Parameter context: what block status is asked for instead of base:allocation.
  mutating func go(_ stream: NBDStream, _ export: String, context wanted: String? = nil) throws(HostError) {
    try send(stream, NBD.Option.extendedHeaders)
    hasExtendedHeaders = try receive(stream, NBD.Option.extendedHeaders).type == NBD.Reply.ack
    if hasExtendedHeaders { hasStructuredReplies = true } else { try askForStructuredReplies(stream) }
    if hasStructuredReplies {
      context = try contexts(stream, NBD.Option.setMetaContext, export, [wanted ?? NBD.baseAllocation]).first?
        .1
    }
    try ask(stream, NBD.Option.go, export)
    if refusal == "", !hasExtendedHeaders {
      // An old server without GO.
      refusal = nil
      try send(stream, NBD.Option.exportName, NBDBytes(Array(export.utf8)))
      guard var answer = try stream.receive(omitsZeroes ? 10 : 134), let size = answer.take(UInt64.self),
        let flags = answer.take(UInt16.self)
      else { throw HostError("open the NBD export", export, errno: 2) }
      (byteCount, self.flags) = (size, flags)
    }
  }

  /// INFO or GO for an export.
  private mutating func ask(_ stream: NBDStream, _ option: UInt32, _ export: String) throws(HostError) {
    var data = NBDBytes()
    data.append(UInt32(export.utf8.count))
    data.append(export)
    data.append(UInt16(2))
    data.append(NBD.Info.blockSize)
    data.append(NBD.Info.description)
    try send(stream, option, data)
    while true {
      var reply = try receive(stream, option)
      if reply.isError {
        refusal =
          reply.type == NBD.Reply.unsupported
          ? ""
          : reply.type == NBD.Reply.needsTLS
            ? "it wants TLS; give tls-creds="
            : reply.text.isEmpty ? "error \(reply.type & 0xffff)" : reply.text
        return
      }
      if reply.type == NBD.Reply.ack { return }
      guard reply.type == NBD.Reply.info else { continue }
      switch reply.data.take(UInt16.self) {
      case NBD.Info.export:
        (byteCount, flags) = (reply.data.take(UInt64.self) ?? 0, reply.data.take(UInt16.self) ?? 0)
      case NBD.Info.blockSize:
        minimumBlock = reply.data.take(UInt32.self)
        preferredBlock = reply.data.take(UInt32.self)
        maximumBlock = reply.data.take(UInt32.self)
      case NBD.Info.description: description = reply.data.takeText(reply.data.bytes.count - 2) ?? ""
      default: break
      }
    }
  }

  /// What the server offers, with what it says about each.
  mutating func list(_ stream: NBDStream) throws(HostError) -> [NBDNode.Listing] {
    try askForStructuredReplies(stream)
    try send(stream, NBD.Option.list)
    var names: [(String, String)] = []
    while true {
      var reply = try receive(stream, NBD.Option.list)
      if reply.type == NBD.Reply.needsTLS {
        throw HostError("list the NBD server's exports: it wants TLS; give --tls-creds", errno: 1)
      }
      guard !reply.isError else { throw HostError("list the NBD server's exports: \(reply.text)", errno: 1) }
      if reply.type == NBD.Reply.ack { break }
      guard reply.type == NBD.Reply.server, let length = reply.data.take(UInt32.self),
        let name = reply.data.takeText(Int(length))
      else { continue }
      names.append((name, reply.data.takeText(reply.data.bytes.count - 4 - Int(length)) ?? ""))
    }
    var result: [NBDNode.Listing] = []
    for (name, text) in names {
      (byteCount, flags, minimumBlock, preferredBlock, maximumBlock) = (0, 0, nil, nil, nil)
      try ask(stream, NBD.Option.info, name)
      let known =
        hasStructuredReplies ? try contexts(stream, NBD.Option.listMetaContext, name, []).map(\.0) : []
      result.append(
        .init(
          name: name, description: text, byteCount: byteCount, flags: flags, minimumBlock: minimumBlock,
          preferredBlock: preferredBlock, maximumBlock: maximumBlock, contexts: known))
    }
    try send(stream, NBD.Option.abort)
    return result
  }
}
