import ApusDecode
import ApusHost
import ApusISAAArch64
import ApusTestKit
import Testing

struct DecoderTests {
  /// Of two rows that a word can match, the first one must be a special case of the second.
  @Test func rowsOverlapOnlyAsSpecialCases() {
    for (index, row) in aarch64Rows.enumerated() {
      for other in aarch64Rows[(index + 1)...] where row.pattern.overlaps(other.pattern) {
        #expect(
          row.pattern.isSpecialCase(of: other.pattern) || row.opcode == other.opcode,
          "\(row.name) and \(other.name)")
      }
    }
  }

  @Test func plannedRowsDoNotOverlapImplementedOnes() {
    for planned in aarch64PlannedRows {
      for row in aarch64Rows where planned.pattern.overlaps(row.pattern) {
        Issue.record("\(planned.name) overlaps \(row.name)")
      }
    }
  }

  @Test func everyRowDecodesToItself() {
    var random = SeededGenerator(seed: 3)
    for row in aarch64Rows {
      for _ in 0..<20 {
        let word = row.pattern.value | UInt32.random(in: 0...UInt32.max, using: &random) & ~row.pattern.mask
        let found = AArch64Decoder.shared.row(word)
        #expect(found.map { $0.opcode == row.opcode || $0.pattern.isSpecialCase(of: row.pattern) } ?? false)
      }
    }
  }

  @Test func featuresThatAreOffAreUndefined() {
    var features = AArch64FeatureSet.max
    #expect(AArch64Decoder.shared.decode(0x4e28_4820, features) == .aese)
    features.remove(.aes)
    #expect(AArch64Decoder.shared.decode(0x4e28_4820, features) == .undefined)
  }
}
