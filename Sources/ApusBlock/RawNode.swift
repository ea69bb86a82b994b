import ApusHost
import Synchronization

/// The `raw` format: the bytes of the node below, or a window of them (`offset=`, `size=`).
public final class RawNode: ImageNode {
  public let file: any ImageNode
  public let offset: UInt64
  private let window: UInt64?
  /// For an image that is raw because nothing else was recognised: the name of the format that an image which begins
  /// with these bytes would be taken for, if any. Writes that would make it one are refused.
  private let recognise: (@Sendable ([UInt8]) -> String?)?
  /// How many bytes `recognise` looks at.
  public static let recognisedByteCount = 2048

  public var driverName: String { "raw" }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var isZeroInitialized: Bool { file.isZeroInitialized }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }
  /// Whole sectors, as an image's size always is.
  public var byteCount: UInt64 {
    if let window { return window }
    let size = file.byteCount
    return ((size > offset ? size - offset : 0) + 511) & ~511
  }

  /// - Parameters:
  ///   - byteCount: the window's length; `nil` up to the end of `file`.
  ///   - recognise: for a probed image, see above.
  public init(
    _ file: any ImageNode, offset: UInt64 = 0, byteCount: UInt64? = nil,
    recognise: (@Sendable ([UInt8]) -> String?)? = nil
  ) throws(BlockError) {
    self.recognise = recognise
    let size = (file.byteCount + 511) & ~511
    guard offset <= size else {
      throw BlockError(.invalid, "offset \(offset) lies behind the \(size) bytes of the image")
    }
    if let byteCount {
      guard byteCount & 511 == 0 else {
        throw BlockError(.invalid, "the size of a raw node must be a multiple of 512")
      }
      guard byteCount <= size - offset else {
        throw BlockError(
          .invalid, "\(byteCount) bytes at \(offset) do not fit into the image's \(size) bytes")
      }
    }
    (self.file, self.offset, window) = (file, offset, byteCount)
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    if let error = rangeError(offset, UInt64(buffers.totalByteCount)) { throw error }
    file.note("read_aio")
    try file.read(at: self.offset + offset, into: buffers)
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    if let error = writeError(offset, UInt64(buffers.totalByteCount)) { throw error }
    file.note("write_aio")
    guard let recognise, offset < UInt64(Self.recognisedByteCount) else {
      return try file.write(at: self.offset + offset, from: buffers)
    }
    // A copy: the guest could change its memory between the look and the write.
    let copy = HostBuffer(byteCount: buffers.totalByteCount)
    var filled = 0
    for buffer in buffers {
      (copy.io.base + filled).copyMemory(from: buffer.base, byteCount: buffer.byteCount)
      filled += buffer.byteCount
    }
    var start = try file.bytes(at: self.offset, count: Int(min(UInt64(Self.recognisedByteCount), byteCount)))
    let written = copy.array()
    for index in Int(offset)..<min(start.count, Int(offset) + filled) {
      start[index] = written[index - Int(offset)]
    }
    if let format = recognise(start) {
      throw BlockError(
        .unsupported,
        "a write would make this raw image look like \(format), and its format was not given; say format=raw")
    }
    try file.write(at: self.offset + offset, from: [copy.io])
  }
  public var transferStart: TransferStart { file.transferStart }
  public func startTransfer(_ transfer: NodeTransfer) -> Bool {
    let total = UInt64(transfer.buffers.totalByteCount)
    guard (transfer.isWrite ? writeError : rangeError)(transfer.offset, total) == nil else { return false }
    if transfer.isWrite, recognise != nil, transfer.offset < UInt64(Self.recognisedByteCount) { return false }
    var below = transfer
    below.offset += offset
    return file.startTransfer(below)
  }
  public func submitTransfers() { file.submitTransfers() }
  public func flush() throws(BlockError) { try file.flush() }
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    try file.discard(at: self.offset + offset, byteCount: byteCount)
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    try file.writeZeroes(at: self.offset + offset, byteCount: byteCount, mayUnmap: mayUnmap)
  }
  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    try file.status(at: self.offset + offset, byteCount: byteCount)
  }
  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    guard window == nil else {
      throw BlockError(.unsupported, "cannot resize a raw node with a fixed size")
    }
    try file.truncate(offset + byteCount, preallocation: preallocation)
  }
  public func close() throws(BlockError) { try file.close() }
}
