import ApusBits

/// The blob's tokens and header, version 17 [DT-Spec 0.4 §5].
enum BlobFormat {
  static let magic: UInt32 = 0xd00d_feed
  static let version: UInt32 = 17
  static let lastCompatibleVersion: UInt32 = 16
  static let headerByteCount = 40
  static let beginNode: UInt32 = 1
  static let endNode: UInt32 = 2
  static let property: UInt32 = 3
  static let nop: UInt32 = 4
  static let end: UInt32 = 9
  /// Deeper trees are refused: no hardware has them, and consumers recurse.
  static let depthLimit = 32
}

/// Why a blob is no device tree.
public enum DeviceTreeError: Error, Equatable, CustomStringConvertible {
  case truncated(what: String, offset: Int)
  case badMagic(UInt32)
  case unsupportedVersion(UInt32)
  case malformed(what: String, offset: Int)

  public var description: String {
    switch self {
    case .truncated(let what, let offset):
      "the device tree blob ends inside its \(what) (offset 0x\(String(offset, radix: 16)))"
    case .badMagic(let magic):
      "the file is no device tree blob: it starts with 0x\(String(magic, radix: 16)), not 0xd00dfeed"
    case .unsupportedVersion(let version):
      "the device tree blob has version \(version); versions 16 and 17 are understood"
    case .malformed(let what, let offset):
      "the device tree blob is damaged at offset 0x\(String(offset, radix: 16)): \(what)"
    }
  }
}

extension DeviceTree {
  /// The blob, version 17, tightly packed.
  public func encode() -> [UInt8] {
    var strings: [UInt8] = []
    var stringOffsets: [String: UInt32] = [:]
    var structure: [UInt8] = []

    func pad() { while structure.count % 4 != 0 { structure.append(0) } }
    func encode(_ node: Node) {
      structure.appendBigEndian(BlobFormat.beginNode)
      structure += Array(node.name.utf8) + [0]
      pad()
      for property in node.properties {
        let offset: UInt32
        if let known = stringOffsets[property.name] {
          offset = known
        } else {
          offset = UInt32(strings.count)
          stringOffsets[property.name] = offset
          strings += Array(property.name.utf8) + [0]
        }
        structure.appendBigEndian(BlobFormat.property)
        structure.appendBigEndian(UInt32(property.value.count))
        structure.appendBigEndian(offset)
        structure += property.value
        pad()
      }
      for child in node.children { encode(child) }
      structure.appendBigEndian(BlobFormat.endNode)
    }
    encode(root)
    structure.appendBigEndian(BlobFormat.end)

    // Header, reservation map (8-byte aligned: the header's 40 bytes see to that), structure, strings.
    let structureOffset = BlobFormat.headerByteCount + (reservations.count + 1) * 16
    let stringsOffset = structureOffset + structure.count
    var blob: [UInt8] = []
    for word in [
      BlobFormat.magic, UInt32(stringsOffset + strings.count), UInt32(structureOffset), UInt32(stringsOffset),
      UInt32(BlobFormat.headerByteCount), BlobFormat.version, BlobFormat.lastCompatibleVersion, bootCPU,
      UInt32(strings.count), UInt32(structure.count),
    ] { blob.appendBigEndian(word) }
    for reservation in reservations + [.init(address: 0, byteCount: 0)] {
      blob.appendBigEndian(reservation.address)
      blob.appendBigEndian(reservation.byteCount)
    }
    return blob + structure + strings
  }

  /// Reads a blob, of any content: what is no device tree is refused, never trapped on.
  public init(parsing blob: [UInt8]) throws(DeviceTreeError) {
    var parser = try BlobParser(blob)
    try parser.parseReservations(into: &reservations)
    root = try parser.parseTree()
    bootCPU = parser.bootCPU
  }
}

/// One pass over a blob's structure block.
private struct BlobParser {
  let blob: [UInt8]
  let structure: Range<Int>
  let strings: Range<Int>
  let reservationOffset: Int
  let bootCPU: UInt32
  var offset: Int

  init(_ blob: [UInt8]) throws(DeviceTreeError) {
    func header(_ index: Int) throws(DeviceTreeError) -> Int {
      guard let word: UInt32 = blob.bigEndian(at: index * 4) else {
        throw .truncated(what: "header", offset: blob.count)
      }
      return Int(word)
    }
    let magic = try header(0)
    guard magic == Int(BlobFormat.magic) else { throw .badMagic(UInt32(magic)) }
    let version = try header(5)
    guard try header(6) <= 17, version >= 16 else { throw .unsupportedVersion(UInt32(version)) }
    let total = try header(1)
    guard total >= BlobFormat.headerByteCount, total <= blob.count else {
      throw .truncated(what: "content of \(total) bytes", offset: blob.count)
    }
    let structureStart = try header(2)
    let stringsStart = try header(3)
    reservationOffset = try header(4)
    bootCPU = UInt32(try header(7))
    let stringsCount = try header(8)
    // Version 16 has no size of the structure block: it ends with its end token.
    let structureCount = version >= 17 ? try header(9) : max(0, total - structureStart)
    guard structureStart % 4 == 0, structureStart <= total, structureCount <= total - structureStart else {
      throw .malformed(what: "the structure block lies outside", offset: 8)
    }
    guard stringsStart <= total, stringsCount <= total - stringsStart else {
      throw .malformed(what: "the strings block lies outside", offset: 12)
    }
    guard reservationOffset % 8 == 0, reservationOffset <= total else {
      throw .malformed(what: "the reservation map lies outside or is not aligned to 8 bytes", offset: 16)
    }
    self.blob = total == blob.count ? blob : Array(blob[..<total])
    structure = structureStart..<structureStart + structureCount
    strings = stringsStart..<stringsStart + stringsCount
    offset = structureStart
  }

  func parseReservations(into list: inout [DeviceTree.Reservation]) throws(DeviceTreeError) {
    var offset = reservationOffset
    while true {
      guard let address: UInt64 = blob.bigEndian(at: offset),
        let count: UInt64 = blob.bigEndian(at: offset + 8)
      else { throw .truncated(what: "reservation map", offset: offset) }
      if address == 0 && count == 0 { return }
      list.append(.init(address: address, byteCount: count))
      offset += 16
    }
  }

  mutating func parseTree() throws(DeviceTreeError) -> DeviceTree.Node {
    /// The open nodes, root first.
    var open: [DeviceTree.Node] = []
    var root: DeviceTree.Node?
    while true {
      let at = offset
      switch try token() {
      case BlobFormat.nop: continue
      case BlobFormat.beginNode:
        guard root == nil else { throw .malformed(what: "a second root node", offset: at) }
        guard open.count < BlobFormat.depthLimit else {
          throw .malformed(what: "nodes nested deeper than \(BlobFormat.depthLimit)", offset: at)
        }
        open.append(.init(try string(in: structure, at: offset, what: "node name")))
        offset = (offset + open[open.count - 1].name.utf8.count + 1 + 3) & ~3
      case BlobFormat.property:
        guard let node = open.indices.last else {
          throw .malformed(what: "a property outside nodes", offset: at)
        }
        open[node].properties.append(try property())
      case BlobFormat.endNode:
        guard let node = open.popLast() else { throw .malformed(what: "an unopened node's end", offset: at) }
        if open.isEmpty { root = node } else { open[open.count - 1].children.append(node) }
      case BlobFormat.end:
        guard let root else { throw .malformed(what: "an end without a complete root node", offset: at) }
        return root
      case let other: throw .malformed(what: "an unknown token \(other)", offset: at)
      }
    }
  }

  private mutating func token() throws(DeviceTreeError) -> UInt32 {
    guard offset >= structure.lowerBound, offset + 4 <= structure.upperBound,
      let word: UInt32 = blob.bigEndian(at: offset)
    else { throw .truncated(what: "structure block", offset: offset) }
    offset += 4
    return word
  }

  private mutating func property() throws(DeviceTreeError) -> DeviceTree.Property {
    let count = Int(try token())
    let name = strings.lowerBound + Int(try token())
    guard count <= structure.upperBound - offset else {
      throw .truncated(what: "property value of \(count) bytes", offset: offset)
    }
    let value = Array(blob[offset..<offset + count])
    offset = (offset + count + 3) & ~3
    return .init(try string(in: strings, at: name, what: "property name"), value)
  }

  /// A NUL-terminated printable ASCII string.
  private func string(in range: Range<Int>, at start: Int, what: String) throws(DeviceTreeError) -> String {
    guard range.contains(start) else { throw .malformed(what: "a \(what) that lies outside", offset: start) }
    guard let end = blob[start..<range.upperBound].firstIndex(of: 0) else {
      throw .truncated(what: what, offset: start)
    }
    guard blob[start..<end].allSatisfy({ (0x21...0x7e).contains($0) }) else {
      throw .malformed(what: "a \(what) with unprintable characters", offset: start)
    }
    return String(decoding: blob[start..<end], as: UTF8.self)
  }
}
