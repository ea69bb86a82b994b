import ApusGuest
import ApusHost
import ApusMemory

/// A vCPU's large TLB behind the one that generated code looks into: direct-mapped, tagged with the address space,
/// so that its contents survive context switches.
///
/// Belongs to the vCPU's thread.
final class SecondLevelTLB {
  struct Entry {
    /// Guest page number << 2 | context; all ones: empty.
    var key: UInt64
    var physicalPage: UInt64
    /// The page on the host, for RAM.
    var host: UnsafeMutableRawPointer?
    /// Alive as long as the machine.
    var ram: Unmanaged<GuestRAM>?
    var asid: UInt32
    var generation: UInt32
    var canLoad: Bool
    var canStore: Bool
    var canFetch: Bool
    var isGlobal: Bool
  }
  private static let entryCount = 4096
  private let mapping: HostMapping
  // SAFETY: entryCount entries inside the mapping.
  private let entries: UnsafeMutablePointer<Entry>
  var asid: UInt32 = 0
  // An entry counts only with the generation it was made in: flushing is an increment.
  private var globalGeneration: UInt32 = 1
  private var localGeneration: UInt32 = 1
  /// Ranges that contain all large pages seen since the last flush: for the lower and the upper half.
  private var largePages: [(low: UInt64, high: UInt64)] = [(.max, 0), (.max, 0)]

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
    guard entry.pointee.key == page << 2 | UInt64(context) else { return false }
    return entry.pointee.isGlobal
      ? entry.pointee.generation == globalGeneration
      : entry.pointee.generation == localGeneration && (entry.pointee.asid == asid || context == 3)
  }

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
    canLoad: Bool, canStore: Bool, canFetch: Bool, isGlobal: Bool
  ) -> UnsafeMutablePointer<Entry> {
    let entry = slot(page, context)
    // What an earlier access found out about the same page stays true.
    let same =
      isCurrent(entry, page, context) && entry.pointee.physicalPage == physicalPage
      && entry.pointee.isGlobal == isGlobal
    let fetch = canFetch || (same && entry.pointee.canFetch)
    entry.initialize(
      to: Entry(
        key: page << 2 | UInt64(context), physicalPage: physicalPage, host: host,
        ram: ram.map { Unmanaged.passUnretained($0) }, asid: asid,
        generation: isGlobal ? globalGeneration : localGeneration, canLoad: canLoad, canStore: canStore,
        canFetch: fetch, isGlobal: isGlobal))
    return entry
  }

  func remove(page: UInt64) {
    for context in 0..<4 {
      let entry = slot(page, context)
      if entry.pointee.key == page << 2 | UInt64(context) { entry.pointee.key = .max }
    }
  }

  func flush(keepGlobal: Bool) {
    localGeneration &+= 1
    if !keepGlobal {
      globalGeneration &+= 1
      largePages = [(.max, 0), (.max, 0)]
    }
  }

  // Large pages are entered page by page: forgetting one address of them must forget all of them.
  func noteLargePage(_ base: UInt64, _ byteCount: UInt64) {
    let half = Int(base >> 63)
    largePages[half].low = min(largePages[half].low, base)
    largePages[half].high = max(largePages[half].high, base + (byteCount - 1))
  }
  func isPartOfLargePage(_ address: UInt64) -> Bool {
    let range = largePages[Int(address >> 63)]
    return address >= range.low && address <= range.high
  }
}
