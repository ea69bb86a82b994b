import ApusMemory

/// A packed virtqueue's device side [VIRTIO 1.3 §2.8].
///
///     descriptor ring, 16 bytes each       event suppression areas (driver's, device's)
///     +0 address u64   +8 length u32       +0 offset (15 bits), wrap counter (bit 15)
///     +12 id u16       +14 flags u16       +2 flags: 0 enable, 1 disable, 2 at that descriptor
///
/// A slot is available when its AVAIL bit equals the wrap counter and its USED bit does not; it is used when both do.
struct PackedRing {
  private let space: AddressSpace
  private let size: UInt16
  private let hasEventIndex: Bool
  private let ring: GuestWindow
  private let driverEvents: GuestWindow
  private let deviceEvents: GuestWindow
  private var available = Position()
  private var used = Position()
  private var inFlight = 0
  private var pushedSinceSignal = 0
  private var wasSignalled = false

  private struct Position {
    var index: UInt16 = 0
    var wrap = true
    mutating func advance(_ count: UInt16, _ size: UInt16) {
      let sum = UInt32(index) + UInt32(count)
      if sum >= UInt32(size) { wrap.toggle() }
      index = UInt16(sum >= UInt32(size) ? sum - UInt32(size) : sum)
    }
    mutating func retreat(_ count: UInt16, _ size: UInt16) {
      if count > index {
        wrap.toggle()
        index = UInt16(UInt32(index) + UInt32(size) - UInt32(count))
      } else {
        index -= count
      }
    }
  }

  init(_ space: AddressSpace, _ setup: VirtQueueSetup, hasEventIndex: Bool) throws(VirtQueueError) {
    guard setup.size > 0, setup.size <= 32768 else {
      throw VirtQueueError("queue size \(setup.size) is not possible")
    }
    guard setup.descriptorArea % 16 == 0, setup.driverArea % 4 == 0, setup.deviceArea % 4 == 0,
      let ring = GuestWindow(space, GuestPhysicalAddress(setup.descriptorArea), 16 * Int(setup.size)),
      let driverEvents = GuestWindow(space, GuestPhysicalAddress(setup.driverArea), 4),
      let deviceEvents = GuestWindow(space, GuestPhysicalAddress(setup.deviceArea), 4)
    else { throw VirtQueueError("a ring area is misaligned or not in RAM: \(setup)") }
    (self.space, self.size, self.hasEventIndex) = (space, setup.size, hasEventIndex)
    (self.ring, self.driverEvents, self.deviceEvents) = (ring, driverEvents, deviceEvents)
  }

  private func isAvailable(_ flags: UInt16, _ wrap: Bool) -> Bool {
    (flags & DescriptorFlag.packedAvailable != 0) == wrap && (flags & DescriptorFlag.packedUsed != 0) != wrap
  }

  mutating func pop(epoch: UInt32) throws(VirtQueueError) -> VirtQueueChain? {
    guard isAvailable(ring.loadAcquire16(Int(available.index) * 16 + 14), available.wrap) else { return nil }
    var collector = ChainCollector(space)
    var position = available
    var slotCount: UInt16 = 0
    var id: UInt16 = 0
    while true {
      guard Int(slotCount) < Int(size) - inFlight else {
        throw VirtQueueError("a descriptor chain is longer than the ring's free slots")
      }
      let offset = Int(position.index) * 16
      let flags = ring.load16(offset + 14)
      let address = ring.load64(offset)
      let length = ring.load32(offset + 8)
      id = ring.load16(offset + 12)
      slotCount += 1
      position.advance(1, size)
      if flags & DescriptorFlag.indirect != 0 {
        guard flags & DescriptorFlag.next == 0 else {
          throw VirtQueueError("a descriptor is both indirect and continued")
        }
        let (table, count) = try collector.indirectTable(address: address, byteCount: length)
        for index in 0..<count {
          // Entries of a packed indirect table follow each other; only the WRITE flag counts [§2.8.19].
          try collector.add(
            address: table.load64(index * 16), byteCount: table.load32(index * 16 + 8),
            flags: table.load16(index * 16 + 14))
        }
        break
      }
      try collector.add(address: address, byteCount: length, flags: flags)
      if flags & DescriptorFlag.next == 0 { break }
    }
    available = position
    inFlight += Int(slotCount)
    return VirtQueueChain(
      id: id, slotCount: slotCount, epoch: epoch, readable: collector.readable, writable: collector.writable)
  }

  mutating func putBack(_ chain: VirtQueueChain) {
    available.retreat(chain.slotCount, size)
    inFlight -= Int(chain.slotCount)
  }

  /// The first item's flags are written last, so that the driver sees all items or none.
  mutating func push(_ items: [(chain: VirtQueueChain, written: Int)]) {
    guard let first = items.first else { return }
    let start = used
    used.advance(first.chain.slotCount, size)
    for item in items.dropFirst() {
      writeUsed(at: used, item.chain, item.written)
      used.advance(item.chain.slotCount, size)
    }
    writeUsed(at: start, first.chain, first.written)
    for item in items { account(item.chain) }
  }
  mutating func push(_ chain: VirtQueueChain, _ written: Int) {
    writeUsed(at: used, chain, written)
    used.advance(chain.slotCount, size)
    account(chain)
  }
  private mutating func account(_ chain: VirtQueueChain) {
    inFlight -= Int(chain.slotCount)
    pushedSinceSignal = min(pushedSinceSignal + Int(chain.slotCount), 1 << 20)
  }
  private func writeUsed(at position: Position, _ chain: VirtQueueChain, _ written: Int) {
    let offset = Int(position.index) * 16
    ring.store32(offset + 8, UInt32(truncatingIfNeeded: written))
    ring.store16(offset + 12, chain.id)
    var flags: UInt16 = written > 0 ? DescriptorFlag.write : 0
    if position.wrap { flags |= DescriptorFlag.packedAvailable | DescriptorFlag.packedUsed }
    ring.storeRelease16(offset + 14, flags)
  }

  mutating func takeInterruptNeed() -> Bool {
    GuestWindow.fullFence()
    let pushed = pushedSinceSignal
    pushedSinceSignal = 0
    let flags = driverEvents.load16(2) & 3
    if flags == 1 { return false }
    if flags != 2 || !hasEventIndex { return true }
    // Nobody has been told yet, or more than one lap passed: the comparison below would be ambiguous.
    defer { wasSignalled = true }
    if !wasSignalled || pushed > Int(size) { return true }
    let event = driverEvents.load16(0)
    var index = Int(event & 0x7fff)
    if (event & 0x8000 != 0) != used.wrap { index -= Int(size) }
    let distance = Int(used.index) - index - 1
    return distance >= 0 && distance < pushed
  }

  func disableNotification() { deviceEvents.store16(2, 1) }
  func enableNotification() -> Bool {
    if hasEventIndex {
      deviceEvents.store16(0, available.index | (available.wrap ? 0x8000 : 0))
      deviceEvents.storeRelease16(2, 2)
    } else {
      deviceEvents.storeRelease16(2, 0)
    }
    GuestWindow.fullFence()
    return isAvailable(ring.loadAcquire16(Int(available.index) * 16 + 14), available.wrap)
  }
}
