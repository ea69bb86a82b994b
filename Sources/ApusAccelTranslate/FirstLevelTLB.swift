import ApusIR

/// A vCPU's small TLBs, one for each translation context, which generated code looks into. The entries are in the vCPU's
/// state.
///
/// Belongs to the vCPU's thread.
final class FirstLevelTLB {
  private struct Context {
    /// Some entries are of pages that are not global.
    var isLocal = false
    /// How many of `used` count; more than `usedLimit`: too many to tell.
    var usedCount = 0
  }
  /// Clearing so many one by one costs less than clearing all.
  private static let usedLimit = 512
  private static let entryCount = StateHeader.tlbEntryCount

  // SAFETY: the vCPU's state, which lives longer than self.
  private let state: UnsafeMutableRawPointer
  private let contextCount: Int
  // SAFETY: contextCount contexts and contextCount x usedLimit indices, alive as long as self.
  private let contexts: UnsafeMutablePointer<Context>
  /// The entries that have been filled since the context was cleared.
  private let used: UnsafeMutablePointer<UInt16>

  init(state: UnsafeMutableRawPointer, contextCount: Int) {
    self.state = state
    self.contextCount = contextCount
    contexts = .allocate(capacity: contextCount)
    contexts.initialize(repeating: Context(), count: contextCount)
    used = .allocate(capacity: contextCount * Self.usedLimit)
    // The rest of fresh memory is zero, which is empty.
    for context in 0..<contextCount { empty(0, context) }
  }
  deinit {
    contexts.deallocate()
    used.deallocate()
  }

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
    if !isGlobal { contexts[context].isLocal = true }
    let count = contexts[context].usedCount
    if count < Self.usedLimit { used[context * Self.usedLimit + count] = UInt16(index) }
    if count <= Self.usedLimit { contexts[context].usedCount = count + 1 }
  }

  /// Whether generated code finds the page of `address`.
  func contains(_ address: UInt64, _ context: Int, isStore: Bool) -> Bool {
    entry(Self.index(address), context)[isStore ? 1 : 0] == address & ~4095
  }

  func isUsed(_ context: Int) -> Bool { contexts[context].usedCount != 0 }
  func isLocal(_ context: Int) -> Bool { contexts[context].isLocal }

  func remove(page: UInt64, _ context: Int) {
    if isUsed(context) { empty(Int(truncatingIfNeeded: page) & (Self.entryCount - 1), context) }
  }

  func clear(_ context: Int) {
    let count = contexts[context].usedCount
    if count <= Self.usedLimit {
      for number in 0..<count { empty(Int(used[context * Self.usedLimit + number]), context) }
    } else {
      UnsafeMutableRawPointer(entry(0, context)).initializeMemory(
        as: UInt8.self, repeating: 0, count: Self.entryCount * StateHeader.tlbEntryByteCount)
      empty(0, context)
    }
    contexts[context] = Context()
  }

  /// Stores take the slow path from now on.
  func dropStores() {
    for context in 0..<contextCount {
      let count = contexts[context].usedCount
      if count <= Self.usedLimit {
        for number in 0..<count {
          let index = Int(used[context * Self.usedLimit + number])
          entry(index, context)[1] = StateHeader.noPage(index)
        }
      } else {
        for index in 0..<Self.entryCount { entry(index, context)[1] = StateHeader.noPage(index) }
      }
    }
  }
}
