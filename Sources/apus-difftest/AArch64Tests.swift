import ApusISAAArch64

/// The area of an AArch64 block, from its start:
///
/// ```
///     0  scratch memory 2048      sp = area + 1024
///  2048  x0 .. x30, unused        2304  v0 .. v31
///  2816  nzcv, fpcr, fpsr         2840  end
/// ```
enum AArch64Area {
  static let stackPointer = 1024
  static let integers = 2048
  static let vectors = 2304
  static let control = 2816
  static let byteCount = 2848
}

struct AArch64Tests: TestISA {
  let name = "aarch64"
  let machine: UInt64 = 183
  let elfFlags: UInt64 = 0
  let referenceOptions = ["-cpu", "max,pauth-impdef=on"]
  let areaByteCount = AArch64Area.byteCount
  let pointerOffsets = (0..<31).map { AArch64Area.integers + 8 * $0 }

  func generator(seed: UInt64, isCompared: Bool, only: String?, hasAlternateFloat: Bool) -> (UInt64, Int) ->
    GeneratedBlock
  {
    var generator = AArch64BlockGenerator(
      seed: seed, only: only, hasAlternateFloat: hasAlternateFloat, isCompared: isCompared)
    return { generator.block(address: $0, length: $1) }
  }

  /// ldr and str of an x or q register at an offset from sp.
  private func access(_ register: UInt32, _ offset: Int, isVector: Bool, isLoad: Bool) -> UInt32 {
    isVector
      ? (isLoad ? 0x3dc0_0000 : 0x3d80_0000) | UInt32(offset / 16) << 10 | 31 << 5 | register
      : (isLoad ? 0xf940_0000 : 0xf900_0000) | UInt32(offset / 8) << 10 | 31 << 5 | register
  }
  private func move(_ register: UInt32, _ value: UInt32) -> [UInt32] {
    [0xd280_0000 | (value & 0xffff) << 5 | register, 0xf2a0_0000 | (value >> 16) << 5 | register]
  }
  private static let bias = AArch64Area.stackPointer
  // nzcv, fpcr, fpsr: op1, CRn, CRm, op2 of `mrs x0`.
  private static let registers: [UInt32] = [0xd53b_4200, 0xd53b_4400, 0xd53b_4420]

  func prologue(_ area: UInt64) -> [UInt32] {
    var code = move(0, UInt32(area) + UInt32(Self.bias)) + [0x9100_001f]  // mov sp, x0
    for number in 0..<32 as Range<UInt32> {
      code.append(
        access(number, AArch64Area.vectors + 16 * Int(number) - Self.bias, isVector: true, isLoad: true))
    }
    for (index, register) in Self.registers.enumerated() {
      code.append(access(0, AArch64Area.control + 8 * index - Self.bias, isVector: false, isLoad: true))
      code.append(register & ~(1 << 21))
    }
    for number in 0..<31 as Range<UInt32> {
      code.append(
        access(number, AArch64Area.integers + 8 * Int(number) - Self.bias, isVector: false, isLoad: true))
    }
    return code
  }
  var epilogue: [UInt32] {
    var code: [UInt32] = []
    for number in 0..<31 as Range<UInt32> {
      code.append(
        access(number, AArch64Area.integers + 8 * Int(number) - Self.bias, isVector: false, isLoad: false))
    }
    for (index, register) in Self.registers.enumerated() {
      code.append(register)
      code.append(access(0, AArch64Area.control + 8 * index - Self.bias, isVector: false, isLoad: false))
    }
    for number in 0..<32 as Range<UInt32> {
      code.append(
        access(number, AArch64Area.vectors + 16 * Int(number) - Self.bias, isVector: true, isLoad: false))
    }
    // write(1, sp - bias, size)
    return code + move(0, 1) + [0xd100_0000 | UInt32(Self.bias) << 10 | 31 << 5 | 1]
      + move(2, UInt32(AArch64Area.byteCount)) + move(8, 64) + [0xd400_0001]
  }
  /// exit_group(0)
  var end: [UInt32] { move(0, 0) + move(8, 94) + [0xd400_0001] }
  func text(_ bits: UInt32, pc: UInt64) -> String {
    AArch64Disassembler.text(bits, pc: pc)
  }
  func placeName(_ offset: Int) -> String {
    switch offset {
    case AArch64Area.control...: ["nzcv", "fpcr", "fpsr", "end"][(offset - AArch64Area.control) / 8]
    case AArch64Area.vectors..<AArch64Area.control:
      "v\((offset - AArch64Area.vectors) / 16).d[\(offset / 8 & 1)]"
    case AArch64Area.integers..<AArch64Area.vectors: "x\((offset - AArch64Area.integers) / 8)"
    default: "sp\(offset - AArch64Area.stackPointer)"
    }
  }
}

/// Generates random straight-line blocks from the decoder's rows.
struct AArch64BlockGenerator {
  private var random: Random
  private let rows: [AArch64Row]
  /// Those that compare and branch.
  private let flagRows: [AArch64Row]
  /// Every second instruction of the block is one of these.
  private var isAboutFlags = false
  /// Address of the block's area besides sp; not written.
  private var base: UInt32 = 8
  /// Small offsets for register-indexed accesses; not written.
  private var index: UInt32 = 9
  /// Width of the block's exclusive accesses as a power of two; 4 for pairs.
  private var exclusiveSize: UInt32 = 0

  /// FPCR gets AH, NEP and FIZ, too [FEAT_AFP].
  private let hasAlternateFloat: Bool

  init(seed: UInt64, only: String?, hasAlternateFloat: Bool, isCompared: Bool) {
    random = Random(seed: seed)
    self.hasAlternateFloat = hasAlternateFloat
    let excluded: Set<AArch64Opcode> = [
      .svc, .hvc, .smc, .eret, .msrImmediate, .brk, .hlt, .hint, .br, .blr, .ret, .bl, .sys, .msr, .mrs, .isb,
      .loadLiteral, .loadLiteralVector, .brAuthenticated, .blrAuthenticated, .retAuthenticated,
      .eretAuthenticated, .pointerAuthentication, .pacga, .loadAuthenticated,
    ]
    rows = aarch64Rows.filter {
      AArch64FeatureSet.max.contains($0.feature) && !excluded.contains($0.opcode)
        && Self.matches($0, only) && !(isCompared && hasAlternateFloat && Self.deviates($0))
    }
    let aboutFlags: Set<AArch64Opcode> = [
      .bCond, .cbz, .cbnz, .tbz, .tbnz, .subsImmediate, .subs, .subsExtended, .addsImmediate, .adds,
      .andsImmediate,
      .ands, .bics, .ccmp, .ccmn, .csel, .csinc, .fcmp, .fccmp, .fcsel,
    ]
    flagRows = rows.filter { aboutFlags.contains($0.opcode) }
  }

  /// - Parameter only: a prefix of the mnemonic, a feature after a plus sign, `extensions`: all that is not the base, or
  ///   `float`: what computes with floats.
  private static func matches(_ row: AArch64Row, _ only: String?) -> Bool {
    guard let only else { return true }
    if only == "extensions" { return row.feature != .base }
    if only == "float" {
      return "\(row.name)".hasPrefix("f") || "\(row.name)".hasPrefix("bf")
        || ["scvtf", "ucvtf"].contains("\(row.name)")
    }
    if only.hasPrefix("+") { return "\(row.feature)" == only.dropFirst() }
    return "\(row.name)".hasPrefix(only)
  }

  /// What QEMU 10 does otherwise than the manual with FPCR.AH: vectors' fneg and fabs change NaNs' signs.
  private static func deviates(_ row: AArch64Row) -> Bool {
    ["fneg", "fabs"].contains("\(row.name)")
      && (row.opcode == .vectorMiscellaneous || row.opcode == .halfVector)
  }

  mutating func block(address: UInt64, length: Int) -> GeneratedBlock {
    base = UInt32(8 + random.below(8))
    index = base + 1
    exclusiveSize = UInt32(random.below(6))
    isAboutFlags = !flagRows.isEmpty && random.chance(3)
    let baseOffset = UInt64(random.below(64) * 16 + 512)
    var instructions = (0..<length).map { _ in
      GeneratedInstruction(bits: instruction(), byteCount: 4, nop: 0xd503_201f)
    }
    for position in instructions.indices { fixBranch(&instructions[position].bits, length - position) }
    var bytes = [UInt8](repeating: 0, count: AArch64Area.byteCount)
    func store(_ value: UInt64, _ offset: Int) {
      for k in 0..<8 { bytes[offset + k] = UInt8(truncatingIfNeeded: value >> UInt64(8 * k)) }
    }
    for offset in stride(from: 0, to: AArch64Area.integers, by: 8) { store(random.integer(), offset) }
    for number in 0..<31 { store(random.integer(), AArch64Area.integers + 8 * number) }
    store(address + baseOffset, AArch64Area.integers + 8 * Int(base))
    store(UInt64(random.below(16)), AArch64Area.integers + 8 * Int(index))
    for half in 0..<64 {
      let value: UInt64
      switch random.below(6) {
      case 0, 1: value = random.double()
      case 2, 3: value = random.single() | random.single() << 32
      case 4: value = random.integer()
      default: value = random.half() | random.half() << 16 | random.half() << 32 | random.half() << 48
      }
      store(value, AArch64Area.vectors + 8 * half)
    }
    store(UInt64(random.below(16)) << 28, AArch64Area.control)
    // Rounding, and now and then the default NaN and flushing to zero.
    var fpcr = UInt64(random.below(4)) << 22
    if random.chance(4) { fpcr |= 1 << 25 }
    if random.chance(8) { fpcr |= 1 << 24 }
    if random.chance(8) { fpcr |= 1 << 19 }
    if random.chance(8) { fpcr |= 1 << 26 }
    if random.chance(2) { fpcr = 0 }
    if hasAlternateFloat {
      fpcr |= UInt64(random.below(8))
      if random.chance(3) { fpcr |= 1 << 24 }
      if random.chance(3) { fpcr |= 1 << 19 }
    }
    // fjcvtzs of a denormal number that is flushed is exact in QEMU 7.2; FPToFixedJS says that it is not.
    if instructions.contains(where: { AArch64Decoder.shared.row($0.bits)?.opcode == .fjcvtzs }) {
      fpcr &= ~(1 << 24)
    }
    store(fpcr, AArch64Area.control + 8)
    return GeneratedBlock(instructions: instructions, area: bytes)
  }

  private mutating func register() -> UInt32 {
    UInt32(random.chance(2) ? random.below(32) : 16 + random.below(8))
  }
  /// Neither of the address registers; 31 only where it is zero.
  private mutating func target() -> UInt32 {
    while true {
      let number = register()
      if number != base && number != index { return number }
    }
  }

  private mutating func instruction() -> UInt32 {
    while true {
      let rows = isAboutFlags && random.chance(2) ? flagRows : rows
      let row = rows[random.below(rows.count)]
      var word = row.pattern.value | UInt32(truncatingIfNeeded: random.next()) & ~row.pattern.mask
      func set(_ low: UInt32, _ width: UInt32, _ value: UInt32) {
        let mask = ((UInt32(1) << width) - 1) << low & ~row.pattern.mask
        word = word & ~mask | value << low & mask
      }
      set(0, 5, target())
      switch row.opcode {
      case .addImmediate, .subImmediate, .addExtended, .subExtended, .andImmediate, .orrImmediate,
        .eorImmediate:
        if word & 31 == 31 { continue }
      case .loadStore, .loadStoreVector:
        guard address(&word, isVector: row.opcode == .loadStoreVector) else { continue }
      case .pair, .pairVector:
        set(10, 5, target())
        // Offset form only: bases are not written back.
        if word >> 23 & 1 == 1 { continue }
        word = word & ~(0x7f << 15) | UInt32(random.below(30)) << 15 & 0x3f_8000
        addressRegister(&word)
        // Two loads into one register are unpredictable.
        if word & 31 == word >> 10 & 31 { continue }
      case .ldxr, .stxr, .ldar, .stlr, .ldapr, .atomicMemory, .cas, .casp, .ldxp, .stxp:
        // What a store does after a load of another width is the implementation's choice.
        let size = row.opcode == .ldxp || row.opcode == .stxp ? 2 + (word >> 30) : word >> 30
        if [.ldxr, .stxr, .ldxp, .stxp].contains(row.opcode), size != exclusiveSize { continue }
        // Unused fields are ones.
        if [.ldxr, .ldar, .stlr].contains(row.opcode) {
          set(16, 5, 31)
          set(10, 5, 31)
        }
        if row.opcode == .stxr {
          set(10, 5, 31)
          set(16, 5, target())
        }
        if row.opcode == .stxp {
          set(16, 5, target())
          set(10, 5, register())
        }
        if row.opcode == .ldxp {
          set(16, 5, 31)
          set(10, 5, target())
        }
        if row.opcode == .cas { set(16, 5, target()) }
        if row.opcode == .casp {
          set(16, 5, UInt32(random.below(4)) * 2)
          set(0, 5, UInt32(random.below(4)) * 2)
        }
        if row.opcode == .atomicMemory, word >> 12 & 0xf == 0xc { continue }
        if row.opcode == .ldar || row.opcode == .stlr, word >> 15 & 1 == 0 { continue }
        addressRegister(&word)
        let status = word >> 16 & 31
        if row.opcode == .stxr || row.opcode == .stxp,
          status == word & 31 || status == word >> 5 & 31
            || status == word >> 10 & 31 && row.opcode == .stxp
        {
          continue
        }
        if row.opcode == .ldxp, word & 31 == word >> 10 & 31 { continue }
      case .addTag, .irg:
        if word & 31 == 31 { continue }
      case .ldg, .storeTag:
        // Without writing the base back.
        if row.opcode == .storeTag, word >> 10 & 3 != 2 { continue }
        addressRegister(&word)
        word = word & ~(0x1ff << 12) | UInt32(random.below(15)) << 12
      case .stgp:
        if word >> 23 & 3 != 2 { continue }
        addressRegister(&word)
        word = word & ~(0x7f << 15) | UInt32(random.below(15)) << 15
      case .unscaledOrdered:
        addressRegister(&word)
        word = word & ~(0x1ff << 12) | UInt32(random.below(15)) << 16
      case .vectorStructures, .vectorElement:
        if word >> 23 & 1 == 1 { continue }
        addressRegister(&word)
      case .vectorCopy:
        // umov and smov write general registers.
        break
      case .extr, .sbfm, .bfm, .ubfm: word = word & ~(1 << 22) | (word >> 31) << 22
      default: break
      }
      if isReserved(row, word) { continue }
      return word
    }
  }

  private mutating func addressRegister(_ word: inout UInt32) {
    word = word & ~(31 << 5) | (random.chance(2) ? 31 : base) << 5
  }

  /// Aims a load or store into the area; false for forms that write the base back or are no access.
  private mutating func address(_ word: inout UInt32, isVector: Bool) -> Bool {
    let size = word >> 30
    let operation = word >> 22 & 3
    if !isVector, size == 3 && operation == 2 || size >= 2 && operation == 3 { return false }
    if isVector, operation >= 2, size != 0 { return false }
    addressRegister(&word)
    if word >> 24 & 1 == 1 {
      word = word & ~(0xfff << 10) | UInt32(random.below(30)) << 10
      return true
    }
    if word >> 21 & 1 == 1 {
      guard word >> 14 & 1 == 1 else { return false }
      word = word & ~(31 << 16) | index << 16
      return true
    }
    return word >> 10 & 3 == 0
  }

  /// Encodings that are not allocated, and what other emulators leave open.
  private func isReserved(_ row: AArch64Row, _ word: UInt32) -> Bool {
    switch row.opcode {
    // QEMU 7.2 extends the sign of fcvtzs (fixed-point) in half precision, scalar, into bits that are to be zero.
    case .halfVector where word & 0xfff0_fc00 == 0x5f10_fc00: true
    case .smulh, .umulh: word >> 10 & 31 != 31
    case .bCond: word & 15 >= 14
    default: row.isReserved(word)
    }
  }

  /// Points a branch at one of the next eight instructions.
  private mutating func fixBranch(_ bits: inout UInt32, _ left: Int) {
    let distance = UInt32(min(left, 1 + random.below(8)))
    if bits >> 26 & 0x1f == 5 {
      bits = bits & ~0x3ff_ffff | distance
    } else if bits >> 25 & 0x3f == 0x1a || bits >> 24 == 0x54 {
      bits = bits & ~(0x7ffff << 5) | distance << 5
    } else if bits >> 25 & 0x3f == 0x1b {
      bits = bits & ~(0x3fff << 5) | distance << 5
    }
  }
}
