import ApusBlock
import ApusHost

/// Virtual PC and Hyper-V disks [VHD 1.0]: fixed (a footer behind the data) and dynamic (a table of blocks). Big endian.
///
/// Not modelled: differencing disks, which are refused; sector bitmaps are written but not read, as other programs do.
public enum VPC {
  public static func matches(_ start: [UInt8]) -> Bool { start.starts(with: "conectix".utf8) }

  public static func open(_ file: any ImageNode) throws(BlockError) -> any ImageNode {
    var footer = HostBuffer(byteCount: 512)
    try file.read(at: 0, into: footer.io)
    if footer.array(0, 8) != Array("conectix".utf8) {
      guard file.byteCount >= 512 else {
        throw BlockError(.invalid, "vpc image: it is too short for a footer")
      }
      footer = HostBuffer(byteCount: 512)
      try file.read(at: file.byteCount - 512, into: footer.io)
    }
    guard footer.array(0, 8) == Array("conectix".utf8) else {
      throw BlockError(.invalid, "vpc image: the footer is missing")
    }
    guard footer.big32(64) == checksum(footer, skipping: 64) else {
      throw BlockError(.invalid, "vpc image: the footer's checksum is wrong")
    }
    let byteCount = size(footer)
    switch footer.big32(60) {
    case 2:
      return try RawNode(file, offset: 0, byteCount: min(byteCount, file.byteCount - 512) & ~511)
    case 3: return BlockTableImage(file, try VPCTable(file, footer, byteCount), isReadOnly: file.isReadOnly)
    case 4: throw BlockError(.unsupported, "vpc image: it is a differencing disk, which is not implemented")
    case let type: throw BlockError(.invalid, "vpc image: disk type \(type) is unknown")
    }
  }

  /// Some programs mean the size by cylinders, heads and sectors, others by its own field.
  private static func size(_ footer: HostBuffer) -> UInt64 {
    let creator = String(decoding: footer.array(28, 4), as: UTF8.self)
    let bySize = ["win ", "qem2", "d2v ", "tap\0", "vs  "].contains(creator) || creator.hasPrefix("wa")
    let geometry = UInt64(footer.big16(56)) * UInt64(footer.bytes[58]) * UInt64(footer.bytes[59]) * 512
    return (bySize || geometry >= 65535 * 16 * 255 * 512 ? footer.big64(48) : geometry) & ~511
  }

  static func checksum(_ buffer: HostBuffer, skipping offset: Int) -> UInt32 {
    var sum: UInt32 = 0
    for (index, byte) in buffer.bytes.enumerated() where !(offset..<offset + 4).contains(index) {
      sum &+= UInt32(byte)
    }
    return ~sum
  }

  public static func create(_ byteCount: UInt64, on file: any ImageNode, isFixed: Bool = false)
    throws(BlockError)
  {
    guard byteCount <= 2040 << 30 else {
      throw BlockError(.invalid, "vpc: \(byteCount) bytes are too many; 2040 GiB are possible")
    }
    let footer = makeFooter(byteCount, isFixed)
    if isFixed {
      try file.truncate(byteCount, preallocation: .off)
      return try file.write(at: byteCount, from: [footer.io])
    }
    let blocks = (byteCount + (2 << 20) - 1) >> 21
    let tableByteCount = (Int(blocks) * 4 + 511) & ~511
    let header = HostBuffer(byteCount: 1024)
    for (index, byte) in "cxsparse".utf8.enumerated() { header.bytes[index] = byte }
    header.setBig(8, UInt64.max)
    header.setBig(16, UInt64(1536))
    header.setBig(24, UInt32(0x0001_0000))
    header.setBig(28, UInt32(blocks))
    header.setBig(32, UInt32(2 << 20))
    header.setBig(36, checksum(header, skipping: 36))
    let table = HostBuffer(byteCount: max(512, tableByteCount))
    HostBytes.fill(table.base, table.byteCount, 0xff)
    try file.write(at: 0, from: [footer.io, header.io, table.io, footer.io])
  }

  private static func makeFooter(_ byteCount: UInt64, _ isFixed: Bool) -> HostBuffer {
    let footer = HostBuffer(byteCount: 512)
    for (index, byte) in "conectix".utf8.enumerated() { footer.bytes[index] = byte }
    footer.setBig(8, UInt32(2))
    footer.setBig(12, UInt32(0x0001_0000))
    footer.setBig(16, isFixed ? UInt64.max : 512)
    footer.setBig(
      24, UInt32(truncatingIfNeeded: HostClock.realtimeNanoseconds() / 1_000_000_000 &- 946_684_800))
    // The creator that says: the size is the size field's.
    for (index, byte) in "qem2".utf8.enumerated() { footer.bytes[28 + index] = byte }
    footer.setBig(32, UInt32(0x0005_0003))
    for (index, byte) in "Wi2k".utf8.enumerated() { footer.bytes[36 + index] = byte }
    footer.setBig(40, byteCount)
    footer.setBig(48, byteCount)
    let geometry = geometry(byteCount / 512)
    footer.setBig(56, geometry.cylinders)
    footer.bytes[58] = geometry.heads
    footer.bytes[59] = geometry.sectors
    footer.setBig(60, UInt32(isFixed ? 2 : 3))
    HostRandom.fill(UnsafeMutableRawBufferPointer(rebasing: footer.bytes[68..<84]))
    footer.setBig(64, checksum(footer, skipping: 64))
    return footer
  }

  /// [VHD 1.0, appendix "CHS Calculation"].
  private static func geometry(_ sectors: UInt64) -> (cylinders: UInt16, heads: UInt8, sectors: UInt8) {
    let total = min(sectors, 65535 * 16 * 255)
    var perTrack: UInt64
    var heads: UInt64
    var tracks: UInt64
    if total >= 65535 * 16 * 63 {
      (perTrack, heads, tracks) = (255, 16, total / 255)
    } else {
      perTrack = 17
      tracks = total / 17
      heads = max(4, (tracks + 1023) / 1024)
      if tracks >= heads * 1024 || heads > 16 { (perTrack, heads, tracks) = (31, 16, total / 31) }
      if tracks >= heads * 1024 { (perTrack, heads, tracks) = (63, 16, total / 63) }
    }
    return (UInt16(clamping: tracks / heads), UInt8(heads), UInt8(perTrack))
  }
}

private final class VPCTable: BlockTable {
  let formatName = "vpc"
  let byteCount: UInt64
  let blockByteCount: UInt64
  private let file: any ImageNode
  private let footer: HostBuffer
  private let tableOffset: UInt64
  private let bitmapByteCount: UInt64
  private var map: [UInt32]
  /// Where the next block goes: the footer behind the last block is overwritten and written anew.
  private var end: UInt64

  init(_ file: any ImageNode, _ footer: HostBuffer, _ byteCount: UInt64) throws(BlockError) {
    let header = HostBuffer(byteCount: 1024)
    try file.read(at: footer.big64(16), into: header.io)
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "vpc image: \(text)") }
    guard header.array(0, 8) == Array("cxsparse".utf8) else {
      throw refuse("the dynamic disk header is missing")
    }
    let block = UInt64(header.big32(32))
    guard block.nonzeroBitCount == 1, (4096...(256 << 20)).contains(block) else {
      throw refuse("blocks have \(block) bytes")
    }
    tableOffset = header.big64(16)
    let entries = UInt64(header.big32(28))
    guard byteCount <= entries * block, entries * 4 <= file.byteCount, tableOffset & 511 == 0 else {
      throw refuse("the block table does not cover the disk")
    }
    (self.file, self.footer, self.byteCount, blockByteCount) = (file, footer, byteCount, block)
    bitmapByteCount = (block / 512 / 8 + 511) & ~511
    let table = HostBuffer(byteCount: max(4, Int(entries) * 4))
    try file.read(at: tableOffset, into: table.io)
    map = (0..<Int(entries)).map { table.big32($0 * 4) }
    end = (tableOffset + entries * 4 + 511) & ~511
    for entry in map where entry != .max { end = max(end, UInt64(entry) * 512 + bitmapByteCount + block) }
  }

  func place(_ block: UInt64) throws(BlockError) -> BlockPlace {
    let entry = map[Int(block)]
    return entry == .max ? .absent : .at(UInt64(entry) * 512 + bitmapByteCount)
  }
  func allocate(_ block: UInt64) throws(BlockError) -> UInt64 {
    let start = end
    guard start / 512 < UInt64(UInt32.max) else {
      throw BlockError(.noSpace, "vpc image: no room for another block")
    }
    let bitmap = HostBuffer(byteCount: Int(bitmapByteCount))
    HostBytes.fill(bitmap.base, Int(blockByteCount / 512 / 8), 0xff)
    try file.write(at: start, from: [bitmap.io])
    end += bitmapByteCount + blockByteCount
    return start + bitmapByteCount
  }
  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError) {
    // The footer first: without it at the end there is no disk.
    try file.write(at: end, from: [footer.io])
    map[Int(block)] = UInt32((offset - bitmapByteCount) / 512)
    let entry = HostBuffer(byteCount: 4)
    entry.setBig(0, map[Int(block)])
    try file.write(at: tableOffset + block * 4, from: [entry.io])
  }
}
