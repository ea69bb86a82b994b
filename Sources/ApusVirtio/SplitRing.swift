import ApusMemory

/// A split virtqueue's device side [VIRTIO 1.3 §2.7].
///
///     descriptor table, 16 bytes each      available ring (driver)          used ring (device)
///     +0 address u64                       +0 flags u16  +2 index u16        +0 flags u16  +2 index u16
///     +8 length u32                        +4 ring: u16 each                 +4 ring: {id u32, length u32} each
///     +12 flags u16  +14 next u16          +4+2n used_event u16              +4+8n avail_event u16
struct SplitRing {
  private let space: AddressSpace
  private let size: UInt16
  private let hasEventIndex: Bool
  private let descriptors: GuestWindow
  private let available: GuestWindow
  private let used: GuestWindow
  private var nextAvailable: UInt16 = 0
  private var nextUsed: UInt16 = 0
  private var inFlight: UInt16 = 0
  // The used index when the driver was last told, and whether that is known.
  private var signalledUsed: UInt16 = 0
  private var isSignalledUsedKnown = false

  init(_ space: AddressSpace, _ setup: VirtQueueSetup, hasEventIndex: Bool) throws(VirtQueueError) {
    let size = Int(setup.size)
    guard size > 0, size & (size - 1) == 0 else {
      throw VirtQueueError("queue size \(size) is no power of two")
    }
    guard setup.descriptorArea % 16 == 0, setup.driverArea % 2 == 0, setup.deviceArea % 4 == 0,
      let descriptors = GuestWindow(space, GuestPhysicalAddress(setup.descriptorArea), 16 * size),
      let available = GuestWindow(space, GuestPhysicalAddress(setup.driverArea), 6 + 2 * size),
      let used = GuestWindow(space, GuestPhysicalAddress(setup.deviceArea), 6 + 8 * size)
    else { throw VirtQueueError("a ring area is misaligned or not in RAM: \(setup)") }
    (self.space, self.size, self.hasEventIndex) = (space, setup.size, hasEventIndex)
    (self.descriptors, self.available, self.used) = (descriptors, available, used)
  }

  mutating func pop(epoch: UInt32) throws(VirtQueueError) -> VirtQueueChain? {
    let pending = available.loadAcquire16(2) &- nextAvailable
    if pending == 0 { return nil }
    guard pending <= size else {
      throw VirtQueueError("the available index moved by \(pending), more than the queue size \(size)")
    }
    guard inFlight < size else {
      throw VirtQueueError("more chains in flight than the queue has descriptors")
    }
    let head = available.load16(4 + 2 * Int(nextAvailable & (size - 1)))
    guard head < size else { throw VirtQueueError("head descriptor \(head) is outside the table of \(size)") }
    var collector = ChainCollector(space)
    try collect(head, into: &collector)
    nextAvailable &+= 1
    inFlight += 1
    return VirtQueueChain(
      id: head, slotCount: 1, epoch: epoch, readable: collector.readable, writable: collector.writable)
  }

  private func collect(_ head: UInt16, into collector: inout ChainCollector) throws(VirtQueueError) {
    var index = head
    for _ in 0..<size {
      let offset = Int(index) * 16
      let address = descriptors.load64(offset)
      let length = descriptors.load32(offset + 8)
      let flags = descriptors.load16(offset + 12)
      if flags & DescriptorFlag.indirect != 0 {
        guard flags & DescriptorFlag.next == 0 else {
          throw VirtQueueError("descriptor \(index) is both indirect and continued")
        }
        let (table, count) = try collector.indirectTable(address: address, byteCount: length)
        return try Self.collectIndirect(table, count, into: &collector)
      }
      try collector.add(address: address, byteCount: length, flags: flags)
      if flags & DescriptorFlag.next == 0 { return }
      index = descriptors.load16(offset + 14)
      guard index < size else {
        throw VirtQueueError("next descriptor \(index) is outside the table of \(size)")
      }
    }
    throw VirtQueueError("the chain from descriptor \(head) is a loop or longer than the queue")
  }

  private static func collectIndirect(
    _ table: GuestWindow, _ count: Int, into collector: inout ChainCollector
  )
    throws(VirtQueueError)
  {
    var index = 0
    for _ in 0..<count {
      let offset = index * 16
      let flags = table.load16(offset + 12)
      if flags & DescriptorFlag.indirect != 0 {
        throw VirtQueueError("an indirect table has an indirect descriptor")
      }
      try collector.add(address: table.load64(offset), byteCount: table.load32(offset + 8), flags: flags)
      if flags & DescriptorFlag.next == 0 { return }
      index = Int(table.load16(offset + 14))
      guard index < count else {
        throw VirtQueueError("next descriptor \(index) is outside the indirect table")
      }
    }
    throw VirtQueueError("the chain in an indirect table is a loop")
  }

  /// Takes back the chain that was popped last.
  mutating func putBack(_ chain: VirtQueueChain) {
    nextAvailable &-= 1
    inFlight -= 1
  }

  mutating func push(_ items: [(chain: VirtQueueChain, written: Int)]) {
    for item in items { writeUsed(item.chain, item.written) }
    used.storeRelease16(2, nextUsed)
  }
  mutating func push(_ chain: VirtQueueChain, _ written: Int) {
    writeUsed(chain, written)
    used.storeRelease16(2, nextUsed)
  }
  private mutating func writeUsed(_ chain: VirtQueueChain, _ written: Int) {
    let offset = 4 + 8 * Int(nextUsed & (size - 1))
    used.store32(offset, UInt32(chain.id))
    used.store32(offset + 4, UInt32(truncatingIfNeeded: written))
    nextUsed &+= 1
    inFlight -= 1
  }

  /// Whether the driver wants an interrupt for what was pushed since the last call.
  mutating func takeInterruptNeed() -> Bool {
    GuestWindow.fullFence()
    let old = signalledUsed
    let isKnown = isSignalledUsedKnown
    signalledUsed = nextUsed
    isSignalledUsedKnown = true
    guard hasEventIndex else { return available.load16(0) & 1 == 0 }
    let event = available.load16(4 + 2 * Int(size))
    return !isKnown || nextUsed &- event &- 1 < nextUsed &- old
  }

  func disableNotification() {
    // With the event index an old value does the job: the driver has passed it already.
    if !hasEventIndex { used.store16(0, 1) }
  }
  /// Asks for a notification at the next buffer; true if there is one already.
  func enableNotification() -> Bool {
    if hasEventIndex { used.store16(4 + 8 * Int(size), nextAvailable) } else { used.store16(0, 0) }
    GuestWindow.fullFence()
    return available.loadAcquire16(2) != nextAvailable
  }
}
