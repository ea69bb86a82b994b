import ApusHost
import ApusRing
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

  public var isDirect: Bool { self == .none || self == .directsync }
  public var isWriteThrough: Bool { self == .writethrough || self == .directsync }
}

/// How requests reach the host (`aio=`).
public enum FileRequestMode: String, Sendable, CaseIterable {
  /// Calls that block, on threads of whoever has many at once.
  case threads
  /// The kernel's asynchronous interface as the machine's disks have it, past the page cache only.
  case native
  case ioUring = "io_uring"
}

/// A file or block device whose bytes are the node's bytes (`file`, `host_device`).
///
/// Any thread. A regular file grows when something is written behind its end. With a direct cache mode, requests whose
/// offset, length or memory is not aligned go through a second, cached descriptor. io_uring serves `aio=io_uring` and
/// `aio=native`. Not modelled: SCSI pass-through, persistent reservations.
public final class FileNode: ImageNode {
  public struct Configuration: Sendable {
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
    public var requestMode = FileRequestMode.threads
    public init(path: String) { self.path = path }
  }

  public var driverName: String { file.kind == .blockDevice ? "host_device" : "file" }
  public let isReadOnly: Bool
  public var hasWriteCache: Bool { !configuration.cache.isWriteThrough }
  public var byteCount: UInt64 { size.load(ordering: .relaxed) }
  public var path: String { configuration.path }
  public var isZeroInitialized: Bool { file.kind == .regular }
  /// What aligned requests are multiples of, in bytes; 1 without direct I/O.
  public let directAlignment: Int
  public let configuration: Configuration
  public let file: HostFile
  // For direct modes: the same file without O_DIRECT, for requests that are not aligned.
  private let cachedFile: HostFile?
  private let size: Atomic<UInt64>
  private let ring: IORing?
  private let canZeroRange = Atomic<Bool>(true)

  public init(_ configuration: Configuration) throws(BlockError) {
    let (file, isReadOnly) = try Self.open(configuration)
    guard file.kind != .other else {
      throw BlockError(
        .invalid, "cannot use '\(configuration.path)' as a disk: it is no regular file or block device")
    }
    guard configuration.requestMode != .native || configuration.cache.isDirect else {
      throw BlockError(
        .invalid,
        "'\(configuration.path)': aio=native needs a cache mode past the page cache: none or directsync")
    }
    if configuration.isLocked {
      try ImageLock.acquire(file, writable: !isReadOnly, sharesWrites: configuration.sharesWrites)
    }
    do throws(HostError) {
      size = Atomic(try file.byteCount())
      ring = configuration.requestMode == .threads ? nil : try IORing()
      cachedFile =
        configuration.cache.isDirect
        ? try HostFile(path: configuration.path, isReadOnly ? [] : .writable) : nil
    } catch {
      throw BlockError(error)
    }
    directAlignment = configuration.cache.isDirect ? Self.probeAlignment(file) : 1
    (self.configuration, self.file, self.isReadOnly) = (configuration, file, isReadOnly)
  }

  /// Makes an empty file, or empties the one that is there. Fails if someone uses it.
  ///
  /// - Parameter extentHint: how large the file's extents should be, in bytes.
  public static func create(_ path: String, extentHint: UInt32? = nil) throws(BlockError) {
    do throws(HostError) {
      let file = try HostFile(path: path, [.writable, .create])
      if file.kind == .blockDevice { return }
      try ImageLock.acquireForCreation(file)
      // Truncating what is empty already has some file systems write everything out when the file is closed.
      if try file.byteCount() > 0 { try file.truncate(0) }
      if let extentHint { file.hintExtents(extentHint) }
    } catch {
      throw BlockError(error)
    }
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
    let buffer = HostBuffer(byteCount: 4096)
    for length in [512, 1024, 2048] {
      do throws(HostError) {
        try file.read(offset: 0, into: [buffer.io(0, length)])
        return length
      } catch { continue }
    }
    return 4096
  }

  /// Runs a host call and names its failure as the block layer does.
  private func checked<R>(_ body: () throws(HostError) -> R) throws(BlockError) -> R {
    do throws(HostError) { return try body() } catch { throw BlockError(error) }
  }

  // MARK: Requests

  private func fileFor(_ offset: UInt64, _ buffers: [IOBuffer]) -> HostFile {
    guard let cachedFile else { return file }
    let mask = UInt(directAlignment - 1)
    let isAligned =
      UInt(truncatingIfNeeded: offset) & mask == 0
      && buffers.allSatisfy { UInt(bitPattern: $0.base) & mask == 0 && UInt($0.byteCount) & mask == 0 }
    return isAligned ? file : cachedFile
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let file = fileFor(offset, buffers)
    try checked { () throws(HostError) in try file.read(offset: offset, into: buffers) }
  }

  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    if isReadOnly { throw readOnlyError }
    let file = fileFor(offset, buffers)
    try checked { () throws(HostError) in
      try file.write(offset: offset, from: buffers)
      if configuration.cache.isWriteThrough { try file.synchronizeData() }
    }
    grow(to: offset + UInt64(buffers.totalByteCount))
  }

  public var transferStart: TransferStart { ring == nil ? .unsupported : .immediate }

  public func startTransfer(_ transfer: NodeTransfer) -> Bool {
    // A write that has to be durable takes two steps.
    guard let ring, !transfer.isWrite || !(isReadOnly || configuration.cache.isWriteThrough) else {
      return false
    }
    let chosen = fileFor(transfer.offset, transfer.buffers)
    let total = transfer.buffers.totalByteCount
    return ring.start(
      isWrite: transfer.isWrite, chosen.descriptor, offset: transfer.offset, transfer.buffers
    ) { [self] count in
      transfer.completion(finish(transfer, chosen, count, total))
    }
  }
  public func submitTransfers() { ring?.submit() }

  /// What a transfer came to; does the rest of one that stopped early, which reads do at the file's end.
  private func finish(_ transfer: NodeTransfer, _ file: HostFile, _ count: Int, _ total: Int) -> BlockError? {
    do throws(BlockError) {
      if count < 0, count != -4, count != -11 {
        throw BlockError(
          HostError(
            "\(transfer.isWrite ? "write" : "read") at offset 0x\(String(transfer.offset, radix: 16)) of",
            path,
            errno: Int32(-count)))
      }
      let done = max(0, count)
      if done < total {
        let rest = transfer.buffers.slice(offset: done, count: total - done)
        if transfer.isWrite {
          try write(at: transfer.offset + UInt64(done), from: rest)
        } else {
          try read(at: transfer.offset + UInt64(done), into: rest)
        }
      }
      if transfer.isWrite { grow(to: transfer.offset + UInt64(total)) }
      return nil
    } catch { return error }
  }

  private func grow(to end: UInt64) {
    var known = size.load(ordering: .relaxed)
    while known < end {
      let (done, original) = size.compareExchange(expected: known, desired: end, ordering: .relaxed)
      if done { return }
      known = original
    }
  }

  public func flush() throws(BlockError) {
    if configuration.cache == .unsafe || isReadOnly { return }
    try checked { () throws(HostError) in try file.synchronizeData() }
  }

  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    if isReadOnly { throw readOnlyError }
    guard configuration.unmapsDiscards, byteCount > 0 else { return }
    try checked { () throws(HostError) in
      do throws(HostError) {
        try file.discard(offset: offset, byteCount: byteCount)
      } catch {
        // EOPNOTSUPP, ENOTTY: a discard is a hint; a host that has none ignores it.
        if error.errno != 95, error.errno != 25 { throw error }
      }
    }
  }

  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    if isReadOnly { throw readOnlyError }
    guard byteCount > 0 else { return }
    try checked { () throws(HostError) in
      try zero(offset, byteCount, mayUnmap && configuration.unmapsDiscards && file.kind == .regular)
      if configuration.cache.isWriteThrough { try file.synchronizeData() }
    }
  }

  private func zero(_ offset: UInt64, _ byteCount: UInt64, _ unmaps: Bool) throws(HostError) {
    let end = offset + byteCount
    if file.kind == .regular, end > self.byteCount {
      // What lies behind the end is made by growing the file.
      let old = self.byteCount
      try file.truncate(end)
      grow(to: end)
      if offset >= old { return }
      return try zero(offset, old - offset, unmaps)
    }
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
    let chunk = HostBuffer(byteCount: Int(min(byteCount, 1 << 20)))
    var done: UInt64 = 0
    while done < byteCount {
      let buffers = [chunk.io(0, Int(min(byteCount - done, UInt64(chunk.byteCount))))]
      try fileFor(offset + done, buffers).write(offset: offset + done, from: buffers)
      done += UInt64(buffers[0].byteCount)
    }
  }

  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    let size = self.byteCount
    guard offset < size else {
      return BlockStatus(
        byteCount: byteCount, isZero: true, isData: false, isAllocated: true, hostOffset: offset)
    }
    guard let extent = file.extent(at: offset, fileByteCount: size) else {
      return BlockStatus(
        byteCount: min(byteCount, size - offset), isZero: false, isData: true, isAllocated: true,
        hostOffset: offset)
    }
    return BlockStatus(
      byteCount: min(byteCount, extent.end - offset), isZero: !extent.isData, isData: extent.isData,
      isAllocated: true, hostOffset: offset)
  }

  public var allocatedByteCount: UInt64 {
    do throws(HostError) { return try file.allocatedByteCount() } catch { return 0 }
  }

  public func truncate(_ byteCount: UInt64, preallocation: Preallocation) throws(BlockError) {
    if isReadOnly { throw readOnlyError }
    guard file.kind == .regular else {
      if byteCount <= self.byteCount, preallocation == .off { return }
      throw BlockError(.unsupported, "cannot resize the block device '\(path)'")
    }
    let old = self.byteCount
    if byteCount == old, preallocation == .off { return }
    try checked { () throws(HostError) in
      switch preallocation {
      case .off: try file.truncate(byteCount)
      case .metadata: throw HostError("use preallocation=metadata on", path, errno: 95)
      case .falloc:
        if byteCount > old {
          try file.reserve(offset: old, byteCount: byteCount - old)
        } else {
          try file.truncate(byteCount)
        }
      case .full:
        try file.truncate(byteCount)
        let chunk = HostBuffer(byteCount: 1 << 20)
        var position = old
        while position < byteCount {
          let count = Int(min(UInt64(chunk.byteCount), byteCount - position))
          try (cachedFile ?? file).write(offset: position, from: [chunk.io(0, count)])
          position += UInt64(count)
        }
      }
    }
    size.store(byteCount, ordering: .relaxed)
  }

  private var readOnlyError: BlockError { BlockError(.readOnly, "the image '\(path)' is open read-only") }

  public func close() throws(BlockError) {
    defer { if configuration.isLocked { ImageLock.release(file) } }
    ring?.stop()
    try flush()
  }
}
