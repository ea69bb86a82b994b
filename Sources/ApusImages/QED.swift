import ApusBlock
import ApusHost

/// QED images [QED]: a header and two levels of tables. Little endian, read-only here.
///
/// ```
///  0 "QED\0"   4 cluster size   8 clusters of a table   12 clusters of the header   16 features   24 compatible ones
/// 32 features to clear   40 L1 table   48 size   56 backing file's name   60 its length
/// ```
/// Not modelled: writing, repair.
public enum QED {
  private static let backingFile: UInt64 = 1
  private static let needsCheck: UInt64 = 2
  private static let backingIsRaw: UInt64 = 4

  public static func matches(_ start: [UInt8]) -> Bool { start.starts(with: [0x51, 0x45, 0x44, 0]) }

  public static func open(_ file: any ImageNode) throws(BlockError) -> any ImageNode {
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "qed image: \(text)") }
    let header = HostBuffer(byteCount: 64)
    try file.read(at: 0, into: header.io)
    guard matches(header.array()) else { throw refuse("the file does not start with QED") }
    let cluster = UInt64(header.little32(4))
    let tableClusters = UInt64(header.little32(8))
    let headerClusters = UInt64(header.little32(12))
    let features = header.little64(16)
    guard cluster.nonzeroBitCount == 1, (4096...(64 << 20)).contains(cluster) else {
      throw refuse("clusters have \(cluster) bytes")
    }
    guard tableClusters.nonzeroBitCount == 1, tableClusters <= 16 else {
      throw refuse("tables have \(tableClusters) clusters")
    }
    guard features & ~7 == 0 else {
      throw BlockError(.unsupported, "qed image: it has unknown features (0x\(String(features, radix: 16)))")
    }
    let entries = cluster * tableClusters / 8
    let size = header.little64(48)
    let coverage = entries.multipliedReportingOverflow(by: entries).partialValue
      .multipliedReportingOverflow(by: cluster)
    guard size & 511 == 0, size < 1 << 62, coverage.overflow || size <= coverage.partialValue else {
      throw refuse("it has \(size) bytes")
    }
    var backing: (name: String, format: String?)?
    if features & backingFile != 0 {
      let (offset, count) = (UInt64(header.little32(56)), Int(header.little32(60)))
      guard count <= 1023, offset + UInt64(count) <= headerClusters * cluster else {
        throw refuse("the backing file's name does not fit into the header")
      }
      backing = (
        String(decoding: try file.bytes(at: offset, count: count), as: UTF8.self),
        features & backingIsRaw != 0 ? "raw" : nil
      )
    }
    let table = try QEDTable(file, size, cluster, Int(entries), header.little64(40))
    return BlockTableImage(file, table, isReadOnly: true, backingFile: backing)
  }
}

private final class QEDTable: BlockTable {
  let formatName = "qed"
  let byteCount: UInt64
  let blockByteCount: UInt64
  private let file: any ImageNode
  private let entries: Int
  private let l1: [UInt64]
  private var l2: [Int: HostBuffer] = [:]

  init(_ file: any ImageNode, _ size: UInt64, _ cluster: UInt64, _ entries: Int, _ l1Offset: UInt64)
    throws(BlockError)
  {
    (self.file, byteCount, blockByteCount, self.entries) = (file, size, cluster, entries)
    guard l1Offset & (cluster - 1) == 0, l1Offset > 0, l1Offset < 1 << 62 else {
      throw BlockError(.invalid, "qed image: the L1 table is misplaced")
    }
    let buffer = HostBuffer(byteCount: entries * 8)
    try file.read(at: l1Offset, into: buffer.io)
    l1 = (0..<entries).map { buffer.little64($0 * 8) }
  }

  func place(_ block: UInt64) throws(BlockError) -> BlockPlace {
    let index = Int(block / UInt64(entries))
    let tableOffset = l1[index]
    if tableOffset == 0 { return .absent }
    guard tableOffset & (blockByteCount - 1) == 0, tableOffset < file.byteCount else {
      throw BlockError(.io, "qed image: an L2 table is misplaced")
    }
    if l2[index] == nil {
      // Up to 64 MiB of tables.
      if l2.count * entries > 8 << 20 { l2.removeAll() }
      let buffer = HostBuffer(byteCount: entries * 8)
      try file.read(at: tableOffset, into: buffer.io)
      l2[index] = buffer
    }
    let entry = l2[index]?.little64(Int(block % UInt64(entries)) * 8) ?? 0
    switch entry {
    case 0: return .absent
    case 1: return .zero
    default:
      guard entry & (blockByteCount - 1) == 0 else {
        throw BlockError(.io, "qed image: a cluster is misplaced at 0x\(String(entry, radix: 16))")
      }
      return .at(entry)
    }
  }
  func allocate(_ block: UInt64) throws(BlockError) -> UInt64 {
    throw BlockError(.readOnly, "qed images are read-only here")
  }
  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError) {
    throw BlockError(.readOnly, "qed images are read-only here")
  }
}
