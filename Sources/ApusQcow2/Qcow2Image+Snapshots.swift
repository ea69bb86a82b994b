import ApusBlock
import ApusHost

/// Internal snapshots: copies of the L1 table whose clusters are counted once more.
extension Qcow2Image {
  /// Where the VM state lies: behind the disk, from an L2 table of its own on.
  public var vmStateOffset: UInt64 {
    (header.byteCount + header.l1Coverage - 1) / header.l1Coverage * header.l1Coverage
  }

  /// Writes to the VM state area, whose bytes the next snapshot keeps.
  public func writeVMState(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let start = try locked { () throws(BlockError) in
      try checkUsable()
      let start = vmStateOffset
      let end = start + offset + UInt64(buffers.totalByteCount)
      let entries = (end + header.l1Coverage - 1) / header.l1Coverage
      guard offset < 1 << 56, entries <= 32 << 20 / 8 else {
        throw BlockError(.outOfRange, "qcow2 image: the VM state would be too large")
      }
      if Int(entries) > l1.count {
        try quiesce()
        try growL1(Int(entries))
        try writeHeader()
      }
      return start
    }
    try writeUnchecked(start + offset, buffers)
  }
  public func readVMState(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    guard offset < 1 << 56 else { throw BlockError(.outOfRange, "qcow2 image: there is no such VM state") }
    try readUnchecked(monitor.withLock { vmStateOffset } + offset, buffers)
  }

  /// An entry of the snapshot table.
  public struct Snapshot: Sendable, Equatable {
    public var id = ""
    public var name = ""
    public var l1Offset: UInt64 = 0
    public var l1Size = 0
    public var dateSeconds: UInt32 = 0
    public var dateNanoseconds: UInt32 = 0
    public var vmClockNanoseconds: UInt64 = 0
    public var vmStateByteCount: UInt64 = 0
    public var diskByteCount: UInt64 = 0
    /// Instructions at the snapshot; all ones: not recorded.
    public var instructionCount: UInt64 = .max
    /// Extra data behind the fields known here.
    var unknownExtra: [UInt8] = []
    var damage: SnapshotDamage?

    /// Whether `key` is this snapshot's id or name.
    public func matches(_ key: String) -> Bool { id == key || name == key }
  }

  /// What is wrong with an entry of the snapshot table.
  enum SnapshotDamage: Sendable, Equatable {
    /// Fields that version 3 has are missing; they are known from elsewhere.
    case incomplete
    /// More extra data than there may be; it is left out.
    case excess
    case misplacedL1

    var text: String {
      switch self {
      case .incomplete: "is incomplete"
      case .excess: "has too much extra data"
      case .misplacedL1: "leads to an L1 table that is misplaced or too large"
      }
    }
  }

  public var snapshotList: [Snapshot] { monitor.withLock { snapshots } }

  /// Reads the snapshot table, as far as it goes: `snapshotTableIsCut` and entries' `damage` tell what is wrong.
  func readSnapshots() throws(BlockError) -> [Snapshot] {
    var result: [Snapshot] = []
    var offset = header.snapshotsOffset
    snapshotTableIsCut = false
    for _ in 0..<header.snapshotCount {
      snapshotTableByteCount = Int(offset - header.snapshotsOffset)
      guard offset - header.snapshotsOffset < 64 << 20, offset < file.byteCount, result.count < 65536 else {
        snapshotTableIsCut = true
        return result
      }
      let fields = HostBuffer(byteCount: 40)
      try file.read(at: offset, into: fields.io)
      var snapshot = Snapshot()
      snapshot.l1Offset = fields.big64(0)
      snapshot.l1Size = Int(fields.big32(8))
      let idLength = Int(fields.big16(12))
      let nameLength = Int(fields.big16(14))
      snapshot.dateSeconds = fields.big32(16)
      snapshot.dateNanoseconds = fields.big32(20)
      snapshot.vmClockNanoseconds = fields.big64(24)
      snapshot.vmStateByteCount = UInt64(fields.big32(32))
      let extraLength = Int(fields.big32(36))
      // Nothing at all where an entry should be: a snapshot has an ID.
      guard extraLength < 64 << 20, idLength + nameLength > 0 else {
        snapshotTableIsCut = true
        return result
      }
      let end = offset + UInt64((40 + extraLength + idLength + nameLength + 7) & ~7)
      guard end - header.snapshotsOffset <= 64 << 20 else {
        snapshotTableIsCut = true
        return result
      }
      if isVersion3, extraLength < 16 { snapshot.damage = .incomplete }
      if extraLength > 1024 { snapshot.damage = .excess }
      if snapshot.l1Size > 32 << 20 / 8 || snapshot.l1Offset & (clusterSize - 1) != 0 {
        snapshot.damage = .misplacedL1
      }
      let rest = try file.bytes(at: offset + 40, count: extraLength + idLength + nameLength)
      let extra = HostBuffer(Array(rest[..<extraLength]) + [UInt8](repeating: 0, count: 24))
      if extraLength >= 8 { snapshot.vmStateByteCount = extra.big64(0) }
      snapshot.diskByteCount = extraLength >= 16 ? extra.big64(8) : header.byteCount
      if extraLength >= 24 { snapshot.instructionCount = extra.big64(16) }
      if extraLength > 24, extraLength <= 1024 { snapshot.unknownExtra = Array(rest[24..<extraLength]) }
      snapshot.id = String(decoding: rest[extraLength..<extraLength + idLength], as: UTF8.self)
      snapshot.name = String(decoding: rest[(extraLength + idLength)...], as: UTF8.self)
      result.append(snapshot)
      offset = end
      snapshotTableByteCount = Int(offset - header.snapshotsOffset)
    }
    return result
  }

  private func encoded(_ snapshot: Snapshot) -> [UInt8] {
    let id = Array(snapshot.id.utf8)
    let name = Array(snapshot.name.utf8)
    let fields = HostBuffer(byteCount: 64)
    fields.setBig(0, snapshot.l1Offset)
    fields.setBig(8, UInt32(snapshot.l1Size))
    fields.setBig(12, UInt16(id.count))
    fields.setBig(14, UInt16(name.count))
    fields.setBig(16, snapshot.dateSeconds)
    fields.setBig(20, snapshot.dateNanoseconds)
    fields.setBig(24, snapshot.vmClockNanoseconds)
    fields.setBig(
      32, UInt32(truncatingIfNeeded: snapshot.vmStateByteCount <= UInt32.max ? snapshot.vmStateByteCount : 0))
    fields.setBig(36, UInt32(24 + snapshot.unknownExtra.count))
    fields.setBig(40, snapshot.vmStateByteCount)
    fields.setBig(48, snapshot.diskByteCount)
    fields.setBig(56, snapshot.instructionCount)
    var bytes = fields.array() + snapshot.unknownExtra + id + name
    bytes += [UInt8](repeating: 0, count: (8 - bytes.count & 7) & 7)
    return bytes
  }

  /// What keeps an image with a damaged snapshot table from being used.
  public func checkSnapshotTable() throws(BlockError) {
    if snapshotTableIsCut { throw invalid("the snapshot table does not end; repair it with check -r all") }
    if snapshots.contains(where: { $0.damage == .excess }) {
      throw invalid("a snapshot has too much extra data; repair it with check -r all")
    }
  }

  func clusters(_ offset: UInt64, _ byteCount: Int) -> Range<UInt64> {
    let first = offset >> clusterBits
    return first..<first + (UInt64(byteCount) + clusterSize - 1) >> clusterBits
  }

  /// Writes `list` as the new snapshot table and drops the old one.
  func replaceSnapshotTable(_ list: [Snapshot]) throws(BlockError) {
    let bytes = list.flatMap(encoded)
    let old = snapshotTableIsCut ? 0..<0 : clusters(header.snapshotsOffset, snapshotTableByteCount)
    var offset: UInt64 = 0
    // A table without an end was not counted: its place may be free.
    if snapshotTableIsCut { metadataClusters.remove(header.snapshotsOffset >> clusterBits) }
    if !bytes.isEmpty {
      let place = try allocate((UInt64(bytes.count) + clusterSize - 1) >> clusterBits, exactly: true)
      offset = place.lowerBound << clusterBits
      try file.write(bytes, at: offset)
      for cluster in place { metadataClusters.insert(cluster) }
    }
    try flushMetadata(isFinal: true)
    try file.flush()
    header.snapshotsOffset = offset
    header.snapshotCount = list.count
    snapshots = list.map {
      var snapshot = $0
      if snapshot.damage != .misplacedL1 { snapshot.damage = nil }
      return snapshot
    }
    (snapshotTableByteCount, snapshotTableIsCut) = (bytes.count, false)
    try writeHeader()
    try file.flush()
    if !old.isEmpty { release(old) }
  }

  /// Waits until no request moves data; lock held.
  func quiesce() throws(BlockError) {
    try checkUsable()
    while transfersInFlight > 0 || !allocations.isEmpty { monitor.wait() }
    try checkUsable()
  }

  /// Marks the file so that a kill during `body`, which leaves counts and flags out of step, is repaired at the next
  /// opening.
  private func whileDirty(_ body: () throws(BlockError) -> Void) throws(BlockError) {
    let marks = isVersion3 && header.incompatible & Qcow2Header.Incompatible.dirty == 0
    if marks {
      header.incompatible |= Qcow2Header.Incompatible.dirty
      try writeHeader()
      try file.flush()
    }
    try body()
    try flushMetadata(isFinal: true)
    try file.flush()
    if marks, !refcountsAreLazy {
      header.incompatible &= ~Qcow2Header.Incompatible.dirty
      try writeHeader()
      try file.flush()
    }
  }

  // MARK: Operations

  public func createSnapshot(
    _ name: String, dateSeconds: UInt32, dateNanoseconds: UInt32 = 0, vmStateByteCount: UInt64 = 0
  ) throws(BlockError) {
    try locked { () throws(BlockError) in
      try refuseWithDataFile()
      try quiesce()
      guard snapshots.count < 65536 else {
        throw BlockError(.noSpace, "qcow2 image: it has 65536 snapshots already")
      }
      try flushMetadata(isFinal: true)
      var snapshot = Snapshot()
      let next = (snapshots.compactMap { UInt64($0.id) }.max() ?? 0) + 1
      snapshot.id = "\(next)"
      snapshot.name = name
      snapshot.dateSeconds = dateSeconds
      snapshot.dateNanoseconds = dateNanoseconds
      snapshot.vmStateByteCount = vmStateByteCount
      // Where no machine ran, none has counted.
      if vmStateByteCount == 0 { snapshot.instructionCount = 0 }
      snapshot.diskByteCount = header.byteCount
      snapshot.l1Size = l1.count
      try whileDirty { () throws(BlockError) in
        let needed = max(1, (UInt64(l1.count) * 8 + clusterSize - 1) >> clusterBits)
        let place = try allocate(needed, exactly: true)
        snapshot.l1Offset = place.lowerBound << clusterBits
        try file.write(l1.flatMap { bigEndianBytes($0 & ~Entry.copied) }, at: snapshot.l1Offset)
        for cluster in place { metadataClusters.insert(cluster) }
        try count(l1, by: 1)
        try refreshCopiedFlags()
        try replaceSnapshotTable(snapshots + [snapshot])
      }
    }
  }

  public func deleteSnapshot(_ key: String) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      let index = try find(key)
      let snapshot = snapshots[index]
      let table = try readL1(snapshot)
      var list = snapshots
      list.remove(at: index)
      try whileDirty { () throws(BlockError) in
        try replaceSnapshotTable(list)
        try count(table, by: -1)
        release(clusters(snapshot.l1Offset, max(1, snapshot.l1Size * 8)))
        try flushMetadata(isFinal: true)
        try refreshCopiedFlags()
      }
    }
  }

  /// Makes the image what it was at a snapshot.
  public func applySnapshot(_ key: String) throws(BlockError) {
    try locked { () throws(BlockError) in
      try refuseWithDataFile()
      try quiesce()
      try flushMetadata(isFinal: true)
      let snapshot = snapshots[try find(key)]
      let table = try readL1(snapshot)
      let oldTable = l1
      let old = clusters(header.l1Offset, max(1, l1.count * 8))
      try whileDirty { () throws(BlockError) in
        try count(table, by: 1)
        let place = try allocate(
          max(1, (UInt64(table.count) * 8 + clusterSize - 1) >> clusterBits), exactly: true)
        try file.write(table.flatMap(bigEndianBytes), at: place.lowerBound << clusterBits)
        try flushMetadata(isFinal: true)
        try file.flush()
        l1 = table
        l2Cache.removeAll()
        header.l1Offset = place.lowerBound << clusterBits
        header.l1Size = table.count
        header.byteCount = snapshot.diskByteCount
        try writeHeader()
        try file.flush()
        try count(oldTable, by: -1)
        release(old)
        try flushMetadata(isFinal: true)
        rememberMetadata()
        try refreshCopiedFlags()
      }
    }
  }

  /// The disk as it was at a snapshot, read-only. The image itself must not be written to meanwhile.
  public func snapshotNode(_ key: String) throws(BlockError) -> Qcow2Image {
    let snapshot = try locked { () throws(BlockError) in snapshots[try find(key)] }
    var options = Options()
    options.isReadOnly = true
    let image = try Qcow2Image(file, dataFile: dataFile, backing: backingNode, options: options)
    image.l1 = try readL1(snapshot)
    image.header.byteCount = snapshot.diskByteCount
    return image
  }

  private func refuseWithDataFile() throws(BlockError) {
    if dataFile != nil {
      throw BlockError(
        .unsupported, "qcow2 image: an image with an external data file cannot have internal snapshots")
    }
  }

  private func find(_ key: String) throws(BlockError) -> Int {
    if let index = snapshots.firstIndex(where: { $0.id == key })
      ?? snapshots.firstIndex(where: { $0.name == key })
    {
      return index
    }
    throw BlockError(.invalid, "there is no snapshot '\(key)'")
  }

  func readL1(_ snapshot: Snapshot) throws(BlockError) -> [UInt64] {
    guard snapshot.damage != .misplacedL1 else {
      throw invalid("the L1 table of the snapshot '\(snapshot.name)' is misplaced or too large")
    }
    guard snapshot.l1Size > 0 else { return [] }
    let buffer = HostBuffer(byteCount: snapshot.l1Size * 8)
    try file.read(at: snapshot.l1Offset, into: buffer.io)
    return (0..<snapshot.l1Size).map { buffer.big64($0 * 8) & ~Entry.copied }
  }

  // MARK: Counting whole trees

  /// Adds a reference to, or drops one from, everything that an L1 table leads to.
  private func count(_ table: [UInt64], by change: Int) throws(BlockError) {
    func one(_ cluster: UInt64) throws(BlockError) {
      if change > 0 {
        let present = try refcount(cluster)
        guard present < maximumRefcount else {
          throw BlockError(
            .unsupported,
            "qcow2 image: a cluster has \(present) references already, and its counts have \(1 << header.refcountOrder) bits"
          )
        }
        try setRefcount(cluster, present + 1)
      } else {
        release(cluster..<cluster + 1)
      }
    }
    for l1Entry in table where l1Entry & Entry.offsetMask != 0 {
      let l2 = try loadL2(at: l1Entry & Entry.offsetMask)
      for index in 0..<(1 << Int(l2Bits)) {
        let item = entry(l2, index)
        if item.isCompressed {
          let range = compressedRange(item.descriptor)
          let last = (range.offset + UInt64(range.byteCount) - 1) >> clusterBits
          for cluster in (range.offset >> clusterBits)...last { try one(cluster) }
        } else if item.hostOffset != 0 {
          try one(item.hostOffset >> clusterBits)
        }
      }
      try one((l1Entry & Entry.offsetMask) >> clusterBits)
    }
  }

  /// Sets the COPIED flags of the active tables by the counts.
  func refreshCopiedFlags() throws(BlockError) {
    for (index, l1Entry) in l1.enumerated() where l1Entry & Entry.offsetMask != 0 {
      let isOwn = try refcount((l1Entry & Entry.offsetMask) >> clusterBits) == 1
      let new = l1Entry & ~Entry.copied | (isOwn ? Entry.copied : 0)
      if new != l1Entry {
        l1[index] = new
        dirtyL1Sectors.insert(index / 64)
      }
      let table = try loadL2(at: l1Entry & Entry.offsetMask)
      for position in 0..<(1 << Int(l2Bits)) {
        var item = entry(table, position)
        guard !item.isCompressed, item.hostOffset != 0, dataFile == nil else { continue }
        let isCopied = try refcount(item.hostOffset >> clusterBits) == 1
        if isCopied != item.isCopied {
          item.descriptor ^= Entry.copied
          setEntry(table, position, item)
        }
      }
    }
  }
}
