import ApusBits
import Testing

/// The steps of ciphers against the examples of their standards, whole algorithms built from them.
struct CipherRoundsTests {
  private func bytes(_ text: String) -> SIMD16<UInt8> {
    let digits = Array(text)
    return SIMD16((0..<16).map { UInt8(String(digits[2 * $0..<2 * $0 + 2]), radix: 16) ?? 0 })
  }

  /// [FIPS 197 B]: the example's state at round 1's steps, and back.
  @Test func aesRound() {
    let start = bytes("193de3bea0f4e22b9ac68d2ae9f84808")
    let shifted = bytes("d4bf5d30e0b452aeb84111f11e2798e5")
    let mixed = bytes("046681e5e0cb199a48f8d37a2806264c")
    #expect(AESRound.encrypt(start) == shifted)
    #expect(AESRound.decrypt(shifted) == start)
    #expect(AESRound.mixColumns(shifted) == mixed)
    #expect(AESRound.inverseMixColumns(mixed) == shifted)
  }

  /// "abc", padded to a block, as words.
  private static let message: [UInt32] = [0x6162_6380] + [UInt32](repeating: 0, count: 14) + [24]

  @Test func sha256OfABC() {
    // The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
    let constants = Self.primes(64).map { Self.fraction(rootOf: $0, cubic: true) }
    let start = Self.primes(8).map { Self.fraction(rootOf: $0, cubic: false) }
    var (x, y) = (SIMD4(start[0..<4]), SIMD4(start[4..<8]))
    let (x0, y0) = (x, y)
    var w = (0..<4).map { SIMD4(Self.message[4 * $0..<4 * $0 + 4]) }
    for round in 0..<16 {
      (x, y) = SHA256Rounds.rounds(x, y, w[0] &+ SIMD4(constants[4 * round..<4 * round + 4]))
      let next = SHA256Rounds.scheduleSecond(SHA256Rounds.scheduleFirst(w[0], w[1]), w[2], w[3])
      w = [w[1], w[2], w[3], next]
    }
    #expect(x &+ x0 == SIMD4(0xba78_16bf, 0x8f01_cfea, 0x4141_40de, 0x5dae_2223))
    #expect(y &+ y0 == SIMD4(0xb003_61a3, 0x9617_7a9c, 0xb410_ff61, 0xf200_15ad))
  }

  @Test func sha1OfABC() {
    var (x, e) = (SIMD4<UInt32>(0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476), UInt32(0xc3d2_e1f0))
    let x0 = x
    var w = (0..<4).map { SIMD4(Self.message[4 * $0..<4 * $0 + 4]) }
    let functions: [SHA1Rounds.Function] = [.choose, .parity, .majority, .parity]
    let constants: [UInt32] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6]
    for round in 0..<20 {
      let old = x
      x = SHA1Rounds.rounds(functions[round / 5], x, e, w[0] &+ SIMD4(repeating: constants[round / 5]))
      e = old[0] << 30 | old[0] >> 2
      let next = SHA1Rounds.scheduleSecond(SHA1Rounds.scheduleFirst(w[0], w[1], w[2]), w[3])
      w = [w[1], w[2], w[3], next]
    }
    #expect(x &+ x0 == SIMD4(0xa999_3e36, 0x4706_816a, 0xba3e_2571, 0x7850_c26c))
    #expect(e &+ 0xc3d2_e1f0 == 0x9cd0_d89d)
  }

  /// [GB/T 32907 A.1]: one block with the key that it is, the key schedule included.
  @Test func sm4() {
    let block = SIMD4<UInt32>(0x0123_4567, 0x89ab_cdef, 0xfedc_ba98, 0x7654_3210)
    let system = SIMD4<UInt32>(0xa3b1_bac6, 0x56aa_3350, 0x677d_9197, 0xb270_22dc)
    var key = block ^ system
    var state = block
    for round in 0..<8 {
      let constants = (0..<4).map { word in
        (0..<4).reduce(UInt32(0)) { $0 << 8 | UInt32((4 * (4 * round + word) + $1) * 7 & 0xff) }
      }
      key = SM4Rounds.rounds(key, SIMD4(constants), isKeySchedule: true)
      state = SM4Rounds.rounds(state, key, isKeySchedule: false)
    }
    #expect(
      SIMD4(state[3], state[2], state[1], state[0])
        == SIMD4(0x681e_df34, 0xd206_965e, 0x86b3_e94f, 0x536e_4246))
  }

  @Test func cyclicRedundancy() {
    for (kind, expected) in [
      (CyclicRedundancy.ieee, UInt32(0xcbf4_3926)), (.castagnoli, 0xe306_9283),
    ] {
      var (sum, wide) = (UInt32.max, UInt32.max)
      for byte in "123456789".utf8 { sum = kind.updated(sum, with: UInt64(byte), byteCount: 1) }
      #expect(~sum == expected)
      // The product's form, of eight bytes and one.
      let eight = "12345678".utf8.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      let quotient = carrylessProduct(UInt64(wide) ^ eight, kind.quotientFactor).low
      wide = UInt32(truncatingIfNeeded: carrylessProduct(quotient, kind.divisor).high)
      #expect(~kind.updated(wide, with: UInt64(UInt8(ascii: "9")), byteCount: 1) == expected)
    }
  }

  private static func primes(_ count: Int) -> [UInt64] {
    var result: [UInt64] = []
    var candidate: UInt64 = 2
    while result.count < count {
      if result.allSatisfy({ candidate % $0 != 0 }) { result.append(candidate) }
      candidate += 1
    }
    return result
  }
  /// 32 bits behind the point.
  private static func fraction(rootOf number: UInt64, cubic: Bool) -> UInt32 {
    var root: UInt128 = 0
    for bit in (0..<40 as Range<UInt128>).reversed() {
      let candidate = root | 1 << bit
      let power = cubic ? candidate * candidate * candidate : candidate * candidate
      if power <= UInt128(number) << (cubic ? 96 : 64) { root = candidate }
    }
    return UInt32(truncatingIfNeeded: root)
  }
}
