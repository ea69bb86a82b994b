import ApusISARISCV

/// One random instruction: its encoding and its length.
struct GeneratedInstruction {
  var bits: UInt32
  var byteCount: Int
  /// What stands in for it when a failing block is cut down.
  var nop: UInt32
}

/// A block: instructions, and the contents of its memory area, registers included.
struct GeneratedBlock {
  var instructions: [GeneratedInstruction]
  var area: [UInt8]
}

/// The area of a block, from its start:
///
/// ```
///     0  scratch memory 2048      sp = area + 1024
///  2048  x0 .. x31                2304  f0 .. f31
///  2560  fcsr                     2568  end
/// ```
enum Area {
  static let stackPointer = 1024
  static let integers = 2048
  static let floats = 2304
  static let control = 2560
  static let byteCount = 2576
}

/// Generates random straight-line blocks from the decoder's rows.
struct BlockGenerator {
  private var random: Random
  private let rows: [RISCVRow]
  private let compressed: Bool
  /// Address of the block's area; sp and `base` point into it and are not written.
  private var base: UInt32 = 8
  /// Width of the block's lr and sc.
  private var reservesDouble = false

  /// - Parameters:
  ///   - extensions: rows of these are used.
  ///   - only: a prefix that mnemonics must have.
  init(seed: UInt64, extensions: RISCVExtensionSet, only: String?, excluding more: Set<RISCVOpcode>) {
    random = Random(seed: seed)
    let excluded: Set<RISCVOpcode> = more.union([
      .ecall, .ebreak, .sret, .mret, .wfi, .sfenceVma, .sinvalVma, .sfenceWInval, .sfenceInvalIr, .jalr,
      .cboInval,
      .cboClean, .cboFlush, .wrsNto, .wrsSto, .fenceI, .pause,
    ])
    rows = riscvRows.filter {
      extensions.contains($0.extension) && !excluded.contains($0.opcode)
        && (only == nil || "\($0.name)".hasPrefix(only!))
    }
    compressed = extensions.contains(.c) && only == nil
  }

  mutating func block(address: UInt64, length: Int) -> GeneratedBlock {
    base = UInt32(8 + random.below(8))
    reservesDouble = random.chance(2)
    let baseOffset = UInt64(random.below(128) * 8 + 512)
    var instructions: [GeneratedInstruction] = []
    for _ in 0..<length {
      if compressed, random.chance(4), let half = compressedInstruction() {
        instructions.append(GeneratedInstruction(bits: half, byteCount: 2, nop: 0x0001))
      } else {
        instructions.append(GeneratedInstruction(bits: instruction(), byteCount: 4, nop: 0x0000_0013))
      }
    }
    fixBranches(&instructions)
    return GeneratedBlock(instructions: instructions, area: area(address, baseOffset))
  }

  // MARK: Contents

  private mutating func area(_ address: UInt64, _ baseOffset: UInt64) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Area.byteCount)
    for offset in stride(from: 0, to: Area.integers, by: 8) { store(random.integer(), offset, &bytes) }
    for number in 1..<32 { store(random.integer(), Area.integers + 8 * number, &bytes) }
    for number in 0..<32 { store(float(), Area.floats + 8 * number, &bytes) }
    store(address + UInt64(Area.stackPointer), Area.integers + 16, &bytes)
    store(address + baseOffset, Area.integers + 8 * Int(base), &bytes)
    store(
      UInt64(random.below(5)) << 5 | UInt64(random.chance(4) ? random.below(32) : 0), Area.control, &bytes)
    return bytes
  }
  private func store(_ value: UInt64, _ offset: Int, _ bytes: inout [UInt8]) {
    for k in 0..<8 { bytes[offset + k] = UInt8(truncatingIfNeeded: value >> UInt64(8 * k)) }
  }

  private mutating func float() -> UInt64 {
    switch random.below(10) {
    case 0, 1, 2, 3: return random.double()
    case 4, 5, 6, 7: return 0xffff_ffff_0000_0000 | random.single()
    case 8: return 0xffff_ffff_ffff_0000 | random.half()
    default: return random.next()
    }
  }
  // MARK: Instructions

  private mutating func freeRegister() -> UInt32 {
    while true {
      // Few registers make long dependency chains.
      let register = UInt32(random.chance(2) ? random.below(32) : 10 + random.below(8))
      if register != 2, register != base { return register }
    }
  }
  private mutating func source() -> UInt32 {
    UInt32(random.chance(2) ? random.below(32) : 10 + random.below(8))
  }
  private mutating func floatRegister() -> UInt32 {
    UInt32(random.chance(2) ? random.below(32) : 8 + random.below(8))
  }

  private mutating func instruction() -> UInt32 {
    while true {
      let row = rows[random.below(rows.count)]
      var word = row.pattern.value | UInt32(truncatingIfNeeded: random.next()) & ~row.pattern.mask
      func set(_ low: UInt32, _ width: UInt32, _ value: UInt32) {
        let mask = ((UInt32(1) << width) - 1) << low & ~row.pattern.mask
        word = word & ~mask | value << low & mask
      }
      func integerTarget() { set(7, 5, freeRegister()) }
      func floatSources() {
        set(15, 5, floatRegister())
        set(20, 5, floatRegister())
        set(27, 5, floatRegister())
      }
      func rounding() { set(12, 3, random.chance(2) ? 7 : UInt32(random.below(5))) }
      func memoryBase() { set(15, 5, random.chance(2) ? 2 : base) }
      func offset() -> UInt32 { UInt32(bitPattern: Int32(random.below(960) - 480)) }
      switch row.format {
      case .r, .r1, .i, .shift5, .shift6:
        integerTarget()
        set(15, 5, source())
        if row.format == .r { set(20, 5, source()) }
      case .u: integerTarget()
      case .j: integerTarget()
      case .b:
        set(15, 5, source())
        set(20, 5, source())
      case .load:
        integerTarget()
        memoryBase()
        set(20, 12, offset())
      case .fload:
        set(7, 5, floatRegister())
        memoryBase()
        set(20, 12, offset())
      case .store, .fstore:
        memoryBase()
        set(20, 5, row.format == .store ? source() : floatRegister())
        let displacement = offset()
        set(7, 5, displacement & 31)
        set(25, 7, displacement >> 5 & 127)
      case .amo, .lr:
        if row.opcode == .amocasQ { continue }
        // What sc does after lr of another width is the implementation's choice.
        if [.lrW, .scW].contains(row.opcode) && reservesDouble { continue }
        if [.lrD, .scD].contains(row.opcode) && !reservesDouble { continue }
        integerTarget()
        memoryBase()
        if row.format == .amo { set(20, 5, source()) }
      case .csr, .csri:
        integerTarget()
        guard let csr = controlRegister(row, &word) else { continue }
        word = csr
      case .frrm:
        set(7, 5, floatRegister())
        floatSources()
        rounding()
      case .fr4:
        set(7, 5, floatRegister())
        floatSources()
        rounding()
      case .frr:
        set(7, 5, floatRegister())
        floatSources()
      case .fr1rm:
        set(7, 5, floatRegister())
        set(15, 5, floatRegister())
        rounding()
      case .fcmp:
        integerTarget()
        floatSources()
      case .fxr:
        integerTarget()
        set(15, 5, floatRegister())
      case .fxrm:
        integerTarget()
        set(15, 5, floatRegister())
        rounding()
      case .ffx:
        set(7, 5, floatRegister())
        set(15, 5, source())
      case .ffxrm:
        set(7, 5, floatRegister())
        set(15, 5, source())
        rounding()
      case .cbo: memoryBase()
      case .fence, .none: break
      case .jalr, .fencevma: continue
      }
      return word
    }
  }

  /// Only what has the same outcome everywhere: flags, and rounding modes that exist.
  private mutating func controlRegister(_ row: RISCVRow, _ word: inout UInt32) -> UInt32? {
    let plain = word & ~(0xfff << 20)
    switch row.opcode {
    case .csrrwi:
      // fflags, frm (a mode), fcsr (flags only).
      switch random.below(3) {
      case 0: return plain | 1 << 20
      case 1: return plain & ~(31 << 15) | 2 << 20 | UInt32(random.below(5)) << 15
      default: return plain | 3 << 20
      }
    case .csrrs, .csrrc:
      if random.chance(2) { return plain & ~(31 << 15) | UInt32(1 + random.below(3)) << 20 }
      return plain | 1 << 20
    case .csrrsi, .csrrci, .csrrw: return plain | 1 << 20
    default: return nil
    }
  }

  /// A random compressed instruction that keeps the rules; branches get their targets later.
  private mutating func compressedInstruction() -> UInt32? {
    for _ in 0..<40 {
      let half = UInt16(truncatingIfNeeded: random.next())
      guard half & 3 != 3, let word = expandCompressed(half) else { continue }
      let i = RISCVDecoder.shared.decode(word, .default)
      switch i.format {
      case .r, .i, .u, .shift5, .shift6:
        // c.addi16sp moves sp; c.mv and others may not write it either.
        if i.rd == 2 || i.rd == UInt8(base) { continue }
      case .load, .fload:
        if i.format == .load, i.rd == 2 || i.rd == UInt8(base) { continue }
        guard i.rs1 == 2 || i.rs1 == UInt8(base) else { continue }
      case .store, .fstore: guard i.rs1 == 2 || i.rs1 == UInt8(base) else { continue }
      case .b, .j: break
      default: continue
      }
      return UInt32(half)
    }
    return nil
  }

  // MARK: Branches

  /// Points every branch and jump at an instruction boundary at most eight instructions ahead.
  private mutating func fixBranches(_ instructions: inout [GeneratedInstruction]) {
    var offsets: [Int] = [0]
    for instruction in instructions { offsets.append(offsets.last! + instruction.byteCount) }
    for index in instructions.indices {
      let target = offsets[min(instructions.count, index + 1 + random.below(8))]
      let distance = UInt32(target - offsets[index])
      let bits = instructions[index].bits
      if instructions[index].byteCount == 4 {
        if bits & 0x7f == 0x63 {
          instructions[index].bits =
            bits & 0x01ff_f07f | (distance >> 12 & 1) << 31 | (distance >> 5 & 63) << 25
            | (distance >> 1 & 15) << 8
            | (distance >> 11 & 1) << 7
        } else if bits & 0x7f == 0x6f {
          instructions[index].bits =
            bits & 0xfff | (distance >> 20 & 1) << 31 | (distance >> 1 & 1023) << 21 | (distance >> 11 & 1)
            << 20
            | (distance >> 12 & 255) << 12
        }
      } else if bits & 0xe003 == 0xa001 {
        instructions[index].bits =
          0xa001 | (distance >> 5 & 1) << 2 | (distance >> 1 & 7) << 3 | (distance >> 7 & 1) << 6
          | (distance >> 6 & 1) << 7 | (distance >> 10 & 1) << 8 | (distance >> 8 & 3) << 9
          | (distance >> 4 & 1) << 11
      } else if bits & 0xe003 == 0xc001 || bits & 0xe003 == 0xe001 {
        instructions[index].bits =
          bits & 0xe383 | (distance >> 5 & 1) << 2 | (distance >> 1 & 3) << 3 | (distance >> 6 & 3) << 5
          | (distance >> 3 & 3) << 10
      }
    }
  }
}
