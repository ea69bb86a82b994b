import ApusHost
import Synchronization

/// How the host's caches are used (`cache=`).
public enum BlockCacheMode: String, Sendable, CaseIterable {
  /// Host page cache, flushed when the guest says so.
  case writeback
  /// Past the host page cache, flushed when the guest says so.
  case none
  /// Host page cache; each write is durable before it completes.
  case writethrough
  /// Past the host page cache; each write is durable before it completes.
  case directsync
  /// Host page cache; flushes are ignored.
  case unsafe

  var isDirect: Bool { self == .none || self == .directsync }
  var isWriteThrough: Bool { self == .writethrough || self == .directsync }
}

/// A file or block device whose bytes are the disk's bytes.
///
/// Any thread. Transfers run on the pool's threads with preadv/pwritev. With a direct cache mode, requests whose
/// offset, length or memory is not aligned go through a second, cached descriptor. Not modelled: io_uring, Linux AIO,
/// SCSI pass-through, persistent reservations.
public final class RawFileNode: BlockNode {
  public struct Configuration: Sendable {
    public var name = ""
    public var path: String
    public var isReadOnly = false
    /// Falls back to read-only when the host does not allow writing.
    public var isAutoReadOnly = false
    public var cache = BlockCacheMode.writeback
    /// Whether discards give host blocks back (`discard=unmap`).
    public var unmapsDiscards = false
    /// Whether other users of the image are detected (`locking=`).
    public var isLocked = true
    /// Others may write at the same time (`share-rw=on`).
    public var sharesWrites = false
    public init(path: String) { self.path = path }
  }

  /// What files share that name no pool of their own.
  public static let sharedPool = WorkerPool("block", threadLimit: 8)

  public let name: String
  public var driverName: String { file.kind == .blockDevice ? "host_device" : "file" }
  public let isReadOnly: Bool
  public let limits: BlockLimits
  public var hasWriteCache: Bool { !configuration.cache.isWriteThrough }
  public var byteCount: UInt64 { size.load(ordering: .relaxed) }
  public var path: String { configuration.path }

  private let configuration: Configuration
  private let file: HostFile
  // For direct modes: the same file without O_DIRECT, for requests that are not aligned.
  private let cachedFile: HostFile?
  private let directAlignment: Int
  private let size: Atomic<UInt64>
  private let pool: WorkerPool
  private let inFlight = InFlightCounter()
  private let canZeroRange = Atomic<Bool>(true)

  public init(_ configuration: Configuration, pool: WorkerPool = RawFileNode.sharedPool) throws(BlockError) {
    let (file, isReadOnly) = try Self.open(configuration)
    guard file.kind != .other else {
      throw BlockError(
        .invalid, "cannot use '\(configuration.path)' as a disk: it is no regular file or block device")
    }
    if configuration.isLocked {
      try ImageLock.acquire(file, writable: !isReadOnly, sharesWrites: configuration.sharesWrites)
    }
    do throws(HostError) {
      size = Atomic((try file.byteCount() + 511) & ~511)
      cachedFile =
        configuration.cache.isDirect
        ? try HostFile(path: configuration.path, isReadOnly ? [] : .writable) : nil
    } catch {
      throw BlockError(error)
    }
    directAlignment = configuration.cache.isDirect ? Self.probeAlignment(file) : 1
    (self.configuration, self.file, self.isReadOnly, self.pool) = (configuration, file, isReadOnly, pool)
    name = configuration.name
    var limits = BlockLimits()
    limits.requestAlignment = max(512, directAlignment)
    limits.discardAlignment = configuration.unmapsDiscards ? 4096 : 0
    self.limits = limits
  }

  private static func open(_ configuration: Configuration) throws(BlockError) -> (HostFile, isReadOnly: Bool)
  {
    let direct: HostFile.Options = configuration.cache.isDirect ? .direct : []
    do throws(HostError) {
      if configuration.isReadOnly { return (try HostFile(path: configuration.path, direct), true) }
      return (try HostFile(path: configuration.path, [direct, .writable]), false)
    } catch {
      // EACCES, EPERM, EROFS
      if configuration.isAutoReadOnly, !configuration.isReadOnly, [13, 1, 30].contains(error.errno) {
        do throws(HostError) {
          return (try HostFile(path: configuration.path, direct), true)
        } catch {
          throw BlockError(error)
        }
      }
      if error.errno == 22, configuration.cache.isDirect {
        throw BlockError(
          .unsupported,
          "cannot open '\(configuration.path)' with cache=\(configuration.cache.rawValue): the file system has no direct "
            + "I/O; use cache=writeback")
      }
      throw BlockError(error)
    }
  }

  /// The smallest length that a direct read accepts, in bytes.
  private static func probeAlignment(_ file: HostFile) -> Int {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { buffer.deallocate() }
    for length in [512, 1024, 2048] {
      do throws(HostError) {
        try file.read(offset: 0, into: [IOBuffer(UnsafeMutableRawBufferPointer(rebasing: buffer[..<length]))])
        return length
      } catch { continue }
    }
    return 4096
  }

  // MARK: Requests

  private func submit(
    _ completion: @escaping Completion, _ body: @escaping @Sendable () throws(HostError) -> Void
  ) {
    inFlight.enter()
    pool.submit { [self] in
      var failure: BlockError?
      do throws(HostError) { try body() } catch { failure = BlockError(error) }
      completion(failure)
      inFlight.leave()
    }
  }

  private func fileFor(_ offset: UInt64, _ buffers: [IOBuffer]) -> HostFile {
    guard let cachedFile else { return file }
    let mask = UInt(directAlignment - 1)
    let isAligned =
      UInt(truncatingIfNeeded: offset) & mask == 0
      && buffers.allSatisfy { UInt(bitPattern: $0.base) & mask == 0 && UInt($0.byteCount) & mask == 0 }
    return isAligned ? file : cachedFile
  }

  public func read(offset: UInt64, into buffers: [IOBuffer], completion: @escaping Completion) {
    if let error = rangeError(offset, UInt64(buffers.totalByteCount)) { return completion(error) }
    let file = fileFor(offset, buffers)
    submit(completion) { () throws(HostError) in try file.read(offset: offset, into: buffers) }
  }

  public func write(
    offset: UInt64, from buffers: [IOBuffer], forceUnitAccess: Bool, completion: @escaping Completion
  ) {
    if let error = writeError(offset, UInt64(buffers.totalByteCount)) { return completion(error) }
    let file = fileFor(offset, buffers)
    let isDurable = (forceUnitAccess || configuration.cache.isWriteThrough) && configuration.cache != .unsafe
    submit(completion) { () throws(HostError) in
      try file.write(offset: offset, from: buffers)
      if isDurable { try file.synchronizeData() }
    }
  }

  public func flush(completion: @escaping Completion) {
    if configuration.cache == .unsafe || isReadOnly { return completion(nil) }
    submit(completion) { [file] () throws(HostError) in try file.synchronizeData() }
  }

  public func discard(offset: UInt64, byteCount: UInt64, completion: @escaping Completion) {
    if let error = writeError(offset, byteCount) { return completion(error) }
    guard configuration.unmapsDiscards, byteCount > 0 else { return completion(nil) }
    submit(completion) { [file] () throws(HostError) in
      do throws(HostError) {
        try file.discard(offset: offset, byteCount: byteCount)
      } catch {
        // EOPNOTSUPP, ENOTTY: a discard is a hint; a host that has none ignores it.
        if error.errno != 95, error.errno != 25 { throw error }
      }
    }
  }

  public func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool, completion: @escaping Completion)
  {
    if let error = writeError(offset, byteCount) { return completion(error) }
    guard byteCount > 0 else { return completion(nil) }
    let unmaps = mayUnmap && configuration.unmapsDiscards && file.kind == .regular
    let isDurable = configuration.cache.isWriteThrough
    submit(completion) { [self] () throws(HostError) in
      try zero(offset, byteCount, unmaps)
      if isDurable { try file.synchronizeData() }
    }
  }

  private func zero(_ offset: UInt64, _ byteCount: UInt64, _ unmaps: Bool) throws(HostError) {
    // Ranges up to the file's end only: the rest of the last sector exists in `byteCount` but not in the file.
    if canZeroRange.load(ordering: .relaxed) {
      do throws(HostError) {
        if unmaps {
          try file.discard(offset: offset, byteCount: byteCount)
        } else {
          try file.zeroRange(offset: offset, byteCount: byteCount)
        }
        return
      } catch {
        guard [95, 25, 22].contains(error.errno) else { throw error }
        canZeroRange.store(false, ordering: .relaxed)
      }
    }
    let chunk = UnsafeMutableRawBufferPointer.allocate(
      byteCount: Int(min(byteCount, 1 << 20)), alignment: 4096)
    defer { chunk.deallocate() }
    IOBuffer(chunk).clear()
    var done: UInt64 = 0
    while done < byteCount {
      let count = Int(min(byteCount - done, UInt64(chunk.count)))
      let buffers = [IOBuffer(UnsafeMutableRawBufferPointer(rebasing: chunk[..<count]))]
      try fileFor(offset + done, buffers).write(offset: offset + done, from: buffers)
      done += UInt64(count)
    }
  }

  private func writeError(_ offset: UInt64, _ count: UInt64) -> BlockError? {
    if isReadOnly { return BlockError(.readOnly, "the image '\(configuration.path)' is open read-only") }
    return rangeError(offset, count)
  }

  public func close() {
    inFlight.waitUntilIdle()
    guard !isReadOnly, configuration.cache != .unsafe else { return }
    do throws(HostError) { try file.synchronizeData() } catch { writeStandardError("\(error)\n") }
  }
}
