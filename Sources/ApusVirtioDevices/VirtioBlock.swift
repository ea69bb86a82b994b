import ApusBlock
import ApusDevice
import ApusHost
import ApusMemory
import ApusVirtio
import Synchronization

/// What a virtio-blk device is made with.
public struct VirtioBlockConfiguration: Sendable {
  public var name = "virtio-blk"
  /// Up to 20 bytes that GET_ID returns.
  public var serial = ""
  public var queueCount = 1
  public var queueSize: UInt16 = 256
  public var logicalBlockSize = 512
  /// 0: as the node says.
  public var physicalBlockSize = 0
  public var minimumIOSize = 0
  public var optimalIOSize = 0
  /// The guest may switch the write cache.
  public var hasWriteCacheControl = true
  /// `nil`: as the node says.
  public var writeCache: Bool?
  public enum ErrorPolicy: Sendable {
    /// The guest is told.
    case report
    /// The guest is told that all went well.
    case ignore
  }
  public var readErrors = ErrorPolicy.report
  public var writeErrors = ErrorPolicy.report
  /// Transfers of neighbouring ranges that a notification finds go to the node as one.
  public var mergesRequests = true
  public var hasDiscard = true
  public var hasWriteZeroes = true
  public init() {}
}

/// A block device [VIRTIO 1.3 §5.2] over a `BlockNode`.
///
/// Requests are taken on the notifying vCPU's thread, which only parses them: the node transfers on its own threads
/// and completions push and interrupt from there. A reset waits for the node. A notification that finds more than a
/// queue's worth of requests goes on in the pool, so that a vCPU is never held up.
/// Not modelled: SCSI pass-through, zoned devices, secure erase, lifetime, `werror`/`rerror` that stop the machine.
public final class VirtioBlock: VirtioDevice {
  private enum Feature {
    static let segmentMaximum: UInt64 = 1 << 2
    static let geometry: UInt64 = 1 << 4
    static let readOnly: UInt64 = 1 << 5
    static let blockSize: UInt64 = 1 << 6
    static let flush: UInt64 = 1 << 9
    static let topology: UInt64 = 1 << 10
    static let configurableWriteCache: UInt64 = 1 << 11
    static let multiQueue: UInt64 = 1 << 12
    static let discard: UInt64 = 1 << 13
    static let writeZeroes: UInt64 = 1 << 14
  }
  private enum Request {
    static let read: UInt32 = 0
    static let write: UInt32 = 1
    static let flush: UInt32 = 4
    static let getID: UInt32 = 8
    static let discard: UInt32 = 11
    static let writeZeroes: UInt32 = 13
  }
  private enum Status {
    static let ok: UInt8 = 0
    static let ioError: UInt8 = 1
    static let unsupported: UInt8 = 2
  }
  private static let sectorByteCount: UInt64 = 512
  private static let writeCacheOffset = 32
  // As QEMU: 4 MiB short of what a 32-bit byte count holds.
  private static let maximumRangeSectors: UInt32 = 0x3f_ffff

  public let name: String
  public var deviceID: UInt16 { VirtioDeviceID.block }
  public let features: UInt64
  public let queues: [VirtQueue]
  public let node: any BlockNode

  private let configuration: VirtioBlockConfiguration
  private let pool: WorkerPool
  private let inFlight = InFlightCounter()
  private let link = Mutex<VirtioDriverLink>(VirtioDriverLink())
  private let writeCache: Atomic<Bool>
  private let initialWriteCache: Bool

  public init(_ configuration: VirtioBlockConfiguration, node: any BlockNode, pool: WorkerPool) {
    (self.configuration, self.node, self.pool) = (configuration, node, pool)
    name = configuration.name
    queues = (0..<max(1, configuration.queueCount)).map { _ in VirtQueue(maximumSize: configuration.queueSize)
    }
    initialWriteCache = configuration.writeCache ?? node.hasWriteCache
    writeCache = Atomic(initialWriteCache)
    var features =
      Feature.segmentMaximum | Feature.geometry | Feature.blockSize | Feature.flush | Feature.topology
    if node.isReadOnly { features |= Feature.readOnly }
    if configuration.hasWriteCacheControl { features |= Feature.configurableWriteCache }
    if queues.count > 1 { features |= Feature.multiQueue }
    if configuration.hasDiscard, !node.isReadOnly { features |= Feature.discard }
    if configuration.hasWriteZeroes, !node.isReadOnly { features |= Feature.writeZeroes }
    self.features = features
  }

  public func attach(_ link: VirtioDriverLink) { self.link.withLock { $0 = link } }

  /// Tells the driver that the node's size changed (`block_resize`).
  public func sizeChanged() { link.withLock { $0 }.configurationChanged() }

  // MARK: Configuration space

  private func configurationSpace() -> VirtioConfiguration {
    let sectors = node.byteCount / Self.sectorByteCount
    let logical = configuration.logicalBlockSize
    let physical = max(
      logical,
      configuration.physicalBlockSize > 0 ? configuration.physicalBlockSize : node.limits.physicalBlockSize)
    let cylinders = UInt16(clamping: min(max(sectors / (16 * 63), 2), 16383))
    var space = VirtioConfiguration()
    space.append(sectors)
    space.append(UInt32(0))  // size_max
    space.append(UInt32(max(1, Int(configuration.queueSize) - 2)))  // seg_max: header and status take two
    space.append(cylinders)
    space.append(UInt8(16))
    space.append(UInt8(63))
    space.append(UInt32(logical))
    space.append(UInt8((physical / logical).trailingZeroBitCount))
    space.append(UInt8(0))  // alignment offset
    space.append(UInt16(clamping: configuration.minimumIOSize / logical))
    space.append(UInt32(configuration.optimalIOSize / logical))
    space.append(UInt8(writeCache.load(ordering: .relaxed) ? 1 : 0))
    space.append(UInt8(0))
    space.append(UInt16(queues.count))
    space.append(configuration.hasDiscard ? Self.maximumRangeSectors : 0)
    space.append(UInt32(1))  // segments
    space.append(UInt32(max(logical, node.limits.discardAlignment) / 512))
    space.append(configuration.hasWriteZeroes ? Self.maximumRangeSectors : 0)
    space.append(UInt32(1))
    space.append(UInt8(1))  // write zeroes may unmap
    space.append([0, 0, 0])
    return space
  }

  public func readConfiguration(offset: Int, byteCount: Int) -> UInt64 {
    configurationSpace().read(offset: offset, byteCount: byteCount)
  }
  public func writeConfiguration(offset: Int, byteCount: Int, value: UInt64) {
    guard offset == Self.writeCacheOffset, byteCount == 1, configuration.hasWriteCacheControl else {
      GuestErrorTrace.report(name, "write to configuration offset \(offset)")
      return
    }
    writeCache.store(value & 1 != 0, ordering: .relaxed)
  }
  public func negotiated(features: UInt64) {
    // A driver that cannot flush gets durable writes [§5.2.6.2].
    if features & (Feature.flush | Feature.configurableWriteCache) == 0 {
      writeCache.store(false, ordering: .relaxed)
    }
  }

  // MARK: Life

  public func activate(features: UInt64) {}
  public func resetQueue(_ index: Int) { inFlight.waitUntilIdle() }
  public func reset() {
    inFlight.waitUntilIdle()
    writeCache.store(initialWriteCache, ordering: .relaxed)
  }

  public func notify(queue index: Int) {
    guard queues.indices.contains(index) else { return }
    // Counted, so that a reset on another vCPU waits for the parsing, too.
    inFlight.enter()
    defer { inFlight.leave() }
    let queue = queues[index]
    var batch: [Transfer] = []
    let hasMore = queue.process(limit: Int(queue.maximumSize)) { start($0, queue, &batch) }
    submit(batch)
    if hasMore {
      inFlight.enter()
      pool.submit { [self] in
        notify(queue: index)
        inFlight.leave()
      }
    }
  }

  // MARK: Requests

  /// A read or write that waits for the rest of its batch.
  private struct Transfer {
    var isWrite: Bool
    /// In bytes.
    var offset: UInt64
    var buffers: [IOBuffer]
    var byteCount: Int
    var completion: BlockNode.Completion
    var end: UInt64 { offset + UInt64(byteCount) }
  }
  // As many as QEMU merges; more gain nothing.
  private static let mergeLimit = 32

  /// Hands the transfers to the node, those of neighbouring ranges as one.
  private func submit(_ batch: [Transfer]) {
    let byteLimit = node.limits.maximumTransfer == 0 ? Int.max : node.limits.maximumTransfer
    var index = 0
    while index < batch.count {
      var merged = batch[index]
      let first = index
      index += 1
      if configuration.mergesRequests {
        while index < batch.count, index - first < Self.mergeLimit, batch[index].isWrite == merged.isWrite,
          batch[index].offset == merged.end,
          merged.byteCount + batch[index].byteCount <= byteLimit,
          merged.buffers.count + batch[index].buffers.count <= 1024
        {
          merged.buffers += batch[index].buffers
          merged.byteCount += batch[index].byteCount
          index += 1
        }
      }
      let parts = Array(batch[first..<index])
      if parts.count > 1 {
        merged.completion = { [self] error in
          // If one failed each learns its own fate.
          for part in parts { if error == nil { part.completion(nil) } else { transfer(part) } }
        }
      }
      transfer(merged)
    }
  }

  private func transfer(_ transfer: Transfer) {
    guard transfer.isWrite else {
      return node.read(offset: transfer.offset, into: transfer.buffers, completion: transfer.completion)
    }
    node.write(
      offset: transfer.offset, from: transfer.buffers,
      forceUnitAccess: !writeCache.load(ordering: .relaxed), completion: transfer.completion)
  }

  /// Starts a request; reads and writes join `batch`.
  private func start(_ chain: VirtQueueChain, _ queue: VirtQueue, _ batch: inout [Transfer]) {
    guard let type = chain.readable.load(0, as: UInt32.self),
      let sector = chain.readable.load(8, as: UInt64.self),
      chain.writable.byteCount >= 1
    else { return queue.fail("a request has no room for header or status") }
    inFlight.enter()
    let finish: @Sendable (UInt8) -> Void = { [inFlight] status in
      // The status byte is the last writable one [§5.2.6].
      chain.writable.store(chain.writable.byteCount - 1, status)
      queue.complete(chain, written: chain.writable.byteCount)
      inFlight.leave()
    }
    let policy = type == Request.read ? configuration.readErrors : configuration.writeErrors
    let transferred: BlockNode.Completion = { [name] error in
      if let error { GuestErrorTrace.report(name, error.description) }
      if policy == .ignore { return finish(Status.ok) }
      finish(error == nil ? Status.ok : error?.kind == .unsupported ? Status.unsupported : Status.ioError)
    }
    switch type {
    case Request.read:
      let count = chain.writable.byteCount - 1
      guard let offset = offset(sector, count) else { return finish(Status.ioError) }
      batch.append(
        Transfer(
          isWrite: false, offset: offset, buffers: chain.writable.ioBuffers(count: count), byteCount: count,
          completion: transferred))
    case Request.write:
      let count = chain.readable.byteCount - 16
      guard !node.isReadOnly, let offset = offset(sector, count) else { return finish(Status.ioError) }
      batch.append(
        Transfer(
          isWrite: true, offset: offset, buffers: chain.readable.ioBuffers(offset: 16, count: count),
          byteCount: count, completion: transferred))
    case Request.flush: node.flush(completion: transferred)
    case Request.getID:
      var serial = Array(configuration.serial.utf8.prefix(20))
      serial += [UInt8](repeating: 0, count: 20 - serial.count)
      serial.withUnsafeBytes {
        _ = chain.writable.copyIn(
          from: UnsafeRawBufferPointer(rebasing: $0.prefix(chain.writable.byteCount - 1)))
      }
      finish(Status.ok)
    case Request.discard, Request.writeZeroes:
      if let status = startRange(chain, type, transferred) { finish(status) }
    default: finish(Status.unsupported)
    }
  }

  /// The byte offset of a transfer; `nil` if it is no whole number of blocks or beyond the end.
  private func offset(_ sector: UInt64, _ count: Int) -> UInt64? {
    let (offset, overflow) = sector.multipliedReportingOverflow(by: Self.sectorByteCount)
    let mask = UInt64(configuration.logicalBlockSize - 1)
    guard !overflow, offset & mask == 0, UInt64(count) & mask == 0,
      node.contains(offset: offset, count: UInt64(count))
    else {
      GuestErrorTrace.report(
        name, "transfer of \(count) bytes at sector \(sector) is misaligned or beyond the end")
      return nil
    }
    return offset
  }

  /// Starts a discard or write-zeroes of one range; returns the status if it cannot.
  private func startRange(
    _ chain: VirtQueueChain, _ type: UInt32, _ completion: @escaping BlockNode.Completion
  ) -> UInt8? {
    guard !node.isReadOnly else { return Status.ioError }
    let isDiscard = type == Request.discard
    guard isDiscard ? configuration.hasDiscard : configuration.hasWriteZeroes else {
      return Status.unsupported
    }
    guard chain.readable.byteCount == 32, let sector = chain.readable.load(16, as: UInt64.self),
      let count = chain.readable.load(24, as: UInt32.self),
      let flags = chain.readable.load(28, as: UInt32.self)
    else { return Status.unsupported }
    guard flags & ~(isDiscard ? 0 : 1) == 0 else { return Status.unsupported }
    guard count <= Self.maximumRangeSectors, let offset = offset(sector, Int(count) * 512) else {
      return Status.ioError
    }
    let byteCount = UInt64(count) * Self.sectorByteCount
    if isDiscard {
      node.discard(offset: offset, byteCount: byteCount, completion: completion)
    } else {
      node.writeZeroes(offset: offset, byteCount: byteCount, mayUnmap: flags & 1 != 0, completion: completion)
    }
    return nil
  }
}
