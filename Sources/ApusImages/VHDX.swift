import ApusBlock
import ApusHost

/// Hyper-V disks [VHDX 1.0]: two headers, region and metadata tables, a table of blocks. Little endian.
///
/// ```
///    0 "vhdxfile"     64 KiB header 1   128 KiB header 2   192, 256 KiB region table and its copy
///    1 MiB log         2 MiB metadata     3 MiB block table, then blocks of 8 MiB or more
/// ```
/// A log is carried out when an image is opened for writing (`VHDX+Log.swift`). Not modelled: writing a log (entries of the
/// block table are written in place, a sector at a time), parents.
public enum VHDX {
  static let megabyte: UInt64 = 1 << 20
  static let blockTableRegion = guid("2DC27766F62342009D64115E9BFD4A08")
  static let metadataRegion = guid("8B7CA20647904B9AB8FE575F050F886E")
  static let fileParameters = guid("CAA16737FA364D43B3B633F0AA44E76B")
  static let diskSize = guid("2FA54224CD1B4876B2115DBED83BF4B8")
  static let logicalSectorSize = guid("8141BF1DA96F4709BA47F233A8FAAB5F")
  static let physicalSectorSize = guid("CDA348C7445D44719CC9E9885251C556")
  static let diskIdentifier = guid("BECA12ABB2E6452393EFC309E000C746")

  public static func matches(_ start: [UInt8]) -> Bool { start.starts(with: "vhdxfile".utf8) }

  public static func open(_ file: any ImageNode) throws(BlockError) -> any ImageNode {
    BlockTableImage(file, try VHDXTable(file), isReadOnly: file.isReadOnly)
  }

  /// The bytes of a GUID as files have it: the first three fields little endian.
  static func guid(_ digits: String) -> [UInt8] {
    let text = Array(digits)
    let bytes = stride(from: 0, to: 32, by: 2).map { UInt8(String(text[$0...($0 + 1)]), radix: 16) ?? 0 }
    return [3, 2, 1, 0, 5, 4, 7, 6].map { bytes[$0] } + bytes[8...]
  }

  /// CRC-32C of a buffer whose checksum field, at `offset`, counts as zeros.
  static func checksum(_ buffer: HostBuffer, at offset: Int) -> UInt32 {
    var crc: UInt32 = .max
    for (index, byte) in buffer.bytes.enumerated() {
      let value = (offset..<offset + 4).contains(index) ? 0 : byte
      crc = checksumTable[Int(UInt8(truncatingIfNeeded: crc) ^ value)] ^ crc >> 8
    }
    return ~crc
  }
  private static let checksumTable: [UInt32] = (0..<256).map { index in
    (0..<8).reduce(UInt32(index)) { value, _ in value & 1 != 0 ? value >> 1 ^ 0x82f6_3b78 : value >> 1 }
  }

  static func fill(_ buffer: HostBuffer, _ offset: Int, _ bytes: [UInt8]) {
    for (index, byte) in bytes.enumerated() { buffer.bytes[offset + index] = byte }
  }

  /// Blocks grow with the disk, as other programs choose them.
  private static func blockByteCount(_ byteCount: UInt64) -> UInt64 {
    byteCount > 32 << 40
      ? 64 << 20 : byteCount > 100 << 30 ? 32 << 20 : byteCount > 1 << 30 ? 16 << 20 : 8 << 20
  }

  public static func create(_ byteCount: UInt64, on file: any ImageNode) throws(BlockError) {
    guard byteCount <= 64 << 40 else {
      throw BlockError(.invalid, "vhdx: \(byteCount) bytes are too many; 64 TiB are possible")
    }
    let block = blockByteCount(byteCount)
    let ratio = (UInt64(1) << 23) * 512 / block
    let blocks = (byteCount + block - 1) / block
    let entries = blocks + (blocks > 0 ? (blocks - 1) / ratio : 0)
    let tableByteCount = max(megabyte, (entries * 8 + megabyte - 1) & ~(megabyte - 1))
    let start = HostBuffer(byteCount: Int(megabyte))
    fill(start, 0, Array("vhdxfile".utf8))
    fill(start, 8, Array("Apus".utf16).flatMap { [UInt8(truncatingIfNeeded: $0), UInt8($0 >> 8)] })
    for number in 0..<2 { fill(start, 65536 * (number + 1), header(sequence: UInt64(number)).array()) }
    let region = HostBuffer(byteCount: 65536)
    region.setLittle(0, UInt32(0x6967_6572))
    region.setLittle(8, UInt32(2))
    for (number, entry) in [
      (blockTableRegion, 3 * megabyte, tableByteCount), (metadataRegion, 2 * megabyte, megabyte),
    ].enumerated() {
      fill(region, 16 + 32 * number, entry.0)
      region.setLittle(32 + 32 * number, entry.1)
      region.setLittle(40 + 32 * number, UInt32(entry.2))
      region.setLittle(44 + 32 * number, UInt32(1))
    }
    region.setLittle(4, checksum(region, at: 4))
    for place in [3 * 65536, 4 * 65536] { fill(start, place, region.array()) }
    try file.truncate(3 * megabyte + tableByteCount, preallocation: .off)
    try file.write(at: 2 * megabyte, from: [metadata(byteCount, block).io])
    try file.write(at: 0, from: [start.io])
  }

  /// A header without a log.
  static func header(sequence: UInt64) -> HostBuffer {
    let header = HostBuffer(byteCount: 4096)
    header.setLittle(0, UInt32(0x6461_6568))
    header.setLittle(8, sequence)
    HostRandom.fill(UnsafeMutableRawBufferPointer(rebasing: header.bytes[16..<48]))
    header.setLittle(66, UInt16(1))
    header.setLittle(68, UInt32(megabyte))
    header.setLittle(72, megabyte)
    header.setLittle(4, checksum(header, at: 4))
    return header
  }

  private static func metadata(_ byteCount: UInt64, _ block: UInt64) -> HostBuffer {
    let buffer = HostBuffer(byteCount: 65536 + 64)
    fill(buffer, 0, Array("metadata".utf8))
    let items: [([UInt8], UInt32, UInt32)] = [
      (fileParameters, 8, 4), (diskSize, 8, 6), (diskIdentifier, 16, 6), (logicalSectorSize, 4, 6),
      (physicalSectorSize, 4, 6),
    ]
    buffer.setLittle(10, UInt16(items.count))
    var place = 65536
    for (number, item) in items.enumerated() {
      fill(buffer, 32 + 32 * number, item.0)
      buffer.setLittle(48 + 32 * number, UInt32(place))
      buffer.setLittle(52 + 32 * number, item.1)
      buffer.setLittle(56 + 32 * number, item.2)
      place += Int(item.1)
    }
    buffer.setLittle(65536, UInt32(block))
    buffer.setLittle(65544, byteCount)
    HostRandom.fill(UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[65552..<65568]))
    buffer.setLittle(65568, UInt32(512))
    buffer.setLittle(65572, UInt32(4096))
    return buffer
  }
}

private final class VHDXTable: BlockTable {
  private enum State {
    static let notPresent: UInt64 = 0
    static let zero: UInt64 = 2
    static let unmapped: UInt64 = 3
    static let present: UInt64 = 6
    static let partial: UInt64 = 7
  }
  let formatName = "vhdx"
  let byteCount: UInt64
  let blockByteCount: UInt64
  private let file: any ImageNode
  private let tableOffset: UInt64
  /// Payload blocks between two entries for sector bitmaps.
  private let ratio: UInt64
  private var map: [UInt64]
  private var end: UInt64
  private var sequence: UInt64
  private var hasWritten = false

  init(_ file: any ImageNode) throws(BlockError) {
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "vhdx image: \(text)") }
    let current = try Self.readHeader(file)
    guard let header = current else { throw refuse("both headers are damaged") }
    var sequence = header.little64(8)
    if !header.array(48, 16).allSatisfy({ $0 == 0 }) {
      guard !file.isReadOnly else {
        throw BlockError(
          .invalid,
          "vhdx image: its log is not empty; open it once for writing, for example with apus-io -c flush, to carry the log out"
        )
      }
      try VHDX.replayLog(file, header)
      // Both headers, one after the other: the older one first.
      for place: UInt64 in try Self.isFirstCurrent(file) ? [131072, 65536] : [65536, 131072] {
        sequence += 1
        let fresh = VHDX.header(sequence: sequence)
        fresh.setLittle(68, header.little32(68))
        fresh.setLittle(72, header.little64(72))
        fresh.setLittle(4, VHDX.checksum(fresh, at: 4))
        try file.write(at: place, from: [fresh.io])
        try file.flush()
      }
    }
    self.sequence = sequence
    let regions = try Self.readRegions(file)
    guard let table = regions[VHDX.blockTableRegion], let metadata = regions[VHDX.metadataRegion] else {
      throw refuse("a region is missing")
    }
    let items = try Self.readMetadata(file, metadata.offset)
    guard let parameters = items[VHDX.fileParameters], let size = items[VHDX.diskSize],
      let sector = items[VHDX.logicalSectorSize]
    else { throw refuse("a metadata item is missing") }
    let block = UInt64(parameters.little32(0))
    guard block.nonzeroBitCount == 1, block >= VHDX.megabyte, block <= 256 * VHDX.megabyte else {
      throw refuse("blocks have \(block) bytes")
    }
    guard parameters.little32(4) & 2 == 0 else {
      throw BlockError(.unsupported, "vhdx image: it has a parent, which is not implemented")
    }
    let sectorByteCount = UInt64(sector.little32(0))
    guard sectorByteCount == 512 || sectorByteCount == 4096 else {
      throw refuse("sectors have \(sectorByteCount) bytes")
    }
    byteCount = size.little64(0)
    guard byteCount <= 64 << 40, byteCount & 511 == 0 else { throw refuse("the disk has \(byteCount) bytes") }
    (self.file, blockByteCount, tableOffset) = (file, block, table.offset)
    ratio = (UInt64(1) << 23) * sectorByteCount / block
    let blocks = (byteCount + block - 1) / block
    let entries = blocks + (blocks > 0 ? (blocks - 1) / ratio : 0)
    guard entries * 8 <= table.byteCount, table.offset + entries * 8 <= file.byteCount else {
      throw refuse("the block table does not cover the disk")
    }
    let buffer = HostBuffer(byteCount: max(8, Int(entries) * 8))
    try file.read(at: table.offset, into: buffer.io)
    map = (0..<Int(entries)).map { buffer.little64($0 * 8) }
    end = (max(file.byteCount, table.offset + table.byteCount) + VHDX.megabyte - 1) & ~(VHDX.megabyte - 1)
  }

  private static func readHeader(_ file: any ImageNode) throws(BlockError) -> HostBuffer? {
    var best: HostBuffer?
    for place: UInt64 in [65536, 131_072] {
      let header = HostBuffer(byteCount: 4096)
      try file.read(at: place, into: header.io)
      guard header.little32(0) == 0x6461_6568, header.little32(4) == VHDX.checksum(header, at: 4),
        header.little16(66) == 1
      else { continue }
      if best == nil || header.little64(8) > best?.little64(8) ?? 0 { best = header }
    }
    return best
  }

  private static func readRegions(_ file: any ImageNode) throws(BlockError) -> [[UInt8]: (
    offset: UInt64, byteCount: UInt64
  )] {
    for place: UInt64 in [196_608, 262_144] {
      let table = HostBuffer(byteCount: 65536)
      try file.read(at: place, into: table.io)
      guard table.little32(0) == 0x6967_6572, table.little32(4) == VHDX.checksum(table, at: 4),
        table.little32(8) <= 2047
      else { continue }
      var result: [[UInt8]: (offset: UInt64, byteCount: UInt64)] = [:]
      for number in 0..<Int(table.little32(8)) {
        let base = 16 + 32 * number
        let offset = table.little64(base + 16)
        guard offset < 1 << 56 else { throw BlockError(.invalid, "vhdx image: a region is misplaced") }
        result[table.array(base, 16)] = (offset, UInt64(table.little32(base + 24)))
      }
      return result
    }
    throw BlockError(.invalid, "vhdx image: both region tables are damaged")
  }

  private static func readMetadata(_ file: any ImageNode, _ offset: UInt64) throws(BlockError) -> [[UInt8]:
    HostBuffer]
  {
    let table = HostBuffer(byteCount: 65536)
    try file.read(at: offset, into: table.io)
    guard table.array(0, 8) == Array("metadata".utf8), table.little16(10) <= 2047 else {
      throw BlockError(.invalid, "vhdx image: the metadata table is damaged")
    }
    var result: [[UInt8]: HostBuffer] = [:]
    for number in 0..<Int(table.little16(10)) {
      let base = 32 + 32 * number
      let item = HostBuffer(byteCount: 64)
      try file.read(at: offset + UInt64(table.little32(base + 16)), into: item.io)
      result[table.array(base, 16)] = item
    }
    return result
  }

  private func index(_ block: UInt64) -> Int { Int(block + block / ratio) }

  func place(_ block: UInt64) throws(BlockError) -> BlockPlace {
    let entry = map[index(block)]
    switch entry & 7 {
    case State.present, State.partial: return .at(entry & ~(VHDX.megabyte - 1))
    case State.zero, State.unmapped: return .zero
    default: return .absent
    }
  }

  func allocate(_ block: UInt64) throws(BlockError) -> UInt64 {
    if !hasWritten {
      // Other programs see by new identifiers that the file has changed; the older header is replaced.
      hasWritten = true
      sequence += 1
      let place: UInt64 = try Self.isFirstCurrent(file) ? 131072 : 65536
      // The log stays where it is.
      let current: UInt64 = place == 65536 ? 131072 : 65536
      let old = HostBuffer(byteCount: 4096)
      try file.read(at: current, into: old.io)
      let fresh = VHDX.header(sequence: sequence)
      fresh.setLittle(68, old.little32(68))
      fresh.setLittle(72, old.little64(72))
      fresh.setLittle(4, VHDX.checksum(fresh, at: 4))
      try file.write(at: place, from: [fresh.io])
      try file.flush()
    }
    defer { end += blockByteCount }
    return end
  }

  private static func isFirstCurrent(_ file: any ImageNode) throws(BlockError) -> Bool {
    let first = HostBuffer(byteCount: 4096)
    let second = HostBuffer(byteCount: 4096)
    try file.read(at: 65536, into: first.io)
    try file.read(at: 131072, into: second.io)
    let isFirstGood = first.little32(4) == VHDX.checksum(first, at: 4)
    let isSecondGood = second.little32(4) == VHDX.checksum(second, at: 4)
    return isFirstGood && (!isSecondGood || first.little64(8) > second.little64(8))
  }

  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError) { try set(block, offset | State.present) }
  private func set(_ block: UInt64, _ entry: UInt64) throws(BlockError) {
    map[index(block)] = entry
    let value = HostBuffer(byteCount: 8)
    value.setLittle(0, entry)
    try file.write(at: tableOffset + UInt64(index(block)) * 8, from: [value.io])
  }
}
