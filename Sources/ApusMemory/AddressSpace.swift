import ApusHost
import CApusHost
import Synchronization

/// What answers loads and stores in a range of the guest's physical addresses.
///
/// Called from any vCPU's thread, without a lock held; the device locks its own state. `offset` counts from the
/// region's start and stays inside it; `byteCount` is 1, 2, 4 or 8; values are little-endian, zero-extended.
/// An access that the device has no register for reads as a defined value and writes nothing.
public protocol MMIODevice: AnyObject, Sendable {
  func readMMIO(offset: UInt64, byteCount: Int) -> UInt64
  func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64)
}

/// A device's place in the address space. Later mappings lie over earlier ones only if their priority is higher.
public struct MMIORegion: Sendable {
  public let name: String
  public let base: GuestPhysicalAddress
  public let byteCount: UInt64
  public let device: any MMIODevice
  public init(name: String, base: GuestPhysicalAddress, byteCount: UInt64, device: any MMIODevice) {
    (self.name, self.base, self.byteCount, self.device) = (name, base, byteCount, device)
  }
  public var end: GuestPhysicalAddress { base + byteCount }
}

/// The guest's physical address space: RAM and device regions.
///
/// Any thread. RAM is fixed when the machine is built; device regions (PCI BARs) come and go at run time.
/// RAM hides device regions that overlap it, with one exception, the ROM device (flash): stores to read-only RAM go
/// to the device region underneath, and so do loads while the RAM is hidden.
public final class AddressSpace: Sendable {
  /// RAM regions, sorted by base, disjoint.
  public let ram: [GuestRAM]
  private let regions = Mutex<[MMIORegion]>([])  // sorted by base, disjoint
  private let mapChangeHandler = Mutex<(@Sendable () -> Void)?>(nil)
  private let codeWriteHandler = Mutex<(@Sendable (GuestPhysicalAddress, UInt64) -> Void)?>(nil)

  /// The same for paths without reference counting.
  public let ramTable: GuestRAMTable

  public init(ram: [GuestRAM]) {
    self.ram = ram.sorted { $0.base < $1.base }
    ramTable = GuestRAMTable(self.ram)
    for (a, b) in zip(self.ram, self.ram.dropFirst()) {
      precondition(a.end <= b.base, "RAM regions '\(a.name)' and '\(b.name)' overlap")
    }
  }

  deinit { ramTable.ranges.deallocate() }

  // MARK: Device regions

  /// Adds a device region. False if it would overlap another one or wrap around.
  @discardableResult
  public func map(_ region: MMIORegion) -> Bool {
    guard region.byteCount > 0,
      region.base.rawValue.addingReportingOverflow(region.byteCount - 1).overflow == false
    else { return false }
    return regions.withLock { regions in
      let index = regions.firstIndex { $0.base > region.base } ?? regions.count
      if index > 0, regions[index - 1].end > region.base { return false }
      if index < regions.count, regions[index].base - region.base < region.byteCount { return false }
      regions.insert(region, at: index)
      return true
    }
  }

  /// Removes the region that starts at `base`.
  public func unmap(base: GuestPhysicalAddress) {
    regions.withLock { $0.removeAll { $0.base == base } }
  }

  /// All device regions, sorted by base.
  public var mmioRegions: [MMIORegion] { regions.withLock { $0 } }

  private func region(at address: GuestPhysicalAddress) -> MMIORegion? {
    regions.withLock { regions in
      var low = 0
      var high = regions.count
      while low < high {
        let middle = (low + high) / 2
        if regions[middle].base <= address { low = middle + 1 } else { high = middle }
      }
      guard low > 0, address < regions[low - 1].end else { return nil }
      return regions[low - 1]
    }
  }

  /// The RAM region that holds `count` bytes at `address`.
  /// - Parameter forCPU: a CPU or the loader asks, whom secure RAM is for, too.
  public func ramRegion(_ address: GuestPhysicalAddress, _ count: UInt64 = 1, forCPU: Bool = false)
    -> GuestRAM?
  {
    for region in ram where region.contains(address, count) {
      return region.isHidden || region.isSecure && !forCPU ? nil : region
    }
    return nil
  }

  // MARK: ROM devices

  /// Hides `ram`, so that accesses reach the device region underneath, or shows it again.
  public func setHidden(_ ram: GuestRAM, _ hidden: Bool) {
    guard apus_exchange8(ram.hidden, hidden ? 1 : 0) != (hidden ? 1 : 0) else { return }
    let handler = mapChangeHandler.withLock { $0 }
    handler?()
  }

  /// Installs what is called, on the changer's thread, after RAM was hidden or shown: host addresses of RAM that
  /// were kept (TLBs, translated code's fetches) must be looked up again.
  public func onMapChange(_ handler: (@Sendable () -> Void)?) { mapChangeHandler.withLock { $0 = handler } }

  // MARK: Access by vCPUs (slow path) and by devices

  /// A load of 1, 2, 4 or 8 bytes by a vCPU; `nil` when nothing is there (a bus error to the guest).
  public func load(_ address: GuestPhysicalAddress, _ byteCount: Int) -> UInt64? {
    if let ram = ramRegion(address, UInt64(byteCount), forCPU: true) {
      var value: UInt64 = 0
      withUnsafeMutableBytes(of: &value) {
        $0.baseAddress!.copyMemory(from: ram.host + Int(address - ram.base), byteCount: byteCount)
      }
      return value
    }
    guard let region = region(at: address), region.end - address >= UInt64(byteCount) else { return nil }
    return region.device.readMMIO(offset: address - region.base, byteCount: byteCount)
  }

  /// A store of 1, 2, 4 or 8 bytes by a vCPU; false when nothing is there.
  public func store(_ address: GuestPhysicalAddress, _ byteCount: Int, _ value: UInt64) -> Bool {
    if let ram = ramRegion(address, UInt64(byteCount), forCPU: true) {
      if ram.isReadOnly {
        if let region = region(at: address), region.end - address >= UInt64(byteCount) {
          region.device.writeMMIO(offset: address - region.base, byteCount: byteCount, value: value)
        }
        return true
      }
      withUnsafeBytes(of: value) {
        (ram.host + Int(address - ram.base)).copyMemory(from: $0.baseAddress!, byteCount: byteCount)
      }
      noteWrite(ram, address, UInt64(byteCount))
      return true
    }
    guard let region = region(at: address), region.end - address >= UInt64(byteCount) else { return false }
    region.device.writeMMIO(offset: address - region.base, byteCount: byteCount, value: value)
    return true
  }

  /// Reads RAM into `buffer` (a device's DMA). False, with the buffer's content undefined, unless all of it is RAM.
  public func read(
    _ address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer, forCPU: Bool = false
  ) -> Bool {
    guard let source = ramPointer(address, UInt64(buffer.count), forCPU: forCPU) else { return false }
    if buffer.count > 0 { buffer.baseAddress!.copyMemory(from: source, byteCount: buffer.count) }
    return true
  }

  /// Writes `buffer` into RAM (a device's DMA). False, with nothing written, unless all of it is writable RAM.
  public func write(
    _ address: GuestPhysicalAddress, from buffer: UnsafeRawBufferPointer, forCPU: Bool = false
  ) -> Bool {
    guard let ram = ramRegion(address, UInt64(buffer.count), forCPU: forCPU), !ram.isReadOnly else {
      return false
    }
    if buffer.count > 0 {
      (ram.host + Int(address - ram.base)).copyMemory(from: buffer.baseAddress!, byteCount: buffer.count)
      noteWrite(ram, address, UInt64(buffer.count))
    }
    return true
  }

  /// A little-endian integer in RAM, for ring indices and the like; a relaxed atomic load if aligned.
  public func loadInteger<T: FixedWidthInteger>(_ address: GuestPhysicalAddress, as type: T.Type = T.self)
    -> T?
  {
    ramPointer(address, UInt64(MemoryLayout<T>.size))?.loadUnaligned(as: T.self)
  }

  /// Stores a little-endian integer into RAM. False if that is no RAM.
  public func storeInteger<T: FixedWidthInteger>(_ address: GuestPhysicalAddress, _ value: T) -> Bool {
    withUnsafeBytes(of: value) { write(address, from: $0) }
  }

  /// Host memory behind `count` bytes of RAM, for `readv`-like DMA. Call `noteDMAWrite` after writing through it.
  public func ramPointer(_ address: GuestPhysicalAddress, _ count: UInt64, forCPU: Bool = false)
    -> UnsafeMutableRawPointer?
  {
    guard let ram = ramRegion(address, count, forCPU: forCPU) else { return nil }
    return ram.host + Int(address - ram.base)
  }

  /// Tells that a device wrote `count` bytes at `address` through `ramPointer`: translated code there is dropped.
  public func noteDMAWrite(_ address: GuestPhysicalAddress, _ count: UInt64) {
    guard count > 0, let ram = ram.first(where: { $0.contains(address, count) }) else { return }
    noteWrite(ram, address, count)
  }

  // MARK: Translated code

  /// Installs what is called, on the writer's thread, after a write to a page that translated code was made from.
  public func onCodeWrite(_ handler: (@Sendable (GuestPhysicalAddress, UInt64) -> Void)?) {
    codeWriteHandler.withLock { $0 = handler }
  }

  @inline(__always)
  private func noteWrite(_ ram: GuestRAM, _ address: GuestPhysicalAddress, _ count: UInt64) {
    let first = (address - ram.base) / guestPageByteCount
    let last = (address - ram.base + count - 1) / guestPageByteCount
    // Either this sees that the page has code, or the translator, which marks it first, sees what was written.
    apus_fence()
    for page in first...last where apus_load_relaxed8(ram.pageFlags + Int(page)) & GuestRAM.pageHasCode != 0 {
      let handler = codeWriteHandler.withLock { $0 }
      handler?(address, count)
      return
    }
  }
}
