import ApusBlock
import ApusHost

/// VirtualBox disk images [VDI]: a header, a table of 32-bit block numbers, blocks of 1 MiB. Little endian.
///
/// Not modelled: differencing images (with a parent), which are refused.
public enum VDI {
  static let signature: UInt32 = 0xbeda_107f
  static let absent: UInt32 = 0xffff_ffff
  static let discarded: UInt32 = 0xffff_fffe

  public static func matches(_ start: [UInt8]) -> Bool {
    start.count >= 68 && start[64..<68] == [0x7f, 0x10, 0xda, 0xbe]
  }

  public static func open(_ file: any ImageNode) throws(BlockError) -> any ImageNode {
    BlockTableImage(file, try VDITable(file), isReadOnly: file.isReadOnly)
  }

  /// - Parameter isStatic: all blocks have their place from the start.
  public static func create(_ byteCount: UInt64, on file: any ImageNode, isStatic: Bool = false)
    throws(BlockError)
  {
    let blocks = (byteCount + (1 << 20) - 1) >> 20
    guard blocks < 1 << 29 else {
      throw BlockError(.invalid, "vdi: \(byteCount) bytes are too many; 512 TiB are possible")
    }
    let tableByteCount = (Int(blocks) * 4 + 511) & ~511
    let header = HostBuffer(byteCount: 512 + tableByteCount)
    for (index, byte) in "<<< Oracle VM VirtualBox Disk Image >>>\n".utf8.enumerated() {
      header.bytes[index] = byte
    }
    header.setLittle(0x40, signature)
    header.setLittle(0x44, UInt32(0x0001_0001))
    header.setLittle(0x48, UInt32(0x180))
    header.setLittle(0x4c, UInt32(isStatic ? 2 : 1))
    header.setLittle(0x154, UInt32(512))
    header.setLittle(0x158, UInt32(512 + tableByteCount))
    header.setLittle(0x168, UInt32(512))
    header.setLittle(0x170, (byteCount + 511) & ~511)
    header.setLittle(0x178, UInt32(1 << 20))
    header.setLittle(0x180, UInt32(blocks))
    header.setLittle(0x184, UInt32(isStatic ? blocks : 0))
    HostRandom.fill(UnsafeMutableRawBufferPointer(rebasing: header.bytes[0x188..<0x1a8]))
    for block in 0..<Int(blocks) { header.setLittle(512 + block * 4, isStatic ? UInt32(block) : absent) }
    try file.write(at: 0, from: [header.io])
    if isStatic { try file.truncate(UInt64(header.byteCount) + blocks << 20, preallocation: .off) }
  }
}

private final class VDITable: BlockTable {
  let formatName = "vdi"
  let byteCount: UInt64
  let blockByteCount: UInt64
  private let file: any ImageNode
  private let tableOffset: UInt64
  private let dataOffset: UInt64
  private var map: [UInt32]
  private var allocated: UInt32
  private var dirtySectors: Set<Int> = []

  init(_ file: any ImageNode) throws(BlockError) {
    let header = HostBuffer(byteCount: 512)
    try file.read(at: 0, into: header.io)
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "vdi image: \(text)") }
    guard header.little32(0x40) == VDI.signature else { throw refuse("the signature is missing") }
    guard header.little32(0x44) == 0x0001_0001 else { throw refuse("version 1.1 is the only one known") }
    let block = UInt64(header.little32(0x178))
    guard block == 1 << 20 else { throw refuse("blocks have \(block) bytes; 1 MiB is the only size known") }
    guard header.little32(0x168) == 512 else { throw refuse("sectors have not 512 bytes") }
    guard header.array(0x1a8, 32).allSatisfy({ $0 == 0 }) else {
      throw BlockError(.unsupported, "vdi image: it has a parent; differencing images are not implemented")
    }
    (tableOffset, dataOffset) = (UInt64(header.little32(0x154)), UInt64(header.little32(0x158)))
    byteCount = (header.little64(0x170) + 511) & ~511
    let blocks = UInt64(header.little32(0x180))
    guard tableOffset & 511 == 0, dataOffset & 511 == 0, blocks < 1 << 29, byteCount <= blocks << 20 else {
      throw refuse("its tables do not cover the disk")
    }
    guard blocks * 4 <= file.byteCount || blocks == 0 else { throw refuse("the block table is cut off") }
    allocated = header.little32(0x184)
    (self.file, blockByteCount) = (file, block)
    let table = HostBuffer(byteCount: max(4, Int(blocks) * 4))
    try file.read(at: tableOffset, into: table.io)
    map = (0..<Int(blocks)).map { table.little32($0 * 4) }
    // New blocks go behind all that are named.
    allocated = max(
      allocated,
      (map.filter { $0 < VDI.discarded }.max() ?? 0) &+ (map.contains { $0 < VDI.discarded } ? 1 : 0))
  }

  func place(_ block: UInt64) throws(BlockError) -> BlockPlace {
    let entry = map[Int(block)]
    if entry == VDI.absent { return .absent }
    return entry == VDI.discarded ? .zero : .at(dataOffset + UInt64(entry) << 20)
  }
  func allocate(_ block: UInt64) throws(BlockError) -> UInt64 {
    defer { allocated += 1 }
    return dataOffset + UInt64(allocated) << 20
  }
  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError) {
    map[Int(block)] = UInt32((offset - dataOffset) >> 20)
    dirtySectors.insert(Int(block) / 128)
  }

  func store() throws(BlockError) {
    guard !dirtySectors.isEmpty else { return }
    for sector in dirtySectors.sorted() {
      let part = HostBuffer(byteCount: 512)
      for (index, entry) in map[(sector * 128)..<min(map.count, sector * 128 + 128)].enumerated() {
        part.setLittle(index * 4, entry)
      }
      try file.write(at: tableOffset + UInt64(sector) * 512, from: [part.io])
    }
    dirtySectors.removeAll()
    let count = HostBuffer(byteCount: 4)
    count.setLittle(0, allocated)
    try file.write(at: 0x184, from: [count.io])
  }
}
