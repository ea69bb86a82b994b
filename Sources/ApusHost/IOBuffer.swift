/// A run of host memory that an I/O request reads from or writes to (an element of a scatter/gather list).
///
/// Whoever makes one keeps the memory valid until the request that carries it has completed.
public struct IOBuffer: @unchecked Sendable {
  // SAFETY: base points at byteCount accessible bytes for as long as the request it belongs to lives.
  public var base: UnsafeMutableRawPointer
  public var byteCount: Int
  /// What owns the memory, if keeping this value is to keep the memory.
  public var owner: AnyObject?

  @inlinable
  public init(_ base: UnsafeMutableRawPointer, _ byteCount: Int) {
    (self.base, self.byteCount) = (base, byteCount)
  }
  @inlinable
  public init(_ buffer: UnsafeMutableRawBufferPointer) {
    precondition(buffer.baseAddress != nil, "an I/O buffer needs memory")
    self.init(buffer.baseAddress.unsafelyUnwrapped, buffer.count)
  }

  /// Fills the run with zeros.
  public func clear() { base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount) }
}

extension [IOBuffer] {
  /// The sum of all runs, in bytes.
  public var totalByteCount: Int { reduce(0) { $0 + $1.byteCount } }

  /// The part `[offset, offset + count)` of the concatenation of all runs; shorter if the list is.
  public func slice(offset: Int, count: Int) -> [IOBuffer] {
    var result: [IOBuffer] = []
    var skip = offset
    var left = count
    for buffer in self where left > 0 {
      if skip >= buffer.byteCount {
        skip -= buffer.byteCount
        continue
      }
      let take = Swift.min(buffer.byteCount - skip, left)
      if take > 0 { result.append(IOBuffer(buffer.base + skip, take)) }
      skip = 0
      left -= take
    }
    return result
  }
}
