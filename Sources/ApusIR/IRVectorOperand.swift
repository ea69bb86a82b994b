/// What `vector` does with registers of 128 bits that lie in the state.
public enum IRVectorOperation: UInt8, CaseIterable, Sendable {
  // Bits: of a and b; select has its mask in d; insertIfTrue and insertIfFalse take a's bits into d where b's are 1 or 0.
  case move, not, and, andNot, or, orNot, xor, select, insertIfTrue, insertIfFalse
  // Lanes of `lane` bits, modulo their size. multiplyAdd and multiplySubtract: onto d.
  case add, subtract, multiply, multiplyAdd, multiplySubtract, negate, absolute
  // All ones where the comparison holds. anySet: a & b is not 0.
  case equal, greaterSigned, greaterOrEqualSigned, greaterUnsigned, greaterOrEqualUnsigned, anySet
  case minSigned, maxSigned, minUnsigned, maxUnsigned
  // By `amount`, less than the lane's bits.
  case shiftLeft, shiftRightSigned, shiftRightUnsigned
  // Of the lanes of a and b, b's behind a's: alternating from the lower or upper halves; the even or odd ones.
  case interleaveLow, interleaveHigh, evenLanes, oddLanes
  // Of neighbouring lanes of a, then of b.
  case addPairs, minPairsSigned, maxPairsSigned, minPairsUnsigned, maxPairsUnsigned
  // The 16 bytes from byte `amount` of a, with b behind it.
  case extract
  // a's lanes of twice the size, shifted right by `amount` and cut, into the lower or the upper half; the other half of d
  // stays.
  case narrowLow, narrowHigh
  // Lanes from the lower or upper half of a, in twice the size, shifted left by `amount`.
  case widenLowSigned, widenLowUnsigned, widenHighSigned, widenHighUnsigned
  // Lanes of a, by `amount`, less than the lane's bits.
  case rotateRight
  // a's lanes in reverse order within each 8 << amount bits.
  case reverse
  // AES [FIPS 197]: SubBytes and ShiftRows of a ^ b, or their inverses, then perhaps (Inv)MixColumns; those alone of a.
  case aesEncrypt, aesDecrypt, aesEncryptMix, aesDecryptMix, aesMix, aesInverseMix
  // The product, without carries, of the lower or upper halves of a and b.
  case carrylessLow, carrylessHigh
  // Four rounds of SHA-1 [FIPS 180-4]: d is a, b, c, d; e is a's lowest lane; b the words with the constants. sha1Rotate: a's
  // lowest lane, left by 30. The schedule: onto d.
  case sha1Choose, sha1Parity, sha1Majority, sha1Rotate, sha1ScheduleFirst, sha1ScheduleSecond
  // Four rounds of SHA-256: d is a to d and a is e to h, or the other way round; b the words with the constants.
  case sha256First, sha256Second, sha256ScheduleFirst, sha256ScheduleSecond

  public var readsDestination: Bool {
    switch self {
    case .select, .insertIfTrue, .insertIfFalse, .multiplyAdd, .multiplySubtract, .sha1Choose, .sha1Parity,
      .sha1Majority, .sha1ScheduleFirst, .sha1ScheduleSecond, .sha256First, .sha256Second,
      .sha256ScheduleFirst, .sha256ScheduleSecond:
      true
    default: false
    }
  }

  /// Whether back ends have the operation for lanes of `8 << scale` bits; for narrow and widen those of the smaller side.
  public func isAvailable(scale: Int) -> Bool {
    switch self {
    case .move, .not, .and, .andNot, .or, .orNot, .xor, .select, .insertIfTrue, .insertIfFalse, .extract,
      .reverse:
      true
    case .add, .subtract, .negate, .equal, .greaterSigned, .anySet, .interleaveLow, .interleaveHigh,
      .evenLanes,
      .oddLanes, .addPairs:
      scale < 4
    case .multiply, .multiplyAdd, .multiplySubtract: scale == 1 || scale == 2
    case .shiftLeft, .shiftRightUnsigned, .rotateRight: scale > 0
    case .shiftRightSigned: scale == 1 || scale == 2
    default: scale < 3
    }
  }
}

/// The immediate of `vector`.
///
/// ```
/// 53        44 43        34 33        24 23       20 19     18   17..16  15      8 7         0
/// | b's slot   | a's slot   | d's slot   | 0        | isFull | 0 | scale | amount | operation |
/// ```
/// Slots are state offsets in units of 8 bytes; 1023 for b is zero. Without `isFull` only the lower 64 bits of d are written.
public struct IRVectorOperand: Sendable, CustomStringConvertible {
  public let rawValue: Int64
  public init(rawValue: Int64) { self.rawValue = rawValue }
  /// - Parameters:
  ///   - scale: lanes of `8 << scale` bits.
  ///   - destination, a, b: byte offsets in the state; b `nil`: zero.
  public init(
    _ operation: IRVectorOperation, scale: Int = 0, amount: Int = 0, isFull: Bool, destination: Int, a: Int,
    b: Int?
  ) {
    let slots = (b.map { $0 >> 3 } ?? 1023) << 44 | (a >> 3) << 34 | (destination >> 3) << 24
    rawValue = Int64(slots | (isFull ? 1 << 19 : 0) | scale << 16 | amount << 8 | Int(operation.rawValue))
  }
  public var operation: IRVectorOperation {
    IRVectorOperation(rawValue: UInt8(truncatingIfNeeded: rawValue)).unsafelyUnwrapped
  }
  /// The same operands for another operation.
  public func with(_ operation: IRVectorOperation) -> IRVectorOperand {
    IRVectorOperand(rawValue: rawValue & ~0xff | Int64(operation.rawValue))
  }
  public var amount: Int { Int(rawValue >> 8 & 0xff) }
  public var scale: Int { Int(rawValue >> 16 & 3) }
  public var isFull: Bool { rawValue >> 19 & 1 != 0 }
  public var destination: Int { Int(rawValue >> 24 & 1023) << 3 }
  public var a: Int { Int(rawValue >> 34 & 1023) << 3 }
  /// `nil`: zero.
  public var b: Int? {
    let slot = Int(rawValue >> 44 & 1023)
    return slot == 1023 ? nil : slot << 3
  }
  public var description: String {
    "\(operation).\(8 << scale)\(isFull ? "" : " half") [\(destination)], [\(a)], \(b.map { "[\($0)]" } ?? "0") #\(amount)"
  }
}
