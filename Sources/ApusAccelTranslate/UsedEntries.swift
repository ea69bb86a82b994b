/// Which entries of a cache have been filled since they were cleared, by translation context: clearing a few one by one costs
/// less than clearing all.
///
/// Owned by one thread, which calls `deallocate` at the end.
struct UsedEntries {
  private let limit: Int
  // SAFETY: a number for each context, and `limit` indices for each, until `deallocate`.
  private let counts: UnsafeMutablePointer<Int>
  private let indices: UnsafeMutablePointer<UInt16>

  /// - Parameter limit: more than so many in a context are too many to tell.
  init(contextCount: Int, limit: Int) {
    self.limit = limit
    counts = .allocate(capacity: contextCount)
    counts.initialize(repeating: 0, count: contextCount)
    indices = .allocate(capacity: contextCount * limit)
  }
  func deallocate() {
    counts.deallocate()
    indices.deallocate()
  }

  /// An entry is filled, perhaps not for the first time.
  @inline(__always)
  func note(_ index: Int, _ context: Int) {
    let count = counts[context]
    if count < limit { indices[context * limit + count] = UInt16(index) }
    if count <= limit { counts[context] = count + 1 }
  }
  func isEmpty(_ context: Int) -> Bool { counts[context] == 0 }
  /// `nil`: too many.
  func list(_ context: Int) -> UnsafeBufferPointer<UInt16>? {
    counts[context] > limit
      ? nil : UnsafeBufferPointer(start: indices + context * limit, count: counts[context])
  }
  func reset(_ context: Int) { counts[context] = 0 }
}
