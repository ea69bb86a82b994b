import ApusHost

/// A connection of the protocol's: a socket, after `startTLS` with encryption on it.
///
/// One thread may send while another receives. `startTLS` comes before there are several threads.
final class NBDStream: @unchecked Sendable {
  // SAFETY: `session` is set before other threads get the object; what is buffered belongs to the one who receives.
  private let socket: HostStream
  private var session: TLSSession?
  /// Small pieces come through here, many with one call; long ones go where they belong at once.
  private let buffered = HostBuffer(byteCount: 32768)
  private var bufferedStart = 0
  private var bufferedEnd = 0
  private static let directByteCount = 16384

  init(_ socket: HostStream) { self.socket = socket }
  convenience init(connectingTo address: HostSocketAddress) throws(HostError) {
    self.init(try HostStream(connectingTo: address))
  }

  var isEncrypted: Bool { session != nil }

  /// Encrypts what follows; the other side has agreed.
  func startTLS(_ credentials: TLSCredentials, hostName: String?) throws(HostError) {
    // Bytes in the clear that came too early could pass for encrypted ones.
    guard bufferedStart == bufferedEnd else {
      throw HostError("start TLS: the other side sent bytes before it began", errno: 71)
    }
    session = try TLSSession(socket, credentials, hostName: hostName)
  }

  /// Fills `buffer`. False at the stream's end before its first byte.
  func receive(_ buffer: IOBuffer) throws(HostError) -> Bool {
    if let session { return try session.receive(buffer) }
    var done = takeBuffered(buffer.base, buffer.byteCount)
    while done < buffer.byteCount {
      let left = buffer.byteCount - done
      if left >= Self.directByteCount {
        guard try socket.receive(IOBuffer(buffer.base + done, left)) else { return try ended(done) }
        return true
      }
      bufferedEnd = try socket.receiveSome(buffered.io)
      bufferedStart = 0
      if bufferedEnd == 0 { return try ended(done) }
      done += takeBuffered(buffer.base + done, left)
    }
    return true
  }

  private func ended(_ done: Int) throws(HostError) -> Bool {
    if done == 0 { return false }
    throw HostError("receive from a socket: it ended early", errno: 104)
  }

  /// Moves bytes that came together with earlier ones.
  private func takeBuffered(_ target: UnsafeMutableRawPointer, _ limit: Int) -> Int {
    let count = min(limit, bufferedEnd - bufferedStart)
    if count > 0 {
      HostBytes.copy(target, buffered.base + bufferedStart, count)
      bufferedStart += count
    }
    return count
  }

  func send(_ buffers: [IOBuffer]) throws(HostError) {
    if let session { return try session.send(buffers) }
    try socket.send(buffers)
  }
  /// `count` bytes; `nil` at the stream's end.
  func receive(_ count: Int) throws(HostError) -> NBDBytes? {
    if count == 0 { return NBDBytes() }
    var bytes = [UInt8](repeating: 0, count: count)
    let result = bytes.withUnsafeMutableBytes { memory -> Result<Bool, HostError> in
      do throws(HostError) { return .success(try receive(IOBuffer(memory))) } catch { return .failure(error) }
    }
    return try result.get() ? NBDBytes(bytes) : nil
  }
  func send(_ message: NBDBytes, _ payload: [IOBuffer] = []) throws(HostError) {
    var message = message
    let result = message.bytes.withUnsafeMutableBytes { memory -> Result<Void, HostError> in
      do throws(HostError) { return .success(try send([IOBuffer(memory)] + payload)) } catch {
        return .failure(error)
      }
    }
    try result.get()
  }
  func shutDown() { socket.shutDown() }
}
