/// Addresses and interrupt numbers of the `virt` machine, QEMU's [QEMU docs/system/riscv/virt, `-machine dumpdtb`].
public enum RISCVVirtMap {
  public static let bootROM = (base: UInt64(0x1000), byteCount: UInt64(0xf000))
  public static let testFinisher: UInt64 = 0x10_0000
  public static let rtc: UInt64 = 0x10_1000
  public static let aclint: UInt64 = 0x200_0000
  public static let pciPorts = (base: UInt64(0x300_0000), byteCount: UInt64(0x1_0000))
  public static let plic: UInt64 = 0xc00_0000
  public static let uart: UInt64 = 0x1000_0000
  public static let virtio = (base: UInt64(0x1000_1000), stride: UInt64(0x1000), count: 8)
  public static let fwCfg: UInt64 = 0x1010_0000
  public static let flash = (base: UInt64(0x2000_0000), bankByteCount: UInt64(32 << 20), bankCount: 2)
  public static let pciConfiguration = (base: UInt64(0x3000_0000), byteCount: UInt64(0x1000_0000))
  public static let pciMemory = (base: UInt64(0x4000_0000), byteCount: UInt64(0x4000_0000))
  public static let ram: UInt64 = 0x8000_0000
  public static let pciMemory64ByteCount: UInt64 = 16 << 30

  /// The 64-bit PCI window: the first multiple of its size behind RAM.
  public static func pciMemory64Base(ramByteCount: UInt64) -> UInt64 {
    (ram + ramByteCount + pciMemory64ByteCount - 1) / pciMemory64ByteCount * pciMemory64ByteCount
  }

  public static let interruptSourceCount = 95
  /// Of virtio slot 0; the others follow.
  public static let virtioInterrupt = 1
  public static let uartInterrupt = 10
  public static let rtcInterrupt = 11
  /// Of PCI's INTA; INTB to INTD follow.
  public static let pciInterrupt = 32
}
