import ApusDevice
import ApusMemory
import Synchronization

/// The clock manager: PLLs, their channels and the peripherals' clocks [BCM2835 §6.3; Linux `brcm,bcm2835-cprman`].
///
/// Any thread. Registers keep what is written with the password; clocks start and PLLs lock at once. Nothing here runs at
/// another speed.
public final class BCM2835ClockManager: MMIODevice {
  public static let byteCount: UInt64 = 0x2000
  private static let password: UInt32 = 0x5a00_0000

  private enum Register {
    static let lock = 0x114
    static let clocks = 0x000..<0x100
    static let moreClocks = 0x150..<0x1d0
  }
  /// As firmware leaves them: PLLC at 1 GHz, PLLD at 2 GHz, PLLB at 1.2 GHz; the cores' bus at 400 MHz, the UART at 48 MHz.
  private static let initial: [(offset: Int, value: UInt32)] = [
    // PLLs: multiplier, divider 1 in bits 14:12, running; fractions of the multiplier.
    (0x1100, 0x2_1000 | 78), (0x1200, 0x2_0000), (0x1120, 0x2_1000 | 52), (0x1220, 0x1_5555),
    (0x1140, 0x2_1000 | 104), (0x1240, 0x2_aaaa), (0x1160, 0x2_1000 | 45), (0x1260, 0),
    (0x11e0, 0x2_1000 | 62), (0x12e0, 0x8_0000),
    // Channels: the PLLs' dividers.
    (0x1300, 0x100), (0x1320, 2), (0x1340, 0x100), (0x1360, 8), (0x1400, 4), (0x1420, 2), (0x1440, 4),
    (0x1460, 1), (0x1500, 4), (0x1520, 2), (0x1540, 4), (0x1560, 1), (0x1600, 0x100), (0x1620, 2),
    (0x1640, 0x100), (0x13e0, 2),
    // Clocks: source, enabled, busy; divider with 12 bits of fraction.
    (0x008, 0x95), (0x00c, 0x1400),  // VPU: PLLC's core channel / 1.25
    (0x0e0, 0x91), (0x0e4, 0x5000),  // temperature sensor
    (0x0e8, 0x91), (0x0ec, 0x1_3333),  // timer: the crystal / 19.2
    (0x0f0, 0x296), (0x0f4, 0xa6aa),  // UART: PLLD's peripheral channel / 10.4
    (0x1c0, 0x96), (0x1c4, 0x2000),  // EMMC
  ]
  private let registers = Mutex([UInt32](repeating: 0, count: Int(byteCount) / 4))

  public init() { reset() }

  public func reset() {
    registers.withLock { registers in
      for index in registers.indices { registers[index] = 0 }
      for (offset, value) in Self.initial { registers[offset / 4] = value }
    }
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let offset = Int(offset) & ~3
    // Every PLL has locked: flags in bits 12:8.
    if offset == Register.lock { return 0x1f00 }
    return registers.withLock { UInt64($0[offset / 4]) }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    guard word & 0xff00_0000 == Self.password else {
      return GuestErrorTrace.report("bcm2835-cprman", "write without the password")
    }
    let offset = Int(offset) & ~3
    var stored = word & 0xff_ffff
    // A clock's control register: it is busy (7) while it is enabled (4).
    if offset & 4 == 0, Register.clocks.contains(offset) || Register.moreClocks.contains(offset) {
      stored = stored & ~0x80 | (stored & 0x10) << 3
    }
    registers.withLock { $0[offset / 4] = stored }
  }
}
