import ApusIR
import ApusISAAArch64

// Vector instructions that are a few operations of the IR, with places between the registers and memory for what lies
// between them.

extension AArch64Translator {
  private var isFull: Bool { bits(30, 1) == 1 }
  /// Scalars have bit 30, too.
  private var isScalar: Bool { bits(28, 1) == 1 && isFull }
  private var isUnsigned: Bool { bits(29, 1) == 1 }
  private var destination: Int { AArch64State.v(rd) }
  private var n: Int { AArch64State.v(rn) }
  private var m: Int { AArch64State.v(rm) }
  private static let t0 = AArch64State.scratch
  private static let t1 = AArch64State.scratch + 16
  private static let t2 = AArch64State.scratch + 32
  private static let t3 = AArch64State.scratch + 48
  private static let t4 = AArch64State.scratch + 64

  private func emit(
    _ operation: IRVectorOperation, _ scale: Int, to: Int, _ a: Int, _ b: Int? = nil, amount: Int = 0,
    isFull: Bool = true
  ) {
    block.vector(
      IRVectorOperand(operation, scale: scale, amount: amount, isFull: isFull, destination: to, a: a, b: b))
  }
  /// The last operation: writes the register, and clears its upper half if the instruction is of 64 bits or scalar.
  private func finish(
    _ operation: IRVectorOperation, _ scale: Int, _ a: Int, _ b: Int? = nil, amount: Int = 0,
    isFull: Bool? = nil, accumulation: IRVectorAccumulation = .none, element: Element? = nil
  ) -> Bool {
    let isFull = isFull ?? self.isFull
    let clears = !isFull && operation.isLanewise || isScalar
    block.vector(
      IRVectorOperand(
        operation, scale: scale, amount: amount, isFull: isFull || clears, clearsUpper: clears,
        accumulation: accumulation, element: element?.lane, destination: destination, a: a,
        b: element?.register ?? b))
    if !isFull, !clears, !operation.narrowsToHigh { setHigh(rd, nil) }
    return true
  }

  /// The lane of m that an instruction names.
  private struct Element {
    var register: Int
    var lane: Int
    /// Its size as a power of two, in bytes: 1 or 2.
    var scale: Int
  }

  /// Translates the instruction if it is one of these.
  mutating func severalOperations(_ opcode: AArch64Opcode) -> Bool {
    switch opcode {
    case .vectorThreeSame: return threeSame()
    case .scalarThreeSame where bits(22, 2) == 3 && bits(11, 5) == 0xa: return roundedShiftByLanes()
    case .vectorTable: return table()
    case .vectorThreeDifferent: return threeDifferent()
    case .vectorIndexed: return indexed()
    case .vectorMiscellaneous: return miscellaneous()
    case .vectorShift: return shift()
    case .scalarShift where bits(22, 1) == 1 && bits(11, 5) < 0xb: return shift()
    case .vectorPermute: return permute()
    case .vectorAcross: return addLongAcross()
    case .vectorExtract:
      guard bits(14, 1) == 0 else { return false }
      emit(.interleaveLow, 3, to: Self.t0, n, m)
      emit(.extract, 0, to: Self.t0, Self.t0, Self.t0, amount: Int(bits(11, 3)))
      return finish(.move, 0, Self.t0)
    case .scalarPairwise where bits(12, 5) == 0x1b && !isUnsigned && bits(22, 2) == 3:
      return finish(.addAcross, 3, n, isFull: true)
    default: return false
    }
  }

  private func threeSame() -> Bool {
    let scale = Int(bits(22, 2))
    let u = isUnsigned
    if bits(11, 5) == 0xa { return (scale < 3 || isFull) && roundedShiftByLanes() }
    guard scale < 3 else { return false }
    switch bits(11, 5) {
    // Halves of sums, also rounded, and of differences: (a & b) + (a ^ b) / 2, (a | b) - (a ^ b) / 2, (a ^ b) / 2 - (b & ~a).
    case 0x00, 0x02, 0x04:
      emit(.xor, 0, to: Self.t1, n, m)
      emit(u ? .shiftRightUnsigned : .shiftRightSigned, scale, to: Self.t1, Self.t1, amount: 1)
      switch bits(11, 5) {
      case 0x00:
        emit(.and, 0, to: Self.t0, n, m)
        return finish(.add, scale, Self.t0, Self.t1)
      case 0x02:
        emit(.or, 0, to: Self.t0, n, m)
        return finish(.subtract, scale, Self.t0, Self.t1)
      default:
        emit(.andNot, 0, to: Self.t0, m, n)
        return finish(.subtract, scale, Self.t1, Self.t0)
      }
    case 0x0f:
      return finish(
        u ? .absoluteDifferenceUnsigned : .absoluteDifferenceSigned, scale, n, m, accumulation: .add)
    case 0x14 where !isFull: return pairs(u ? .maxPairsUnsigned : .maxPairsSigned, scale)
    case 0x15 where !isFull: return pairs(u ? .minPairsUnsigned : .minPairsSigned, scale)
    case 0x17 where !isFull && !u: return pairs(.addPairs, scale)
    default: return false
    }
  }

  /// srshl, urshl. Of a shift by one bit less to the right, half is taken away: what is left is rounded.
  private func roundedShiftByLanes() -> Bool {
    let scale = Int(bits(22, 2))
    let operation: IRVectorOperation = isUnsigned ? .shiftByLanesUnsigned : .shiftByLanesSigned
    guard isAvailable(operation, scale) else { return false }
    let bitCount = 8 << scale
    // All ones where the count is negative.
    emit(.shiftLeft, scale, to: Self.t1, m, amount: bitCount - 8)
    emit(.shiftRightSigned, scale, to: Self.t1, Self.t1, amount: bitCount - 1)
    emit(.subtract, scale, to: Self.t0, m, Self.t1)
    emit(operation, scale, to: Self.t0, n, Self.t0)
    emit(isUnsigned ? .shiftRightUnsigned : .shiftRightSigned, scale, to: Self.t2, Self.t0, amount: 1)
    emit(.and, 0, to: Self.t1, Self.t1, Self.t2)
    return finish(.subtract, scale, Self.t0, Self.t1)
  }

  /// tbl of several registers, tbx.
  private func table() -> Bool {
    let registers = (0..<Int(bits(13, 2)) + 1).map { AArch64State.v((rn + $0) & 31) }
    let isExtension = bits(12, 1) == 1
    // A register that is still to be read waits for its new value.
    let target =
      isExtension || destination == m || registers.dropFirst().contains(destination) ? Self.t0 : destination
    for (index, register) in registers.enumerated() {
      emit(index == 0 ? .permute : .permuteOnto, 0, to: target, register, m, amount: 16 * index)
    }
    if isExtension {
      // What has an index in range.
      emit(.equal, 0, to: Self.t2, m, m)
      for index in registers.indices {
        emit(index == 0 ? .permute : .permuteOnto, 0, to: Self.t1, Self.t2, m, amount: 16 * index)
      }
      return finish(.insertIfTrue, 0, target, Self.t1)
    }
    if target != destination { return finish(.move, 0, target) }
    if !isFull { setHigh(rd, nil) }
    return true
  }

  /// Of 64 bits: both operands side by side.
  private func pairs(_ operation: IRVectorOperation, _ scale: Int) -> Bool {
    emit(.interleaveLow, 3, to: Self.t0, n, m)
    emit(operation, scale, to: Self.t0, Self.t0, Self.t0)
    return finish(.move, 0, Self.t0)
  }

  private func widen(_ scale: Int, to: Int, _ a: Int, isUnsigned: Bool) {
    let operation: IRVectorOperation =
      isFull
      ? (isUnsigned ? .widenHighUnsigned : .widenHighSigned)
      : isUnsigned ? .widenLowUnsigned : .widenLowSigned
    emit(operation, scale, to: to, a)
  }
  private var product: IRVectorOperation {
    isFull
      ? (isUnsigned ? .multiplyHighUnsigned : .multiplyHighSigned)
      : isUnsigned ? .multiplyLowUnsigned : .multiplyLowSigned
  }

  private func threeDifferent() -> Bool {
    let scale = Int(bits(22, 2))
    let u = isUnsigned
    guard scale < 3 else { return false }
    let wide = scale + 1
    switch bits(12, 4) {
    case 0, 2:
      widen(scale, to: Self.t0, n, isUnsigned: u)
      widen(scale, to: Self.t1, m, isUnsigned: u)
      return finish(bits(13, 1) == 0 ? .add : .subtract, wide, Self.t0, Self.t1, isFull: true)
    case 1, 3:
      widen(scale, to: Self.t1, m, isUnsigned: u)
      return finish(bits(13, 1) == 0 ? .add : .subtract, wide, n, Self.t1, isFull: true)
    case 4, 6:
      emit(bits(13, 1) == 0 ? .add : .subtract, wide, to: Self.t0, n, m)
      return finish(narrowing(isRounded: u), scale, Self.t0, amount: 8 << scale, isFull: false)
    case 5, 7:
      emit(u ? .absoluteDifferenceUnsigned : .absoluteDifferenceSigned, scale, to: Self.t0, n, m)
      if bits(12, 4) == 7 {
        return finish(isFull ? .widenHighUnsigned : .widenLowUnsigned, scale, Self.t0, isFull: true)
      }
      widen(scale, to: Self.t0, Self.t0, isUnsigned: true)
      return finish(.add, wide, destination, Self.t0, isFull: true)
    case 8, 0xa:
      return finish(product, scale, n, m, isFull: true, accumulation: bits(13, 1) == 0 ? .add : .subtract)
    case 0xc: return finish(product, scale, n, m, isFull: true)
    case 9 where !u && scale == 1, 0xb where !u && scale == 1, 0xd where !u && scale == 1:
      return doubledProduct(bits(12, 4), scale)
    default: return false
    }
  }

  /// sqdmull (0xd), sqdmlal (9), sqdmlsl (0xb).
  private func doubledProduct(_ kind: UInt32, _ scale: Int, element: Element? = nil) -> Bool {
    block.vector(
      IRVectorOperand(
        product, scale: scale, isFull: true, element: element?.lane, destination: Self.t0, a: n,
        b: element?.register ?? m))
    if kind == 0xd { return finish(.addSaturatedSigned, scale + 1, Self.t0, Self.t0, isFull: true) }
    emit(.addSaturatedSigned, scale + 1, to: Self.t0, Self.t0, Self.t0)
    return finish(
      kind == 9 ? .addSaturatedSigned : .subtractSaturatedSigned, scale + 1, destination, Self.t0,
      isFull: true)
  }

  private func element() -> Element? {
    let scale = Int(bits(22, 2))
    guard scale == 1 || scale == 2 else { return nil }
    let upper = bits(11, 1) << 1 | bits(21, 1)
    return scale == 1
      ? Element(register: AArch64State.v(Int(bits(16, 4))), lane: Int(upper << 1 | bits(20, 1)), scale: 1)
      : Element(register: m, lane: Int(upper), scale: 2)
  }

  private func indexed() -> Bool {
    guard let element = element() else { return false }
    let scale = element.scale
    let kind = bits(12, 4)
    switch (isUnsigned, kind) {
    case (false, 8): return finish(.multiply, scale, n, element: element)
    case (true, 0): return finish(.multiplyAdd, scale, n, element: element)
    case (true, 4): return finish(.multiplySubtract, scale, n, element: element)
    case (_, 2), (_, 6), (_, 0xa):
      return finish(
        product, scale, n, isFull: true, accumulation: kind == 2 ? .add : kind == 6 ? .subtract : .none,
        element: element)
    case (false, 0xc): return finish(.multiplyHighSaturated, scale, n, element: element)
    case (false, 0xd): return finish(.multiplyHighRoundedSaturated, scale, n, element: element)
    case (false, 3), (false, 7), (false, 0xb):
      return scale == 1 && doubledProduct(kind == 3 ? 9 : kind == 7 ? 0xb : 0xd, scale, element: element)
    default: return false
    }
  }

  private func miscellaneous() -> Bool {
    let scale = Int(bits(22, 2))
    switch bits(12, 5) {
    case 0x06 where scale < 3:
      return finish(
        isUnsigned ? .addPairsWidenedUnsigned : .addPairsWidenedSigned, scale, n, accumulation: .add)
    case 0x09 where isUnsigned && (scale < 3 || isFull):  // not above zero
      emit(.greaterSigned, scale, to: Self.t0, n)
      return finish(.not, 0, Self.t0)
    case 0x03 where isUnsigned && scale < 3:  // usqadd: one of the two is 0
      emit(.maxSigned, scale, to: Self.t0, n)
      emit(.minSigned, scale, to: Self.t1, n)
      emit(.negate, scale, to: Self.t1, Self.t1)
      emit(.addSaturatedUnsigned, scale, to: Self.t0, destination, Self.t0, isFull: isFull)
      return finish(.subtractSaturatedUnsigned, scale, Self.t0, Self.t1)
    case 0x07 where scale < 3:  // sqneg, sqabs
      emit(.xor, 0, to: Self.t0, n, n)
      if isUnsigned { return finish(.subtractSaturatedSigned, scale, Self.t0, n) }
      emit(.subtractSaturatedSigned, scale, to: Self.t0, Self.t0, n, isFull: isFull)
      return finish(.maxSigned, scale, Self.t0, n)
    default: return false
    }
  }

  private func narrowing(isRounded: Bool) -> IRVectorOperation {
    isFull
      ? (isRounded ? .narrowHighRounded : .narrowHigh) : isRounded ? .narrowLowRounded : .narrowLow
  }

  private func shift() -> Bool {
    let field = Int(bits(16, 7))
    guard field >= 8 else { return false }
    let lane = 3 - (field.leadingZeroBitCount - (Int.bitWidth - 7))
    let bitCount = 8 << lane
    let amount = 2 * bitCount - field
    let u = isUnsigned
    switch bits(11, 5) {
    case 0x02, 0x06:
      let isRounded = bits(13, 1) == 1
      guard lane < 3 || isFull, amount < bitCount || isRounded else { return false }
      let operation: IRVectorOperation =
        isRounded
        ? (u ? .shiftRightRoundedUnsigned : .shiftRightRoundedSigned)
        : u ? .shiftRightUnsigned : .shiftRightSigned
      return finish(operation, lane, n, amount: amount, accumulation: .add)
    // sri and sli: what stays of the destination moves out and back.
    case 0x08 where u:
      guard lane < 3 || isFull else { return false }
      if amount == bitCount { return finish(.move, 0, destination) }
      emit(.shiftRightUnsigned, lane, to: Self.t0, destination, amount: bitCount - amount)
      emit(.shiftLeft, lane, to: Self.t0, Self.t0, amount: bitCount - amount)
      emit(.shiftRightUnsigned, lane, to: Self.t1, n, amount: amount)
      return finish(.or, 0, Self.t0, Self.t1)
    case 0x0a where u:
      guard lane < 3 || isFull else { return false }
      let left = field - bitCount
      if left == 0 { return finish(.move, 0, n) }
      emit(.shiftLeft, lane, to: Self.t0, destination, amount: bitCount - left)
      emit(.shiftRightUnsigned, lane, to: Self.t0, Self.t0, amount: bitCount - left)
      emit(.shiftLeft, lane, to: Self.t1, n, amount: left)
      return finish(.or, 0, Self.t0, Self.t1)
    case 0x0e where field == bitCount + 1 && lane < 3:  // sqshl, uqshl by one bit
      return finish(u ? .addSaturatedUnsigned : .addSaturatedSigned, lane, n, n)
    case 0x11 where !u && lane < 3:  // rshrn
      return finish(narrowing(isRounded: true), lane, n, amount: amount, isFull: false)
    case 0x10 where u, 0x11 where u, 0x12, 0x13:
      let isRounded = bits(11, 1) == 1
      guard isAvailable(.narrowLowSigned, lane) else { return false }
      let isClamped = bits(12, 1) == 0
      let isLogical = !isClamped && u
      let operation: IRVectorOperation =
        isRounded
        ? (isLogical ? .shiftRightRoundedUnsigned : .shiftRightRoundedSigned)
        : isLogical ? .shiftRightUnsigned : .shiftRightSigned
      emit(operation, lane + 1, to: Self.t0, n, amount: amount)
      let narrow: IRVectorOperation =
        isClamped
        ? (isFull ? .narrowHighClamped : .narrowLowClamped)
        : u
          ? (isFull ? .narrowHighUnsigned : .narrowLowUnsigned)
          : isFull ? .narrowHighSigned : .narrowLowSigned
      return finish(narrow, lane, Self.t0, isFull: false)
    default: return false
    }
  }

  private func permute() -> Bool {
    let scale = Int(bits(22, 2))
    guard scale < 3 || isFull else { return false }
    let isSecond = bits(14, 1) == 1
    switch bits(12, 2) {
    case 1 where !isFull: return pairs(isSecond ? .oddLanes : .evenLanes, scale)
    case 3 where !isFull:  // zip2
      emit(.interleaveLow, scale, to: Self.t0, n, m)
      emit(.interleaveHigh, 3, to: Self.t0, Self.t0, Self.t0)
      return finish(.move, 0, Self.t0)
    default: return false
    }
  }

  private func addLongAcross() -> Bool {
    let scale = Int(bits(22, 2))
    guard bits(12, 5) == 3, scale < 2 || scale == 2 && isFull else { return false }
    emit(
      isUnsigned ? .addPairsWidenedUnsigned : .addPairsWidenedSigned, scale, to: Self.t0, n, isFull: isFull)
    return finish(.addAcross, scale + 1, Self.t0)
  }

  // MARK: Dot products

  /// sdot, udot, usdot, sudot; smmla, ummla, usmmla.
  func dotProduct(_ opcode: AArch64Opcode) -> Bool {
    let u = isUnsigned
    switch opcode {
    case .dot:
      let isMixed = bits(11, 1) == 1
      return finish(
        isMixed ? .dotUnsignedSigned : u ? .dotUnsigned : .dotSigned, 2, n, m, accumulation: .add)
    case .dotIndexed:
      let element = Element(register: m, lane: Int(bits(11, 1) << 1 | bits(21, 1)), scale: 2)
      let operation: IRVectorOperation =
        bits(12, 1) == 0
        ? (u ? .dotUnsigned : .dotSigned) : bits(23, 1) == 1 ? .dotUnsignedSigned : .dotSignedUnsigned
      return finish(operation, 2, n, accumulation: .add, element: element)
    case .matrixMultiply:
      // A row of n by both rows of m, in two parts each.
      let operation: IRVectorOperation =
        bits(11, 1) == 1 ? .dotUnsignedSigned : u ? .dotUnsigned : .dotSigned
      for (row, place) in [(0, Self.t0), (1, Self.t1)] {
        emit(.broadcast, 3, to: place, n, amount: row)
        emit(operation, 2, to: place, place, m)
      }
      emit(.addPairs, 2, to: Self.t0, Self.t0, Self.t1)
      return finish(.add, 2, destination, Self.t0)
    default: return false
    }
  }

  // MARK: Structures

  private static let places = [t0, t1, t2, t3]

  /// Sorts the elements of two to four registers' structures, which lie in the scratch area as in memory.
  ///
  /// - Parameter byteCount: of a register, 8 or 16.
  func deinterleave(_ elements: Int, scale: Int, byteCount: Int) {
    func put(_ operation: IRVectorOperation, _ element: Int, _ a: Int, _ b: Int? = nil, amount: Int = 0) {
      emit(operation, scale, to: AArch64State.v((rd + element) & 31), a, b, amount: amount)
    }
    let isFull = byteCount == 16
    switch elements {
    case 2:
      let second = isFull ? Self.t1 : Self.t0
      put(.evenLanes, 0, Self.t0, second)
      put(.oddLanes, 1, Self.t0, second)
    case 3:
      for element in 0..<3 {
        for part in 0..<(isFull ? 3 : 2) {
          let order = IRTripleOrder(isGather: true, element: element, part: part)
          put(part == 0 ? .reorder : .reorderOnto, element, Self.places[part], amount: order.amount)
        }
      }
    default:
      emit(.evenLanes, scale, to: Self.t4, Self.t0, Self.t1)
      emit(.oddLanes, scale, to: Self.t1, Self.t0, Self.t1)
      var (even, odd) = (Self.t4, Self.t1)
      if isFull {
        emit(.evenLanes, scale, to: Self.t0, Self.t2, Self.t3)
        emit(.oddLanes, scale, to: Self.t3, Self.t2, Self.t3)
        (even, odd) = (Self.t0, Self.t3)
      }
      put(.evenLanes, 0, Self.t4, even)
      put(.oddLanes, 2, Self.t4, even)
      put(.evenLanes, 1, Self.t1, odd)
      put(.oddLanes, 3, Self.t1, odd)
    }
    if !isFull { for element in 0..<elements { setHigh((rd + element) & 31, nil) } }
  }

  /// Puts the elements of two to four registers into the scratch area, as memory has the structures.
  func interleave(_ elements: Int, scale: Int, byteCount: Int) {
    func register(_ element: Int) -> Int { AArch64State.v((rd + element) & 31) }
    let isFull = byteCount == 16
    switch elements {
    case 2:
      emit(.interleaveLow, scale, to: Self.t0, register(0), register(1))
      if isFull { emit(.interleaveHigh, scale, to: Self.t1, register(0), register(1)) }
    case 3:
      for part in 0..<(isFull ? 3 : 2) {
        for element in 0..<3 {
          let order = IRTripleOrder(isGather: false, element: element, part: part)
          emit(
            element == 0 ? .reorder : .reorderOnto, scale, to: Self.places[part], register(element),
            amount: order.amount)
        }
      }
    default:
      emit(.interleaveLow, scale, to: Self.t3, register(0), register(2))
      emit(.interleaveLow, scale, to: Self.t4, register(1), register(3))
      emit(.interleaveLow, scale, to: Self.t0, Self.t3, Self.t4)
      emit(.interleaveHigh, scale, to: Self.t1, Self.t3, Self.t4)
      guard isFull else { return }
      emit(.interleaveHigh, scale, to: Self.t3, register(0), register(2))
      emit(.interleaveHigh, scale, to: Self.t4, register(1), register(3))
      emit(.interleaveLow, scale, to: Self.t2, Self.t3, Self.t4)
      emit(.interleaveHigh, scale, to: Self.t3, Self.t3, Self.t4)
    }
  }
}
