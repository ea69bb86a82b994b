import ApusHost

/// A set of page numbers of bounded size, by open addressing. It has no memory until the first page is inserted.
///
/// Owned by one thread, which calls `deallocate` at the end.
struct PageSet {
  private static let capacity = 16384
  private static let limit = 12288
  private static let removed: UInt64 = 1 << 63
  // SAFETY: capacity words, page number + 1 (with bit 63 if it was removed) or 0 for none, from the first insertion to
  // `deallocate`.
  private var slots: UnsafeMutablePointer<UInt64>?
  private var count = 0

  func deallocate() { slots?.deallocate() }

  private func slot(_ page: UInt64, _ slots: UnsafeMutablePointer<UInt64>) -> Int {
    var index = Int(truncatingIfNeeded: (page &* 0x9e37_79b9_7f4a_7c15) >> 50)
    while slots[index] != 0, slots[index] & ~Self.removed != page &+ 1 {
      index = (index &+ 1) & (Self.capacity - 1)
    }
    return index
  }
  func contains(_ page: UInt64) -> Bool {
    guard let slots else { return false }
    return slots[slot(page, slots)] == page &+ 1
  }
  func remove(_ page: UInt64) {
    guard let slots else { return }
    let index = slot(page, slots)
    if slots[index] != 0 { slots[index] |= Self.removed }
  }
  /// False: the set is full, and the page is not in it.
  mutating func insert(_ page: UInt64) -> Bool {
    let slots = self.slots ?? HostMemory.zeroed(UInt64.self, count: Self.capacity)
    self.slots = slots
    let index = slot(page, slots)
    if slots[index] != 0 {
      slots[index] &= ~Self.removed
      return true
    }
    if count >= Self.limit { return false }
    slots[index] = page &+ 1
    count += 1
    return true
  }
  mutating func removeAll() {
    if count == 0 { return }
    slots?.update(repeating: 0, count: Self.capacity)
    count = 0
  }
}
