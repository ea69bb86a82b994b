import ApusBlock
import ApusHost
import Synchronization

/// Serves an export as a device of this host's kernel (`/dev/nbdX`).
///
/// `run` blocks a `HostThread`, whose end `disconnect` waits for; `stop` comes from any other.
public final class NBDDevice: Sendable {
  private let device: HostNBDDevice
  private let connection: NBDConnection
  private let export: NBDExport
  private let hasEnded = Atomic<Bool>(false)

  public init(_ path: String, _ export: NBDExport) throws(HostError) {
    device = try HostNBDDevice(path)
    let stream = try device.attach(
      byteCount: export.node.byteCount, flags: export.flags(mayFragment: false))
    (connection, self.export) = (NBDConnection(stream, [export]), export)
  }

  /// Serves until the device is disconnected.
  ///
  /// - Parameter ready: called on another thread once the device can be used; false if that took too long.
  public func run(ready: @escaping @Sendable (Bool) -> Void) throws(HostError) {
    let server = HostThread.spawn("nbd-serve") { [self] in connection.serve(agreed: export) }
    let announcer = HostThread.spawn("nbd-ready") { [self] in ready(waitUntilServed()) }
    defer {
      hasEnded.store(true, ordering: .relaxed)
      connection.cut()
      announcer.join()
      server.join()
      device.detach()
    }
    try device.run()
  }

  private func waitUntilServed() -> Bool {
    let end = HostClock.monotonicNanoseconds() + 10_000_000_000
    let pause = Monitor()
    while HostClock.monotonicNanoseconds() < end, !hasEnded.load(ordering: .relaxed) {
      if device.server != nil {
        device.findPartitions()
        return true
      }
      let next = HostClock.monotonicNanoseconds() + 5_000_000
      pause.withLock { while HostClock.monotonicNanoseconds() < next { pause.wait(until: next) } }
    }
    return false
  }

  /// Makes `run` return.
  public func stop() {
    do throws(HostError) { try device.disconnect() } catch { connection.cut() }
  }

  /// Disconnects a device, whoever serves it, and waits until its server has ended. False if nobody serves it, or if the server
  /// does not end.
  public static func disconnect(_ path: String) throws(HostError) -> Bool {
    let device = try HostNBDDevice(path)
    guard let server = device.server else { return false }
    try device.disconnect()
    return HostNBDDevice.waitForEnd(of: server, milliseconds: 30_000)
  }
}
