/// Bit fields and alignment on fixed-width integers.
extension FixedWidthInteger {
  /// The `count` bits from bit `low` up, as an unsigned number. `low + count` is at most the width.
  @inlinable @inline(__always)
  public func bits(_ low: Int, _ count: Int) -> Self {
    (self &>> Self(truncatingIfNeeded: low)) & ((Self(1) << Self(truncatingIfNeeded: count)) &- 1)
  }

  /// Whether bit `index` is set.
  @inlinable @inline(__always)
  public func bit(_ index: Int) -> Bool { (self &>> Self(truncatingIfNeeded: index)) & 1 != 0 }

  /// Rounded down to a multiple of `alignment`, a power of two.
  @inlinable @inline(__always)
  public func alignedDown(_ alignment: Self) -> Self { self & ~(alignment &- 1) }

  /// Rounded up to a multiple of `alignment`, a power of two; wraps at the type's end.
  @inlinable @inline(__always)
  public func alignedUp(_ alignment: Self) -> Self { (self &+ alignment &- 1) & ~(alignment &- 1) }
}

/// The low `bits` bits of `value` as a two's complement number.
@inlinable @inline(__always)
public func signExtend(_ value: UInt64, _ bits: Int) -> Int64 {
  let shift = UInt64(64 &- bits)
  return Int64(bitPattern: value &<< shift) &>> Int64(shift)
}
