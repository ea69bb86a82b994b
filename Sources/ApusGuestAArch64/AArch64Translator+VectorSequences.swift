import ApusIR
import ApusISAAArch64

// Vector instructions that are a few operations of the IR, with places between the registers and memory for what lies
// between them.

extension AArch64Translator {
  private var isFull: Bool { bits(30, 1) == 1 }
  private var isUnsigned: Bool { bits(29, 1) == 1 }
  private var destination: Int { AArch64State.v(rd) }
  private var n: Int { AArch64State.v(rn) }
  private var m: Int { AArch64State.v(rm) }
  private static let t0 = AArch64State.scratch
  private static let t1 = AArch64State.scratch + 16

  private func emit(
    _ operation: IRVectorOperation, _ scale: Int, to: Int, _ a: Int, _ b: Int? = nil, amount: Int = 0,
    isFull: Bool = true
  ) {
    block.vector(
      IRVectorOperand(operation, scale: scale, amount: amount, isFull: isFull, destination: to, a: a, b: b))
  }
  /// The last operation: writes the register, and clears its upper half if the instruction is of 64 bits.
  private func finish(
    _ operation: IRVectorOperation, _ scale: Int, _ a: Int, _ b: Int? = nil, amount: Int = 0,
    isFull: Bool? = nil
  ) -> Bool {
    let isFull = isFull ?? self.isFull
    emit(operation, scale, to: destination, a, b, amount: amount, isFull: isFull)
    if !isFull, !operation.narrowsToHigh { setHigh(rd, nil) }
    return true
  }

  /// Translates the instruction if it is one of these.
  mutating func severalOperations(_ opcode: AArch64Opcode) -> Bool {
    switch opcode {
    case .vectorThreeSame: return threeSame()
    case .vectorThreeDifferent: return threeDifferent()
    case .vectorIndexed: return indexed()
    case .vectorMiscellaneous: return miscellaneous()
    case .vectorShift: return shift()
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
    guard scale < 3 else { return false }
    switch bits(11, 5) {
    case 0x00:  // (a & b) + (a ^ b) / 2
      let shift: IRVectorOperation = u ? .shiftRightUnsigned : .shiftRightSigned
      emit(.and, 0, to: Self.t0, n, m)
      emit(.xor, 0, to: Self.t1, n, m)
      emit(shift, scale, to: Self.t1, Self.t1, amount: 1)
      return finish(.add, scale, Self.t0, Self.t1)
    case 0x0f:
      emit(u ? .absoluteDifferenceUnsigned : .absoluteDifferenceSigned, scale, to: Self.t0, n, m)
      return finish(.add, scale, destination, Self.t0)
    case 0x14 where !isFull: return pairs(u ? .maxPairsUnsigned : .maxPairsSigned, scale)
    case 0x15 where !isFull: return pairs(u ? .minPairsUnsigned : .minPairsSigned, scale)
    case 0x17 where !isFull && !u: return pairs(.addPairs, scale)
    default: return false
    }
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
    case 4 where !u, 6 where !u:
      emit(bits(13, 1) == 0 ? .add : .subtract, wide, to: Self.t0, n, m)
      return finish(isFull ? .narrowHigh : .narrowLow, scale, Self.t0, amount: 8 << scale, isFull: false)
    case 5, 7:
      emit(u ? .absoluteDifferenceUnsigned : .absoluteDifferenceSigned, scale, to: Self.t0, n, m)
      if bits(12, 4) == 7 {
        return finish(isFull ? .widenHighUnsigned : .widenLowUnsigned, scale, Self.t0, isFull: true)
      }
      widen(scale, to: Self.t0, Self.t0, isUnsigned: true)
      return finish(.add, wide, destination, Self.t0, isFull: true)
    case 8, 0xa:
      emit(product, scale, to: Self.t0, n, m)
      return finish(bits(13, 1) == 0 ? .add : .subtract, wide, destination, Self.t0, isFull: true)
    case 0xc: return finish(product, scale, n, m, isFull: true)
    default: return false
    }
  }

  /// The lane of m that an instruction names, in all lanes of a place; its size as a power of two.
  private func broadcastElement() -> Int? {
    let scale = Int(bits(22, 2))
    guard scale == 1 || scale == 2 else { return nil }
    let upper = bits(11, 1) << 1 | bits(21, 1)
    let (lane, register) =
      scale == 1 ? (upper << 1 | bits(20, 1), Int(bits(16, 4))) : (upper, Int(bits(16, 5)))
    emit(.broadcast, scale, to: Self.t0, AArch64State.v(register), amount: Int(lane))
    return scale
  }

  private func indexed() -> Bool {
    let u = isUnsigned
    switch (u, bits(12, 4)) {
    case (false, 8), (true, 0), (true, 4):
      guard let scale = broadcastElement() else { return false }
      let operation: IRVectorOperation = u ? (bits(14, 1) == 0 ? .multiplyAdd : .multiplySubtract) : .multiply
      return finish(operation, scale, n, Self.t0)
    case (_, 2), (_, 6), (_, 0xa):
      guard let scale = broadcastElement() else { return false }
      if bits(12, 4) == 0xa { return finish(product, scale, n, Self.t0, isFull: true) }
      emit(product, scale, to: Self.t0, n, Self.t0)
      return finish(bits(14, 1) == 0 ? .add : .subtract, scale + 1, destination, Self.t0, isFull: true)
    case (false, 0xd):
      guard bits(22, 2) == 1, let scale = broadcastElement() else { return false }
      return finish(.multiplyHighSaturated, scale, n, Self.t0)
    default: return false
    }
  }

  private func miscellaneous() -> Bool {
    let scale = Int(bits(22, 2))
    switch bits(12, 5) {
    case 0x06 where scale < 3:
      emit(isUnsigned ? .addPairsWidenedUnsigned : .addPairsWidenedSigned, scale, to: Self.t0, n)
      return finish(.add, scale + 1, destination, Self.t0)
    case 0x09 where isUnsigned && (scale < 3 || isFull):  // not above zero
      emit(.greaterSigned, scale, to: Self.t0, n)
      return finish(.not, 0, Self.t0)
    default: return false
    }
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
      guard lane < 3 || isFull, amount < bitCount else { return false }
      let isRounded = bits(13, 1) == 1
      let operation: IRVectorOperation =
        isRounded
        ? (u ? .shiftRightRoundedUnsigned : .shiftRightRoundedSigned)
        : u ? .shiftRightUnsigned : .shiftRightSigned
      guard isAvailable(operation, lane), !isRounded || amount > 1 else { return false }
      emit(operation, lane, to: Self.t0, n, amount: amount)
      return finish(.add, lane, destination, Self.t0)
    case 0x11 where !u && lane < 3 && amount > 1:  // rshrn
      emit(.shiftRightRoundedUnsigned, lane + 1, to: Self.t0, n, amount: amount)
      return finish(isFull ? .narrowHigh : .narrowLow, lane, Self.t0, isFull: false)
    case 0x10 where u, 0x11 where u, 0x12, 0x13:
      let isRounded = bits(11, 1) == 1
      guard isAvailable(.narrowLowSigned, lane), !isRounded || amount > 1 else { return false }
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
    case 2:  // trn
      if scale == 3 { return finish(isSecond ? .interleaveHigh : .interleaveLow, 3, n, m) }
      let bitCount = 8 << scale
      if isSecond {
        emit(.shiftRightUnsigned, scale + 1, to: Self.t0, n, amount: bitCount)
        emit(.shiftRightUnsigned, scale + 1, to: Self.t1, m, amount: bitCount)
        emit(.shiftLeft, scale + 1, to: Self.t1, Self.t1, amount: bitCount)
      } else {
        emit(.shiftLeft, scale + 1, to: Self.t0, n, amount: bitCount)
        emit(.shiftRightUnsigned, scale + 1, to: Self.t0, Self.t0, amount: bitCount)
        emit(.shiftLeft, scale + 1, to: Self.t1, m, amount: bitCount)
      }
      return finish(.or, 0, Self.t0, Self.t1)
    case 1 where !isFull: return pairs(isSecond ? .oddLanes : .evenLanes, scale)
    case 3 where !isFull:
      emit(.interleaveLow, scale, to: Self.t0, n, m)
      if isSecond { emit(.extract, 0, to: Self.t0, Self.t0, Self.t0, amount: 8) }
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
}
