import ApusMemory

/// What a driver did to a queue that the device cannot continue from [VIRTIO 1.3 §2.1.2 DEVICE_NEEDS_RESET].
public struct VirtQueueError: Error, Equatable, CustomStringConvertible {
  public let description: String
  init(_ description: String) { self.description = description }
}

/// One request of the driver: a chain of descriptors, resolved to guest RAM and bounds-checked.
public struct VirtQueueChain: Sendable {
  /// Split ring: index of the head descriptor. Packed ring: buffer id.
  public let id: UInt16
  /// Ring slots that the chain takes (packed ring; 1 in a split ring).
  let slotCount: UInt16
  /// Which life of the queue it comes from; a queue reset starts a new one.
  let epoch: UInt32
  /// What the driver wrote for the device.
  public let readable: DMAList
  /// What the device may write.
  public let writable: DMAList
}

/// Descriptor flags [VIRTIO 1.3 §2.7.5, §2.8.14].
enum DescriptorFlag {
  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4
  static let packedAvailable: UInt16 = 1 << 7
  static let packedUsed: UInt16 = 1 << 15
}

/// Gathers the descriptors of one chain and checks what the specification demands of them.
struct ChainCollector {
  /// The most descriptors a chain may have, indirect ones included (QEMU's limit for large indirect tables).
  static let descriptorLimit = 1024

  private let space: AddressSpace
  private(set) var readable = DMAList()
  private(set) var writable = DMAList()
  private var descriptorCount = 0

  init(_ space: AddressSpace) { self.space = space }

  mutating func add(address: UInt64, byteCount: UInt32, flags: UInt16) throws(VirtQueueError) {
    descriptorCount += 1
    guard descriptorCount <= Self.descriptorLimit else {
      throw VirtQueueError("a descriptor chain has more than \(Self.descriptorLimit) descriptors")
    }
    let isWritable = flags & DescriptorFlag.write != 0
    if !isWritable, writable.byteCount > 0 {
      throw VirtQueueError("a device-readable descriptor follows a device-writable one")
    }
    guard byteCount > 0 else { return }
    let guest = GuestPhysicalAddress(address)
    guard let ram = space.ramRegion(guest, UInt64(byteCount)) else {
      throw VirtQueueError("descriptor of \(byteCount) bytes at \(guest) is not in RAM")
    }
    if isWritable, ram.isReadOnly {
      throw VirtQueueError("device-writable descriptor at \(guest) is in read-only memory")
    }
    let segment = DMASegment(
      address: guest, base: ram.host + Int(guest - ram.base), byteCount: Int(byteCount))
    if isWritable { writable.append(segment) } else { readable.append(segment) }
    guard readable.byteCount + writable.byteCount <= Int(UInt32.max) else {
      throw VirtQueueError("a descriptor chain is longer than 4 GiB")
    }
  }

  /// Finds the table that an indirect descriptor points at; returns it with its number of entries.
  func indirectTable(address: UInt64, byteCount: UInt32) throws(VirtQueueError) -> (GuestWindow, Int) {
    guard byteCount > 0, byteCount % 16 == 0 else {
      throw VirtQueueError("an indirect table has \(byteCount) bytes, not a multiple of 16")
    }
    guard let table = GuestWindow(space, GuestPhysicalAddress(address), Int(byteCount)) else {
      throw VirtQueueError("indirect table at 0x\(String(address, radix: 16)) is not in RAM")
    }
    return (table, Int(byteCount / 16))
  }
}
