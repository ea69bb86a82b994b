import ApusHost
import Synchronization

/// Fails chosen requests, for tests of what stands on top (`blkdebug`), and shows limits that other drivers have.
///
/// What stands on top says what it is about to do (`note`): rules may wait for such an event, and for a state that other
/// events set. Any thread.
public final class FaultNode: ImageNode {
  public enum Operation: String, Sendable, CaseIterable {
    case read, write
    case writeZeroes = "write-zeroes"
    case discard, flush
    case blockStatus = "block-status"
  }
  /// Which requests fail, and how.
  public struct Rule: Sendable {
    /// The rule holds from this event on until another event brings other rules; `nil`: always.
    public var event: String?
    /// The state in which the event counts; 0: any.
    public var state = 0
    /// `nil`: any but block-status.
    public var operation: Operation?
    /// The request that touches this sector; `nil`: any.
    public var sector: UInt64?
    /// So many requests pass first.
    public var after = 0
    public var isOnce = false
    /// 5: an I/O error; 28: no space.
    public var errno: Int32 = 5
    public init() {}
  }
  /// An event that changes the state.
  public struct Transition: Sendable {
    public var event: String
    /// 0: any.
    public var state: Int
    public var newState: Int
    public init(event: String, state: Int, newState: Int) {
      (self.event, self.state, self.newState) = (event, state, newState)
    }
  }
  /// Sizes in bytes; 0: no limit, or the file's own.
  public struct Limits: Sendable {
    /// Requests below are multiples of this.
    public var alignment: UInt64 = 0
    public var maximumTransfer: UInt64 = 0
    public var bestZeroing: UInt64 = 0
    public var maximumZeroing: UInt64 = 0
    public var bestDiscard: UInt64 = 0
    public var maximumDiscard: UInt64 = 0
    public init() {}
  }
  private struct State {
    var rules: [Rule]
    /// Rules in force that wait for no event any more, by their place in `rules`.
    var active: Set<Int> = []
    var spent: Set<Int> = []
    var state = 1
  }
  public let file: any ImageNode
  private let limits: Limits
  private let transitions: [Transition]
  private let state: Mutex<State>
  // Ranges of requests that read before they write; those that overlap take turns.
  private let merging = Monitor()
  private let merges = Mutex<[Range<UInt64>]>([])
  let breakpoints = Breakpoints()

  public init(
    _ file: any ImageNode, _ rules: [Rule], transitions: [Transition] = [], limits: Limits = Limits()
  ) {
    (self.file, self.transitions, self.limits) = (file, transitions, limits)
    state = Mutex(State(rules: rules))
  }

  public var driverName: String { "blkdebug" }
  public var byteCount: UInt64 { file.byteCount }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var isZeroInitialized: Bool { file.isZeroInitialized }
  public var clusterByteCount: UInt64 { file.clusterByteCount }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }

  // MARK: Rules

  /// The names of what may happen, as `event=` and breakpoints know them.
  public static let events = [
    "l1_update", "l2_load", "l2_update", "read_aio", "read_compressed", "write_aio", "refblock_load",
    "refblock_update_part", "refblock_alloc_write", "refblock_alloc_hookup", "cluster_alloc", "cluster_free",
    "cor_write", "pwritev", "pwritev_zero", "pwritev_done", "pwritev_rmw_head", "pwritev_rmw_after_head",
    "pwritev_rmw_tail", "pwritev_rmw_after_tail",
  ]

  public func note(_ event: StaticString) { happened(event.description) }

  private func happened(_ event: String) {
    breakpoints.happened(event)
    state.withLock { state in
      let found = state.rules.indices.filter {
        let rule = state.rules[$0]
        return rule.event == event && (rule.state == 0 || rule.state == state.state)
          && !state.spent.contains($0)
      }
      if !found.isEmpty { state.active = Set(found) }
      let present = state.state
      for transition in transitions
      where transition.event == event && (transition.state == 0 || transition.state == present) {
        state.state = transition.newState
      }
    }
  }

  private func check(_ operation: Operation, _ offset: UInt64, _ byteCount: UInt64) throws(BlockError) {
    let errno: Int32? = state.withLock { state in
      for (index, rule) in state.rules.enumerated() {
        guard !state.spent.contains(index), rule.event == nil || state.active.contains(index),
          rule.operation.map({ $0 == operation }) ?? (operation != .blockStatus)
        else { continue }
        if let sector = rule.sector,
          !(offset..<max(offset + byteCount, offset + 1)).overlaps(sector * 512..<sector * 512 + 512)
        {
          continue
        }
        if rule.after > 0 {
          state.rules[index].after -= 1
          continue
        }
        if rule.isOnce { state.spent.insert(index) }
        return rule.errno
      }
      return nil
    }
    if let errno {
      throw BlockError(
        errno == 28 ? .noSpace : .io,
        "blkdebug: the \(operation.rawValue) at 0x\(String(offset, radix: 16)) fails as asked")
    }
  }

  // MARK: Limits

  private var alignment: UInt64 { max(1, limits.alignment) }

  /// The range that whole units of the alignment cover, up to the file's end in such units.
  private func outer(_ offset: UInt64, _ byteCount: UInt64) -> Range<UInt64> {
    let end = (offset + byteCount + alignment - 1) / alignment * alignment
    return offset / alignment
      * alignment..<max(offset + byteCount, min(end, max(end - alignment, self.byteCount)))
  }

  /// Cuts a range at multiples of `best` and into pieces of at most `most` bytes.
  private func forEachPiece(
    _ offset: UInt64, _ byteCount: UInt64, best: UInt64, most: UInt64,
    _ body: (UInt64, UInt64) throws(BlockError) -> Void
  ) throws(BlockError) {
    var position = offset
    let end = offset + byteCount
    while position < end {
      var count = end - position
      if best > 0, position % best != 0 {
        count = min(count, best - position % best)
      } else if best > 0, count > best {
        count -= count % best
      }
      if most > 0 { count = min(count, best > 0 && most >= best ? most / best * best : most) }
      try body(position, count)
      position += count
    }
  }

  /// Waits until nobody else changes a part of `range`.
  private func beginMerging(_ range: Range<UInt64>) {
    merging.withLock {
      while merges.withLock({ $0.contains { $0.overlaps(range) } }) { merging.wait() }
      merges.withLock { $0.append(range) }
    }
  }
  private func endMerging(_ range: Range<UInt64>) {
    merging.withLock {
      merges.withLock { $0.removeAll { $0 == range } }
      merging.broadcast()
    }
  }

  private func withBounce(
    _ range: Range<UInt64>, _ body: (HostBuffer) throws(BlockError) -> Void
  ) throws(BlockError) {
    let buffer = HostBuffer(byteCount: range.count)
    try check(.read, range.lowerBound, UInt64(range.count))
    try file.read(at: range.lowerBound, into: [buffer.io])
    try body(buffer)
  }

  // MARK: Requests

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    try forEachPiece(offset, UInt64(buffers.totalByteCount), best: 0, most: limits.maximumTransfer) {
      (start, count) throws(BlockError) in
      let part = buffers.slice(offset: Int(start - offset), count: Int(count))
      let range = outer(start, count)
      if range == start..<start + count {
        try check(.read, start, count)
        return try file.read(at: start, into: part)
      }
      try withBounce(range) { buffer in
        var position = Int(start - range.lowerBound)
        for piece in part {
          HostBytes.copy(piece.base, buffer.base + position, piece.byteCount)
          position += piece.byteCount
        }
      }
    }
  }

  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    try forEachPiece(offset, UInt64(buffers.totalByteCount), best: 0, most: limits.maximumTransfer) {
      (start, count) throws(BlockError) in
      let part = buffers.slice(offset: Int(start - offset), count: Int(count))
      let range = outer(start, count)
      if alignment > 1 { beginMerging(range) }
      defer { if alignment > 1 { endMerging(range) } }
      if range == start..<start + count {
        happened("pwritev")
        try check(.write, start, count)
        try file.write(at: start, from: part)
        return happened("pwritev_done")
      }
      let edges = [("head", range.lowerBound < start), ("tail", range.upperBound > start + count)].filter(\.1)
      for edge in edges { happened("pwritev_rmw_\(edge.0)") }
      try withBounce(range) { (buffer) throws(BlockError) in
        for edge in edges { happened("pwritev_rmw_after_\(edge.0)") }
        var position = Int(start - range.lowerBound)
        for piece in part {
          HostBytes.copy(buffer.base + position, piece.base, piece.byteCount)
          position += piece.byteCount
        }
        happened("pwritev")
        try check(.write, range.lowerBound, UInt64(range.count))
        try file.write(at: range.lowerBound, from: [buffer.io])
        happened("pwritev_done")
      }
    }
  }

  public func flush() throws(BlockError) {
    try check(.flush, 0, 0)
    try file.flush()
  }

  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    // A discard is a hint: what is no whole unit stays.
    let body = AlignedRange(offset, byteCount, unit: alignment).body
    try forEachPiece(
      body.lowerBound, UInt64(body.count), best: limits.bestDiscard, most: limits.maximumDiscard
    ) { (start, count) throws(BlockError) in
      try check(.discard, start, count)
      try file.discard(at: start, byteCount: count)
    }
  }

  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    happened("pwritev_zero")
    let range = AlignedRange(offset, byteCount, unit: alignment)
    for edge in [range.head, range.tail] where !edge.isEmpty {
      if outer(edge.lowerBound, UInt64(edge.count)) == edge {
        try check(.writeZeroes, edge.lowerBound, UInt64(edge.count))
        try file.writeZeroes(at: edge.lowerBound, byteCount: UInt64(edge.count), mayUnmap: mayUnmap)
      } else {
        try write(at: edge.lowerBound, from: [HostBuffer(byteCount: edge.count).io])
      }
    }
    try forEachPiece(
      range.body.lowerBound, UInt64(range.body.count), best: limits.bestZeroing, most: limits.maximumZeroing
    ) { (start, count) throws(BlockError) in
      guard limits.bestZeroing == 0 || (start % limits.bestZeroing == 0 && count % limits.bestZeroing == 0)
      else {
        // A driver with such a limit refuses: real zeros do.
        return try writeZeroBytes(start, count)
      }
      try check(.writeZeroes, start, count)
      try file.writeZeroes(at: start, byteCount: count, mayUnmap: mayUnmap)
    }
    happened("pwritev_done")
  }

  private func writeZeroBytes(_ offset: UInt64, _ byteCount: UInt64) throws(BlockError) {
    let zeros = HostBuffer(byteCount: Int(min(byteCount, 1 << 20)))
    try forEachPiece(offset, byteCount, best: 0, most: UInt64(zeros.byteCount)) {
      (start, count) throws(BlockError) in
      try check(.write, start, count)
      try file.write(at: start, from: [zeros.io(0, Int(count))])
    }
  }

  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    try check(.blockStatus, offset, byteCount)
    if alignment == 1 { return try file.status(at: offset, byteCount: byteCount) }
    // Units of the alignment are alike as a whole.
    let range = outer(offset, byteCount)
    var result = try unitStatus(range.lowerBound, range.upperBound)
    let skipped = offset - range.lowerBound
    result.byteCount = min(result.byteCount - skipped, byteCount)
    result.hostOffset = result.hostOffset.map { $0 + skipped }
    return result
  }

  private func unitStatus(_ start: UInt64, _ end: UInt64) throws(BlockError) -> BlockStatus {
    var result = try file.status(at: start, byteCount: end - start)
    if start + result.byteCount >= end { return result }
    if result.byteCount >= alignment {
      result.byteCount -= result.byteCount % alignment
      return result
    }
    let stop = min(end, start + alignment)
    while start + result.byteCount < stop {
      let place = start + result.byteCount
      let next = try file.status(at: place, byteCount: stop - place)
      result.byteCount += next.byteCount
      result.isData = result.isData || next.isData
      result.isZero = result.isZero && next.isZero
      result.isAllocated = result.isAllocated || next.isAllocated
    }
    return result
  }

  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    try file.truncate(byteCount, preallocation: preallocation)
  }
  public func close() throws(BlockError) { try file.close() }
}
