import ApusHost
import Synchronization

/// A TCP server on the loopback interface that sends back what it gets, on a thread of its own.
public final class EchoServer: Sendable {
  public let port: UInt16
  private let listener: Int32
  private let count = Atomic<Int>(0)
  public var receivedByteCount: Int { count.load(ordering: .relaxed) }

  public init() throws {
    listener = try HostSocket.listen(.inet(host: "127.0.0.1", port: 0))
    port = HostSocket.localPort(listener) ?? 0
    let listener = listener
    _ = HostThread.spawn("echo") { [weak self] in
      var polls = HostPollSet()
      var connections: [Int32] = []
      while true {
        polls.removeAll()
        _ = polls.add(listener, events: HostPollSet.readable)
        for connection in connections { _ = polls.add(connection, events: HostPollSet.readable) }
        _ = polls.wait(milliseconds: 500)
        guard let self else { break }
        if polls.result(0) != 0, let connection = HostSocket.accept(listener) {
          connections.append(connection)
        }
        for (index, connection) in connections.enumerated() where polls.result(index + 1) != 0 {
          serve(connection)
        }
      }
      for descriptor in connections + [listener] { HostSocket.close(descriptor) }
    }
  }

  private func serve(_ connection: Int32) {
    var buffer = [UInt8](repeating: 0, count: 65536)
    buffer.withUnsafeMutableBytes { bytes in
      guard case .count(let received) = HostSocket.receive(connection, into: bytes) else { return }
      count.add(received, ordering: .relaxed)
      _ = HostSocket.send(connection, [IOBuffer(UnsafeMutableRawBufferPointer(rebasing: bytes[..<received]))])
    }
  }
}
