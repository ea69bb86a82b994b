import ApusAsmX86
import ApusJIT
import ApusJITX86
import Testing

/// The two encodings of vector instructions: their bytes, and what they do to registers.
struct VectorEncodingTests {
  struct Encoding: Sendable, CustomTestStringConvertible {
    var name: String
    /// Bytes in hexadecimal, as llvm-mc gives them; VEX in its three-byte form.
    var legacy: String
    var vex: String
    var emit: @Sendable (inout X86Assembler) -> Void
    init(
      _ name: String, legacy: String, vex: String, _ emit: @escaping @Sendable (inout X86Assembler) -> Void
    ) {
      (self.name, self.legacy, self.vex, self.emit) = (name, legacy, vex, emit)
    }
    var testDescription: String { name }
  }

  static let legacy = X86VectorEncoding.legacy(scratch: X86Memory(.rbp, 0xf0))
  // swift-format-ignore
  static let encodings: [Encoding] = [
    Encoding(
      "distinct registers", legacy: "440f28ca66450ffece",
      vex: "c44169fece"
    ) { $0.vector(0xfe, .xmm9, .xmm2, .xmm14) },
    Encoding(
      "destination is the first source", legacy: "660ffed3",
      vex: "c4e169fed3"
    ) { $0.vector(0xfe, .xmm2, .xmm2, .xmm3) },
    Encoding(
      "destination is both", legacy: "660f76ff",
      vex: "c4e14176ff"
    ) { $0.vector(0x76, .xmm7, .xmm7, .xmm7) },
    Encoding(
      "destination is the second, which may be the first", legacy: "660ffeda",
      vex: "c4e169fedb"
    ) { $0.vector(0xfe, .xmm3, .xmm2, .xmm3) },
    Encoding(
      "destination is the second, which may not", legacy: "0f299df00000000f28da660ffa9df0000000",
      vex: "c4e169fadb"
    ) { $0.vector(0xfa, .xmm3, .xmm2, .xmm3) },
    Encoding(
      "pandn onto the second", legacy: "66440febe566440fefe5",
      vex: "c44151dfe4"
    ) { $0.vector(0xdf, .xmm12, .xmm5, .xmm12) },
    Encoding(
      "andnps onto the second", legacy: "410f56c8410f57c8",
      vex: "c4e13855c9"
    ) { $0.vector(0x55, .xmm1, .xmm8, .xmm1, prefix: 0) },
    Encoding(
      "scalar", legacy: "0f28caf2410f58cd",
      vex: "c4c16b58cd"
    ) { $0.vector(0x58, .xmm1, .xmm2, .xmm13, prefix: 3) },
    Encoding(
      "scalar onto the second", legacy: "440f29adf0000000440f28eaf3440f58adf0000000",
      vex: "c4416a58ed"
    ) { $0.vector(0x58, .xmm13, .xmm2, .xmm13, prefix: 2) },
    Encoding(
      "map 0F38", legacy: "66450f3800d4",
      vex: "c4422900d4"
    ) { $0.vector(0, .xmm10, .xmm10, .xmm12, map: 2) },
    Encoding(
      "map 0F3A with an immediate", legacy: "66410f3a0fc105",
      vex: "c4c3790fc105"
    ) { $0.vector(0x0f, .xmm0, .xmm0, .xmm9, immediate: 5, map: 3) },
    Encoding(
      "map 0F3A onto the second", legacy: "440f298df0000000440f28c866440f3a0f8df000000005",
      vex: "c443790fc905"
    ) { $0.vector(0x0f, .xmm9, .xmm0, .xmm9, immediate: 5, map: 3) },
    Encoding(
      "shufps", legacy: "0f28e50fc6e688",
      vex: "c4e150c6e688"
    ) { $0.vector(0xc6, .xmm4, .xmm5, .xmm6, immediate: 0x88, prefix: 0) },
    Encoding(
      "haddps", legacy: "f20f7ce6",
      vex: "c4e15b7ce6"
    ) { $0.vector(0x7c, .xmm4, .xmm4, .xmm6, prefix: 3) },
    Encoding(
      "memory", legacy: "440f28c166440f548560030000",
      vex: "c46171548560030000"
    ) { $0.vector(0x54, .xmm8, .xmm1, X86Memory(.rbp, 0x360), prefix: 1) },
    Encoding(
      "memory by an index, with an immediate", legacy: "470fc244cc0803",
      vex: "c40138c244cc0803"
    ) { $0.vector(
      0xc2, .xmm8, .xmm8, X86Memory(.r12, 8, index: .r9, scale: 3), immediate: 3, prefix: 0) },
    Encoding(
      "one source", legacy: "66450f381eca",
      vex: "c442791eca"
    ) { $0.vector(0x1e, .xmm9, .xmm10, map: 2) },
    Encoding(
      "one source, sqrtpd", legacy: "66410f51d9",
      vex: "c4c17951d9"
    ) { $0.vector(0x51, .xmm3, .xmm9) },
    Encoding(
      "one source, cvttps2dq", legacy: "f3440f5bcb",
      vex: "c4617a5bcb"
    ) { $0.vector(0x5b, .xmm9, .xmm3, prefix: 2) },
    Encoding(
      "one source, pshufhw", legacy: "f3440f70cb1b",
      vex: "c4617a70cb1b"
    ) { $0.vector(0x70, .xmm9, .xmm3, immediate: 0x1b, prefix: 2) },
    Encoding(
      "one source, roundpd", legacy: "66410f3a09cf0b",
      vex: "c4c37909cf0b"
    ) { $0.vector(0x09, .xmm1, .xmm15, immediate: 11, map: 3) },
    Encoding(
      "one source, ptest", legacy: "66450f3817db",
      vex: "c4427917db"
    ) { $0.vector(0x17, .xmm11, .xmm11, map: 2) },
    Encoding(
      "one source, aesimc", legacy: "66440f38dbd9",
      vex: "c46279dbd9"
    ) { $0.vector(0xdb, .xmm11, .xmm1, map: 2) },
    Encoding(
      "shift", legacy: "450f28c166410f73d807",
      vex: "c4c13973d907"
    ) { $0.vectorShift(0x73, 3, .xmm8, .xmm9, by: 7) },
    Encoding(
      "shift in place", legacy: "660f71e10f",
      vex: "c4e17171e10f"
    ) { $0.vectorShift(0x71, 4, .xmm1, .xmm1, by: 15) },
    Encoding(
      "upper half to a register", legacy: "664d0f3a16ca01",
      vex: "c443f916ca01"
    ) { $0.extractUpper(.r10, .xmm9) },
    Encoding(
      "upper half from a register", legacy: "664d0f3a22ca01",
      vex: "c443b122ca01"
    ) { $0.insertUpper(.xmm9, .r10) },
    Encoding(
      "product without carries", legacy: "66440f3a44ca00",
      vex: "c4633144ca00"
    ) { $0.carrylessMultiply(.xmm9, .xmm9, .xmm2) },
    Encoding("a mask of a byte", legacy: "41f6c240", vex: "41f6c240") { $0.test(.r10, immediate: 0x40) },
    Encoding("a mask of rsi's byte", legacy: "40f6c601", vex: "40f6c601") { $0.test(.rsi, immediate: 1) },
    Encoding("a wide mask", legacy: "f7c145230100", vex: "f7c145230100") { $0.test(.rcx, immediate: 0x12345) },
    Encoding(
      "shifts by lanes, which are AVX2's alone", legacy: "c4426947ce",
      vex: "c4426947ce"
    ) { $0.shiftByLanes(0x47, .xmm9, .xmm2, .xmm14, wide: false) },
    Encoding(
      "shifts by lanes of 64 bits", legacy: "c4e29945cb",
      vex: "c4e29945cb"
    ) { $0.shiftByLanes(0x45, .xmm1, .xmm12, .xmm3, wide: true) },
    Encoding(
      "AES", legacy: "440f28c966440f38dcca",
      vex: "c46271dcca"
    ) { $0.vector(0xdc, .xmm9, .xmm1, .xmm2, map: 2) },
    Encoding(
      "signs", legacy: "66450f50d1",
      vex: "66450f50d1"
    ) { $0.moveSigns(.r10, .xmm9, double: true) },
    Encoding(
      "highest bit", legacy: "4c0fbdd1",
      vex: "4c0fbdd1"
    ) { $0.bitScan(0xbd, .r10, .rcx, wide: true) },
    Encoding(
      "lowest bit", legacy: "410fbcd3",
      vex: "410fbcd3"
    ) { $0.bitScan(0xbc, .rdx, .r11, wide: false) },
  ]

  @Test(arguments: encodings) func bytes(_ one: Encoding) {
    func emitted(_ encoding: X86VectorEncoding) -> String {
      let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: 64)
      defer { buffer.deallocate() }
      var asm = X86Assembler(start: buffer, offset: 0, vectorEncoding: encoding)
      one.emit(&asm)
      return (0..<asm.offset).map { (buffer[$0] < 16 ? "0" : "") + String(buffer[$0], radix: 16) }.joined()
    }
    #expect(emitted(Self.legacy) == one.legacy)
    #expect(emitted(.vex) == one.vex)
  }

  // MARK: Effects

  /// An instruction with two sources: opcode, map, prefix and perhaps an immediate byte.
  private struct Instruction {
    var opcode: UInt8
    var map: UInt8 = 1
    var prefix: UInt8 = 1
    var immediate: UInt8?
  }
  private static let instructions: [Instruction] =
    ([
      0x14, 0x15, 0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x74,
      0x75,
      0x76, 0xd4, 0xd5, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xe3, 0xe4, 0xe5, 0xe8, 0xe9,
      0xea,
      0xeb, 0xec, 0xed, 0xee, 0xef, 0xf4, 0xf5, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0x7c,
    ] as [UInt8]).map { Instruction(opcode: $0) }
    + ([
      0x00, 0x02, 0x04, 0x0b, 0x28, 0x29, 0x2b, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x40,
    ] as [UInt8]).map { Instruction(opcode: $0, map: 2) }
    + ([0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f] as [UInt8]).flatMap { opcode in
      (0..<(opcode < 0x58 ? 2 : 4)).map { Instruction(opcode: opcode, prefix: $0) }
    }
    + [
      Instruction(opcode: 0xc6, prefix: 0, immediate: 0x9c), Instruction(opcode: 0x7c, prefix: 3),
      Instruction(opcode: 0xc2, prefix: 0, immediate: 1), Instruction(opcode: 0x0f, map: 3, immediate: 5),
      Instruction(opcode: 0x0d, map: 3, immediate: 2),
      Instruction(opcode: 0x0e, map: 3, immediate: 0xaa), Instruction(opcode: 0x21, map: 3, immediate: 0x0e),
    ]

  /// Every choice of three registers among xmm0 to xmm2 leaves all of them alike in both encodings.
  @Test(.enabled(if: X86HostLevel.host ?? .sse4 >= .avx)) func effects() throws {
    // SAFETY: 16-aligned; three registers, then SSE's scratch.
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 16)
    let buffer = try CodeBuffer(byteCount: 1 << 16, isPrivate: true)
    defer { memory.deallocate() }
    // Single-precision numbers from 1 to 2, which are numbers as doubles, too.
    func number(_ index: Int) -> UInt32 {
      0x3f80_0000 | UInt32(truncatingIfNeeded: index &* 0x9e37_79b9) >> 9
    }
    func run(_ encoding: X86VectorEncoding, _ one: Instruction, _ registers: [X86Vector]) -> [UInt32] {
      for index in 0..<16 { memory.storeBytes(of: number(index), toByteOffset: index * 4, as: UInt32.self) }
      var asm = X86Assembler(start: buffer.writable, offset: 0, vectorEncoding: encoding)
      for register in 0..<3 as Range<UInt8> {
        asm.loadWhole(X86Vector(rawValue: register)!, X86Memory(.rdi, Int32(register) * 16))
      }
      asm.vector(
        one.opcode, registers[0], registers[1], registers[2], immediate: one.immediate, map: one.map,
        prefix: one.prefix)
      for register in 0..<3 as Range<UInt8> {
        asm.storeWhole(X86Memory(.rdi, Int32(register) * 16), X86Vector(rawValue: register)!)
      }
      asm.ret()
      typealias Function = @convention(c) (UnsafeMutableRawPointer) -> Void
      unsafeBitCast(Int(buffer.address(0)), to: Function.self)(memory)
      return (0..<12).map { memory.load(fromByteOffset: $0 * 4, as: UInt32.self) }
    }
    let three: [X86Vector] = [.xmm0, .xmm1, .xmm2]
    for one in Self.instructions {
      for to in three {
        for a in three {
          for b in three {
            let vex = run(.vex, one, [to, a, b])
            let legacy = run(.legacy(scratch: X86Memory(.rdi, 48)), one, [to, a, b])
            #expect(vex == legacy, "\(one): \(to) = \(a), \(b)")
          }
        }
      }
    }
  }
}
