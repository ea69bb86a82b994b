import ApusBits
import ApusIR

/// The meaning of `vector`, lane by lane.
enum IRVectorUnit {
  typealias Vector = (low: UInt64, high: UInt64)

  static func execute(_ operand: IRVectorOperand, _ state: UnsafeMutableRawPointer) {
    func read(_ offset: Int) -> Vector {
      (
        state.load(fromByteOffset: offset, as: UInt64.self),
        state.load(fromByteOffset: offset + 8, as: UInt64.self)
      )
    }
    let a = read(operand.slots.a)
    var b = operand.slots.b.map(read) ?? (0, 0)
    let bits = 8 << operand.scale
    if let element = operand.element {
      let value = lane(b, element, bits)
      b = lanes(bits) { _ in value }
    }
    let d = read(operand.slots.destination)
    var isSaturated = false
    var result = compute(operand, a, b, d, &isSaturated)
    if operand.accumulation != .none {
      let (bits, term) = (8 << operand.operation.resultScale(operand.scale), result)
      result = lanes(bits) {
        let (old, new) = (lane(d, $0, bits), lane(term, $0, bits))
        return operand.accumulation == .add ? old &+ new : old &- new
      }
    }
    if operand.clearsUpper { result.high = 0 }
    if isSaturated { state.storeBytes(of: 1, toByteOffset: StateHeader.saturation, as: UInt32.self) }
    state.storeBytes(of: result.low, toByteOffset: operand.slots.destination, as: UInt64.self)
    if operand.isFull || operand.operation.narrowsToHigh {
      state.storeBytes(of: result.high, toByteOffset: operand.slots.destination + 8, as: UInt64.self)
    }
  }

  private static func lane(_ v: Vector, _ index: Int, _ bits: Int) -> UInt64 {
    let position = index * bits
    let word = position < 64 ? v.low : v.high
    return bits == 64 ? word : word >> UInt64(position & 63) & (1 << UInt64(bits) - 1)
  }
  private static func signed(_ value: UInt64, _ bits: Int) -> Int64 {
    Int64(bitPattern: value << UInt64(64 - bits)) >> Int64(64 - bits)
  }
  /// Lanes of `bits`, each cut to its size.
  private static func lanes(_ bits: Int, _ body: (Int) -> UInt64) -> Vector {
    var result: Vector = (0, 0)
    for index in 0..<128 / bits {
      let value = bits == 64 ? body(index) : body(index) & (1 << UInt64(bits) - 1)
      let position = index * bits
      if position < 64 {
        result.low |= value << UInt64(position)
      } else {
        result.high |= value << UInt64(position - 64)
      }
    }
    return result
  }

  private static func compute(
    _ operand: IRVectorOperand, _ a: Vector, _ b: Vector, _ d: Vector, _ isSaturated: inout Bool
  ) -> Vector {
    let bits = 8 << operand.scale
    // Lanes above the written ones do not count.
    let written = operand.isFull ? 128 / bits : 64 / bits
    /// The value held to the range of lanes.
    func saturate(_ value: Int64, isSigned: Bool) -> UInt64 {
      let smallest: Int64 = isSigned ? -1 << Int64(bits - 1) : 0
      let largest: Int64 = isSigned ? 1 << Int64(bits - 1) - 1 : 1 << Int64(bits) - 1
      if value < smallest || value > largest { isSaturated = true }
      return UInt64(bitPattern: max(smallest, min(largest, value)))
    }
    func eachSaturated(isSigned: Bool, _ body: (Int64, Int64) -> Int64) -> Vector {
      lanes(bits) { index in
        guard index < written else { return 0 }
        let (x, y) = (lane(a, index, bits), lane(b, index, bits))
        return saturate(
          isSigned ? body(signed(x, bits), signed(y, bits)) : body(Int64(x), Int64(y)), isSigned: isSigned)
      }
    }
    func across(_ body: (UInt64, UInt64) -> UInt64) -> Vector {
      var result = lane(a, 0, bits)
      for index in 1..<written { result = body(result, lane(a, index, bits)) }
      return (bits == 64 ? result : result & (1 << UInt64(bits) - 1), 0)
    }
    func extended(_ value: UInt64, _ isSigned: Bool) -> Int64 {
      isSigned ? signed(value, bits) : Int64(bitPattern: value)
    }
    func products(isHigh: Bool, isSigned: Bool) -> Vector {
      lanes(2 * bits) { index in
        let source = isHigh ? index + 64 / bits : index
        return UInt64(
          bitPattern: extended(lane(a, source, bits), isSigned) &* extended(lane(b, source, bits), isSigned))
      }
    }
    func pairSums(isSigned: Bool) -> Vector {
      lanes(2 * bits) { index in
        UInt64(
          bitPattern: extended(lane(a, 2 * index, bits), isSigned)
            &+ extended(lane(a, 2 * index + 1, bits), isSigned))
      }
    }
    func dot(aIsSigned: Bool, bIsSigned: Bool) -> Vector {
      func byte(_ v: Vector, _ index: Int, _ isSigned: Bool) -> Int64 {
        isSigned ? signed(lane(v, index, 8), 8) : Int64(lane(v, index, 8))
      }
      return lanes(32) { index in
        UInt64(
          bitPattern: (4 * index..<4 * index + 4).reduce(0) {
            $0 + byte(a, $1, aIsSigned) * byte(b, $1, bIsSigned)
          })
      }
    }
    func narrowed(fromSigned: Bool, toSigned: Bool) -> Vector {
      var half: UInt64 = 0
      for index in 0..<64 / bits {
        let wide = lane(a, index, 2 * bits)
        let value = saturate(fromSigned ? signed(wide, 2 * bits) : Int64(clamping: wide), isSigned: toSigned)
        half |= (value & (1 << UInt64(bits) - 1)) << UInt64(index * bits)
      }
      return operand.operation.narrowsToLow ? (half, d.high) : (d.low, half)
    }
    func each(_ body: (UInt64, UInt64, UInt64) -> UInt64) -> Vector {
      lanes(bits) { body(lane(a, $0, bits), lane(b, $0, bits), lane(d, $0, bits)) }
    }
    func eachSigned(_ body: (Int64, Int64) -> UInt64) -> Vector {
      each { a, b, _ in body(signed(a, bits), signed(b, bits)) }
    }
    func mask(_ holds: Bool) -> UInt64 { holds ? .max : 0 }
    func word(_ body: (UInt64, UInt64, UInt64) -> UInt64) -> Vector {
      (body(a.low, b.low, d.low), body(a.high, b.high, d.high))
    }
    /// Neighbours of a, then of b.
    func pairs(_ body: (UInt64, UInt64) -> UInt64) -> Vector {
      let count = 128 / bits
      return lanes(bits) { index in
        let source = index < count / 2 ? a : b
        let first = 2 * index % count
        return body(lane(source, first, bits), lane(source, first + 1, bits))
      }
    }
    switch operand.operation {
    case .move: return a
    case .not: return word { a, _, _ in ~a }
    case .and: return word { a, b, _ in a & b }
    case .andNot: return word { a, b, _ in a & ~b }
    case .or: return word { a, b, _ in a | b }
    case .orNot: return word { a, b, _ in a | ~b }
    case .xor: return word { a, b, _ in a ^ b }
    case .xorBoth: return word { a, b, d in d ^ a ^ b }
    case .xorAndNot: return word { a, b, d in d ^ a & ~b }
    case .select: return word { a, b, d in d & a | ~d & b }
    case .insertIfTrue: return word { a, b, d in b & a | ~b & d }
    case .insertIfFalse: return word { a, b, d in ~b & a | b & d }
    case .add: return each { a, b, _ in a &+ b }
    case .subtract: return each { a, b, _ in a &- b }
    case .multiply: return each { a, b, _ in a &* b }
    case .multiplyAdd: return each { a, b, d in d &+ a &* b }
    case .multiplySubtract: return each { a, b, d in d &- a &* b }
    case .negate: return each { a, _, _ in 0 &- a }
    case .absolute: return eachSigned { a, _ in a.magnitude }
    case .equal: return each { a, b, _ in mask(a == b) }
    case .greaterSigned: return eachSigned { a, b in mask(a > b) }
    case .greaterOrEqualSigned: return eachSigned { a, b in mask(a >= b) }
    case .greaterUnsigned: return each { a, b, _ in mask(a > b) }
    case .greaterOrEqualUnsigned: return each { a, b, _ in mask(a >= b) }
    case .anySet: return each { a, b, _ in mask(a & b != 0) }
    case .minSigned: return eachSigned { a, b in UInt64(bitPattern: min(a, b)) }
    case .maxSigned: return eachSigned { a, b in UInt64(bitPattern: max(a, b)) }
    case .minUnsigned: return each { a, b, _ in min(a, b) }
    case .maxUnsigned: return each { a, b, _ in max(a, b) }
    case .shiftLeft: return each { a, _, _ in a << UInt64(operand.amount) }
    case .shiftRightSigned: return eachSigned { a, _ in UInt64(bitPattern: a >> Int64(operand.amount)) }
    case .shiftRightUnsigned: return each { a, _, _ in a >> UInt64(operand.amount) }
    case .shiftRightRoundedSigned:
      return eachSigned { a, _ in
        let shifted = a >> Int64(operand.amount - 1)
        return UInt64(bitPattern: shifted - shifted >> 1)
      }
    case .shiftRightRoundedUnsigned:
      return each { a, _, _ in
        let shifted = a >> UInt64(operand.amount - 1)
        return shifted - shifted >> 1
      }
    case .absoluteDifferenceSigned: return eachSigned { a, b in (a - b).magnitude }
    case .absoluteDifferenceUnsigned: return each { a, b, _ in max(a, b) - min(a, b) }
    case .averageUnsigned: return each { a, b, _ in (a + b + 1) >> 1 }
    case .addSaturatedSigned: return eachSaturated(isSigned: true) { $0 + $1 }
    case .addSaturatedUnsigned: return eachSaturated(isSigned: false) { $0 + $1 }
    case .subtractSaturatedSigned: return eachSaturated(isSigned: true) { $0 - $1 }
    case .subtractSaturatedUnsigned: return eachSaturated(isSigned: false) { $0 - $1 }
    // 2^62 is the largest product.
    case .multiplyHighSaturated: return eachSaturated(isSigned: true) { ($0 * $1) >> Int64(bits - 1) }
    case .multiplyHighRoundedSaturated:
      return eachSaturated(isSigned: true) { ($0 * $1 + 1 << Int64(bits - 2)) >> Int64(bits - 1) }
    // The language's shifts take counts that are negative or too large.
    case .shiftByLanesSigned:
      return eachSigned { a, b in UInt64(bitPattern: a << Int8(truncatingIfNeeded: b)) }
    case .shiftByLanesUnsigned: return each { a, b, _ in a << Int8(truncatingIfNeeded: b) }
    case .countLeadingZeros: return each { a, _, _ in UInt64(a.leadingZeroBitCount - (64 - bits)) }
    case .countOnes: return each { a, _, _ in UInt64(a.nonzeroBitCount) }
    case .permute, .permuteOnto:
      let result = lanes(8) { index in
        let source = Int(lane(b, index, 8)) - operand.amount
        return (0..<16).contains(source) ? lane(a, source, 8) : 0
      }
      return operand.operation == .permute ? result : (d.low | result.low, d.high | result.high)
    case .reorder, .reorderOnto:
      let result = lanes(8) { index in
        operand.order.source(of: index, scale: operand.scale).map { lane(a, $0, 8) } ?? 0
      }
      return operand.operation == .reorder ? result : (d.low | result.low, d.high | result.high)
    case .broadcast: return lanes(bits) { _ in lane(a, operand.amount, bits) }
    case .addAcross: return across { $0 &+ $1 }
    case .minAcrossUnsigned: return across { min($0, $1) }
    case .maxAcrossUnsigned: return across { max($0, $1) }
    case .minAcrossSigned: return across { signed($0, bits) < signed($1, bits) ? $0 : $1 }
    case .maxAcrossSigned: return across { signed($0, bits) > signed($1, bits) ? $0 : $1 }
    case .addPairsWidenedSigned: return pairSums(isSigned: true)
    case .addPairsWidenedUnsigned: return pairSums(isSigned: false)
    case .multiplyLowSigned: return products(isHigh: false, isSigned: true)
    case .multiplyLowUnsigned: return products(isHigh: false, isSigned: false)
    case .multiplyHighSigned: return products(isHigh: true, isSigned: true)
    case .multiplyHighUnsigned: return products(isHigh: true, isSigned: false)
    case .dotSigned: return dot(aIsSigned: true, bIsSigned: true)
    case .dotUnsigned: return dot(aIsSigned: false, bIsSigned: false)
    case .dotUnsignedSigned: return dot(aIsSigned: false, bIsSigned: true)
    case .dotSignedUnsigned: return dot(aIsSigned: true, bIsSigned: false)
    case .narrowLowSigned, .narrowHighSigned: return narrowed(fromSigned: true, toSigned: true)
    case .narrowLowClamped, .narrowHighClamped: return narrowed(fromSigned: true, toSigned: false)
    case .narrowLowUnsigned, .narrowHighUnsigned: return narrowed(fromSigned: false, toSigned: false)
    case .flipSigns: return each { a, _, _ in a ^ 1 << UInt64(bits - 1) }
    case .clearSigns: return each { a, _, _ in a & ~(1 << UInt64(bits - 1)) }
    case .interleaveLow, .interleaveHigh:
      let base = operand.operation == .interleaveHigh ? 64 / bits : 0
      return lanes(bits) { lane($0 & 1 == 0 ? a : b, base + $0 / 2, bits) }
    case .transposeEven, .transposeOdd:
      let offset = operand.operation == .transposeOdd ? 1 : 0
      return lanes(bits) { lane($0 & 1 == 0 ? a : b, $0 & ~1 | offset, bits) }
    case .evenLanes: return pairs { even, _ in even }
    case .oddLanes: return pairs { _, odd in odd }
    case .addPairs: return pairs { $0 &+ $1 }
    case .minPairsUnsigned: return pairs { min($0, $1) }
    case .maxPairsUnsigned: return pairs { max($0, $1) }
    case .minPairsSigned: return pairs { UInt64(bitPattern: min(signed($0, bits), signed($1, bits))) }
    case .maxPairsSigned: return pairs { UInt64(bitPattern: max(signed($0, bits), signed($1, bits))) }
    case .extract:
      return lanes(8) { index in
        let position = index + operand.amount
        return position < 16 ? lane(a, position, 8) : lane(b, position - 16, 8)
      }
    case .narrowLow, .narrowHigh, .narrowLowRounded, .narrowHighRounded:
      let isRounded = operand.operation == .narrowLowRounded || operand.operation == .narrowHighRounded
      var half: UInt64 = 0
      for index in 0..<64 / bits {
        let wide = lane(a, index, 2 * bits)
        var value = wide >> UInt64(operand.amount)
        if isRounded { value &+= wide >> UInt64(operand.amount - 1) & 1 }
        half |= (value & (1 << UInt64(bits) - 1)) << UInt64(index * bits)
      }
      return operand.operation.narrowsToLow ? (half, d.high) : (d.low, half)
    case .widenLowSigned, .widenLowUnsigned, .widenHighSigned, .widenHighUnsigned:
      let isHigh = operand.operation == .widenHighSigned || operand.operation == .widenHighUnsigned
      let isSigned = operand.operation == .widenLowSigned || operand.operation == .widenHighSigned
      let base = isHigh ? 64 / bits : 0
      return lanes(2 * bits) { index in
        let value = lane(a, base + index, bits)
        return (isSigned ? UInt64(bitPattern: signed(value, bits)) : value) << UInt64(operand.amount)
      }
    case .rotateRight:
      return each { a, _, _ in
        a >> UInt64(operand.amount) | (operand.amount == 0 ? 0 : a << UInt64(bits - operand.amount))
      }
    case .reverse:
      let flip = 1 << (operand.amount - operand.scale) - 1
      return lanes(bits) { lane(a, $0 ^ flip, bits) }
    case .aesEncrypt, .aesDecrypt, .aesEncryptMix, .aesDecryptMix, .aesMix, .aesInverseMix:
      return aes(operand.operation, a, b)
    case .carrylessLow, .carrylessHigh:
      let isLow = operand.operation == .carrylessLow
      let product = carrylessProduct(isLow ? a.low : a.high, isLow ? b.low : b.high)
      return (product.low, product.high)
    case .sha1Choose, .sha1Parity, .sha1Majority, .sha1Rotate, .sha1ScheduleFirst, .sha1ScheduleSecond,
      .sha256First, .sha256Second, .sha256ScheduleFirst, .sha256ScheduleSecond:
      return hash(operand.operation, a, b, d)
    }
  }

  private static func aes(_ operation: IRVectorOperation, _ a: Vector, _ b: Vector) -> Vector {
    let state = unsafeBitCast((a.low ^ b.low, a.high ^ b.high), to: SIMD16<UInt8>.self)
    let result =
      switch operation {
      case .aesEncrypt: AESRound.encrypt(state)
      case .aesDecrypt: AESRound.decrypt(state)
      case .aesEncryptMix: AESRound.mixColumns(AESRound.encrypt(state))
      case .aesDecryptMix: AESRound.inverseMixColumns(AESRound.decrypt(state))
      case .aesMix: AESRound.mixColumns(state)
      default: AESRound.inverseMixColumns(state)
      }
    return unsafeBitCast(result, to: Vector.self)
  }

  private static func hash(_ operation: IRVectorOperation, _ a: Vector, _ b: Vector, _ d: Vector) -> Vector {
    func words(_ value: Vector) -> SIMD4<UInt32> { unsafeBitCast(value, to: SIMD4<UInt32>.self) }
    let (n, m, d) = (words(a), words(b), words(d))
    let result =
      switch operation {
      case .sha1Choose: SHA1Rounds.rounds(.choose, d, n[0], m)
      case .sha1Parity: SHA1Rounds.rounds(.parity, d, n[0], m)
      case .sha1Majority: SHA1Rounds.rounds(.majority, d, n[0], m)
      case .sha1Rotate: SIMD4(n[0] << 30 | n[0] >> 2, 0, 0, 0)
      case .sha1ScheduleFirst: SHA1Rounds.scheduleFirst(d, n, m)
      case .sha1ScheduleSecond: SHA1Rounds.scheduleSecond(d, n)
      case .sha256First: SHA256Rounds.rounds(d, n, m).x
      case .sha256Second: SHA256Rounds.rounds(n, d, m).y
      case .sha256ScheduleFirst: SHA256Rounds.scheduleFirst(d, n)
      default: SHA256Rounds.scheduleSecond(d, n, m)
      }
    return unsafeBitCast(result, to: Vector.self)
  }
}
