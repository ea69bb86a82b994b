import ApusBlock
import ApusHost
import Synchronization

/// An image on an NBD server (`nbd`).
///
/// Any thread. Requests go to the connections in turn; one that broke is made anew if `reconnectSeconds` allows it.
/// Not modelled: changes of the export's size.
public final class NBDNode: ImageNode, @unchecked Sendable {
  /// An export as a server lists it.
  public struct Listing: Sendable {
    public var name: String
    public var description: String
    public var byteCount: UInt64
    public var flags: UInt16
    public var minimumBlock: UInt32?
    public var preferredBlock: UInt32?
    public var maximumBlock: UInt32?
    public var contexts: [String]
  }

  public struct Configuration: Sendable {
    public var address: HostSocketAddress
    public var export = ""
    public var isReadOnly = false
    public var tls: TLSCredentials?
    /// Whom the server's certificate must name, if it is not the host of `address`.
    public var hostName: String?
    /// Several are used only if the server says that it keeps them consistent.
    public var connectionCount = 1
    /// How long requests wait for a connection that broke to come back; 0: they fail.
    public var reconnectSeconds: UInt64 = 0
    /// How long opening waits for the server.
    public var openSeconds: UInt64 = 0
    /// The context whose flags status requests show, as if they were base:allocation's.
    public var statusContext: String?
    public init(_ address: HostSocketAddress) { self.address = address }

    var certificateName: String? {
      if let hostName { return hostName }
      if case .inet(let host, _) = address { return host }
      return nil
    }
  }

  /// The extents of the last status reply, for the questions that follow at once.
  private struct KnownStatus {
    var start: UInt64 = 0
    var extents: [(byteCount: UInt64, flags: UInt64)] = []
    /// Monotonic nanoseconds: others may write to the export.
    var until: UInt64 = 0
  }

  private let configuration: Configuration
  // SAFETY: what follows is touched with `monitor` held.
  private let monitor = Monitor()
  private var clients: [NBDClient]
  private var turn = 0
  private var isClosed = false
  private var known = KnownStatus()
  public let byteCount: UInt64
  private let flags: UInt16
  private let hasStatus: Bool
  private let hasLongRequests: Bool
  private let maximumBlock: Int

  public var driverName: String { "nbd" }
  public var isReadOnly: Bool { configuration.isReadOnly || flags & NBD.ExportFlag.readOnly != 0 }
  public var transferLimit: Int { maximumBlock }
  public var allocatedByteCount: UInt64 { 0 }

  public init(_ configuration: Configuration) throws(BlockError) {
    self.configuration = configuration
    let first = try Self.connect(configuration, seconds: configuration.openSeconds)
    (byteCount, flags) = (first.byteCount, first.flags)
    (hasStatus, maximumBlock) = (first.hasStatus, first.maximumBlock)
    hasLongRequests = first.hasExtendedHeaders
    clients = [first]
    guard first.flags & NBD.ExportFlag.multiConnection != 0 else { return }
    while clients.count < configuration.connectionCount {
      // A server that takes no more has said so early enough: what there is will do.
      do throws(BlockError) { clients.append(try NBDClient(configuration)) } catch { break }
    }
  }

  /// Connects, again and again for a while.
  private static func connect(_ configuration: Configuration, seconds: UInt64) throws(BlockError) -> NBDClient
  {
    let deadline = HostClock.monotonicNanoseconds() + seconds * 1_000_000_000
    let pause = Monitor()
    while true {
      do throws(BlockError) { return try NBDClient(configuration) } catch {
        let now = HostClock.monotonicNanoseconds()
        // A refusal is final; a server that is not there may come.
        guard now < deadline, error.kind == .io else { throw error }
        let end = min(deadline, now + 200_000_000)
        pause.withLock { while HostClock.monotonicNanoseconds() < end { pause.wait(until: end) } }
      }
    }
  }

  /// Asks a server for its exports.
  public static func list(_ configuration: Configuration) throws(BlockError) -> [Listing] {
    do throws(HostError) {
      let stream = try NBDStream(connectingTo: configuration.address)
      var negotiation = try NBDNegotiation(
        stream, tls: configuration.tls, hostName: configuration.certificateName)
      return try negotiation.list(stream)
    } catch { throw BlockError(error) }
  }

  // MARK: Connections

  private func nextClient() -> NBDClient {
    monitor.withLock {
      turn = (turn + 1) % clients.count
      return clients[turn]
    }
  }

  private func perform(
    _ type: UInt16, _ flags: UInt16, _ offset: UInt64, _ byteCount: UInt64, payload: [IOBuffer] = [],
    into buffers: [IOBuffer] = []
  ) throws(BlockError) -> NBDClient.Waiter {
    while true {
      let client = nextClient()
      do throws(BlockError) {
        return try client.perform(type, flags, offset, byteCount, payload: payload, into: buffers)
      } catch {
        guard client.isBroken, configuration.reconnectSeconds > 0 else { throw error }
        try replace(client)
      }
    }
  }

  /// Makes a connection anew that broke. The first who comes does it; the others find it done.
  private func replace(_ client: NBDClient) throws(BlockError) {
    monitor.lock()
    defer { monitor.unlock() }
    guard !isClosed, let index = clients.firstIndex(where: { $0 === client }) else { return }
    let fresh = try Self.connect(configuration, seconds: configuration.reconnectSeconds)
    guard fresh.byteCount == byteCount, fresh.flags == flags, fresh.hasStatus == hasStatus,
      fresh.hasExtendedHeaders == hasLongRequests
    else {
      throw BlockError(.io, "the NBD server came back with another export")
    }
    clients[index] = fresh
  }

  // MARK: ImageNode

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let total = buffers.totalByteCount
    if let error = rangeError(offset, UInt64(total)) { throw error }
    var done = 0
    while done < total {
      let count = min(total - done, maximumBlock)
      let part = count == total ? buffers : buffers.slice(offset: done, count: count)
      _ = try perform(NBD.Command.read, 0, offset + UInt64(done), UInt64(count), into: part)
      done += count
    }
  }

  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let total = buffers.totalByteCount
    if let error = writeError(offset, UInt64(total)) { throw error }
    forgetStatus()
    var done = 0
    while done < total {
      let count = min(total - done, maximumBlock)
      _ = try perform(
        NBD.Command.write, 0, offset + UInt64(done), UInt64(count),
        payload: buffers.slice(offset: done, count: count))
      done += count
    }
  }

  public func flush() throws(BlockError) {
    if isReadOnly || flags & NBD.ExportFlag.flush == 0 { return }
    _ = try perform(NBD.Command.flush, 0, 0, 0)
  }

  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    guard flags & NBD.ExportFlag.trim != 0 else { return }
    forgetStatus()
    try inPieces(offset, byteCount) { (start, count) throws(BlockError) in
      _ = try perform(NBD.Command.trim, 0, start, count)
    }
  }

  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    forgetStatus()
    if flags & NBD.ExportFlag.writeZeroes != 0 {
      return try inPieces(offset, byteCount) { (start, count) throws(BlockError) in
        _ = try perform(NBD.Command.writeZeroes, mayUnmap ? 0 : NBD.CommandFlag.noHole, start, count)
      }
    }
    let chunk = HostBuffer(byteCount: Int(min(byteCount, 1 << 20)))
    var done: UInt64 = 0
    while done < byteCount {
      let count = min(byteCount - done, UInt64(chunk.byteCount))
      try write(at: offset + done, from: [chunk.io(0, Int(count))])
      done += count
    }
  }

  private func inPieces(
    _ offset: UInt64, _ byteCount: UInt64, _ body: (UInt64, UInt64) throws(BlockError) -> Void
  )
    throws(BlockError)
  {
    var done: UInt64 = 0
    while done < byteCount {
      // Lengths have 64 bits with extended headers only.
      let count = min(byteCount - done, hasLongRequests ? 1 << 62 : 1 << 30)
      try body(offset + done, count)
      done += count
    }
  }

  // MARK: Transfers that keep no thread

  /// A request may have to wait until the server takes it.
  public var transferStart: TransferStart { configuration.reconnectSeconds == 0 ? .mayWait : .unsupported }

  public func startTransfer(_ transfer: NodeTransfer) -> Bool {
    let total = transfer.buffers.totalByteCount
    guard configuration.reconnectSeconds == 0, total > 0, total <= maximumBlock,
      (transfer.isWrite ? writeError : rangeError)(transfer.offset, UInt64(total)) == nil
    else { return false }
    if transfer.isWrite { forgetStatus() }
    let waiter = NBDClient.Waiter(
      transfer.isWrite ? [] : transfer.buffers, transfer.offset, completion: transfer.completion)
    do throws(BlockError) {
      try nextClient().start(
        waiter, transfer.isWrite ? NBD.Command.write : NBD.Command.read, 0, transfer.offset, UInt64(total),
        payload: transfer.isWrite ? transfer.buffers : [])
    } catch { transfer.completion(error) }
    return true
  }

  // MARK: Status

  private func forgetStatus() { monitor.withLock { known.extents = [] } }

  /// What the last reply says of an offset, if it is recent.
  private func knownStatus(_ offset: UInt64) -> (byteCount: UInt64, flags: UInt64)? {
    monitor.withLock {
      guard !known.extents.isEmpty, offset >= known.start, HostClock.monotonicNanoseconds() < known.until
      else {
        return nil
      }
      while let first = known.extents.first {
        if offset < known.start + first.byteCount {
          return (known.start + first.byteCount - offset, first.flags)
        }
        known.start += first.byteCount
        known.extents.removeFirst()
      }
      return nil
    }
  }

  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    if let error = rangeError(offset, byteCount) { throw error }
    guard hasStatus, byteCount > 0 else {
      return BlockStatus(
        byteCount: byteCount, isZero: false, isData: true, isAllocated: true, hostOffset: offset)
    }
    let found: (byteCount: UInt64, flags: UInt64)
    if let recent = knownStatus(offset) {
      found = recent
    } else {
      let count = min(byteCount, hasLongRequests ? .max : 1 << 31)
      let waiter = try perform(NBD.Command.blockStatus, 0, offset, count)
      guard let extent = waiter.extents.first, waiter.extents.allSatisfy({ $0.byteCount > 0 }),
        waiter.extents.reduce(
          0, { $0.addingReportingOverflow($1.byteCount).overflow ? .max : $0 + $1.byteCount })
          <= 1 << 63
      else { throw BlockError(.io, "the NBD server answered a status request with nothing or with nonsense") }
      found = extent
      monitor.withLock {
        known = KnownStatus(
          start: offset, extents: waiter.extents, until: HostClock.monotonicNanoseconds() + 1_000_000_000)
      }
    }
    let (isHole, isZero) = (found.flags & 1 != 0, found.flags & 2 != 0)
    // Another context's bits mean other things: its users want to tell all four cases apart.
    let isAllocated = configuration.statusContext == nil || isZero || !isHole
    return BlockStatus(
      byteCount: min(found.byteCount, byteCount), isZero: isZero, isData: !isHole, isAllocated: isAllocated,
      hostOffset: isAllocated ? offset : nil)
  }

  public func close() throws(BlockError) {
    let isFirst = monitor.withLock {
      defer { isClosed = true }
      return !isClosed
    }
    guard isFirst else { return }
    let clients = monitor.withLock { self.clients }
    do throws(BlockError) { try flush() } catch {
      for client in clients { client.close() }
      throw error
    }
    for client in clients { client.close() }
  }
}
