import ApusHost
import CApusHost
import Glibc
import Synchronization

/// An address in the guest's physical address space, in bytes.
public struct GuestPhysicalAddress: Hashable, Comparable, Sendable, CustomStringConvertible {
  public var rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  @inlinable public static func + (a: Self, offset: UInt64) -> Self { Self(a.rawValue &+ offset) }
  @inlinable public static func - (a: Self, b: Self) -> UInt64 { a.rawValue &- b.rawValue }
  public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// Size of the pages that flags, TLB entries and translated code are tracked by, in bytes.
public let guestPageByteCount: UInt64 = 4096

/// One run of guest RAM (or ROM): memfd-backed, mapped once, zero until touched.
///
/// Any thread. Bytes are raw memory shared with running guests: every access here is a plain load or store.
public final class GuestRAM: @unchecked Sendable {
  /// Page flag: translated code was made from this page, so writes must go through `AddressSpace`.
  public static let pageHasCode: UInt8 = 1

  public let name: String
  public let base: GuestPhysicalAddress
  public let byteCount: UInt64
  /// Guest stores are ignored (flash in read mode, boot ROM).
  public let isReadOnly: Bool
  // SAFETY: host points at byteCount mapped bytes, pageFlags at one byte a page, both as long as self lives.
  public let host: UnsafeMutableRawPointer
  public let pageFlags: UnsafeMutablePointer<UInt8>
  /// While true, accesses go to the device region that lies underneath (flash in command mode). Set it through
  /// `AddressSpace.setHidden`.
  public let isHidden = Atomic<Bool>(false)
  /// The memfd behind it, for device processes and snapshots.
  public let descriptor: Int32

  /// - Parameter byteCount: a multiple of 4096, above 0.
  public init(name: String, base: GuestPhysicalAddress, byteCount: UInt64, isReadOnly: Bool = false)
    throws(HostError)
  {
    precondition(byteCount > 0 && byteCount % guestPageByteCount == 0, "RAM size must be whole pages")
    (self.name, self.base, self.byteCount, self.isReadOnly) = (name, base, byteCount, isReadOnly)
    descriptor = try createMemoryFile(name: name, byteCount: Int(byteCount))
    guard
      let pointer = mmap(
        nil, Int(byteCount), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0),
      pointer != MAP_FAILED
    else { throw .last("map \(byteCount) bytes of guest RAM") }
    host = pointer
    let pageCount = Int(byteCount / guestPageByteCount)
    guard
      let flags = mmap(
        nil, pageCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
      flags != MAP_FAILED
    else { throw .last("map page flags of guest RAM") }
    pageFlags = flags.assumingMemoryBound(to: UInt8.self)
  }

  deinit {
    munmap(host, Int(byteCount))
    munmap(pageFlags, Int(byteCount / guestPageByteCount))
    close(descriptor)
  }

  public var end: GuestPhysicalAddress { base + byteCount }

  @inlinable
  public func contains(_ address: GuestPhysicalAddress, _ count: UInt64) -> Bool {
    address >= base && count <= byteCount && address - base <= byteCount - count
  }

  /// Gives whole pages inside `[offset, offset + count)` back to the host; they read as zeros.
  public func discard(offset: UInt64, count: UInt64) {
    let start = (offset + guestPageByteCount - 1) & ~(guestPageByteCount - 1)
    let end = min(offset + count, byteCount) & ~(guestPageByteCount - 1)
    if start < end { discardPages(host + Int(start), Int(end - start)) }
  }
}
