import ApusHost

/// A disk that forgets writes and reads as zeros at once (`null-co`, for measurements).
public final class NullNode: ImageNode {
  public var driverName: String { "null-co" }
  public let byteCount: UInt64
  public let isReadOnly: Bool
  private let readsZeroes: Bool
  public var isZeroInitialized: Bool { readsZeroes }

  /// - Parameters:
  ///   - byteCount: 1 GiB is QEMU's default.
  ///   - readsZeroes: false leaves read buffers as they are, as QEMU does.
  public init(byteCount: UInt64 = 1 << 30, readsZeroes: Bool = false, isReadOnly: Bool = false) {
    self.byteCount = byteCount
    (self.readsZeroes, self.isReadOnly) = (readsZeroes, isReadOnly)
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    if let error = rangeError(offset, UInt64(buffers.totalByteCount)) { throw error }
    if readsZeroes { for buffer in buffers { buffer.clear() } }
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    if let error = writeError(offset, UInt64(buffers.totalByteCount)) { throw error }
  }
  public func flush() {}
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
  }
  public func status(at offset: UInt64, byteCount: UInt64) -> BlockStatus {
    BlockStatus(
      byteCount: byteCount, isZero: readsZeroes, isData: false, isAllocated: true, hostOffset: offset)
  }
  public func close() {}
}
