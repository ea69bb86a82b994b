import ApusBlock
import ApusHost
import Synchronization

/// A client's connection on the server's side.
final class NBDConnection: Sendable {
  /// What the negotiation came to.
  struct Terms {
    var export: NBDExport?
    var hasStructuredReplies = false
    var hasExtendedHeaders = false
    var omitsZeroes = false
    /// Numbers of the export's contexts that block status answers for.
    var contexts: [Int] = []
    var contextExport: String?
  }

  private static let threadsPerConnection = 4
  let stream: NBDStream
  private let exports: [NBDExport]
  private let receiving = Monitor()
  private let sending = Monitor()
  private let hasEnded = Atomic<Bool>(false)

  private let tls: TLSCredentials?

  init(_ stream: HostStream, _ exports: [NBDExport], tls: TLSCredentials? = nil) {
    (self.stream, self.exports, self.tls) = (NBDStream(stream), exports, tls)
  }

  func cut() { stream.shutDown() }

  /// Negotiates and serves; returns whether the client got to an export.
  func serve() -> Bool {
    defer { stream.shutDown() }
    do throws(HostError) {
      guard let terms = try negotiate(), let export = terms.export else { return false }
      transmit(terms, export)
      return true
    } catch { return false }
  }

  /// Serves a client that knows the export already: no negotiation, simple replies.
  func serve(agreed export: NBDExport) {
    transmit(Terms(), export)
    stream.shutDown()
  }

  private func transmit(_ terms: Terms, _ export: NBDExport) {
    let threads = (1..<Self.threadsPerConnection).map { _ in
      HostThread.spawn("nbd-worker") { [self] in answer(terms, export) }
    }
    answer(terms, export)
    for thread in threads { thread.join() }
  }

  // MARK: Negotiation

  private func negotiate() throws(HostError) -> Terms? {
    var greeting = NBDBytes()
    greeting.append(NBD.magic)
    greeting.append(NBD.optionMagic)
    greeting.append(UInt16(3))
    try stream.send(greeting)
    guard var flags = try stream.receive(4), let value = flags.take(UInt32.self), value & ~3 == 0,
      value & 1 != 0
    else {
      return nil
    }
    var terms = Terms()
    terms.omitsZeroes = value & 2 != 0
    // A client that only asks and never goes on is let go.
    for _ in 0..<1000 {
      guard var head = try stream.receive(16), head.take(UInt64.self) == NBD.optionMagic,
        let option = head.take(UInt32.self), let length = head.take(UInt32.self), length <= 1 << 20,
        let data = try stream.receive(Int(length))
      else { return nil }
      if option == NBD.Option.startTLS {
        guard data.bytes.isEmpty, let tls, !stream.isEncrypted else {
          try refuse(
            option, tls == nil ? NBD.Reply.policy : NBD.Reply.invalid,
            tls == nil ? "this server has no TLS" : "TLS cannot start now")
          continue
        }
        try reply(option, NBD.Reply.ack)
        try stream.startTLS(tls, hostName: nil)
        // What was asked for in the clear does not count.
        let omits = terms.omitsZeroes
        terms = Terms()
        terms.omitsZeroes = omits
        continue
      }
      if tls != nil, !stream.isEncrypted, option != NBD.Option.abort {
        guard option != NBD.Option.exportName else { return nil }
        try refuse(option, NBD.Reply.needsTLS, "this server wants TLS")
        continue
      }
      if option == NBD.Option.exportName {
        // Its answer has no room for an error.
        guard !terms.hasExtendedHeaders else { return nil }
        try sendExport(&terms, String(decoding: data.bytes, as: UTF8.self))
        return terms
      }
      if option == NBD.Option.abort {
        try reply(option, NBD.Reply.ack)
        return nil
      }
      if try answerOption(option, data, &terms) { return terms }
    }
    return nil
  }

  private func find(_ name: String) -> NBDExport? { exports.first { $0.name == name } }

  private func reply(_ option: UInt32, _ type: UInt32, _ data: NBDBytes = NBDBytes()) throws(HostError) {
    var message = NBDBytes()
    message.append(NBD.optionReplyMagic)
    message.append(option)
    message.append(type)
    message.append(UInt32(data.bytes.count))
    message.bytes += data.bytes
    try stream.send(message)
  }

  private func refuse(_ option: UInt32, _ type: UInt32, _ text: String) throws(HostError) {
    try reply(option, type, NBDBytes(Array(text.utf8)))
  }

  private func sendExport(_ terms: inout Terms, _ name: String) throws(HostError) {
    guard let export = find(name) else { return }
    var message = NBDBytes()
    message.append(export.node.byteCount)
    message.append(export.flags(mayFragment: terms.hasStructuredReplies))
    if !terms.omitsZeroes { message.bytes += [UInt8](repeating: 0, count: 124) }
    try stream.send(message)
    terms.export = export
  }

  /// Answers an option; true if transmission begins.
  private func answerOption(_ option: UInt32, _ data: NBDBytes, _ terms: inout Terms) throws(HostError)
    -> Bool
  {
    switch option {
    case NBD.Option.list:
      guard data.bytes.isEmpty else {
        try refuse(option, NBD.Reply.invalid, "the list takes no data")
        return false
      }
      for export in exports {
        var item = NBDBytes()
        item.append(UInt32(export.name.utf8.count))
        item.append(export.name)
        item.append(export.description)
        try reply(option, NBD.Reply.server, item)
      }
      try reply(option, NBD.Reply.ack)
    case NBD.Option.structuredReply, NBD.Option.extendedHeaders:
      guard data.bytes.isEmpty else {
        try refuse(option, NBD.Reply.invalid, "the option takes no data")
        return false
      }
      guard option == NBD.Option.extendedHeaders || !terms.hasExtendedHeaders else {
        try refuse(option, NBD.Reply.extendedHeadersRequired, "extended headers are agreed on")
        return false
      }
      // Chunks' contents are the same with both.
      terms.hasStructuredReplies = true
      if option == NBD.Option.extendedHeaders { terms.hasExtendedHeaders = true }
      try reply(option, NBD.Reply.ack)
    case NBD.Option.listMetaContext, NBD.Option.setMetaContext: try answerContexts(option, data, &terms)
    case NBD.Option.info, NBD.Option.go: return try answerGo(option, data, &terms)
    default: try refuse(option, NBD.Reply.unsupported, "option \(option) is not implemented")
    }
    return false
  }

  private func answerGo(_ option: UInt32, _ data: NBDBytes, _ terms: inout Terms) throws(HostError) -> Bool {
    var data = data
    guard let length = data.take(UInt32.self), let name = data.takeText(Int(length)),
      let count = data.take(UInt16.self)
    else {
      try refuse(option, NBD.Reply.invalid, "the request is too short")
      return false
    }
    var wanted: [UInt16] = []
    for _ in 0..<count { if let item = data.take(UInt16.self) { wanted.append(item) } }
    guard let export = find(name) else {
      try refuse(option, NBD.Reply.unknown, "there is no export '\(name)'")
      return false
    }
    if wanted.contains(NBD.Info.name) { try info(option, NBD.Info.name) { $0.append(export.name) } }
    if wanted.contains(NBD.Info.description), !export.description.isEmpty {
      try info(option, NBD.Info.description) { $0.append(export.description) }
    }
    try info(option, NBD.Info.blockSize) {
      $0.append(UInt32(1))
      $0.append(UInt32(max(4096, min(export.node.clusterByteCount, 65536))))
      $0.append(UInt32(NBD.maximumPayload))
    }
    let structured = terms.hasStructuredReplies
    try info(option, NBD.Info.export) {
      $0.append(export.node.byteCount)
      $0.append(export.flags(mayFragment: structured))
    }
    try reply(option, NBD.Reply.ack)
    guard option == NBD.Option.go else { return false }
    if terms.contextExport != name { terms.contexts = [] }
    terms.export = export
    return true
  }

  private func info(_ option: UInt32, _ type: UInt16, _ fill: (inout NBDBytes) -> Void) throws(HostError) {
    var data = NBDBytes()
    data.append(type)
    fill(&data)
    try reply(option, NBD.Reply.info, data)
  }

  private func answerContexts(_ option: UInt32, _ data: NBDBytes, _ terms: inout Terms) throws(HostError) {
    var data = data
    guard terms.hasStructuredReplies else {
      return try refuse(option, NBD.Reply.invalid, "structured replies come first")
    }
    guard let length = data.take(UInt32.self), let name = data.takeText(Int(length)),
      let count = data.take(UInt32.self)
    else {
      return try refuse(option, NBD.Reply.invalid, "the request is too short")
    }
    guard let export = find(name) else {
      return try refuse(option, NBD.Reply.unknown, "there is no export '\(name)'")
    }
    var queries: [String] = []
    for _ in 0..<min(count, 10000) {
      guard let length = data.take(UInt32.self), let query = data.takeText(Int(length)) else {
        return try refuse(option, NBD.Reply.invalid, "the request is too short")
      }
      queries.append(query)
    }
    let isSet = option == NBD.Option.setMetaContext
    let known = export.contexts
    var selected: [Int] = []
    for (number, context) in known.enumerated() {
      let isWanted = queries.contains { query in
        query == context || (!isSet && (query.hasSuffix(":") && context.hasPrefix(query)))
      }
      if isWanted || (!isSet && queries.isEmpty) { selected.append(number) }
    }
    for number in selected {
      var item = NBDBytes()
      item.append(isSet ? UInt32(number) : 0)
      item.append(known[number])
      try reply(option, NBD.Reply.metaContext, item)
    }
    if isSet { (terms.contexts, terms.contextExport) = (selected, name) }
    try reply(option, NBD.Reply.ack)
  }

  // MARK: Transmission

  private struct Request {
    var flags: UInt16
    var type: UInt16
    var cookie: UInt64
    var offset: UInt64
    var byteCount: UInt64
    var payload: IOBuffer?
  }

  /// A thread's memory for the data of one request after the other.
  private final class Scratch {
    private static let keptByteCount = 4 << 20
    private var kept: HostBuffer?

    /// Room for `byteCount` bytes, until the next call.
    func room(_ byteCount: Int) -> IOBuffer {
      if let kept, kept.byteCount >= byteCount { return kept.io(0, byteCount) }
      // Zeroed: what a driver leaves out must not show what this process had there before.
      let buffer = HostBuffer(byteCount: max(4096, byteCount))
      if byteCount <= Self.keptByteCount { kept = buffer }
      return buffer.io(0, byteCount)
    }
  }

  /// Receives and answers until the connection ends. Several threads at once.
  private func answer(_ terms: Terms, _ export: NBDExport) {
    let head = HostBuffer(byteCount: 32)
    let scratch = Scratch()
    while !hasEnded.load(ordering: .relaxed) {
      receiving.lock()
      let request = hasEnded.load(ordering: .relaxed) ? nil : receive(terms, head, scratch)
      if request == nil { hasEnded.store(true, ordering: .relaxed) }
      receiving.unlock()
      guard let request else { break }
      do throws(HostError) { try answer(request, terms, export, scratch) } catch {
        hasEnded.store(true, ordering: .relaxed)
        stream.shutDown()
      }
    }
  }

  /// The next request with its payload; `nil` at the end. `receiving` held.
  private func receive(_ terms: Terms, _ head: HostBuffer, _ scratch: Scratch) -> Request? {
    do throws(HostError) {
      guard try stream.receive(head.io(0, terms.hasExtendedHeaders ? 32 : 28)) else { return nil }
      let magic = terms.hasExtendedHeaders ? NBD.extendedRequestMagic : NBD.requestMagic
      guard head.big32(0) == magic else { return nil }
      var request = Request(
        flags: head.big16(4), type: head.big16(6), cookie: head.big64(8), offset: head.big64(16),
        byteCount: terms.hasExtendedHeaders ? head.big64(24) : UInt64(head.big32(24)), payload: nil)
      if request.type == NBD.Command.disconnect { return nil }
      // With extended headers a flag tells of a payload, whatever the command makes of it.
      let hasPayload =
        terms.hasExtendedHeaders
        ? request.flags & NBD.CommandFlag.payload != 0 : request.type == NBD.Command.write
      if hasPayload {
        guard request.byteCount <= UInt64(NBD.maximumPayload) else { return nil }
        let buffer = scratch.room(Int(request.byteCount))
        if request.byteCount > 0, try !stream.receive(buffer) { return nil }
        request.payload = buffer
      }
      return request
    } catch { return nil }
  }

  private func answer(
    _ request: Request, _ terms: Terms, _ export: NBDExport, _ scratch: Scratch
  ) throws(HostError) {
    do throws(BlockError) {
      guard (request.payload != nil) == (request.type == NBD.Command.write) else {
        throw BlockError(
          .invalid, "command \(request.type) takes \(request.payload == nil ? "a" : "no") payload")
      }
      if request.type != NBD.Command.flush,
        let error = export.node.rangeError(request.offset, request.byteCount)
      {
        throw request.type == NBD.Command.write || request.type == NBD.Command.writeZeroes
          ? BlockError(.noSpace, error.description) : error
      }
      switch request.type {
      case NBD.Command.read: return try sendRead(request, terms, export, scratch)
      case NBD.Command.blockStatus: return try sendStatus(request, terms, export)
      default: try change(request, export)
      }
    } catch { return try sendError(request, terms, error) }
    try sendReply(request, terms, type: NBD.Chunk.none, NBDBytes(), [])
  }

  private func change(_ request: Request, _ export: NBDExport) throws(BlockError) {
    let isWrite = [NBD.Command.write, NBD.Command.trim, NBD.Command.writeZeroes].contains(request.type)
    if isWrite, export.isReadOnly { throw BlockError(.readOnly, "the export is read-only") }
    switch request.type {
    case NBD.Command.write:
      if let payload = request.payload, request.byteCount > 0 {
        try export.node.write(at: request.offset, from: [payload])
      }
    case NBD.Command.flush: try export.node.flush()
    case NBD.Command.trim: try export.node.discard(at: request.offset, byteCount: request.byteCount)
    case NBD.Command.writeZeroes:
      if request.flags & NBD.CommandFlag.fastZero != 0 { throw BlockError(.unsupported, "zeros may be slow") }
      try export.node.writeZeroes(
        at: request.offset, byteCount: request.byteCount,
        mayUnmap: request.flags & NBD.CommandFlag.noHole == 0)
    case NBD.Command.cache: break
    default: throw BlockError(.invalid, "command \(request.type) is unknown")
    }
    if isWrite, request.flags & NBD.CommandFlag.forceUnitAccess != 0 { try export.node.flush() }
  }

  // MARK: Replies

  private func sendReply(
    _ request: Request, _ terms: Terms, type: UInt16, isDone: Bool = true, _ body: NBDBytes,
    _ payload: [IOBuffer]
  )
    throws(HostError)
  {
    var message = NBDBytes()
    if terms.hasExtendedHeaders || terms.hasStructuredReplies {
      message.append(terms.hasExtendedHeaders ? NBD.extendedReplyMagic : NBD.structuredReplyMagic)
      message.append(isDone ? NBD.Chunk.done : 0)
      message.append(type)
      message.append(request.cookie)
      let length = body.bytes.count + payload.totalByteCount
      if terms.hasExtendedHeaders {
        message.append(request.offset)
        message.append(UInt64(length))
      } else {
        message.append(UInt32(length))
      }
      message.bytes += body.bytes
    } else {
      message.append(NBD.simpleReplyMagic)
      message.append(UInt32(0))
      message.append(request.cookie)
    }
    sending.lock()
    defer { sending.unlock() }
    try stream.send(message, payload)
  }

  private func sendError(_ request: Request, _ terms: Terms, _ error: BlockError) throws(HostError) {
    let number = NBD.errorNumber(error)
    if terms.hasStructuredReplies {
      var body = NBDBytes()
      body.append(number)
      let text = Array(error.description.utf8.prefix(4000))
      body.append(UInt16(text.count))
      body.bytes += text
      return try sendReply(request, terms, type: NBD.Chunk.error, body, [])
    }
    var message = NBDBytes()
    message.append(NBD.simpleReplyMagic)
    message.append(number)
    message.append(request.cookie)
    sending.lock()
    defer { sending.unlock() }
    try stream.send(message)
  }

  /// Reads are answered in one chunk, or in pieces with holes left out.
  private func sendRead(
    _ request: Request, _ terms: Terms, _ export: NBDExport, _ scratch: Scratch
  ) throws(BlockError) {
    guard request.byteCount > 0, request.byteCount <= UInt64(NBD.maximumPayload) else {
      throw BlockError(
        .invalid, "a read of \(request.byteCount) bytes; up to \(NBD.maximumPayload) are possible")
    }
    let mayFragment = terms.hasStructuredReplies && request.flags & NBD.CommandFlag.doNotFragment == 0
    if mayFragment, request.byteCount >= 65536 {
      let found = try export.status(request.offset, request.byteCount)
      if found.status.isZero, found.status.byteCount == request.byteCount {
        var body = NBDBytes()
        body.append(request.offset)
        body.append(UInt32(request.byteCount))
        return try sent { () throws(HostError) in
          try sendReply(request, terms, type: NBD.Chunk.hole, body, [])
        }
      }
    }
    let buffer = scratch.room(Int(request.byteCount))
    try export.node.read(at: request.offset, into: [buffer])
    var body = NBDBytes()
    if terms.hasStructuredReplies { body.append(request.offset) }
    try sent { () throws(HostError) in try sendReply(request, terms, type: NBD.Chunk.data, body, [buffer])
    }
  }

  /// A connection that breaks while an answer is sent ends; there is nobody to tell.
  private func sent(_ body: () throws(HostError) -> Void) throws(BlockError) {
    do throws(HostError) { try body() } catch {
      hasEnded.store(true, ordering: .relaxed)
      stream.shutDown()
    }
  }

  private func sendStatus(_ request: Request, _ terms: Terms, _ export: NBDExport) throws(BlockError) {
    guard !terms.contexts.isEmpty else { throw BlockError(.invalid, "no context was agreed on") }
    guard request.byteCount > 0 else { throw BlockError(.invalid, "a status of nothing") }
    let limit = request.flags & NBD.CommandFlag.one != 0 ? 1 : 2048
    for (index, context) in terms.contexts.enumerated() {
      let extents = try export.extents(context, request.offset, request.byteCount, limit: limit)
      var body = NBDBytes()
      body.append(UInt32(context))
      if terms.hasExtendedHeaders { body.append(UInt32(extents.count)) }
      for extent in extents {
        if terms.hasExtendedHeaders {
          body.append(extent.0)
          body.append(UInt64(extent.1))
        } else {
          body.append(UInt32(truncatingIfNeeded: extent.0))
          body.append(extent.1)
        }
      }
      let isLast = index == terms.contexts.count - 1
      let type = terms.hasExtendedHeaders ? NBD.Chunk.blockStatusExtended : NBD.Chunk.blockStatus
      try sent { () throws(HostError) in try sendReply(request, terms, type: type, isDone: isLast, body, []) }
    }
  }
}
