import ApusBlock
import ApusHost
import Synchronization

/// Serves exports to NBD clients: fixed newstyle negotiation, structured replies, extended headers, block status.
///
/// Each connection has a few threads that take turns at receiving and answer side by side. A client that misbehaves
/// loses its connection. Memory: at most `threadsPerConnection` payloads of 32 MiB a connection.
public final class NBDServer: Sendable {
  private struct State {
    var connections: [NBDConnection] = []
    var served = 0
    var isStopping = false
  }
  private let exports: [NBDExport]
  private let listener: HostListener
  /// How many clients may be there at once; 0: any number.
  private let connectionLimit: Int
  /// Goes on when the last client has left.
  private let isPersistent: Bool
  /// Clients have to encrypt their connections.
  private let tls: TLSCredentials?
  private let state = Mutex(State())
  private let idle = Monitor()

  public init(
    _ exports: [NBDExport], listener: HostListener, connectionLimit: Int = 1, isPersistent: Bool = false,
    tls: TLSCredentials? = nil
  ) {
    (self.exports, self.listener, self.tls) = (exports, listener, tls)
    (self.connectionLimit, self.isPersistent) = (connectionLimit, isPersistent)
  }

  /// Serves until `stop`, or until the last client has left.
  public func run() {
    while true {
      // A client too many waits in the listening socket's queue.
      idle.withLock {
        while connectionLimit > 0,
          state.withLock({ $0.connections.count >= connectionLimit && !$0.isStopping })
        {
          idle.wait()
        }
      }
      guard !state.withLock({ $0.isStopping }), let stream = listener.accept() else { break }
      let connection = NBDConnection(stream, exports, tls: tls)
      state.withLock { $0.connections.append(connection) }
      HostThread.spawn("nbd-client") { [self] in
        let wasUsed = connection.serve()
        let isLast = idle.withLock {
          defer { idle.broadcast() }
          return state.withLock { state in
            state.connections.removeAll { $0 === connection }
            if wasUsed { state.served += 1 }
            return state.connections.isEmpty && state.served > 0
          }
        }
        if isLast, !isPersistent { stop() }
      }.detach()
    }
    idle.withLock { while state.withLock({ !$0.connections.isEmpty }) { idle.wait() } }
  }

  /// Makes `run` return; clients are cut off. Any thread.
  public func stop() {
    listener.stop()
    idle.withLock {
      let connections = state.withLock { state in
        state.isStopping = true
        return state.connections
      }
      for connection in connections { connection.cut() }
      idle.broadcast()
    }
  }
}
