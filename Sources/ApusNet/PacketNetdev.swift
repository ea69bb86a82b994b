import ApusHost
import Synchronization

/// A netdev over descriptors that carry one frame a read or write: tap, UDP, multicast, Unix datagrams.
///
/// All work runs on the event loop it was given. Reading stops while the guest has no room.
public final class PacketNetdev: Netdev {
  private struct State {
    var peer: (any NetworkPeer)?
    var isReading = false
    var isWriteBlocked = false
    var isClosed = false
    /// A frame that the guest had no room for.
    var refused: [UInt8]?
  }
  public let id: String
  public let kind: String
  public let headerByteCount: Int
  public let sendOffloads: NetworkOffloads
  private let loop: EventLoop
  private let receiver: Int32
  private let sender: Int32
  private let isSocket: Bool
  private let state = Mutex(State())
  // A 64 KiB packet with its Ethernet and virtio-net headers.
  private static let frameByteLimit = 65536 + 32

  /// - Parameters:
  ///   - sender: the same as `receiver`, or a descriptor of its own; both belong to the netdev from now on.
  public init(
    id: String, kind: String, receiver: Int32, sender: Int32, isSocket: Bool, headerByteCount: Int = 0,
    sendOffloads: NetworkOffloads = [], loop: EventLoop
  ) {
    (self.id, self.kind, self.receiver, self.sender, self.isSocket) = (id, kind, receiver, sender, isSocket)
    (self.headerByteCount, self.sendOffloads, self.loop) = (headerByteCount, sendOffloads, loop)
  }

  deinit { close() }

  public func setReceiveOffloads(_ offloads: NetworkOffloads) {
    if headerByteCount > 0 { HostTap.setOffload(receiver, offloads.rawValue) }
  }

  public func attach(_ peer: any NetworkPeer) {
    state.withLock { $0.peer = peer }
    post { [weak self] in self?.startReading() }
  }
  public func post(_ body: @escaping @Sendable () -> Void) { loop.post(body) }

  private func startReading() {
    let isFirst = state.withLock { state in
      defer { state.isReading = true }
      return !state.isReading && !state.isClosed
    }
    if isFirst { loop.add(receiver, .read) { [weak self] ready in self?.ready(ready) } }
  }

  private func ready(_ ready: EventLoop.Interest) {
    if ready.contains(.write) {
      let peer = state.withLock { state in
        state.isWriteBlocked = false
        return state.peer
      }
      updateInterest()
      peer?.sendReady()
    }
    if !ready.intersection([.read, .hangUp]).isEmpty { readFrames() }
  }

  private func updateInterest() {
    let (isBlocked, hasRefused) = state.withLock { ($0.isWriteBlocked, $0.refused != nil) }
    var interest: EventLoop.Interest = hasRefused ? [] : .read
    if isBlocked, sender == receiver { interest.insert(.write) }
    loop.modify(receiver, interest)
  }

  private func readFrames() {
    guard let peer = state.withLock({ $0.isClosed || $0.refused != nil ? nil : $0.peer }) else { return }
    withUnsafeTemporaryAllocation(byteCount: Self.frameByteLimit, alignment: 16) { buffer in
      // A bounded turn, so that other users of the loop get theirs.
      for _ in 0..<64 {
        guard case .count(let count) = HostSocket.receive(receiver, into: buffer) else { return }
        let frame = UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(buffer)[..<count])
        if !peer.receive(frame) {
          state.withLock { $0.refused = [UInt8](frame) }
          updateInterest()
          return
        }
      }
    }
  }

  public func resumeReceiving() {
    let (peer, refused) = state.withLock { ($0.peer, $0.refused) }
    guard let peer, let refused else { return }
    guard refused.withUnsafeBytes({ peer.receive($0) }) else { return }
    state.withLock { $0.refused = nil }
    updateInterest()
  }

  public func send(_ frame: [IOBuffer]) -> Bool {
    guard !state.withLock({ $0.isClosed }) else { return true }
    guard HostSocket.send(sender, frame, isSocket: isSocket) == .wouldBlock, sender == receiver else {
      return true
    }
    state.withLock { $0.isWriteBlocked = true }
    updateInterest()
    return false
  }

  public func close() {
    let wasReading: Bool? = state.withLock { state in
      guard !state.isClosed else { return nil }
      state.isClosed = true
      state.peer = nil
      return state.isReading
    }
    guard let wasReading else { return }
    if wasReading { loop.remove(receiver) }
    HostSocket.close(receiver)
    if sender != receiver { HostSocket.close(sender) }
  }
}
