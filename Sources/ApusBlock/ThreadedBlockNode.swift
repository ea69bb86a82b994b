import ApusHost
import Synchronization

/// An image as devices want it: requests return at once. The image starts them itself if it can without waiting
/// (io_uring), else they run on a pool's threads.
///
/// Any thread.
public final class ThreadedBlockNode: BlockNode {
  /// What images share that name no pool of their own.
  public static let sharedPool = WorkerPool("block", threadLimit: 8)

  public let name: String
  public let image: any ImageNode
  public var driverName: String { image.driverName }
  /// Whole sectors: what a device shows.
  public var byteCount: UInt64 { (image.byteCount + 511) & ~511 }
  public var isReadOnly: Bool { image.isReadOnly }
  public let limits: BlockLimits
  public var hasWriteCache: Bool { image.hasWriteCache }

  private let pool: WorkerPool
  private let inFlight = InFlightCounter()
  private let isClosed = Atomic<Bool>(false)
  private let startsTransfers: Bool

  public init(
    name: String = "", _ image: any ImageNode, discards: Bool = true,
    pool: WorkerPool = ThreadedBlockNode.sharedPool
  ) {
    (self.name, self.image, self.pool) = (name, image, pool)
    var limits = BlockLimits()
    limits.requestAlignment = max(512, (image as? FileNode)?.directAlignment ?? 512)
    limits.discardAlignment = discards ? Int(max(4096, image.clusterByteCount)) : 0
    limits.maximumTransfer = image.transferLimit
    self.limits = limits
    startsTransfers = image.transferStart == .immediate
  }

  /// Hands a transfer to the image; false if it has to go to the pool.
  private func start(
    isWrite: Bool, _ offset: UInt64, _ buffers: [IOBuffer], _ completion: @escaping Completion
  ) -> Bool {
    guard startsTransfers, offset + UInt64(buffers.totalByteCount) <= image.byteCount else { return false }
    inFlight.enter()
    let isStarted = image.startTransfer(
      NodeTransfer(isWrite: isWrite, offset: offset, buffers) { [inFlight] failure in
        completion(failure)
        inFlight.leave()
      })
    if isStarted { image.submitTransfers() } else { inFlight.leave() }
    return isStarted
  }

  private func submit(
    _ completion: @escaping Completion, _ body: @escaping @Sendable () throws(BlockError) -> Void
  ) {
    inFlight.enter()
    pool.submit { [self] in
      var failure: BlockError?
      do throws(BlockError) { try body() } catch { failure = error }
      completion(failure)
      inFlight.leave()
    }
  }

  private func writeError(_ offset: UInt64, _ count: UInt64) -> BlockError? {
    if isReadOnly { return BlockError(.readOnly, "the image is open read-only") }
    return rangeError(offset, count)
  }

  /// The part of the buffers that lies inside the image; the last sector's rest reads as zeros, and writes there go.
  private func inside(_ offset: UInt64, _ buffers: [IOBuffer], clears: Bool) -> [IOBuffer] {
    let total = buffers.totalByteCount
    let size = image.byteCount
    if offset + UInt64(total) <= size { return buffers }
    let count = offset < size ? Int(size - offset) : 0
    if clears { for rest in buffers.slice(offset: count, count: total - count) { rest.clear() } }
    return buffers.slice(offset: 0, count: count)
  }

  public func read(offset: UInt64, into buffers: [IOBuffer], completion: @escaping Completion) {
    if let error = rangeError(offset, UInt64(buffers.totalByteCount)) { return completion(error) }
    if start(isWrite: false, offset, buffers, completion) { return }
    submit(completion) { [self] () throws(BlockError) in
      try image.read(at: offset, into: inside(offset, buffers, clears: true))
    }
  }

  public func write(
    offset: UInt64, from buffers: [IOBuffer], forceUnitAccess: Bool, completion: @escaping Completion
  ) {
    if let error = writeError(offset, UInt64(buffers.totalByteCount)) { return completion(error) }
    if !forceUnitAccess, start(isWrite: true, offset, buffers, completion) { return }
    submit(completion) { [self] () throws(BlockError) in
      try image.write(at: offset, from: inside(offset, buffers, clears: false))
      if forceUnitAccess { try image.flush() }
    }
  }

  public func flush(completion: @escaping Completion) {
    if isReadOnly { return completion(nil) }
    submit(completion) { [image] () throws(BlockError) in try image.flush() }
  }

  public func discard(offset: UInt64, byteCount: UInt64, completion: @escaping Completion) {
    if let error = writeError(offset, byteCount) { return completion(error) }
    guard byteCount > 0, limits.discardAlignment > 0 else { return completion(nil) }
    submit(completion) { [image] () throws(BlockError) in
      let end = min(offset + byteCount, image.byteCount)
      if end > offset { try image.discard(at: offset, byteCount: end - offset) }
    }
  }

  public func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool, completion: @escaping Completion)
  {
    if let error = writeError(offset, byteCount) { return completion(error) }
    guard byteCount > 0 else { return completion(nil) }
    submit(completion) { [image] () throws(BlockError) in
      let end = min(offset + byteCount, image.byteCount)
      if end > offset { try image.writeZeroes(at: offset, byteCount: end - offset, mayUnmap: mayUnmap) }
      if !image.hasWriteCache { try image.flush() }
    }
  }

  public func close() {
    inFlight.waitUntilIdle()
    guard !isClosed.exchange(true, ordering: .relaxed) else { return }
    do throws(BlockError) { try image.close() } catch { writeStandardError("\(error)\n") }
  }
}
