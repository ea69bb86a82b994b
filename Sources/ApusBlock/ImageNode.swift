import ApusHost

/// What is known about a range of an image without reading it.
public struct BlockStatus: Sendable, Equatable {
  /// How many bytes from the asked offset on this holds for; above zero.
  public var byteCount: UInt64
  /// The range reads as zeros.
  public var isZero: Bool
  /// The range has stored bytes (which may be zeros, too).
  public var isData: Bool
  /// This layer decides what is read; if not, its backing file does.
  public var isAllocated: Bool
  public var isCompressed = false
  /// Where the plain bytes lie in the file below.
  public var hostOffset: UInt64?

  public init(byteCount: UInt64, isZero: Bool, isData: Bool, isAllocated: Bool, hostOffset: UInt64? = nil) {
    (self.byteCount, self.isZero, self.isData) = (byteCount, isZero, isData)
    (self.isAllocated, self.hostOffset) = (isAllocated, hostOffset)
  }
}

/// How much of an image's room is taken before it is needed (`preallocation=`).
public enum Preallocation: String, Sendable, CaseIterable { case off, metadata, falloc, full }

/// A read or write that keeps no thread waiting.
public struct NodeTransfer: Sendable {
  public var isWrite: Bool
  public var offset: UInt64
  /// Their memory is valid until the completion.
  public var buffers: [IOBuffer]
  /// Called once, on any thread; it must not block.
  public var completion: @Sendable (BlockError?) -> Void

  public init(
    isWrite: Bool, offset: UInt64, _ buffers: [IOBuffer],
    completion: @escaping @Sendable (BlockError?) -> Void
  ) {
    (self.isWrite, self.offset, self.buffers, self.completion) = (isWrite, offset, buffers, completion)
  }
}

/// How a node starts transfers.
public enum TransferStart: Sendable {
  /// It has only calls that block.
  case unsupported
  /// Starting may wait for the other side to take the request.
  case mayWait
  case immediate
}

/// Where an image keeps its bytes, as a format driver and the tools see it: a node of the block graph whose requests
/// block.
///
/// Any thread, any number at once; a node guards its own state and holds no lock while it transfers guest data.
/// Devices use it through `ThreadedBlockNode`. Offsets and lengths are in bytes and need no alignment.
public protocol ImageNode: AnyObject, Sendable {
  /// The driver's name as users know it: "file", "qcow2".
  var driverName: String { get }
  /// Present size.
  var byteCount: UInt64 { get }
  var isReadOnly: Bool { get }
  /// The nodes that this one uses, by their role: "file", "backing", "data-file", "extents.0".
  var children: [(role: String, node: any ImageNode)] { get }
  /// Whether this layer can leave ranges to a backing file.
  var supportsBacking: Bool { get }
  /// The size that allocations have, in bytes; 0: none.
  var clusterByteCount: UInt64 { get }
  /// The largest number of bytes that best go through in one request; 0: no limit.
  var transferLimit: Int { get }
  /// Whether written data waits in a volatile cache until `flush`.
  var hasWriteCache: Bool { get }
  /// Bytes taken on the host.
  var allocatedByteCount: UInt64 { get }
  /// Whether the image, just created, reads as zeros everywhere.
  var isZeroInitialized: Bool { get }

  /// Reads all of `buffers` from `offset` on.
  func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError)
  func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError)
  /// Makes what was written before durable.
  func flush() throws(BlockError)
  /// Tells that the content of a range is not needed any more; whole clusters of it read as zeros or as anything.
  func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError)
  /// Makes a range read as zeros.
  func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError)
  /// Describes the range from `offset`, at most `byteCount` bytes of it, as this layer alone sees it.
  func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus
  /// Changes the size.
  func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError)
  /// The compressed form of a cluster's bytes, for `writeCompressed`; `nil` if it is not worth it. Takes no lock.
  func compress(_ buffer: IOBuffer) throws(BlockError) -> [UInt8]?
  /// Stores one cluster (the image's last may be short) as `compress` made it, or as it is.
  func writeCompressed(at offset: UInt64, original: IOBuffer, compressed: [UInt8]?) throws(BlockError)
  /// Whether `startTransfer` can be of use.
  var transferStart: TransferStart { get }
  /// Starts a transfer that lies inside the node; `submitTransfers` sends what was started on its way. False if the node
  /// would have to do more than pass it on: then `read` or `write` is to be called.
  func startTransfer(_ transfer: NodeTransfer) -> Bool
  func submitTransfers()
  /// Says what the node on top is about to do, for fault injection; the names are QEMU's.
  func note(_ event: StaticString)
  /// Flushes and lets go of what the node holds. No request may follow.
  func close() throws(BlockError)
}

extension ImageNode {
  public var children: [(role: String, node: any ImageNode)] { [] }
  public var supportsBacking: Bool { false }
  public var clusterByteCount: UInt64 { 0 }
  public var transferLimit: Int { 0 }
  public var hasWriteCache: Bool { true }
  public var isZeroInitialized: Bool { false }
  public var allocatedByteCount: UInt64 { children.reduce(0) { $0 + $1.node.allocatedByteCount } }

  public var transferStart: TransferStart { .unsupported }
  public func startTransfer(_ transfer: NodeTransfer) -> Bool { false }
  public func submitTransfers() {}
  public func note(_ event: StaticString) {}

  public func child(_ role: String) -> (any ImageNode)? { children.first { $0.role == role }?.node }
  /// The node that answers what this layer leaves open.
  public var backing: (any ImageNode)? { child("backing") }

  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    throw BlockError(.unsupported, "the driver '\(driverName)' cannot resize images")
  }
  public func compress(_ buffer: IOBuffer) throws(BlockError) -> [UInt8]? {
    throw BlockError(.unsupported, "the driver '\(driverName)' cannot write compressed data")
  }
  public func writeCompressed(at offset: UInt64, original: IOBuffer, compressed: [UInt8]?) throws(BlockError)
  {
    throw BlockError(.unsupported, "the driver '\(driverName)' cannot write compressed data")
  }
  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    BlockStatus(byteCount: byteCount, isZero: false, isData: true, isAllocated: true, hostOffset: nil)
  }

  public func read(at offset: UInt64, into buffer: IOBuffer) throws(BlockError) {
    try read(at: offset, into: [buffer])
  }
  public func write(at offset: UInt64, from buffer: IOBuffer) throws(BlockError) {
    try write(at: offset, from: [buffer])
  }
  /// `count` bytes from `offset` on, zeros behind the end.
  public func bytes(at offset: UInt64, count: Int) throws(BlockError) -> [UInt8] {
    if count == 0 { return [] }
    let buffer = HostBuffer(byteCount: count, isZeroed: false)
    try read(at: offset, into: [buffer.io])
    return buffer.array()
  }
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(BlockError) {
    if bytes.isEmpty { return }
    try write(at: offset, from: [HostBuffer(bytes).io])
  }

  /// The error for a range outside the node, `nil` if it is inside.
  public func rangeError(_ offset: UInt64, _ count: UInt64) -> BlockError? {
    let size = byteCount
    if count <= size && offset <= size - count { return nil }
    return BlockError(
      .outOfRange,
      "request for \(count) bytes at 0x\(String(offset, radix: 16)) goes beyond the image's \(size) bytes")
  }
  /// The error for a change of a read-only node or outside of it.
  public func writeError(_ offset: UInt64, _ count: UInt64) -> BlockError? {
    isReadOnly ? BlockError(.readOnly, "the image is open read-only") : rangeError(offset, count)
  }
}

/// A format other than qcow2 whose images can have a backing file.
public protocol BackedImage: ImageNode {
  /// The backing file's name and format as the image has them.
  var backingFile: (name: String, format: String?)? { get }
  /// Before the first request.
  func attachBacking(_ node: (any ImageNode)?)
}

/// Splits `[offset, offset + byteCount)` at multiples of `unit` into a head, whole units and a tail; any may be empty.
public struct AlignedRange: Equatable, Sendable {
  public var head: Range<UInt64>
  public var body: Range<UInt64>
  public var tail: Range<UInt64>

  public init(_ offset: UInt64, _ byteCount: UInt64, unit: UInt64) {
    let end = offset + byteCount
    let first = (offset + unit - 1) / unit * unit
    let last = end / unit * unit
    if first > last {
      (head, body, tail) = (offset..<end, end..<end, end..<end)
    } else {
      (head, body, tail) = (offset..<first, first..<last, last..<end)
    }
  }
}
