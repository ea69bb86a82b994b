import ApusHost

/// A run of guest RAM that a device transfers to or from, with its host memory.
public struct DMASegment: @unchecked Sendable {
  // SAFETY: base points at byteCount bytes of a GuestRAM, which lives as long as its AddressSpace; devices hold that.
  public let address: GuestPhysicalAddress
  public let base: UnsafeMutableRawPointer
  public let byteCount: Int
  public init(address: GuestPhysicalAddress, base: UnsafeMutableRawPointer, byteCount: Int) {
    (self.address, self.base, self.byteCount) = (address, base, byteCount)
  }
}

/// A scatter/gather list of guest RAM, seen as one run of bytes.
///
/// Offsets count over the concatenation. Copies are cut at the list's end; the guest may change the bytes at any
/// time, so read a value once and use the copy.
public struct DMAList: Sendable {
  public private(set) var segments: [DMASegment] = []
  public private(set) var byteCount = 0

  public init() {}

  public mutating func append(_ segment: DMASegment) {
    segments.append(segment)
    byteCount += segment.byteCount
  }

  /// Calls `body` for each host run of `[offset, offset + count)`, cut at the list's end; returns the bytes covered.
  @inlinable
  @discardableResult
  public func forEachRun(
    offset: Int, count: Int,
    _ body: (_ segment: DMASegment, _ base: UnsafeMutableRawPointer, _ byteCount: Int) -> Void
  ) -> Int {
    var skip = offset
    var done = 0
    for segment in segments where done < count {
      if skip >= segment.byteCount {
        skip -= segment.byteCount
        continue
      }
      let take = min(segment.byteCount - skip, count - done)
      body(segment, segment.base + skip, take)
      skip = 0
      done += take
    }
    return done
  }

  /// Copies guest bytes from `offset` on into `buffer`; returns how many there were.
  @discardableResult
  public func copyOut(offset: Int = 0, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    guard let target = buffer.baseAddress else { return 0 }
    var position = 0
    return forEachRun(offset: offset, count: buffer.count) { _, base, count in
      (target + position).copyMemory(from: base, byteCount: count)
      position += count
    }
  }

  /// Copies `buffer` into guest RAM from `offset` on; returns how much fitted. Follow with `noteWritten`.
  @discardableResult
  public func copyIn(offset: Int = 0, from buffer: UnsafeRawBufferPointer) -> Int {
    guard let source = buffer.baseAddress else { return 0 }
    var position = 0
    return forEachRun(offset: offset, count: buffer.count) { _, base, count in
      base.copyMemory(from: source + position, byteCount: count)
      position += count
    }
  }

  /// A copy of `[offset, offset + count)`, cut at the list's end.
  public func bytes(offset: Int = 0, count: Int? = nil) -> [UInt8] {
    let count = min(count ?? byteCount, max(0, byteCount - offset))
    guard count > 0 else { return [] }
    return [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
      initialized = copyOut(offset: offset, into: UnsafeMutableRawBufferPointer(buffer))
    }
  }

  /// A little-endian integer at `offset`; `nil` if the list ends before it does.
  public func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type = T.self) -> T? {
    var value: T = 0
    let count = withUnsafeMutableBytes(of: &value) { copyOut(offset: offset, into: $0) }
    return count == MemoryLayout<T>.size ? T(littleEndian: value) : nil
  }

  /// Stores a little-endian integer at `offset`; false (with part of it written) if the list ends before it does.
  @discardableResult
  public func store<T: FixedWidthInteger>(_ offset: Int, _ value: T) -> Bool {
    withUnsafeBytes(of: value.littleEndian) { copyIn(offset: offset, from: $0) } == MemoryLayout<T>.size
  }

  /// The host runs of `[offset, offset + count)`, for a block node or a socket.
  public func ioBuffers(offset: Int = 0, count: Int? = nil) -> [IOBuffer] {
    var result: [IOBuffer] = []
    result.reserveCapacity(segments.count)
    forEachRun(offset: offset, count: count ?? byteCount) { _, base, count in
      result.append(IOBuffer(base, count))
    }
    return result
  }

  /// Tells the address space that the first `count` bytes were written, so that code translated from there is dropped.
  public func noteWritten(_ count: Int, in space: AddressSpace) {
    forEachRun(offset: 0, count: count) { segment, _, count in
      space.noteDMAWrite(segment.address, UInt64(count))
    }
  }
}
