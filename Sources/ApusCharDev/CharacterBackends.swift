import ApusConfig
import ApusDevice
import ApusHost
import Synchronization

/// Makes back ends from their configuration. On the main thread, before the event loop runs.
public struct CharacterBackendFactory {
  let loop: EventLoop
  /// Tells the user things ("char device redirected to …").
  let notify: @Sendable (String) -> Void

  public init(_ loop: EventLoop, notify: @escaping @Sendable (String) -> Void) {
    (self.loop, self.notify) = (loop, notify)
  }

  /// Opens what `configuration` names; a server with `wait=on` blocks here for its client.
  public func make(_ configuration: CharDevConfiguration) throws(HostError) -> any CharacterBackend {
    switch configuration.kind {
    case .null: return NullCharacterBackend()
    case .stdio(let signals): return standardStreams(keepsSignals: signals)
    case .file(let path, let append):
      return stream(.init(output: try HostDescriptor.open(path, append ? .append : .create)))
    case .pipe(let path): return try pipe(path)
    case .pty: return try pseudoTerminal(configuration.id)
    case .socket(let socket):
      return socket.isServer ? try server(socket) : stream(try client(socket))
    }
  }

  private func stream(_ connection: CharacterStream.Connection) -> CharacterStream {
    let stream = CharacterStream(loop)
    stream.open(connection)
    return stream
  }

  private func standardStreams(keepsSignals: Bool) -> CharacterStream {
    HostTerminal.makeRaw(keepsSignals: keepsSignals)
    return stream(.init(input: 0, output: 1, isShared: true, isOwned: false, endsWithInput: false))
  }

  /// Two FIFOs `path.in` and `path.out`, or one at `path` for both directions.
  private func pipe(_ path: String) throws(HostError) -> CharacterStream {
    let both = HostDescriptor.exists(path + ".in") && HostDescriptor.exists(path + ".out")
    let input = try HostDescriptor.open(both ? path + ".in" : path, .readWrite)
    HostDescriptor.setNonBlocking(input)
    guard both else { return stream(.init(input: input, output: input, endsWithInput: false)) }
    let output = try HostDescriptor.open(path + ".out", .readWrite)
    HostDescriptor.setNonBlocking(output)
    return stream(.init(input: input, output: output, endsWithInput: false))
  }

  private func pseudoTerminal(_ id: String) throws(HostError) -> any CharacterBackend {
    let (master, path) = try HostTerminal.openPseudoTerminal()
    notify("char device redirected to \(path) (label \(id))\n")
    // Our own end of the slave keeps the master from hanging up while nobody has it open.
    let slave = try HostDescriptor.openTerminal(path)
    let stream = CharacterStream(loop, onDisconnect: { HostDescriptor.close(slave) })
    stream.open(.init(input: master, output: master, endsWithInput: false, dropsStaleOutput: true))
    return stream
  }

  private func hostAddress(_ address: SocketAddress) -> HostSocketAddress {
    switch address {
    case .unix(let path): .unix(path: path)
    case .tcp(let host, let port): .inet(host: host, port: port)
    }
  }

  private func client(_ socket: CharDevConfiguration.Socket) throws(HostError) -> CharacterStream.Connection {
    let descriptor = try HostSocket.connect(hostAddress(socket.address))
    if socket.isUndelayed { HostSocket.setNoDelay(descriptor) }
    return .init(input: descriptor, output: descriptor)
  }

  private func server(_ socket: CharDevConfiguration.Socket) throws(HostError) -> any CharacterBackend {
    let address = hostAddress(socket.address)
    let server = CharacterServer(
      loop, listener: try HostSocket.listen(address), address: address, isUndelayed: socket.isUndelayed)
    if socket.waits {
      notify("waiting for connection on: \(address),server=on\n")
      server.waitForClient()
    }
    server.watch()
    return server
  }
}

/// A listening socket that serves one client at a time; the next is taken when that one has gone.
final class CharacterServer: CharacterBackend {
  private let loop: EventLoop
  private let listener: Int32
  private let address: HostSocketAddress
  private let isUndelayed: Bool
  private let stream: CharacterStream

  init(_ loop: EventLoop, listener: Int32, address: HostSocketAddress, isUndelayed: Bool = false) {
    (self.loop, self.listener, self.address, self.isUndelayed) = (loop, listener, address, isUndelayed)
    let box = Callback()
    stream = CharacterStream(loop, onDisconnect: { box.call() })
    box.set { [weak self] in self?.watch() }
  }

  /// Lets the stream, which is made before self is complete, call self.
  private final class Callback: Sendable {
    private let body = Mutex<@Sendable () -> Void>({})
    func set(_ new: @escaping @Sendable () -> Void) { body.withLock { $0 = new } }
    func call() { body.withLock { $0 }() }
  }

  deinit {
    HostDescriptor.close(listener)
    if case .unix(let path) = address { HostDescriptor.remove(path) }
  }

  var localPort: UInt16? { HostSocket.localPort(listener) }

  func waitForClient() {
    while !stream.isConnected {
      HostDescriptor.waitUntilReadable(listener)
      accept()
    }
  }

  /// Listens while there is no client.
  func watch() {
    guard !stream.isConnected else { return }
    loop.add(listener, .read) { [weak self] _ in
      guard let self else { return }
      accept()
      if stream.isConnected { loop.remove(listener) }
    }
  }

  private func accept() {
    guard let client = HostSocket.accept(listener) else { return }
    if isUndelayed { HostSocket.setNoDelay(client) }
    stream.open(.init(input: client, output: client))
  }

  func attach(_ frontEnd: CharacterFrontEnd?) { stream.attach(frontEnd) }
  func write(_ bytes: [UInt8]) -> Int { stream.write(bytes) }
  func acceptInput() { stream.acceptInput() }
  func drain() {
    stream.drain()
    // The machine has ended: nobody may find the socket any more.
    if case .unix(let path) = address { HostDescriptor.remove(path) }
  }
}
