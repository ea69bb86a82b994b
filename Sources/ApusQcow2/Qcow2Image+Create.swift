import ApusBlock
import ApusCrypto
import ApusHost

/// New images.
extension Qcow2Image {
  public struct CreateOptions: Sendable {
    public var byteCount: UInt64
    public var version: UInt32 = 3
    public var clusterByteCount: UInt64 = 65536
    public var refcountBits = 16
    public var backingFile: String?
    public var backingFormat: String?
    public var lazyRefcounts = false
    public var extendedL2 = false
    public var compression = ClusterCompression.zlib
    public var preallocation = Preallocation.off
    public var dataFile: String?
    public var isDataFileRaw = false
    /// LUKS encryption.
    public var encryption: LUKSHeader.Parameters?
    public init(byteCount: UInt64) { self.byteCount = byteCount }
  }

  /// Writes the tables of an empty image to `file`, which must be empty, and opens it.
  public static func create(
    _ options: CreateOptions, on file: any ImageNode, dataFile: (any ImageNode)? = nil
  )
    throws(BlockError) -> Qcow2Image
  {
    var options = options
    options.byteCount = (options.byteCount + 511) & ~511
    try validate(options)
    var header = Qcow2Header()
    header.version = options.version
    header.clusterBits = options.clusterByteCount.trailingZeroBitCount
    header.byteCount = options.byteCount
    header.refcountOrder = options.refcountBits.trailingZeroBitCount
    header.compressionType = options.compression.rawValue
    if options.compression != .zlib { header.incompatible |= Qcow2Header.Incompatible.compressionType }
    if options.extendedL2 { header.incompatible |= Qcow2Header.Incompatible.extendedL2 }
    if options.lazyRefcounts { header.compatible |= Qcow2Header.Compatible.lazyRefcounts }
    header.backingFile = options.backingFile
    header.backingFormat = options.backingFormat
    if let name = options.dataFile {
      header.incompatible |= Qcow2Header.Incompatible.dataFile
      header.dataFileName = name
      if options.isDataFileRaw { header.autoclear |= Qcow2Header.Autoclear.rawDataFile }
    }
    if options.version == 3 {
      header.setExtension(Qcow2Header.ExtensionType.featureNames, Qcow2Header.featureNames)
    }
    try writeTables(&header, file)
    if let encryption = options.encryption { try addEncryption(encryption, file, dataFile) }
    var opening = Options()
    opening.passphrase = options.encryption?.passphrase
    let image = try Qcow2Image(file, dataFile: dataFile, options: opening)
    if let dataFile, dataFile.byteCount < options.byteCount {
      try dataFile.truncate(
        options.byteCount, preallocation: options.preallocation == .falloc ? .falloc : .off)
    }
    try image.preallocate(0..<options.byteCount, options.preallocation)
    return image
  }

  private static func validate(_ options: CreateOptions) throws(BlockError) {
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, text) }
    let cluster = options.clusterByteCount
    guard cluster.nonzeroBitCount == 1, (512...(2 << 20)).contains(cluster) else {
      throw refuse("cluster_size is \(cluster); it must be a power of two from 512 to 2097152")
    }
    guard options.refcountBits.nonzeroBitCount == 1, (1...64).contains(options.refcountBits) else {
      throw refuse("refcount_bits is \(options.refcountBits); it must be a power of two from 1 to 64")
    }
    if options.version == 2 {
      if options.refcountBits != 16 { throw refuse("compat=0.10 has refcount_bits=16 only; use compat=1.1") }
      if options.lazyRefcounts { throw refuse("compat=0.10 has no lazy_refcounts; use compat=1.1") }
      if options.extendedL2 { throw refuse("compat=0.10 has no extended_l2; use compat=1.1") }
      if options.encryption != nil { throw refuse("compat=0.10 has no LUKS encryption; use compat=1.1") }
      if options.dataFile != nil { throw refuse("compat=0.10 has no data_file; use compat=1.1") }
      if options.compression != .zlib {
        throw refuse("compat=0.10 has compression_type=zlib only; use compat=1.1")
      }
    }
    if options.extendedL2, cluster < 16384 {
      throw refuse("extended_l2 needs a cluster_size of 16384 or more")
    }
    if options.isDataFileRaw, options.dataFile == nil { throw refuse("data_file_raw needs data_file") }
    if options.isDataFileRaw, options.backingFile != nil {
      throw refuse("backing files and data_file_raw exclude each other")
    }
    if options.backingFile != nil, options.preallocation != .off, !options.extendedL2 {
      throw refuse("an image with a backing file can be preallocated only with extended_l2")
    }
    if let name = options.backingFile, name.utf8.count > 1023 {
      throw refuse("the backing file's name is too long")
    }
    let coverage = cluster * (cluster / (options.extendedL2 ? 16 : 8))
    guard options.byteCount / coverage < 32 << 20 / 8 else {
      throw refuse(
        "\(options.byteCount) bytes are too many for clusters of \(cluster) bytes; use a larger cluster_size")
    }
  }

  /// Header, refcount table, one refcount block and the L1 table, side by side.
  private static func writeTables(_ header: inout Qcow2Header, _ file: any ImageNode) throws(BlockError) {
    let cluster = header.clusterByteCount
    let l1Entries = (header.byteCount + header.l1Coverage - 1) / header.l1Coverage
    let l1Clusters = (l1Entries * 8 + cluster - 1) / cluster
    header.l1Size = Int(l1Entries)
    let perBlock = (cluster * 8) >> UInt64(header.refcountOrder)
    var blocks: UInt64 = 1
    var tableClusters: UInt64 = 1
    while true {
      let total = 1 + tableClusters + blocks + l1Clusters
      let neededBlocks = (total + perBlock - 1) / perBlock
      let neededTable = (neededBlocks * 8 + cluster - 1) / cluster
      if neededBlocks <= blocks, neededTable <= tableClusters { break }
      (blocks, tableClusters) = (max(blocks, neededBlocks), max(tableClusters, neededTable))
    }
    let total = 1 + tableClusters + blocks + l1Clusters
    header.refcountTableOffset = cluster
    header.refcountTableClusters = Int(tableClusters)
    header.l1Offset = l1Entries == 0 ? 0 : (1 + tableClusters + blocks) * cluster
    // The header comes last: until then the file is no qcow2 image.
    try file.truncate(0, preallocation: .off)
    try file.truncate(total * cluster, preallocation: .off)
    let table = HostBuffer(byteCount: Int(blocks * 8))
    for number in 0..<blocks {
      table.setBig(Int(number * 8), (1 + tableClusters + number) * cluster)
      let buffer = HostBuffer(byteCount: Int(cluster))
      let bits = 1 << header.refcountOrder
      for index in 0..<min(perBlock, total - number * perBlock) {
        let position = Int(index) * bits
        // The lowest bit of each count, which is big endian from a byte on.
        let byte = bits >= 8 ? (position >> 3) + (bits >> 3) - 1 : position >> 3
        buffer.bytes[byte] |= bits >= 8 ? 1 : 1 << UInt8(position & 7)
      }
      try file.write(at: (1 + tableClusters + number) * cluster, from: buffer.io)
    }
    try file.write(at: cluster, from: table.io)
    try file.write(header.encoded(), at: 0)
  }

  /// Puts a LUKS header into a new image.
  private static func addEncryption(
    _ parameters: LUKSHeader.Parameters, _ file: any ImageNode, _ dataFile: (any ImageNode)?
  ) throws(BlockError) {
    let bytes: [UInt8]
    do throws(CryptoError) { bytes = try LUKSHeader.make(parameters).bytes } catch {
      throw BlockError(.io, error.description)
    }
    let image = try Qcow2Image(file, dataFile: dataFile)
    try image.locked { () throws(BlockError) in
      let count = (UInt64(bytes.count) + image.clusterSize - 1) >> image.clusterBits
      let place = try image.allocate(count, exactly: true)
      try file.write(bytes, at: place.lowerBound << image.clusterBits)
      try image.flushMetadata(isFinal: true)
      try file.flush()
      image.header.encryptionHeader = (place.lowerBound << image.clusterBits, UInt64(bytes.count))
      image.header.encryption = 2
      try image.writeHeader()
    }
  }

  // MARK: Preallocation and resizing

  /// Gives every cluster of a guest range its place.
  func preallocate(_ range: Range<UInt64>, _ mode: Preallocation) throws(BlockError) {
    guard mode != .off, !range.isEmpty else { return }
    let target = dataFile ?? file
    var position = range.lowerBound & ~(clusterSize - 1)
    while position < range.upperBound {
      let start = position
      let host = try locked { () throws(BlockError) -> Range<UInt64> in
        let table = try writableL2(start)
        let coverage = UInt64(1) << (clusterBits + l2Bits)
        let end = min(range.upperBound, (start / coverage + 1) * coverage)
        let wanted = (end - start + clusterSize - 1) >> clusterBits
        if kind(entry(table, l2Index(start)), unit: 0) != .unallocated
          || entry(table, l2Index(start)).hostOffset != 0
        {
          position += clusterSize
          return 0..<0
        }
        let first = start >> clusterBits
        let clusters = dataFile != nil ? first..<first + wanted : try allocate(wanted)
        for (number, cluster) in clusters.enumerated() {
          let index = l2Index(start + UInt64(number) << clusterBits)
          let bits: UInt64 =
            hasExtendedL2 && backingNode == nil && header.backingFile == nil ? 0xffff_ffff : 0
          setEntry(table, index, L2Entry(descriptor: cluster << clusterBits | Entry.copied, bitmap: bits))
        }
        position += UInt64(clusters.count) << clusterBits
        return clusters
      }
      guard !host.isEmpty else { continue }
      let offset = host.lowerBound << clusterBits
      let byteCount = UInt64(host.count) << clusterBits
      try fill(target, offset, byteCount, mode)
    }
    try flush()
  }

  private func fill(_ target: any ImageNode, _ offset: UInt64, _ byteCount: UInt64, _ mode: Preallocation)
    throws(BlockError)
  {
    if target.byteCount < offset + byteCount {
      if mode == .falloc {
        // What lies before the old end and behind `offset` was cut out of metadata that grew the file.
        try target.truncate(offset + byteCount, preallocation: .falloc)
      } else {
        try target.truncate(offset + byteCount, preallocation: .off)
      }
    }
    guard mode == .full else { return }
    let chunk = HostBuffer(byteCount: Int(min(byteCount, 1 << 20)))
    var done: UInt64 = 0
    while done < byteCount {
      let count = min(byteCount - done, UInt64(chunk.byteCount))
      try target.write(at: offset + done, from: [chunk.io(0, Int(count))])
      done += count
    }
  }

  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    let byteCount = (byteCount + 511) & ~511
    let old = self.byteCount
    if isReadOnly { throw BlockError(.readOnly, "the image is open read-only") }
    guard byteCount != old else { return }
    // Their entries may lack the disk's size, and would take on the new one.
    guard isVersion3 || snapshotList.isEmpty else {
      throw BlockError(
        .unsupported,
        "qcow2 image: one of version 2 (compat=0.10) that has snapshots cannot be resized; amend it to compat=1.1"
      )
    }
    if let broken = bitmaps.first(where: { $0.wasInUse }) {
      throw BlockError(
        .invalid,
        "qcow2 image: its bitmap '\(broken.name)' is inconsistent and cannot follow a new size; remove it first"
      )
    }
    // From here until the bitmaps are stored with the new size, other programs see them as in use: after a crash they are
    // worth nothing, and nobody takes their old tables for those of the new size.
    try locked { () throws(BlockError) in try beginResizingBitmaps() }
    if byteCount < old {
      guard preallocation == .off else { throw BlockError(.invalid, "a smaller size cannot be preallocated") }
      try shrink(to: byteCount)
    } else {
      try grow(to: byteCount)
      try preallocate(old..<byteCount, preallocation)
    }
    try locked { () throws(BlockError) in try endResizingBitmaps() }
    try dataFile.map { (node: any ImageNode) throws(BlockError) in
      if header.isDataFileRaw || node.byteCount < byteCount {
        try node.truncate(byteCount, preallocation: .off)
      }
    }
  }

  private func grow(to byteCount: UInt64) throws(BlockError) {
    // The old last cluster's rest was never visible; now it must read as zeros.
    let old = self.byteCount
    let rest = (old + clusterSize - 1) & ~(clusterSize - 1)
    try locked { () throws(BlockError) in
      try quiesce()
      let entries = (byteCount + header.l1Coverage - 1) / header.l1Coverage
      guard entries <= 32 << 20 / 8 else {
        throw BlockError(.invalid, "\(byteCount) bytes are too many for clusters of \(clusterSize) bytes")
      }
      try growL1(Int(entries))
      header.byteCount = byteCount
      try writeHeader()
    }
    if old < rest, old > 0 {
      let end = min(rest, byteCount)
      if end > old { try writeZeroes(at: old, byteCount: end - old, mayUnmap: false) }
    }
    if let backing = backingNode, backing.byteCount > old {
      // A longer backing file must not shine through.
      let end = min(backing.byteCount, byteCount)
      if end > rest { try writeZeroes(at: rest, byteCount: end - rest, mayUnmap: true) }
    }
  }

  func growL1(_ count: Int) throws(BlockError) {
    guard count > l1.count else { return }
    try flushMetadata(isFinal: true)
    let old = l1.isEmpty ? 0..<0 : clusters(header.l1Offset, l1.count * 8)
    l1 += [UInt64](repeating: 0, count: count - l1.count)
    let wanted = (UInt64(count) * 8 + clusterSize - 1) >> clusterBits
    if wanted > UInt64(old.count) {
      let place = try allocate(wanted, exactly: true)
      try file.write(l1.flatMap(bigEndianBytes), at: place.lowerBound << clusterBits)
      try flushMetadata(isFinal: true)
      try file.flush()
      header.l1Offset = place.lowerBound << clusterBits
      for cluster in place { metadataClusters.insert(cluster) }
      release(old)
    } else {
      try file.write(l1.flatMap(bigEndianBytes), at: header.l1Offset)
    }
    header.l1Size = count
  }

  private func shrink(to byteCount: UInt64) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      let firstCluster = (byteCount + clusterSize - 1) >> clusterBits
      let end = (header.byteCount + clusterSize - 1) >> clusterBits
      var cluster = firstCluster
      while cluster < end {
        let offset = cluster << clusterBits
        let coverage = UInt64(1) << (clusterBits + l2Bits)
        guard l1[l1Index(offset)] & Entry.offsetMask != 0 else {
          cluster = ((offset / coverage + 1) * coverage) >> clusterBits
          continue
        }
        let table = try writableL2(offset)
        let item = entry(table, l2Index(offset))
        if item != L2Entry(descriptor: 0) {
          setEntry(table, l2Index(offset), L2Entry(descriptor: 0))
          release(item)
        }
        cluster += 1
      }
      // Tables that cover nothing any more; the L1 table itself keeps its length.
      let keep = Int((byteCount + header.l1Coverage - 1) / header.l1Coverage)
      for index in keep..<max(keep, l1.count) where l1[index] & Entry.offsetMask != 0 {
        let offset = l1[index] & Entry.offsetMask
        // A VM's state behind the disk.
        let table = try loadL2(at: offset)
        for position in 0..<(1 << Int(l2Bits)) {
          let item = entry(table, position)
          if item != L2Entry(descriptor: 0) { release(item) }
        }
        l1[index] = 0
        dirtyL1Sectors.insert(index / 64)
        l2Cache[offset] = nil
        release(offset >> clusterBits..<(offset >> clusterBits) + 1)
      }
      header.byteCount = byteCount
      try flushMetadata(isFinal: true)
      try writeHeader()
    }
    try cutFile()
  }

  /// Gives back free clusters at the file's end.
  private func cutFile() throws(BlockError) {
    try locked { () throws(BlockError) in
      var last = (file.byteCount + clusterSize - 1) >> clusterBits
      while last > 1, try refcount(last - 1) == 0 { last -= 1 }
      if last << clusterBits < file.byteCount {
        try flushMetadata(isFinal: true)
        try file.flush()
        try file.truncate(last << clusterBits, preallocation: .off)
      }
    }
  }
}
