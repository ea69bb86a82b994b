import ApusBlock
import ApusHost

/// Where a block of an image lies.
enum BlockPlace: Equatable {
  /// Nothing is kept: the parent decides, or it reads as zeros.
  case absent
  case zero
  case at(UInt64)
  /// Compressed bytes: their offset and length.
  case compressed(UInt64, Int)
}

/// What a format knows about its blocks. Calls come with the image's lock held.
protocol BlockTable: AnyObject {
  var formatName: String { get }
  var byteCount: UInt64 { get }
  /// Bytes of a block; a power of two if blocks can be written.
  var blockByteCount: UInt64 { get }
  func place(_ block: UInt64) throws(BlockError) -> BlockPlace
  /// Makes room for a block at the file's end and returns where its data goes; the table does not show it yet.
  func allocate(_ block: UInt64) throws(BlockError) -> UInt64
  /// Enters a block whose data has been written.
  func link(_ block: UInt64, _ offset: UInt64) throws(BlockError)
  /// Forgets what a block had, so that it reads as zeros. False if the format cannot say that.
  func unlink(_ block: UInt64) throws(BlockError) -> Bool
  func decompress(_ input: HostBuffer, into output: HostBuffer) throws(BlockError)
  func compress(_ input: IOBuffer) -> [UInt8]?
  func storeCompressed(_ block: UInt64, _ bytes: [UInt8]) throws(BlockError)
  /// Writes what waits in memory.
  func store() throws(BlockError)
  func finish() throws(BlockError)
}

extension BlockTable {
  func unlink(_ block: UInt64) throws(BlockError) -> Bool { false }
  func decompress(_ input: HostBuffer, into output: HostBuffer) throws(BlockError) {
    throw BlockError(.unsupported, "\(formatName): compressed blocks are not implemented")
  }
  func compress(_ input: IOBuffer) -> [UInt8]? { nil }
  func storeCompressed(_ block: UInt64, _ bytes: [UInt8]) throws(BlockError) {
    throw BlockError(.unsupported, "the format \(formatName) has no compressed blocks")
  }
  func store() throws(BlockError) {}
  func finish() throws(BlockError) {}
}

/// An image that is a table of blocks of one size: VDI, VHD, VMDK extents, Parallels, QED.
///
/// Any thread. The lock is held while a block is made; data of blocks that are there moves without it.
final class BlockTableImage: BackedImage, CheckedImage, @unchecked Sendable {
  // SAFETY: the table is touched with `monitor` held.
  private let monitor = Monitor()
  private let file: any ImageNode
  private let table: any BlockTable
  let isReadOnly: Bool
  private var backingNode: (any ImageNode)?
  private let canCompress: Bool
  let backingFile: (name: String, format: String?)?

  init(
    _ file: any ImageNode, _ table: any BlockTable, isReadOnly: Bool, canCompress: Bool = false,
    backingFile: (name: String, format: String?)? = nil
  ) {
    (self.file, self.table, self.canCompress) = (file, table, canCompress)
    self.backingFile = backingFile
    self.isReadOnly = isReadOnly || file.isReadOnly
  }

  var driverName: String { table.formatName }
  var byteCount: UInt64 { table.byteCount }
  var clusterByteCount: UInt64 { table.blockByteCount }
  var hasWriteCache: Bool { file.hasWriteCache }
  var isZeroInitialized: Bool { true }
  var supportsBacking: Bool { true }
  var children: [(role: String, node: any ImageNode)] {
    [("file", file)] + (backingNode.map { [("backing", $0)] } ?? [])
  }
  func attachBacking(_ node: (any ImageNode)?) { monitor.withLock { backingNode = node } }

  func check() throws(BlockError) -> TableCheck? {
    // qemu-img knows no check of VHD either.
    guard table.formatName != "vpc" else { return nil }
    return try locked { () throws(BlockError) in try table.check(file) }
  }

  private func locked<R>(_ body: () throws(BlockError) -> R) throws(BlockError) -> R {
    monitor.lock()
    defer { monitor.unlock() }
    return try body()
  }

  /// Calls `body` for each part of a range that lies in one block: number, offset in it, length, bytes done before.
  private func forEachBlock(
    _ offset: UInt64, _ count: UInt64, _ body: (UInt64, UInt64, UInt64, UInt64) throws(BlockError) -> Void
  ) throws(BlockError) {
    let size = table.blockByteCount
    var done: UInt64 = 0
    while done < count {
      let within = (offset + done) % size
      let length = min(count - done, size - within)
      try body((offset + done) / size, within, length, done)
      done += length
    }
  }

  func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = rangeError(offset, total) { throw error }
    try forEachBlock(offset, total) { (block, within, length, done) throws(BlockError) in
      let part = buffers.slice(offset: Int(done), count: Int(length))
      switch try locked({ () throws(BlockError) in try table.place(block) }) {
      case .at(let place): try file.read(at: place + within, into: part)
      case .zero: for buffer in part { buffer.clear() }
      case .absent: try readBacking(offset + done, part)
      case .compressed(let place, let count):
        let data = try decompressed(place, count)
        var position = Int(within)
        for buffer in part {
          HostBytes.copy(buffer.base, data.base + position, buffer.byteCount)
          position += buffer.byteCount
        }
        withExtendedLifetime(data) {}
      }
    }
  }

  private func decompressed(_ place: UInt64, _ count: Int) throws(BlockError) -> HostBuffer {
    let source = HostBuffer(byteCount: max(1, count))
    try file.read(at: place, into: source.io)
    let data = HostBuffer(byteCount: Int(table.blockByteCount))
    try table.decompress(source, into: data)
    return data
  }

  private func readBacking(_ offset: UInt64, _ buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    let size = backingNode?.byteCount ?? 0
    let inside = offset < size ? min(total, size - offset) : 0
    if inside > 0, let backingNode {
      try backingNode.read(at: offset, into: buffers.slice(offset: 0, count: Int(inside)))
    }
    for buffer in buffers.slice(offset: Int(inside), count: Int(total - inside)) { buffer.clear() }
  }

  func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = writeError(offset, total) { throw error }
    try forEachBlock(offset, total) { (block, within, length, done) throws(BlockError) in
      let part = buffers.slice(offset: Int(done), count: Int(length))
      let place = try locked { () throws(BlockError) -> UInt64? in
        let place = try table.place(block)
        if case .at(let place) = place { return place }
        try makeBlock(block, place, within, part)
        return nil
      }
      if let place { try file.write(at: place + within, from: part) }
    }
  }

  /// A block's first write: the whole block goes out, then the table shows it.
  private func makeBlock(_ block: UInt64, _ old: BlockPlace, _ within: UInt64, _ part: [IOBuffer])
    throws(BlockError)
  {
    let size = table.blockByteCount
    let length = UInt64(part.totalByteCount)
    if length < size, old == .absent || old == .zero, backingNode == nil {
      let place = try table.allocate(block)
      if place >= file.byteCount, file.isZeroInitialized {
        // Behind the file's end there are only zeros: the rest of the block comes with the file's new size.
        try file.write(at: place + within, from: part)
        if file.byteCount < place + size { try file.truncate(place + size, preallocation: .off) }
        return try table.link(block, place)
      }
      var position: UInt64 = 0
      let zeros = HostBuffer(byteCount: Int(min(size, 1 << 20)))
      while position < size {
        let count = min(size - position, UInt64(zeros.byteCount))
        try file.write(at: place + position, from: [zeros.io(0, Int(count))])
        position += count
      }
      try file.write(at: place + within, from: part)
      return try table.link(block, place)
    }
    var data = HostBuffer(byteCount: Int(size))
    if length < size {
      switch old {
      case .absent:
        let start = block * size
        try readBacking(start, [data.io])
      case .compressed(let place, let count): data = try decompressed(place, count)
      case .zero, .at: break
      }
    }
    var position = Int(within)
    for buffer in part {
      HostBytes.copy(data.base + position, buffer.base, buffer.byteCount)
      position += buffer.byteCount
    }
    let place = try table.allocate(block)
    try file.write(at: place, from: [data.io])
    try table.link(block, place)
  }

  func flush() throws(BlockError) {
    if isReadOnly { return }
    try locked { () throws(BlockError) in try table.store() }
    try file.flush()
  }
  func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    // The formats have no way to give blocks back that other readers know.
    if let error = writeError(offset, byteCount) { throw error }
  }

  func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    var end = offset + byteCount
    if end == self.byteCount { end = (end + clusterByteCount - 1) / clusterByteCount * clusterByteCount }
    try forEachBlock(offset, end - offset) { (block, within, length, done) throws(BlockError) in
      let isDone = try locked { () throws(BlockError) -> Bool in
        let place = try table.place(block)
        if place == .zero || (place == .absent && backingNode == nil) { return true }
        return length == table.blockByteCount ? try table.unlink(block) : false
      }
      guard !isDone else { return }
      let count = min(length, self.byteCount - (offset + done))
      let zeros = HostBuffer(byteCount: Int(min(count, 1 << 20)))
      var position: UInt64 = 0
      while position < count {
        let piece = min(count - position, UInt64(zeros.byteCount))
        try write(at: offset + done + position, from: [zeros.io(0, Int(piece))])
        position += piece
      }
    }
  }

  func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    if let error = rangeError(offset, byteCount) { throw error }
    let size = table.blockByteCount
    return try locked { () throws(BlockError) in
      let within = offset % size
      var place = try table.place(offset / size)
      var count = min(byteCount, size - within)
      var status = BlockStatus(byteCount: count, isZero: false, isData: true, isAllocated: true)
      switch place {
      case .absent: (status.isData, status.isZero, status.isAllocated) = (false, backingNode == nil, false)
      case .zero: (status.isData, status.isZero) = (false, true)
      case .at(let start): status.hostOffset = start + within
      case .compressed:
        status.isCompressed = true
        return status
      }
      // Neighbours that are alike, but not without end: the lock is held.
      while count < byteCount, count / size < 4096 {
        let next = try table.place((offset + count) / size)
        if case .at(let start) = place {
          guard next == .at(start + size) else { break }
        } else if next != place {
          break
        }
        place = next
        count = min(byteCount, count + size)
      }
      status.byteCount = count
      return status
    }
  }

  func compress(_ buffer: IOBuffer) throws(BlockError) -> [UInt8]? {
    guard canCompress else {
      throw BlockError(.unsupported, "the driver '\(driverName)' cannot write compressed data")
    }
    guard UInt64(buffer.byteCount) < clusterByteCount else { return table.compress(buffer) }
    let padded = HostBuffer(byteCount: Int(clusterByteCount))
    HostBytes.copy(padded.base, buffer.base, buffer.byteCount)
    return table.compress(padded.io)
  }
  func writeCompressed(at offset: UInt64, original: IOBuffer, compressed: [UInt8]?) throws(BlockError) {
    guard canCompress, let compressed else { return try write(at: offset, from: [original]) }
    if let error = writeError(offset, UInt64(original.byteCount)) { throw error }
    try locked { () throws(BlockError) in
      guard try table.place(offset / clusterByteCount) == .absent else {
        throw BlockError(.io, "a compressed write needs a block that is not there yet")
      }
      try table.storeCompressed(offset / clusterByteCount, compressed)
    }
  }

  func close() throws(BlockError) {
    if !isReadOnly {
      try locked { () throws(BlockError) in
        try table.store()
        try table.finish()
      }
    }
    try file.close()
    try backingNode?.close()
  }
}
