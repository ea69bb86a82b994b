import ApusHost

/// A connection of the protocol's: a socket, after `startTLS` with encryption on it.
///
/// One thread may send while another receives. `startTLS` comes before there are several threads.
final class NBDStream: @unchecked Sendable {
  // SAFETY: `session` is set before other threads get the object.
  private let socket: HostStream
  private var session: TLSSession?

  init(_ socket: HostStream) { self.socket = socket }
  convenience init(connectingTo address: HostSocketAddress) throws(HostError) {
    self.init(try HostStream(connectingTo: address))
  }

  var isEncrypted: Bool { session != nil }

  /// Encrypts what follows; the other side has agreed.
  func startTLS(_ credentials: TLSCredentials, hostName: String?) throws(HostError) {
    session = try TLSSession(socket, credentials, hostName: hostName)
  }

  /// Fills `buffer`. False at the stream's end before its first byte.
  func receive(_ buffer: IOBuffer) throws(HostError) -> Bool {
    if let session { return try session.receive(buffer) }
    return try socket.receive(buffer)
  }
  func send(_ buffers: [IOBuffer]) throws(HostError) {
    if let session { return try session.send(buffers) }
    try socket.send(buffers)
  }
  /// `count` bytes; `nil` at the stream's end.
  func receive(_ count: Int) throws(HostError) -> NBDBytes? {
    if count == 0 { return NBDBytes() }
    let buffer = HostBuffer(byteCount: count)
    return try receive(buffer.io) ? NBDBytes(buffer.array()) : nil
  }
  func send(_ message: NBDBytes, _ payload: [IOBuffer] = []) throws(HostError) {
    try send([HostBuffer(message.bytes).io(0, message.bytes.count)] + payload)
  }
  func shutDown() { socket.shutDown() }
}
