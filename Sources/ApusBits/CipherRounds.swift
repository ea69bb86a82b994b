// The steps of ciphers and hash functions that processors have as instructions, in portable code: what IR and guests fall
// back on, and what generated code is compared with. Bytes and words count from the lowest lane up.

/// A round of AES on its 16 bytes, in columns [FIPS 197 5.1, 5.3].
public enum AESRound {
  /// The product by x in AES's field.
  @inline(__always)
  private static func doubled(_ a: UInt8) -> UInt8 { a << 1 ^ (a & 0x80 != 0 ? 0x1b : 0) }
  private static func product(_ a: UInt8, _ b: UInt8) -> UInt8 {
    var (a, result) = (a, UInt8(0))
    for bit in 0..<8 as Range<UInt8> {
      if b >> bit & 1 != 0 { result ^= a }
      a = doubled(a)
    }
    return result
  }

  private static let substitution: [UInt8] = (0..<256).map { number in
    let byte = UInt8(number)
    // The inverse is the 254th power.
    var (inverse, square) = (UInt8(1), byte)
    for _ in 0..<7 {
      square = product(square, square)
      inverse = product(inverse, square)
    }
    func rotated(_ count: UInt8) -> UInt8 { inverse << count | inverse >> (8 - count) }
    return inverse ^ rotated(1) ^ rotated(2) ^ rotated(3) ^ rotated(4) ^ 0x63
  }
  private static let inverseSubstitution: [UInt8] = {
    var result = [UInt8](repeating: 0, count: 256)
    for (number, byte) in substitution.enumerated() { result[Int(byte)] = UInt8(number) }
    return result
  }()

  /// SubBytes and ShiftRows.
  public static func encrypt(_ state: SIMD16<UInt8>) -> SIMD16<UInt8> {
    substitution.withUnsafeBufferPointer { box in
      var result = state
      for index in 0..<16 { result[index] = box[Int(state[(index + 4 * (index & 3)) & 15])] }
      return result
    }
  }
  /// InvShiftRows and InvSubBytes.
  public static func decrypt(_ state: SIMD16<UInt8>) -> SIMD16<UInt8> {
    inverseSubstitution.withUnsafeBufferPointer { box in
      var result = state
      for index in 0..<16 { result[index] = box[Int(state[(index - 4 * (index & 3)) & 15])] }
      return result
    }
  }
  public static func mixColumns(_ state: SIMD16<UInt8>) -> SIMD16<UInt8> {
    var result = state
    for index in 0..<16 {
      func byte(_ offset: Int) -> UInt8 { state[index & 12 | (index + offset) & 3] }
      result[index] = doubled(byte(0) ^ byte(1)) ^ byte(1) ^ byte(2) ^ byte(3)
    }
    return result
  }
  public static func inverseMixColumns(_ state: SIMD16<UInt8>) -> SIMD16<UInt8> {
    // The inverse matrix is the matrix times that of 5 0 4 0.
    var prepared = state
    for index in 0..<16 {
      prepared[index] = state[index] ^ doubled(doubled(state[index] ^ state[index & 12 | (index + 2) & 3]))
    }
    return mixColumns(prepared)
  }
}

/// Four rounds of SHA-1, and its schedule [FIPS 180-4 6.1].
public enum SHA1Rounds {
  public enum Function: UInt8, Sendable { case choose, parity, majority }

  /// - Parameters:
  ///   - state: a, b, c, d; `e` beside them.
  ///   - words: of the message, the round's constant added.
  public static func rounds(
    _ function: Function, _ state: SIMD4<UInt32>, _ e: UInt32, _ words: SIMD4<UInt32>
  ) -> SIMD4<UInt32> {
    var (x, e) = (state, e)
    for index in 0..<4 {
      let f =
        switch function {
        case .choose: (x[2] ^ x[3]) & x[1] ^ x[3]
        case .parity: x[1] ^ x[2] ^ x[3]
        case .majority: x[1] & x[2] | (x[1] | x[2]) & x[3]
        }
      let a = e &+ x[0].rotatedLeft(5) &+ f &+ words[index]
      e = x[3]
      x = SIMD4(a, x[0], x[1].rotatedLeft(30), x[2])
    }
    return x
  }
  /// The exclusive or of words that are two, and of those that are eight and more back.
  public static func scheduleFirst(_ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>, _ m: SIMD4<UInt32>)
    -> SIMD4<UInt32>
  { SIMD4(d[2], d[3], n[0], n[1]) ^ d ^ m }
  public static func scheduleSecond(_ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>) -> SIMD4<UInt32> {
    let t = d ^ SIMD4(n[1], n[2], n[3], 0)
    return SIMD4(
      t[0].rotatedLeft(1), t[1].rotatedLeft(1), t[2].rotatedLeft(1), t[3].rotatedLeft(1) ^ t[0].rotatedLeft(2)
    )
  }
}

/// Four rounds of SHA-256, and its schedule [FIPS 180-4 6.2].
public enum SHA256Rounds {
  /// - Parameters:
  ///   - x, y: a, b, c, d and e, f, g, h; the rounds' new ones are given back.
  ///   - words: of the message, the rounds' constants added.
  public static func rounds(_ x: SIMD4<UInt32>, _ y: SIMD4<UInt32>, _ words: SIMD4<UInt32>)
    -> (x: SIMD4<UInt32>, y: SIMD4<UInt32>)
  {
    var (x, y) = (x, y)
    for index in 0..<4 {
      let choice = (y[1] ^ y[2]) & y[0] ^ y[2]
      let majority = x[0] & x[1] | (x[0] | x[1]) & x[2]
      let sum1 = y[0].rotatedRight(6) ^ y[0].rotatedRight(11) ^ y[0].rotatedRight(25)
      let sum0 = x[0].rotatedRight(2) ^ x[0].rotatedRight(13) ^ x[0].rotatedRight(22)
      let t = y[3] &+ sum1 &+ choice &+ words[index]
      let e = x[3] &+ t
      x = SIMD4(t &+ sum0 &+ majority, x[0], x[1], x[2])
      y = SIMD4(e, y[0], y[1], y[2])
    }
    return (x, y)
  }
  public static func scheduleFirst(_ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>) -> SIMD4<UInt32> {
    var result = d
    for index in 0..<4 {
      let w = index < 3 ? d[index + 1] : n[0]
      result[index] = d[index] &+ (w.rotatedRight(7) ^ w.rotatedRight(18) ^ w >> 3)
    }
    return result
  }
  public static func scheduleSecond(_ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>, _ m: SIMD4<UInt32>)
    -> SIMD4<UInt32>
  {
    var result = d
    for index in 0..<4 {
      let w = index < 2 ? m[index + 2] : result[index - 2]
      let older = index < 3 ? n[index + 1] : m[0]
      result[index] = d[index] &+ older &+ (w.rotatedRight(17) ^ w.rotatedRight(19) ^ w >> 10)
    }
    return result
  }
}

/// SM3's rounds and schedule as Arm's instructions cut them [GB/T 32905-2016].
public enum SM3Rounds {
  public static func shared(_ n: SIMD4<UInt32>, _ m: SIMD4<UInt32>, _ a: SIMD4<UInt32>) -> SIMD4<UInt32> {
    SIMD4(0, 0, 0, (n[3].rotatedLeft(12) &+ m[3] &+ a[3]).rotatedLeft(7))
  }
  /// - Parameters: `isLate`, from round 16 on; `word`, the message's.
  public static func first(
    _ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>, word: UInt32, isLate: Bool
  ) -> SIMD4<UInt32> {
    let f = isLate ? d[3] & d[1] | d[3] & d[2] | d[1] & d[2] : d[1] ^ d[2] ^ d[3]
    let t = f &+ d[0] &+ (n[3] ^ d[3].rotatedLeft(12)) &+ word
    return SIMD4(d[1], d[2].rotatedLeft(9), d[3], t)
  }
  public static func second(
    _ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>, word: UInt32, isLate: Bool
  ) -> SIMD4<UInt32> {
    let g = isLate ? d[3] & d[2] | ~d[3] & d[1] : d[1] ^ d[2] ^ d[3]
    let t = g &+ d[0] &+ n[3] &+ word
    return SIMD4(d[1], d[2].rotatedLeft(19), d[3], t ^ t.rotatedLeft(9) ^ t.rotatedLeft(17))
  }
  private static func permuted(_ x: UInt32) -> UInt32 { x ^ x.rotatedLeft(15) ^ x.rotatedLeft(23) }
  public static func scheduleFirst(_ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>, _ m: SIMD4<UInt32>)
    -> SIMD4<UInt32>
  {
    var result = d ^ n
    for index in 0..<4 {
      result[index] ^= (index < 3 ? m[index + 1] : result[0]).rotatedLeft(15)
      result[index] = permuted(result[index])
    }
    return result
  }
  public static func scheduleSecond(_ d: SIMD4<UInt32>, _ n: SIMD4<UInt32>, _ m: SIMD4<UInt32>)
    -> SIMD4<UInt32>
  {
    var t = n
    for index in 0..<4 { t[index] ^= m[index].rotatedLeft(7) }
    var result = d ^ t
    result[3] ^= permuted(t[0].rotatedLeft(15))
    return result
  }
}

/// Four rounds of SM4, or of its key schedule [GB/T 32907-2016].
public enum SM4Rounds {
  private static let substitution: [UInt8] = [
    0xd6, 0x90, 0xe9, 0xfe, 0xcc, 0xe1, 0x3d, 0xb7, 0x16, 0xb6, 0x14, 0xc2, 0x28, 0xfb, 0x2c, 0x05,
    0x2b, 0x67, 0x9a, 0x76, 0x2a, 0xbe, 0x04, 0xc3, 0xaa, 0x44, 0x13, 0x26, 0x49, 0x86, 0x06, 0x99,
    0x9c, 0x42, 0x50, 0xf4, 0x91, 0xef, 0x98, 0x7a, 0x33, 0x54, 0x0b, 0x43, 0xed, 0xcf, 0xac, 0x62,
    0xe4, 0xb3, 0x1c, 0xa9, 0xc9, 0x08, 0xe8, 0x95, 0x80, 0xdf, 0x94, 0xfa, 0x75, 0x8f, 0x3f, 0xa6,
    0x47, 0x07, 0xa7, 0xfc, 0xf3, 0x73, 0x17, 0xba, 0x83, 0x59, 0x3c, 0x19, 0xe6, 0x85, 0x4f, 0xa8,
    0x68, 0x6b, 0x81, 0xb2, 0x71, 0x64, 0xda, 0x8b, 0xf8, 0xeb, 0x0f, 0x4b, 0x70, 0x56, 0x9d, 0x35,
    0x1e, 0x24, 0x0e, 0x5e, 0x63, 0x58, 0xd1, 0xa2, 0x25, 0x22, 0x7c, 0x3b, 0x01, 0x21, 0x78, 0x87,
    0xd4, 0x00, 0x46, 0x57, 0x9f, 0xd3, 0x27, 0x52, 0x4c, 0x36, 0x02, 0xe7, 0xa0, 0xc4, 0xc8, 0x9e,
    0xea, 0xbf, 0x8a, 0xd2, 0x40, 0xc7, 0x38, 0xb5, 0xa3, 0xf7, 0xf2, 0xce, 0xf9, 0x61, 0x15, 0xa1,
    0xe0, 0xae, 0x5d, 0xa4, 0x9b, 0x34, 0x1a, 0x55, 0xad, 0x93, 0x32, 0x30, 0xf5, 0x8c, 0xb1, 0xe3,
    0x1d, 0xf6, 0xe2, 0x2e, 0x82, 0x66, 0xca, 0x60, 0xc0, 0x29, 0x23, 0xab, 0x0d, 0x53, 0x4e, 0x6f,
    0xd5, 0xdb, 0x37, 0x45, 0xde, 0xfd, 0x8e, 0x2f, 0x03, 0xff, 0x6a, 0x72, 0x6d, 0x6c, 0x5b, 0x51,
    0x8d, 0x1b, 0xaf, 0x92, 0xbb, 0xdd, 0xbc, 0x7f, 0x11, 0xd9, 0x5c, 0x41, 0x1f, 0x10, 0x5a, 0xd8,
    0x0a, 0xc1, 0x31, 0x88, 0xa5, 0xcd, 0x7b, 0xbd, 0x2d, 0x74, 0xd0, 0x12, 0xb8, 0xe5, 0xb4, 0xb0,
    0x89, 0x69, 0x97, 0x4a, 0x0c, 0x96, 0x77, 0x7e, 0x65, 0xb9, 0xf1, 0x09, 0xc5, 0x6e, 0xc6, 0x84,
    0x18, 0xf0, 0x7d, 0xec, 0x3a, 0xdc, 0x4d, 0x20, 0x79, 0xee, 0x5f, 0x3e, 0xd7, 0xcb, 0x39, 0x48,
  ]

  /// - Parameter isKeySchedule: with the key schedule's linear step; `keys` are then its constants.
  public static func rounds(_ state: SIMD4<UInt32>, _ keys: SIMD4<UInt32>, isKeySchedule: Bool) -> SIMD4<
    UInt32
  > {
    var x = state
    for index in 0..<4 {
      let mixed = x[1] ^ x[2] ^ x[3] ^ keys[index]
      var t: UInt32 = 0
      for shift in stride(from: 0, to: 32, by: 8) as StrideTo<UInt32> {
        t |= UInt32(substitution[Int(mixed >> shift & 0xff)]) << shift
      }
      t ^=
        isKeySchedule
        ? t.rotatedLeft(13) ^ t.rotatedLeft(23)
        : t.rotatedLeft(2) ^ t.rotatedLeft(10) ^ t.rotatedLeft(18) ^ t.rotatedLeft(24)
      x = SIMD4(x[1], x[2], x[3], x[0] ^ t)
    }
    return x
  }
}

extension FixedWidthInteger where Self: UnsignedInteger {
  @inline(__always)
  func rotatedLeft(_ count: Self) -> Self { self << count | self >> (Self(Self.bitWidth) - count) }
  @inline(__always)
  func rotatedRight(_ count: Self) -> Self { self >> count | self << (Self(Self.bitWidth) - count) }
}
