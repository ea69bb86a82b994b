import ApusMemory

/// Device type numbers [VIRTIO 1.3 §5].
public enum VirtioDeviceID {
  public static let network: UInt16 = 1
  public static let block: UInt16 = 2
  public static let console: UInt16 = 3
  public static let entropy: UInt16 = 4
  public static let balloon: UInt16 = 5
}

/// Feature bits that belong to rings and transports [VIRTIO 1.3 §6], as masks.
public enum VirtioFeature {
  public static let indirectDescriptors: UInt64 = 1 << 28
  public static let eventIndex: UInt64 = 1 << 29
  public static let version1: UInt64 = 1 << 32
  public static let packedRing: UInt64 = 1 << 34
  public static let ringReset: UInt64 = 1 << 40
}

/// Device status bits [VIRTIO 1.3 §2.1].
public enum VirtioStatus {
  public static let acknowledge: UInt8 = 1
  public static let driver: UInt8 = 2
  public static let driverOK: UInt8 = 4
  public static let featuresOK: UInt8 = 8
  public static let needsReset: UInt8 = 64
  public static let failed: UInt8 = 128
}

/// What a device may tell the driver beside used buffers; the transport implements it.
public struct VirtioDriverLink: Sendable {
  /// The configuration space changed: bumps the generation and interrupts the driver.
  public var configurationChanged: @Sendable () -> Void
  /// The device met something that it cannot go on from [VIRTIO 1.3 §2.1.2].
  public var needsReset: @Sendable (String) -> Void
  public init(
    configurationChanged: @escaping @Sendable () -> Void = {},
    needsReset: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    (self.configurationChanged, self.needsReset) = (configurationChanged, needsReset)
  }
}

/// A virtio device type, whatever the transport.
///
/// The transport calls `activate`, `reset` and `resetQueue` one at a time on a vCPU's thread; `notify` and the
/// configuration accesses come from any vCPU at any time. `notify` must not block: it hands work that may block on.
public protocol VirtioDevice: AnyObject, Sendable {
  /// Name in traces ("virtio-blk disk0").
  var name: String { get }
  /// [VIRTIO 1.3 §5], see `VirtioDeviceID`.
  var deviceID: UInt16 { get }
  /// The type's own feature bits that are offered; ring bits are the transport's business.
  var features: UInt64 { get }
  /// All queues, in the specification's order; the transport connects and enables them.
  var queues: [VirtQueue] { get }

  /// Called once, before anything else.
  func attach(_ link: VirtioDriverLink)
  /// A little-endian field of 1, 2, 4 or 8 bytes of the configuration space; 0 beyond its end.
  func readConfiguration(offset: Int, byteCount: Int) -> UInt64
  func writeConfiguration(offset: Int, byteCount: Int, value: UInt64)
  /// The driver accepted `features` (FEATURES_OK). Configuration may depend on them.
  func negotiated(features: UInt64)
  /// DRIVER_OK: the enabled queues may be used.
  func activate(features: UInt64)
  /// The driver put buffers into the queue.
  func notify(queue: Int)
  /// One queue was reset: when this returns, none of its requests touches guest RAM.
  func resetQueue(_ index: Int)
  /// Back to the initial state: when this returns, no request touches guest RAM.
  func reset()
}

extension VirtioDevice {
  public func attach(_ link: VirtioDriverLink) {}
  public func readConfiguration(offset: Int, byteCount: Int) -> UInt64 { 0 }
  public func writeConfiguration(offset: Int, byteCount: Int, value: UInt64) {}
  public func negotiated(features: UInt64) {}
}

/// Little-endian fields put one after the other, as a device's configuration space.
public struct VirtioConfiguration: Sendable {
  public private(set) var bytes: [UInt8] = []
  public init() {}
  public mutating func append<T: FixedWidthInteger>(_ value: T) {
    withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
  }
  public mutating func append(_ other: [UInt8]) { bytes.append(contentsOf: other) }
  /// The field at `offset`; bytes beyond the end read as 0.
  public func read(offset: Int, byteCount: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<byteCount where offset >= 0 && offset + index < bytes.count {
      value |= UInt64(bytes[offset + index]) << UInt64(8 * index)
    }
    return value
  }
}
