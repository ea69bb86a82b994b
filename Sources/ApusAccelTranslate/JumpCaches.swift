import ApusGuest
import ApusIR
import CApusHost

/// A vCPU's jump caches, one for each translation context: where generated code looks up the block of an indirect branch,
/// or of one to another page. The entries are in the vCPU's state.
///
/// Belongs to the vCPU's thread, but for `forget`.
final class JumpCaches {
  private struct Context {
    /// The mode that the entries were made for; all ones: there are none.
    var mode = UInt32.max
    /// Some entries are of pages that are not global.
    var isLocal = false
    /// How many of `codePages` count; more than `codePageLimit`: too many to be kept.
    var codePageCount = 0
  }
  /// A page that has entries, by number.
  private struct CodePage {
    var virtual: UInt64
    var place: Place
  }
  /// Where a page of code is, and whether branches into it are checked: those that have an entry have been.
  struct Place: Equatable {
    var physicalPage: UInt64
    var isGuarded: Bool
  }
  private static let codePageLimit = 512
  private static let hintCount = 256
  private static let entryCount = StateHeader.jumpCacheEntryCount

  // SAFETY: the vCPU's state, which lives longer than self.
  private let state: UnsafeMutableRawPointer
  /// Flat memory has one context, and no pages that could come to mean something else.
  private let isPaged: Bool
  private let contextCount: Int
  private let used: UsedEntries
  // SAFETY: contextCount contexts, and in paged memory contextCount x codePageLimit pages, contextCount x hintCount numbers and
  // contextCount x entryCount flags, alive as long as self.
  private let contexts: UnsafeMutablePointer<Context>
  private let codePages: UnsafeMutablePointer<CodePage>
  /// Where in `codePages` a page may be, by the lowest bits of its number.
  private let codePageHints: UnsafeMutablePointer<UInt16>
  /// Whether each entry's block goes on in a second page.
  private let goesOn: UnsafeMutablePointer<Bool>
  /// The virtual pages that have, or had, entries; not kept in flat memory.
  private var pages = PageSet()
  /// Contexts whose entries are to be looked at before they are used: there was a flush that concerned them.
  private(set) var stale = GuestContexts(bits: 0)
  private(set) var clears: UInt64 = 0

  init(state: UnsafeMutableRawPointer, isPaged: Bool) {
    self.state = state
    self.isPaged = isPaged
    contextCount = isPaged ? StateHeader.contextCount : 1
    contexts = .allocate(capacity: contextCount)
    contexts.initialize(repeating: Context(), count: contextCount)
    used = UsedEntries(contextCount: contextCount, limit: 2048)
    codePages = .allocate(capacity: isPaged ? contextCount * Self.codePageLimit : 0)
    let hintCount = isPaged ? contextCount * Self.hintCount : 0
    codePageHints = .allocate(capacity: hintCount)
    codePageHints.initialize(repeating: 0, count: hintCount)
    goesOn = .allocate(capacity: isPaged ? contextCount * Self.entryCount : 0)
    // The rest of fresh memory is zero, which is empty.
    for context in 0..<contextCount { empty(0, context) }
  }
  deinit {
    contexts.deallocate()
    used.deallocate()
    codePages.deallocate()
    codePageHints.deallocate()
    goesOn.deallocate()
    pages.deallocate()
  }

  // MARK: Entries

  @inline(__always)
  private func entry(_ index: Int, _ context: Int) -> UnsafeMutablePointer<UInt64> {
    (state + StateHeader.jumpCache(context) + index * StateHeader.jumpCacheEntryByteCount)
      .assumingMemoryBound(to: UInt64.self)
  }
  @inline(__always)
  private static func index(_ key: UInt64) -> Int { Int(truncatingIfNeeded: key >> 1) & (entryCount - 1) }
  private func empty(_ index: Int, _ context: Int) { entry(index, context)[0] = StateHeader.noPC(index) }

  /// The code of the block at `pc`, for branches of a kind.
  @inline(__always)
  func find(_ pc: UInt64, kind: UInt32, mode: UInt32, _ context: Int) -> UInt64? {
    guard contexts[context].mode == mode else { return nil }
    let key = pc ^ StateHeader.jumpCacheTag(kind)
    let entry = entry(Self.index(key), context)
    return entry[0] == key ? entry[1] : nil
  }

  /// What an entry leads to.
  struct Block {
    var pc: UInt64
    var mode: UInt32
    var code: UInt64
    var place: Place
    /// Where the block goes on.
    var secondPlace: Place?
    var isGlobal: Bool
  }

  /// - Returns: the entry, for `remove`.
  func insert(_ block: Block, kind: UInt32, _ context: Int) -> Int {
    if contexts[context].mode != block.mode {
      clear(context)
      contexts[context].mode = block.mode
    }
    if isPaged, !pages.insert(block.pc >> 12) {
      // Too many pages to tell apart: begin anew, with this one.
      clearAll()
      contexts[context].mode = block.mode
      _ = pages.insert(block.pc >> 12)
    }
    let key = block.pc ^ StateHeader.jumpCacheTag(kind)
    let index = Self.index(key)
    let entry = entry(index, context)
    entry[1] = block.code
    entry[0] = key
    if isPaged {
      goesOn[context * Self.entryCount + index] = block.secondPlace != nil
      noteCodePage(block.pc >> 12, block.place, context)
      if let second = block.secondPlace { noteCodePage(block.pc >> 12 &+ 1, second, context) }
    }
    if !block.isGlobal { contexts[context].isLocal = true }
    used.note(index, context)
    return index
  }

  private func noteCodePage(_ virtual: UInt64, _ place: Place, _ context: Int) {
    let count = contexts[context].codePageCount
    guard count <= Self.codePageLimit else { return }
    let pages = codePages + context * Self.codePageLimit
    let hint = codePageHints + context * Self.hintCount + Int(virtual & UInt64(Self.hintCount - 1))
    var number = Int(hint.pointee)
    if number >= count || pages[number].virtual != virtual {
      number = 0
      while number < count, pages[number].virtual != virtual { number += 1 }
      if number == count {
        contexts[context].codePageCount = count + 1
        if count == Self.codePageLimit { return }
      }
      hint.pointee = UInt16(number)
    }
    pages[number] = CodePage(virtual: virtual, place: place)
  }

  func remove(_ index: Int, _ context: Int) { empty(index, context) }

  /// Takes a block's PC out, from any thread. A racing jump of the vCPU runs the block once more, as it might have a moment
  /// before.
  func forget(_ pc: UInt64) {
    for kind in 0...3 as ClosedRange<UInt32> {
      let key = pc ^ StateHeader.jumpCacheTag(kind)
      let index = Self.index(key)
      for context in 0..<contextCount {
        let entry = entry(index, context)
        if apus_load_relaxed64(entry) == key { apus_store_relaxed64(entry, StateHeader.noPC(index)) }
      }
    }
  }

  // MARK: Flushes

  func isUsed(_ context: Int) -> Bool { contexts[context].mode != .max }
  func isLocal(_ context: Int) -> Bool { contexts[context].isLocal }

  func clear(_ context: Int) {
    guard isUsed(context) else { return }
    clears += 1
    if let list = used.list(context) {
      for index in list { empty(Int(index), context) }
    } else {
      UnsafeMutableRawPointer(entry(0, context)).initializeMemory(
        as: UInt8.self, repeating: 0, count: Self.entryCount * StateHeader.jumpCacheEntryByteCount)
      empty(0, context)
    }
    contexts[context] = Context()
    used.reset(context)
    stale.remove(context)
  }

  func clearAll() {
    for context in 0..<contextCount { clear(context) }
    pages.removeAll()
  }

  func markStale(_ context: Int) { if isUsed(context) { stale.insert(context) } }

  /// After a flush or in another address space most code pages may be where they were, as a kernel's are, or a forked process's:
  /// looking each one up is cheaper than finding all their blocks again. The entries of the others go.
  /// - Parameter place: looks a virtual page up, by number; `nil` if it is not there.
  func check(_ context: Int, _ place: (UInt64) -> Place?) {
    guard isUsed(context), contexts[context].codePageCount <= Self.codePageLimit,
      let list = used.list(context)
    else { return clear(context) }
    let pages = codePages + context * Self.codePageLimit
    var lost: InlineArray<4, UInt64> = .init(repeating: .max)
    var lostCount = 0
    var number = 0
    while number < contexts[context].codePageCount {
      if place(pages[number].virtual) == pages[number].place {
        number += 1
        continue
      }
      if lostCount == lost.count { return clear(context) }
      lost[lostCount] = pages[number].virtual
      lostCount += 1
      contexts[context].codePageCount -= 1
      pages[number] = pages[contexts[context].codePageCount]
    }
    stale.remove(context)
    guard lostCount > 0 else { return }
    for index in list {
      let index = Int(index)
      let page = (entry(index, context)[0] & ~(3 << 62)) >> 12
      let isLost = (0..<lostCount).contains { lost[$0] & (1 << 50 - 1) == page }
      // A block of two pages may be about any.
      if isLost || goesOn[context * Self.entryCount + index] { empty(index, context) }
    }
  }

  /// Takes the entries of one virtual page out.
  /// - Returns: whether it may have had any.
  func clear(page: UInt64) -> Bool {
    // A block of the page before may go on in this one.
    guard pages.contains(page) || pages.contains(page &- 1) else { return false }
    pages.remove(page)
    for context in 0..<contextCount where isUsed(context) {
      let entries = entry(0, context)
      let goesOn = goesOn + context * Self.entryCount
      // The entries of a page are neighbours, one for each possible instruction.
      for candidate in [page, page &- 1] {
        let first = Int(truncatingIfNeeded: candidate << 11) & (Self.entryCount - 1)
        for index in first..<first + 2048
        // But for the tag of a kind.
        where (entries[index * 2] ^ candidate << 12) & ~(3 << 62) < 4096
          && (candidate == page || goesOn[index])
        {
          empty(index, context)
        }
      }
    }
    return true
  }
}
