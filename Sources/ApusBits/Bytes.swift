/// Integers in byte sequences, with bounds checked: `nil` instead of a trap where bytes are missing.
extension RandomAccessCollection where Element == UInt8, Index == Int {
  /// The little-endian integer at `offset` from the collection's start.
  public func littleEndian<T: FixedWidthInteger & UnsignedInteger>(at offset: Int, as type: T.Type = T.self)
    -> T?
  {
    let size = MemoryLayout<T>.size
    guard offset >= 0, count >= size, offset <= count - size else { return nil }
    var value: T = 0
    for index in 0..<size {
      value |= T(truncatingIfNeeded: self[startIndex + offset + index]) << T(8 * index)
    }
    return value
  }

  /// The big-endian integer at `offset` from the collection's start.
  public func bigEndian<T: FixedWidthInteger & UnsignedInteger>(at offset: Int, as type: T.Type = T.self)
    -> T?
  {
    (littleEndian(at: offset) as T?)?.byteSwapped
  }
}

extension Array where Element == UInt8 {
  /// Appends `value`, least significant byte first.
  public mutating func appendLittleEndian<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
    for index in 0..<MemoryLayout<T>.size { append(UInt8(truncatingIfNeeded: value >> T(8 * index))) }
  }
  /// Appends `value`, most significant byte first.
  public mutating func appendBigEndian<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
    appendLittleEndian(value.byteSwapped)
  }
}
