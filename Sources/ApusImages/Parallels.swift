import ApusBlock
import ApusHost

/// Parallels disks [Parallels]: a header, then a table with an entry for each block. Little endian, read-only here.
///
/// ```
///  0 "WithoutFreeSpace" or "WithouFreSpacExt"   16 version 2   28 sectors of a block   32 entries   36 sectors
/// 44 in use   48 data's sector   52 flags   56 extension   64 entries of 4 bytes
/// ```
/// Entries are sectors with the first magic and blocks with the second. Not modelled: dirty bitmaps, writing.
public enum Parallels {
  private static let plain = Array("WithoutFreeSpace".utf8)
  private static let extended = Array("WithouFreSpacExt".utf8)

  public static func matches(_ start: [UInt8]) -> Bool {
    start.starts(with: plain) || start.starts(with: extended)
  }

  public static func open(_ file: any ImageNode) throws(BlockError) -> any ImageNode {
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "parallels image: \(text)") }
    let header = HostBuffer(byteCount: 64)
    try file.read(at: 0, into: header.io)
    let magic = header.array(0, 16)
    guard magic == plain || magic == extended, header.little32(16) == 2 else {
      throw refuse("the header is damaged or of another version")
    }
    let isExtended = magic == extended
    let sectors = isExtended ? header.little64(36) : UInt64(header.little32(36))
    let block = UInt64(header.little32(28))
    let entries = UInt64(header.little32(32))
    guard block > 0, block < 1 << 22 else { throw refuse("blocks have \(block) sectors") }
    guard sectors < 1 << 50, (sectors + block - 1) / block <= entries, entries < 1 << 29 else {
      throw refuse("\(entries) blocks do not cover \(sectors) sectors")
    }
    guard 64 + entries * 4 <= file.byteCount else { throw refuse("the table is cut off") }
    let table = HostBuffer(byteCount: max(4, Int(entries) * 4))
    try file.read(at: 64, into: table.io)
    let scale = isExtended ? block * 512 : 512
    let map = (0..<Int(entries)).map { UInt64(table.little32($0 * 4)) * scale }
    return BlockTableImage(
      file, BlockMap(formatName: "parallels", byteCount: sectors * 512, blockByteCount: block * 512, map),
      isReadOnly: true)
  }
}

/// A table in memory of where each block lies; 0 for those that are not there. For reading.
private final class BlockMap: BlockTable {
  let formatName: String
  let byteCount: UInt64
  let blockByteCount: UInt64
  private let map: [UInt64]

  init(formatName: String, byteCount: UInt64, blockByteCount: UInt64, _ map: [UInt64]) {
    (self.formatName, self.byteCount, self.blockByteCount, self.map) = (
      formatName, byteCount, blockByteCount, map
    )
  }
  func place(_ block: UInt64) throws(BlockError) -> BlockPlace {
    let offset = map[Int(block)]
    return offset == 0 ? .absent : .at(offset)
  }
  func allocate(_ block: UInt64) throws(BlockError) -> UInt64 {
    throw BlockError(.readOnly, "\(formatName) images are read-only here")
  }
  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError) {
    throw BlockError(.readOnly, "\(formatName) images are read-only here")
  }
}
