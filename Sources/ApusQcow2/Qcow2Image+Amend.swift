import ApusBlock
import ApusCrypto
import ApusHost

/// Changes of an image's format-level properties, and what tools show of them.
extension Qcow2Image {
  /// What `info` shows.
  public struct Information: Sendable {
    public var version: UInt32
    public var compression: ClusterCompression
    public var hasLazyRefcounts: Bool
    public var refcountBits: Int
    public var isCorrupt: Bool
    public var isDirty: Bool
    public var hasExtendedL2: Bool
    public var dataFile: String?
    public var isDataFileRaw: Bool
  }

  public var information: Information {
    monitor.withLock {
      Information(
        version: header.version, compression: compression,
        hasLazyRefcounts: header.compatible & Qcow2Header.Compatible.lazyRefcounts != 0,
        refcountBits: 1 << header.refcountOrder,
        isCorrupt: header.incompatible & Qcow2Header.Incompatible.corrupt != 0,
        isDirty: header.incompatible & Qcow2Header.Incompatible.dirty != 0, hasExtendedL2: hasExtendedL2,
        dataFile: header.usesDataFile ? header.dataFileName ?? "" : nil, isDataFileRaw: header.isDataFileRaw)
    }
  }

  /// The key slots of the image's encryption.
  public func keySlots() throws(BlockError) -> LUKSKeySlots {
    guard header.encryption != 0, let place = header.encryptionHeader else {
      throw invalid("it is not encrypted")
    }
    return try LUKSKeySlots(file, at: place.offset, opened: encryptedStore)
  }

  /// Stores another backing file's name and format; the data stays as it is.
  public func setBackingFile(_ name: String?, format: String?) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      if let name, name.utf8.count > 1023 {
        throw BlockError(.invalid, "the backing file's name is too long")
      }
      if name != nil, header.isDataFileRaw {
        throw BlockError(.invalid, "an image with a raw external data file cannot have a backing file")
      }
      header.backingFile = name
      header.backingFormat = name == nil ? nil : format
      try writeHeader()
      try file.flush()
    }
  }

  /// Leaves everything to the backing file again.
  public func makeEmpty() throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      for (index, l1Entry) in l1.enumerated() where l1Entry & Entry.offsetMask != 0 {
        let offset = index << Int(clusterBits + l2Bits)
        let table = try writableL2(UInt64(offset))
        for position in 0..<(1 << Int(l2Bits)) {
          let item = entry(table, position)
          if item != L2Entry(descriptor: 0) { release(item) }
        }
        l2Cache[table.offset] = nil
        l1[index] = 0
        dirtyL1Sectors.insert(index / 64)
        release(table.offset >> clusterBits..<(table.offset >> clusterBits) + 1)
      }
      try flushMetadata(isFinal: true)
    }
  }

  public func setLazyRefcounts(_ isOn: Bool) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      guard isVersion3 else { throw BlockError(.unsupported, "lazy_refcounts needs compat=1.1") }
      try flushMetadata(isFinal: true)
      try file.flush()
      if isOn {
        header.compatible |= Qcow2Header.Compatible.lazyRefcounts
      } else {
        header.compatible &= ~Qcow2Header.Compatible.lazyRefcounts
      }
      header.incompatible &= ~Qcow2Header.Incompatible.dirty
      refcountsAreLazy = false
      try writeHeader()
    }
  }

  /// Rewrites all reference counts with another width.
  public func setRefcountBits(_ bits: Int) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      guard bits.nonzeroBitCount == 1, (1...64).contains(bits) else {
        throw BlockError(.invalid, "refcount_bits is \(bits); it must be a power of two from 1 to 64")
      }
      guard isVersion3 || bits == 16 else {
        throw BlockError(.invalid, "compat=0.10 has refcount_bits=16 only")
      }
      guard bits != 1 << header.refcountOrder else { return }
      try flushMetadata(isFinal: true)
      try recount(order: bits.trailingZeroBitCount)
    }
  }

  /// Version 3 to 2 or back.
  public func setVersion(_ version: UInt32) throws(BlockError) {
    if version == monitor.withLock({ header.version }) { return }
    if version == 2 { try prepareForVersion2() }
    try locked { () throws(BlockError) in
      try quiesce()
      try flushMetadata(isFinal: true)
      try file.flush()
      // Entries of version 3 have fields that older ones may lack.
      if version == 3, !snapshots.isEmpty { try replaceSnapshotTable(snapshots) }
      header.version = version
      if version == 2 {
        header.compatible = 0
        header.autoclear = 0
        header.incompatible = 0
        header.unknownFields = []
        header.setExtension(Qcow2Header.ExtensionType.featureNames, nil)
      } else {
        header.setExtension(Qcow2Header.ExtensionType.featureNames, Qcow2Header.featureNames)
      }
      try writeHeader()
      try file.flush()
    }
  }

  /// Version 2 has no zero flags: such clusters get real zeros, or nothing where nothing shines through.
  private func prepareForVersion2() throws(BlockError) {
    if header.refcountOrder != 4 {
      throw BlockError(.unsupported, "compat=0.10 needs refcount_bits=16; amend that first")
    }
    let features = header.incompatible & ~Qcow2Header.Incompatible.dirty
    guard features == 0, bitmaps.isEmpty else {
      throw BlockError(.unsupported, "the image uses features that compat=0.10 does not have")
    }
    try locked { () throws(BlockError) in
      try quiesce()
      try flushMetadata(isFinal: true)
      var tables: Set<UInt64> = []
      for l1Entry in l1 { tables.insert(l1Entry & Entry.offsetMask) }
      for snapshot in snapshots {
        guard snapshot.diskByteCount == header.byteCount, snapshot.vmStateByteCount <= UInt64(UInt32.max)
        else {
          throw BlockError(
            .unsupported,
            "compat=0.10 cannot tell that the snapshot '\(snapshot.name)' has another size than the image")
        }
        for l1Entry in try readL1(snapshot) { tables.insert(l1Entry & Entry.offsetMask) }
      }
      tables.remove(0)
      let active = Set(l1.filter { $0 & Entry.copied != 0 }.map { $0 & Entry.offsetMask })
      for offset in tables.sorted() { try expandZeroes(tableAt: offset, isCopied: active.contains(offset)) }
      try flushMetadata(isFinal: true)
    }
    if refcountsAreLazy { try setLazyRefcounts(false) }
  }

  /// Takes the zero flags out of an L2 table, which trees may share: then as many share what it leads to. Lock held.
  private func expandZeroes(tableAt offset: UInt64, isCopied: Bool) throws(BlockError) {
    let owners = try refcount(offset >> clusterBits)
    for index in 0..<(1 << Int(l2Bits)) {
      let table = try loadL2(at: offset)
      let old = entry(table, index)
      guard !old.isCompressed, old.descriptor & Entry.zero != 0 else { continue }
      var new = L2Entry(descriptor: 0)
      if header.backingFile != nil {
        let cluster = try allocate(1)
        try checkOverlap(cluster)
        try setRefcount(cluster.lowerBound, owners)
        try file.writeZeroes(at: cluster.lowerBound << clusterBits, byteCount: clusterSize, mayUnmap: false)
        new.descriptor = cluster.lowerBound << clusterBits | (isCopied ? Entry.copied : 0)
      }
      // The search for a cluster may have dropped the table from memory.
      setEntry(try loadL2(at: offset), index, new)
      for _ in 0..<owners { release(old) }
    }
  }
}
