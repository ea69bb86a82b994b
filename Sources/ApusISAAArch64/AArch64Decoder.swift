import ApusDecode

/// Decodes A64 instruction words. One per process is enough; any thread.
public struct AArch64Decoder: @unchecked Sendable {
  // SAFETY: the table is written once and never freed.
  private let index: PatternIndex
  private let rows: UnsafeMutablePointer<(opcode: AArch64Opcode, feature: AArch64Feature)>

  public static let shared = AArch64Decoder()

  init() {
    index = PatternIndex(
      aarch64Rows.map(\.pattern), fields: [(low: 10, width: 4), (low: 21, width: 3), (low: 24, width: 8)])
    rows = .allocate(capacity: aarch64Rows.count)
    for (number, row) in aarch64Rows.enumerated() {
      (rows + number).initialize(to: (row.opcode, row.feature))
    }
  }

  public func decode(_ word: UInt32, _ features: AArch64FeatureSet) -> AArch64Opcode {
    let number = index.row(word)
    guard number >= 0, features.contains(rows[number].feature) else { return .undefined }
    return rows[number].opcode
  }

  /// The row that a word matches, whatever the features.
  public func row(_ word: UInt32) -> AArch64Row? {
    let number = index.row(word)
    return number >= 0 ? aarch64Rows[number] : nil
  }
}

/// The value of a logical immediate [DecodeBitMasks]; `nil` for a reserved encoding.
///
/// - Parameter isWide: 64 bits.
public func logicalImmediate(n: UInt32, immr: UInt32, imms: UInt32, isWide: Bool) -> UInt64? {
  let combined = n << 6 | ~imms & 63
  guard combined != 0 else { return nil }
  let length = 31 - combined.leadingZeroBitCount
  guard length >= 1, isWide || n == 0 else { return nil }
  let levels = UInt32(1) << UInt32(length) - 1
  let (s, r) = (imms & levels, immr & levels)
  guard s != levels else { return nil }
  let size = UInt64(1) << UInt64(length)
  let mask = size == 64 ? UInt64.max : (1 << size) - 1
  var element: UInt64 = (1 << UInt64(s + 1)) - 1
  if r != 0 { element = (element >> UInt64(r) | element << (size - UInt64(r))) & mask }
  var value = element
  var width = size
  while width < 64 {
    value |= value << width
    width *= 2
  }
  return isWide ? value : value & 0xffff_ffff
}
