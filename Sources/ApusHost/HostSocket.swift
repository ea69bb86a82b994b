import CApusHost
import Glibc

/// Where a stream socket listens or connects to.
public enum HostSocketAddress: Sendable, Equatable, CustomStringConvertible {
  /// Host name or numeric address (empty: any address when listening, loopback when connecting) and port.
  case inet(host: String, port: UInt16)
  case unix(path: String)

  public var description: String {
    switch self {
    case .inet(let host, let port): return "\(host):\(port)"
    case .unix(let path): return path
    }
  }
}

/// What a non-blocking transfer came to.
public enum HostTransfer: Sendable, Equatable {
  case count(Int)
  /// Nothing can be transferred now; wait for readiness.
  case wouldBlock
  /// The other side closed the connection.
  case ended
  case failed(HostError)
}

/// Socket calls on plain descriptors, which the caller owns. All sockets are non-blocking and close-on-exec.
public enum HostSocket {
  /// Looks `host` up; may block on the name service.
  private static func resolve(_ host: String, _ port: UInt16, type: Int32, passive: Bool) throws(HostError)
    -> [(family: Int32, address: [UInt8])]
  {
    var hints = addrinfo()
    hints.ai_family = AF_UNSPEC
    hints.ai_socktype = type
    hints.ai_flags = passive ? AI_PASSIVE : 0
    var list: UnsafeMutablePointer<addrinfo>?
    let status = getaddrinfo(host.isEmpty ? nil : host, String(port), &hints, &list)
    guard status == 0 else { throw HostError("resolve", host, errno: EHOSTUNREACH) }
    defer { freeaddrinfo(list) }
    var result: [(Int32, [UInt8])] = []
    var next = list
    while let entry = next {
      if let address = entry.pointee.ai_addr {
        let raw = UnsafeRawBufferPointer(start: address, count: Int(entry.pointee.ai_addrlen))
        result.append((entry.pointee.ai_family, [UInt8](raw)))
      }
      next = entry.pointee.ai_next
    }
    return result
  }

  private static func unixAddress(_ path: String) throws(HostError) -> [UInt8] {
    var address = sockaddr_un()
    let bytes = [UInt8](path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
      throw HostError("use the socket path", path, errno: ENAMETOOLONG)
    }
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    return withUnsafeBytes(of: address) { [UInt8]($0) }
  }

  private static func candidates(_ address: HostSocketAddress, type: Int32, passive: Bool) throws(HostError)
    -> [(family: Int32, address: [UInt8])]
  {
    switch address {
    case .inet(let host, let port): return try resolve(host, port, type: type, passive: passive)
    case .unix(let path): return [(AF_UNIX, try unixAddress(path))]
    }
  }

  private static func withAddress<R>(_ bytes: [UInt8], _ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R
  {
    var storage = sockaddr_storage()
    return withUnsafeMutableBytes(of: &storage) { raw in
      raw.copyBytes(from: bytes.prefix(raw.count))
      return raw.withMemoryRebound(to: sockaddr.self) {
        body(UnsafePointer($0.baseAddress.unsafelyUnwrapped), socklen_t(bytes.count))
      }
    }
  }

  private static let streamType = Int32(SOCK_STREAM.rawValue)
  private static let datagramType = Int32(SOCK_DGRAM.rawValue)
  private static let typeFlags = Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)

  private static func tryEach(
    _ address: HostSocketAddress, type: Int32, passive: Bool, _ operation: String, flags: Int32 = typeFlags,
    _ body: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Bool
  ) throws(HostError) -> Int32 {
    var failure = HostError(operation, address.description, errno: EADDRNOTAVAIL)
    for candidate in try candidates(address, type: type, passive: passive) {
      let descriptor = socket(candidate.family, type | flags, 0)
      guard descriptor >= 0 else {
        failure = .last(operation, address.description)
        continue
      }
      if withAddress(candidate.address, { body(descriptor, $0, $1) }) { return descriptor }
      failure = .last(operation, address.description)
      Glibc.close(descriptor)
    }
    throw failure
  }

  private static func set(_ descriptor: Int32, _ level: Int32, _ option: Int32, _ value: Int32 = 1) {
    var value = value
    setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
  }

  /// A listening stream socket. A stale Unix socket file at the path is replaced.
  public static func listen(_ address: HostSocketAddress) throws(HostError) -> Int32 {
    if case .unix(let path) = address { unlink(path) }
    return try tryEach(address, type: streamType, passive: true, "listen on") { descriptor, pointer, length in
      set(descriptor, SOL_SOCKET, SO_REUSEADDR)
      return bind(descriptor, pointer, length) == 0 && Glibc.listen(descriptor, 8) == 0
    }
  }

  /// A connected stream socket; blocks until the connection stands or fails.
  public static func connect(_ address: HostSocketAddress) throws(HostError) -> Int32 {
    let descriptor = try tryEach(
      address, type: streamType, passive: false, "connect to", flags: Int32(SOCK_CLOEXEC.rawValue)
    ) { descriptor, pointer, length in
      var result: Int32
      repeat { result = Glibc.connect(descriptor, pointer, length) } while result != 0 && errno == EINTR
      return result == 0
    }
    setNonBlocking(descriptor)
    setNoDelay(descriptor)
    return descriptor
  }

  /// The next connection of a listening socket.
  public static func accept(_ descriptor: Int32) -> Int32? {
    let connection = apus_accept(descriptor)
    guard connection >= 0 else { return nil }
    setNoDelay(connection)
    return connection
  }

  /// A datagram socket bound to `local` that sends to `remote`.
  public static func datagram(local: HostSocketAddress?, remote: HostSocketAddress?) throws(HostError)
    -> Int32
  {
    guard let local else {
      guard let remote else { throw HostError("make a datagram socket without addresses", errno: EINVAL) }
      return try tryEach(remote, type: datagramType, passive: false, "send to") {
        Glibc.connect($0, $1, $2) == 0
      }
    }
    if case .unix(let path) = local { unlink(path) }
    let descriptor = try tryEach(local, type: datagramType, passive: true, "bind to") {
      set($0, SOL_SOCKET, SO_REUSEADDR)
      return bind($0, $1, $2) == 0
    }
    if let remote {
      do throws(HostError) { try connectDatagram(descriptor, remote) } catch {
        Glibc.close(descriptor)
        throw error
      }
    }
    return descriptor
  }

  private static func connectDatagram(_ descriptor: Int32, _ remote: HostSocketAddress) throws(HostError) {
    for candidate in try candidates(remote, type: datagramType, passive: false) {
      if withAddress(candidate.address, { Glibc.connect(descriptor, $0, $1) == 0 }) { return }
    }
    throw .last("send to", remote.description)
  }

  /// Two sockets for an IPv4 multicast group: one that receives, one that sends (QEMU's `mcast=`).
  public static func multicast(group: String, port: UInt16, interface: String?) throws(HostError)
    -> (receiver: Int32, sender: Int32)
  {
    let subject = "\(group):\(port)"
    var membership = ip_mreq()
    guard inet_pton(AF_INET, group, &membership.imr_multiaddr) == 1,
      UInt32(bigEndian: membership.imr_multiaddr.s_addr) >> 28 == 0xe
    else { throw HostError("join the multicast group", subject, errno: EINVAL) }
    if let interface, inet_pton(AF_INET, interface, &membership.imr_interface) != 1 {
      throw HostError("use the local address", interface, errno: EINVAL)
    }
    let address = HostSocketAddress.inet(host: group, port: port)
    let receiver = try tryEach(address, type: datagramType, passive: true, "bind to") {
      set($0, SOL_SOCKET, SO_REUSEADDR)
      return bind($0, $1, $2) == 0
    }
    let size = socklen_t(MemoryLayout<ip_mreq>.size)
    guard setsockopt(receiver, Int32(IPPROTO_IP), IP_ADD_MEMBERSHIP, &membership, size) == 0 else {
      let error = HostError.last("join the multicast group", subject)
      Glibc.close(receiver)
      throw error
    }
    do throws(HostError) {
      let sender = try tryEach(address, type: datagramType, passive: false, "send to") {
        set($0, Int32(IPPROTO_IP), IP_MULTICAST_LOOP)
        var source = membership.imr_interface
        setsockopt($0, Int32(IPPROTO_IP), IP_MULTICAST_IF, &source, socklen_t(MemoryLayout<in_addr>.size))
        return Glibc.connect($0, $1, $2) == 0
      }
      return (receiver, sender)
    } catch {
      Glibc.close(receiver)
      throw error
    }
  }

  /// The port that a socket is bound to, for listeners on port 0.
  public static func localPort(_ descriptor: Int32) -> UInt16? {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let status = withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &length) }
    }
    guard status == 0, Int32(storage.ss_family) == AF_INET || Int32(storage.ss_family) == AF_INET6 else {
      return nil
    }
    // sin_port and sin6_port lie at the same place.
    return withUnsafeBytes(of: storage) { UInt16($0[2]) << 8 | UInt16($0[3]) }
  }

  public static func close(_ descriptor: Int32) { Glibc.close(descriptor) }
  public static func setNonBlocking(_ descriptor: Int32) {
    _ = apus_fcntl(descriptor, F_SETFL, apus_fcntl(descriptor, F_GETFL, 0) | O_NONBLOCK)
  }
  /// Sends small writes at once. Does nothing to a socket that is no TCP one.
  public static func setNoDelay(_ descriptor: Int32) { set(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY) }

  private static func transferFailure(_ operation: String) -> HostTransfer {
    switch errno {
    case EAGAIN, EINTR, ENOBUFS: return .wouldBlock
    case EPIPE, ECONNRESET: return .ended
    default: return .failed(.last(operation))
    }
  }

  /// Reads what is there.
  public static func receive(_ descriptor: Int32, into buffer: UnsafeMutableRawBufferPointer) -> HostTransfer
  {
    let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
    if count < 0 { return transferFailure("receive from a socket") }
    return count == 0 && buffer.count > 0 ? .ended : .count(count)
  }

  /// Writes what fits of `buffers` (one datagram, on a datagram socket or a tap).
  public static func send(_ descriptor: Int32, _ buffers: [IOBuffer], isSocket: Bool = true) -> HostTransfer {
    var vectors = buffers.prefix(1024).map { iovec(iov_base: $0.base, iov_len: $0.byteCount) }
    let count: Int
    if isSocket {
      count = vectors.withUnsafeMutableBufferPointer { pointer in
        var message = msghdr()
        message.msg_iov = pointer.baseAddress
        message.msg_iovlen = pointer.count
        return sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
      }
    } else {
      count = writev(descriptor, &vectors, Int32(vectors.count))
    }
    return count < 0 ? transferFailure("send to a socket") : .count(count)
  }
}

/// A set of descriptors to wait for with `poll`, rebuilt for each wait, and an eventfd that ends a wait early.
public struct HostPollSet {
  public static let readable = Int32(POLLIN)
  public static let writable = Int32(POLLOUT)
  public static let urgent = Int32(POLLPRI)
  public static let error = Int32(POLLERR)
  public static let hangUp = Int32(POLLHUP)

  private var entries: [pollfd] = []
  public init() {}
  public mutating func removeAll() { entries.removeAll(keepingCapacity: true) }
  /// Adds a descriptor; returns its index for `result`.
  public mutating func add(_ descriptor: Int32, events: Int32) -> Int {
    entries.append(pollfd(fd: descriptor, events: Int16(truncatingIfNeeded: events), revents: 0))
    return entries.count - 1
  }
  /// Waits at most `milliseconds` (-1: without limit). False if the wait failed.
  public mutating func wait(milliseconds: Int32) -> Bool {
    let result = poll(&entries, nfds_t(entries.count), milliseconds)
    if result < 0 { for index in entries.indices { entries[index].revents = 0 } }
    return result >= 0 || errno == EINTR
  }
  public func result(_ index: Int) -> Int32 {
    entries.indices.contains(index) ? Int32(entries[index].revents) : 0
  }
}

/// Wakes a thread that waits for its descriptor to become readable. Any thread may `ring`.
public final class HostDoorbell: Sendable {
  public let descriptor: Int32
  public init() throws(HostError) {
    descriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    guard descriptor >= 0 else { throw .last("create an eventfd") }
  }
  deinit { Glibc.close(descriptor) }
  public func ring() {
    var one: UInt64 = 1
    _ = Glibc.write(descriptor, &one, 8)
  }
  /// Makes the descriptor unreadable again.
  public func clear() {
    var value: UInt64 = 0
    _ = Glibc.read(descriptor, &value, 8)
  }
}
