/// Addresses and interrupt numbers of the Raspberry Pi 3 B [BCM2835 §1.2; QA7; Linux `bcm283x.dtsi`, `bcm2837.dtsi`].
public enum RaspberryPiMap {
  /// The cores' memory; the VideoCore's follows it, up to the peripherals, which hide the last 16 MiB of the board's 1 GiB.
  public static let ramByteCount: UInt64 = 0x3c00_0000
  public static let videoCoreMemory = (base: UInt64(0x3c00_0000), byteCount: UInt64(0x300_0000))
  /// What the firmware tells the cores: with the hidden part.
  public static let videoCoreByteCount: UInt64 = 64 << 20

  public static let peripherals = (base: UInt64(0x3f00_0000), byteCount: UInt64(0x100_0000))
  public static let systemTimer = peripherals.base + 0x3000
  public static let dma = peripherals.base + 0x7000
  public static let bridge = peripherals.base + 0xa000
  public static let interruptController = peripherals.base + 0xb200
  public static let mailbox = peripherals.base + 0xb880
  public static let power = peripherals.base + 0x10_0000
  public static let clocks = peripherals.base + 0x10_1000
  public static let random = peripherals.base + 0x10_4000
  public static let gpio = peripherals.base + 0x20_0000
  public static let uart = peripherals.base + 0x20_1000
  public static let sdHost = peripherals.base + 0x20_2000
  public static let thermometer = peripherals.base + 0x21_2000
  public static let auxiliary = peripherals.base + 0x21_5000
  public static let emmc = peripherals.base + 0x30_0000
  public static let localInterrupts: UInt64 = 0x4000_0000

  // Inputs of the interrupt controller.
  /// Of comparator 0; the others follow.
  public static let systemTimerInterrupt = 0
  /// Of DMA channel 0; channels 11 to 14 share one.
  public static let dmaInterrupt = 16
  public static let sharedDMAInterrupt = 27
  public static let auxiliaryInterrupt = 29
  /// Of the first bank of pins; the other two and that of all pins follow.
  public static let gpioInterrupt = 49
  public static let sdHostInterrupt = 56
  public static let uartInterrupt = 57
  public static let emmcInterrupt = 62
  public static let mailboxInterrupt = 65

  /// The SD host's number among the peripherals that pace DMA.
  public static let sdHostRequest: UInt32 = 13

  /// Board revision [RPi-Firmware "Revision codes"]: new style, 1 GiB, BCM2837, model 3B, revision 1.2.
  public static let revision: UInt32 = 0xa0_2082
  public static let macAddress: [UInt8] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57]

  /// Where a flat kernel image, other code and firmware begin.
  public static let kernel: UInt64 = 0x20_0000
  public static let plainKernel: UInt64 = 0x8_0000
  /// The words that cores 1 to 3 wait for, from core 0's on, as the device tree says (cpu-release-addr).
  public static let spinTable: UInt64 = 0xd8
}
