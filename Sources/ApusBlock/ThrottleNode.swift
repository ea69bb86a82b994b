import ApusHost
import Synchronization

/// Slows requests down to a rate (`throttle`): leaky buckets for bytes and for requests.
public final class ThrottleNode: ImageNode {
  /// Rates a second; 0: no limit.
  public struct Limits: Sendable {
    public var bytes: UInt64 = 0
    public var requests: UInt64 = 0
    public init() {}
  }
  private struct State {
    /// When the buckets will have drained, in monotonic nanoseconds.
    var bytesUntil: UInt64 = 0
    var requestsUntil: UInt64 = 0
  }
  public let file: any ImageNode
  private let limits: Limits
  private let state = Mutex(State())
  private let waiting = Monitor()

  public init(_ file: any ImageNode, _ limits: Limits) { (self.file, self.limits) = (file, limits) }

  public var driverName: String { "throttle" }
  public var byteCount: UInt64 { file.byteCount }
  public var isReadOnly: Bool { file.isReadOnly }
  public var hasWriteCache: Bool { file.hasWriteCache }
  public var clusterByteCount: UInt64 { file.clusterByteCount }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }

  /// Blocks until a request of so many bytes may go. A tenth of a second's worth passes at once.
  private func wait(_ byteCount: Int) {
    let burst: UInt64 = 100_000_000
    let now = HostClock.monotonicNanoseconds()
    let until = state.withLock { state -> UInt64 in
      if limits.bytes > 0 {
        let cost = UInt64(Double(byteCount) / Double(limits.bytes) * 1e9)
        state.bytesUntil = max(state.bytesUntil, now) + cost
      }
      if limits.requests > 0 {
        state.requestsUntil = max(state.requestsUntil, now) + 1_000_000_000 / limits.requests
      }
      return max(state.bytesUntil, state.requestsUntil)
    }
    guard until > now + burst else { return }
    let deadline = until - burst
    waiting.withLock { while HostClock.monotonicNanoseconds() < deadline { waiting.wait(until: deadline) } }
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    wait(buffers.totalByteCount)
    try file.read(at: offset, into: buffers)
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    wait(buffers.totalByteCount)
    try file.write(at: offset, from: buffers)
  }
  public func flush() throws(BlockError) { try file.flush() }
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    wait(0)
    try file.discard(at: offset, byteCount: byteCount)
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    wait(0)
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
