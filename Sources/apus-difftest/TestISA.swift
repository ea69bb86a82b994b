import ApusISAAArch64
import ApusISARISCV

/// What a test needs to know of a guest architecture.
protocol TestISA: Sendable {
  /// As `--isa` names it and QEMU's programs are called.
  var name: String { get }
  /// e_machine and e_flags.
  var machine: UInt64 { get }
  var elfFlags: UInt64 { get }
  /// The reference's options, so that it has what is tested.
  var referenceOptions: [String] { get }
  /// A block's area: scratch memory, then registers; see `Area` and `AArch64Area`.
  var areaByteCount: Int { get }
  /// Where the area keeps its registers that may point into it, 8 bytes each.
  var pointerOffsets: [Int] { get }
  /// A generator of random blocks.
  ///
  /// - Parameters:
  ///   - isCompared: there is a reference: nothing that it does otherwise.
  ///   - only: a prefix that mnemonics must have.
  ///   - hasAlternateFloat: AArch64's FPCR.AH, NEP and FIZ are set now and then.
  func generator(seed: UInt64, isCompared: Bool, only: String?, hasAlternateFloat: Bool) -> (
    _ address: UInt64, _ length: Int
  ) ->
    GeneratedBlock
  /// Code that loads the registers from the area, stores them and writes the area out, and ends the program.
  func prologue(_ area: UInt64) -> [UInt32]
  var epilogue: [UInt32] { get }
  var end: [UInt32] { get }
  func text(_ bits: UInt32, pc: UInt64) -> String
  /// What the 8 bytes at an offset into the area are.
  func placeName(_ offset: Int) -> String
}

let testISAs: [any TestISA] = [RISCVTests(), AArch64Tests()]

struct RISCVTests: TestISA {
  let name = "riscv64"
  let machine: UInt64 = 243
  let elfFlags: UInt64 = 5  // RVC, double float
  let referenceOptions = ["-cpu", "rv64,Zfh=true,Zfhmin=true"]
  let areaByteCount = Area.byteCount
  let pointerOffsets = (1..<32).map { Area.integers + 8 * $0 }

  /// What QEMU 7.2 and this emulator have in common.
  private static let common = RISCVExtensionSet([
    .i, .m, .a, .f, .d, .c, .zicsr, .zba, .zbb, .zbc, .zbs, .zfh, .zfhmin,
  ])
  /// QEMU 7.2 counts on into the upper half where the lower one is zero; the manual says 32 [RV-Unpriv 30.4.2].
  private static let referenceDeviations: Set<RISCVOpcode> = [.ctzw]

  func generator(seed: UInt64, isCompared: Bool, only: String?, hasAlternateFloat: Bool) -> (UInt64, Int) ->
    GeneratedBlock
  {
    var extensions = Self.common
    if !isCompared {
      extensions = .default
      extensions.set(.v, false)
      extensions.set(.zihpm, false)
    }
    var generator = BlockGenerator(
      seed: seed, extensions: extensions, only: only, excluding: isCompared ? Self.referenceDeviations : [])
    return { generator.block(address: $0, length: $1) }
  }

  private func addi(_ rd: UInt32, _ rs1: UInt32, _ value: Int32) -> UInt32 {
    UInt32(bitPattern: value) << 20 | rs1 << 15 | rd << 7 | 0x13
  }
  private func load(_ rd: UInt32, _ offset: Int, float: Bool) -> UInt32 {
    UInt32(offset) << 20 | 2 << 15 | 3 << 12 | rd << 7 | (float ? 0x07 : 0x03)
  }
  private func store(_ rs2: UInt32, _ offset: Int, float: Bool) -> UInt32 {
    (UInt32(offset) >> 5) << 25 | rs2 << 20 | 2 << 15 | 3 << 12 | (UInt32(offset) & 31) << 7
      | (float ? 0x27 : 0x23)
  }

  func prologue(_ area: UInt64) -> [UInt32] {
    let stackPointer = UInt32(area) + UInt32(Area.stackPointer)
    let high = (stackPointer &+ 0x800) >> 12
    let bias = Area.stackPointer
    var code = [
      high << 12 | 2 << 7 | 0x37,  // lui sp
      addi(2, 2, Int32(bitPattern: stackPointer &- high << 12)), load(1, Area.control - bias, float: false),
      0x0030_9073,  // csrw fcsr, ra
    ]
    for number in 0..<32 { code.append(load(UInt32(number), Area.floats + 8 * number - bias, float: true)) }
    for number in 1..<32 where number != 2 {
      code.append(load(UInt32(number), Area.integers + 8 * number - bias, float: false))
    }
    return code
  }
  var epilogue: [UInt32] {
    let bias = Area.stackPointer
    var code: [UInt32] = []
    for number in 1..<32 {
      code.append(store(UInt32(number), Area.integers + 8 * number - bias, float: false))
    }
    for number in 0..<32 { code.append(store(UInt32(number), Area.floats + 8 * number - bias, float: true)) }
    return code + [
      0x0030_20f3,  // csrr ra, fcsr
      store(1, Area.control - bias, float: false),
      // write(1, area, size)
      addi(10, 0, 1), addi(11, 2, Int32(-bias)), 0x0000_1637,  // lui a2, 1
      addi(12, 12, Int32(Area.byteCount - 4096)), addi(17, 0, 64), 0x73,
    ]
  }
  /// exit_group(0)
  var end: [UInt32] { [addi(10, 0, 0), addi(17, 0, 94), 0x73] }
  func text(_ bits: UInt32, pc: UInt64) -> String { RISCVDisassembler.text(bits, pc: pc) }
  func placeName(_ offset: Int) -> String {
    switch offset {
    case Area.control: "fcsr"
    case Area.floats..<Area.control: RISCVDisassembler.floatRegisterName((offset - Area.floats) / 8)
    case Area.integers..<Area.floats: RISCVDisassembler.registerName((offset - Area.integers) / 8)
    default: "sp\(offset - Area.stackPointer)"
    }
  }
}
