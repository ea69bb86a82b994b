import ApusMemory
import ApusPCI
import ApusVirtio

/// A test driver's view of a virtio-pci function: finds the capabilities, assigns BAR 4, uses the structures.
public struct VirtioPCITestTransport: VirtioTestTransport {
  public let space: AddressSpace
  public let configuration: UInt64
  public private(set) var structures: [UInt8: UInt64] = [:]
  private var notifyMultiplier: UInt64 = 0

  /// - Parameter barAddress: where BAR 4 goes; BAR 1, if there is one, goes 64 KiB above.
  public init?(space: AddressSpace, layout: PCIHostLayout, address: PCIAddress, barAddress: UInt64) {
    self.space = space
    configuration = layout.ecamBase + UInt64(address.slot) << 15 + UInt64(address.function) << 12
    writeConfigurationSpace(0x20, 4, UInt32(truncatingIfNeeded: barAddress))
    writeConfigurationSpace(0x24, 4, UInt32(barAddress >> 32))
    writeConfigurationSpace(0x14, 4, UInt32(truncatingIfNeeded: 0x5000_0000 + UInt64(address.slot) << 16))
    writeConfigurationSpace(0x04, 2, 6)
    var capability = readConfigurationSpace(0x34, 1)
    var limit = 48
    while capability != 0, limit > 0 {
      limit -= 1
      if readConfigurationSpace(UInt64(capability), 1) == 9 {
        let type = UInt8(readConfigurationSpace(UInt64(capability) + 3, 1))
        let offset = UInt64(readConfigurationSpace(UInt64(capability) + 8, 4))
        if structures[type] == nil { structures[type] = barAddress + offset }
        if type == 2 { notifyMultiplier = UInt64(readConfigurationSpace(UInt64(capability) + 16, 4)) }
      }
      capability = readConfigurationSpace(UInt64(capability) + 1, 1)
    }
    for type in 1...4 as ClosedRange<UInt8> where structures[type] == nil { return nil }
  }

  public func readConfigurationSpace(_ offset: UInt64, _ byteCount: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: space.load(GuestPhysicalAddress(configuration + offset), byteCount) ?? 0)
  }
  public func writeConfigurationSpace(_ offset: UInt64, _ byteCount: Int, _ value: UInt32) {
    _ = space.store(GuestPhysicalAddress(configuration + offset), byteCount, UInt64(value))
  }
  private func read(_ type: UInt8, _ offset: Int, _ byteCount: Int) -> UInt64 {
    space.load(GuestPhysicalAddress((structures[type] ?? 0) + UInt64(offset)), byteCount) ?? 0
  }
  private func write(_ type: UInt8, _ offset: Int, _ byteCount: Int, _ value: UInt64) {
    _ = space.store(GuestPhysicalAddress((structures[type] ?? 0) + UInt64(offset)), byteCount, value)
  }

  public func readStatus() -> UInt8 { UInt8(read(1, 0x14, 1)) }
  public func writeStatus(_ value: UInt8) { write(1, 0x14, 1, UInt64(value)) }
  public func deviceFeatures() -> UInt64 {
    write(1, 0, 4, 0)
    let low = read(1, 4, 4)
    write(1, 0, 4, 1)
    return low | read(1, 4, 4) << 32
  }
  public func writeDriverFeatures(_ value: UInt64) {
    write(1, 8, 4, 0)
    write(1, 12, 4, value & 0xffff_ffff)
    write(1, 8, 4, 1)
    write(1, 12, 4, value >> 32)
  }
  public func queueSizeMaximum(_ queue: Int) -> UInt16 {
    write(1, 0x16, 2, UInt64(queue))
    return UInt16(read(1, 0x18, 2))
  }
  public func setUp(_ queue: Int, _ setup: VirtQueueSetup) {
    write(1, 0x16, 2, UInt64(queue))
    write(1, 0x18, 2, UInt64(setup.size))
    write(1, 0x20, 8, setup.descriptorArea)
    write(1, 0x28, 4, setup.driverArea & 0xffff_ffff)
    write(1, 0x2c, 4, setup.driverArea >> 32)
    write(1, 0x30, 8, setup.deviceArea)
    write(1, 0x1c, 2, 1)
  }
  public func resetQueue(_ queue: Int) {
    write(1, 0x16, 2, UInt64(queue))
    write(1, 0x3a, 2, 1)
  }
  public func setVector(_ queue: Int, _ vector: UInt16) -> UInt16 {
    write(1, 0x16, 2, UInt64(queue))
    write(1, 0x1a, 2, UInt64(vector))
    return UInt16(read(1, 0x1a, 2))
  }
  public func notify(_ queue: Int) {
    write(1, 0x16, 2, UInt64(queue))
    write(2, Int(read(1, 0x1e, 2) * notifyMultiplier), 2, UInt64(queue))
  }
  public func readInterruptStatus() -> UInt8 { UInt8(read(3, 0, 1)) }
  public func readConfiguration(_ offset: Int, _ byteCount: Int) -> UInt64 { read(4, offset, byteCount) }
  public func writeConfiguration(_ offset: Int, _ byteCount: Int, _ value: UInt64) {
    write(4, offset, byteCount, value)
  }
}
