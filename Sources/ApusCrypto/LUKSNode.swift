import ApusBlock
import ApusHost

extension LUKSHeader {
  /// Reads the header that lies `offset` bytes into a node.
  public static func read(_ node: any ImageNode, at offset: UInt64 = 0) throws(BlockError) -> LUKSHeader {
    let bytes = try node.bytes(at: offset, count: byteCount)
    do throws(CryptoError) { return try LUKSHeader(bytes) } catch {
      throw BlockError(.unsupported, error.description)
    }
  }

  /// The cipher that a passphrase opens, for a header `offset` bytes into a node.
  public func unlock(_ passphrase: [UInt8], _ node: any ImageNode, at offset: UInt64 = 0) throws(BlockError)
    -> SectorCipher
  {
    let result = try unlock(passphrase) { (position, count) throws(BlockError) in
      try node.bytes(at: offset + position, count: count)
    }
    switch result {
    case .success(let cipher): return cipher
    case .failure(let error): throw BlockError(.invalid, error.description)
    }
  }
}

/// A disk encrypted as a whole (`luks`): a header, then the encrypted sectors. Any thread.
///
/// Without a passphrase only what the header says can be had; reads and writes fail.
public final class LUKSNode: ImageNode {
  private let file: any ImageNode
  public let header: LUKSHeader
  private let store: EncryptedStore?

  public init(_ file: any ImageNode, passphrase: [UInt8]?) throws(BlockError) {
    self.file = file
    header = try LUKSHeader.read(file)
    guard header.payloadOffset <= file.byteCount else {
      throw BlockError(.invalid, "luks image: the file ends before the encrypted data")
    }
    if let passphrase {
      store = EncryptedStore(file, try header.unlock(passphrase, file), base: header.payloadOffset)
    } else {
      store = nil
    }
  }

  /// Writes a header to `file` and gives the disk its size.
  public static func create(_ byteCount: UInt64, _ parameters: LUKSHeader.Parameters, on file: any ImageNode)
    throws(BlockError)
  {
    do throws(CryptoError) {
      let (header, bytes, _) = try LUKSHeader.make(parameters)
      do throws(BlockError) {
        try file.truncate(header.payloadOffset + byteCount, preallocation: .off)
        try file.write(bytes, at: 0)
      } catch { throw CryptoError(error.description) }
    } catch { throw BlockError(.io, error.description) }
  }

  public func keySlots() throws(BlockError) -> LUKSKeySlots { try LUKSKeySlots(file, at: 0, opened: store) }

  public var driverName: String { "luks" }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }
  public var byteCount: UInt64 {
    let size = file.byteCount
    return size > header.payloadOffset ? (size - header.payloadOffset + 511) & ~511 : 0
  }

  private func opened() throws(BlockError) -> EncryptedStore {
    guard let store else {
      throw BlockError(.invalid, "the image is encrypted; give its passphrase with key-secret=")
    }
    return store
  }
  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    if let error = rangeError(offset, UInt64(buffers.totalByteCount)) { throw error }
    try opened().read(at: offset, into: buffers)
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    if let error = writeError(offset, UInt64(buffers.totalByteCount)) { throw error }
    try opened().write(at: offset, from: buffers)
  }
  public func flush() throws(BlockError) { try file.flush() }
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    // Holes would tell where nothing is stored.
    if let error = writeError(offset, byteCount) { throw error }
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if let error = writeError(offset, byteCount) { throw error }
    guard byteCount > 0 else { return }
    let zeros = HostBuffer(byteCount: Int(min(byteCount, 1 << 20)))
    var done: UInt64 = 0
    while done < byteCount {
      let count = min(byteCount - done, UInt64(zeros.byteCount))
      try write(at: offset + done, from: [zeros.io(0, Int(count))])
      done += count
    }
  }
  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    try file.truncate(header.payloadOffset + byteCount, preallocation: preallocation)
  }
  public func close() throws(BlockError) { try file.close() }
}
