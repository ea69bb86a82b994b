import ApusHost

/// A disk that forgets writes and reads as zeros at once (`null-co`, for measurements).
public final class NullNode: BlockNode {
  public let name: String
  public var driverName: String { "null-co" }
  public let byteCount: UInt64
  public let isReadOnly: Bool
  public var limits: BlockLimits { BlockLimits() }
  public var hasWriteCache: Bool { true }
  private let readsZeroes: Bool

  /// - Parameters:
  ///   - byteCount: rounded down to whole sectors; 1 GiB is QEMU's default.
  ///   - readsZeroes: false leaves read buffers as they are, as QEMU does.
  public init(
    name: String = "", byteCount: UInt64 = 1 << 30, readsZeroes: Bool = false, isReadOnly: Bool = false
  ) {
    self.name = name
    self.byteCount = byteCount & ~511
    (self.readsZeroes, self.isReadOnly) = (readsZeroes, isReadOnly)
  }

  public func read(offset: UInt64, into buffers: [IOBuffer], completion: @escaping Completion) {
    if let error = rangeError(offset, UInt64(buffers.totalByteCount)) { return completion(error) }
    if readsZeroes { for buffer in buffers { buffer.clear() } }
    completion(nil)
  }
  public func write(
    offset: UInt64, from buffers: [IOBuffer], forceUnitAccess: Bool, completion: @escaping Completion
  ) {
    completion(isReadOnly ? readOnlyError : rangeError(offset, UInt64(buffers.totalByteCount)))
  }
  public func flush(completion: @escaping Completion) { completion(nil) }
  public func discard(offset: UInt64, byteCount: UInt64, completion: @escaping Completion) {
    completion(isReadOnly ? readOnlyError : rangeError(offset, byteCount))
  }
  public func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool, completion: @escaping Completion)
  {
    completion(isReadOnly ? readOnlyError : rangeError(offset, byteCount))
  }
  public func close() {}
  private var readOnlyError: BlockError { BlockError(.readOnly, "the image is open read-only") }
}
