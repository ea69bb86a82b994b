import ApusHost
import Synchronization

/// An image in this process's memory, sparse by chunks; it grows when something is written behind its end.
public final class MemoryNode: ImageNode {
  private static let chunkByteCount: UInt64 = 64 << 10
  private struct State {
    var byteCount: UInt64
    var chunks: [UInt64: HostBuffer] = [:]
  }
  private let state: Mutex<State>

  public var driverName: String { "memory" }
  public let isReadOnly = false
  public var byteCount: UInt64 { state.withLock { $0.byteCount } }
  public var isZeroInitialized: Bool { true }
  public var allocatedByteCount: UInt64 { state.withLock { UInt64($0.chunks.count) * Self.chunkByteCount } }

  public init(byteCount: UInt64 = 0) { state = Mutex(State(byteCount: byteCount)) }
  public convenience init(_ bytes: [UInt8]) throws(BlockError) {
    self.init(byteCount: UInt64(bytes.count))
    try write(bytes, at: 0)
  }

  /// Calls `body` for each piece of the buffers that lies in one chunk: the chunk's number, the offset in it, the piece.
  private func forEachPiece(_ offset: UInt64, _ buffers: [IOBuffer], _ body: (UInt64, Int, IOBuffer) -> Void)
  {
    var position = offset
    for buffer in buffers {
      var done = 0
      while done < buffer.byteCount {
        let within = Int(position % Self.chunkByteCount)
        let count = min(buffer.byteCount - done, Int(Self.chunkByteCount) - within)
        body(position / Self.chunkByteCount, within, IOBuffer(buffer.base + done, count))
        done += count
        position += UInt64(count)
      }
    }
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    state.withLock { state in
      forEachPiece(offset, buffers) { number, within, piece in
        if let chunk = state.chunks[number] {
          piece.base.copyMemory(from: chunk.base + within, byteCount: piece.byteCount)
        } else {
          piece.clear()
        }
      }
    }
  }
  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    state.withLock { state in
      forEachPiece(offset, buffers) { number, within, piece in
        let chunk = state.chunks[number] ?? HostBuffer(byteCount: Int(Self.chunkByteCount))
        state.chunks[number] = chunk
        (chunk.base + within).copyMemory(from: piece.base, byteCount: piece.byteCount)
      }
      state.byteCount = max(state.byteCount, offset + UInt64(buffers.totalByteCount))
    }
  }
  public func flush() {}
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    try writeZeroes(at: offset, byteCount: byteCount, mayUnmap: true)
  }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    state.withLock { state in
      let end = offset + byteCount
      let range = AlignedRange(offset, byteCount, unit: Self.chunkByteCount)
      for edge in [range.head, range.tail] where !edge.isEmpty {
        if let chunk = state.chunks[edge.lowerBound / Self.chunkByteCount] {
          let within = Int(edge.lowerBound % Self.chunkByteCount)
          chunk.io(within, Int(edge.upperBound - edge.lowerBound)).clear()
        }
      }
      let numbers = range.body.lowerBound / Self.chunkByteCount..<range.body.upperBound / Self.chunkByteCount
      for number in state.chunks.keys.filter(numbers.contains) { state.chunks[number] = nil }
      state.byteCount = max(state.byteCount, end)
    }
  }
  public func status(at offset: UInt64, byteCount: UInt64) -> BlockStatus {
    state.withLock { state in
      let isData = state.chunks[offset / Self.chunkByteCount] != nil
      let left = Self.chunkByteCount - offset % Self.chunkByteCount
      return BlockStatus(
        byteCount: min(byteCount, left), isZero: !isData, isData: isData, isAllocated: true,
        hostOffset: offset)
    }
  }
  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    let old = self.byteCount
    if byteCount < old { try writeZeroes(at: byteCount, byteCount: old - byteCount, mayUnmap: true) }
    state.withLock { $0.byteCount = byteCount }
  }
  public func close() {}
}
