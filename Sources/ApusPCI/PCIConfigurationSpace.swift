/// What identifies a function to drivers.
public struct PCIIdentity: Sendable, Equatable {
  public var vendorID: UInt16
  public var deviceID: UInt16
  public var revision: UInt8
  /// Base class, subclass, programming interface: 0x010802 is an NVMe controller.
  public var classCode: UInt32
  public var subsystemVendorID: UInt16
  public var subsystemID: UInt16
  public init(
    vendorID: UInt16, deviceID: UInt16, revision: UInt8 = 0, classCode: UInt32, subsystemVendorID: UInt16 = 0,
    subsystemID: UInt16 = 0
  ) {
    (self.vendorID, self.deviceID, self.revision, self.classCode) = (vendorID, deviceID, revision, classCode)
    (self.subsystemVendorID, self.subsystemID) = (subsystemVendorID, subsystemID)
  }
}

/// A base address register: what space a function asks for.
public struct PCIBAR: Sendable, Equatable {
  public enum Kind: Sendable, Equatable {
    case io
    case memory32
    /// Takes this register and the next.
    case memory64(isPrefetchable: Bool)
  }
  /// 0...5.
  public var index: Int
  public var kind: Kind
  /// A power of two; at least 16 (memory) or 4 (I/O).
  public var byteCount: UInt64
  public init(_ index: Int, _ kind: Kind, byteCount: UInt64) {
    (self.index, self.kind, self.byteCount) = (index, kind, byteCount)
  }
}

/// The 4 KiB configuration space of a function [PCI 3.0 §6.1, PCIe 5.0 §7]: bytes, and which bits software may write.
///
/// Every access is total: offsets wrap nowhere and reach nothing else.
struct PCIConfigurationSpace {
  static let byteCount = 4096
  enum Register {
    static let vendorID = 0x00, command = 0x04, status = 0x06, revision = 0x08, headerType = 0x0e
    static let bar0 = 0x10, subsystemVendorID = 0x2c, capabilities = 0x34, interruptLine = 0x3c,
      interruptPin = 0x3d
  }
  enum Command {
    static let io: UInt16 = 1, memory: UInt16 = 2, busMaster: UInt16 = 4, interruptDisable: UInt16 = 0x400
  }

  private(set) var bytes = [UInt8](repeating: 0, count: byteCount)
  private var writable = [UInt8](repeating: 0, count: byteCount)
  private var lastCapability = 0
  private var freeOffset = 0x40
  private let bars: [PCIBAR]

  init(_ identity: PCIIdentity, bars: [PCIBAR], interruptPin: UInt8, isMultifunction: Bool) {
    self.bars = bars
    set16(Register.vendorID, identity.vendorID)
    set16(2, identity.deviceID)
    bytes[Register.revision] = identity.revision
    bytes[9] = UInt8(truncatingIfNeeded: identity.classCode)
    bytes[10] = UInt8(truncatingIfNeeded: identity.classCode >> 8)
    bytes[11] = UInt8(truncatingIfNeeded: identity.classCode >> 16)
    bytes[Register.headerType] = isMultifunction ? 0x80 : 0
    set16(Register.subsystemVendorID, identity.subsystemVendorID)
    set16(Register.subsystemVendorID + 2, identity.subsystemID)
    bytes[Register.interruptPin] = interruptPin
    writable[Register.interruptLine] = 0xff
    writable[0x0c] = 0xff  // cache line size
    // Decode enables, bus master, parity and SERR enables, interrupt disable.
    setWritable16(
      Register.command,
      Command.io | Command.memory | Command.busMaster | 0x140 | Command.interruptDisable)
    for bar in bars { layOut(bar) }
  }

  private mutating func layOut(_ bar: PCIBAR) {
    precondition(bar.byteCount.nonzeroBitCount == 1 && bar.byteCount >= 16, "a BAR's size is a power of two")
    let offset = Register.bar0 + 4 * bar.index
    let mask = ~(bar.byteCount - 1)
    switch bar.kind {
    case .io:
      bytes[offset] = 1
      setWritable32(offset, UInt32(truncatingIfNeeded: mask) & ~3)
    case .memory32: setWritable32(offset, UInt32(truncatingIfNeeded: mask) & ~15)
    case .memory64(let isPrefetchable):
      bytes[offset] = isPrefetchable ? 0xc : 4
      setWritable32(offset, UInt32(truncatingIfNeeded: mask) & ~15)
      setWritable32(offset + 4, UInt32(truncatingIfNeeded: mask >> 32))
    }
  }

  // MARK: Building

  func get16(_ offset: Int) -> UInt16 { UInt16(bytes[offset]) | UInt16(bytes[offset + 1]) << 8 }
  func get32(_ offset: Int) -> UInt32 { UInt32(get16(offset)) | UInt32(get16(offset + 2)) << 16 }
  mutating func set16(_ offset: Int, _ value: UInt16) {
    bytes[offset] = UInt8(truncatingIfNeeded: value)
    bytes[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }
  mutating func set32(_ offset: Int, _ value: UInt32) {
    set16(offset, UInt16(truncatingIfNeeded: value))
    set16(offset + 2, UInt16(truncatingIfNeeded: value >> 16))
  }
  private mutating func setWritable16(_ offset: Int, _ mask: UInt16) {
    writable[offset] = UInt8(truncatingIfNeeded: mask)
    writable[offset + 1] = UInt8(truncatingIfNeeded: mask >> 8)
  }
  private mutating func setWritable32(_ offset: Int, _ mask: UInt32) {
    setWritable16(offset, UInt16(truncatingIfNeeded: mask))
    setWritable16(offset + 2, UInt16(truncatingIfNeeded: mask >> 16))
  }

  /// Appends a capability; returns its offset.
  /// - Parameters:
  ///   - body: its bytes after id and next pointer.
  ///   - writableMask: bits of `body` that software may write; shorter is read-only.
  mutating func addCapability(id: UInt8, body: [UInt8], writableMask: [UInt8] = []) -> Int {
    let offset = (freeOffset + 3) & ~3
    precondition(offset + 2 + body.count <= 256, "capabilities lie in the first 256 bytes")
    bytes[offset] = id
    bytes[lastCapability == 0 ? Register.capabilities : lastCapability + 1] = UInt8(offset)
    bytes[Register.status] |= 0x10
    for (index, byte) in body.enumerated() { bytes[offset + 2 + index] = byte }
    for (index, mask) in writableMask.enumerated() { writable[offset + 2 + index] = mask }
    lastCapability = offset
    freeOffset = offset + 2 + body.count
    return offset
  }

  // MARK: Software's accesses

  func read(_ offset: Int, _ byteCount: Int) -> UInt32 {
    var value: UInt32 = 0
    for index in 0..<min(byteCount, 4) where offset >= 0 && offset + index < Self.byteCount {
      value |= UInt32(bytes[offset + index]) << UInt32(8 * index)
    }
    return value
  }

  mutating func write(_ offset: Int, _ byteCount: Int, _ value: UInt32) {
    for index in 0..<min(byteCount, 4) where offset >= 0 && offset + index < Self.byteCount {
      let byte = UInt8(truncatingIfNeeded: value >> UInt32(8 * index))
      let mask = writable[offset + index]
      bytes[offset + index] = bytes[offset + index] & ~mask | byte & mask
    }
  }

  var command: UInt16 { get16(Register.command) }

  /// Where a BAR decodes now; `nil` if it does not.
  func address(of bar: PCIBAR) -> UInt64? {
    let offset = Register.bar0 + 4 * bar.index
    let low = UInt64(get32(offset))
    var address: UInt64
    switch bar.kind {
    case .io:
      guard command & Command.io != 0 else { return nil }
      address = low & ~3
    case .memory32, .memory64:
      guard command & Command.memory != 0 else { return nil }
      address = low & ~15
      if case .memory64 = bar.kind { address |= UInt64(get32(offset + 4)) << 32 }
    }
    // All ones is what sizing leaves; zero is "not assigned" (for I/O, too: port 0 belongs to nobody here).
    address &= ~(bar.byteCount - 1)
    guard address != 0, !address.addingReportingOverflow(bar.byteCount - 1).overflow else { return nil }
    return address
  }
}
