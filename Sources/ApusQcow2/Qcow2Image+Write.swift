import ApusBlock
import ApusHost

/// Writing guest data: in place where the image is the cluster's only user, else into new clusters.
extension Qcow2Image {
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = writeError(offset, total) { throw error }
    try writeUnchecked(offset, buffers)
    if isWriteThrough { try flush() }
  }

  func writeUnchecked(_ offset: UInt64, _ buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    var done: UInt64 = 0
    while done < total {
      let position = offset + done
      let step = try locked { () throws(BlockError) in try plan(position, limit: total - done) }
      let part =
        step.byteCount == total ? buffers : buffers.slice(offset: Int(done), count: Int(step.byteCount))
      try perform(step, position, part)
      done += step.byteCount
    }
  }

  /// One stretch of a write: bytes that lie side by side on the host.
  private struct Step {
    var byteCount: UInt64
    var hostOffset: UInt64
    /// `nil`: the mapping exists already.
    var allocation: Allocation?
  }
  private struct Allocation {
    /// Guest clusters, by number.
    var clusters: Range<UInt64>
    /// The host offset of the first.
    var hostOffset: UInt64
    /// Whether the host clusters are new, and not the ones that the entries had.
    var isNew: Bool
    /// Whether the host's bytes there are zeros already.
    var readsZeroes: Bool
    /// Guest bytes to copy before and behind the written ones.
    var head: Range<UInt64>
    var tail: Range<UInt64>
  }

  private func conflicts(_ clusters: Range<UInt64>) -> Bool {
    allocations.contains { $0.overlaps(clusters) }
  }

  /// Decides where the next bytes go; registers the request, which `perform` ends. Lock held.
  private func plan(_ offset: UInt64, limit: UInt64) throws(BlockError) -> Step {
    try checkUsable()
    try dropSomeFrees()
    let first = offset >> clusterBits
    while conflicts(first..<first + 1) { monitor.wait() }
    try checkUsable()
    try markBitmaps(offset, limit)
    let table = try writableL2(offset)
    let coverage = UInt64(1) << (clusterBits + l2Bits)
    let end = min(offset + limit, (offset / coverage + 1) * coverage)
    let inPlace = try inPlaceRun(table, offset, end)
    let step: Step
    if inPlace.byteCount > 0 {
      step = inPlace
    } else {
      step = try planAllocation(table, offset, end)
    }
    if let allocation = step.allocation { allocations.append(allocation.clusters) }
    transfersInFlight += 1
    return step
  }

  /// Keeps the list of references to drop short. They wait for requests under way; a very long list makes new ones wait.
  private func dropSomeFrees() throws(BlockError) {
    if pendingFrees.count > 16384 { while transfersInFlight > 0 { monitor.wait() } }
    if pendingFrees.count > 1024, transfersInFlight == 0 { try flushMetadata() }
  }

  /// Bytes from `offset` on that may be overwritten where they are.
  private func inPlaceRun(_ table: L2Table, _ offset: UInt64, _ end: UInt64) throws(BlockError) -> Step {
    var mapping = try lookup(offset, limit: end - offset)
    guard mapping.kind == .data, mapping.isCopied else { return Step(byteCount: 0, hostOffset: 0) }
    if dataFile == nil {
      let first = mapping.hostOffset >> clusterBits
      try checkOverlap(first..<((mapping.hostOffset + mapping.byteCount - 1) >> clusterBits) + 1)
    }
    // Up to the next cluster that someone else is about to change.
    for allocation in allocations where allocation.lowerBound << clusterBits < offset + mapping.byteCount {
      let start = allocation.lowerBound << clusterBits
      if start > offset { mapping.byteCount = min(mapping.byteCount, start - offset) }
    }
    return Step(byteCount: mapping.byteCount, hostOffset: mapping.hostOffset)
  }

  private func planAllocation(_ table: L2Table, _ offset: UInt64, _ end: UInt64) throws(BlockError) -> Step {
    let first = offset >> clusterBits
    let old = entry(table, l2Index(offset))
    let count = allocatableClusters(table, offset, end)
    var allocation = Allocation(
      clusters: first..<first + count, hostOffset: 0, isNew: true, readsZeroes: false, head: 0..<0,
      tail: 0..<0)
    if keepsPlace(old) {
      // The cluster is there and ours: only its zero flag or its subclusters change.
      allocation.clusters = first..<first + 1
      allocation.hostOffset = old.hostOffset
      allocation.isNew = false
      if dataFile == nil {
        try checkOverlap(old.hostOffset >> clusterBits..<(old.hostOffset >> clusterBits) + 1)
      }
    } else if dataFile != nil {
      allocation.hostOffset = first << clusterBits
      allocation.isNew = false
    } else {
      let host = try allocate(count)
      allocation.clusters = first..<first + UInt64(host.count)
      allocation.hostOffset = host.lowerBound << clusterBits
      allocation.readsZeroes =
        allocation.hostOffset >= file.byteCount && file.isZeroInitialized && header.encryption == 0
    }
    let stop = min(end, allocation.clusters.upperBound << clusterBits)
    setCopies(&allocation, table, offset, stop)
    return Step(
      byteCount: stop - offset, hostOffset: allocation.hostOffset + offset & (clusterSize - 1),
      allocation: allocation)
  }

  /// Whether an entry's own cluster is used when it is written to.
  private func keepsPlace(_ entry: L2Entry) -> Bool {
    !entry.isCompressed && entry.isCopied && (entry.hostOffset != 0 || dataFile != nil)
  }

  /// How many clusters from `offset` on need new room and are nobody else's business.
  private func allocatableClusters(_ table: L2Table, _ offset: UInt64, _ end: UInt64) -> UInt64 {
    var count: UInt64 = 1
    var position = ((offset >> clusterBits) + 1) << clusterBits
    while position < end {
      let number = position >> clusterBits
      if keepsPlace(entry(table, l2Index(position))) || conflicts(number..<number + 1) { break }
      count += 1
      position += clusterSize
    }
    return count
  }

  /// Which bytes around the written ones have to come along.
  private func setCopies(_ allocation: inout Allocation, _ table: L2Table, _ offset: UInt64, _ end: UInt64) {
    let start = allocation.clusters.lowerBound << clusterBits
    let stop = allocation.clusters.upperBound << clusterBits
    guard hasExtendedL2 else {
      (allocation.head, allocation.tail) = (start..<offset, end..<stop)
      return
    }
    let unitMask = UInt64(1) << unitBits - 1
    func edge(_ position: UInt64) -> L2Entry { entry(table, l2Index(position)) }
    /// A cluster that is left takes all its subclusters along.
    func isLeft(_ entry: L2Entry) -> Bool {
      allocation.isNew && (entry.hostOffset != 0 || entry.isCompressed)
    }
    let firstEntry = edge(start)
    let lastEntry = edge(stop - 1)
    let headStart = isLeft(firstEntry) ? start : offset & ~unitMask
    let tailEnd = isLeft(lastEntry) ? stop : (end + unitMask) & ~unitMask
    allocation.head = headStart..<offset
    allocation.tail = end..<tailEnd
    // Subclusters that are stored at their place already keep their bytes.
    if !allocation.isNew {
      if kind(firstEntry, unit: (offset >> unitBits) & 31) == .data { allocation.head = offset..<offset }
      if kind(lastEntry, unit: ((end - 1) >> unitBits) & 31) == .data { allocation.tail = end..<end }
    }
  }

  // MARK: Carrying out

  private func perform(_ step: Step, _ offset: UInt64, _ buffers: [IOBuffer]) throws(BlockError) {
    guard let allocation = step.allocation else {
      defer { endTransfer(nil) }
      return try writeData(at: step.hostOffset, from: buffers)
    }
    do throws(BlockError) {
      try transfer(allocation, step, buffers)
      try locked { () throws(BlockError) in
        try link(allocation, offset..<offset + step.byteCount)
      }
    } catch {
      monitor.withLock {
        // Nobody was told about the new clusters.
        if allocation.isNew { release(hostClusters(allocation)) }
      }
      endTransfer(allocation.clusters)
      throw error
    }
    endTransfer(allocation.clusters)
  }

  private func hostClusters(_ allocation: Allocation) -> Range<UInt64> {
    let first = allocation.hostOffset >> clusterBits
    return first..<first + UInt64(allocation.clusters.count)
  }

  func endTransfer(_ clusters: Range<UInt64>?) {
    monitor.withLock {
      transfersInFlight -= 1
      if let clusters, let index = allocations.firstIndex(of: clusters) { allocations.remove(at: index) }
      if clusters != nil || transfersInFlight == 0 { monitor.broadcast() }
    }
  }

  /// Writes the guest's bytes with those around them that come along, in one request.
  private func transfer(
    _ allocation: Allocation, _ step: Step, _ buffers: [IOBuffer]
  ) throws(BlockError) {
    var list = buffers
    var start = step.hostOffset
    var copies: [HostBuffer] = []
    if !allocation.head.isEmpty, let head = try copy(allocation.head, allocation) {
      list.insert(head.io, at: 0)
      start -= UInt64(head.byteCount)
      copies.append(head)
    }
    if !allocation.tail.isEmpty, let tail = try copy(allocation.tail, allocation) {
      list.append(tail.io)
      copies.append(tail)
    }
    try writeData(at: start, from: list)
    withExtendedLifetime(copies) {}
  }

  /// A range's present bytes; `nil` if they are zeros and so are the new cluster's.
  private func copy(_ range: Range<UInt64>, _ allocation: Allocation) throws(BlockError) -> HostBuffer? {
    let count = range.upperBound - range.lowerBound
    if allocation.readsZeroes {
      let isZero = try locked { () throws(BlockError) in
        let mapping = try lookup(range.lowerBound, limit: count)
        let isBacked = mapping.kind == .unallocated && (backingNode?.byteCount ?? 0) > range.lowerBound
        return mapping.byteCount == count && mapping.kind != .data && mapping.kind != .compressed && !isBacked
      }
      if isZero { return nil }
    }
    let buffer = HostBuffer(byteCount: Int(count), isZeroed: false)
    try readUnchecked(range.lowerBound, [buffer.io])
    return buffer
  }

  /// Enters the new clusters into the L2 table. Lock held.
  private func link(_ allocation: Allocation, _ written: Range<UInt64>) throws(BlockError) {
    try checkUsable()
    let table = try writableL2(written.lowerBound)
    for (number, cluster) in allocation.clusters.enumerated() {
      let position = cluster << clusterBits
      let index = l2Index(position)
      let old = entry(table, index)
      let host = allocation.hostOffset + UInt64(number) << clusterBits
      var new = L2Entry(descriptor: host | Entry.copied)
      if hasExtendedL2 {
        let first = max(position, allocation.head.lowerBound)
        let last = min(position + clusterSize, allocation.tail.upperBound)
        new.bitmap = bitmap(old, (first - position) >> unitBits, (last - position - 1) >> unitBits)
      }
      setEntry(table, index, new)
      if allocation.isNew { release(old) }
    }
  }

  /// Subcluster bits after subclusters `first...last` were written.
  private func bitmap(_ old: L2Entry, _ first: UInt64, _ last: UInt64) -> UInt64 {
    let written = ((UInt64(2) << (last - first)) - 1) << first
    if old.isCompressed { return written }
    return (old.bitmap | written) & ~(written << 32)
  }

  // MARK: L2 tables

  /// The L2 table for `offset`, made or copied so that it is only ours.
  func writableL2(_ offset: UInt64) throws(BlockError) -> L2Table {
    let index = l1Index(offset)
    guard index < l1.count else {
      throw invalid("offset 0x\(String(offset, radix: 16)) lies behind the L1 table")
    }
    let present = l1[index]
    if present & Entry.copied != 0, present & Entry.offsetMask != 0 {
      return try loadL2(at: present & Entry.offsetMask)
    }
    let buffer = HostBuffer(byteCount: Int(clusterSize))
    if present & Entry.offsetMask != 0 {
      let old = try loadL2(at: present & Entry.offsetMask)
      HostBytes.copy(buffer.base, old.buffer.base, buffer.byteCount)
    }
    let cluster = try allocate(1)
    try makeRoomInL2Cache()
    let table = L2Table(cluster.lowerBound << clusterBits, buffer)
    table.isDirty = true
    useCounter += 1
    table.lastUse = useCounter
    l2Cache[table.offset] = table
    metadataClusters.insert(cluster.lowerBound)
    l1[index] = table.offset | Entry.copied
    dirtyL1Sectors.insert(index / 64)
    let old = present & Entry.offsetMask
    if old != 0 {
      // A snapshot goes on using it; nothing of ours may be written there either.
      release(old >> clusterBits..<(old >> clusterBits) + 1)
    }
    return table
  }

  // MARK: Zeros and discards

  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    guard byteCount > 0 else { return }
    try writeZeroesUnflushed(at: offset, byteCount: byteCount, mayUnmap: mayUnmap)
    if isWriteThrough { try flush() }
  }

  private func writeZeroesUnflushed(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    let unit = UInt64(1) << unitBits
    var end = offset + byteCount
    // The image's last cluster may be cut off: it counts as whole.
    if end == header.byteCount { end = (end + unit - 1) & ~(unit - 1) }
    // A unit whose other bytes read as zeros is taken as a whole.
    var start = offset
    if start & (unit - 1) != 0, try readsAsZeros(start & ~(unit - 1)..<start) { start &= ~(unit - 1) }
    if end & (unit - 1) != 0 {
      let next = (end + unit - 1) & ~(unit - 1)
      if try readsAsZeros(end..<min(next, header.byteCount)) { end = next }
    }
    let range = AlignedRange(start, end - start, unit: unit)
    // Where the end was moved up to the unit's, there is nothing to write behind the image's.
    try writeZeroBytes(range.head.clamped(to: 0..<header.byteCount))
    try writeZeroBytes(range.tail.clamped(to: 0..<header.byteCount))
    guard !range.body.isEmpty else { return }
    if header.isDataFileRaw, let dataFile {
      // A raw data file has to read as zeros by itself.
      let stop = min(range.body.upperBound, header.byteCount)
      try dataFile.writeZeroes(
        at: range.body.lowerBound, byteCount: stop - range.body.lowerBound, mayUnmap: mayUnmap)
    }
    try changeUnits(range.body, passesHoles: !isVersion3) { (self, table, index, units) throws(BlockError) in
      try self.zero(table, index, units, mayUnmap: mayUnmap)
    } fallback: { (self, cluster) throws(BlockError) in
      try self.writeZeroBytes(cluster.lowerBound..<min(cluster.upperBound, self.byteCount))
    }
  }

  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    guard byteCount > 0 else { return }
    var end = offset + byteCount
    if end == header.byteCount { end = (end + clusterSize - 1) & ~(clusterSize - 1) }
    let body = AlignedRange(offset, end - offset, unit: clusterSize).body
    guard !body.isEmpty else { return }
    if let dataFile {
      try dataFile.discard(
        at: body.lowerBound, byteCount: min(body.upperBound, self.byteCount) - body.lowerBound)
      if header.isDataFileRaw { return }
    }
    try changeUnits(body, passesHoles: true) { (self, table, index, units) throws(BlockError) in
      let old = self.entry(table, index)
      // A hole stays one.
      if old == L2Entry(descriptor: 0), self.readsHolesAsZeros { return true }
      if self.isVersion3 { return try self.zero(table, index, units, mayUnmap: true) }
      // Without a zero flag a hole would show the backing file.
      if self.backingNode != nil || old == L2Entry(descriptor: 0) { return true }
      self.setEntry(table, index, L2Entry(descriptor: 0))
      self.release(old)
      return true
    } fallback: { (_, _) throws(BlockError) in
    }
  }

  /// Whether a range reads as zeros, as far as that can be known without reading data.
  private func readsAsZeros(_ range: Range<UInt64>) throws(BlockError) -> Bool {
    var position = range.lowerBound
    while position < range.upperBound {
      let found = try status(at: position, byteCount: range.upperBound - position)
      position += found.byteCount
      if found.isZero { continue }
      guard !found.isAllocated, let backing = backingNode else { return false }
      // What shines through.
      var place = position - found.byteCount
      while place < min(position, backing.byteCount) {
        let below = try backing.status(at: place, byteCount: min(position, backing.byteCount) - place)
        guard below.isZero else { return false }
        place += below.byteCount
      }
    }
    return true
  }

  /// Writes real zeros, unless the range reads as zeros already.
  private func writeZeroBytes(_ range: Range<UInt64>) throws(BlockError) {
    var position = range.lowerBound
    while position < range.upperBound {
      let status = try status(at: position, byteCount: range.upperBound - position)
      if !status.isZero {
        let buffer = HostBuffer(byteCount: Int(min(status.byteCount, 1 << 20)))
        var done: UInt64 = 0
        while done < status.byteCount {
          let count = min(status.byteCount - done, UInt64(buffer.byteCount))
          try write(at: position + done, from: [buffer.io(0, Int(count))])
          done += count
        }
      }
      position += status.byteCount
    }
  }

  /// Calls `change` with the lock held for each cluster of `range`, with the units of it that are inside; where it
  /// returns false, `fallback` runs without the lock.
  ///
  /// - Parameter passesHoles: leaves out empty tables that read as zeros.
  private func changeUnits(
    _ range: Range<UInt64>, passesHoles: Bool,
    _ change: (Qcow2Image, L2Table, Int, Range<UInt64>) throws(BlockError) -> Bool,
    fallback: (Qcow2Image, Range<UInt64>) throws(BlockError) -> Void
  ) throws(BlockError) {
    var position = range.lowerBound
    while position < range.upperBound {
      let isDone = try locked { () throws(BlockError) in
        try checkUsable()
        let cluster = position >> clusterBits
        while conflicts(cluster..<cluster + 1) { monitor.wait() }
        try checkUsable()
        if passesHoles, readsHolesAsZeros, dataFile == nil, l1[l1Index(position)] & Entry.offsetMask == 0 {
          let coverage = UInt64(1) << (clusterBits + l2Bits)
          position = min(range.upperBound, (position / coverage + 1) * coverage)
          return true
        }
        let end = min(range.upperBound, (cluster + 1) << clusterBits)
        try markBitmaps(position, end - position)
        let table = try writableL2(position)
        let start = cluster << clusterBits
        let units = (position - start) >> unitBits..<(end - start) >> unitBits
        let isDone = try change(self, table, l2Index(position), units)
        try dropSomeFrees()
        if isDone { position = end }
        return isDone
      }
      if !isDone {
        let end = min(range.upperBound, (position >> clusterBits + 1) << clusterBits)
        try fallback(self, position..<end)
        position = end
      }
    }
  }

  /// Makes units of a cluster read as zeros through its entry. False if version 2 has no way to say it.
  private func zero(_ table: L2Table, _ index: Int, _ units: Range<UInt64>, mayUnmap: Bool) throws(BlockError)
    -> Bool
  {
    let old = entry(table, index)
    guard isVersion3 else {
      guard readsHolesAsZeros else { return false }
      if old.descriptor == 0 { return true }
      setEntry(table, index, L2Entry(descriptor: 0))
      release(old)
      return true
    }
    let isWhole = UInt64(units.count) == unitsPerCluster
    var new = old
    if isWhole {
      let keeps = keepsPlace(old) && (!mayUnmap || dataFile != nil)
      new = L2Entry(
        descriptor: keeps ? old.descriptor | (hasExtendedL2 ? 0 : Entry.zero) : hasExtendedL2 ? 0 : Entry.zero
      )
      if hasExtendedL2 { new.bitmap = 0xffff_ffff << 32 }
      if new != old { setEntry(table, index, new) }
      if !keeps { release(old) }
      return true
    }
    // Single subclusters: not of a compressed cluster, and the others stay as they are.
    if old.isCompressed { return false }
    let mask = ((UInt64(1) << UInt64(units.count)) - 1) << units.lowerBound
    new.bitmap = (old.bitmap & ~mask) | mask << 32
    if new != old { setEntry(table, index, new) }
    return true
  }

  // MARK: Compressed clusters

  public func compress(_ input: IOBuffer) throws(BlockError) -> [UInt8]? {
    guard dataFile == nil, header.encryption == 0 else {
      throw BlockError(
        .unsupported,
        "qcow2 image: an image \(dataFile == nil ? "that is encrypted" : "with an external data file") cannot hold "
          + "compressed clusters")
    }
    if UInt64(input.byteCount) == clusterSize { return compression.compress(input) }
    let padded = HostBuffer(byteCount: Int(clusterSize))
    HostBytes.copy(padded.base, input.base, input.byteCount)
    return compression.compress(padded.io)
  }

  /// Stores one cluster; `compressed` is what `compress` made of it.
  public func writeCompressed(at offset: UInt64, original: IOBuffer, compressed: [UInt8]?) throws(BlockError)
  {
    if let error = writeError(offset, UInt64(original.byteCount)) { throw error }
    let isLast = offset + UInt64(original.byteCount) == byteCount
    guard offset & (clusterSize - 1) == 0,
      UInt64(original.byteCount) == clusterSize || (isLast && UInt64(original.byteCount) < clusterSize)
    else { throw BlockError(.invalid, "a compressed write must be one whole cluster") }
    guard let compressed else { return try write(at: offset, from: [original]) }
    let host = try locked { () throws(BlockError) in
      try checkUsable()
      let cluster = offset >> clusterBits
      while conflicts(cluster..<cluster + 1) { monitor.wait() }
      guard entry(try writableL2(offset), l2Index(offset)).hostOffset == 0 else {
        throw BlockError(.io, "qcow2 image: a compressed write needs a cluster that is not allocated yet")
      }
      try markBitmaps(offset, clusterSize)
      let host = try allocateBytes(UInt64(compressed.count))
      allocations.append(cluster..<cluster + 1)
      transfersInFlight += 1
      return host
    }
    defer { endTransfer(offset >> clusterBits..<(offset >> clusterBits) + 1) }
    try file.write(compressed, at: host)
    try locked { () throws(BlockError) in
      let shift = 62 - (clusterBits - 8)
      let sectors = (host + UInt64(compressed.count) - 1) >> 9 - host >> 9
      let table = try writableL2(offset)
      setEntry(table, l2Index(offset), L2Entry(descriptor: Entry.compressed | sectors << shift | host))
    }
  }

  /// Room for a compressed cluster, which may share its host clusters with others. Lock held.
  private func allocateBytes(_ count: UInt64) throws(BlockError) -> UInt64 {
    try markLazy()
    let mask = clusterSize - 1
    if freeByteOffset & mask != 0 {
      let cluster = freeByteOffset >> clusterBits
      let left = clusterSize - freeByteOffset & mask
      let canShare = try refcount(cluster) < maximumRefcount
      if canShare, count <= left {
        let offset = freeByteOffset
        try setRefcount(cluster, try refcount(cluster) + 1)
        freeByteOffset += count
        return offset
      }
      // Across the border, if the next cluster is free.
      let next = try allocate(1)
      try checkOverlap(next)
      if canShare, next.lowerBound == cluster + 1 {
        let offset = freeByteOffset
        try setRefcount(cluster, try refcount(cluster) + 1)
        freeByteOffset += count
        return offset
      }
      freeByteOffset = next.lowerBound << clusterBits + count
      return next.lowerBound << clusterBits
    }
    let next = try allocate(1)
    freeByteOffset = next.lowerBound << clusterBits + count
    return next.lowerBound << clusterBits
  }
}
