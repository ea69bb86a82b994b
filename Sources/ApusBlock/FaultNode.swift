import ApusHost
import Synchronization

/// Fails chosen requests, for tests of what stands on top (`blkdebug`).
public final class FaultNode: ImageNode {
  public enum Operation: String, Sendable, CaseIterable {
    case read, write
    case writeZeroes = "write-zeroes"
    case discard, flush
  }
  /// Which requests fail, and how.
  public struct Rule: Sendable {
    /// `nil`: any.
    public var operation: Operation?
    /// The request that touches this sector; `nil`: any.
    public var sector: UInt64?
    /// So many requests pass first.
    public var after = 0
    public var isOnce = false
    /// 5: an I/O error; 28: no space.
    public var errno: Int32 = 5
    public init() {}
  }
  private struct State {
    var rules: [Rule]
  }
  public let file: any ImageNode
  private let state: Mutex<State>

  public init(_ file: any ImageNode, _ rules: [Rule]) {
    self.file = file
    state = Mutex(State(rules: rules))
  }

  public var driverName: String { "blkdebug" }
  public var byteCount: UInt64 { file.byteCount }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var isZeroInitialized: Bool { file.isZeroInitialized }
  public var clusterByteCount: UInt64 { file.clusterByteCount }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }

  private func check(_ operation: Operation, _ offset: UInt64, _ byteCount: UInt64) throws(BlockError) {
    let errno: Int32? = state.withLock { state in
      for (index, rule) in state.rules.enumerated() {
        guard rule.operation ?? operation == operation else { continue }
        if let sector = rule.sector,
          !(offset..<max(offset + byteCount, offset + 1)).overlaps(sector * 512..<sector * 512 + 512)
        {
          continue
        }
        if rule.after > 0 {
          state.rules[index].after -= 1
          continue
        }
        if rule.isOnce { state.rules.remove(at: index) }
        return rule.errno
      }
      return nil
    }
    if let errno {
      throw BlockError(
        errno == 28 ? .noSpace : .io,
        "blkdebug: the \(operation.rawValue) at 0x\(String(offset, radix: 16)) fails as asked")
    }
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    try check(.read, offset, UInt64(buffers.totalByteCount))
    try file.read(at: offset, into: buffers)
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    try check(.write, offset, UInt64(buffers.totalByteCount))
    try file.write(at: offset, from: buffers)
  }
  public func flush() throws(BlockError) {
    try check(.flush, 0, 0)
    try file.flush()
  }
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    try check(.discard, offset, byteCount)
    try file.discard(at: offset, byteCount: byteCount)
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    try check(.writeZeroes, offset, byteCount)
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
