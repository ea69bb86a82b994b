import ApusHost
import Synchronization

/// Reports guest misuse of a device under `-d guest_errors`, a bounded number of times per device.
///
/// Any thread. Off by default, so that a guest can never flood the host's log.
public enum GuestErrorTrace {
  public static let isEnabled = Atomic<Bool>(false)
  private static let counts = Mutex<[String: Int]>([:])

  /// - Parameters:
  ///   - device: the device's name, which the budget of 100 lines belongs to.
  ///   - message: what the guest did; built only if the trace is on.
  public static func report(_ device: String, _ message: @autoclosure () -> String) {
    guard isEnabled.load(ordering: .relaxed) else { return }
    let count = counts.withLock { counts in
      counts[device, default: 0] += 1
      return counts[device]!
    }
    if count <= 100 { HostLog.write("\(device): \(message())\n") }
    if count == 100 { HostLog.write("\(device): further guest errors are not shown\n") }
  }
}
