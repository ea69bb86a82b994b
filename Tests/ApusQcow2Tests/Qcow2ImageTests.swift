import ApusBlock
import ApusHost
import ApusQcow2
import ApusTestKit
import Testing

@Suite struct Qcow2ImageTests {
  static let variants: [Qcow2Image.CreateOptions] = {
    var list: [Qcow2Image.CreateOptions] = []
    for bits in [1, 2, 4, 8, 16, 32, 64] {
      var options = Qcow2Image.CreateOptions(byteCount: 1 << 20)
      options.refcountBits = bits
      options.clusterByteCount = 512 << UInt64(list.count)
      list.append(options)
    }
    var old = Qcow2Image.CreateOptions(byteCount: 1 << 20)
    (old.version, old.clusterByteCount) = (2, 4096)
    var extended = Qcow2Image.CreateOptions(byteCount: 1 << 20)
    (extended.extendedL2, extended.clusterByteCount) = (true, 16384)
    var lazy = Qcow2Image.CreateOptions(byteCount: 1 << 20)
    (lazy.lazyRefcounts, lazy.compression) = (true, .zstd)
    return list + [old, extended, lazy]
  }()

  /// Random requests against an array of bytes that does the same.
  @Test(arguments: variants.indices) func randomRequests(number: Int) throws {
    var generator = SeededGenerator(seed: UInt64(number) + 1)
    var options = Self.variants[number]
    options.backingFile = "base"
    options.backingFormat = "raw"
    var model = [UInt8](repeating: 0, count: 1 << 20)
    for index in 0..<(1 << 19) { model[index] = UInt8(truncatingIfNeeded: index / 512 &* 7 &+ 1) }
    let backing = try MemoryNode(Array(model[..<(1 << 19)]))
    let file = MemoryNode()
    var image = try Qcow2Image.create(options, on: file)
    image.attachBacking(backing)
    for round in 0..<160 {
      let offset = Int.random(in: 0..<(1 << 20), using: &generator)
      let count = min(Int.random(in: 1..<40000, using: &generator), (1 << 20) - offset)
      switch Int.random(in: 0..<10, using: &generator) {
      case 0..<6:
        let byte = UInt8.random(in: 0...255, using: &generator)
        try image.write([UInt8](repeating: byte, count: count), at: UInt64(offset))
        for index in offset..<offset + count { model[index] = byte }
      case 6, 7:
        try image.writeZeroes(at: UInt64(offset), byteCount: UInt64(count), mayUnmap: round % 2 == 0)
        for index in offset..<offset + count { model[index] = 0 }
      case 8: try image.flush()
      default:
        #expect(try image.bytes(at: UInt64(offset), count: count) == Array(model[offset..<offset + count]))
      }
      if round % 40 == 39 {
        try image.close()
        image = try Qcow2Image(file, backing: backing)
        let result = try image.check()
        #expect(result.corruptions == 0 && result.leaks == 0, "\(result.messages.prefix(5))")
      }
    }
    #expect(try image.bytes(at: 0, count: 1 << 20) == model)
  }

  @Test func snapshots() throws {
    let file = MemoryNode()
    let image = try Qcow2Image.create(.init(byteCount: 1 << 20), on: file)
    try image.write([UInt8](repeating: 1, count: 200_000), at: 1000)
    try image.createSnapshot("one", dateSeconds: 1)
    try image.write([UInt8](repeating: 2, count: 100_000), at: 50_000)
    try image.createSnapshot("two", dateSeconds: 2)
    #expect(image.snapshotList.map(\.name) == ["one", "two"])
    let old = try image.snapshotNode("one")
    #expect(try old.bytes(at: 60_000, count: 2) == [1, 1])
    try image.applySnapshot("one")
    #expect(try image.bytes(at: 60_000, count: 2) == [1, 1])
    try image.write([3], at: 60_000)
    try image.applySnapshot("two")
    #expect(try image.bytes(at: 60_000, count: 2) == [2, 2])
    try image.deleteSnapshot("one")
    try image.deleteSnapshot("2")
    #expect(throws: BlockError.self) { try image.deleteSnapshot("two") }
    let result = try image.check()
    #expect(result.corruptions == 0 && result.leaks == 0, "\(result.messages.prefix(5))")
  }

  @Test func concurrentWriters() throws {
    let file = MemoryNode()
    let image = try Qcow2Image.create(.init(byteCount: 4 << 20), on: file)
    let threads = (0..<4).map { number in
      HostThread.spawn("writer") {
        // Neighbours share clusters: each writes every fourth sector.
        for sector in stride(from: number, to: 2048, by: 4) {
          do {
            try image.write([UInt8](repeating: UInt8(number + 1), count: 512), at: UInt64(sector) * 512)
          } catch {
            Issue.record("\(error)")
          }
        }
      }
    }
    for thread in threads { thread.join() }
    try image.flush()
    let bytes = try image.bytes(at: 0, count: 1 << 20)
    for sector in 0..<2048 { #expect(bytes[sector * 512] == UInt8(sector % 4 + 1)) }
    #expect(try image.check().corruptions == 0)
  }

  /// Whatever the first writes of a dying program were, the file is consistent.
  @Test(arguments: 0..<12) func powerCut(seed: Int) throws {
    var generator = SeededGenerator(seed: UInt64(seed) + 100)
    let journal = JournalNode()
    let image = try Qcow2Image.create(.init(byteCount: 8 << 20), on: journal)
    try image.flush()
    var flushed: [(point: Int, model: [UInt8], changes: Int)] = []
    var model = [UInt8](repeating: 0, count: 2048)
    // Blocks in the order of their changes: one changed after a flush may read as anything that it had since.
    var changed: [Int] = []
    flushed.append((journal.count, model, changed.count))
    for step in 0..<60 {
      let block = Int.random(in: 0..<model.count, using: &generator)
      let value = UInt8.random(in: 1...255, using: &generator)
      switch step % 6 {
      case 5:
        try image.discard(at: UInt64(block & ~15) * 4096, byteCount: 65536)
        for index in (block & ~15)..<(block & ~15) + 16 {
          model[index] = 0
          changed.append(index)
        }
      default:
        try image.write([UInt8](repeating: value, count: 4096), at: UInt64(block) * 4096)
        model[block] = value
        changed.append(block)
      }
      if step % 7 == 6 {
        try image.flush()
        flushed.append((journal.count, model, changed.count))
      }
    }
    try image.close()
    for _ in 0..<40 {
      let point = Int.random(in: flushed[0].point...journal.count, using: &generator)
      let survivor = try journal.state(at: point, dropping: { Bool.random(using: &generator) })
      var options = Qcow2Image.Options()
      options.isForCheck = true
      let reopened = try Qcow2Image(survivor, options: options)
      let result = try reopened.check()
      #expect(result.corruptions == 0, "cut at \(point): \(result.messages.prefix(4))")
      guard let safe = flushed.last(where: { $0.point <= point }) else { continue }
      let later = Set(changed[safe.changes...])
      let bytes = try reopened.bytes(at: 0, count: 8 << 20)
      for (block, value) in safe.model.enumerated() where !later.contains(block) {
        let places = [0, 511, 512, 2048, 4095].map { bytes[block * 4096 + $0] }
        guard let found = places.first(where: { $0 != value }) else { continue }
        Issue.record(
          "cut at \(point), flushed at \(safe.point): block \(block) has \(found) instead of \(value)")
        break
      }
    }
  }
}

/// Records writes and flushes, so that any state that a power cut could leave can be made.
final class JournalNode: ImageNode, @unchecked Sendable {
  private enum Item {
    case write(UInt64, [UInt8])
    case truncate(UInt64)
    case flush
  }
  // SAFETY: tests use it from one thread at a time.
  private var items: [Item] = []
  private let live = MemoryNode()
  var driverName: String { "journal" }
  var byteCount: UInt64 { live.byteCount }
  var isReadOnly: Bool { false }
  var isZeroInitialized: Bool { true }
  var count: Int { items.count }

  func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    try live.read(at: offset, into: buffers)
  }
  func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let bytes = buffers.flatMap { [UInt8](UnsafeRawBufferPointer(start: $0.base, count: $0.byteCount)) }
    items.append(.write(offset, bytes))
    try live.write(at: offset, from: buffers)
  }
  func flush() { items.append(.flush) }
  func discard(at offset: UInt64, byteCount: UInt64) {}
  func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    try write([UInt8](repeating: 0, count: Int(byteCount)), at: offset)
  }
  func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    items.append(.truncate(byteCount))
    try live.truncate(byteCount, preallocation: preallocation)
  }
  func close() {}

  /// What is on the medium if the power goes after `count` items: of what no flush covers, some is lost.
  func state(at count: Int, dropping isLost: () -> Bool) throws -> MemoryNode {
    let node = MemoryNode()
    let lastFlush = items[..<count].lastIndex { if case .flush = $0 { true } else { false } } ?? 0
    for (index, item) in items[..<count].enumerated() {
      switch item {
      case .write(let offset, let bytes):
        if index < lastFlush || !isLost() { try node.write(bytes, at: offset) }
      case .truncate(let size): try node.truncate(size, preallocation: .off)
      case .flush: break
      }
    }
    return node
  }
}
