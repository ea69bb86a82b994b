import ApusHost

/// Runs random blocks on the JIT, on the evaluator and, where it is installed, on QEMU's user-mode emulator, and compares
/// registers, flags and memory after each.
///
///     apus-difftest [--isa riscv64|aarch64] [--seed N] [--blocks N] [--length N] [--emulator PATH] [--reference PATH|none] [--only PREFIX]
///                   [--host-level sse4|avx|avx2|avx512] [--options 'OPTIONS OF THE JIT'] [--save FILE] [--afp yes|no]
struct DifferentialTest {
  private var seed: UInt64 = 1
  private var blockCount = 1000
  private var length = 24
  private var isa: any TestISA = RISCVTests()
  private var emulator = ""
  private var givenReference: String?
  private var reference: String { givenReference ?? "/usr/bin/qemu-\(isa.name)-static" }
  private var only: String?
  private var options: [String] = []
  /// FPCR's AH, NEP and FIZ are set: without a reference, or if asked for; QEMU before 10 knows nothing of them.
  private var hasAlternateFloat: Bool?
  /// Where to leave the first program instead of running it.
  private var saved: String?
  private let blocksAProgram = 200
  private let directory = "/tmp/apus-difftest-\(HostProcess.identifier)"

  static func run() {
    var test = DifferentialTest()
    test.readArguments()
    HostProcess.exit(test.runAll() ? 0 : 1)
  }

  private mutating func readArguments() {
    var rest = CommandLine.arguments.dropFirst()
    let own = CommandLine.arguments[0]
    while let option = rest.popFirst() {
      guard let value = rest.popFirst() else { return usage(option) }
      switch option {
      case "--isa":
        guard let named = testISAs.first(where: { $0.name == value }) else { return usage(option) }
        isa = named
      case "--seed": seed = UInt64(value) ?? 1
      case "--blocks": blockCount = Int(value) ?? 1000
      case "--length": length = max(1, min(Int(value) ?? 24, 200))
      case "--emulator": emulator = value
      case "--reference": givenReference = value
      case "--only": only = value
      case "--afp": hasAlternateFloat = value == "yes"
      case "--save": saved = value
      case "--host-level": options += ["-accel", "jit,host-level=\(value)"]
      case "--options": options += value.split(separator: " ").map(String.init)
      default: return usage(option)
      }
    }
    guard emulator.isEmpty else { return }
    // Beside this program; the name tells it the guest.
    let folder =
      own.contains("/")
      ? own.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/") + "/"
      : ""
    HostProcess.makeDirectory(directory)
    emulator = directory + "/apus-" + isa.name
    HostProcess.makeLink(
      emulator, to: (HostProcess.absolutePath(folder + "apus-user") ?? folder + "apus-user"))
  }
  private func usage(_ option: String) {
    writeStandardError("apus-difftest: '\(option)' is no option or has no value\n")
    HostProcess.exit(2)
  }

  private struct Engine {
    var name: String
    var command: [String]
  }
  private var engines: [Engine] {
    var result = [
      Engine(name: "jit", command: [emulator] + options),
      Engine(name: "interpreter", command: [emulator, "-accel", "interpreter"]),
    ]
    if reference != "none", HostProcess.isExecutable(reference) {
      result.append(Engine(name: "qemu", command: [reference] + isa.referenceOptions))
    }
    return result
  }
  private func runAll() -> Bool {
    if let saved {
      HostProcess.writeProgram(saved, TestProgram(isa, generate(seed, min(blocksAProgram, blockCount))).image)
      return true
    }
    guard HostProcess.isExecutable(emulator) else {
      writeStandardError("apus-difftest: there is no emulator '\(emulator)'; name it with --emulator\n")
      return false
    }
    HostProcess.makeDirectory(directory)
    defer { HostProcess.removeDirectory(directory) }
    var done = 0
    var failures = 0
    var programSeed = seed
    while done < blockCount, failures < 5 {
      let count = min(blocksAProgram, blockCount - done)
      let blocks = generate(programSeed, count)
      failures += compare(blocks, programSeed)
      done += count
      programSeed += 1
      if done % 10000 == 0 { writeStandardError("\(done) blocks\n") }
    }
    writeStandardOutput(
      "\(done) blocks, \(failures) with differences (\(engines.map(\.name).joined(separator: ", ")))\n")
    return failures == 0
  }

  private func generate(_ seed: UInt64, _ count: Int) -> [GeneratedBlock] {
    let isCompared = engines.count == 3
    let generator = isa.generator(
      seed: seed, isCompared: isCompared, only: only, hasAlternateFloat: hasAlternateFloat ?? !isCompared)
    return (0..<count).map { generator(TestProgram.areaAddress($0, isa), length) }
  }

  private func execute(_ program: TestProgram, _ engine: Engine) -> [UInt8] {
    let path = directory + "/program"
    let output = directory + "/" + engine.name
    HostProcess.writeProgram(path, program.image)
    return HostProcess.outputOf(engine.command + [path], into: output)
  }

  /// Compares all blocks; returns the number of differing ones, each reported.
  private func compare(_ blocks: [GeneratedBlock], _ seed: UInt64) -> Int {
    let program = TestProgram(isa, blocks)
    let outputs = engines.map { execute(program, $0) }
    let expected = outputs.last!
    var failures = 0
    for (index, block) in blocks.enumerated() {
      let range = index * isa.areaByteCount..<(index + 1) * isa.areaByteCount
      let parts = outputs.map { $0.count >= range.upperBound ? Array($0[range]) : [] }
      if parts.allSatisfy({ $0 == parts[0] }), !parts[0].isEmpty { continue }
      report(block, index, seed, parts)
      failures += 1
      if failures >= 2 || expected.count < range.upperBound { return failures }
    }
    return failures
  }

  // MARK: Reports

  private func report(_ block: GeneratedBlock, _ index: Int, _ seed: UInt64, _ parts: [[UInt8]]) {
    // Cut down: the fewest leading instructions that still make a difference.
    func differs(_ count: Int) -> [[UInt8]]? {
      let program = TestProgram(isa, [relocated(block, index)], keeping: count)
      let outputs = engines.map { execute(program, $0) }
      return outputs.allSatisfy { $0 == outputs[0] && $0.count == isa.areaByteCount } ? nil : outputs
    }
    var (low, high) = (0, block.instructions.count)
    var text = "seed \(seed), block \(index):"
    if let first = differs(high) {
      var last = first
      while low + 1 < high {
        let middle = (low + high) / 2
        if let outputs = differs(middle) { (high, last) = (middle, outputs) } else { low = middle }
      }
      text += " differs after \(high) instructions\n"
      text += listing(block, high) + registers(last, relocated(block, index).area)
    } else {
      text += " differs only in its program\n"
      text += listing(block, block.instructions.count) + registers(parts, block.area)
    }
    writeStandardOutput(text + "\n")
  }

  /// The block as the first one of a program: pointers into its area move.
  private func relocated(_ block: GeneratedBlock, _ index: Int) -> GeneratedBlock {
    var block = block
    let old = TestProgram.areaAddress(index, isa)
    for offset in isa.pointerOffsets {
      let value = word(block.area, offset)
      guard value >= old, value < old + UInt64(isa.areaByteCount) else { continue }
      let moved = value - old + TestProgram.areaAddress(0, isa)
      for k in 0..<8 { block.area[offset + k] = UInt8(truncatingIfNeeded: moved >> UInt64(8 * k)) }
    }
    return block
  }

  private func word(_ bytes: [UInt8], _ offset: Int) -> UInt64 {
    guard bytes.count >= offset + 8 else { return 0 }
    return (0..<8).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64(8 * $1) }
  }
  private func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }

  private func listing(_ block: GeneratedBlock, _ count: Int) -> String {
    var text = ""
    var pc = TestProgram(isa, [GeneratedBlock(instructions: [], area: [])]).blockAddresses[0]
    for instruction in block.instructions.prefix(count) {
      text +=
        "  \(String(pc, radix: 16)): \(String(instruction.bits, radix: 16))\t\(isa.text(instruction.bits, pc: pc))\n"
      pc += UInt64(instruction.byteCount)
    }
    return text
  }

  private func registers(_ outputs: [[UInt8]], _ before: [UInt8]) -> String {
    var text = "  before" + engines.map { ", " + $0.name }.joined() + ":\n"
    for (engine, output) in zip(engines, outputs) where output.count < isa.areaByteCount {
      text += "  \(engine.name) gave \(output.count) bytes\n"
    }
    if outputs.contains(where: { $0.count < isa.areaByteCount }) { return text }
    for offset in stride(from: 0, to: isa.areaByteCount - 8, by: 8) {
      let values = outputs.map { word($0, offset) }
      if values.allSatisfy({ $0 == values[0] }) { continue }
      text +=
        "  \(isa.placeName(offset)): \(hex(word(before, offset)))" + values.map { "  \(hex($0))" }.joined()
        + "\n"
    }
    return text
  }
}
