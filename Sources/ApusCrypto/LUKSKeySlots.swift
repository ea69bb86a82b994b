import ApusBlock
import ApusHost

/// Passphrases added to a LUKS header, and taken away.
///
/// One thread. A slot's material is on the medium before its header says that it is in use, and overwritten after the
/// header says that it is not.
public struct LUKSKeySlots {
  private let node: any ImageNode
  /// Where the header begins in the node, in bytes.
  private let base: UInt64
  /// The key that all slots hold; `nil`: the image was opened without a passphrase.
  private let key: [UInt8]?
  private var header: LUKSHeader

  init(_ node: any ImageNode, at base: UInt64, key: [UInt8]?) throws(BlockError) {
    (self.node, self.base, self.key) = (node, base, key)
    header = try LUKSHeader.read(node, at: base)
  }
  /// - Parameter store: what encrypts the image's data.
  public init(_ node: any ImageNode, at base: UInt64, opened store: EncryptedStore?) throws(BlockError) {
    try self.init(node, at: base, key: store?.key)
  }

  private func checked<R>(_ body: () throws(CryptoError) -> R) throws(BlockError) -> R {
    do throws(CryptoError) { return try body() } catch { throw BlockError(.invalid, error.description) }
  }

  private func checkNumber(_ number: Int) throws(BlockError) {
    guard header.slots.indices.contains(number) else {
      throw BlockError(.invalid, "keyslot is \(number); it must be from 0 to \(header.slots.count - 1)")
    }
  }

  /// Makes a passphrase open the image.
  ///
  /// - Parameters:
  ///   - number: the slot; `nil`: the first that is free.
  ///   - force: a slot in use may be overwritten.
  public mutating func add(
    _ passphrase: [UInt8], slot number: Int?, iterationMilliseconds: Int, force: Bool
  ) throws(BlockError) {
    guard let key else {
      throw BlockError(.invalid, "a passphrase that opens the image is needed (key-secret=)")
    }
    guard let number = number ?? header.slots.firstIndex(where: { !$0.isActive }) else {
      throw BlockError(.noSpace, "all key slots of the image are in use")
    }
    try checkNumber(number)
    if header.slots[number].isActive {
      guard force else {
        throw BlockError(.invalid, "the key slot \(number) is in use; erase it first, or give --force")
      }
      try deactivate(number)
    }
    let material = try checked { () throws(CryptoError) in
      try header.fill(number, key, passphrase, milliseconds: iterationMilliseconds)
    }
    let slot = header.slots[number]
    guard slot.offset >= UInt64(LUKSHeader.byteCount),
      slot.offset + UInt64(material.count) <= header.payloadOffset
    else {
      throw BlockError(.invalid, "the key slot \(number) has no room for a key of \(slot.stripes) stripes")
    }
    try node.write(material, at: base + slot.offset)
    try node.flush()
    try writeHeader()
  }

  /// Erases a slot.
  public mutating func erase(slot number: Int, force: Bool) throws(BlockError) {
    try checkNumber(number)
    guard header.slots[number].isActive else {
      throw BlockError(.invalid, "the key slot \(number) is not in use")
    }
    if !force, header.slots.filter(\.isActive).count == 1 {
      throw BlockError(
        .invalid,
        "the key slot \(number) is the only one in use: without it all data is lost; --force erases it")
    }
    try deactivate(number)
  }

  /// Erases all slots that a passphrase opens.
  public mutating func erase(openedBy passphrase: [UInt8], force: Bool) throws(BlockError) {
    var found: [Int] = []
    for number in header.slots.indices where header.slots[number].isActive {
      let (slot, node, base) = (header.slots[number], node, base)
      let material = try node.bytes(
        at: base + slot.offset, count: header.algorithm.keyByteCount * slot.stripes)
      let opened = try checked { () throws(CryptoError) in try header.key(slot, passphrase, material) }
      if opened != nil { found.append(number) }
    }
    guard !found.isEmpty else { throw BlockError(.invalid, "the old passphrase opens none of the key slots") }
    if !force, found.count == header.slots.filter(\.isActive).count {
      throw BlockError(
        .invalid,
        "the old passphrase opens all key slots in use: without them all data is lost; --force erases them")
    }
    for number in found { try deactivate(number) }
  }

  private mutating func deactivate(_ number: Int) throws(BlockError) {
    let slot = header.slots[number]
    header.slots[number].isActive = false
    try writeHeader()
    let count = header.algorithm.keyByteCount * slot.stripes
    guard slot.offset >= UInt64(LUKSHeader.byteCount), slot.offset + UInt64(count) <= header.payloadOffset
    else {
      return
    }
    try node.write(
      try checked { () throws(CryptoError) in try cryptographicRandomBytes(count) }, at: base + slot.offset)
    try node.flush()
  }

  private func writeHeader() throws(BlockError) {
    try node.write(header.encoded(), at: base)
    try node.flush()
  }
}
