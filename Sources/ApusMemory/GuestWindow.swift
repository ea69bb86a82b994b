import CApusHost

/// A bounds-checked window onto writable guest RAM with ordered accesses, for rings that a guest and a device share.
///
/// Any thread. Offsets outside the window are a bug of the caller. Values are little-endian.
public struct GuestWindow: @unchecked Sendable {
  // SAFETY: base points at byteCount bytes of `ram`, which this value keeps alive.
  private let base: UnsafeMutableRawPointer
  private let ram: GuestRAM
  private let space: AddressSpace
  public let address: GuestPhysicalAddress
  public let byteCount: Int

  /// `nil` unless all of the window is in one writable RAM region.
  public init?(_ space: AddressSpace, _ address: GuestPhysicalAddress, _ byteCount: Int) {
    guard byteCount > 0, let ram = space.ramRegion(address, UInt64(byteCount)), !ram.isReadOnly else {
      return nil
    }
    (self.ram, self.space, self.address, self.byteCount) = (ram, space, address, byteCount)
    base = ram.host + Int(address - ram.base)
  }

  @inline(__always)
  private func pointer(_ offset: Int, _ count: Int) -> UnsafeMutableRawPointer {
    precondition(offset >= 0 && offset <= byteCount - count, "access outside a guest window")
    return base + offset
  }

  public func load16(_ offset: Int) -> UInt16 { apus_load_relaxed16(pointer(offset, 2)) }
  public func loadAcquire16(_ offset: Int) -> UInt16 { apus_load_acquire16(pointer(offset, 2)) }
  public func load32(_ offset: Int) -> UInt32 { apus_load_relaxed32(pointer(offset, 4)) }
  public func load64(_ offset: Int) -> UInt64 { apus_load_relaxed64(pointer(offset, 8)) }

  public func store16(_ offset: Int, _ value: UInt16) {
    apus_store_relaxed16(pointer(offset, 2), value)
    noteWrite(offset, 2)
  }
  public func storeRelease16(_ offset: Int, _ value: UInt16) {
    apus_store_release16(pointer(offset, 2), value)
    noteWrite(offset, 2)
  }
  public func store32(_ offset: Int, _ value: UInt32) {
    apus_store_relaxed32(pointer(offset, 4), value)
    noteWrite(offset, 4)
  }

  /// Orders all accesses before it against all after it, for "write my index, then look at the other side's".
  public static func fullFence() { apus_fence() }

  @inline(__always)
  private func noteWrite(_ offset: Int, _ count: Int) {
    let start = address - ram.base + UInt64(offset)
    let page = Int(start / guestPageByteCount)
    if apus_load_relaxed8(ram.pageFlags + page) & GuestRAM.pageHasCode != 0 {
      space.noteDMAWrite(address + UInt64(offset), UInt64(count))
    }
  }
}
