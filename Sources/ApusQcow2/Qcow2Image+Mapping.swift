import ApusBlock
import ApusHost

/// From guest offsets to what is stored for them.
extension Qcow2Image {
  enum Kind: Equatable {
    /// The backing file decides.
    case unallocated
    /// Reads as zeros; nothing is kept.
    case zero
    /// Reads as zeros; a cluster is kept for it.
    case zeroAllocated
    case data
    case compressed
  }

  /// What a run of guest bytes is.
  struct Mapping {
    var kind: Kind
    var byteCount: UInt64
    /// Where the run's first byte lies (for compressed: the cluster's entry).
    var hostOffset: UInt64
    /// Whether this image's active tables are the cluster's only user.
    var isCopied: Bool
  }

  /// An L2 table's entry: the descriptor and, with extended entries, the subclusters' bits.
  struct L2Entry: Equatable {
    var descriptor: UInt64
    var bitmap: UInt64 = 0
    var hostOffset: UInt64 { descriptor & Entry.offsetMask }
    var isCompressed: Bool { descriptor & Entry.compressed != 0 }
    var isCopied: Bool { descriptor & Entry.copied != 0 }
  }

  func l1Index(_ offset: UInt64) -> Int { Int(offset >> (clusterBits + l2Bits)) }
  func l2Index(_ offset: UInt64) -> Int { Int((offset >> clusterBits) & ((1 << l2Bits) - 1)) }

  func entry(_ table: L2Table, _ index: Int) -> L2Entry {
    let position = index * entryByteCount
    return L2Entry(
      descriptor: table.buffer.big64(position), bitmap: hasExtendedL2 ? table.buffer.big64(position + 8) : 0)
  }

  func setEntry(_ table: L2Table, _ index: Int, _ entry: L2Entry) {
    let position = index * entryByteCount
    table.buffer.setBig(position, entry.descriptor)
    if hasExtendedL2 { table.buffer.setBig(position + 8, entry.bitmap) }
    table.isDirty = true
  }

  /// What subcluster `unit` of an entry is.
  func kind(_ entry: L2Entry, unit: UInt64) -> Kind {
    if entry.isCompressed { return .compressed }
    if hasExtendedL2 {
      let isAllocated = entry.bitmap >> unit & 1 != 0
      let isZero = entry.bitmap >> (unit + 32) & 1 != 0
      if isZero { return entry.hostOffset != 0 || usesIdentity(entry) ? .zeroAllocated : .zero }
      return isAllocated ? .data : .unallocated
    }
    if isVersion3, entry.descriptor & Entry.zero != 0 {
      return entry.hostOffset != 0 || usesIdentity(entry) ? .zeroAllocated : .zero
    }
    return entry.hostOffset != 0 || usesIdentity(entry) ? .data : .unallocated
  }

  /// Cluster 0 of an external data file is at offset 0: there only COPIED tells that it is allocated.
  private func usesIdentity(_ entry: L2Entry) -> Bool {
    dataFile != nil && entry.hostOffset == 0 && entry.isCopied
  }

  /// The active L2 table for `offset`, from the cache or the file; `nil` if there is none.
  func loadL2(_ offset: UInt64) throws(BlockError) -> L2Table? {
    let index = l1Index(offset)
    guard index < l1.count else { return nil }
    let tableOffset = l1[index] & Entry.offsetMask
    if tableOffset == 0 { return nil }
    return try loadL2(at: tableOffset)
  }

  func loadL2(at tableOffset: UInt64) throws(BlockError) -> L2Table {
    useCounter += 1
    if let table = l2Cache[tableOffset] {
      table.lastUse = useCounter
      return table
    }
    guard tableOffset & (clusterSize - 1) == 0 else {
      throw corrupted("an L2 table at 0x\(String(tableOffset, radix: 16)) is not aligned to clusters")
    }
    try makeRoomInL2Cache()
    let buffer = HostBuffer(byteCount: Int(clusterSize), isZeroed: false)
    file.note("l2_load")
    try file.read(at: tableOffset, into: buffer.io)
    let table = L2Table(tableOffset, buffer)
    table.lastUse = useCounter
    l2Cache[tableOffset] = table
    return table
  }

  func makeRoomInL2Cache() throws(BlockError) {
    guard l2Cache.count >= l2CacheLimit else { return }
    if l2Cache.values.contains(where: { $0.isDirty }) { try flushMetadata() }
    // A quarter at a time, the longest unused first: the search is paid rarely.
    let oldest = l2Cache.values.sorted { $0.lastUse < $1.lastUse }.prefix(max(1, l2CacheLimit / 4))
    for table in oldest where !table.isDirty { l2Cache[table.offset] = nil }
  }

  /// What lies at `offset`, for up to `limit` bytes that are alike and, if stored plainly, lie side by side.
  func lookup(_ offset: UInt64, limit: UInt64) throws(BlockError) -> Mapping {
    let coverage = UInt64(1) << (clusterBits + l2Bits)
    guard let table = try loadL2(offset) else {
      // Whole empty L1 entries are passed at once.
      var end = (offset / coverage + 1) * coverage
      var index = l1Index(offset) + 1
      while end - offset < limit, index < l1.count, l1[index] & Entry.offsetMask == 0 {
        end += coverage
        index += 1
      }
      return Mapping(
        kind: .unallocated, byteCount: min(limit, end - offset), hostOffset: 0, isCopied: false)
    }
    let tableEnd = (offset / coverage + 1) * coverage
    let end = min(offset + limit, tableEnd)
    let first = entry(table, l2Index(offset))
    let firstUnit = (offset >> unitBits) & (unitsPerCluster - 1)
    var result = Mapping(
      kind: kind(first, unit: firstUnit), byteCount: 0, hostOffset: 0, isCopied: first.isCopied)
    switch result.kind {
    case .compressed:
      result.hostOffset = first.descriptor
      result.byteCount = min(end - offset, clusterSize - offset & (clusterSize - 1))
      return result
    case .data, .zeroAllocated:
      guard first.hostOffset & (clusterSize - 1) == 0 else {
        throw corrupted(
          "the cluster at 0x\(String(first.hostOffset, radix: 16)) of guest offset 0x\(String(offset, radix: 16)) "
            + "is not aligned to clusters")
      }
      result.hostOffset = first.hostOffset + offset & (clusterSize - 1)
    case .unallocated, .zero: break
    }
    extend(&result, table, offset, end)
    return result
  }

  /// Grows a run by the units behind it that are like its first.
  private func extend(_ result: inout Mapping, _ table: L2Table, _ offset: UInt64, _ end: UInt64) {
    let unitSize = UInt64(1) << unitBits
    var position = (offset & ~(unitSize - 1)) + unitSize
    let hasPlace = result.kind == .data || result.kind == .zeroAllocated
    if !hasExtendedL2, position < end {
      // Entries that are the first one's, or follow on it, are passed as plain numbers.
      let index = l2Index(offset)
      let limit = min((1 << Int(l2Bits)) - index - 1, Int((end - position + clusterSize - 1) >> clusterBits))
      let first = entry(table, index).descriptor
      let base = table.buffer.base + (index + 1) * 8
      let count =
        first == 0
        ? HostBytes.zeroWordCount(base, limit: limit)
        : HostBytes.bigWordRunLength(
          base, limit: limit, first: hasPlace ? first &+ clusterSize : first, step: hasPlace ? clusterSize : 0
        )
      position += UInt64(count) << clusterBits
    }
    while position < end {
      let next = entry(table, l2Index(position))
      let unit = (position >> unitBits) & (unitsPerCluster - 1)
      guard kind(next, unit: unit) == result.kind, next.isCopied == result.isCopied || !hasPlace else {
        break
      }
      if hasPlace {
        let expected = result.hostOffset + (position - offset)
        guard next.hostOffset + position & (clusterSize - 1) == expected else { break }
      }
      position += unitSize
    }
    result.byteCount = min(position, end) - offset
  }

  /// Where a compressed cluster's bytes lie.
  func compressedRange(_ descriptor: UInt64) -> (offset: UInt64, byteCount: Int) {
    let shift = 62 - (clusterBits - 8)
    let offset = descriptor & ((1 << shift) - 1)
    let sectors = (descriptor & ~(Entry.copied | Entry.compressed)) >> shift
    return (offset, Int((sectors + 1) * 512 - offset & 511))
  }

  // MARK: Reading

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = rangeError(offset, total) { throw error }
    try readUnchecked(offset, buffers)
  }

  /// Reads without the check against the image's size: whole clusters at its end, and the VM state behind it.
  func readUnchecked(_ offset: UInt64, _ buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    monitor.withLock { transfersInFlight += 1 }
    defer {
      monitor.withLock {
        transfersInFlight -= 1
        if transfersInFlight == 0 { monitor.broadcast() }
      }
    }
    var done: UInt64 = 0
    while done < total {
      let position = offset + done
      let mapping = try locked { () throws(BlockError) in try lookup(position, limit: total - done) }
      let part =
        mapping.byteCount == total ? buffers : buffers.slice(offset: Int(done), count: Int(mapping.byteCount))
      try read(mapping, position, part)
      done += mapping.byteCount
    }
  }

  private func read(_ mapping: Mapping, _ offset: UInt64, _ buffers: [IOBuffer]) throws(BlockError) {
    switch mapping.kind {
    case .data: try readData(at: mapping.hostOffset, into: buffers)
    case .zero, .zeroAllocated: for buffer in buffers { buffer.clear() }
    case .unallocated: try readBacking(offset, buffers)
    case .compressed:
      let range = compressedRange(mapping.hostOffset)
      let source = HostBuffer(byteCount: range.byteCount, isZeroed: false)
      file.note("read_compressed")
      try file.read(at: range.offset, into: source.io)
      let within = Int(offset & (clusterSize - 1))
      if within == 0, buffers.count == 1, buffers[0].byteCount == Int(clusterSize) {
        try compression.decompress(source.io, into: buffers[0])
        return
      }
      let cluster = HostBuffer(byteCount: Int(clusterSize), isZeroed: false)
      try compression.decompress(source.io, into: cluster.io)
      withExtendedLifetime(cluster) {
        var position = within
        for buffer in buffers {
          HostBytes.copy(buffer.base, cluster.base + position, buffer.byteCount)
          position += buffer.byteCount
        }
      }
    }
  }

  // MARK: Transfers that need no waiting

  public var transferStart: TransferStart {
    dataFile == nil && header.encryption == 0 ? file.transferStart : .unsupported
  }
  public func submitTransfers() { file.submitTransfers() }

  /// Starts a transfer of stored bytes that lie side by side, if the tables that lead there are at hand.
  public func startTransfer(_ transfer: NodeTransfer) -> Bool {
    guard let hostOffset = plainPlace(transfer) else { return false }
    let below = NodeTransfer(isWrite: transfer.isWrite, offset: hostOffset, transfer.buffers) {
      [self] failure in
      endTransfer(nil)
      transfer.completion(failure)
    }
    if file.startTransfer(below) { return true }
    endTransfer(nil)
    return false
  }

  /// Where a transfer's bytes lie, if nothing has to be done before they are moved; then it counts as under way.
  private func plainPlace(_ transfer: NodeTransfer) -> UInt64? {
    guard monitor.tryLock() else { return nil }
    defer { monitor.unlock() }
    let (offset, total) = (transfer.offset, UInt64(transfer.buffers.totalByteCount))
    let index = l1Index(offset)
    guard total > 0, offset <= header.byteCount, total <= header.byteCount - offset, index < l1.count,
      dataFile == nil, header.encryption == 0, l2Cache[l1[index] & Entry.offsetMask] != nil
    else { return nil }
    if transfer.isWrite {
      let clusters = offset >> clusterBits..<((offset + total - 1) >> clusterBits) + 1
      guard !isReadOnly, !isBroken, !isWriteThrough, bitmaps.isEmpty, l1[index] & Entry.copied != 0,
        pendingFrees.count <= 1024, !allocations.contains(where: { $0.overlaps(clusters) })
      else { return nil }
    }
    do throws(BlockError) {
      let mapping = try lookup(offset, limit: total)
      guard mapping.kind == .data, mapping.byteCount == total, !transfer.isWrite || mapping.isCopied else {
        return nil
      }
      if transfer.isWrite {
        let first = mapping.hostOffset >> clusterBits
        let last = (mapping.hostOffset + total - 1) >> clusterBits
        // The blocking way says what is wrong.
        guard !(first...last).contains(where: metadataClusters.contains) else { return nil }
      }
      transfersInFlight += 1
      return mapping.hostOffset
    } catch { return nil }
  }

  private func readBacking(_ offset: UInt64, _ buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    let size = backingNode?.byteCount ?? 0
    let inside = offset < size ? min(total, size - offset) : 0
    if inside > 0, let backingNode {
      try backingNode.read(
        at: offset, into: inside == total ? buffers : buffers.slice(offset: 0, count: Int(inside)))
    }
    if inside < total {
      for buffer in buffers.slice(offset: Int(inside), count: Int(total - inside)) { buffer.clear() }
    }
  }

  var compression: ClusterCompression { ClusterCompression(rawValue: header.compressionType) ?? .zlib }

  // MARK: Status

  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    if let error = rangeError(offset, byteCount) { throw error }
    let mapping = try locked { () throws(BlockError) in
      var mapping = try lookup(offset, limit: byteCount)
      // Unallocated and zero runs go on across tables, so that sparse images are walked in few steps.
      while mapping.byteCount < byteCount, mapping.kind == .unallocated || mapping.kind == .zero {
        let next = try lookup(offset + mapping.byteCount, limit: byteCount - mapping.byteCount)
        guard next.kind == mapping.kind else { break }
        mapping.byteCount += next.byteCount
      }
      return mapping
    }
    var status = BlockStatus(byteCount: mapping.byteCount, isZero: false, isData: false, isAllocated: true)
    switch mapping.kind {
    case .unallocated:
      status.isAllocated = false
      status.isZero = backingNode == nil
    case .zero: status.isZero = true
    case .zeroAllocated:
      status.isZero = true
      status.hostOffset = mapping.hostOffset
    case .compressed: (status.isData, status.isCompressed) = (true, true)
    case .data:
      status.isData = true
      status.hostOffset = mapping.hostOffset
      if recursesIntoFile {
        let below = try (dataFile ?? file).status(at: mapping.hostOffset, byteCount: mapping.byteCount)
        if below.isZero, !below.isData {
          status.isZero = true
          status.byteCount = below.byteCount
        } else if below.byteCount < status.byteCount {
          status.byteCount = below.byteCount
        }
      }
    }
    return status
  }
}
