import CApusHost
import Glibc

/// An open file or block device; closed at the end of its life.
///
/// Any thread: all transfers carry their offset. Calls block.
public final class HostFile: Sendable {
  public enum Kind: Sendable { case regular, blockDevice, other }
  public struct Options: OptionSet, Sendable {
    public let rawValue: Int
    public init(rawValue: Int) { self.rawValue = rawValue }
    public static let writable = Options(rawValue: 1)
    /// Past the host's page cache; buffers, offsets and lengths must be aligned.
    public static let direct = Options(rawValue: 2)
    public static let create = Options(rawValue: 4)
    public static let truncate = Options(rawValue: 8)
  }

  public let path: String
  public let kind: Kind
  public let descriptor: Int32

  public init(path: String, _ options: Options) throws(HostError) {
    var flags = O_CLOEXEC | O_NOCTTY | (options.contains(.writable) ? O_RDWR : O_RDONLY)
    if options.contains(.direct) { flags |= apus_O_DIRECT }
    if options.contains(.create) { flags |= O_CREAT }
    if options.contains(.truncate) { flags |= O_TRUNC }
    descriptor = apus_open(path, flags, 0o644)
    guard descriptor >= 0 else { throw .last("open", path) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else {
      let error = HostError.last("examine", path)
      close(descriptor)
      throw error
    }
    self.path = path
    switch status.st_mode & S_IFMT {
    case S_IFREG: kind = .regular
    case S_IFBLK: kind = .blockDevice
    case S_IFDIR:
      close(descriptor)
      throw HostError("open", path, errno: EISDIR)
    default: kind = .other
    }
  }

  deinit { close(descriptor) }

  /// Present size, in bytes.
  public func byteCount() throws(HostError) -> UInt64 {
    if kind == .blockDevice {
      let size = apus_block_device_size(descriptor)
      guard size >= 0 else { throw .last("find the size of", path) }
      return UInt64(size)
    }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw .last("examine", path) }
    return UInt64(max(0, status.st_size))
  }

  public func truncate(_ byteCount: UInt64) throws(HostError) {
    guard ftruncate(descriptor, Int(clamping: byteCount)) == 0 else { throw .last("resize", path) }
  }

  /// Reads all of `buffers` from `offset` on; what lies behind the file's end reads as zeros.
  public func read(offset: UInt64, into buffers: [IOBuffer]) throws(HostError) {
    try transfer(offset, buffers, isWrite: false)
  }

  /// Writes all of `buffers` at `offset`.
  public func write(offset: UInt64, from buffers: [IOBuffer]) throws(HostError) {
    try transfer(offset, buffers, isWrite: true)
  }

  private func transfer(_ offset: UInt64, _ buffers: [IOBuffer], isWrite: Bool) throws(HostError) {
    var position = off_t(clamping: offset)
    var index = 0
    var skip = 0  // bytes of buffers[index] that are through
    while index < buffers.count {
      if buffers[index].byteCount == skip {
        (index, skip) = (index + 1, 0)
        continue
      }
      let count: Int
      if index == buffers.count - 1 {
        let (base, length) = (buffers[index].base + skip, buffers[index].byteCount - skip)
        count =
          isWrite ? pwrite(descriptor, base, length, position) : pread(descriptor, base, length, position)
      } else {
        var vectors = buffers[index..<min(index + 1024, buffers.count)].map {
          iovec(iov_base: $0.base, iov_len: $0.byteCount)
        }
        vectors[0].iov_base += skip
        vectors[0].iov_len -= skip
        let length = Int32(vectors.count)
        count =
          isWrite
          ? pwritev(descriptor, vectors, length, position) : preadv(descriptor, vectors, length, position)
      }
      if count < 0 {
        if errno == EINTR { continue }
        throw .last("\(isWrite ? "write" : "read") at offset 0x\(String(position, radix: 16)) of", path)
      }
      if count == 0 {
        guard !isWrite else { throw HostError("write", path, errno: ENOSPC) }
        memset(buffers[index].base + skip, 0, buffers[index].byteCount - skip)
        (index, skip) = (index + 1, 0)
        continue
      }
      position += off_t(count)
      var left = count
      while left > 0 {
        let step = min(left, buffers[index].byteCount - skip)
        skip += step
        left -= step
        if skip == buffers[index].byteCount { (index, skip) = (index + 1, 0) }
      }
    }
  }

  /// Makes written data durable (`fdatasync`).
  public func synchronizeData() throws(HostError) {
    while fdatasync(descriptor) != 0 {
      if errno != EINTR { throw .last("flush", path) }
    }
  }

  /// Gives the blocks of a range back; it reads as zeros afterwards on files, as anything on block devices.
  public func discard(offset: UInt64, byteCount: UInt64) throws(HostError) {
    if kind == .blockDevice {
      guard apus_block_range(descriptor, 0, offset, byteCount) == 0 else { throw .last("discard", path) }
      return
    }
    try allocate(
      apus_FALLOC_FL_PUNCH_HOLE | apus_FALLOC_FL_KEEP_SIZE, offset, byteCount, "discard a range of")
  }

  /// Makes a range read as zeros without transferring them; fails with EOPNOTSUPP where the host cannot.
  public func zeroRange(offset: UInt64, byteCount: UInt64) throws(HostError) {
    if kind == .blockDevice {
      guard apus_block_range(descriptor, 1, offset, byteCount) == 0 else { throw .last("zero", path) }
      return
    }
    try allocate(apus_FALLOC_FL_ZERO_RANGE | apus_FALLOC_FL_KEEP_SIZE, offset, byteCount, "zero a range of")
  }

  private func allocate(_ mode: Int32, _ offset: UInt64, _ byteCount: UInt64, _ operation: String)
    throws(HostError)
  {
    while apus_fallocate(descriptor, mode, Int64(clamping: offset), Int64(clamping: byteCount)) != 0 {
      if errno != EINTR { throw .last(operation, path) }
    }
  }

  // MARK: Advisory locks (open file description locks: they belong to this object, not to the process)

  /// Takes a shared lock on one byte.
  public func lockShared(byte: Int64) throws(HostError) {
    guard apus_ofd_lock(descriptor, byte, 0) == 0 else { throw .last("lock", path) }
  }
  public func unlock(byte: Int64) { _ = apus_ofd_lock(descriptor, byte, 2) }
  /// Whether someone else holds a lock on a byte; false where the file system knows no locks.
  public func isLockedByOther(byte: Int64) -> Bool { apus_ofd_lock(descriptor, byte, 3) == 1 }
}

/// Removes a file; false if it was not there or may not go.
@discardableResult
public func removeFile(_ path: String) -> Bool { unlink(path) == 0 }
