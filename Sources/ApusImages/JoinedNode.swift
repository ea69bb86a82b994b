import ApusBlock
import ApusHost

/// Nodes one behind the other, as one disk: the extents of a VMDK.
///
/// Any thread. A backing file shines through where an extent leaves something open.
final class JoinedNode: BackedImage, CheckedImage, @unchecked Sendable {
  // SAFETY: the backing node is attached before the first request.
  struct Part {
    var node: any ImageNode
    var byteCount: UInt64
  }
  let driverName: String
  let byteCount: UInt64
  let isReadOnly: Bool
  let backingFile: (name: String, format: String?)?
  private let file: any ImageNode
  private let parts: [Part]
  private let starts: [UInt64]
  private var backingNode: (any ImageNode)?

  init(
    _ driverName: String, _ file: any ImageNode, _ parts: [Part], isReadOnly: Bool,
    backingFile: (name: String, format: String?)?
  ) {
    (self.driverName, self.file, self.parts, self.backingFile) = (driverName, file, parts, backingFile)
    // An extent's writes would not know what the parent has.
    self.isReadOnly = isReadOnly || backingFile != nil
    var position: UInt64 = 0
    starts = parts.map { part in
      defer { position += part.byteCount }
      return position
    }
    byteCount = position
  }

  var clusterByteCount: UInt64 { parts.map(\.node.clusterByteCount).max() ?? 0 }
  var hasWriteCache: Bool { parts.contains { $0.node.hasWriteCache } }
  var supportsBacking: Bool { true }
  var children: [(role: String, node: any ImageNode)] {
    [("file", file)] + parts.enumerated().map { ("extents.\($0.offset)", $0.element.node) }
      + (backingNode.map { [("backing", $0)] } ?? [])
  }
  var allocatedByteCount: UInt64 {
    parts.reduce(file.allocatedByteCount) { $0 + $1.node.allocatedByteCount }
  }
  func attachBacking(_ node: (any ImageNode)?) { backingNode = node }

  /// The extents' checks together.
  func check() throws(BlockError) -> TableCheck? {
    var result = TableCheck()
    for (number, part) in parts.enumerated() {
      guard let found = try (part.node as? any CheckedImage)?.check() else { continue }
      result.corruptions += found.corruptions
      result.messages += found.messages.map { "extent \(number): \($0)" }
    }
    return result
  }

  /// The part that holds an offset.
  private func index(_ offset: UInt64) -> Int { (starts.lastIndex { $0 <= offset }) ?? 0 }

  private func forEachPart(
    _ offset: UInt64, _ count: UInt64,
    _ body: (any ImageNode, UInt64, UInt64, UInt64) throws(BlockError) -> Void
  ) throws(BlockError) {
    var done: UInt64 = 0
    while done < count {
      let number = index(offset + done)
      let within = offset + done - starts[number]
      let length = min(count - done, parts[number].byteCount - within)
      try body(parts[number].node, within, length, done)
      done += length
    }
  }

  func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = rangeError(offset, total) { throw error }
    var done: UInt64 = 0
    while done < total {
      let number = index(offset + done)
      let within = offset + done - starts[number]
      var length = min(total - done, parts[number].byteCount - within)
      var node = parts[number].node
      var place = within
      if let backingNode {
        let status = try node.status(at: within, byteCount: length)
        length = status.byteCount
        if !status.isAllocated, offset + done < backingNode.byteCount {
          length = min(length, backingNode.byteCount - (offset + done))
          (node, place) = (backingNode, offset + done)
        }
      }
      try node.read(at: place, into: buffers.slice(offset: Int(done), count: Int(length)))
      done += length
    }
  }
  func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = writeError(offset, total) { throw error }
    try forEachPart(offset, total) { (node, within, length, done) throws(BlockError) in
      try node.write(at: within, from: buffers.slice(offset: Int(done), count: Int(length)))
    }
  }
  func flush() throws(BlockError) {
    if isReadOnly { return }
    for part in parts { try part.node.flush() }
  }
  func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    try forEachPart(offset, byteCount) { (node, within, length, _) throws(BlockError) in
      try node.discard(at: within, byteCount: length)
    }
  }
  func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    try forEachPart(offset, byteCount) { (node, within, length, _) throws(BlockError) in
      try node.writeZeroes(at: within, byteCount: length, mayUnmap: mayUnmap)
    }
  }
  func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    if let error = rangeError(offset, byteCount) { throw error }
    let number = index(offset)
    let within = offset - starts[number]
    var status = try parts[number].node.status(
      at: within, byteCount: min(byteCount, parts[number].byteCount - within))
    // Offsets in several files are no offsets in this one.
    status.hostOffset = nil
    if !status.isAllocated { status.isZero = backingNode == nil }
    return status
  }
  func close() throws(BlockError) {
    for part in parts { try part.node.close() }
    try file.close()
    try backingNode?.close()
  }
}
