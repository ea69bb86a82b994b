import ApusBlock
import ApusHost
import Synchronization

/// One connection to an NBD server, in transmission.
///
/// Any thread; requests of several threads share the connection and are answered in any order.
final class NBDClient: @unchecked Sendable {
  final class Waiter {
    let buffers: [IOBuffer]
    /// The export's offset of the first buffer's first byte.
    let startOffset: UInt64
    var extents: [(UInt32, UInt32)] = []
    var failure: BlockError?
    var isDone = false
    /// The connection has ended.
    var isCut = false
    /// For the one who waits: others are not woken.
    let monitor = Monitor()
    init(_ buffers: [IOBuffer], _ startOffset: UInt64) {
      (self.buffers, self.startOffset) = (buffers, startOffset)
    }
  }

  private let stream: NBDStream
  let byteCount: UInt64
  let flags: UInt16
  let hasStatus: Bool
  let maximumBlock: Int
  private let hasStructuredReplies: Bool
  private let sending = Monitor()
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
    do throws(HostError) { try negotiation.go(stream, export) } catch { throw BlockError(error) }
    if let refusal = negotiation.refusal {
      throw BlockError(.invalid, "the NBD server \(address) refused the export '\(export)': \(refusal)")
    }
    (byteCount, flags) = (negotiation.byteCount, negotiation.flags)
    (hasStructuredReplies, hasStatus) = (negotiation.hasStructuredReplies, negotiation.context != nil)
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
    var message = NBDBytes()
    message.append(NBD.requestMagic)
    message.append(UInt16(0))
    message.append(NBD.Command.disconnect)
    message.bytes += [UInt8](repeating: 0, count: 20)
    sending.lock()
    do throws(HostError) { try stream.send(message) } catch {}
    sending.unlock()
    stream.shutDown()
  }

  // MARK: Requests

  func perform(
    _ type: UInt16, _ flags: UInt16, _ offset: UInt64, _ byteCount: UInt64, payload: [IOBuffer] = [],
    into buffers: [IOBuffer] = []
  ) throws(BlockError) -> Waiter {
    let waiter = Waiter(buffers, offset)
    let cookie: UInt64 = monitor.withLock {
      defer { nextCookie += 1 }
      waiters[nextCookie] = waiter
      return nextCookie
    }
    var message = NBDBytes()
    message.append(NBD.requestMagic)
    message.append(flags)
    message.append(type)
    message.append(cookie)
    message.append(offset)
    message.append(UInt32(byteCount))
    sending.lock()
    do throws(HostError) {
      try stream.send(message, payload)
      sending.unlock()
    } catch {
      sending.unlock()
      fail(BlockError(error))
    }
    let isKnown = monitor.withLock { broken == nil }
    waiter.monitor.withLock { while !waiter.isDone && isKnown && !waiter.isCut { waiter.monitor.wait() } }
    monitor.withLock {
      waiters[cookie] = nil
      if !waiter.isDone { waiter.failure = broken }
    }
    if let failure = waiter.failure { throw failure }
    return waiter
  }

  private func fail(_ error: BlockError) {
    let waiting = monitor.withLock {
      if broken == nil { broken = error }
      return Array(waiters.values)
    }
    for waiter in waiting {
      waiter.monitor.withLock {
        waiter.isCut = true
        waiter.monitor.signal()
      }
    }
    stream.shutDown()
  }

  // MARK: Replies

  /// Takes one reply; false when the connection has ended.
  private func receiveReply(_ stream: NBDStream) -> Bool {
    do throws(HostError) {
      guard var head = try stream.receive(16) else {
        fail(BlockError(.io, "the NBD server closed the connection"))
        return false
      }
      let magic = head.take(UInt32.self)
      if magic == NBD.simpleReplyMagic {
        let number = head.take(UInt32.self) ?? 0
        return try receiveSimple(stream, number, head.take(UInt64.self) ?? 0)
      }
      guard magic == NBD.structuredReplyMagic, hasStructuredReplies, var rest = try stream.receive(4) else {
        throw HostError("understand the NBD server's reply", errno: 71)
      }
      let flags = head.take(UInt16.self) ?? 0
      let type = head.take(UInt16.self) ?? 0
      let cookie = head.take(UInt64.self) ?? 0
      return try receiveChunk(stream, flags, type, cookie, Int(rest.take(UInt32.self) ?? 0))
    } catch {
      fail(BlockError(error))
      return false
    }
  }

  private func waiter(_ cookie: UInt64) throws(HostError) -> Waiter {
    guard let waiter = monitor.withLock({ waiters[cookie] }) else {
      throw HostError("understand the NBD server's reply to no request", errno: 71)
    }
    return waiter
  }

  private func finish(_ waiter: Waiter) {
    waiter.monitor.withLock {
      waiter.isDone = true
      waiter.monitor.signal()
    }
  }

  private func receiveSimple(_ stream: NBDStream, _ number: UInt32, _ cookie: UInt64) throws(HostError)
    -> Bool
  {
    let waiter = try waiter(cookie)
    if number != 0 {
      waiter.failure = NBD.error(number, "carry out a request")
    } else {
      for buffer in waiter.buffers where try !stream.receive(buffer) {
        throw HostError("receive data", errno: 104)
      }
    }
    finish(waiter)
    return true
  }

  private func receiveChunk(
    _ stream: NBDStream, _ flags: UInt16, _ type: UInt16, _ cookie: UInt64, _ length: Int
  )
    throws(HostError) -> Bool
  {
    let waiter = try waiter(cookie)
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
    case NBD.Chunk.blockStatus:
      guard var body = try stream.receive(length), body.take(UInt32.self) != nil else {
        throw HostError("understand the NBD server's status", errno: 71)
      }
      while let count = body.take(UInt32.self), let value = body.take(UInt32.self) {
        waiter.extents.append((count, value))
      }
    default:
      guard type & 1 << 15 != 0, var body = try stream.receive(length) else {
        throw HostError("understand a chunk of type \(type)", errno: 71)
      }
      let number = body.take(UInt32.self) ?? NBD.Errno.io
      let text = body.take(UInt16.self).flatMap { body.takeText(Int($0)) } ?? ""
      waiter.failure = NBD.error(number, "carry out a request" + (text.isEmpty ? "" : ": \(text)"))
    }
    if flags & NBD.Chunk.done != 0 { finish(waiter) }
    return true
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
