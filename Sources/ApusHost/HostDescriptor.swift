import CApusHost
import Glibc

/// What a non-blocking read or write came to.
public enum IOResult: Equatable, Sendable {
  /// So many bytes were moved; 0 from a read is the end of the stream.
  case transferred(Int)
  /// Nothing can be moved now; wait for readiness.
  case wouldBlock
  case failed(HostError)
}

/// Descriptors and whole files. Any thread.
public enum HostDescriptor {
  /// How to open a file.
  public enum Mode: Sendable {
    case read
    case readWrite
    /// Created if missing, emptied if there.
    case create
    /// Created if missing, written at its end.
    case append
  }

  /// Opens `path`; the caller closes the descriptor.
  public static func open(_ path: String, _ mode: Mode) throws(HostError) -> Int32 {
    let flags: Int32
    switch mode {
    case .read: flags = O_RDONLY
    case .readWrite: flags = O_RDWR
    case .create: flags = O_WRONLY | O_CREAT | O_TRUNC
    case .append: flags = O_WRONLY | O_CREAT | O_APPEND
    }
    let descriptor = apus_open(path, flags | O_CLOEXEC, 0o666)
    guard descriptor >= 0 else { throw .last("open", path) }
    return descriptor
  }

  public static func close(_ descriptor: Int32) { _ = Glibc.close(descriptor) }

  /// The file's bytes. Refused with EFBIG above `limit` bytes, and with EISDIR for a directory.
  public static func contents(_ path: String, limit: Int = 1 << 32) throws(HostError) -> [UInt8] {
    let descriptor = try open(path, .read)
    defer { close(descriptor) }
    var information = stat()
    guard fstat(descriptor, &information) == 0 else { throw .last("examine", path) }
    if information.st_mode & S_IFMT == S_IFDIR { throw HostError("read", path, errno: EISDIR) }
    guard Int(information.st_size) <= limit else { throw HostError("read", path, errno: EFBIG) }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(information.st_size) + 1)
    var failure: HostError?
    while true {
      // Room for what the size promises, then page by page: the file may grow, or be a pipe without a size.
      let room = max(4096, Int(information.st_size) - bytes.count)
      let chunk = [UInt8](unsafeUninitializedCapacity: room) { buffer, count in
        let result = Glibc.read(descriptor, buffer.baseAddress!, room)
        if result < 0 { failure = .last("read", path) }
        count = max(0, result)
      }
      if let failure { throw failure }
      if chunk.isEmpty { return bytes }
      if bytes.isEmpty { bytes = chunk } else { bytes += chunk }
      guard bytes.count <= limit else { throw HostError("read", path, errno: EFBIG) }
    }
  }

  /// Replaces the file's content.
  public static func replace(_ path: String, with bytes: [UInt8]) throws(HostError) {
    let descriptor = try open(path, .create)
    defer { close(descriptor) }
    try writeAll(descriptor, bytes, path: path)
  }

  /// Writes all of `bytes` at the descriptor's position, waiting as long as it takes.
  public static func writeAll(_ descriptor: Int32, _ bytes: [UInt8], path: String = "") throws(HostError) {
    var offset = 0
    while offset < bytes.count {
      let result = bytes.withUnsafeBytes {
        Glibc.write(descriptor, $0.baseAddress! + offset, bytes.count - offset)
      }
      if result < 0 {
        if errno == EINTR { continue }
        throw .last("write", path)
      }
      offset += result
    }
  }

  /// Writes `bytes` at `offset` of the file.
  public static func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64)
    throws(HostError)
  {
    var done = 0
    while done < bytes.count {
      let result = pwrite(descriptor, bytes.baseAddress! + done, bytes.count - done, Int(offset) + done)
      if result < 0 {
        if errno == EINTR { continue }
        throw .last("write \(bytes.count) bytes at offset \(offset)")
      }
      done += result
    }
  }

  /// The size of an open file, in bytes.
  public static func byteCount(_ descriptor: Int32) throws(HostError) -> UInt64 {
    var information = stat()
    guard fstat(descriptor, &information) == 0 else { throw .last("examine") }
    return UInt64(information.st_size)
  }

  public static func remove(_ path: String) { _ = unlink(path) }
  public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  // MARK: Streams

  public static func setNonBlocking(_ descriptor: Int32) {
    let flags = apus_fcntl(descriptor, F_GETFL, 0)
    if flags >= 0 { _ = apus_fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) }
  }

  /// Whether the descriptor can be read or written without waiting (a hang-up counts as ready).
  ///
  /// For descriptors that are shared with other processes and so must stay in blocking mode: a ready pipe takes
  /// 4096 bytes.
  public static func isReady(_ descriptor: Int32, forWriting: Bool) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(forWriting ? POLLOUT : POLLIN), revents: 0)
    return poll(&entry, 1, 0) > 0
  }

  /// Waits as long as it takes until there is something to read (or accept).
  public static func waitUntilReadable(_ descriptor: Int32) {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    while poll(&entry, 1, -1) < 0 && errno == EINTR {}
  }

  /// Opens a terminal without making it the controlling one.
  public static func openTerminal(_ path: String) throws(HostError) -> Int32 {
    let descriptor = apus_open(path, O_RDWR | O_NOCTTY | O_CLOEXEC, 0)
    guard descriptor >= 0 else { throw .last("open", path) }
    return descriptor
  }

  /// Reads up to `limit` bytes of what is there.
  public static func readSome(_ descriptor: Int32, limit: Int, into bytes: inout [UInt8]) -> IOResult {
    bytes.removeAll(keepingCapacity: true)
    var result = 0
    let chunk = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
      repeat {
        result = Glibc.read(descriptor, buffer.baseAddress!, limit)
      } while result < 0 && errno == EINTR
      count = max(0, result)
    }
    if result >= 0 {
      bytes = chunk
      return .transferred(result)
    }
    return errno == EAGAIN ? .wouldBlock : .failed(.last("read"))
  }

  /// Writes what the host takes now.
  public static func writeSome(_ descriptor: Int32, _ bytes: ArraySlice<UInt8>) -> IOResult {
    guard !bytes.isEmpty else { return .transferred(0) }
    var result = 0
    bytes.withUnsafeBytes { buffer in
      // Sockets must not raise SIGPIPE; everything else has no `send`.
      repeat {
        result = send(descriptor, buffer.baseAddress!, buffer.count, Int32(MSG_NOSIGNAL))
        if result < 0 && errno == ENOTSOCK {
          result = Glibc.write(descriptor, buffer.baseAddress!, buffer.count)
        }
      } while result < 0 && errno == EINTR
    }
    if result >= 0 { return .transferred(result) }
    return errno == EAGAIN ? .wouldBlock : .failed(.last("write"))
  }
}
