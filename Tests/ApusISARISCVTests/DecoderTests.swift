import ApusDecode
import ApusISARISCV
import Testing

struct DecoderTests {
  /// Of two rows that a word can match, the first one must be a special case of the second.
  @Test func rowsOverlapOnlyAsSpecialCases() {
    for (index, row) in riscvRows.enumerated() {
      for other in riscvRows[(index + 1)...] where row.pattern.overlaps(other.pattern) {
        #expect(row.pattern.isSpecialCase(of: other.pattern), "\(row.name) and \(other.name)")
      }
    }
  }

  @Test func plannedRowsDoNotOverlapImplementedOnes() {
    for planned in riscvPlannedRows {
      for row in riscvRows where planned.pattern.overlaps(row.pattern) {
        Issue.record("\(planned.name) overlaps \(row.name)")
      }
    }
  }

  /// Whatever the free bits of a row are, decoding finds that row, or an earlier special case of it.
  @Test func everyRowDecodesToItself() {
    var random = SystemRandomNumberGenerator()
    for row in riscvRows {
      for _ in 0..<50 {
        let word = row.pattern.value | UInt32.random(in: 0...UInt32.max, using: &random) & ~row.pattern.mask
        let found = RISCVDecoder.shared.row(word)
        #expect(found.map { $0.opcode == row.opcode || $0.pattern.isSpecialCase(of: row.pattern) } ?? false)
      }
    }
  }

  @Test func everyOpcodeHasExactlyOneRow() {
    for opcode in RISCVOpcode.allCases where opcode != .illegal {
      #expect(riscvRows.filter { $0.opcode == opcode }.count == 1, "\(opcode)")
    }
  }

  static let disassembled: [(UInt32, String)] = [
    (0x0000_0013, "addi\tzero,zero,0"), (0xfe01_0113, "addi\tsp,sp,-32"), (0x00c5_8533, "add\ta0,a1,a2"),
    (0x1000_2573, "csrrs\ta0,sstatus,zero"), (0x0ff0_000f, "fence\tiorw,iorw"),
    (0x02c5_f553, "fadd.d\tfa0,fa1,fa2"), (0x1005_a52f, "lr.w\ta0,(a1)"), (0xffff_ffff, ".4byte\t0xffffffff"),
  ]
  @Test(arguments: disassembled)
  func disassembly(_ word: UInt32, _ text: String) {
    #expect(RISCVDisassembler.text(word, pc: 0) == text)
  }

  @Test func allHalfWordsExpandToKnownInstructionsOrAreReserved() {
    for half in 0...UInt16.max where half & 3 != 3 {
      guard let word = expandCompressed(half) else { continue }
      #expect(RISCVDecoder.shared.row(word) != nil, "0x\(String(half, radix: 16))")
    }
  }

  @Test func disabledExtensionsAreIllegal() {
    var extensions = RISCVExtensionSet.default
    extensions.set(.m, false)
    #expect(RISCVDecoder.shared.decode(0x02c5_8533, extensions).opcode == .illegal)
    #expect(RISCVDecoder.shared.decode(0x02c5_8533, .default).opcode == .mul)
  }
}
