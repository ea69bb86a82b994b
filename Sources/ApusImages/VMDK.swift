import ApusBlock
import ApusHost
import CDeflate

/// VMware virtual disks [VMDK 5.0]: one file with sparse extents (monolithicSparse) or compressed ones (streamOptimized),
/// or a descriptor with extents in other files (monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat).
///
/// Little endian; grains of 64 KiB are found through grain directory and tables. A parent is a backing file; that its
/// content is still the one it had is not checked.
public enum VMDK {
  static let compressedFlag: UInt32 = 1 << 16
  static let markersFlag: UInt32 = 1 << 17
  static let zeroGrainFlag: UInt32 = 1 << 2

  public static func matches(_ start: [UInt8]) -> Bool {
    start.starts(with: "KDMV".utf8) || start.starts(with: "# Disk DescriptorFile".utf8)
  }

  /// - Parameter openExtent: opens a file that the descriptor names.
  public static func open(
    _ file: any ImageNode, openExtent: (String) throws(BlockError) -> any ImageNode
  ) throws(BlockError) -> any ImageNode {
    let start = try file.bytes(at: 0, count: 4)
    if start == Array("KDMV".utf8) {
      let table = try VMDKTable(file)
      return BlockTableImage(
        file, table, isReadOnly: file.isReadOnly, canCompress: table.isCompressed,
        backingFile: try parent(table.descriptor))
    }
    guard file.byteCount <= 1 << 20 else {
      throw BlockError(.invalid, "vmdk image: the descriptor is too long")
    }
    let text = String(decoding: try file.bytes(at: 0, count: Int(file.byteCount)), as: UTF8.self)
    guard text.hasPrefix("# Disk DescriptorFile") else {
      throw BlockError(.invalid, "vmdk image: it is neither a sparse extent nor a descriptor")
    }
    let backing = try parent(text)
    var parts: [JoinedNode.Part] = []
    for line in try extents(text) {
      let node: any ImageNode
      switch line.type {
      case "ZERO": node = NullNode(byteCount: line.sectors * 512, readsZeroes: true, isReadOnly: true)
      case "FLAT", "VMFS":
        let below = try openExtent(line.name)
        node = try RawNode(below, offset: line.offset * 512, byteCount: line.sectors * 512)
      case "SPARSE":
        let below = try openExtent(line.name)
        let table = try VMDKTable(below)
        guard table.byteCount >= line.sectors * 512 else {
          throw BlockError(
            .invalid, "vmdk image: the extent '\(line.name)' is smaller than its descriptor says")
        }
        node = BlockTableImage(below, table, isReadOnly: below.isReadOnly, canCompress: false)
      default:
        throw BlockError(.unsupported, "vmdk image: extents of the type \(line.type) are not implemented")
      }
      parts.append(.init(node: node, byteCount: line.sectors * 512))
    }
    return JoinedNode("vmdk", file, parts, isReadOnly: file.isReadOnly, backingFile: backing)
  }

  private struct ExtentLine {
    var sectors: UInt64
    var type: String
    var name: String
    var offset: UInt64
  }

  /// `RW 4192256 SPARSE "disk-s001.vmdk"`, `RW 63 FLAT "disk-flat.vmdk" 0`, `RW 63 ZERO`.
  private static func extents(_ descriptor: String) throws(BlockError) -> [ExtentLine] {
    var result: [ExtentLine] = []
    for line in descriptor.split(whereSeparator: { $0 == "\n" || $0 == "\r\n" }) {
      let quoted = line.split(separator: "\"", maxSplits: 2, omittingEmptySubsequences: false)
      let words = quoted[0].split(separator: " ")
      guard words.count == 3, ["RW", "RDONLY", "NOACCESS"].contains(words[0]) else { continue }
      guard words[0] == "RW" || words[0] == "RDONLY", let sectors = UInt64(words[1]), sectors > 0,
        sectors < 1 << 40
      else { throw BlockError(.invalid, "vmdk image: the extent '\(line)' makes no sense") }
      let offset = quoted.count == 3 ? quoted[2].split(separator: " ").first.map(String.init) ?? "0" : "0"
      guard let place = UInt64(offset), place < 1 << 40, quoted.count == 3 || words[2] == "ZERO" else {
        throw BlockError(.invalid, "vmdk image: the extent '\(line)' makes no sense")
      }
      result.append(
        ExtentLine(
          sectors: sectors, type: String(words[2]), name: quoted.count == 3 ? String(quoted[1]) : "",
          offset: place))
      guard result.count <= 4096 else { throw BlockError(.invalid, "vmdk image: it has too many extents") }
    }
    guard !result.isEmpty else { throw BlockError(.invalid, "vmdk image: the descriptor names no extents") }
    return result
  }

  /// The image that this one is a difference to.
  private static func parent(_ descriptor: String) throws(BlockError) -> (name: String, format: String?)? {
    func value(_ key: String) -> String? {
      for line in descriptor.split(whereSeparator: { $0 == "\n" || $0 == "\r\n" })
      where line.hasPrefix(key + "=") {
        return String(line.dropFirst(key.count + 1)).split(separator: "\"").first.map(String.init) ?? ""
      }
      return nil
    }
    guard let identifier = value("parentCID"), identifier.prefix(8).lowercased() != "ffffffff" else {
      return nil
    }
    guard let name = value("parentFileNameHint"), !name.isEmpty else {
      throw BlockError(.invalid, "vmdk image: it has a parent, but does not name it")
    }
    return (name, "vmdk")
  }

  public static func create(_ byteCount: UInt64, on file: any ImageNode, isStreamOptimized: Bool = false)
    throws(BlockError)
  {
    let sectors = (byteCount + 511) / 512
    let grains = (sectors + 127) / 128
    let tables = max(1, (grains + 511) / 512)
    guard tables < 1 << 20 else { throw BlockError(.invalid, "vmdk: \(byteCount) bytes are too many") }
    let directorySectors = (tables * 4 + 511) / 512
    let descriptorSectors: UInt64 = 20
    let redundant = 1 + descriptorSectors
    let primary = redundant + directorySectors + tables * 4
    let overhead = (primary + directorySectors + tables * 4 + 127) & ~127
    let header = HostBuffer(byteCount: Int(overhead * 512))
    for (index, byte) in "KDMV".utf8.enumerated() { header.bytes[index] = byte }
    header.setLittle(4, UInt32(isStreamOptimized ? 3 : 1))
    header.setLittle(8, isStreamOptimized ? 3 | compressedFlag | markersFlag : UInt32(3))
    header.setLittle(12, sectors)
    header.setLittle(20, UInt64(128))
    header.setLittle(28, UInt64(1))
    header.setLittle(36, descriptorSectors)
    header.setLittle(44, UInt32(512))
    header.setLittle(48, redundant)
    header.setLittle(56, primary)
    header.setLittle(64, overhead)
    for (index, byte) in [0x0a, 0x20, 0x0d, 0x0a].enumerated() { header.bytes[73 + index] = UInt8(byte) }
    header.setLittle(77, UInt16(isStreamOptimized ? 1 : 0))
    let text = descriptor(sectors, isStreamOptimized)
    for (index, byte) in text.utf8.enumerated() { header.bytes[512 + index] = byte }
    for directory in [redundant, primary] {
      for table in 0..<tables {
        header.setLittle(Int(directory * 512 + table * 4), UInt32(directory + directorySectors + table * 4))
      }
    }
    try file.write(at: 0, from: [header.io])
  }

  private static func descriptor(_ sectors: UInt64, _ isStreamOptimized: Bool) -> String {
    let identifier = UInt32.random(in: 1...0xffff_fffe)
    return """
      # Disk DescriptorFile
      version=1
      CID=\(String(identifier, radix: 16))
      parentCID=ffffffff
      createType="\(isStreamOptimized ? "streamOptimized" : "monolithicSparse")"

      # Extent description
      RW \(sectors) SPARSE "disk.vmdk"

      # The Disk Data Base
      #DDB

      ddb.virtualHWVersion = "4"
      ddb.geometry.cylinders = "\(min(16383, sectors / (16 * 63)))"
      ddb.geometry.heads = "16"
      ddb.geometry.sectors = "63"
      ddb.adapterType = "ide"

      """
  }
}

private final class VMDKTable: BlockTable {
  let formatName = "vmdk"
  let byteCount: UInt64
  let blockByteCount: UInt64
  let isCompressed: Bool
  /// The text in the file, if there is one.
  let descriptor: String
  private let file: any ImageNode
  private let perTable: UInt64
  private let directory: [UInt32]
  /// The second copy of the tables, which readers fall back on.
  private let redundant: [UInt32]
  private let hasZeroGrains: Bool
  private var tables: [Int: [UInt32]] = [:]
  private var end: UInt64

  init(_ file: any ImageNode) throws(BlockError) {
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "vmdk image: \(text)") }
    let header = HostBuffer(byteCount: 512)
    try file.read(at: 0, into: header.io)
    if header.little64(56) == .max {
      // Written as a stream: the header with the directory's place is the last but one sector.
      guard file.byteCount >= 1536 else { throw refuse("the footer is missing") }
      try file.read(at: file.byteCount - 1024, into: header.io)
    }
    guard header.array(0, 4) == Array("KDMV".utf8), (1...3).contains(header.little32(4)) else {
      throw refuse("the sparse header is damaged")
    }
    let grain = header.little64(20)
    guard grain.nonzeroBitCount == 1, (8...(1 << 12)).contains(grain) else {
      throw refuse("grains have \(grain) sectors")
    }
    perTable = UInt64(header.little32(44))
    guard (1...512).contains(perTable) else { throw refuse("grain tables have \(perTable) entries") }
    let sectors = header.little64(12)
    guard sectors > 0, sectors < 1 << 40 else { throw refuse("it has \(sectors) sectors") }
    let flags = header.little32(8)
    isCompressed = flags & VMDK.compressedFlag != 0
    guard !isCompressed || header.little16(77) == 1 else { throw refuse("its compression method is unknown") }
    hasZeroGrains = flags & VMDK.zeroGrainFlag != 0
    descriptor =
      header.little64(28) != 0 && header.little64(28) < 1 << 40
      ? String(
        decoding: try file.bytes(
          at: header.little64(28) * 512, count: Int(min(header.little64(36), 40)) * 512
        ).prefix { $0 != 0 }, as: UTF8.self) : ""
    byteCount = sectors * 512
    blockByteCount = grain * 512
    self.file = file
    let count = Int((sectors + grain * perTable - 1) / (grain * perTable))
    guard UInt64(count) * 4 <= file.byteCount else { throw refuse("the grain directory is cut off") }
    directory = try Self.read(file, header.little64(56), count)
    redundant =
      flags & 2 != 0 && header.little64(48) != 0 ? try Self.read(file, header.little64(48), count) : []
    end = (file.byteCount + 511) & ~511
  }

  private static func read(_ file: any ImageNode, _ sector: UInt64, _ count: Int) throws(BlockError)
    -> [UInt32]
  {
    guard sector < 1 << 48 else { throw BlockError(.invalid, "vmdk image: a table is misplaced") }
    let buffer = HostBuffer(byteCount: max(4, count * 4))
    try file.read(at: sector * 512, into: buffer.io)
    return (0..<count).map { buffer.little32($0 * 4) }
  }

  private func entry(_ block: UInt64) throws(BlockError) -> UInt32 {
    let number = Int(block / perTable)
    if directory[number] == 0 { return 0 }
    if tables[number] == nil {
      if tables.count > 4096 { tables.removeAll() }
      tables[number] = try Self.read(file, UInt64(directory[number]), Int(perTable))
    }
    return tables[number]?[Int(block % perTable)] ?? 0
  }

  func place(_ block: UInt64) throws(BlockError) -> BlockPlace {
    let sector = UInt64(try entry(block))
    if sector == 0 { return .absent }
    if sector == 1, hasZeroGrains { return .zero }
    guard isCompressed else { return .at(sector * 512) }
    let marker = HostBuffer(byteCount: 12)
    try file.read(at: sector * 512, into: marker.io)
    let count = Int(marker.little32(8))
    guard count <= Int(blockByteCount) * 2, count > 0 else {
      throw BlockError(.io, "vmdk image: a grain's marker is damaged")
    }
    return .compressed(sector * 512 + 12, count)
  }

  func allocate(_ block: UInt64) throws(BlockError) -> UInt64 {
    if isCompressed {
      throw BlockError(
        .unsupported, "vmdk image: a streamOptimized image can only be written compressed, grain by grain")
    }
    defer { end += blockByteCount }
    return end
  }

  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError) {
    let number = Int(block / perTable)
    guard directory[number] != 0 else { throw BlockError(.io, "vmdk image: a grain table is missing") }
    guard offset / 512 <= UInt64(UInt32.max) else {
      throw BlockError(.noSpace, "vmdk image: no room for another grain")
    }
    _ = try entry(block)
    tables[number]?[Int(block % perTable)] = UInt32(offset / 512)
    let value = HostBuffer(byteCount: 4)
    value.setLittle(0, UInt32(offset / 512))
    for sector in [directory[number]] + (redundant.isEmpty ? [] : [redundant[number]]) where sector != 0 {
      try file.write(at: UInt64(sector) * 512 + block % perTable * 4, from: [value.io])
    }
  }

  // MARK: Compressed grains

  func decompress(_ input: HostBuffer, into output: HostBuffer) throws(BlockError) {
    guard let codec = libdeflate_alloc_decompressor() else { throw BlockError(.io, "no memory") }
    defer { libdeflate_free_decompressor(codec) }
    var made = 0
    // The last grain may be shorter.
    let result = libdeflate_zlib_decompress(
      codec, input.base, input.byteCount, output.base, output.byteCount, &made)
    withExtendedLifetime((input, output)) {}
    guard result == LIBDEFLATE_SUCCESS else {
      throw BlockError(.io, "vmdk image: a compressed grain is damaged")
    }
  }

  func compress(_ input: IOBuffer) -> [UInt8]? {
    guard let codec = libdeflate_alloc_compressor(6) else { return nil }
    defer { libdeflate_free_compressor(codec) }
    // A grain is stored in this form however large it gets.
    let room = libdeflate_zlib_compress_bound(codec, input.byteCount)
    return [UInt8](unsafeUninitializedCapacity: room) { buffer, count in
      count = libdeflate_zlib_compress(codec, input.base, input.byteCount, buffer.baseAddress, room)
    }
  }

  func storeCompressed(_ block: UInt64, _ bytes: [UInt8]) throws(BlockError) {
    let data = HostBuffer(byteCount: (12 + bytes.count + 511) & ~511)
    data.setLittle(0, block * (blockByteCount / 512))
    data.setLittle(8, UInt32(bytes.count))
    for (index, byte) in bytes.enumerated() { data.bytes[12 + index] = byte }
    let place = end
    try file.write(at: place, from: [data.io])
    end += UInt64(data.byteCount)
    try link(block, place)
  }
}
