import ApusDevice
import ApusMemory

/// A part of the peripherals' window where nothing is modelled: reads are 0, writes do nothing, and drivers find no device.
///
/// Any thread.
public final class UnimplementedPeripheral: MMIODevice {
  private let base: UInt64
  /// - Parameter base: where it lies, for the trace.
  public init(base: UInt64) { self.base = base }
  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    GuestErrorTrace.report(
      "peripherals", "read at 0x\(String(base + offset, radix: 16)), where nothing is modelled")
    return 0
  }
  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    GuestErrorTrace.report(
      "peripherals", "write at 0x\(String(base + offset, radix: 16)), where nothing is modelled")
  }
}
