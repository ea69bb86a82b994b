/// What `vector` does with registers of 128 bits that lie in the state.
public enum IRVectorOperation: UInt8, CaseIterable, Sendable {
  // Bits: of a and b; select has its mask in d; insertIfTrue and insertIfFalse take a's bits into d where b's are 1 or 0.
  case move, not, and, andNot, or, orNot, xor, select, insertIfTrue, insertIfFalse
  // Lanes of `lane` bits, modulo their size. multiplyAdd and multiplySubtract: onto d.
  case add, subtract, multiply, multiplyAdd, multiplySubtract, negate, absolute
  // All ones where the comparison holds. anySet: a & b is not 0.
  case equal, greaterSigned, greaterOrEqualSigned, greaterUnsigned, greaterOrEqualUnsigned, anySet
  case minSigned, maxSigned, minUnsigned, maxUnsigned
  // By `amount`, less than the lane's bits; `Rounded`, 1 to the lane's bits: half of the last bit lost is added first.
  case shiftLeft, shiftRightSigned, shiftRightUnsigned, shiftRightRoundedSigned, shiftRightRoundedUnsigned
  // Of the lanes of a and b, b's behind a's: alternating from the lower or upper halves; the even or odd ones.
  case interleaveLow, interleaveHigh, evenLanes, oddLanes
  // a's and b's even or odd lanes, alternating.
  case transposeEven, transposeOdd
  // The highest bit of each lane of a: flipped, cleared.
  case flipSigns, clearSigns
  // |a - b|; (a + b + 1) / 2.
  case absoluteDifferenceSigned, absoluteDifferenceUnsigned, averageUnsigned
  // Held to the lane's range; a lane that had to be sets `StateHeader.saturation`. multiplyHigh: the upper half of 2ab, cut
  // or rounded.
  case addSaturatedSigned, addSaturatedUnsigned, subtractSaturatedSigned, subtractSaturatedUnsigned
  case multiplyHighSaturated, multiplyHighRoundedSaturated
  // Bits set; a's lane `amount`.
  case countOnes, broadcast
  // Bytes of a: byte b[i] - `amount`, or those that `IRTripleOrder(amount)` names for lanes of this size; 0 for what is not
  // there. `Onto`: ORed to d.
  case permute, permuteOnto, reorder, reorderOnto
  // Of all lanes of a (of its lower half without `isFull`): the lowest lane; the others are 0.
  case addAcross, minAcrossSigned, maxAcrossSigned, minAcrossUnsigned, maxAcrossUnsigned
  // Sums of a's neighbouring lanes in twice the size; products of lanes from the lower or upper halves in twice the size.
  case addPairsWidenedSigned, addPairsWidenedUnsigned
  case multiplyLowSigned, multiplyLowUnsigned, multiplyHighSigned, multiplyHighUnsigned
  // Sums of the products of four neighbouring bytes, in lanes of 32 bits, whose size `scale` is.
  case dotSigned, dotUnsigned, dotUnsignedSigned, dotSignedUnsigned
  // Of neighbouring lanes of a, then of b.
  case addPairs, minPairsSigned, maxPairsSigned, minPairsUnsigned, maxPairsUnsigned
  // The 16 bytes from byte `amount` of a, with b behind it.
  case extract
  // a's lanes of twice the size, shifted right by `amount` and cut, into the lower or the upper half; the other half of d
  // stays. `Rounded`: half of the last bit lost is added first.
  case narrowLow, narrowHigh, narrowLowRounded, narrowHighRounded
  // The same without shift, held to the range: signed lanes to signed ones, signed to unsigned, unsigned to unsigned.
  case narrowLowSigned, narrowHighSigned, narrowLowClamped, narrowHighClamped, narrowLowUnsigned,
    narrowHighUnsigned
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
  // a's lanes shifted left by the signed lowest byte of b's, to the right where it is negative, by any number of bits. Lanes
  // of 32 and 64 bits with `hostLaneShifts`.
  case shiftByLanesSigned, shiftByLanesUnsigned
  // With `hostWideLanes`. Onto d: d ^ a ^ b, d ^ (a & ~b). Zeros above the highest one.
  case xorBoth, xorAndNot, countLeadingZeros

  public var readsDestination: Bool {
    switch self {
    case .select, .insertIfTrue, .insertIfFalse, .xorBoth, .xorAndNot, .multiplyAdd, .multiplySubtract,
      .permuteOnto, .reorderOnto,
      .sha1Choose, .sha1Parity, .sha1Majority, .sha1ScheduleFirst, .sha1ScheduleSecond, .sha256First,
      .sha256Second, .sha256ScheduleFirst, .sha256ScheduleSecond:
      true
    default: false
    }
  }

  /// Whether back ends have the operation for lanes of `8 << scale` bits; for narrow and widen those of the smaller side.
  ///
  /// - Parameter optimisations: of the block; what hosts have.
  public func isAvailable(scale: Int, _ optimisations: IROptimisations) -> Bool {
    let isWide = optimisations.contains(.hostWideLanes)
    return switch self {
    case .move, .not, .and, .andNot, .or, .orNot, .xor, .select, .insertIfTrue, .insertIfFalse, .extract,
      .permute, .permuteOnto, .reorder, .reorderOnto, .broadcast, .reverse:
      true
    case .add, .subtract, .negate, .equal, .greaterSigned, .anySet, .interleaveLow, .interleaveHigh,
      .evenLanes,
      .oddLanes, .transposeEven, .transposeOdd, .addPairs, .addAcross, .shiftLeft, .shiftRightSigned,
      .shiftRightUnsigned,
      .shiftRightRoundedSigned, .shiftRightRoundedUnsigned:
      scale < 4
    case .flipSigns, .clearSigns, .rotateRight: scale > 0
    case .absolute, .greaterOrEqualSigned, .greaterUnsigned, .greaterOrEqualUnsigned: scale < 3 || isWide
    case .xorBoth, .xorAndNot: isWide
    case .shiftByLanesSigned, .shiftByLanesUnsigned: scale < 2 || optimisations.contains(.hostLaneShifts)
    case .countLeadingZeros: isWide && scale == 2
    case .averageUnsigned: scale < 2
    case .narrowLowSigned, .narrowHighSigned, .narrowLowClamped, .narrowHighClamped,
      .narrowLowUnsigned, .narrowHighUnsigned:
      scale < (isWide ? 3 : 2)
    case .multiplyHighSaturated, .multiplyHighRoundedSaturated: scale == 1 || scale == 2
    case .countOnes: scale == 0
    default: scale < 3
    }
  }

  /// Whether the lower half of the result depends on those of b and d and, but for `permute` and `broadcast`, a alone, and nothing
  /// else is noted: of 64 bits it is the one of 128 bits with its upper half cleared.
  public var isLanewise: Bool {
    switch self {
    case .move, .not, .and, .andNot, .or, .orNot, .xor, .select, .insertIfTrue, .insertIfFalse, .add,
      .subtract,
      .multiply, .multiplyAdd, .multiplySubtract, .negate, .absolute, .equal, .greaterSigned,
      .greaterOrEqualSigned, .greaterUnsigned, .greaterOrEqualUnsigned, .anySet, .minSigned, .maxSigned,
      .minUnsigned, .maxUnsigned, .shiftLeft, .shiftRightSigned, .shiftRightUnsigned,
      .shiftRightRoundedSigned,
      .shiftRightRoundedUnsigned, .interleaveLow, .transposeEven, .transposeOdd, .flipSigns, .clearSigns,
      .absoluteDifferenceSigned, .absoluteDifferenceUnsigned, .averageUnsigned, .countOnes, .broadcast,
      .permute,
      .addPairsWidenedSigned, .addPairsWidenedUnsigned, .rotateRight, .reverse, .shiftByLanesSigned,
      .shiftByLanesUnsigned, .xorBoth, .xorAndNot, .countLeadingZeros, .dotSigned, .dotUnsigned,
      .dotUnsignedSigned, .dotSignedUnsigned:
      true
    default: false
    }
  }
  /// Whether upper halves of zeros give one, of a lanewise operation.
  public var keepsZeros: Bool {
    switch self {
    case .not, .orNot, .equal, .greaterOrEqualSigned, .greaterOrEqualUnsigned, .flipSigns, .broadcast,
      .permute,
      .countLeadingZeros:
      false
    default: isLanewise
    }
  }
  /// Whether b counts.
  public var readsSecond: Bool {
    switch self {
    case .move, .not, .absolute, .shiftLeft, .shiftRightSigned, .shiftRightUnsigned, .shiftRightRoundedSigned,
      .shiftRightRoundedUnsigned, .flipSigns, .clearSigns, .countOnes, .broadcast, .reorder, .reorderOnto,
      .addAcross, .minAcrossSigned, .maxAcrossSigned, .minAcrossUnsigned, .maxAcrossUnsigned,
      .addPairsWidenedSigned, .addPairsWidenedUnsigned, .narrowLow, .narrowHigh, .narrowLowRounded,
      .narrowHighRounded, .widenLowSigned, .widenLowUnsigned, .widenHighSigned, .widenHighUnsigned,
      .rotateRight, .reverse:
      false
    default: true
    }
  }
  /// Whether the result may be added to d or subtracted from it (`IRVectorAccumulation`).
  public var mayAccumulate: Bool {
    switch self {
    case .multiplyLowSigned, .multiplyLowUnsigned, .multiplyHighSigned, .multiplyHighUnsigned,
      .addPairsWidenedSigned, .addPairsWidenedUnsigned, .absoluteDifferenceSigned,
      .absoluteDifferenceUnsigned,
      .shiftRightSigned, .shiftRightUnsigned, .shiftRightRoundedSigned, .shiftRightRoundedUnsigned,
      .dotSigned, .dotUnsigned, .dotUnsignedSigned, .dotSignedUnsigned:
      true
    default: false
    }
  }
  /// Whether a lane of b may stand for all.
  public var mayHaveElement: Bool {
    switch self {
    case .multiply, .multiplyAdd, .multiplySubtract, .multiplyLowSigned, .multiplyLowUnsigned,
      .multiplyHighSigned, .multiplyHighUnsigned, .multiplyHighSaturated, .multiplyHighRoundedSaturated,
      .dotSigned, .dotUnsigned, .dotUnsignedSigned, .dotSignedUnsigned:
      true
    default: false
    }
  }
  /// The result's lanes, as a power of two.
  public func resultScale(_ scale: Int) -> Int {
    switch self {
    case .multiplyLowSigned, .multiplyLowUnsigned, .multiplyHighSigned, .multiplyHighUnsigned,
      .addPairsWidenedSigned, .addPairsWidenedUnsigned:
      scale + 1
    default: scale
    }
  }

  /// Whether lanes of a are cut to half their size, into the lower or the upper half of d.
  public var narrowsToLow: Bool {
    switch self {
    case .narrowLow, .narrowLowRounded, .narrowLowSigned, .narrowLowClamped, .narrowLowUnsigned: true
    default: false
    }
  }
  public var narrowsToHigh: Bool {
    switch self {
    case .narrowHigh, .narrowHighRounded, .narrowHighSigned, .narrowHighClamped, .narrowHighUnsigned: true
    default: false
    }
  }
}

/// The order of bytes in which structures of three elements become three registers, or three registers structures: what one
/// register of 16 bytes gives to another.
public struct IRTripleOrder: Sendable {
  /// Structures become registers; otherwise the other way round.
  public let isGather: Bool
  /// Which of the three registers that hold an element of all structures each.
  public let element: Int
  /// Which 16 bytes of the structures in memory's order.
  public let part: Int

  public init(isGather: Bool, element: Int, part: Int) {
    (self.isGather, self.element, self.part) = (isGather, element, part)
  }
  /// From an operation's `amount`.
  init(amount: Int) { self.init(isGather: amount & 1 != 0, element: amount >> 1 & 3, part: amount >> 3) }
  public var amount: Int { (isGather ? 1 : 0) | element << 1 | part << 3 }

  /// The byte of the source that becomes a byte of the result, with elements of `1 << scale` bytes.
  public func source(of byte: Int, scale: Int) -> Int? {
    let offset = byte & ((1 << scale) - 1)
    if isGather {
      let position = ((byte >> scale) * 3 + element) << scale + offset
      return position >> 4 == part ? position & 15 : nil
    }
    let index = (part * 16 + byte) >> scale
    return index % 3 == element ? (index / 3) << scale + offset : nil
  }
}

/// What becomes of an operation's result: d, or d plus or minus it, lane by lane.
public enum IRVectorAccumulation: UInt8, Sendable { case none, add, subtract }

/// The immediate of `vector`.
///
/// ```
/// 53    44 43    34 33    24 23 22        21         20 19     18            17..16  15      8 7         0
/// | b    | a      | d      | 0 | element  | accumulate | isFull | clearsUpper | scale | amount | operation |
/// ```
/// Slots are state offsets in units of 8 bytes; 1023 for b is zero. Without `isFull` only the lower 64 bits of d are written;
/// `clearsUpper`, beside it, has the upper ones 0. `element`: b's lane `amount` stands for all of its lanes.
public struct IRVectorOperand: Sendable, CustomStringConvertible {
  public let rawValue: Int64
  public init(rawValue: Int64) { self.rawValue = rawValue }
  /// - Parameters:
  ///   - scale: lanes of `8 << scale` bits.
  ///   - destination, a, b: byte offsets in the state; b `nil`: zero.
  public init(
    _ operation: IRVectorOperation, scale: Int = 0, amount: Int = 0, isFull: Bool, clearsUpper: Bool = false,
    accumulation: IRVectorAccumulation = .none, element: Int? = nil, destination: Int, a: Int, b: Int?
  ) {
    var attributes = (isFull ? 1 << 19 : 0) | (clearsUpper ? 1 << 18 : 0) | Int(accumulation.rawValue) << 20
    attributes |= element.map { 1 << 22 | $0 << 8 } ?? amount << 8
    attributes |= scale << 16 | Int(operation.rawValue)
    rawValue = IRVectorSlots(destination: destination, a: a, b: b).rawValue | Int64(attributes)
  }
  public var operation: IRVectorOperation {
    IRVectorOperation(rawValue: UInt8(truncatingIfNeeded: rawValue)).unsafelyUnwrapped
  }
  /// The same operands for another operation.
  public func with(_ operation: IRVectorOperation) -> IRVectorOperand {
    IRVectorOperand(rawValue: rawValue & ~0xff | Int64(operation.rawValue))
  }
  public var amount: Int { Int(rawValue >> 8 & 0xff) }
  /// Of `reorder` and `reorderOnto`.
  public var order: IRTripleOrder { IRTripleOrder(amount: amount) }
  public var scale: Int { Int(rawValue >> 16 & 3) }
  public var isFull: Bool { rawValue >> 19 & 1 != 0 }
  public var clearsUpper: Bool { rawValue >> 18 & 1 != 0 }
  public var accumulation: IRVectorAccumulation {
    IRVectorAccumulation(rawValue: UInt8(rawValue >> 20 & 3)).unsafelyUnwrapped
  }
  public var element: Int? { rawValue >> 22 & 1 != 0 ? amount : nil }
  public var slots: IRVectorSlots { IRVectorSlots(rawValue: rawValue) }
  public var description: String {
    "\(operation).\(8 << scale)\(isFull ? clearsUpper ? " cleared" : "" : " half") \(slots)"
      + (element.map { "[\($0)]" } ?? " #\(amount)") + (accumulation == .none ? "" : " \(accumulation)")
  }
}
