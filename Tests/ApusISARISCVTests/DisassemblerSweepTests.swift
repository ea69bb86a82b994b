import ApusHost
import ApusISARISCV
import ApusTestKit
import Testing

/// The disassembler and the decoder against binutils, over random words of every row and random words.
struct DisassemblerSweepTests {
  static let assembler = "/usr/bin/riscv64-linux-gnu-as"
  static let dumper = "/usr/bin/riscv64-linux-gnu-objdump"
  static var isAvailable: Bool { HostProcess.isExecutable(assembler) && HostProcess.isExecutable(dumper) }

  /// Extensions that binutils 2.40 knows by these names.
  private static let architecture =
    "rv64imafdc_zicsr_zifencei_zihintpause_zba_zbb_zbc_zbs_zfh_zfhmin_zicbom_zicboz_svinval_zawrs"
  private static let known = RISCVExtensionSet([
    .i, .m, .a, .f, .d, .c, .s, .u, .zicsr, .zifencei, .zihintpause, .zba, .zbb, .zbc, .zbs, .zfh, .zfhmin,
    .zicbom,
    .zicboz, .svinval, .zawrs,
  ])

  /// Disassembles with binutils: one text a word, mnemonic and operands separated by a tab.
  private static func disassemble(_ words: [(bits: UInt32, byteCount: Int)]) -> [String] {
    let directory = "/tmp/apus-sweep-\(HostProcess.identifier)-\(words.count)"
    HostProcess.makeDirectory(directory)
    defer { HostProcess.removeDirectory(directory) }
    var source = ".attribute arch, \"\(architecture)\"\n.text\n"
    for word in words { source += ".insn \(word.byteCount), 0x\(String(word.bits, radix: 16))\n" }
    HostProcess.writeProgram(directory + "/sweep.s", Array(source.utf8))
    let assembled = HostProcess.run(
      [
        assembler, "-march=\(architecture)", "-mno-relax", "-o", directory + "/sweep.o",
        directory + "/sweep.s",
      ],
      into: directory + "/log")
    guard assembled.code == 0 else {
      Issue.record("the assembler failed: \(String(decoding: assembled.errors.prefix(500), as: UTF8.self))")
      return []
    }
    let dump = HostProcess.outputOf(
      [dumper, "-d", "-M", "no-aliases", "--adjust-vma=0", directory + "/sweep.o"], into: directory + "/dump")
    var result: [String] = []
    for line in String(decoding: dump, as: UTF8.self).split(separator: "\n") {
      // "   0:	00000013          	addi	zero,zero,0"
      let fields = line.split(separator: "\t", omittingEmptySubsequences: false)
      guard fields.count >= 3, fields[0].hasSuffix(":") else { continue }
      var operands = fields.count > 3 ? String(fields[3]) : ""
      if let comment = operands.firstIndex(of: "#") { operands = String(operands[..<comment]) }
      if let symbol = operands.firstIndex(of: "<") { operands = String(operands[..<symbol]) }
      while operands.hasSuffix(" ") { operands.removeLast() }
      result.append(fields[2].trimmingSpaces + (operands.isEmpty ? "" : "\t" + operands))
    }
    return result
  }

  /// What the two write differently, on purpose.
  private static func normalized(_ text: String, address: UInt64) -> String {
    var fields = text.split(separator: "\t").map(String.init)
    guard fields.count == 2 else { return text }
    // Numbers in one notation.
    let isBranch = ["beq", "bne", "blt", "bge", "bltu", "bgeu", "jal"].contains(fields[0])
    let parts = fields[1].split(separator: ",", omittingEmptySubsequences: false)
    let count = parts.count
    let operands = parts.enumerated().map { index, operand -> String in
      let word = String(operand)
      if word.hasPrefix("0x"), let value = UInt64(word.dropFirst(2), radix: 16) {
        return "\(Int64(bitPattern: value))"
      }
      // binutils writes targets without a prefix.
      if isBranch, index == count - 1, let value = UInt64(word, radix: 16) {
        return "\(Int64(bitPattern: value))"
      }
      return word
    }
    fields[1] = operands.joined(separator: ",")
    return fields.joined(separator: "\t")
  }

  @Test(.enabled(if: isAvailable))
  func fullWidthInstructions() {
    var random = SeededGenerator(seed: 42)
    var words: [UInt32] = []
    for row in riscvRows where Self.known.contains(row.extension) {
      for _ in 0..<30 {
        words.append(row.pattern.value | UInt32(truncatingIfNeeded: random.next()) & ~row.pattern.mask)
      }
    }
    for _ in 0..<20_000 { words.append(UInt32(truncatingIfNeeded: random.next()) | 3) }
    // 0x1f in the low bits begins a longer instruction.
    words.removeAll { $0 & 0x1f == 0x1f }
    compare(words.map { ($0, 4) })
  }

  private func compare(_ words: [(bits: UInt32, byteCount: Int)]) {
    let theirs = Self.disassemble(words)
    #expect(theirs.count == words.count)
    var address: UInt64 = 0
    var differences: [String: String] = [:]
    for (word, text) in zip(words, theirs) {
      let ours = RISCVDisassembler.text(word.bits, pc: address, extensions: Self.known)
      let oursIsIllegal = ours.hasPrefix(".")
      let theirsIsIllegal = text.hasPrefix(".") || text.contains("unimp")
      let same =
        oursIsIllegal || theirsIsIllegal
        ? oursIsIllegal == theirsIsIllegal
        : Self.normalized(ours, address: address) == Self.normalized(text, address: address)
      if !same, !Self.isKnown(word.bits, ours, text) {
        let key = String(ours.split(separator: "\t")[0]) + " / " + String(text.split(separator: "\t")[0])
        if differences[key] == nil {
          differences[key] = "\(String(word.bits, radix: 16)): ours '\(ours)', binutils '\(text)'"
        }
      }
      address += UInt64(word.byteCount)
    }
    for difference in differences.values.sorted() { Issue.record("\(difference)") }
  }

  /// Differences that are not ours to mend.
  private static func isKnown(_ word: UInt32, _ ours: String, _ theirs: String) -> Bool {
    // CSR names: binutils knows hundreds.
    if ours.hasPrefix("csr"), theirs.hasPrefix("csr") { return true }
    // Fences with reserved fields execute as fences [RV-Unpriv 2.7].
    if ours.hasPrefix("fence") { return true }
    // Conversions that cannot round: binutils wants rm = 0, hardware and QEMU do not care [RV-Unpriv 21.2].
    if theirs.hasPrefix(".4byte"), word >> 12 & 7 != 0,
      ["fcvt.s.h", "fcvt.d.s", "fcvt.d.h", "fcvt.d.w", "fcvt.d.wu"].contains(where: {
        ours.hasPrefix($0 + "\t")
      })
    {
      return true
    }
    return false
  }

  /// Every 16-bit encoding is legal for both or for neither.
  @Test(.enabled(if: isAvailable))
  func compressedInstructions() {
    let halves = (0..<65536).map(UInt32.init).filter { $0 & 3 != 3 }
    let theirs = Self.disassemble(halves.map { ($0, 2) })
    #expect(theirs.count == halves.count)
    var wrong: [String] = []
    for (half, text) in zip(halves, theirs) {
      let isLegal = expandCompressed(UInt16(half)) != nil
      // binutils reads reserved hints and 0 in its own ways; "unimp" is the all-zero word.
      let theirsIsLegal = !text.hasPrefix(".") && !text.contains("unimp")
      // c.addi16sp with 0 is reserved [RV-Unpriv 27.5]; binutils prints it.
      if isLegal != theirsIsLegal, half != 0x6101 {
        wrong.append("\(String(half, radix: 16)): \(isLegal ? "ours is legal" : "ours is not"), '\(text)'")
      }
    }
    for text in wrong.prefix(10) { Issue.record("\(text)") }
    #expect(wrong.isEmpty, "\(wrong.count) encodings")
  }
}

extension Substring {
  fileprivate var trimmingSpaces: String {
    var text = self
    while text.hasSuffix(" ") { text.removeLast() }
    return String(text)
  }
}
