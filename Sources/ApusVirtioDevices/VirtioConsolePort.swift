/// The host's side of a console port: a chardev.
///
/// Any thread. Nothing here blocks.
public protocol ConsoleBackend: AnyObject, Sendable {
  /// Takes bytes from the guest; returns how many. If not all, `writable` is called when there is room again (never
  /// from inside `write`).
  func write(_ bytes: [UInt8]) -> Int
  /// Installs what takes the host's bytes, and what hears of room for more.
  /// - Parameters:
  ///   - receive: returns how many bytes the guest had room for; the back end keeps the rest until `resumeReceiving`.
  func connect(receive: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void)
  /// The guest has room again.
  func resumeReceiving()
}

/// A port of a virtio-serial device (`virtconsole`, `virtserialport`).
public struct VirtioConsolePort: Sendable {
  /// A console (hvc0) rather than a plain port.
  public var isConsole: Bool
  /// The name that guests find the port by, or empty.
  public var name: String
  public var backend: any ConsoleBackend
  public init(isConsole: Bool, name: String = "", backend: any ConsoleBackend) {
    (self.isConsole, self.name, self.backend) = (isConsole, name, backend)
  }
}
