/// CRC-32 sums, the lowest bit first; neither the start value nor the sum is inverted.
public struct CyclicRedundancy: Sendable {
  /// The polynomial, its highest power (which is left out) below bit 0.
  public let polynomial: UInt32
  private let table: [UInt32]
  /// For sums by products without carries: sum and data, a word of 64 bits, times this is the quotient, in the product's
  /// lower half; the upper half of the quotient times `divisor` is the new sum.
  public let quotientFactor: UInt64

  public static let ieee = CyclicRedundancy(polynomial: 0xedb8_8320)
  public static let castagnoli = CyclicRedundancy(polynomial: 0x82f6_3b78)

  public init(polynomial: UInt32) {
    self.polynomial = polynomial
    table = (0..<256).map { byte in
      var value = UInt32(byte)
      for _ in 0..<8 { value = value >> 1 ^ (value & 1 != 0 ? polynomial : 0) }
      return value
    }
    // The inverse of the divisor modulo the 64th power: each step makes the next bit of the product zero.
    let divisor = UInt64(polynomial) << 1 | 1
    var (inverse, product) = (UInt64(0), UInt64(1))
    for bit in 0..<64 as Range<UInt64> where product >> bit & 1 != 0 {
      inverse |= 1 << bit
      product ^= divisor << bit
    }
    quotientFactor = inverse
  }

  /// - Parameter byteCount: of `data`, from the lowest up; 8 at most.
  public func updated(_ sum: UInt32, with data: UInt64, byteCount: Int) -> UInt32 {
    table.withUnsafeBufferPointer { table in
      var result = sum
      for index in 0..<byteCount {
        let byte = UInt8(truncatingIfNeeded: data >> UInt64(8 * index))
        result = result >> 8 ^ table[Int(UInt8(truncatingIfNeeded: result) ^ byte)]
      }
      return result
    }
  }

  public var divisor: UInt64 { UInt64(polynomial) << 1 | 1 }
}

/// The product of polynomials over GF(2).
public func carrylessProduct(_ a: UInt64, _ b: UInt64) -> (low: UInt64, high: UInt64) {
  var (low, high) = (UInt64(0), UInt64(0))
  for bit in 0..<64 as Range<UInt64> where b >> bit & 1 != 0 {
    low ^= a << bit
    if bit > 0 { high ^= a >> (64 - bit) }
  }
  return (low, high)
}
