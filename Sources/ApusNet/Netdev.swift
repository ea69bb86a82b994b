import ApusHost

/// The guest's side of a network connection: a NIC.
///
/// Called on the netdev's own thread.
public protocol NetworkPeer: AnyObject, Sendable {
  /// A frame for the guest, with the netdev's header in front if it has one. False: no room now; the netdev keeps
  /// the frame and offers it again after `resumeReceiving`. The memory is valid during the call only.
  func receive(_ frame: UnsafeRawBufferPointer) -> Bool
  /// The netdev takes frames again, after a `send` that it refused.
  func sendReady()
  /// The cable was plugged in or pulled.
  func linkChanged(isUp: Bool)
}

/// Which unfinished packets may pass between a NIC and its netdev, beside complete ones.
public struct NetworkOffloads: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static let checksum = NetworkOffloads(rawValue: 1)
  public static let tso4 = NetworkOffloads(rawValue: 2)
  public static let tso6 = NetworkOffloads(rawValue: 4)
  public static let ecn = NetworkOffloads(rawValue: 8)
}

/// The host's side of a network connection (`-netdev`).
///
/// A netdev has one thread on which all its work runs: everything posted, `send` and `resumeReceiving` (both to be
/// called there only), and its calls of the peer. `post`, `attach` and `close` may come from any thread.
public protocol Netdev: AnyObject, Sendable {
  var id: String { get }
  /// "user", "tap", "socket", "stream".
  var kind: String { get }
  /// Size of the virtio-net header in front of frames in both directions; 0: bare frames.
  var headerByteCount: Int { get }
  /// What the far end finishes for frames that the guest sends.
  var sendOffloads: NetworkOffloads { get }
  /// Frames from here have right checksums already, so that the guest need not look (no wire in between).
  var deliversValidChecksums: Bool { get }
  /// Sets which unfinished frames the guest takes.
  func setReceiveOffloads(_ offloads: NetworkOffloads)

  /// Connects the NIC and starts delivering to it.
  func attach(_ peer: any NetworkPeer)
  /// Runs `body` on the netdev's thread soon.
  func post(_ body: @escaping @Sendable () -> Void)
  /// Sends one frame. False: not taken; `sendReady` follows. The memory is valid during the call only.
  func send(_ frame: [IOBuffer]) -> Bool
  /// The peer has room again.
  func resumeReceiving()
  func close()
}

extension Netdev {
  public var headerByteCount: Int { 0 }
  public var sendOffloads: NetworkOffloads { [] }
  public var deliversValidChecksums: Bool { false }
  public func setReceiveOffloads(_ offloads: NetworkOffloads) {}
}

/// Frames that wait until the guest has room; at most `limit`, the newest are dropped.
struct FrameQueue {
  static let limit = 256
  private var frames: [[UInt8]] = []
  private var first = 0
  var isEmpty: Bool { first == frames.count }

  mutating func append(_ frame: UnsafeRawBufferPointer) {
    if frames.count - first < Self.limit { frames.append([UInt8](frame)) }
  }
  /// Delivers from the front as long as the peer takes frames; true if all are gone.
  mutating func flush(to peer: any NetworkPeer) -> Bool {
    while first < frames.count {
      guard frames[first].withUnsafeBytes({ peer.receive($0) }) else { return false }
      frames[first] = []
      first += 1
    }
    frames.removeAll(keepingCapacity: true)
    first = 0
    return true
  }
}

/// Why a netdev could not be made.
public struct NetdevError: Error, Equatable, CustomStringConvertible {
  public var description: String
  public init(_ description: String) { self.description = description }
  public init(_ netdev: String, _ error: HostError) { description = "netdev '\(netdev)': \(error)" }
}
