import ApusHost
import ApusISAAArch64
import ApusTestKit
import Testing

/// The decoder against binutils: random words of every row, and random words. A word has a row exactly where binutils knows
/// it, but for the extensions that are named here.
struct DecoderSweepTests {
  static let dumper = "/usr/bin/aarch64-linux-gnu-objdump"
  static var isAvailable: Bool { HostProcess.isExecutable(dumper) }

  /// What binutils knows and no row has: memory tagging in bulk, copies and fills, accesses of 64 bytes, hinted branches, transactional
  /// memory, minimum and maximum in general registers, debug state, and SVE's and SME's without vectors.
  private static let absent: Set<Substring> = [
    "ldgm", "stgm", "stzgm", "st64b", "st64bv", "st64bv0", "ld64b", "tcancel", "tstart", "tcommit", "ttest",
    "smax",
    "smin", "umax", "umin", "abs", "cnt", "ctz", "dcps1", "dcps2", "dcps3", "udf", "sysl", "addvl",
    "addpl",
    "addsvl", "addspl", "rdvl", "rdsvl", "cntb", "cnth", "cntw", "cntd", "ctermeq", "ctermne", "decb", "decd",
    "dech", "decw", "incb", "incd", "inch", "incw", "drps", "wfet", "wfit",
  ]
  private static let absentPrefixes = ["cpy", "set", "bc.", "sqdec", "sqinc", "uqdec", "uqinc"]

  private static func isAbsent(_ mnemonic: Substring, _ operands: Substring) -> Bool {
    // SVE's and SME's registers.
    for word in operands.split(whereSeparator: { !$0.isLetter && !$0.isNumber }) {
      guard let first = word.first, first == "z" || first == "p", word.count > 1 else { continue }
      if word.dropFirst().allSatisfy(\.isNumber) || word.hasPrefix("za") { return true }
    }
    return absent.contains(mnemonic) || absentPrefixes.contains { mnemonic.hasPrefix($0) }
  }

  @Test(.enabled(if: isAvailable))
  func everyWordThatBinutilsKnows() {
    var random = SeededGenerator(seed: 42)
    var words: [UInt32] = []
    for row in aarch64Rows {
      for _ in 0..<20 {
        words.append(
          row.pattern.value | UInt32.random(in: 0...UInt32.max, using: &random) & ~row.pattern.mask)
      }
    }
    for _ in 0..<200_000 { words.append(UInt32.random(in: 0...UInt32.max, using: &random)) }
    let directory = "/tmp/apus-sweep-aarch64-\(HostProcess.identifier)"
    HostProcess.makeDirectory(directory)
    defer { HostProcess.removeDirectory(directory) }
    HostProcess.writeProgram(
      directory + "/words",
      words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } })
    let dump = HostProcess.outputOf(
      [Self.dumper, "-D", "-b", "binary", "-m", "aarch64", directory + "/words"], into: directory + "/dump")
    var index = 0
    var failures = 0
    for line in String(decoding: dump, as: UTF8.self).split(separator: "\n") {
      // "       0:	d503201f 	nop"
      let fields = line.split(separator: "\t", omittingEmptySubsequences: false)
      guard fields.count >= 3, fields[0].hasSuffix(":") else { continue }
      let word = words[index]
      index += 1
      let row = AArch64Decoder.shared.row(word)
      let isAllocated = row.map { !$0.isReserved(word) } ?? false
      let isKnown = !fields[2].hasPrefix(".inst")
      guard isAllocated != isKnown, !Self.isException(word, row, fields) else { continue }
      failures += 1
      if failures <= 20 {
        Issue.record(
          "\(String(word, radix: 16)): row \(row.map { "\($0.name)" } ?? "none"), binutils \(fields[2...].joined(separator: " "))"
        )
      }
    }
    #expect(index == words.count)
    #expect(failures == 0)
  }

  private static func isException(_ word: UInt32, _ row: AArch64Row?, _ fields: [Substring]) -> Bool {
    guard let row, !row.isReserved(word) else {
      // binutils does not look at a bit of fmlal's, nor at the highest bit of op0 of mrs and msr.
      if isAbsent(fields[2], fields.count > 3 ? fields[3] : "") { return true }
      return fields[2].hasPrefix("fmlal") || fields[2].hasPrefix("fmlsl")
        || ["mrs", "msr"].contains(fields[2]) && word >> 20 & 1 == 0
    }
    // binutils refuses ldpsw where its registers make the result unpredictable.
    if row.opcode == .pair, word >> 30 == 1 {
      let (first, second, base) = (word & 31, word >> 10 & 31, word >> 5 & 31)
      return first == second || word >> 23 & 1 == 1 && (base == first || base == second)
    }
    // Fields that should be ones: binutils insists, the architecture leaves it open.
    return [.ldar, .stlr, .ldxr, .stxr].contains(row.opcode)
  }
}
