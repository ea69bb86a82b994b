import ApusBits
import ApusDecode

/// Decodes RV64 instruction words. One per process is enough; any thread.
public struct RISCVDecoder: @unchecked Sendable {
  // SAFETY: `compact` is written once and never freed.
  private let index: PatternIndex
  private let compact: UnsafeMutablePointer<CompactRow>

  private struct CompactRow {
    let opcode: RISCVOpcode
    let format: RISCVFormat
    let ext: RISCVExtension
  }

  public static let shared = RISCVDecoder()

  init() {
    index = PatternIndex(
      riscvRows.map(\.pattern), fields: [(low: 2, width: 5), (low: 12, width: 3), (low: 27, width: 5)])
    compact = .allocate(capacity: riscvRows.count)
    for (row, value) in riscvRows.enumerated() {
      (compact + row).initialize(
        to: CompactRow(opcode: value.opcode, format: value.format, ext: value.extension))
    }
  }

  /// Decodes the instruction that starts with `bits` (for a 2-byte instruction the upper half is ignored).
  /// An encoding of no row, or of an extension outside `extensions`, has the opcode `.illegal`.
  public func decode(_ bits: UInt32, _ extensions: RISCVExtensionSet) -> RISCVInstruction {
    if bits & 3 != 3 {
      guard extensions.contains(.c), let word = expandCompressed(UInt16(truncatingIfNeeded: bits)) else {
        return .illegal(bits & 0xffff, length: 2)
      }
      return decodeWord(word, 2, extensions)
    }
    return decodeWord(bits, 4, extensions)
  }

  /// The row that a 32-bit word matches, whatever the extensions.
  public func row(_ word: UInt32) -> RISCVRow? {
    let row = index.row(word)
    return word & 3 == 3 && row >= 0 ? riscvRows[row] : nil
  }

  private func decodeWord(_ word: UInt32, _ length: UInt8, _ extensions: RISCVExtensionSet)
    -> RISCVInstruction
  {
    let number = index.row(word)
    guard number >= 0 else { return .illegal(word, length: length) }
    let row = compact[number]
    guard extensions.contains(row.ext) else { return .illegal(word, length: length) }
    let signed = Int32(bitPattern: word)
    var result = RISCVInstruction(
      opcode: row.opcode, length: length, rd: UInt8(truncatingIfNeeded: word >> 7) & 31,
      rs1: UInt8(truncatingIfNeeded: word >> 15) & 31, rs2: UInt8(truncatingIfNeeded: word >> 20) & 31,
      rs3: UInt8(truncatingIfNeeded: word >> 27), roundingMode: UInt8(truncatingIfNeeded: word >> 12) & 7,
      format: row.format, immediate: 0, word: word)
    switch row.format {
    case .i, .jalr, .load, .fload: result.immediate = signed >> 20
    case .store, .fstore:
      result.immediate = (signed >> 25) << 5 | Int32(bitPattern: word >> 7 & 31)
    case .b:
      result.immediate =
        (signed >> 31) << 12 | Int32(bitPattern: (word >> 7 & 1) << 11)
        | Int32(bitPattern: (word >> 25 & 63) << 5) | Int32(bitPattern: (word >> 8 & 15) << 1)
    case .u: result.immediate = signed & ~0xfff
    case .j:
      result.immediate =
        (signed >> 31) << 20 | Int32(bitPattern: (word >> 12 & 255) << 12)
        | Int32(bitPattern: (word >> 20 & 1) << 11) | Int32(bitPattern: (word >> 21 & 1023) << 1)
    case .shift5: result.immediate = Int32(bitPattern: word >> 20 & 31)
    case .shift6: result.immediate = Int32(bitPattern: word >> 20 & 63)
    case .csr, .csri: result.immediate = Int32(bitPattern: word >> 20)
    case .fence: result.immediate = Int32(bitPattern: word >> 20)
    case .r, .r1, .none, .amo, .lr, .cbo, .fencevma, .fr4, .frrm, .frr, .fr1rm, .fcmp, .fxr, .fxrm, .ffx,
      .ffxrm:
      break
    }
    return result
  }
}
