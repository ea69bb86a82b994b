import ApusBlock
import ApusHost
import Synchronization

/// One connection to an NBD server, in transmission.
///
/// Any thread; requests of several threads share the connection and are answered in any order.
final class NBDClient: @unchecked Sendable {
  /// A request under way. Only the receiving thread completes it, so nobody frees its buffers while they are filled.
  final class Waiter: @unchecked Sendable {
    // SAFETY: written by the receiving thread until `isDone` is set with `monitor` held, read by others after that.
    let buffers: [IOBuffer]
    /// The export's offset of the first buffer's first byte.
    let startOffset: UInt64
    var extents: [(byteCount: UInt64, flags: UInt64)] = []
    var failure: BlockError?
    private var isDone = false
    private let completion: (@Sendable (BlockError?) -> Void)?
    /// For the one who waits: others are not woken.
    private let monitor = Monitor()

    init(
      _ buffers: [IOBuffer], _ startOffset: UInt64, completion: (@Sendable (BlockError?) -> Void)? = nil
    ) {
      (self.buffers, self.startOffset, self.completion) = (buffers, startOffset, completion)
    }

    func finish() {
      if let completion { return completion(failure) }
      monitor.withLock {
        isDone = true
        monitor.signal()
      }
    }
    func wait() { monitor.withLock { while !isDone { monitor.wait() } } }
  }

  private let stream: NBDStream
  let byteCount: UInt64
  let flags: UInt16
  let hasStatus: Bool
  let maximumBlock: Int
  private let hasStructuredReplies: Bool
  let hasExtendedHeaders: Bool
  private let sending = Monitor()
  // SAFETY: touched with `sending` held.
  private let requestHead = HostBuffer(byteCount: 32)
  // SAFETY: touched by the receiving thread only.
  private let replyHead = HostBuffer(byteCount: 32)
  // SAFETY: what follows is touched with `monitor` held.
  private let monitor = Monitor()
  private var waiters: [UInt64: Waiter] = [:]
  private var nextCookie: UInt64 = 1
  private var broken: BlockError?
  private var receiver: HostThread?

  init(_ configuration: NBDNode.Configuration) throws(BlockError) {
    let (address, export) = (configuration.address, configuration.export)
    let opened: (NBDStream, NBDNegotiation)
    do throws(HostError) {
      let stream = try NBDStream(connectingTo: address)
      opened = (
        stream, try NBDNegotiation(stream, tls: configuration.tls, hostName: configuration.certificateName)
      )
    } catch { throw BlockError(error) }
    stream = opened.0
    var negotiation = opened.1
    do throws(HostError) {
      try negotiation.go(stream, export, context: configuration.statusContext)
    } catch { throw BlockError(error) }
    if let refusal = negotiation.refusal {
      throw BlockError(.invalid, "the NBD server \(address) refused the export '\(export)': \(refusal)")
    }
    (byteCount, flags) = (negotiation.byteCount, negotiation.flags)
    (hasStructuredReplies, hasStatus) = (negotiation.hasStructuredReplies, negotiation.context != nil)
    hasExtendedHeaders = negotiation.hasExtendedHeaders
    if let wanted = configuration.statusContext, negotiation.context == nil {
      throw BlockError(.invalid, "the NBD server \(address) has no context '\(wanted)' (x-dirty-bitmap=)")
    }
    maximumBlock = max(
      65536, min(Int(negotiation.maximumBlock ?? UInt32(NBD.maximumPayload)), NBD.maximumPayload))
    if !configuration.isReadOnly, flags & NBD.ExportFlag.readOnly != 0 {
      throw BlockError(.readOnly, "the NBD server \(address) offers the export '\(export)' read-only")
    }
    receiver = HostThread.spawn("nbd-receive") { [weak self, stream] in
      while let client = self, client.receiveReply(stream) {}
    }
  }

  /// Whether the connection is of no more use.
  var isBroken: Bool { monitor.withLock { broken != nil } }

  /// Says good-bye; the server may be gone already.
  func close() {
    sending.lock()
    fillHead(NBD.Command.disconnect, 0, 0, 0, 0)
    do throws(HostError) { try stream.send([requestHead.io(0, hasExtendedHeaders ? 32 : 28)]) } catch {}
    sending.unlock()
    stream.shutDown()
  }

  // MARK: Requests

  /// Carries a request out; blocks until it is answered.
  func perform(
    _ type: UInt16, _ flags: UInt16, _ offset: UInt64, _ byteCount: UInt64, payload: [IOBuffer] = [],
    into buffers: [IOBuffer] = []
  ) throws(BlockError) -> Waiter {
    let waiter = Waiter(buffers, offset)
    try start(waiter, type, flags, offset, byteCount, payload: payload)
    waiter.wait()
    if let failure = waiter.failure { throw failure }
    return waiter
  }

  /// Sends a request. The waiter is told of the answer, unless this throws.
  func start(
    _ waiter: Waiter, _ type: UInt16, _ flags: UInt16, _ offset: UInt64, _ byteCount: UInt64,
    payload: [IOBuffer] = []
  ) throws(BlockError) {
    let (cookie, failure): (UInt64, BlockError?) = monitor.withLock {
      if let broken { return (0, broken) }
      defer { nextCookie += 1 }
      waiters[nextCookie] = waiter
      return (nextCookie, nil)
    }
    if let failure { throw failure }
    sending.lock()
    defer { sending.unlock() }
    fillHead(type, flags, cookie, offset, byteCount)
    do throws(HostError) {
      try stream.send([requestHead.io(0, hasExtendedHeaders ? 32 : 28)] + payload)
    } catch {
      // The receiving thread finds the connection at its end, and answers for all.
      breakOff(BlockError(error))
    }
  }

  /// Makes the head of a request. `sending` held.
  private func fillHead(
    _ type: UInt16, _ flags: UInt16, _ cookie: UInt64, _ offset: UInt64, _ byteCount: UInt64
  ) {
    let hasPayload = hasExtendedHeaders && type == NBD.Command.write
    requestHead.setBig(0, hasExtendedHeaders ? NBD.extendedRequestMagic : NBD.requestMagic)
    requestHead.setBig(4, hasPayload ? flags | NBD.CommandFlag.payload : flags)
    requestHead.setBig(6, type)
    requestHead.setBig(8, cookie)
    requestHead.setBig(16, offset)
    if hasExtendedHeaders {
      requestHead.setBig(24, byteCount)
    } else {
      requestHead.setBig(24, UInt32(byteCount))
    }
  }

  private func breakOff(_ error: BlockError) {
    monitor.withLock { if broken == nil { broken = error } }
    stream.shutDown()
  }

  // MARK: Replies

  /// Takes one reply; false when the connection has ended.
  private func receiveReply(_ stream: NBDStream) -> Bool {
    do throws(HostError) {
      if try receiveHead(stream) { return true }
      breakOff(BlockError(.io, "the NBD server closed the connection"))
    } catch { breakOff(BlockError(error)) }
    let (left, failure) = monitor.withLock {
      defer { waiters.removeAll() }
      return (Array(waiters.values), broken)
    }
    for waiter in left {
      waiter.failure = failure
      waiter.finish()
    }
    return false
  }

  /// Takes a reply's head and what follows; false at the stream's end.
  private func receiveHead(_ stream: NBDStream) throws(HostError) -> Bool {
    let head = replyHead
    guard try stream.receive(head.io(0, hasExtendedHeaders ? 32 : 16)) else { return false }
    switch head.big32(0) {
    case NBD.simpleReplyMagic where !hasExtendedHeaders:
      try receiveSimple(stream, head.big32(4), head.big64(8))
    case NBD.structuredReplyMagic where hasStructuredReplies && !hasExtendedHeaders:
      guard try stream.receive(head.io(16, 4)) else { return false }
      try receiveChunk(stream, head.big16(4), head.big16(6), head.big64(8), Int(head.big32(16)))
    case NBD.extendedReplyMagic where hasExtendedHeaders:
      try receiveChunk(
        stream, head.big16(4), head.big16(6), head.big64(8), Int(clamping: head.big64(24)),
        offset: head.big64(16))
    default: throw HostError("understand the NBD server's reply", errno: 71)
    }
    return true
  }

  private func waiter(_ cookie: UInt64) throws(HostError) -> Waiter {
    guard let waiter = monitor.withLock({ waiters[cookie] }) else {
      throw HostError("understand the NBD server's reply to no request", errno: 71)
    }
    return waiter
  }

  private func finish(_ waiter: Waiter, _ cookie: UInt64) {
    monitor.withLock { waiters[cookie] = nil }
    waiter.finish()
  }

  private func receiveSimple(_ stream: NBDStream, _ number: UInt32, _ cookie: UInt64) throws(HostError) {
    let waiter = try waiter(cookie)
    if number != 0 {
      waiter.failure = NBD.error(number, "carry out a request")
    } else {
      for buffer in waiter.buffers where try !stream.receive(buffer) {
        throw HostError("receive data", errno: 104)
      }
    }
    finish(waiter, cookie)
  }

  private func receiveChunk(
    _ stream: NBDStream, _ flags: UInt16, _ type: UInt16, _ cookie: UInt64, _ length: Int,
    offset: UInt64? = nil
  ) throws(HostError) {
    let waiter = try waiter(cookie)
    guard offset ?? waiter.startOffset == waiter.startOffset else {
      throw HostError("understand the NBD server's reply with another request's offset", errno: 71)
    }
    guard length <= NBD.maximumPayload + 16 else {
      throw HostError("take an NBD reply of \(length) bytes", errno: 71)
    }
    switch type {
    case NBD.Chunk.none: _ = try stream.receive(length)
    case NBD.Chunk.data:
      guard length >= 8, var start = try stream.receive(8), let offset = start.take(UInt64.self) else {
        throw HostError("understand the NBD server's data", errno: 71)
      }
      for buffer in try target(waiter, offset, length - 8) where try !stream.receive(buffer) {
        throw HostError("receive data", errno: 104)
      }
    case NBD.Chunk.hole:
      guard var body = try stream.receive(length), let offset = body.take(UInt64.self),
        let count = body.take(UInt32.self)
      else {
        throw HostError("understand the NBD server's hole", errno: 71)
      }
      for buffer in try target(waiter, offset, Int(count)) { buffer.clear() }
    case NBD.Chunk.blockStatusExtended where hasExtendedHeaders:
      guard var body = try stream.receive(length), body.take(UInt32.self) != nil,
        body.take(UInt32.self) != nil
      else {
        throw HostError("understand the NBD server's status", errno: 71)
      }
      while let count = body.take(UInt64.self), let value = body.take(UInt64.self) {
        waiter.extents.append((count, value))
      }
    case NBD.Chunk.blockStatus where !hasExtendedHeaders:
      guard var body = try stream.receive(length), body.take(UInt32.self) != nil else {
        throw HostError("understand the NBD server's status", errno: 71)
      }
      while let count = body.take(UInt32.self), let value = body.take(UInt32.self) {
        waiter.extents.append((UInt64(count), UInt64(value)))
      }
    default:
      guard type & 1 << 15 != 0, var body = try stream.receive(length) else {
        throw HostError("understand a chunk of type \(type)", errno: 71)
      }
      let number = body.take(UInt32.self) ?? NBD.Errno.io
      let text = body.take(UInt16.self).flatMap { body.takeText(Int($0)) } ?? ""
      waiter.failure = NBD.error(number, "carry out a request" + (text.isEmpty ? "" : ": \(text)"))
    }
    if flags & NBD.Chunk.done != 0 { finish(waiter, cookie) }
  }

  /// The waiter's buffers for bytes at the export's `offset`.
  private func target(_ waiter: Waiter, _ offset: UInt64, _ count: Int) throws(HostError) -> [IOBuffer] {
    let start = Int(clamping: offset &- waiter.startOffset)
    let total = waiter.buffers.totalByteCount
    guard offset >= waiter.startOffset, count <= total, start <= total - count else {
      throw HostError("take NBD data that nobody asked for", errno: 71)
    }
    return waiter.buffers.slice(offset: start, count: count)
  }
}
