import Glibc

/// Page-aligned memory of a fixed size that lives as long as the object; zeroed at first unless told otherwise.
///
/// Any thread may read; who writes makes sure that nobody else uses the same bytes. `base` and `bytes` do not keep the
/// object: a use that may be its last needs `withExtendedLifetime`.
public final class HostBuffer: @unchecked Sendable {
  // SAFETY: base points at byteCount bytes from init to deinit.
  public let base: UnsafeMutableRawPointer
  public let byteCount: Int

  /// - Parameter isZeroed: false where all of it is written before any of it is read.
  public init(byteCount: Int, isZeroed: Bool = true) {
    precondition(byteCount > 0, "a buffer needs room")
    base = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 4096)
    if isZeroed { memset(base, 0, byteCount) }
    self.byteCount = byteCount
  }
  public convenience init(_ bytes: [UInt8]) {
    self.init(byteCount: max(1, bytes.count))
    bytes.withUnsafeBytes {
      base.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(base), byteCount: $0.count)
    }
  }
  deinit { base.deallocate() }

  public var bytes: UnsafeMutableRawBufferPointer { .init(start: base, count: byteCount) }
  /// The whole as an I/O buffer, which keeps this object.
  public var io: IOBuffer { io(0, byteCount) }
  /// `[offset, offset + count)` as an I/O buffer, which keeps this object.
  public func io(_ offset: Int, _ count: Int) -> IOBuffer {
    precondition(offset >= 0 && count >= 0 && offset <= byteCount - count, "inside the buffer")
    var result = IOBuffer(base + offset, count)
    result.owner = self
    return result
  }
  public func clear() { memset(base, 0, byteCount) }
  /// A copy as an array.
  public func array(_ offset: Int = 0, _ count: Int? = nil) -> [UInt8] {
    let part = io(offset, count ?? byteCount - offset)
    return withExtendedLifetime(self) {
      [UInt8](UnsafeRawBufferPointer(start: part.base, count: part.byteCount))
    }
  }

  // Big and little endian fields, at any offset inside the buffer.
  @inlinable public func big16(_ offset: Int) -> UInt16 { UInt16(bigEndian: load(offset)) }
  @inlinable public func big32(_ offset: Int) -> UInt32 { UInt32(bigEndian: load(offset)) }
  @inlinable public func big64(_ offset: Int) -> UInt64 { UInt64(bigEndian: load(offset)) }
  @inlinable public func little16(_ offset: Int) -> UInt16 { UInt16(littleEndian: load(offset)) }
  @inlinable public func little32(_ offset: Int) -> UInt32 { UInt32(littleEndian: load(offset)) }
  @inlinable public func little64(_ offset: Int) -> UInt64 { UInt64(littleEndian: load(offset)) }
  @inlinable public func setBig<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, _ value: T) {
    store(offset, value.bigEndian)
  }
  @inlinable public func setLittle<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, _ value: T) {
    store(offset, value.littleEndian)
  }
  @inlinable func load<T: BitwiseCopyable>(_ offset: Int) -> T {
    precondition(offset >= 0 && offset <= byteCount - MemoryLayout<T>.size, "inside the buffer")
    return base.loadUnaligned(fromByteOffset: offset, as: T.self)
  }
  @inlinable func store<T: BitwiseCopyable>(_ offset: Int, _ value: T) {
    precondition(offset >= 0 && offset <= byteCount - MemoryLayout<T>.size, "inside the buffer")
    base.storeBytes(of: value, toByteOffset: offset, as: T.self)
  }
}

/// Questions about, and copies of, runs of host memory.
public enum HostBytes {
  /// Whether all `byteCount` bytes from `base` on are zero.
  public static func isZero(_ base: UnsafeRawPointer, _ byteCount: Int) -> Bool {
    var position = 0
    // Most data differs early: look at the first word before the wide loop.
    if byteCount >= 8, base.loadUnaligned(as: UInt64.self) != 0 { return false }
    while position + 256 <= byteCount {
      let a = base.loadUnaligned(fromByteOffset: position, as: SIMD8<UInt64>.self)
      let b = base.loadUnaligned(fromByteOffset: position + 64, as: SIMD8<UInt64>.self)
      let c = base.loadUnaligned(fromByteOffset: position + 128, as: SIMD8<UInt64>.self)
      let d = base.loadUnaligned(fromByteOffset: position + 192, as: SIMD8<UInt64>.self)
      if ((a | b) | (c | d)) != SIMD8<UInt64>() { return false }
      position += 256
    }
    while position < byteCount {
      if base.load(fromByteOffset: position, as: UInt8.self) != 0 { return false }
      position += 1
    }
    return true
  }
  public static func isZero(_ buffer: IOBuffer) -> Bool { isZero(buffer.base, buffer.byteCount) }

  /// How many of the `limit` words from `base` on are zero before the first that is not.
  public static func zeroWordCount(_ base: UnsafeRawPointer, limit: Int) -> Int {
    var count = 0
    while count + 32 <= limit, isZero(base + count * 8, 256) { count += 32 }
    while count < limit, base.loadUnaligned(fromByteOffset: count * 8, as: UInt64.self) == 0 { count += 1 }
    return count
  }
  /// How many of the `limit` big-endian words from `base` on are `first`, `first + step`, `first + 2 * step` and so on.
  public static func bigWordRunLength(
    _ base: UnsafeRawPointer, limit: Int, first: UInt64, step: UInt64
  ) -> Int {
    var count = 0
    var expected = first
    while count < limit,
      UInt64(bigEndian: base.loadUnaligned(fromByteOffset: count * 8, as: UInt64.self)) == expected
    {
      count += 1
      expected &+= step
    }
    return count
  }

  public static func areEqual(_ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ byteCount: Int) -> Bool {
    memcmp(a, b, byteCount) == 0
  }
  /// The offset of the first byte that differs; `nil` if none does.
  public static func firstDifference(_ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ byteCount: Int) -> Int? {
    if memcmp(a, b, byteCount) == 0 { return nil }
    return (0..<byteCount).first {
      a.load(fromByteOffset: $0, as: UInt8.self) != b.load(fromByteOffset: $0, as: UInt8.self)
    }
  }
  public static func fill(_ base: UnsafeMutableRawPointer, _ byteCount: Int, _ value: UInt8) {
    memset(base, Int32(value), byteCount)
  }
  public static func copy(_ target: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ byteCount: Int) {
    memcpy(target, source, byteCount)
  }
}
