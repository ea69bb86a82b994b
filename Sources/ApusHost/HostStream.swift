import CApusHost
import Glibc

/// A connected stream socket in blocking mode; closed at the end of its life.
///
/// Any thread; who sends or receives more than one piece that belong together takes care that nobody comes between.
public final class HostStream: Sendable {
  private let descriptor: Int32

  /// Takes the descriptor over.
  public init(_ descriptor: Int32) {
    self.descriptor = descriptor
    let flags = apus_fcntl(descriptor, F_GETFL, 0)
    _ = apus_fcntl(descriptor, F_SETFL, flags & ~O_NONBLOCK)
  }
  public convenience init(connectingTo address: HostSocketAddress) throws(HostError) {
    self.init(try HostSocket.connect(address))
  }
  deinit { Glibc.close(descriptor) }

  /// Fills `buffer`. False at the stream's end before its first byte.
  public func receive(_ buffer: IOBuffer) throws(HostError) -> Bool {
    var done = 0
    while done < buffer.byteCount {
      let count = recv(descriptor, buffer.base + done, buffer.byteCount - done, Int32(MSG_WAITALL))
      if count < 0 {
        if errno == EINTR { continue }
        throw .last("receive from a socket")
      }
      if count == 0 {
        if done == 0 { return false }
        throw HostError("receive from a socket: it ended early", errno: ECONNRESET)
      }
      done += count
    }
    return true
  }

  /// Receives what there is, at least a byte, into `buffer`; 0 at the stream's end.
  public func receiveSome(_ buffer: IOBuffer) throws(HostError) -> Int {
    while true {
      let count = recv(descriptor, buffer.base, buffer.byteCount, 0)
      if count >= 0 { return count }
      guard errno == EINTR else { throw .last("receive from a socket") }
    }
  }

  /// Sends all of `buffers`.
  public func send(_ buffers: [IOBuffer]) throws(HostError) {
    var vectors = buffers.filter { $0.byteCount > 0 }.map { iovec(iov_base: $0.base, iov_len: $0.byteCount) }
    var first = 0
    while first < vectors.count {
      let count = vectors.withUnsafeMutableBufferPointer { pointer in
        var message = msghdr()
        message.msg_iov = pointer.baseAddress.map { $0 + first }
        message.msg_iovlen = min(pointer.count - first, 1024)
        return sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
      }
      if count < 0 {
        if errno == EINTR { continue }
        throw .last("send to a socket")
      }
      var left = count
      while left > 0, first < vectors.count {
        let step = min(left, vectors[first].iov_len)
        vectors[first].iov_base += step
        vectors[first].iov_len -= step
        left -= step
        if vectors[first].iov_len == 0 { first += 1 }
      }
    }
    withExtendedLifetime(buffers) {}
  }

  /// For a library that transfers by itself: calls return at once.
  public func setNonBlocking() {
    _ = apus_fcntl(descriptor, F_SETFL, apus_fcntl(descriptor, F_GETFL, 0) | O_NONBLOCK)
  }
  /// Valid as long as the object lives.
  public var rawDescriptor: Int32 { descriptor }
  /// Waits for readiness (or an error, or the end). False after the time, without end if that is negative.
  public func waitUntilReady(writing: Bool, milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(writing ? POLLOUT : POLLIN), revents: 0)
    return poll(&entry, 1, milliseconds) > 0
  }

  /// Ends both directions: whoever waits in `receive` returns.
  public func shutDown() { shutdown(descriptor, Int32(SHUT_RDWR)) }
}

/// A listening socket that can be told to stop.
public final class HostListener: Sendable {
  private let descriptor: Int32
  private let doorbell: HostDoorbell

  public init(_ address: HostSocketAddress) throws(HostError) {
    doorbell = try HostDoorbell()
    descriptor = try HostSocket.listen(address)
  }
  deinit { Glibc.close(descriptor) }

  public var port: UInt16? { HostSocket.localPort(descriptor) }

  /// Waits for the next connection; `nil` after `stop`.
  public func accept() -> HostStream? {
    while true {
      var entries = [
        pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0),
        pollfd(fd: doorbell.descriptor, events: Int16(POLLIN), revents: 0),
      ]
      if poll(&entries, 2, -1) < 0, errno != EINTR { return nil }
      if entries[1].revents != 0 { return nil }
      if entries[0].revents != 0, let connection = HostSocket.accept(descriptor) {
        return HostStream(connection)
      }
    }
  }
  public func stop() { doorbell.ring() }
}
