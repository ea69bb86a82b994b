import ApusBlock
import ApusHost

/// A dirty bitmap that is kept in the image.
public struct PersistentBitmap: Sendable, Equatable {
  public internal(set) var name: String
  public internal(set) var granularityBits: Int
  var flags: UInt32
  var type: UInt8 = 1
  var tableOffset: UInt64 = 0
  var tableSize = 0
  var extra: [UInt8] = []
  /// Whether the last writer died while it had the bitmap: what it says is worth nothing.
  public internal(set) var wasInUse: Bool
  /// A bit for each granule, once loaded.
  var words: [UInt64]?

  static let inUseFlag: UInt32 = 1
  static let autoFlag: UInt32 = 2

  public var granularity: UInt64 { 1 << UInt64(granularityBits) }
  /// Whether writes are recorded.
  public var isEnabled: Bool { flags & Self.autoFlag != 0 }
}

/// Persistent dirty bitmaps [qcow2 "Bitmaps extension", "Bitmaps"]. With the lock held unless public.
extension Qcow2Image {
  /// The bitmaps' names, granularities and states.
  public var bitmapList: [PersistentBitmap] { monitor.withLock { bitmaps } }

  private var directory: (count: Int, byteCount: Int, offset: UInt64)? {
    guard let data = header.extensions.first(where: { $0.type == Qcow2Header.ExtensionType.bitmaps })?.data,
      data.count >= 24
    else { return nil }
    let buffer = HostBuffer(data)
    return (Int(buffer.big32(0)), Int(clamping: buffer.big64(8)), buffer.big64(16))
  }

  func readBitmapDirectory() throws(BlockError) -> [PersistentBitmap] {
    guard header.autoclear & Qcow2Header.Autoclear.bitmaps != 0 else { return [] }
    guard let directory else { throw invalid("the bitmaps extension is missing or too short") }
    guard directory.byteCount <= 64 << 20, directory.count <= 65535, directory.offset & (clusterSize - 1) == 0
    else {
      throw invalid("the bitmap directory is misplaced or too large")
    }
    let bytes = try file.bytes(at: directory.offset, count: directory.byteCount)
    let buffer = HostBuffer(bytes)
    var result: [PersistentBitmap] = []
    var position = 0
    for _ in 0..<directory.count {
      guard position + 24 <= bytes.count else { throw invalid("the bitmap directory ends early") }
      let nameLength = Int(buffer.big16(position + 18))
      let extraLength = Int(buffer.big32(position + 20))
      guard position + 24 + extraLength + nameLength <= bytes.count else {
        throw invalid("the bitmap directory ends early")
      }
      let start = position + 24
      var bitmap = PersistentBitmap(
        name: String(
          decoding: bytes[(start + extraLength)..<(start + extraLength + nameLength)], as: UTF8.self),
        granularityBits: Int(bytes[position + 17]), flags: buffer.big32(position + 12),
        wasInUse: buffer.big32(position + 12) & PersistentBitmap.inUseFlag != 0)
      bitmap.tableOffset = buffer.big64(position)
      bitmap.tableSize = Int(buffer.big32(position + 8))
      bitmap.type = bytes[position + 16]
      bitmap.extra = Array(bytes[start..<start + extraLength])
      guard (9...31).contains(bitmap.granularityBits), bitmap.tableSize <= 8 << 20,
        bitmap.tableOffset & (clusterSize - 1) == 0
      else { throw invalid("the bitmap '\(bitmap.name)' has impossible values") }
      result.append(bitmap)
      position = (start + extraLength + nameLength + 7) & ~7
    }
    return result
  }

  private func readTable(_ bitmap: PersistentBitmap) throws(BlockError) -> [UInt64] {
    guard bitmap.tableSize > 0 else { return [] }
    let buffer = HostBuffer(byteCount: bitmap.tableSize * 8)
    try file.read(at: bitmap.tableOffset, into: buffer.io)
    return (0..<bitmap.tableSize).map { buffer.big64($0 * 8) }
  }

  private func bitCount(_ bitmap: PersistentBitmap) -> Int {
    Int((header.byteCount + bitmap.granularity - 1) >> UInt64(bitmap.granularityBits))
  }

  /// The bits of bitmap `index`, read when first needed.
  private func load(_ index: Int) throws(BlockError) -> [UInt64] {
    if let words = bitmaps[index].words { return words }
    let bitmap = bitmaps[index]
    var words = [UInt64](repeating: 0, count: (bitCount(bitmap) + 63) / 64)
    let perCluster = Int(clusterSize / 8)
    for (number, tableEntry) in try readTable(bitmap).enumerated() {
      let first = number * perCluster
      guard first < words.count else { break }
      let offset = tableEntry & Entry.offsetMask
      if offset == 0 {
        if tableEntry & 1 != 0 {
          for word in first..<min(first + perCluster, words.count) { words[word] = .max }
        }
        continue
      }
      let buffer = HostBuffer(byteCount: Int(clusterSize))
      try file.read(at: offset, into: buffer.io)
      for word in first..<min(first + perCluster, words.count) {
        words[word] = buffer.little64((word - first) * 8)
      }
    }
    bitmaps[index].words = words
    return words
  }

  // MARK: Recording

  /// Loads the bitmaps that record and tells other programs that what the file says about them is old.
  func beginBitmapUse() throws(BlockError) {
    bitmapsAreInUse = true
    for index in bitmaps.indices where bitmaps[index].isEnabled && !bitmaps[index].wasInUse {
      _ = try load(index)
      bitmaps[index].flags |= PersistentBitmap.inUseFlag
    }
    guard let directory else { return }
    // The same entries with other flags: in place.
    try file.write(encodedDirectory(), at: directory.offset)
    try file.flush()
  }

  /// Records that a range changes.
  func markBitmaps(_ offset: UInt64, _ byteCount: UInt64) throws(BlockError) {
    guard !bitmaps.isEmpty, byteCount > 0 else { return }
    if !bitmapsAreInUse, bitmaps.contains(where: { $0.isEnabled && !$0.wasInUse }) { try beginBitmapUse() }
    for index in bitmaps.indices where bitmaps[index].isEnabled && !bitmaps[index].wasInUse {
      let shift = UInt64(bitmaps[index].granularityBits)
      let count = bitCount(bitmaps[index])
      for bit in Int(offset >> shift)...Int((offset + byteCount - 1) >> shift) where bit < count {
        bitmaps[index].words?[bit / 64] |= 1 << UInt64(bit % 64)
      }
    }
  }

  private func encodedDirectory() -> [UInt8] {
    bitmaps.flatMap { bitmap -> [UInt8] in
      let name = Array(bitmap.name.utf8)
      let fields = HostBuffer(byteCount: 24)
      fields.setBig(0, bitmap.tableOffset)
      fields.setBig(8, UInt32(bitmap.tableSize))
      fields.setBig(12, bitmap.flags)
      fields.bytes[16] = bitmap.type
      fields.bytes[17] = UInt8(bitmap.granularityBits)
      fields.setBig(18, UInt16(name.count))
      fields.setBig(20, UInt32(bitmap.extra.count))
      var bytes = fields.array() + bitmap.extra + name
      bytes += [UInt8](repeating: 0, count: (8 - bytes.count & 7) & 7)
      return bytes
    }
  }

  // MARK: Storing

  /// Writes back what recorded, at the image's closing.
  func storeBitmaps() throws(BlockError) {
    guard bitmapsAreInUse else { return }
    bitmapsAreInUse = false
    let before = pendingFrees
    pendingFrees = []
    for index in bitmaps.indices where !bitmaps[index].wasInUse {
      if bitmaps[index].flags & PersistentBitmap.inUseFlag != 0 {
        bitmaps[index].flags &= ~PersistentBitmap.inUseFlag
        try storeBits(index)
      }
    }
    // The old tables' clusters go only after the directory on disk leads to the new ones.
    let frees = pendingFrees
    pendingFrees = before
    try replaceDirectory()
    pendingFrees += frees
    try flushMetadata(isFinal: true)
  }

  /// Writes the bits of bitmap `index` to new clusters; the directory has to follow.
  private func storeBits(_ index: Int) throws(BlockError) {
    guard let words = bitmaps[index].words else { return }
    let old = try readTable(bitmaps[index])
    if bitmaps[index].tableOffset != 0 { release(clusters(bitmaps[index].tableOffset, old.count * 8)) }
    for item in old where item & Entry.offsetMask != 0 {
      release((item & Entry.offsetMask) >> clusterBits..<((item & Entry.offsetMask) >> clusterBits) + 1)
    }
    let perCluster = Int(clusterSize / 8)
    var table: [UInt64] = []
    for first in stride(from: 0, to: words.count, by: perCluster) {
      let part = words[first..<min(first + perCluster, words.count)]
      if part.allSatisfy({ $0 == 0 }) {
        table.append(0)
        continue
      }
      let buffer = HostBuffer(byteCount: Int(clusterSize))
      for (position, word) in part.enumerated() { buffer.setLittle(position * 8, word) }
      let place = try allocate(1)
      try file.write(at: place.lowerBound << clusterBits, from: buffer.io)
      table.append(place.lowerBound << clusterBits)
    }
    bitmaps[index].tableSize = table.count
    bitmaps[index].tableOffset = 0
    if !table.isEmpty {
      let place = try allocate((UInt64(table.count) * 8 + clusterSize - 1) >> clusterBits, exactly: true)
      bitmaps[index].tableOffset = place.lowerBound << clusterBits
      try file.write(table.flatMap(bigEndianBytes), at: bitmaps[index].tableOffset)
    }
  }

  /// Writes the directory to a new place and points the header there.
  private func replaceDirectory() throws(BlockError) {
    let old = directory
    if bitmaps.isEmpty {
      header.setExtension(Qcow2Header.ExtensionType.bitmaps, nil)
      header.autoclear &= ~Qcow2Header.Autoclear.bitmaps
    } else {
      let bytes = encodedDirectory()
      let place = try allocate((UInt64(bytes.count) + clusterSize - 1) >> clusterBits, exactly: true)
      try file.write(bytes, at: place.lowerBound << clusterBits)
      let fields = HostBuffer(byteCount: 24)
      fields.setBig(0, UInt32(bitmaps.count))
      fields.setBig(8, UInt64(bytes.count))
      fields.setBig(16, place.lowerBound << clusterBits)
      header.setExtension(Qcow2Header.ExtensionType.bitmaps, fields.array())
      header.autoclear |= Qcow2Header.Autoclear.bitmaps
    }
    try flushMetadata(isFinal: true)
    try file.flush()
    try writeHeader()
    try file.flush()
    if let old { release(clusters(old.offset, old.byteCount)) }
    try flushMetadata(isFinal: true)
  }

  // MARK: Resizing

  /// Loads all bitmaps and marks them as in use.
  func beginResizingBitmaps() throws(BlockError) {
    guard !bitmaps.isEmpty else { return }
    bitmapsAreInUse = true
    for index in bitmaps.indices {
      _ = try load(index)
      bitmaps[index].flags |= PersistentBitmap.inUseFlag
    }
    guard let directory else { return }
    try file.write(encodedDirectory(), at: directory.offset)
    try file.flush()
  }

  /// Fits the bits to the size that the image has now, and stores them. What is new is clean.
  func endResizingBitmaps() throws(BlockError) {
    for index in bitmaps.indices {
      let bits = bitCount(bitmaps[index])
      var words = bitmaps[index].words ?? []
      let count = (bits + 63) / 64
      if words.count > count { words.removeLast(words.count - count) }
      words += [UInt64](repeating: 0, count: count - words.count)
      if bits % 64 != 0, let last = words.indices.last { words[last] &= (1 << UInt64(bits % 64)) - 1 }
      bitmaps[index].words = words
    }
    try storeBitmaps()
  }

  // MARK: Operations

  private func index(_ name: String) throws(BlockError) -> Int {
    guard let index = bitmaps.firstIndex(where: { $0.name == name }) else {
      throw BlockError(.invalid, "there is no bitmap '\(name)'")
    }
    return index
  }

  private func consistent(_ name: String) throws(BlockError) -> Int {
    let index = try index(name)
    if bitmaps[index].wasInUse {
      throw BlockError(.invalid, "the bitmap '\(name)' is inconsistent; it can only be removed")
    }
    return index
  }

  /// - Parameter granularity: a power of two from 512 to 2 GiB; 0: the cluster size, at least 4 KiB and at most 64 KiB.
  public func addBitmap(_ name: String, granularity: UInt64 = 0, isEnabled: Bool = true) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      guard isVersion3 else {
        throw BlockError(.unsupported, "qcow2 image: version 2 images have no bitmaps; amend compat to 1.1")
      }
      guard !bitmaps.contains(where: { $0.name == name }) else {
        throw BlockError(.invalid, "there is a bitmap '\(name)' already")
      }
      guard (1...1023).contains(name.utf8.count) else {
        throw BlockError(.invalid, "a bitmap's name has 1 to 1023 bytes")
      }
      let granularity = granularity == 0 ? min(max(clusterSize, 4096), 65536) : granularity
      guard granularity.nonzeroBitCount == 1, (512...(1 << 31)).contains(granularity) else {
        throw BlockError(
          .invalid, "the granularity is \(granularity); it must be a power of two from 512 to 2147483648")
      }
      var bitmap = PersistentBitmap(
        name: name, granularityBits: granularity.trailingZeroBitCount,
        flags: isEnabled ? PersistentBitmap.autoFlag : 0, wasInUse: false)
      bitmap.words = [UInt64](repeating: 0, count: (bitCount(bitmap) + 63) / 64)
      bitmaps.append(bitmap)
      try storeBits(bitmaps.count - 1)
      try replaceDirectory()
    }
  }

  public func removeBitmap(_ name: String) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      let index = try index(name)
      let table = try readTable(bitmaps[index])
      if bitmaps[index].tableOffset != 0 { release(clusters(bitmaps[index].tableOffset, table.count * 8)) }
      for item in table where item & Entry.offsetMask != 0 {
        release((item & Entry.offsetMask) >> clusterBits..<((item & Entry.offsetMask) >> clusterBits) + 1)
      }
      // The references go only after the directory on disk has lost the bitmap.
      let frees = pendingFrees
      pendingFrees = []
      bitmaps.remove(at: index)
      try replaceDirectory()
      pendingFrees += frees
      try flushMetadata(isFinal: true)
    }
  }

  /// Replaces a bitmap's bits by what `change` makes of them.
  private func changeBits(_ name: String, _ change: (inout [UInt64]) -> Void) throws(BlockError) {
    let index = try consistent(name)
    var words = try load(index)
    change(&words)
    bitmaps[index].words = words
    let before = pendingFrees
    pendingFrees = []
    try storeBits(index)
    let frees = pendingFrees
    pendingFrees = before
    try replaceDirectory()
    pendingFrees += frees
    try flushMetadata(isFinal: true)
  }

  public func clearBitmap(_ name: String) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      try changeBits(name) { words in for index in words.indices { words[index] = 0 } }
    }
  }

  public func setBitmapEnabled(_ name: String, _ isEnabled: Bool) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      let index = try consistent(name)
      if isEnabled {
        bitmaps[index].flags |= PersistentBitmap.autoFlag
      } else {
        bitmaps[index].flags &= ~PersistentBitmap.autoFlag
      }
      try replaceDirectory()
    }
  }

  /// Sets the bits of every range that `source` has set.
  public func mergeBitmap(_ name: String, from source: [Range<UInt64>]) throws(BlockError) {
    try locked { () throws(BlockError) in
      try quiesce()
      let index = try consistent(name)
      let shift = UInt64(bitmaps[index].granularityBits)
      let size = header.byteCount
      try changeBits(name) { words in
        for range in source where range.lowerBound < size && !range.isEmpty {
          let last = Int((min(range.upperBound, size) - 1) >> shift)
          for bit in Int(range.lowerBound >> shift)...last { words[bit / 64] |= 1 << UInt64(bit % 64) }
        }
      }
    }
  }

  /// The ranges that a bitmap has marked, in order.
  public func dirtyRanges(_ name: String) throws(BlockError) -> [Range<UInt64>] {
    try locked { () throws(BlockError) in
      let index = try consistent(name)
      let words = try load(index)
      let shift = UInt64(bitmaps[index].granularityBits)
      let bits = bitCount(bitmaps[index])
      var result: [Range<UInt64>] = []
      for (number, word) in words.enumerated() where word != 0 {
        for bit in number * 64..<min(number * 64 + 64, bits) where word >> UInt64(bit % 64) & 1 != 0 {
          let start = UInt64(bit) << shift
          let end = min(start + 1 << shift, header.byteCount)
          if let last = result.last, last.upperBound == start {
            result[result.count - 1] = last.lowerBound..<end
          } else {
            result.append(start..<end)
          }
        }
      }
      return result
    }
  }

  /// What bitmaps occupy in the file, for the check.
  func bitmapRanges(_ result: inout CheckResult) throws(BlockError) -> [(offset: UInt64, byteCount: UInt64)] {
    guard header.autoclear & Qcow2Header.Autoclear.bitmaps != 0, let directory else { return [] }
    var ranges: [(offset: UInt64, byteCount: UInt64)] = [(directory.offset, UInt64(directory.byteCount))]
    do throws(BlockError) {
      for bitmap in try readBitmapDirectory() {
        let table = try readTable(bitmap)
        ranges.append((bitmap.tableOffset, UInt64(table.count) * 8))
        for item in table where item & Entry.offsetMask != 0 { ranges.append((item & Entry.offsetMask, 1)) }
      }
    } catch {
      result.report("ERROR \(error.description)")
      result.checkErrors += 1
    }
    return ranges
  }
}
