import ApusGuest
import ApusHost
import ApusMemory

/// A vCPU's large TLB behind the one that generated code looks into: direct-mapped, tagged with the address space,
/// so that its contents survive context switches, a virtual machine's included.
///
/// Belongs to the vCPU's thread.
final class SecondLevelTLB {
  struct Entry {
    /// Guest page number << 3 | context; all ones: empty.
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
  private static let entryCount = 4096
  private let mapping: HostMapping
  // SAFETY: entryCount entries inside the mapping.
  private let entries: UnsafeMutablePointer<Entry>
  /// What each context's entries are tagged with. An entry counts only with the generation it was made in: flushing is an
  /// increment.
  private struct Tag {
    var space = GuestAddressSpace()
    var globalGeneration: UInt32 = 1
    var localGeneration: UInt32 = 1
  }
  private var tags: InlineArray<8, Tag> = .init(repeating: Tag())
  /// Ranges that contain all large pages seen since the last flush: for the lower and the upper half, of contexts 0 to 2,
  /// then of the others.
  private var largePages = [(low: UInt64, high: UInt64)](repeating: (.max, 0), count: 4)

  init() throws(HostError) {
    mapping = try HostMapping(anonymousByteCount: Self.entryCount * MemoryLayout<Entry>.stride)
    entries = mapping.base.assumingMemoryBound(to: Entry.self)
  }

  @inline(__always)
  private func slot(_ page: UInt64, _ context: Int) -> UnsafeMutablePointer<Entry> {
    let hash = page ^ page >> 12 ^ UInt64(context) << 10
    return entries + Int(hash & UInt64(Self.entryCount - 1))
  }
  @inline(__always)
  private func isCurrent(_ entry: UnsafeMutablePointer<Entry>, _ page: UInt64, _ context: Int) -> Bool {
    guard entry.pointee.key == page << 3 | UInt64(context) else { return false }
    return entry.pointee.isGlobal
      ? entry.pointee.generation == tags[context].globalGeneration
        && entry.pointee.space.machine == tags[context].space.machine
      : entry.pointee.generation == tags[context].localGeneration
        && entry.pointee.space == tags[context].space
  }

  func space(_ context: Int) -> GuestAddressSpace { tags[context].space }
  func setSpace(_ space: GuestAddressSpace, _ context: Int) { tags[context].space = space }

  func find(_ page: UInt64, _ context: Int, _ access: GuestAccess) -> UnsafeMutablePointer<Entry>? {
    let entry = slot(page, context)
    guard isCurrent(entry, page, context) else { return nil }
    switch access {
    case .load: return entry.pointee.canLoad ? entry : nil
    case .store: return entry.pointee.canStore ? entry : nil
    case .fetch: return entry.pointee.canFetch ? entry : nil
    }
  }

  func insert(
    _ page: UInt64, _ context: Int, physicalPage: UInt64, host: UnsafeMutableRawPointer?, ram: GuestRAM?,
    canLoad: Bool, canStore: Bool, canFetch: Bool, isGlobal: Bool, isGuarded: Bool
  ) -> UnsafeMutablePointer<Entry> {
    let entry = slot(page, context)
    // What an earlier access found out about the same page stays true.
    let same =
      isCurrent(entry, page, context) && entry.pointee.physicalPage == physicalPage
      && entry.pointee.isGlobal == isGlobal
    let fetch = canFetch || (same && entry.pointee.canFetch)
    entry.initialize(
      to: Entry(
        key: page << 3 | UInt64(context), physicalPage: physicalPage, host: host,
        ram: ram.map { Unmanaged.passUnretained($0) }, space: tags[context].space,
        generation: isGlobal ? tags[context].globalGeneration : tags[context].localGeneration,
        canLoad: canLoad, canStore: canStore, canFetch: fetch, isGlobal: isGlobal,
        isGuarded: isGuarded))
    return entry
  }

  func remove(page: UInt64, _ contexts: GuestContexts) {
    for context in contexts {
      let entry = slot(page, context)
      if entry.pointee.key == page << 3 | UInt64(context) { entry.pointee.key = .max }
    }
  }

  func flush(keepGlobal: Bool, _ contexts: GuestContexts) {
    for context in contexts {
      tags[context].localGeneration &+= 1
      if !keepGlobal { tags[context].globalGeneration &+= 1 }
    }
    guard !keepGlobal else { return }
    for group in 0..<2 where contexts.bits >> (3 * UInt8(group)) & 7 == 7 {
      (largePages[group * 2], largePages[group * 2 + 1]) = ((.max, 0), (.max, 0))
    }
  }

  // Large pages are entered page by page: forgetting one address of them must forget all of them.
  func noteLargePage(_ base: UInt64, _ byteCount: UInt64, _ context: Int) {
    let half = Int(base >> 63) + (context < 3 ? 0 : 2)
    largePages[half].low = min(largePages[half].low, base)
    largePages[half].high = max(largePages[half].high, base + (byteCount - 1))
  }
  func isPartOfLargePage(_ address: UInt64, _ contexts: GuestContexts) -> Bool {
    func contains(_ half: Int) -> Bool {
      address >= largePages[half].low && address <= largePages[half].high
    }
    let half = Int(address >> 63)
    return contexts.bits & 7 != 0 && contains(half) || contexts.bits & 0xf8 != 0 && contains(half + 2)
  }
}
