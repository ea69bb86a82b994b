import ApusHost
import Synchronization

/// A netdev over a byte stream: each frame follows its length, 32 bits, most significant byte first (`stream`,
/// `socket,listen=` and `socket,connect=`).
///
/// All work runs on the event loop it was given. One connection at a time: while it stands, no other is accepted;
/// when it ends, the listener accepts again, or the client connects again if it was told to. Without a connection
/// frames of the guest are lost, as on a pulled cable.
public final class StreamNetdev: Netdev {
  public struct Configuration: Sendable {
    public var id = ""
    public var kind = "stream"
    public var address: HostSocketAddress
    public var isServer: Bool
    /// 0: never.
    public var reconnectMilliseconds: UInt64 = 0
    public init(address: HostSocketAddress, isServer: Bool) {
      (self.address, self.isServer) = (address, isServer)
    }
  }
  private struct State {
    var peer: (any NetworkPeer)?
    var listener: Int32?
    var connection: Int32?
    /// Bytes received that make no whole frame yet, or that the guest has no room for.
    var input: [UInt8] = []
    var isInputBlocked = false
    /// The rest of a frame that went out in part.
    var output: [UInt8] = []
    var hasRefusedSend = false
    var isClosed = false
  }
  public var id: String { configuration.id }
  public var kind: String { configuration.kind }
  private let configuration: Configuration
  private let loop: EventLoop
  private let state = Mutex(State())
  // What a 64 KiB packet with headers needs; longer claims end the connection.
  private static let frameByteLimit = 65536 + 64

  public init(_ configuration: Configuration, loop: EventLoop) throws(NetdevError) {
    (self.configuration, self.loop) = (configuration, loop)
    do throws(HostError) {
      if configuration.isServer {
        let listener = try HostSocket.listen(configuration.address)
        state.withLock { $0.listener = listener }
        loop.add(listener, .read) { [weak self] _ in self?.accept() }
        return
      }
      adopt(try HostSocket.connect(configuration.address))
    } catch {
      guard configuration.reconnectMilliseconds > 0 else { throw NetdevError(configuration.id, error) }
      scheduleReconnect()
    }
  }

  deinit { close() }

  /// The TCP port that the listener got.
  public var localPort: UInt16? { state.withLock { $0.listener }.flatMap { HostSocket.localPort($0) } }

  // MARK: Connections

  private func accept() {
    let (listener, isBusy) = state.withLock { ($0.listener, $0.connection != nil) }
    guard let listener, let connection = HostSocket.accept(listener) else { return }
    if isBusy { HostSocket.close(connection) } else { adopt(connection) }
  }

  private func adopt(_ connection: Int32) {
    let isOpen = state.withLock { state in
      guard !state.isClosed else { return false }
      state.connection = connection
      state.input = []
      state.output = []
      state.isInputBlocked = false
      return true
    }
    guard isOpen else { return HostSocket.close(connection) }
    loop.add(connection, .read) { [weak self] ready in self?.ready(ready) }
    state.withLock { $0.peer }?.linkChanged(isUp: true)
  }

  private func disconnect() {
    let (connection, peer, wasRefused) = state.withLock { state in
      defer {
        state.connection = nil
        state.output = []
        state.hasRefusedSend = false
      }
      return (state.connection, state.peer, state.hasRefusedSend)
    }
    guard let connection else { return }
    loop.remove(connection)
    HostSocket.close(connection)
    // Frames that wait for this connection go the way of the later ones.
    if wasRefused { peer?.sendReady() }
    if !configuration.isServer, configuration.reconnectMilliseconds > 0 { scheduleReconnect() }
  }

  private func scheduleReconnect() {
    let deadline = HostClock.monotonicNanoseconds() + configuration.reconnectMilliseconds * 1_000_000
    loop.schedule(at: deadline) { [weak self] in
      guard let self, !state.withLock({ $0.isClosed }) else { return }
      do throws(HostError) { adopt(try HostSocket.connect(configuration.address)) } catch {
        scheduleReconnect()
      }
    }
  }

  // MARK: Netdev

  public func attach(_ peer: any NetworkPeer) {
    state.withLock { $0.peer = peer }
    post { [weak self] in self?.deliver() }
  }
  public func post(_ body: @escaping @Sendable () -> Void) { loop.post(body) }
  public func resumeReceiving() {
    state.withLock { $0.isInputBlocked = false }
    deliver()
  }

  public func close() {
    let (listener, connection) = state.withLock { state in
      defer {
        state.listener = nil
        state.connection = nil
        state.isClosed = true
        state.peer = nil
      }
      return (state.listener, state.connection)
    }
    for descriptor in [listener, connection] {
      guard let descriptor else { continue }
      loop.remove(descriptor)
      HostSocket.close(descriptor)
    }
    if listener != nil, case .unix(let path) = configuration.address { removeFile(path) }
  }

  // MARK: Transfers

  private func ready(_ ready: EventLoop.Interest) {
    if ready.contains(.write) { flushOutput() }
    if !ready.intersection([.read, .hangUp]).isEmpty { readInput() }
  }

  private func updateInterest() {
    let (connection, isBlocked, hasOutput) = state.withLock {
      ($0.connection, $0.isInputBlocked, !$0.output.isEmpty)
    }
    guard let connection else { return }
    var interest: EventLoop.Interest = isBlocked ? [] : .read
    if hasOutput { interest.insert(.write) }
    loop.modify(connection, interest)
  }

  private func readInput() {
    guard let connection = state.withLock({ $0.isInputBlocked ? nil : $0.connection }) else { return }
    let result = withUnsafeTemporaryAllocation(byteCount: 65536, alignment: 16) { buffer in
      let result = HostSocket.receive(connection, into: buffer)
      if case .count(let count) = result {
        state.withLock {
          $0.input += UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(buffer)[..<count])
        }
      }
      return result
    }
    switch result {
    case .count: deliver()
    case .wouldBlock: break
    case .ended, .failed: disconnect()
    }
  }

  /// Hands whole frames to the guest as long as it takes them.
  private func deliver() {
    let (peer, input) = state.withLock { state in
      // Taken out meanwhile: the peer may call back.
      let input = state.input
      state.input = []
      return (state.peer, input)
    }
    var position = 0
    var isBlocked = peer == nil
    while !isBlocked, input.count - position >= 4 {
      let length = (0..<4).reduce(0) { $0 << 8 | Int(input[position + $1]) }
      guard length <= Self.frameByteLimit else { return disconnect() }
      guard input.count - position - 4 >= length else { break }
      let isTaken = input[(position + 4)..<(position + 4 + length)].withUnsafeBytes {
        peer?.receive($0) ?? true
      }
      if isTaken { position += 4 + length } else { isBlocked = true }
    }
    state.withLock { state in
      state.input = Array(input[position...])
      state.isInputBlocked = isBlocked
    }
    updateInterest()
  }

  public func send(_ frame: [IOBuffer]) -> Bool {
    let (connection, isBusy) = state.withLock { state in
      if !state.output.isEmpty { state.hasRefusedSend = true }
      return (state.connection, !state.output.isEmpty)
    }
    guard let connection else { return true }
    if isBusy { return false }
    var length = UInt32(truncatingIfNeeded: frame.totalByteCount).bigEndian
    let result = withUnsafeMutableBytes(of: &length) { prefix -> HostTransfer in
      let all = [IOBuffer(prefix)] + frame
      let result = HostSocket.send(connection, all)
      let sent: Int
      switch result {
      case .count(let count): sent = count
      case .wouldBlock: sent = 0
      case .ended, .failed: return result
      }
      if sent < all.totalByteCount {
        var rest: [UInt8] = []
        for part in all.slice(offset: sent, count: .max) {
          rest += UnsafeRawBufferPointer(start: part.base, count: part.byteCount)
        }
        state.withLock { $0.output = rest }
        updateInterest()
      }
      return result
    }
    switch result {
    case .ended, .failed: disconnect()
    default: break
    }
    return true
  }

  private func flushOutput() {
    let (connection, pending) = state.withLock { ($0.connection, $0.output) }
    guard let connection, !pending.isEmpty else { return updateInterest() }
    var bytes = pending
    switch bytes.withUnsafeMutableBytes({ HostSocket.send(connection, [IOBuffer($0)]) }) {
    case .count(let count):
      let peer: (any NetworkPeer)? = state.withLock { state in
        state.output.removeFirst(count)
        guard state.output.isEmpty, state.hasRefusedSend else { return nil }
        state.hasRefusedSend = false
        return state.peer
      }
      updateInterest()
      peer?.sendReady()
    case .wouldBlock: break
    case .ended, .failed: disconnect()
    }
  }
}
