import ApusAsmX86
import Testing

/// AVX-512's instructions as binutils encode them.
struct EVEXEncodingTests {
  struct Encoding: Sendable, CustomTestStringConvertible {
    /// As the assembler is given it, sources first.
    var name: String
    var bytes: String
    var emit: @Sendable (inout X86Assembler) -> Void
    init(_ name: String, _ bytes: String, _ emit: @escaping @Sendable (inout X86Assembler) -> Void) {
      (self.name, self.bytes, self.emit) = (name, bytes, emit)
    }
    var testDescription: String { name }
  }

  // swift-format-ignore
  static let encodings: [Encoding] = [
    Encoding("vpternlogq 0x96, xmm14, xmm2, xmm9", "6253ed0825ce96") { $0.evex(0x25, .xmm9, .xmm2, .xmm14, immediate: 0x96, map: 3, wide: true) },
    Encoding("vpcmpub 5, xmm14, xmm2, k1", "62d36d083ece05") { $0.evex(0x3e, .k1, .xmm2, .xmm14, immediate: 5, map: 3, wide: false) },
    Encoding("vpcmpb 6, xmm3, xmm10, k1", "62f32d083fcb06") { $0.evex(0x3f, .k1, .xmm10, .xmm3, immediate: 6, map: 3, wide: false) },
    Encoding("vpcmpuw 6, xmm3, xmm10, k1", "62f3ad083ecb06") { $0.evex(0x3e, .k1, .xmm10, .xmm3, immediate: 6, map: 3, wide: true) },
    Encoding("vpcmpw 5, xmm3, xmm10, k1", "62f3ad083fcb05") { $0.evex(0x3f, .k1, .xmm10, .xmm3, immediate: 5, map: 3, wide: true) },
    Encoding("vpcmpud 5, xmm3, xmm10, k1", "62f32d081ecb05") { $0.evex(0x1e, .k1, .xmm10, .xmm3, immediate: 5, map: 3, wide: false) },
    Encoding("vpcmpd 5, xmm3, xmm10, k1", "62f32d081fcb05") { $0.evex(0x1f, .k1, .xmm10, .xmm3, immediate: 5, map: 3, wide: false) },
    Encoding("vpcmpuq 6, xmm3, xmm10, k1", "62f3ad081ecb06") { $0.evex(0x1e, .k1, .xmm10, .xmm3, immediate: 6, map: 3, wide: true) },
    Encoding("vpcmpq 5, xmm15, xmm0, k1", "62d3fd081fcf05") { $0.evex(0x1f, .k1, .xmm0, .xmm15, immediate: 5, map: 3, wide: true) },
    Encoding("vptestmb xmm3, xmm10, k1", "62f22d0826cb") { $0.evex(0x26, .k1, .xmm10, .xmm3, map: 2, wide: false) },
    Encoding("vptestmw xmm3, xmm10, k1", "62f2ad0826cb") { $0.evex(0x26, .k1, .xmm10, .xmm3, map: 2, wide: true) },
    Encoding("vptestmd xmm3, xmm10, k1", "62f22d0827cb") { $0.evex(0x27, .k1, .xmm10, .xmm3, map: 2, wide: false) },
    Encoding("vptestmq xmm3, xmm10, k1", "62f2ad0827cb") { $0.evex(0x27, .k1, .xmm10, .xmm3, map: 2, wide: true) },
    Encoding("vpmovm2b k1, xmm9", "62727e0828c9") { $0.expand(.xmm9, .k1, scale: 0) },
    Encoding("vpmovm2w k1, xmm9", "6272fe0828c9") { $0.expand(.xmm9, .k1, scale: 1) },
    Encoding("vpmovm2d k1, xmm9", "62727e0838c9") { $0.expand(.xmm9, .k1, scale: 2) },
    Encoding("vpmovm2q k1, xmm9", "6272fe0838c9") { $0.expand(.xmm9, .k1, scale: 3) },
    Encoding("vpmovw2m xmm9, k1", "62d2fe0829c9") { $0.moveSigns(.k1, .xmm9, scale: 1) },
    Encoding("vpmovd2m xmm9, k1", "62d27e0839c9") { $0.moveSigns(.k1, .xmm9, scale: 2) },
    Encoding("vpmovq2m xmm9, k1", "62d2fe0839c9") { $0.moveSigns(.k1, .xmm9, scale: 3) },
    Encoding("vpsraq 63, xmm9, xmm2", "62d1ed0872e13f") { $0.evexShift(0x72, 4, .xmm2, .xmm9, by: 63, wide: true) },
    Encoding("vprord 7, xmm3, xmm12", "62f11d0872c307") { $0.evexShift(0x72, 0, .xmm12, .xmm3, by: 7, wide: false) },
    Encoding("vprorq 63, xmm9, xmm2", "62d1ed0872c13f") { $0.evexShift(0x72, 0, .xmm2, .xmm9, by: 63, wide: true) },
    Encoding("vpabsq xmm9, xmm2", "62d2fd081fd1") { $0.evex(0x1f, .xmm2, .xmm9, map: 2, wide: true) },
    Encoding("vplzcntd xmm2, xmm9", "62727d0844ca") { $0.evex(0x44, .xmm9, .xmm2, map: 2, wide: false) },
    Encoding("vpopcntb xmm2, xmm9", "62727d0854ca") { $0.evex(0x54, .xmm9, .xmm2, map: 2, wide: false) },
    Encoding("vpsllvw xmm14, xmm2, xmm9", "6252ed0812ce") { $0.evex(0x12, .xmm9, .xmm2, .xmm14, map: 2, wide: true) },
    Encoding("vpsllvd xmm14, xmm2, xmm9", "62526d0847ce") { $0.evex(0x47, .xmm9, .xmm2, .xmm14, map: 2, wide: false) },
    Encoding("vpsllvq xmm14, xmm2, xmm9", "6252ed0847ce") { $0.evex(0x47, .xmm9, .xmm2, .xmm14, map: 2, wide: true) },
    Encoding("vpsrlvw xmm14, xmm2, xmm9", "6252ed0810ce") { $0.evex(0x10, .xmm9, .xmm2, .xmm14, map: 2, wide: true) },
    Encoding("vpsrlvd xmm14, xmm2, xmm9", "62526d0845ce") { $0.evex(0x45, .xmm9, .xmm2, .xmm14, map: 2, wide: false) },
    Encoding("vpsrlvq xmm14, xmm2, xmm9", "6252ed0845ce") { $0.evex(0x45, .xmm9, .xmm2, .xmm14, map: 2, wide: true) },
    Encoding("vpsravw xmm14, xmm2, xmm9{k1}", "6252ed0911ce") { $0.evex(0x11, .xmm9, .xmm2, .xmm14, map: 2, wide: true, mask: .k1) },
    Encoding("vpsravd xmm14, xmm2, xmm9{k1}", "62526d0946ce") { $0.evex(0x46, .xmm9, .xmm2, .xmm14, map: 2, wide: false, mask: .k1) },
    Encoding("vpsravq xmm14, xmm2, xmm9{k1}", "6252ed0946ce") { $0.evex(0x46, .xmm9, .xmm2, .xmm14, map: 2, wide: true, mask: .k1) },
    Encoding("vpmaxsq xmm14, xmm2, xmm9", "6252ed083dce") { $0.evex(0x3d, .xmm9, .xmm2, .xmm14, map: 2, wide: true) },
    Encoding("vpmovwb xmm9, xmm2", "62727e0830ca") { $0.evex(0x30, .xmm9, .xmm2, map: 2, prefix: 2, wide: false) },
    Encoding("vpmovdw xmm9, xmm2", "62727e0833ca") { $0.evex(0x33, .xmm9, .xmm2, map: 2, prefix: 2, wide: false) },
    Encoding("vpmovqd xmm2, xmm9", "62d27e0835d1") { $0.evex(0x35, .xmm2, .xmm9, map: 2, prefix: 2, wide: false) },
    Encoding("vpmovsqd xmm9, xmm2", "62727e0825ca") { $0.evex(0x25, .xmm9, .xmm2, map: 2, prefix: 2, wide: false) },
    Encoding("vpmovusqd xmm9, xmm2", "62727e0815ca") { $0.evex(0x15, .xmm9, .xmm2, map: 2, prefix: 2, wide: false) },
    Encoding("vpbroadcastq r10, xmm2", "62d2fd087cd2") { $0.broadcast(.xmm2, .r10, wide: true) },
    Encoding("vpbroadcastd ecx, xmm9", "62727d087cc9") { $0.broadcast(.xmm9, .rcx, wide: false) },
    Encoding("vcvtqq2pd xmm9, xmm2", "62d1fe08e6d1") { $0.evex(0xe6, .xmm2, .xmm9, map: 1, prefix: 2, wide: true) },
    Encoding("vcvttpd2qq xmm9, xmm2", "62d1fd087ad1") { $0.evex(0x7a, .xmm2, .xmm9, map: 1, prefix: 1, wide: true) },
    Encoding("vcvttpd2uqq xmm9, xmm2", "62d1fd0878d1") { $0.evex(0x78, .xmm2, .xmm9, map: 1, prefix: 1, wide: true) },
    Encoding("vcvttps2udq xmm9, xmm2", "62d17c0878d1") { $0.evex(0x78, .xmm2, .xmm9, map: 1, prefix: 0, wide: false) },
    Encoding("vcvttsd2usi xmm9, r10", "6251ff0878d1") { $0.convertToUnsigned(.r10, .xmm9, double: true, wide: true, truncating: true) },
    Encoding("vcvtsd2usi xmm9, ecx", "62d17f0879c9") { $0.convertToUnsigned(.rcx, .xmm9, double: true, wide: false, truncating: false) },
    Encoding("vcvttss2usi xmm2, r10d", "62717e0878d2") { $0.convertToUnsigned(.r10, .xmm2, double: false, wide: false, truncating: true) },
  ]

  @Test(arguments: encodings) func bytes(_ one: Encoding) {
    let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: 64)
    defer { buffer.deallocate() }
    var asm = X86Assembler(start: buffer, offset: 0, vectorEncoding: .vex)
    one.emit(&asm)
    let bytes = (0..<asm.offset).map { (buffer[$0] < 16 ? "0" : "") + String(buffer[$0], radix: 16) }.joined()
    #expect(bytes == one.bytes)
  }
}
