import ApusHost

/// Turns writes of zeros into zero requests (`detect-zeroes=on`), with `unmap` into ones that may give room back.
///
/// Any thread.
public final class DetectZeroesNode: ImageNode {
  public let file: any ImageNode
  private let mayUnmap: Bool

  public init(_ file: any ImageNode, mayUnmap: Bool) { (self.file, self.mayUnmap) = (file, mayUnmap) }

  public var driverName: String { file.driverName }
  public var byteCount: UInt64 { file.byteCount }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var isZeroInitialized: Bool { file.isZeroInitialized }
  public var supportsBacking: Bool { file.supportsBacking }
  public var clusterByteCount: UInt64 { file.clusterByteCount }
  public var transferLimit: Int { file.transferLimit }
  public var allocatedByteCount: UInt64 { file.allocatedByteCount }
  public var children: [(role: String, node: any ImageNode)] { file.children }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    try file.read(at: offset, into: buffers)
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    guard buffers.allSatisfy({ HostBytes.isZero($0) }) else {
      return try file.write(at: offset, from: buffers)
    }
    try file.writeZeroes(at: offset, byteCount: UInt64(buffers.totalByteCount), mayUnmap: mayUnmap)
  }
  public func flush() throws(BlockError) { try file.flush() }
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    try file.discard(at: offset, byteCount: byteCount)
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    try file.writeZeroes(at: offset, byteCount: byteCount, mayUnmap: mayUnmap)
  }
  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    try file.status(at: offset, byteCount: byteCount)
  }
  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    try file.truncate(byteCount, preallocation: preallocation)
  }
  public func compress(_ buffer: IOBuffer) throws(BlockError) -> [UInt8]? { try file.compress(buffer) }
  public func writeCompressed(at offset: UInt64, original: IOBuffer, compressed: [UInt8]?) throws(BlockError)
  {
    try file.writeCompressed(at: offset, original: original, compressed: compressed)
  }
  public func close() throws(BlockError) { try file.close() }
}
