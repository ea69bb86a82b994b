import ApusHost
import CApusHost

/// The blocks that a vCPU found lately, in sets of two by PC: after an address-space switch or a flush its code is found here
/// by the page that it is in now, without the table of all blocks and its lock. Blocks within one page only.
///
/// Belongs to the vCPU's thread, but for `forget`.
struct RecentBlocks {
  struct Entry {
    /// All ones after `forget`.
    fileprivate var pc: UInt64 = 0
    fileprivate var physicalPage: UInt64 = 0
    fileprivate var key: UInt32 = 0
    /// 0: there is no block.
    var number: UInt32 = 0
    var code: UInt64 = 0
  }
  private static let setCount = 4096
  // SAFETY: 2 x setCount entries until `deallocate`; zeroed memory, which is touched when it is used, has none.
  private let entries: UnsafeMutablePointer<Entry>

  init() { entries = HostMemory.zeroed(Entry.self, count: 2 * Self.setCount) }
  func deallocate() { entries.deallocate() }
  func removeAll() { entries.initialize(repeating: Entry(), count: 2 * Self.setCount) }

  @inline(__always)
  private func set(_ pc: UInt64) -> UnsafeMutablePointer<Entry> {
    entries + Int((pc >> 1 ^ pc >> 13) & UInt64(Self.setCount - 1)) * 2
  }
  /// - Parameter key: as in `TranslationCache.findBlock`.
  @inline(__always)
  func find(_ pc: UInt64, _ physicalPage: UInt64, _ key: UInt32) -> UnsafePointer<Entry>? {
    let set = set(pc)
    for way in 0..<2
    where set[way].pc == pc && set[way].physicalPage == physicalPage && set[way].key == key
      && set[way].number != 0
    {
      return UnsafePointer(set + way)
    }
    return nil
  }
  /// Nothing moves from one way to the other: `forget` could miss it on its way.
  func insert(_ number: UInt32, code: UInt64, _ pc: UInt64, _ physicalPage: UInt64, _ key: UInt32) {
    set(pc)[Int(number & 1)] = Entry(
      pc: pc, physicalPage: physicalPage, key: key, number: number, code: code)
  }
  /// Takes out a block that is dropped, from any thread: with a fence the vCPU makes sure that what it inserts is not.
  func forget(_ pc: UInt64) {
    let set = set(pc)
    for way in 0..<2 where apus_load_relaxed64(set + way) == pc { apus_store_relaxed64(set + way, .max) }
  }
}
