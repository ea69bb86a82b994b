import ApusBlock
import ApusHost

/// Consistency: what the tables refer to against what the reference counts say.
extension Qcow2Image {
  public enum Repair: Sendable { case none, leaks, all }

  public struct CheckResult: Sendable, Equatable {
    public var corruptions = 0
    public var leaks = 0
    public var corruptionsFixed = 0
    public var leaksFixed = 0
    /// What could not be looked at.
    public var checkErrors = 0
    public var imageEndOffset: UInt64 = 0
    public var totalClusters: UInt64 = 0
    public var allocatedClusters: UInt64 = 0
    public var fragmentedClusters: UInt64 = 0
    public var compressedClusters: UInt64 = 0
    /// A sentence for each finding, up to a limit.
    public var messages: [String] = []
    public init() {}

    mutating func report(_ text: String) { if messages.count < 1000 { messages.append(text) } }
  }

  /// Reference counts, kept for the parts of the file that have any.
  struct CountMap {
    static let chunk: UInt64 = 1 << 14
    final class Chunk { var counts = [UInt32](repeating: 0, count: Int(CountMap.chunk)) }
    private var chunks: [UInt64: Chunk] = [:]
    /// The chunk of the last increment: neighbours follow each other.
    private var recent: (key: UInt64, chunk: Chunk)?
    private(set) var end: UInt64 = 0

    subscript(cluster: UInt64) -> UInt32 {
      chunks[cluster / Self.chunk]?.counts[Int(cluster % Self.chunk)] ?? 0
    }
    /// The counts of `[number * chunk, (number + 1) * chunk)`; `nil` if all are 0.
    func counts(chunk number: UInt64) -> [UInt32]? { chunks[number]?.counts }

    mutating func increment(_ cluster: UInt64) {
      let key = cluster / Self.chunk
      let chunk: Chunk
      if let recent, recent.key == key {
        chunk = recent.chunk
      } else {
        chunk = chunks[key] ?? Chunk()
        chunks[key] = chunk
        recent = (key, chunk)
      }
      chunk.counts[Int(cluster % Self.chunk)] += 1
      end = max(end, cluster + 1)
    }
    /// All clusters with a count.
    func visit(_ body: (UInt64, UInt32) throws(BlockError) -> Void) throws(BlockError) {
      for key in chunks.keys.sorted() {
        guard let counts = chunks[key]?.counts else { continue }
        for (index, count) in counts.enumerated() where count > 0 {
          try body(key * Self.chunk + UInt64(index), count)
        }
      }
    }
  }

  /// Looks for differences between references and counts, and repairs them if asked.
  public func check(repair: Repair = .none) throws(BlockError) -> CheckResult {
    var result = CheckResult()
    try locked { () throws(BlockError) in
      if repair != .none, isReadOnly { throw BlockError(.readOnly, "the image is open read-only") }
      isBroken = false
      try checkLocked(repair: repair, &result)
      if repair != .none, result.corruptions == 0, result.checkErrors == 0 {
        try file.flush()
        let flags = Qcow2Header.Incompatible.dirty | Qcow2Header.Incompatible.corrupt
        let unknown = header.autoclear & ~Qcow2Header.Autoclear.known
        if header.incompatible & flags != 0 || unknown != 0 {
          header.incompatible &= ~flags
          header.autoclear &= ~unknown
          try writeHeader()
        }
      }
    }
    return result
  }

  func checkLocked(repair: Repair, _ result: inout CheckResult) throws(BlockError) {
    try flushMetadata(isFinal: true)
    var counts = CountMap()
    let fileClusters = (file.byteCount + clusterSize - 1) >> clusterBits
    try collect(&counts, &result, repair: repair, fileClusters)
    var needsRebuild = false
    for (index, entry) in refcountTable.enumerated() where entry & ~511 != 0 {
      let offset = entry & ~511
      if offset & (clusterSize - 1) != 0 || offset >> clusterBits >= fileClusters {
        result.report("ERROR refcount block \(index) is misplaced at 0x\(String(offset, radix: 16))")
        result.corruptions += 1
        needsRebuild = true
      } else {
        counts.increment(offset >> clusterBits)
        if counts[offset >> clusterBits] != 1 {
          result.report("ERROR refcount block \(index) shares its cluster at 0x\(String(offset, radix: 16))")
          result.corruptions += 1
          needsRebuild = true
        }
      }
    }
    if needsRebuild {
      guard repair == .all else { return }
      try rebuildRefcounts(counts, &result)
    } else {
      // What a snapshot without its L1 table had is not free.
      let keepsLeaks = snapshots.contains { $0.damage == .misplacedL1 }
      try compare(counts, repair: keepsLeaks ? .none : repair, &result)
    }
    try checkCopiedFlags(repair: repair, &result)
    result.imageEndOffset = counts.end << clusterBits
    if repair != .none { try flushMetadata(isFinal: true) }
    freeHint = 0
    // Only now can clusters be had safely.
    if repair == .all, snapshotTableNeedsRewriting {
      try replaceSnapshotTable(snapshots)
      try flushMetadata(isFinal: true)
    }
  }

  // MARK: References

  private func collect(
    _ counts: inout CountMap, _ result: inout CheckResult, repair: Repair, _ fileClusters: UInt64
  ) throws(BlockError) {
    func add(_ offset: UInt64, _ byteCount: UInt64) {
      guard byteCount > 0 else { return }
      for cluster in (offset >> clusterBits)...((offset + byteCount - 1) >> clusterBits) {
        counts.increment(cluster)
      }
    }
    add(0, 1)
    add(header.refcountTableOffset, UInt64(header.refcountTableClusters) << clusterBits)
    if l1.count > 0 { add(header.l1Offset, UInt64(l1.count) * 8) }
    result.totalClusters = (header.byteCount + clusterSize - 1) >> clusterBits
    try collectTree(l1, isActive: true, &counts, &result, repair: repair, fileClusters)
    snapshots = try readSnapshots()
    reportSnapshotTable(&result, repair)
    // How far a table reaches that does not end is not known: a new one takes its place, and the old one is free.
    if header.snapshotCount > 0, !(snapshotTableIsCut && repair == .all) {
      add(header.snapshotsOffset, UInt64(snapshotTableByteCount))
    }
    for snapshot in snapshots where snapshot.damage != .misplacedL1 {
      if snapshot.l1Size > 0 { add(snapshot.l1Offset, UInt64(snapshot.l1Size) * 8) }
      try collectTree(
        try readL1(snapshot), isActive: false, &counts, &result, repair: repair, fileClusters)
    }
    if header.encryption != 0, let place = header.encryptionHeader { add(place.offset, place.byteCount) }
    for range in try bitmapRanges(&result) { add(range.offset, range.byteCount) }
  }

  private func reportSnapshotTable(_ result: inout CheckResult, _ repair: Repair) {
    for (number, snapshot) in snapshots.enumerated() {
      guard let damage = snapshot.damage else { continue }
      let text = "snapshot table entry \(number) (\(snapshot.name)) \(damage.text)"
      // Where a lost L1 table was is not to be known.
      note(&result, damage == .misplacedL1 ? .none : repair, text)
    }
    if snapshotTableIsCut {
      note(
        &result, repair, "the snapshot table ends after \(snapshots.count) of \(header.snapshotCount) entries"
      )
    }
  }

  /// Whether writing the snapshot table anew mends it.
  private var snapshotTableNeedsRewriting: Bool {
    snapshotTableIsCut || snapshots.contains { $0.damage == .incomplete || $0.damage == .excess }
  }

  private func collectTree(
    _ table: [UInt64], isActive: Bool, _ counts: inout CountMap, _ result: inout CheckResult, repair: Repair,
    _ fileClusters: UInt64
  ) throws(BlockError) {
    var nextContiguous: UInt64 = 0
    for (number, l1Entry) in table.enumerated() {
      let offset = l1Entry & Entry.offsetMask
      if offset == 0 { continue }
      guard offset & (clusterSize - 1) == 0, offset >> clusterBits < fileClusters else {
        result.report("ERROR L2 table \(number) is misplaced at 0x\(String(offset, radix: 16))")
        result.corruptions += 1
        continue
      }
      counts.increment(offset >> clusterBits)
      let l2 = try loadL2(at: offset)
      var next = 0
      while let index = nextUsedEntry(l2, from: next) {
        next = index + 1
        let item = entry(l2, index)
        if item.isCompressed {
          let range = compressedRange(item.descriptor)
          let last = (range.offset + UInt64(range.byteCount) - 1) >> clusterBits
          guard last <= fileClusters else {
            result.report("ERROR a compressed cluster lies behind the file's end")
            result.corruptions += 1
            continue
          }
          for cluster in (range.offset >> clusterBits)...last { counts.increment(cluster) }
          if isActive {
            (result.allocatedClusters, result.compressedClusters) =
              (result.allocatedClusters + 1, result.compressedClusters + 1)
            // Compressed clusters are fragmented by nature.
            result.fragmentedClusters += 1
          }
          continue
        }
        if item.hostOffset == 0 && dataFile == nil { continue }
        if dataFile != nil {
          if isActive, kind(item, unit: 0) != .unallocated { result.allocatedClusters += 1 }
          continue
        }
        guard item.hostOffset & (clusterSize - 1) == 0, item.hostOffset >> clusterBits <= fileClusters else {
          result.report(
            "ERROR the cluster at guest offset 0x\(String((UInt64(number) << l2Bits + UInt64(index)) << clusterBits, radix: 16)) "
              + "is misplaced at 0x\(String(item.hostOffset, radix: 16))")
          result.corruptions += 1
          if repair == .all, isActive, item.descriptor & Entry.zero != 0 {
            setEntry(l2, index, L2Entry(descriptor: Entry.zero))
            result.corruptions -= 1
            result.corruptionsFixed += 1
          }
          continue
        }
        counts.increment(item.hostOffset >> clusterBits)
        if isActive {
          result.allocatedClusters += 1
          if nextContiguous != 0, item.hostOffset != nextContiguous { result.fragmentedClusters += 1 }
          nextContiguous = item.hostOffset + clusterSize
        }
      }
    }
  }

  /// The first entry from `start` on that is not all zeros.
  private func nextUsedEntry(_ table: L2Table, from start: Int) -> Int? {
    let words = entryByteCount / 8
    let limit = words << Int(l2Bits)
    let position = start * words
    let used = position + HostBytes.zeroWordCount(table.buffer.base + position * 8, limit: limit - position)
    return used < limit ? used / words : nil
  }

  /// Counts all references and writes them with another width.
  func recount(order: Int) throws(BlockError) {
    var result = CheckResult()
    var counts = CountMap()
    try collect(&counts, &result, repair: .none, (file.byteCount + clusterSize - 1) >> clusterBits)
    guard result.corruptions == 0, result.checkErrors == 0 else {
      throw BlockError(.invalid, "qcow2 image: it is damaged; run check -r all first")
    }
    let limit = order >= 5 ? UInt64(UInt32.max) : (1 << (1 << UInt64(order))) - 1
    try counts.visit { (_, count) throws(BlockError) in
      if UInt64(count) > limit {
        throw BlockError(.unsupported, "a cluster has \(count) references, too many for \(1 << order) bits")
      }
    }
    for entry in refcountTable where entry & ~511 != 0 { counts.increment((entry & ~511) >> clusterBits) }
    header.refcountOrder = order
    try rebuildRefcounts(counts, &result)
    freeHint = 0
  }

  // MARK: Comparison and repair

  private func compare(_ counts: CountMap, repair: Repair, _ result: inout CheckResult) throws(BlockError) {
    var changes: [(cluster: UInt64, count: UInt64)] = []
    func judge(_ cluster: UInt64, stored: UInt64, found: UInt64) {
      if stored == found { return }
      let isLeak = stored > found
      let fixes = isLeak ? repair != .none : repair == .all
      result.report(
        "\(fixes ? "Repairing" : isLeak ? "Leaked" : "ERROR") cluster \(cluster) refcount=\(stored) reference=\(found)"
      )
      if fixes {
        changes.append((cluster, found))
        if isLeak { result.leaksFixed += 1 } else { result.corruptionsFixed += 1 }
      } else if isLeak {
        result.leaks += 1
      } else {
        result.corruptions += 1
      }
    }
    let perBlock = UInt64(1) << refcountBitsPerBlockLog
    for index in refcountTable.indices where refcountTable[index] & ~511 != 0 {
      let base = UInt64(index) * perBlock
      guard let block = try refcountBlock(base) else { continue }
      let piece = min(perBlock, CountMap.chunk)
      for start in stride(from: 0, to: perBlock, by: Int(piece)) {
        let first = base + start
        let byteCount = max(1, (Int(piece) << header.refcountOrder) >> 3)
        guard let found = counts.counts(chunk: first / CountMap.chunk) else {
          // Nothing is used here, and mostly nothing is counted.
          if HostBytes.isZero(block.buffer.base + (Int(start) << header.refcountOrder) >> 3, byteCount) {
            continue
          }
          for position in start..<start + piece {
            judge(base + position, stored: readCount(block.buffer, Int(position)), found: 0)
          }
          continue
        }
        for position in start..<start + piece {
          judge(
            base + position, stored: readCount(block.buffer, Int(position)),
            found: UInt64(found[Int((base + position) % CountMap.chunk)]))
        }
      }
    }
    try counts.visit { (cluster, count) throws(BlockError) in
      let index = Int(clamping: cluster / perBlock)
      if index >= refcountTable.count || refcountTable[index] & ~511 == 0 {
        judge(cluster, stored: 0, found: UInt64(count))
      }
    }
    // Counts that exist first: new blocks are placed by them.
    for change in changes where try refcountBlock(change.cluster) != nil {
      try setRefcount(change.cluster, change.count)
    }
    let missing = changes.filter { $0.count > 0 }
    for change in missing where try refcount(change.cluster) != change.count {
      if try refcountBlock(change.cluster) == nil {
        // A block at its range's start could hit used clusters: count everything anew at the file's end.
        return try rebuildRefcounts(counts, &result)
      }
    }
  }

  /// Writes a new refcount table with new blocks behind everything that is used.
  private func rebuildRefcounts(_ counts: CountMap, _ result: inout CheckResult) throws(BlockError) {
    // The old structure is not counted.
    var fresh = CountMap()
    let oldTable = clusters(header.refcountTableOffset, header.refcountTableClusters << Int(clusterBits))
    let oldBlocks = Set(refcountTable.filter { $0 & ~511 != 0 }.map { ($0 & ~511) >> clusterBits })
    try counts.visit { (cluster, count) throws(BlockError) in
      var left = count
      if oldTable.contains(cluster), left > 0 { left -= 1 }
      if oldBlocks.contains(cluster), left > 0 { left -= 1 }
      for _ in 0..<left { fresh.increment(cluster) }
    }
    let perBlock = UInt64(1) << refcountBitsPerBlockLog
    let start = max((file.byteCount + clusterSize - 1) >> clusterBits, counts.end)
    var blocks: Set<UInt64> = []
    try fresh.visit { (cluster, _) throws(BlockError) in blocks.insert(cluster / perBlock) }
    var tableClusters: UInt64 = 1
    while true {
      let used = UInt64(blocks.count) + tableClusters
      var grown = blocks
      for cluster in start..<start + used { grown.insert(cluster / perBlock) }
      let entries = (grown.max() ?? 0) + 1
      let needed = (entries * 8 + clusterSize - 1) >> clusterBits
      if grown == blocks, needed <= tableClusters { break }
      (blocks, tableClusters) = (grown, max(needed, tableClusters))
    }
    guard tableClusters << clusterBits <= 8 << 20 else {
      throw BlockError(.noSpace, "qcow2 image: the refcount table would be larger than 8 MiB")
    }
    let order = blocks.sorted()
    for cluster in start..<start + UInt64(order.count) + tableClusters { fresh.increment(cluster) }
    var table = [UInt64](repeating: 0, count: Int(tableClusters << (clusterBits - 3)))
    refcountBlocks.removeAll()
    for (number, index) in order.enumerated() {
      let buffer = HostBuffer(byteCount: Int(clusterSize))
      for position in 0..<perBlock {
        writeCount(buffer, Int(position), UInt64(fresh[index * perBlock + position]))
      }
      let offset = (start + UInt64(number)) << clusterBits
      try file.write(at: offset, from: buffer.io)
      table[Int(index)] = offset
    }
    let tableOffset = (start + UInt64(order.count)) << clusterBits
    try file.write(table.flatMap(bigEndianBytes), at: tableOffset)
    try file.flush()
    refcountTable = table
    header.refcountTableOffset = tableOffset
    header.refcountTableClusters = Int(tableClusters)
    try writeHeader()
    try file.flush()
    rememberMetadata()
    result.report("The reference counts were built anew")
    result.corruptionsFixed += result.corruptions
    result.corruptions = 0
    result.leaksFixed += result.leaks
    result.leaks = 0
  }

  private func checkCopiedFlags(repair: Repair, _ result: inout CheckResult) throws(BlockError) {
    for (index, l1Entry) in l1.enumerated() {
      let offset = l1Entry & Entry.offsetMask
      guard offset != 0, offset & (clusterSize - 1) == 0 else { continue }
      let isOwn = try refcount(offset >> clusterBits) == 1
      if isOwn != (l1Entry & Entry.copied != 0) {
        // To set it is safe once leaks are gone.
        let fixes = repair == .all || repair == .leaks && isOwn
        note(&result, fixes ? .all : .none, "the COPIED flag of L2 table \(index) contradicts its count")
        if fixes {
          l1[index] ^= Entry.copied
          dirtyL1Sectors.insert(index / 64)
        }
      }
      let table = try loadL2(at: offset)
      var next = 0
      while let position = nextUsedEntry(table, from: next) {
        next = position + 1
        var item = entry(table, position)
        if item.isCompressed {
          if item.isCopied {
            note(&result, repair, "a compressed cluster has the COPIED flag")
            if repair == .all {
              item.descriptor &= ~Entry.copied
              setEntry(table, position, item)
            }
          }
          continue
        }
        guard item.hostOffset != 0, item.hostOffset & (clusterSize - 1) == 0, dataFile == nil else {
          continue
        }
        let isOwn = try refcount(item.hostOffset >> clusterBits) == 1
        if isOwn != item.isCopied {
          let fixes = repair == .all || repair == .leaks && isOwn
          note(
            &result, fixes ? .all : .none,
            "the COPIED flag of the cluster at 0x\(String(item.hostOffset, radix: 16)) contradicts its count")
          if fixes {
            item.descriptor ^= Entry.copied
            setEntry(table, position, item)
          }
        }
      }
    }
  }

  private func note(_ result: inout CheckResult, _ repair: Repair, _ text: String) {
    result.report("\(repair == .all ? "Repairing" : "ERROR") \(text)")
    if repair == .all { result.corruptionsFixed += 1 } else { result.corruptions += 1 }
  }
}
