import ApusHost

/// Keeps what is read from a backing file in the image in front of it (`copy-on-read`).
///
/// Any thread; writes and copies take turns, so that no copy of old bytes comes after a write of new ones.
public final class CopyOnReadNode: ImageNode {
  public let file: any ImageNode
  private let changing = Monitor()
  public init(_ file: any ImageNode) { self.file = file }

  public var driverName: String { "copy-on-read" }
  public var byteCount: UInt64 { file.byteCount }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var clusterByteCount: UInt64 { file.clusterByteCount }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = rangeError(offset, total) { throw error }
    try file.read(at: offset, into: buffers)
    guard !file.isReadOnly else { return }
    changing.lock()
    defer { changing.unlock() }
    // What nobody has written by now was not written either when it was read.
    var done: UInt64 = 0
    while done < total {
      let status = try file.status(at: offset + done, byteCount: total - done)
      if !status.isAllocated {
        file.note("cor_write")
        let part = buffers.slice(offset: Int(done), count: Int(status.byteCount))
        if part.allSatisfy({ HostBytes.isZero($0) }) {
          try file.writeZeroes(at: offset + done, byteCount: status.byteCount, mayUnmap: true)
        } else {
          try file.write(at: offset + done, from: part)
        }
      }
      done += status.byteCount
    }
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    changing.lock()
    defer { changing.unlock() }
    try file.write(at: offset, from: buffers)
  }
  public func flush() throws(BlockError) { try file.flush() }
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    changing.lock()
    defer { changing.unlock() }
    try file.discard(at: offset, byteCount: byteCount)
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    changing.lock()
    defer { changing.unlock() }
    try file.writeZeroes(at: offset, byteCount: byteCount, mayUnmap: mayUnmap)
  }
  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    try file.status(at: offset, byteCount: byteCount)
  }
  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    try file.truncate(byteCount, preallocation: preallocation)
  }
  public func close() throws(BlockError) { try file.close() }
}
