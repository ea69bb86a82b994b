import ApusGuest
import ApusHost
import ApusMemory

/// A vCPU's large TLB behind the one that generated code looks into: sets of four entries, tagged with the address space,
/// so that its contents survive context switches, a virtual machine's included.
///
/// Belongs to the vCPU's thread.
final class SecondLevelTLB {
  struct Entry {
    /// See `key`; all ones: empty.
    var key: UInt64
    var physicalPage: UInt64
    /// The page on the host, for RAM.
    var host: UnsafeMutableRawPointer?
    /// Alive as long as the machine.
    var ram: Unmanaged<GuestRAM>?
    var space: GuestAddressSpace
    var generation: UInt32
    var canLoad: Bool
    var canStore: Bool
    var canFetch: Bool
    var isGlobal: Bool
    var isGuarded: Bool
  }
  private static let setCount = 1024
  private static let wayCount = 4
  private let mapping: HostMapping
  // SAFETY: setCount x wayCount entries inside the mapping.
  private let entries: UnsafeMutablePointer<Entry>
  /// The way that the next full set loses.
  private var nextVictim = 0
  /// What each context's entries are tagged with. An entry counts only with the generation it was made in: flushing is an
  /// increment.
  private struct Tag {
    var space = GuestAddressSpace()
    var globalGeneration: UInt32 = 1
    var localGeneration: UInt32 = 1
  }
  private var tags: InlineArray<13, Tag> = .init(repeating: Tag())
  /// Ranges that contain all large pages seen since the last flush: for the lower and the upper half, of contexts 0 to 2
  /// and 9 to 12, then of 3 to 7, then of 8.
  private var largePages = [(low: UInt64, high: UInt64)](repeating: (.max, 0), count: 6)
  private static func groupMask(_ group: Int) -> UInt16 { group == 0 ? 0x1e07 : group == 1 ? 0xf8 : 0x100 }

  init() throws(HostError) {
    mapping = try HostMapping(
      anonymousByteCount: Self.setCount * Self.wayCount * MemoryLayout<Entry>.stride)
    entries = mapping.base.assumingMemoryBound(to: Entry.self)
  }

  /// The first entry of a set.
  @inline(__always)
  private func set(_ page: UInt64, _ context: Int) -> UnsafeMutablePointer<Entry> {
    let hash = page ^ page >> 10 ^ UInt64(context) << 6
    return entries + Int(hash & UInt64(Self.setCount - 1)) * Self.wayCount
  }
  @inline(__always)
  private func key(_ page: UInt64, _ context: Int) -> UInt64 { page << 4 | UInt64(context) }
  @inline(__always)
  private func isCurrent(_ entry: UnsafeMutablePointer<Entry>, _ page: UInt64, _ context: Int) -> Bool {
    guard entry.pointee.key == key(page, context) else { return false }
    return entry.pointee.isGlobal
      ? entry.pointee.generation == tags[context].globalGeneration
        && entry.pointee.space.machine == tags[context].space.machine
      : entry.pointee.generation == tags[context].localGeneration
        && entry.pointee.space == tags[context].space
  }

  func space(_ context: Int) -> GuestAddressSpace { tags[context].space }
  func setSpace(_ space: GuestAddressSpace, _ context: Int) { tags[context].space = space }

  @inline(__always)
  private func current(_ page: UInt64, _ context: Int) -> UnsafeMutablePointer<Entry>? {
    let set = set(page, context)
    for way in 0..<Self.wayCount where isCurrent(set + way, page, context) { return set + way }
    return nil
  }
  func find(_ page: UInt64, _ context: Int, _ access: GuestAccess) -> UnsafeMutablePointer<Entry>? {
    guard let entry = current(page, context) else { return nil }
    switch access {
    case .load: return entry.pointee.canLoad ? entry : nil
    case .store: return entry.pointee.canStore ? entry : nil
    case .fetch: return entry.pointee.canFetch ? entry : nil
    }
  }
  /// Where a page can be entered: a place that is free or that holds an older state of the same page, or else any.
  private func place(_ page: UInt64, _ context: Int) -> UnsafeMutablePointer<Entry> {
    if let entry = current(page, context) { return entry }
    let set = set(page, context)
    for way in 0..<Self.wayCount where isFree(set + way) { return set + way }
    nextVictim = (nextVictim &+ 1) & (Self.wayCount - 1)
    return set + nextVictim
  }
  /// Whether an entry counts in no address space any more.
  private func isFree(_ entry: UnsafeMutablePointer<Entry>) -> Bool {
    if entry.pointee.key == .max { return true }
    let tag = tags[Int(entry.pointee.key & 15)]
    return entry.pointee.generation != (entry.pointee.isGlobal ? tag.globalGeneration : tag.localGeneration)
  }

  func insert(
    _ page: UInt64, _ context: Int, _ found: GuestPage, host: UnsafeMutableRawPointer?, ram: GuestRAM?,
    canFetch: Bool
  ) -> UnsafeMutablePointer<Entry> {
    let entry = place(page, context)
    // What an earlier access found out about the same page stays true.
    let same =
      isCurrent(entry, page, context) && entry.pointee.physicalPage == found.physical >> 12
      && entry.pointee.isGlobal == found.isGlobal
    let fetch = canFetch || (same && entry.pointee.canFetch)
    entry.initialize(
      to: Entry(
        key: key(page, context), physicalPage: found.physical >> 12, host: host,
        ram: ram.map { Unmanaged.passUnretained($0) }, space: tags[context].space,
        generation: found.isGlobal ? tags[context].globalGeneration : tags[context].localGeneration,
        canLoad: found.canLoad, canStore: found.canStore, canFetch: fetch, isGlobal: found.isGlobal,
        isGuarded: found.isGuarded))
    return entry
  }

  func remove(page: UInt64, _ contexts: GuestContexts) {
    for context in contexts {
      let set = set(page, context)
      for way in 0..<Self.wayCount where set[way].key == key(page, context) { set[way].key = .max }
    }
  }

  func flush(keepGlobal: Bool, _ contexts: GuestContexts) {
    for context in contexts {
      tags[context].localGeneration &+= 1
      if !keepGlobal { tags[context].globalGeneration &+= 1 }
    }
    guard !keepGlobal else { return }
    for group in 0..<3 where contexts.bits & Self.groupMask(group) == Self.groupMask(group) {
      (largePages[group * 2], largePages[group * 2 + 1]) = ((.max, 0), (.max, 0))
    }
  }

  // Large pages are entered page by page: forgetting one address of them must forget all of them.
  func noteLargePage(_ base: UInt64, _ byteCount: UInt64, _ context: Int) {
    let half = Int(base >> 63) + (context < 3 || context > 8 ? 0 : context < 8 ? 2 : 4)
    largePages[half].low = min(largePages[half].low, base)
    largePages[half].high = max(largePages[half].high, base + (byteCount - 1))
  }
  func isPartOfLargePage(_ address: UInt64, _ contexts: GuestContexts) -> Bool {
    for group in 0..<3 where contexts.bits & Self.groupMask(group) != 0 {
      let range = largePages[Int(address >> 63) + 2 * group]
      if address >= range.low, address <= range.high { return true }
    }
    return false
  }
}
