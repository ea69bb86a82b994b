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
    public init(_ address: HostSocketAddress) { self.address = address }

    var certificateName: String? {
      if let hostName { return hostName }
      if case .inet(let host, _) = address { return host }
      return nil
    }
  }

  private let configuration: Configuration
  // SAFETY: what follows is touched with `monitor` held.
  private let monitor = Monitor()
  private var clients: [NBDClient]
  private var turn = 0
  private var isClosed = false
  public let byteCount: UInt64
  private let flags: UInt16
  private let hasStatus: Bool
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

  private func perform(
    _ type: UInt16, _ flags: UInt16, _ offset: UInt64, _ byteCount: UInt64, payload: [IOBuffer] = [],
    into buffers: [IOBuffer] = []
  ) throws(BlockError) -> NBDClient.Waiter {
    while true {
      let client = monitor.withLock {
        turn = (turn + 1) % clients.count
        return clients[turn]
      }
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
    guard fresh.byteCount == byteCount, fresh.flags == flags, fresh.hasStatus == hasStatus else {
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
    try inPieces(offset, byteCount) { (start, count) throws(BlockError) in
      _ = try perform(NBD.Command.trim, 0, start, count)
    }
  }

  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
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
      let count = min(byteCount - done, 1 << 30)
      try body(offset + done, count)
      done += count
    }
  }

  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    if let error = rangeError(offset, byteCount) { throw error }
    let count = min(byteCount, 1 << 31)
    guard hasStatus, count > 0 else {
      return BlockStatus(
        byteCount: byteCount, isZero: false, isData: true, isAllocated: true, hostOffset: offset)
    }
    let waiter = try perform(NBD.Command.blockStatus, NBD.CommandFlag.one, offset, count)
    guard let extent = waiter.extents.first, extent.0 > 0 else {
      throw BlockError(.io, "the NBD server answered a status request with nothing")
    }
    return BlockStatus(
      byteCount: min(UInt64(extent.0), count), isZero: extent.1 & 2 != 0, isData: extent.1 & 1 == 0,
      isAllocated: true,
      hostOffset: offset)
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
