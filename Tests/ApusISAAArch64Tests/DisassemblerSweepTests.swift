import ApusHost
import ApusISAAArch64
import ApusTestKit
import Testing

/// The disassembler and the decoder against binutils, over random words of every row and random words.
struct DisassemblerSweepTests {
  static let dumper = "/usr/bin/aarch64-linux-gnu-objdump"
  static var isAvailable: Bool { HostProcess.isExecutable(dumper) }

  /// Disassembles with binutils: a text a word.
  private static func disassemble(_ words: [UInt32]) -> [String] {
    let directory = "/tmp/apus-a64-sweep-\(HostProcess.identifier)-\(words.count)"
    HostProcess.makeDirectory(directory)
    defer { HostProcess.removeDirectory(directory) }
    HostProcess.writeProgram(directory + "/words", words.withUnsafeBytes { Array($0) })
    let dump = HostProcess.outputOf(
      [dumper, "-D", "-z", "-b", "binary", "-m", "aarch64", "-M", "no-aliases", directory + "/words"],
      into: directory + "/dump")
    var result: [String] = []
    for line in String(decoding: dump, as: UTF8.self).split(separator: "\n") {
      // "   4:\td503201f \thint\t#0x0  // comment"
      let fields = line.split(separator: "\t", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3, fields[0].hasSuffix(":") else { continue }
      var text = String(fields[2])
      if let comment = zip(text.indices, text.indices.dropFirst()).first(where: {
        text[$0] == "/" && text[$1] == "/"
      }) {
        text = String(text[..<comment.0])
      }
      while text.hasSuffix(" ") || text.hasSuffix("\t") { text.removeLast() }
      result.append(text)
    }
    return result
  }

  /// What the two write differently, on purpose: binutils knows names of system registers.
  private static func normalized(_ text: String) -> String {
    if text.hasPrefix("mrs\t") { return String(text.prefix { $0 != "," }) }
    if text.hasPrefix("msr\t"), text.contains(", x") {
      return "msr" + String(text.drop { $0 != "," })
    }
    return text
  }

  /// Words that binutils takes to be undefined and the architecture does not, or not quite: loads whose unused fields are not
  /// ones, `ldpsw` with registers that make it unpredictable; and msr's encodings of SME.
  private static func isExcepted(_ word: UInt32, _ text: String, _ row: AArch64Row) -> Bool {
    switch row.opcode {
    case .ldar: text.contains("undefined")
    case .pair: word >> 30 == 1 && text.contains("undefined")
    case .msrImmediate: text.hasPrefix("smst")
    default: false
    }
  }

  private func compare(_ words: [UInt32]) {
    let expected = Self.disassemble(words)
    #expect(expected.count == words.count)
    var differences = 0
    for (index, (word, theirs)) in zip(words, expected).enumerated() {
      guard let row = AArch64Decoder.shared.row(word) else { continue }
      if Self.isExcepted(word, theirs, row) { continue }
      let ours = AArch64Disassembler.text(word, pc: UInt64(4 * index))
      guard Self.normalized(ours) != Self.normalized(theirs) else { continue }
      differences += 1
      if differences <= 20 {
        Issue.record("\(String(word, radix: 16)): '\(ours)', binutils has '\(theirs)'")
      }
    }
    #expect(differences == 0)
  }

  @Test(.enabled(if: isAvailable)) func wordsOfEveryRow() {
    var random = SeededGenerator(seed: 42)
    compare(
      aarch64Rows.flatMap { row in
        (0..<60).map { _ in row.pattern.value | UInt32(truncatingIfNeeded: random.next()) & ~row.pattern.mask
        }
      })
  }

  @Test(.enabled(if: isAvailable)) func randomWords() {
    var random = SeededGenerator(seed: 43)
    compare((0..<fuzzRounds(200_000)).map { _ in UInt32(truncatingIfNeeded: random.next()) })
  }

  @Test func examples() {
    for (word, text) in [
      (0x9101_0c20, "add\tx0, x1, #0x43"), (0xa9bf_7bfd, "stp\tx29, x30, [sp, #-16]!"),
      (0x1400_0002, "b\t0x1008"), (0xd503_201f, "hint\t#0x0"), (0x0000_0000, ".inst\t0x00000000 ; undefined"),
    ] as [(UInt32, String)] {
      #expect(AArch64Disassembler.text(word, pc: 0x1000) == text)
    }
  }
}
