import ApusDevice
import ApusMemory
import Synchronization

/// The temperature sensor [Linux `brcm,bcm2837-thermal`]: always 41 degrees.
///
/// Any thread.
public final class BCM2835Thermometer: MMIODevice {
  public static let byteCount: UInt64 = 8
  /// In TSENSSTAT, with its valid bit: 407 - 0.538 n degrees.
  private static let reading: UInt64 = 1 << 10 | 680
  private let control = Mutex<UInt32>(0)
  public init() {}
  public func reset() { control.withLock { $0 = 0 } }
  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    offset & 4 == 0 ? control.withLock { UInt64($0) } : Self.reading
  }
  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    if offset & 4 == 0 { control.withLock { $0 = UInt32(truncatingIfNeeded: value) } }
  }
}
