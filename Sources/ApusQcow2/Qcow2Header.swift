import ApusBlock
import ApusHost

/// The first cluster of a qcow2 image: fixed fields, extensions and the backing file's name [qcow2 "Header"].
///
/// ```
///   0 magic "QFI\xfb"    4 version        8 backing offset   16 backing length  20 cluster bits
///  24 size              32 encryption    36 L1 entries       40 L1 offset
///  48 refcount table    56 its clusters  60 snapshots        64 snapshot table
///  72 incompatible      80 compatible    88 autoclear        96 refcount order
/// 100 header length    104 compression  112 extensions ... backing file's name
/// ```
struct Qcow2Header: Equatable {
  static let magic: UInt32 = 0x5146_49fb

  enum Incompatible {
    static let dirty: UInt64 = 1 << 0
    static let corrupt: UInt64 = 1 << 1
    static let dataFile: UInt64 = 1 << 2
    static let compressionType: UInt64 = 1 << 3
    static let extendedL2: UInt64 = 1 << 4
    static let known: UInt64 = 0x1f
  }
  enum Compatible { static let lazyRefcounts: UInt64 = 1 << 0 }
  enum Autoclear {
    static let bitmaps: UInt64 = 1 << 0
    static let rawDataFile: UInt64 = 1 << 1
    static let known: UInt64 = 3
  }
  enum ExtensionType {
    static let end: UInt32 = 0
    static let backingFormat: UInt32 = 0xe279_2aca
    static let featureNames: UInt32 = 0x6803_f857
    static let bitmaps: UInt32 = 0x2385_2875
    static let encryption: UInt32 = 0x0537_be77
    static let dataFile: UInt32 = 0x4441_5441
  }
  struct Extension: Equatable {
    var type: UInt32
    var data: [UInt8]
  }

  var version: UInt32 = 3
  var backingFile: String?
  var clusterBits = 16
  var byteCount: UInt64 = 0
  var encryption: UInt32 = 0
  var l1Size = 0
  var l1Offset: UInt64 = 0
  var refcountTableOffset: UInt64 = 0
  var refcountTableClusters = 0
  var snapshotCount = 0
  var snapshotsOffset: UInt64 = 0
  var incompatible: UInt64 = 0
  var compatible: UInt64 = 0
  var autoclear: UInt64 = 0
  var refcountOrder = 4
  /// 0 zlib, 1 zstd.
  var compressionType: UInt8 = 0
  /// Fixed fields behind those known here, kept as they are.
  var unknownFields: [UInt8] = []
  var extensions: [Extension] = []

  var clusterByteCount: UInt64 { 1 << UInt64(clusterBits) }
  var hasExtendedL2: Bool { incompatible & Incompatible.extendedL2 != 0 }
  var usesDataFile: Bool { incompatible & Incompatible.dataFile != 0 }
  var isDataFileRaw: Bool { autoclear & Autoclear.rawDataFile != 0 }

  subscript(text type: UInt32) -> String? {
    get { extensions.last { $0.type == type }.map { String(decoding: $0.data, as: UTF8.self) } }
    set { setExtension(type, newValue.map { Array($0.utf8) }) }
  }
  var backingFormat: String? {
    get { self[text: ExtensionType.backingFormat] }
    set { self[text: ExtensionType.backingFormat] = newValue }
  }
  var dataFileName: String? {
    get { self[text: ExtensionType.dataFile] }
    set { self[text: ExtensionType.dataFile] = newValue }
  }

  /// Where the LUKS header lies.
  var encryptionHeader: (offset: UInt64, byteCount: UInt64)? {
    get {
      guard let data = extensions.first(where: { $0.type == ExtensionType.encryption })?.data,
        data.count >= 16
      else { return nil }
      func big64(_ start: Int) -> UInt64 { (0..<8).reduce(0) { $0 << 8 | UInt64(data[start + $1]) } }
      return (big64(0), big64(8))
    }
    set {
      func bytes(_ value: UInt64) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * $0)) }
      }
      setExtension(ExtensionType.encryption, newValue.map { bytes($0.offset) + bytes($0.byteCount) })
    }
  }

  mutating func setExtension(_ type: UInt32, _ data: [UInt8]?) {
    // The last of several counts.
    let index = extensions.lastIndex { $0.type == type }
    guard let data else { return extensions.removeAll { $0.type == type } }
    if let index {
      extensions[index].data = data
    } else {
      extensions.append(Extension(type: type, data: data))
    }
  }

  init() {}

  /// Whether the file's first bytes are a qcow2 header's.
  static func matches(_ bytes: [UInt8]) -> Bool {
    bytes.count >= 8 && bytes[..<4] == [0x51, 0x46, 0x49, 0xfb] && bytes[4...6] == [0, 0, 0]
      && (bytes[7] == 2 || bytes[7] == 3)
  }

  private static func invalid(_ what: String) -> BlockError { BlockError(.invalid, "qcow2 image: \(what)") }

  init(reading file: any ImageNode) throws(BlockError) {
    let start = HostBuffer(byteCount: 112)
    try file.read(at: 0, into: start.io)
    guard start.big32(0) == Self.magic else { throw Self.invalid("the file does not start with QFI\\xfb") }
    version = start.big32(4)
    guard version == 2 || version == 3 else {
      throw Self.invalid("version \(version) is unknown; 2 and 3 are")
    }
    clusterBits = Int(clamping: start.big32(20))
    guard (9...21).contains(clusterBits) else {
      throw Self.invalid("cluster bits are \(clusterBits); 9 to 21 (512 bytes to 2 MiB) are possible")
    }
    byteCount = start.big64(24)
    encryption = start.big32(32)
    l1Size = Int(start.big32(36))
    l1Offset = start.big64(40)
    refcountTableOffset = start.big64(48)
    refcountTableClusters = Int(start.big32(56))
    snapshotCount = Int(start.big32(60))
    snapshotsOffset = start.big64(64)
    var headerLength = 72
    if version == 3 {
      incompatible = start.big64(72)
      compatible = start.big64(80)
      autoclear = start.big64(88)
      refcountOrder = Int(clamping: start.big32(96))
      headerLength = Int(start.big32(100))
      guard headerLength >= 104, headerLength <= 1 << clusterBits, headerLength & 7 == 0 else {
        throw Self.invalid("the header's length is \(headerLength); it lies between 104 and the cluster size")
      }
      if headerLength > 104 { compressionType = UInt8(truncatingIfNeeded: start.big32(104) >> 24) }
      if headerLength > 112 { unknownFields = try file.bytes(at: 112, count: headerLength - 112) }
      guard refcountOrder <= 6 else {
        throw Self.invalid("the refcount order is \(refcountOrder); 0 to 6 (1 to 64 bits) are possible")
      }
    }
    try readNames(file, start, headerLength)
    try checkFeatures()
    try checkTables()
  }

  private mutating func readNames(_ file: any ImageNode, _ start: HostBuffer, _ headerLength: Int)
    throws(BlockError)
  {
    let backingOffset = start.big64(8)
    let backingLength = Int(start.big32(16))
    var limit = 1 << clusterBits
    if backingOffset != 0 {
      guard backingLength <= 1023, backingOffset <= UInt64(limit - backingLength) else {
        throw Self.invalid("the backing file's name does not fit into the first cluster")
      }
      backingFile = String(
        decoding: try file.bytes(at: backingOffset, count: backingLength), as: UTF8.self)
      limit = Int(backingOffset)
    }
    var position = headerLength
    let cluster = try file.bytes(at: 0, count: limit)
    while position + 8 <= limit {
      let type = Self.big32(cluster, position)
      let length = Int(Self.big32(cluster, position + 4))
      position += 8
      if type == ExtensionType.end { break }
      guard length <= limit - position else {
        throw Self.invalid("a header extension is longer than its cluster")
      }
      extensions.append(Extension(type: type, data: Array(cluster[position..<position + length])))
      position += (length + 7) & ~7
    }
  }

  private static func big32(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
    (0..<4).reduce(0) { $0 << 8 | UInt32(bytes[offset + $1]) }
  }

  private func checkFeatures() throws(BlockError) {
    let unknown = incompatible & ~Incompatible.known
    guard unknown == 0 else {
      var names: [String] = []
      let table = extensions.first { $0.type == ExtensionType.featureNames }?.data ?? []
      for bit in 0..<64 where unknown >> UInt64(bit) & 1 != 0 {
        let entry = stride(from: 0, to: table.count - 47, by: 48).first {
          table[$0] == 0 && table[$0 + 1] == UInt8(bit)
        }
        names.append(
          entry.map { String(decoding: table[($0 + 2)..<($0 + 48)].prefix { $0 != 0 }, as: UTF8.self) }
            ?? "bit \(bit)")
      }
      throw BlockError(.unsupported, "qcow2 image: unknown features: \(names.joined(separator: ", "))")
    }
    guard encryption != 1 else {
      throw BlockError(
        .unsupported,
        "qcow2 image: it uses the legacy AES encryption, which is broken and not implemented; convert it with the "
          + "program that made it, to a plain image or to LUKS")
    }
    guard encryption == 0 || encryption == 2 else {
      throw Self.invalid("its encryption method \(encryption) is unknown; 0 (none) and 2 (LUKS) are")
    }
    if encryption == 2 {
      guard let place = encryptionHeader, place.byteCount >= 592, place.byteCount <= 64 << 20,
        place.offset & (clusterByteCount - 1) == 0, place.offset != 0, place.offset < 1 << 56
      else { throw Self.invalid("the place of its LUKS header is missing or makes no sense") }
    }
    guard compressionType <= 1 else {
      throw Self.invalid("compression type \(compressionType) is unknown; 0 (zlib) and 1 (zstd) are")
    }
    guard (compressionType != 0) == (incompatible & Incompatible.compressionType != 0) else {
      throw Self.invalid("the compression type and its incompatible feature bit contradict each other")
    }
    guard !hasExtendedL2 || clusterBits >= 14 else {
      throw Self.invalid("extended L2 entries need clusters of 16 KiB or more")
    }
  }

  private func checkTables() throws(BlockError) {
    let mask = clusterByteCount - 1
    func check(_ offset: UInt64, _ byteCount: UInt64, _ what: String) throws(BlockError) {
      guard offset & mask == 0, offset < 1 << 56, byteCount < 1 << 56 - offset else {
        throw Self.invalid("\(what) at 0x\(String(offset, radix: 16)) is misplaced")
      }
    }
    guard l1Size <= 32 << 20 / 8 else { throw Self.invalid("the L1 table has \(l1Size) entries, too many") }
    try check(l1Offset, UInt64(l1Size) * 8, "the L1 table")
    guard byteCount <= UInt64(l1Size) &* l1Coverage || byteCount == 0, byteCount < 1 << 62 else {
      throw Self.invalid("the L1 table is too small for \(byteCount) bytes")
    }
    guard UInt64(refcountTableClusters) * clusterByteCount <= 8 << 20, refcountTableClusters > 0 else {
      throw Self.invalid("the refcount table has \(refcountTableClusters) clusters; it may have up to 8 MiB")
    }
    try check(
      refcountTableOffset, UInt64(refcountTableClusters) * clusterByteCount, "the refcount table")
    guard snapshotCount <= 65536 else { throw Self.invalid("\(snapshotCount) snapshots are too many") }
    try check(snapshotsOffset, 0, "the snapshot table")
  }

  /// Guest bytes that one L1 entry covers.
  var l1Coverage: UInt64 {
    clusterByteCount * (clusterByteCount / (hasExtendedL2 ? 16 : 8))
  }

  /// The first cluster's bytes. The feature names, which only explain, are left out where there is no room.
  func encoded() throws(BlockError) -> [UInt8] {
    let cluster = Int(clusterByteCount)
    let buffer = HostBuffer(byteCount: cluster)
    let length = version == 2 ? 72 : 112 + unknownFields.count
    let names = backingFile.map { Array($0.utf8) } ?? []
    func room(_ list: [Extension]) -> Int {
      list.reduce(length + 8 + names.count) { $0 + 8 + ($1.data.count + 7) & ~7 }
    }
    // Known ones first, those of others as they came.
    let order = [
      ExtensionType.backingFormat, ExtensionType.dataFile, ExtensionType.encryption,
      ExtensionType.featureNames,
      ExtensionType.bitmaps,
    ]
    var extensions = order.flatMap { type in self.extensions.filter { $0.type == type } }
    extensions += self.extensions.filter { !order.contains($0.type) }
    if room(extensions) > cluster { extensions.removeAll { $0.type == ExtensionType.featureNames } }
    guard room(extensions) <= cluster else {
      throw BlockError(
        .noSpace, "qcow2 image: the header does not fit into a cluster of \(cluster) bytes")
    }
    encodeFields(buffer)
    var position = length
    for (index, byte) in unknownFields.enumerated() where version == 3 { buffer.bytes[112 + index] = byte }
    for item in extensions {
      buffer.setBig(position, item.type)
      buffer.setBig(position + 4, UInt32(item.data.count))
      for (index, byte) in item.data.enumerated() { buffer.bytes[position + 8 + index] = byte }
      position += 8 + (item.data.count + 7) & ~7
    }
    position += 8
    if backingFile != nil {
      buffer.setBig(8, UInt64(position))
      buffer.setBig(16, UInt32(names.count))
      for (index, byte) in names.enumerated() { buffer.bytes[position + index] = byte }
    }
    return buffer.array()
  }

  private func encodeFields(_ buffer: HostBuffer) {
    buffer.setBig(0, Self.magic)
    buffer.setBig(4, version)
    buffer.setBig(20, UInt32(clusterBits))
    buffer.setBig(24, byteCount)
    buffer.setBig(32, encryption)
    buffer.setBig(36, UInt32(l1Size))
    buffer.setBig(40, l1Offset)
    buffer.setBig(48, refcountTableOffset)
    buffer.setBig(56, UInt32(refcountTableClusters))
    buffer.setBig(60, UInt32(snapshotCount))
    buffer.setBig(64, snapshotsOffset)
    guard version == 3 else { return }
    buffer.setBig(72, incompatible)
    buffer.setBig(80, compatible)
    buffer.setBig(88, autoclear)
    buffer.setBig(96, UInt32(refcountOrder))
    buffer.setBig(100, UInt32(112 + unknownFields.count))
    buffer.bytes[104] = compressionType
  }

  /// The names of all features known here, as an extension's data.
  static var featureNames: [UInt8] {
    let names: [(UInt8, UInt8, String)] = [
      (0, 0, "dirty bit"), (0, 1, "corrupt bit"), (0, 2, "external data file"), (0, 3, "compression type"),
      (0, 4, "extended L2 entries"), (1, 0, "lazy refcounts"), (2, 0, "bitmaps"), (2, 1, "raw external data"),
    ]
    return names.flatMap { type, bit, name in
      [type, bit] + Array(name.utf8) + [UInt8](repeating: 0, count: 46 - name.utf8.count)
    }
  }
}
