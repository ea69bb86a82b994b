import ApusGuest
import ApusIR

/// A vCPU's small TLBs, one for each translation context, which generated code looks into. The entries are in the vCPU's
/// state.
///
/// Belongs to the vCPU's thread.
final class FirstLevelTLB {
  private static let entryCount = StateHeader.tlbEntryCount

  // SAFETY: the vCPU's state, which lives longer than self.
  private let state: UnsafeMutableRawPointer
  private let contextCount: Int
  private let used: UsedEntries
  /// Contexts that have entries of pages that are not global.
  private var local = GuestContexts(bits: 0)

  init(state: UnsafeMutableRawPointer, contextCount: Int) {
    self.state = state
    self.contextCount = contextCount
    used = UsedEntries(contextCount: contextCount, limit: 512)
    // The rest of fresh memory is zero, which is empty.
    for context in 0..<contextCount { empty(0, context) }
  }
  deinit { used.deallocate() }

  /// Page for loads, page for stores, host address.
  @inline(__always)
  private func entry(_ index: Int, _ context: Int) -> UnsafeMutablePointer<UInt64> {
    (state + StateHeader.tlb(context) + index * StateHeader.tlbEntryByteCount)
      .assumingMemoryBound(to: UInt64.self)
  }
  @inline(__always)
  private static func index(_ address: UInt64) -> Int {
    Int(truncatingIfNeeded: address >> 12) & (entryCount - 1)
  }
  private func empty(_ index: Int, _ context: Int) {
    let entry = entry(index, context)
    entry[0] = StateHeader.noPage(index)
    entry[1] = StateHeader.noPage(index)
  }

  func insert(
    _ address: UInt64, _ context: Int, host: UnsafeMutableRawPointer, canLoad: Bool, canStore: Bool,
    isGlobal: Bool
  ) {
    let page = address & ~4095
    let index = Self.index(address)
    let entry = entry(index, context)
    entry[0] = canLoad ? page : StateHeader.noPage(index)
    entry[1] = canStore ? page : StateHeader.noPage(index)
    entry[2] = UInt64(UInt(bitPattern: host))
    if !isGlobal { local.insert(context) }
    used.note(index, context)
  }

  /// Whether generated code finds the page of `address`.
  func contains(_ address: UInt64, _ context: Int, isStore: Bool) -> Bool {
    entry(Self.index(address), context)[isStore ? 1 : 0] == address & ~4095
  }

  func isLocal(_ context: Int) -> Bool { local.contains(context) }

  func remove(page: UInt64, _ context: Int) {
    if !used.isEmpty(context) { empty(Int(truncatingIfNeeded: page) & (Self.entryCount - 1), context) }
  }

  func clear(_ context: Int) {
    if let list = used.list(context) {
      for index in list { empty(Int(index), context) }
    } else {
      UnsafeMutableRawPointer(entry(0, context)).initializeMemory(
        as: UInt8.self, repeating: 0, count: Self.entryCount * StateHeader.tlbEntryByteCount)
      empty(0, context)
    }
    used.reset(context)
    local.remove(context)
  }

  /// Stores take the slow path from now on.
  func dropStores() {
    for context in 0..<contextCount {
      if let list = used.list(context) {
        for index in list { entry(Int(index), context)[1] = StateHeader.noPage(Int(index)) }
      } else {
        for index in 0..<Self.entryCount { entry(index, context)[1] = StateHeader.noPage(index) }
      }
    }
  }
}
