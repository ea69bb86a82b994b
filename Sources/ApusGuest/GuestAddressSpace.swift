/// Which address space the entries of a translation context belong to.
public struct GuestAddressSpace: Hashable, Sendable {
  /// The address space identifier, with what else tells address spaces apart; entries of global pages count in all.
  public var identifier: UInt32
  /// The virtual machine: entries of global pages count in their own.
  public var machine: UInt32
  @inlinable
  public init(identifier: UInt32 = 0, machine: UInt32 = 0) {
    (self.identifier, self.machine) = (identifier, machine)
  }
}

/// A set of translation contexts.
public struct GuestContexts: Hashable, Sendable, Sequence, IteratorProtocol {
  public var bits: UInt16
  @inlinable public init(bits: UInt16) { self.bits = bits }
  /// All of `StateHeader.contextCount`.
  public static let all = GuestContexts(bits: 0x1fff)
  @inlinable
  public mutating func next() -> Int? {
    guard bits != 0 else { return nil }
    let first = bits.trailingZeroBitCount
    bits &= bits &- 1
    return first
  }
  @inlinable public func contains(_ context: Int) -> Bool { bits >> UInt16(context) & 1 != 0 }
  @inlinable public mutating func insert(_ context: Int) { bits |= 1 << UInt16(context) }
  @inlinable public mutating func remove(_ context: Int) { bits &= ~(1 << UInt16(context)) }
}
