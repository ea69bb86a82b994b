import ApusDevice
import ApusMemory

/// SiFive's test finisher: one register through which a guest ends or resets the machine
/// [SiFive FU540-C000 "test finisher", Linux `sifive,test0`].
///
/// Any thread. A 32-bit write to offset 0: 0x5555 powers off, 0x3333 with a code in the upper half fails with it,
/// 0x7777 resets. Everything else does nothing; reads are 0.
public final class SiFiveTest: MMIODevice {
  public static let byteCount: UInt64 = 0x1000

  /// What the guest asked for.
  public enum Request: Equatable, Sendable {
    case powerOff
    case fail(code: UInt16)
    case reset
  }
  private let handler: @Sendable (Request) -> Void

  /// `handler` is called on the vCPU's thread that wrote.
  public init(_ handler: @escaping @Sendable (Request) -> Void) { self.handler = handler }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 { 0 }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard offset == 0, byteCount == 2 || byteCount == 4 else { return }
    switch value & 0xffff {
    case 0x5555: handler(.powerOff)
    case 0x3333: handler(.fail(code: UInt16(truncatingIfNeeded: value >> 16)))
    case 0x7777: handler(.reset)
    default: GuestErrorTrace.report("sifive-test", "unknown request 0x\(String(value, radix: 16))")
    }
  }
}
