import ApusHost
import CApusHost
import Glibc

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
  /// Only CPUs reach it, in their secure state; devices and others that have addresses from the guest do not.
  public let isSecure: Bool
  // SAFETY: host points at byteCount mapped bytes, pageFlags at one byte a page, both as long as self lives.
  public let host: UnsafeMutableRawPointer
  public let pageFlags: UnsafeMutablePointer<UInt8>
  /// While true, accesses go to the device region that lies underneath (flash in command mode). Set it through
  /// `AddressSpace.setHidden`.
  public var isHidden: Bool { apus_load_relaxed8(hidden) != 0 }
  // SAFETY: one byte, as long as self lives; changed by `AddressSpace.setHidden` only.
  @usableFromInline let hidden = UnsafeMutablePointer<UInt8>.allocate(capacity: 1)
  /// The memfd behind it, for device processes and snapshots.
  public let descriptor: Int32

  /// - Parameter byteCount: a multiple of 4096, above 0.
  public init(
    name: String, base: GuestPhysicalAddress, byteCount: UInt64, isReadOnly: Bool = false,
    isSecure: Bool = false
  )
    throws(HostError)
  {
    precondition(byteCount > 0 && byteCount % guestPageByteCount == 0, "RAM size must be whole pages")
    (self.name, self.base, self.byteCount) = (name, base, byteCount)
    (self.isReadOnly, self.isSecure) = (isReadOnly, isSecure)
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
    hidden.initialize(to: 0)
  }

  deinit {
    munmap(host, Int(byteCount))
    munmap(pageFlags, Int(byteCount / guestPageByteCount))
    hidden.deallocate()
    close(descriptor)
  }

  public var end: GuestPhysicalAddress { base + byteCount }

  @inlinable
  public func contains(_ address: GuestPhysicalAddress, _ count: UInt64) -> Bool {
    address >= base && count <= byteCount && address - base <= byteCount - count
  }

  /// Leaves the memory out of core dumps of this process.
  public func excludeFromCoreDumps() { _ = madvise(host, Int(byteCount), MADV_DONTDUMP) }

  /// Gives whole pages inside `[offset, offset + count)` back to the host; they read as zeros.
  public func discard(offset: UInt64, count: UInt64) {
    let start = (offset + guestPageByteCount - 1) & ~(guestPageByteCount - 1)
    let end = min(offset + count, byteCount) & ~(guestPageByteCount - 1)
    if start < end { discardPages(host + Int(start), Int(end - start)) }
  }
}

/// The RAM of an address space as flat memory, for paths that must not touch reference counts: page walks.
///
/// Any thread. Valid as long as the `AddressSpace` that gave it.
public struct GuestRAMTable: @unchecked Sendable {
  struct Range {
    var base: UInt64
    var byteCount: UInt64
    var host: UnsafeMutableRawPointer
    var hidden: UnsafeMutablePointer<UInt8>
  }
  // SAFETY: count ranges that the address space frees.
  let ranges: UnsafeMutablePointer<Range>
  let count: Int

  init(_ ram: [GuestRAM]) {
    count = ram.count
    ranges = .allocate(capacity: ram.count)
    for (index, region) in ram.enumerated() {
      (ranges + index).initialize(
        to: Range(
          base: region.base.rawValue, byteCount: region.byteCount, host: region.host, hidden: region.hidden))
    }
  }

  /// A word at a multiple of 8; `nil` where there is no RAM.
  public func load(_ address: UInt64) -> UInt64? { word(address).map { apus_load_relaxed64($0) } }
  /// Nothing happens where there is no RAM.
  public func store(_ address: UInt64, _ value: UInt64) {
    word(address)?.storeBytes(of: value, as: UInt64.self)
  }

  /// Host memory behind 8 bytes at a physical address; `nil` where there is no RAM.
  public func word(_ address: UInt64) -> UnsafeMutableRawPointer? {
    for index in 0..<count {
      let range = ranges + index
      let offset = address &- range.pointee.base
      if offset < range.pointee.byteCount, range.pointee.byteCount - offset >= 8 {
        return apus_load_relaxed8(range.pointee.hidden) != 0 ? nil : range.pointee.host + Int(offset)
      }
    }
    return nil
  }
}
