import ApusCPU

/// Addresses and interrupt numbers of the AArch64 `virt` machine, QEMU's [QEMU docs/system/arm/virt, `-machine dumpdtb`].
public enum ArmVirtMap {
  public static let flash = (base: UInt64(0), bankByteCount: UInt64(64 << 20), bankCount: 2)
  public static let gicDistributor: UInt64 = 0x800_0000
  public static let gicInterface: UInt64 = 0x801_0000
  public static let gicMessages: UInt64 = 0x802_0000
  /// Version 2's interfaces for EL2 and for virtual machines (virtualization=on).
  public static let gicHypervisor: UInt64 = 0x803_0000
  public static let gicVirtual: UInt64 = 0x804_0000
  public static let gicTranslation: UInt64 = 0x808_0000
  public static let gicRedistributors = (base: UInt64(0x80a_0000), byteCount: UInt64(0xf6_0000))
  public static let uart: UInt64 = 0x900_0000
  public static let rtc: UInt64 = 0x901_0000
  public static let fwCfg: UInt64 = 0x902_0000
  public static let gpio: UInt64 = 0x903_0000
  /// What only the secure state has (secure=on), besides the first flash bank.
  public static let secureUART: UInt64 = 0x904_0000
  public static let secureGPIO: UInt64 = 0x90b_0000
  public static let secureRAM = (base: UInt64(0xe00_0000), byteCount: UInt64(0x100_0000))
  /// Where the address space has what the secure state finds at an address of `secureRanges`.
  public static func secure(_ address: UInt64) -> UInt64 { address | ArmCPUEnvironment.Security.addressBit }
  public static let virtio = (base: UInt64(0xa00_0000), stride: UInt64(0x200), count: 32)
  public static let pciMemory = (base: UInt64(0x1000_0000), byteCount: UInt64(0x2eff_0000))
  public static let pciPorts = (base: UInt64(0x3eff_0000), byteCount: UInt64(0x1_0000))
  public static let ram: UInt64 = 0x4000_0000
  public static let pciConfiguration = (base: UInt64(0x40_1000_0000), byteCount: UInt64(0x1000_0000))
  public static let pciMemory64 = (base: UInt64(0x80_0000_0000), byteCount: UInt64(0x80_0000_0000))
  /// RAM ends where the high PCI windows begin.
  public static let ramLimit: UInt64 = 255 << 30

  /// Shared interrupts, counted from 0.
  public static let sharedInterruptCount = 256
  public static let uartInterrupt = 1
  public static let rtcInterrupt = 2
  /// Of PCI's INTA; INTB to INTD follow.
  public static let pciInterrupt = 3
  public static let gpioInterrupt = 7
  public static let secureUARTInterrupt = 8
  /// Of virtio slot 0; the others follow.
  public static let virtioInterrupt = 16
  public static let messageInterrupt = (first: 48, count: 64)
  /// A CPU's own: the performance monitor, the virtual interface's maintenance, the timers.
  public static let performanceInterrupt = 23
  public static let maintenanceInterrupt = 25
  public static let hypervisorTimerInterrupt = 26
  public static let virtualTimerInterrupt = 27
  public static let hypervisorVirtualTimerInterrupt = 28
  public static let secureTimerInterrupt = 29
  public static let physicalTimerInterrupt = 30
  /// The pin of the power key.
  public static let powerKeyPin = 3
  /// The secure GPIO's.
  public static let powerOffPin = 0
  public static let resetPin = 1
}
