import ApusBlock
import ApusHost

/// The encrypted part of a node: plain bytes on this side, encrypted ones in the node. Any thread.
///
/// Requests that do not cover whole sectors are widened; writes of that kind wait for each other.
public final class EncryptedStore: Sendable {
  private let node: any ImageNode
  private let cipher: SectorCipher
  var key: [UInt8] { cipher.key }
  /// Where sector 0 lies in the node, in bytes.
  private let base: UInt64
  private let partial = Monitor()
  private static let mask = SectorCipher.sectorByteCount - 1

  public init(_ node: any ImageNode, _ cipher: SectorCipher, base: UInt64 = 0) {
    (self.node, self.cipher, self.base) = (node, cipher, base)
  }

  private static func isAligned(_ offset: UInt64, _ buffers: [IOBuffer]) -> Bool {
    offset & UInt64(mask) == 0 && buffers.allSatisfy { $0.byteCount & mask == 0 }
  }
  private func checked(_ body: () throws(CryptoError) -> Void) throws(BlockError) {
    do throws(CryptoError) { try body() } catch { throw BlockError(.io, error.description) }
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    if Self.isAligned(offset, buffers) {
      try node.read(at: base + offset, into: buffers)
      var sector = offset >> 9
      for buffer in buffers {
        try checked { () throws(CryptoError) in
          try cipher.decrypt(buffer.base, buffer.byteCount, sector: sector)
        }
        sector += UInt64(buffer.byteCount >> 9)
      }
      return
    }
    let count = UInt64(buffers.totalByteCount)
    guard count > 0 else { return }
    let start = offset & ~511
    let wide = HostBuffer(byteCount: Int((offset + count + 511) & ~511 - start))
    try read(at: start, into: [wide.io])
    var position = Int(offset - start)
    for buffer in buffers {
      HostBytes.copy(buffer.base, wide.base + position, buffer.byteCount)
      position += buffer.byteCount
    }
    withExtendedLifetime(wide) {}
  }

  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    let count = UInt64(buffers.totalByteCount)
    guard count > 0 else { return }
    let start = offset & ~511
    let end = (offset + count + 511) & ~511
    // A copy: the guest's memory is not ours to encrypt.
    let wide = HostBuffer(byteCount: Int(end - start))
    func fillAndWrite() throws(BlockError) {
      var position = Int(offset - start)
      for buffer in buffers {
        HostBytes.copy(wide.base + position, buffer.base, buffer.byteCount)
        position += buffer.byteCount
      }
      try checked { () throws(CryptoError) in
        try cipher.encrypt(wide.base, wide.byteCount, sector: start >> 9)
      }
      try node.write(at: base + start, from: [wide.io])
    }
    if start == offset, end == offset + count { return try fillAndWrite() }
    partial.lock()
    defer { partial.unlock() }
    if start < offset { try read(at: start, into: [wide.io(0, 512)]) }
    if end > offset + count, end - 512 > start || start == offset {
      try read(at: end - 512, into: [wide.io(wide.byteCount - 512, 512)])
    }
    try fillAndWrite()
  }
}
