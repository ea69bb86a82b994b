import ApusBlock
import ApusHost

/// Reference counts of host clusters and their allocation. All with the lock held.
extension Qcow2Image {
  var refcountBitsPerBlockLog: UInt64 { clusterBits + 3 - UInt64(header.refcountOrder) }
  var maximumRefcount: UInt64 {
    header.refcountOrder == 6 ? .max : (1 << (1 << UInt64(header.refcountOrder))) - 1
  }

  func readCount(_ buffer: HostBuffer, _ index: Int) -> UInt64 {
    switch header.refcountOrder {
    case 3: return UInt64(buffer.bytes[index])
    case 4: return UInt64(buffer.big16(index * 2))
    case 5: return UInt64(buffer.big32(index * 4))
    case 6: return buffer.big64(index * 8)
    default:
      // Several in a byte, the lowest bits first.
      let bits = 1 << header.refcountOrder
      let shift = (index * bits) & 7
      return UInt64(buffer.bytes[(index * bits) >> 3] >> UInt8(shift)) & ((1 << UInt64(bits)) - 1)
    }
  }

  func writeCount(_ buffer: HostBuffer, _ index: Int, _ value: UInt64) {
    switch header.refcountOrder {
    case 3: buffer.bytes[index] = UInt8(truncatingIfNeeded: value)
    case 4: buffer.setBig(index * 2, UInt16(truncatingIfNeeded: value))
    case 5: buffer.setBig(index * 4, UInt32(truncatingIfNeeded: value))
    case 6: buffer.setBig(index * 8, value)
    default:
      let bits = 1 << header.refcountOrder
      let shift = UInt8((index * bits) & 7)
      let mask = UInt8((1 << bits) - 1) << shift
      let byte = buffer.bytes[(index * bits) >> 3]
      buffer.bytes[(index * bits) >> 3] = byte & ~mask | UInt8(truncatingIfNeeded: value) << shift
    }
  }

  /// The block that counts `cluster`; `nil` if there is none (the count is 0).
  func refcountBlock(_ cluster: UInt64) throws(BlockError) -> RefcountBlock? {
    let index = Int(clamping: cluster >> refcountBitsPerBlockLog)
    if let block = refcountBlocks[index] { return block }
    guard index < refcountTable.count else { return nil }
    let offset = refcountTable[index] & ~511
    if offset == 0 { return nil }
    guard offset & (clusterSize - 1) == 0 else {
      throw corrupted("the refcount block at 0x\(String(offset, radix: 16)) is not aligned to clusters")
    }
    if UInt64(refcountBlocks.count) << clusterBits > 16 << 20 {
      if refcountBlocks.values.contains(where: { $0.isDirty }) { try writeRefcountBlocks() }
      refcountBlocks.removeAll(keepingCapacity: true)
    }
    let buffer = HostBuffer(byteCount: Int(clusterSize), isZeroed: false)
    file.note("refblock_load")
    try file.read(at: offset, into: buffer.io)
    let block = RefcountBlock(offset, buffer)
    refcountBlocks[index] = block
    return block
  }

  func refcount(_ cluster: UInt64) throws(BlockError) -> UInt64 {
    guard let block = try refcountBlock(cluster) else { return 0 }
    return readCount(block.buffer, Int(cluster & ((1 << refcountBitsPerBlockLog) - 1)))
  }

  func setRefcount(_ cluster: UInt64, _ value: UInt64) throws(BlockError) {
    guard value <= maximumRefcount else {
      throw BlockError(
        .unsupported,
        "qcow2 image: a cluster would have \(value) references; \(1 << header.refcountOrder)-bit counts end at "
          + "\(maximumRefcount)")
    }
    if try refcountBlock(cluster) == nil {
      if value == 0 { return }
      try addRefcountBlock(for: cluster)
    }
    guard let block = try refcountBlock(cluster) else { throw corrupted("a new refcount block is missing") }
    writeCount(block.buffer, Int(cluster & ((1 << refcountBitsPerBlockLog) - 1)), value)
    block.isDirty = true
    if value == 0, cluster < freeHint { freeHint = cluster }
  }

  /// Makes the block that counts `cluster`. Everything that the new block counts is free, so it goes there itself.
  func addRefcountBlock(for cluster: UInt64) throws(BlockError) {
    try markLazy()
    let index = Int(clamping: cluster >> refcountBitsPerBlockLog)
    let first = UInt64(index) << refcountBitsPerBlockLog
    if index >= refcountTable.count { return try growRefcountTable(from: first, covering: index) }
    let place = first == 0 ? 1 : first
    let buffer = HostBuffer(byteCount: Int(clusterSize))
    writeCount(buffer, Int(place - first), 1)
    let offset = place << clusterBits
    try checkOverlap(place..<place + 1)
    file.note("refblock_alloc_write")
    try file.write(at: offset, from: buffer.io)
    try file.flush()
    refcountTable[index] = offset
    file.note("refblock_alloc_hookup")
    try writeRefcountTableEntry(index)
    metadataClusters.insert(place)
    refcountBlocks[index] = RefcountBlock(offset, buffer)
  }

  private func writeRefcountTableEntry(_ index: Int) throws(BlockError) {
    // A sector at a time.
    let start = index & ~63
    var bytes: [UInt8] = []
    for entry in refcountTable[start..<min(start + 64, refcountTable.count)] {
      bytes += bigEndianBytes(entry)
    }
    try file.write(bytes, at: header.refcountTableOffset + UInt64(start) * 8)
  }

  /// Moves the refcount table, made larger, together with the blocks that count it, to `first` and behind.
  private func growRefcountTable(from first: UInt64, covering index: Int) throws(BlockError) {
    let perBlock = UInt64(1) << refcountBitsPerBlockLog
    let perCluster = clusterSize / 8
    let wanted = UInt64(max(index + 1, refcountTable.count + refcountTable.count / 2))
    var tableClusters = (wanted + perCluster - 1) / perCluster
    var blockCount: UInt64 = 1
    while true {
      blockCount = (blockCount + tableClusters + perBlock - 1) / perBlock
      let needed = (blockCount + tableClusters + perBlock - 1) / perBlock
      let entries = UInt64(index) + max(blockCount, needed)
      let clusters = max(tableClusters, (entries + perCluster - 1) / perCluster)
      if needed <= blockCount, clusters == tableClusters { break }
      (blockCount, tableClusters) = (max(blockCount, needed), clusters)
    }
    guard tableClusters << clusterBits <= 8 << 20 else {
      throw BlockError(.noSpace, "qcow2 image: the refcount table would be larger than 8 MiB")
    }
    var table = refcountTable
    table += [UInt64](repeating: 0, count: Int(tableClusters * perCluster) - table.count)
    let tableFirst = first + blockCount
    let used = blockCount + tableClusters
    try checkOverlap(first..<first + used)
    for number in 0..<blockCount {
      let buffer = HostBuffer(byteCount: Int(clusterSize))
      let base = number * perBlock
      for cluster in base..<min(base + perBlock, max(used, base)) {
        writeCount(buffer, Int(cluster - base), 1)
      }
      let offset = (first + number) << clusterBits
      try file.write(at: offset, from: buffer.io)
      table[index + Int(number)] = offset
      refcountBlocks[index + Int(number)] = RefcountBlock(offset, buffer)
      metadataClusters.insert(first + number)
    }
    try file.write(table.flatMap(bigEndianBytes), at: tableFirst << clusterBits)
    try file.flush()
    let old = header.refcountTableOffset >> clusterBits
    let oldClusters = UInt64(header.refcountTableClusters)
    refcountTable = table
    header.refcountTableOffset = tableFirst << clusterBits
    header.refcountTableClusters = Int(tableClusters)
    try writeHeader()
    try file.flush()
    for cluster in tableFirst..<tableFirst + tableClusters { metadataClusters.insert(cluster) }
    for cluster in old..<old + oldClusters { metadataClusters.remove(cluster) }
    release(old..<old + oldClusters)
  }

  func bigEndianBytes(_ value: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * UInt64($0))) }
  }

  // MARK: Allocation

  /// Takes up to `count` free clusters that lie side by side, at least one; their counts become 1.
  ///
  /// - Parameter exactly: all of them, wherever they are.
  func allocate(_ count: UInt64, exactly: Bool = false) throws(BlockError) -> Range<UInt64> {
    file.note("cluster_alloc")
    try markLazy()
    // Each new refcount block lies at the start of what it counts, in the way of longer runs.
    if exactly, count >> refcountBitsPerBlockLog > 0 { return try allocateLongRun(count) }
    var start = freeHint
    var length: UInt64 = 0
    var cluster = freeHint
    while length < count {
      if let block = try refcountBlock(cluster) {
        let perBlock = UInt64(1) << refcountBitsPerBlockLog
        if readCount(block.buffer, Int(cluster & (perBlock - 1))) == 0 {
          if length == 0 { start = cluster }
          length += 1
        } else if length > 0 {
          if !exactly { break }
          length = 0
        }
      } else if cluster << clusterBits >= 1 << 55 {
        throw BlockError(.noSpace, "qcow2 image: no room for another cluster")
      } else {
        // A block of its own comes first, at its range's start; then the search goes on behind it.
        if length > 0, !exactly { break }
        length = 0
        try addRefcountBlock(for: cluster)
        continue
      }
      cluster += 1
    }
    let range = start..<start + length
    try checkOverlap(range)
    for cluster in range { try setRefcount(cluster, 1) }
    if start <= freeHint || !exactly { freeHint = max(freeHint, range.upperBound) }
    return range
  }

  /// Takes more clusters side by side than one refcount block counts: behind all that is counted, after their blocks.
  private func allocateLongRun(_ count: UInt64) throws(BlockError) -> Range<UInt64> {
    let perBlock = UInt64(1) << refcountBitsPerBlockLog
    var blockCount = (count + perBlock - 1) / perBlock
    while blockCount * perBlock < blockCount + count { blockCount += 1 }
    func firstIndex() -> Int { (refcountTable.lastIndex { $0 & ~511 != 0 } ?? -1) + 1 }
    while firstIndex() + Int(blockCount) > refcountTable.count {
      // By half its length each time.
      let index = firstIndex()
      try growRefcountTable(from: UInt64(index) << refcountBitsPerBlockLog, covering: index)
    }
    let index = firstIndex()
    let first = UInt64(index) << refcountBitsPerBlockLog
    let used = blockCount + count
    guard (first + used) << clusterBits < 1 << 55 else {
      throw BlockError(.noSpace, "qcow2 image: no room for \(count) clusters side by side")
    }
    try checkOverlap(first..<first + used)
    for number in 0..<blockCount {
      let buffer = HostBuffer(byteCount: Int(clusterSize))
      let base = number * perBlock
      for cluster in base..<min(base + perBlock, used) { writeCount(buffer, Int(cluster - base), 1) }
      let offset = (first + number) << clusterBits
      try file.write(at: offset, from: buffer.io)
      refcountBlocks[index + Int(number)] = RefcountBlock(offset, buffer)
    }
    try file.flush()
    for number in 0..<blockCount {
      refcountTable[index + Int(number)] = (first + number) << clusterBits
      metadataClusters.insert(first + number)
    }
    for position in stride(from: index & ~63, to: index + Int(blockCount), by: 64) {
      try writeRefcountTableEntry(position)
    }
    return first + blockCount..<first + used
  }

  /// Refuses to use clusters that hold tables: the counts must be wrong.
  func checkOverlap(_ clusters: Range<UInt64>) throws(BlockError) {
    for cluster in clusters where metadataClusters.contains(cluster) {
      throw corrupted(
        "data would be written over metadata in the cluster at 0x\(String(cluster << clusterBits, radix: 16))"
      )
    }
  }

  /// Drops one reference each, once the tables on disk do not lead there.
  func release(_ clusters: Range<UInt64>) {
    if let last = pendingFrees.last, last.upperBound == clusters.lowerBound {
      pendingFrees[pendingFrees.count - 1] = last.lowerBound..<clusters.upperBound
    } else {
      pendingFrees.append(clusters)
    }
  }

  /// Drops what an entry refers to.
  func release(_ entry: L2Entry) {
    if entry.isCompressed {
      let range = compressedRange(entry.descriptor)
      // Each compressed cluster counts once for every host cluster that it touches.
      let first = range.offset >> clusterBits
      release(first..<((range.offset + UInt64(range.byteCount) - 1) >> clusterBits) + 1)
    } else if entry.hostOffset != 0, dataFile == nil {
      let cluster = entry.hostOffset >> clusterBits
      release(cluster..<cluster + 1)
    }
  }

  // MARK: Writing back

  /// With lazy refcounts: the first change marks the file, and counts stay in memory until it is closed.
  func markLazy() throws(BlockError) {
    let isLazy = lazyRefcountsGiven ?? (header.compatible & Qcow2Header.Compatible.lazyRefcounts != 0)
    guard isLazy, isVersion3, !refcountsAreLazy else { return }
    header.incompatible |= Qcow2Header.Incompatible.dirty
    refcountsAreLazy = true
    try writeHeader()
    try file.flush()
  }

  @discardableResult
  func writeRefcountBlocks() throws(BlockError) -> Bool {
    var isAny = false
    for block in refcountBlocks.values.filter({ $0.isDirty }).sorted(by: { $0.offset < $1.offset }) {
      file.note("refblock_update_part")
      try file.write(at: block.offset, from: block.buffer.io)
      block.isDirty = false
      isAny = true
    }
    return isAny
  }

  /// Brings the file's tables up to date, in an order that leaves it consistent wherever it stops.
  ///
  /// - Parameter isFinal: drops everything that waits, and writes counts that lazy refcounts would keep back.
  func flushMetadata(isFinal: Bool = false) throws(BlockError) {
    let tables = l2Cache.values.filter { $0.isDirty }.sorted { $0.offset < $1.offset }
    let leavesCounts = refcountsAreLazy && !isFinal
    if !leavesCounts, try writeRefcountBlocks(), !tables.isEmpty || !dirtyL1Sectors.isEmpty {
      try file.flush()
    }
    for table in tables {
      file.note("l2_update")
      try file.write(at: table.offset, from: table.buffer.io)
      table.isDirty = false
    }
    if !dirtyL1Sectors.isEmpty {
      if !tables.isEmpty { try file.flush() }
      for sector in dirtyL1Sectors.sorted() {
        file.note("l1_update")
        let entries = l1[(sector * 64)..<min(l1.count, sector * 64 + 64)]
        try file.write(entries.flatMap(bigEndianBytes), at: header.l1Offset + UInt64(sector) * 512)
      }
      dirtyL1Sectors.removeAll()
    }
    try applyFrees(isFinal: isFinal)
    if isFinal, !leavesCounts { try writeRefcountBlocks() }
  }

  private func applyFrees(isFinal: Bool) throws(BlockError) {
    guard !pendingFrees.isEmpty, isFinal || transfersInFlight == 0 else { return }
    try file.flush()
    file.note("cluster_free")
    let frees = pendingFrees
    pendingFrees.removeAll()
    for range in frees {
      var freed: Range<UInt64>?
      for cluster in range {
        let count = try refcount(cluster)
        guard count > 0 else {
          throw corrupted(
            "a reference to the cluster at 0x\(String(cluster << clusterBits, radix: 16)) is not counted")
        }
        try setRefcount(cluster, count - 1)
        if count == 1 {
          if freeByteOffset != 0, freeByteOffset >> clusterBits == cluster { freeByteOffset = 0 }
          l2Cache[cluster << clusterBits] = nil
          metadataClusters.remove(cluster)
          freed = (freed?.lowerBound ?? cluster)..<cluster + 1
        } else if let run = freed {
          try discardHost(run)
          freed = nil
        }
      }
      if let freed { try discardHost(freed) }
    }
  }

  private func discardHost(_ clusters: Range<UInt64>) throws(BlockError) {
    try file.discard(
      at: clusters.lowerBound << clusterBits, byteCount: UInt64(clusters.count) << clusterBits)
  }
}
