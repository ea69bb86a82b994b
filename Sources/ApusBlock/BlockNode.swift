import ApusHost

/// Why a block request or an open failed.
public struct BlockError: Error, Sendable, Equatable, CustomStringConvertible {
  public enum Kind: Sendable, Equatable {
    /// The host refused the transfer.
    case io
    case noSpace
    case readOnly
    /// Beyond the end of the node.
    case outOfRange
    /// The node cannot do that.
    case unsupported
    /// Someone else uses the image in a way that excludes this use.
    case locked
    /// The file is not what it should be.
    case invalid
  }
  public var kind: Kind
  /// A sentence for the user.
  public var description: String
  public init(_ kind: Kind, _ description: String) { (self.kind, self.description) = (kind, description) }

  public init(_ error: HostError) {
    // ENOSPC 28, EDQUOT 122, EROFS 30: the same numbers on every Linux host.
    let kind: Kind = error.errno == 28 || error.errno == 122 ? .noSpace : error.errno == 30 ? .readOnly : .io
    self.init(kind, error.description)
  }
}

/// Sizes that requests to a node should respect, in bytes.
public struct BlockLimits: Sendable, Equatable {
  /// Offsets and lengths are multiples of this or take a slower way.
  public var requestAlignment = 512
  /// The best granularity of discards; 0: discards do nothing.
  public var discardAlignment = 0
  /// The largest request; 0: no limit.
  public var maximumTransfer = 0
  /// The size of the medium's physical sectors, as far as it is known.
  public var physicalBlockSize = 512
  public init() {}
}

/// A disk image as devices, exports and jobs see it: a node of the block graph.
///
/// Any thread. A request returns at once and calls `completion` once, on any thread (the caller's before it returns,
/// too); buffers stay valid until then. Requests are not ordered among each other: `flush` covers those that
/// completed before it was called. Offsets and lengths are in bytes.
public protocol BlockNode: AnyObject, Sendable {
  typealias Completion = @Sendable (BlockError?) -> Void

  /// The node's name (`node-name=`), or empty.
  var name: String { get }
  /// The driver's name as users know it: "file", "null-co".
  var driverName: String { get }
  /// Present size; a multiple of 512.
  var byteCount: UInt64 { get }
  var isReadOnly: Bool { get }
  var limits: BlockLimits { get }
  /// Whether a volatile write cache is in use, so that `flush` matters (cache=writethrough: false).
  var hasWriteCache: Bool { get }

  func read(offset: UInt64, into buffers: [IOBuffer], completion: @escaping Completion)
  /// - Parameter forceUnitAccess: durable before it completes.
  func write(
    offset: UInt64, from buffers: [IOBuffer], forceUnitAccess: Bool, completion: @escaping Completion)
  /// Makes completed writes durable.
  func flush(completion: @escaping Completion)
  /// Tells that the content of a range is not needed any more; it reads as anything afterwards.
  func discard(offset: UInt64, byteCount: UInt64, completion: @escaping Completion)
  /// Makes a range read as zeros.
  /// - Parameter mayUnmap: the blocks behind it may be given back.
  func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool, completion: @escaping Completion)
  /// Waits for requests under way, flushes, lets go of the host's file. No request may follow.
  func close()
}

extension BlockNode {
  /// Whether `[offset, offset + count)` lies inside the node.
  public func contains(offset: UInt64, count: UInt64) -> Bool {
    let size = byteCount
    return count <= size && offset <= size - count
  }
  /// The error for a range outside the node, `nil` if it is inside.
  func rangeError(_ offset: UInt64, _ count: UInt64) -> BlockError? {
    if contains(offset: offset, count: count) { return nil }
    return BlockError(
      .outOfRange,
      "request for \(count) bytes at 0x\(String(offset, radix: 16)) goes beyond the image's \(byteCount) bytes"
    )
  }
}
