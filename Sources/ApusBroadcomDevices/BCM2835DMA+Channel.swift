import ApusDevice
import ApusMemory

extension BCM2835DMA {
  /// What transfers reach.
  struct Surroundings {
    var space: AddressSpace
    /// The controller's own registers.
    var excluded: Range<UInt64>
    var requests: [UInt32: @Sendable () -> Int]
  }

  /// One channel: its registers, and the control block that it works on [BCM2835 §4.2].
  struct Channel {
    let number: Int
    /// CS.
    var status: UInt32 = 0
    var blockAddress: UInt32 = 0
    var information: UInt32 = 0
    var source: UInt32 = 0
    var destination: UInt32 = 0
    /// Bytes left of the row, and rows left behind it.
    var rowByteCount: UInt32 = 0
    var rows: UInt32 = 0
    /// The length of a whole row.
    var rowLength: UInt32 = 0
    var stride: UInt32 = 0
    var next: UInt32 = 0
    var errors: UInt32 = 0
    /// A control block is loaded and not done.
    var isLoaded = false

    static let active: UInt32 = 1
    static let end: UInt32 = 1 << 1
    static let interrupt: UInt32 = 1 << 2
    private static let error: UInt32 = 1 << 8
    private static let kept: UInt32 = 0x30ff_0000
    /// Channels 7 to 14 are smaller: they have no rows.
    private var isLite: Bool { number >= 7 }
    init(number: Int) { self.number = number }

    private enum Information {
      static let interrupts: UInt32 = 1
      static let hasRows: UInt32 = 1 << 1
      static let destinationIncrements: UInt32 = 1 << 4
      static let destinationWaits: UInt32 = 1 << 6
      static let destinationIgnored: UInt32 = 1 << 7
      static let sourceIncrements: UInt32 = 1 << 8
      static let sourceWaits: UInt32 = 1 << 10
      static let sourceIgnored: UInt32 = 1 << 11
    }

    // MARK: Registers

    func read(_ register: UInt64) -> UInt32 {
      switch register {
      case 0x00: status | (errors != 0 ? Self.error : 0)
      case 0x04: blockAddress
      case 0x08: information
      case 0x0c: source
      case 0x10: destination
      case 0x14: information & Information.hasRows != 0 ? rows << 16 | rowByteCount : rowByteCount
      case 0x18: stride
      case 0x1c: next
      case 0x20: errors | (isLite ? 1 << 28 : 0) | 2 << 25
      default: 0
      }
    }

    /// Returns whether the channel wants to run.
    mutating func write(_ register: UInt64, _ value: UInt32) -> Bool {
      switch register {
      case 0x00:
        if value & 1 << 31 != 0 {
          self = Channel(number: number)
          return false
        }
        if value & 1 << 30 != 0 { isLoaded = false }
        let cleared = value & (Self.end | Self.interrupt)
        status = status & ~cleared & (Self.end | Self.interrupt) | value & (Self.kept | Self.active)
        // Active without a control block is done at once: drivers give the next one right behind it.
        if status & Self.active != 0, !isLoaded, blockAddress == 0 { finish() }
        return status & Self.active != 0
      case 0x04: if status & Self.active == 0 || !isLoaded { (blockAddress, isLoaded) = (value & ~31, false) }
      case 0x1c: next = value & ~31
      case 0x20: errors &= ~(value & 7)
      // The others are loaded from control blocks only.
      default: break
      }
      return false
    }

    // MARK: Running

    /// Goes on until the chain's end, the limits, or a peripheral that is not ready.
    mutating func run(_ around: Surroundings, _ byteLimit: inout Int, _ blockLimit: inout Int) {
      while status & Self.active != 0, byteLimit > 0, blockLimit > 0 {
        if !isLoaded {
          guard blockAddress != 0 else { return finish() }
          guard load(around.space) else { return fail() }
          blockLimit -= 1
        }
        guard rowByteCount > 0 else {
          nextRow()
          continue
        }
        var room = min(Int(rowByteCount), byteLimit)
        if information & (Information.sourceWaits | Information.destinationWaits) != 0,
          let ready = around.requests[information >> 16 & 31]
        {
          room = min(room, ready())
          if room <= 0 { return }
        }
        guard move(room, around) else { return fail() }
        rowByteCount -= UInt32(room)
        byteLimit -= room
      }
    }

    /// Bus addresses: peripherals at 0x7e000000, RAM in four windows.
    static func physical(_ bus: UInt32) -> GuestPhysicalAddress {
      bus >> 24 == 0x7e ? .init(UInt64(bus - 0x7e00_0000 + 0x3f00_0000)) : .init(UInt64(bus & 0x3fff_ffff))
    }

    private mutating func load(_ space: AddressSpace) -> Bool {
      let base = Self.physical(blockAddress)
      guard let first: UInt32 = space.loadInteger(base) else { return false }
      let words = (1..<6).map { space.loadInteger(base + UInt64(4 * $0), as: UInt32.self) ?? 0 }
      (information, source, destination, stride, next) = (first, words[0], words[1], words[3], words[4] & ~31)
      let length = words[2]
      if information & Information.hasRows != 0, !isLite {
        (rowLength, rows) = (length & 0xffff, length >> 16 & 0x3fff)
      } else {
        (rowLength, rows) = (length & 0x3fff_ffff, 0)
      }
      rowByteCount = rowLength
      isLoaded = true
      return true
    }

    /// After a row: the next one, or the next control block.
    private mutating func nextRow() {
      guard rows == 0 || rowLength == 0 else {
        rows -= 1
        rowByteCount = rowLength
        source &+= UInt32(bitPattern: Int32(Int16(truncatingIfNeeded: stride)))
        destination &+= UInt32(bitPattern: Int32(Int16(truncatingIfNeeded: stride >> 16)))
        return
      }
      isLoaded = false
      if information & Information.interrupts != 0 { status |= Self.interrupt }
      blockAddress = next
      if next == 0 { finish() }
    }

    private mutating func finish() {
      status = status & ~Self.active | Self.end
      isLoaded = false
    }

    /// An access went nowhere: the channel stops, with an interrupt if it wants one.
    private mutating func fail() {
      errors |= 4
      if information & Information.interrupts != 0 { status |= Self.interrupt }
      finish()
    }

    /// Moves bytes of a row; false if one of the addresses has nothing behind it.
    private mutating func move(_ count: Int, _ around: Surroundings) -> Bool {
      let readsMemory = information & Information.sourceIncrements != 0
      let writesMemory = information & Information.destinationIncrements != 0
      var moved = 0
      while moved < count {
        var step = min(count - moved, 4096)
        if information & Information.sourceIgnored == 0, readsMemory,
          information & Information.destinationIgnored == 0,
          writesMemory, copy(step, around.space)
        {
          moved += step
          continue
        }
        step = count - moved >= 4 ? 4 : 1
        var value: UInt64 = 0
        if information & Information.sourceIgnored == 0 {
          let address = Self.physical(source)
          guard !around.excluded.contains(address.rawValue), let loaded = around.space.load(address, step)
          else {
            return false
          }
          value = loaded
        }
        if information & Information.destinationIgnored == 0 {
          let address = Self.physical(destination)
          guard !around.excluded.contains(address.rawValue), around.space.store(address, step, value) else {
            return false
          }
        }
        if readsMemory { source &+= UInt32(step) }
        if writesMemory { destination &+= UInt32(step) }
        moved += step
      }
      return true
    }

    /// Memory to memory; false if one of them is none.
    private mutating func copy(_ count: Int, _ space: AddressSpace) -> Bool {
      guard let from = space.ramPointer(Self.physical(source), UInt64(count)) else { return false }
      var bytes = [UInt8](repeating: 0, count: count)
      bytes.withUnsafeMutableBytes { $0.baseAddress?.copyMemory(from: from, byteCount: count) }
      guard bytes.withUnsafeBytes({ space.write(Self.physical(destination), from: $0) }) else { return false }
      source &+= UInt32(count)
      destination &+= UInt32(count)
      return true
    }
  }
}
