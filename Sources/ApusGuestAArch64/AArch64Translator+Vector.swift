import ApusIR
import ApusISAAArch64

// Advanced SIMD [Arm ARM C4.1.96]. What works on 64-bit pieces is IR; the rest is `AArch64VectorUnit`'s.

extension AArch64Translator {
  mutating func vector(_ opcode: AArch64Opcode) {
    if block.optimisations.contains(.hostVector) {
      if let operation = wholeOperation(opcode) { return whole(operation) }
      if severalOperations(opcode) { return }
    }
    if floatVector(opcode) { return }
    switch opcode {
    case .vectorImmediate: if immediateVector() { return }
    case .vectorThreeSame: if bitwiseVector() || addVector() { return }
    case .vectorCopy: if copyVector() { return }
    case .scalarCopy:
      let scale = bits(16, 5).trailingZeroBitCount
      let part = lanePart(rn, lane: Int(bits(16, 5)) >> (scale + 1), scale: scale)
      return setHalves(scale == 3 ? part : block.binary(.and64, part, constant(laneMask(scale))), nil)
    default: break
    }
    call(.vector, constant(UInt64(word)))
  }

  private var isFull: Bool { bits(30, 1) == 1 }

  func setHalves(_ low: IRValue, _ high: IRValue?) {
    setVector(rd, Halves(low: block.unary(.moveI64ToF64, low), high: high))
  }

  /// movi, mvni, fmov: constants; orr and bic.
  private func immediateVector() -> Bool {
    guard let value = AArch64VectorUnit.expandedImmediate(word) else { return false }
    let cmode = bits(12, 4)
    guard cmode & 1 == 1, cmode < 12 else {
      setHalves(constant(value), isFull ? constant(value) : nil)
      return true
    }
    // bic has its immediate inverted already.
    let opcode: IROpcode = bits(29, 1) == 1 ? .and64 : .or64
    func piece(_ isHigh: Bool) -> IRValue { block.binary(opcode, half(rd, isHigh), constant(value)) }
    let low = piece(false)
    setHalves(low, isFull ? piece(true) : nil)
    return true
  }

  private func laneMask(_ scale: Int) -> UInt64 { AArch64Vector.mask(scale) }

  private func bitwiseVector() -> Bool {
    guard bits(11, 5) == 3 else { return false }
    func pieces(_ body: (IRValue, IRValue, IRValue) -> IRValue, readsDestination: Bool = false) -> Bool {
      func piece(_ isHigh: Bool) -> IRValue {
        body(half(rn, isHigh), half(rm, isHigh), readsDestination ? half(rd, isHigh) : .none)
      }
      let low = piece(false)
      let high = isFull ? piece(true) : nil
      setHalves(low, high)
      return true
    }
    let block = block
    func and(_ a: IRValue, _ b: IRValue) -> IRValue { block.binary(.and64, a, b) }
    func xor(_ a: IRValue, _ b: IRValue) -> IRValue { block.binary(.xor64, a, b) }
    switch bits(29, 1) << 2 | bits(22, 2) {
    case 0: return pieces { n, m, _ in and(n, m) }
    case 1: return pieces { n, m, _ in block.binary(.andNot64, n, m) }
    case 2:
      if rn == rm { return pieces { n, _, _ in n } }
      return pieces { n, m, _ in block.binary(.or64, n, m) }
    case 3: return pieces { n, m, _ in block.binary(.or64, n, block.binary(.xor64, m, block.const64(.max))) }
    case 4: return pieces { n, m, _ in xor(n, m) }
    // bsl, bit, bif: x ^ ((x ^ y) & mask)
    case 5: return pieces({ n, m, d in xor(m, and(xor(m, n), d)) }, readsDestination: true)
    case 6: return pieces({ n, m, d in xor(d, and(xor(d, n), m)) }, readsDestination: true)
    default:
      return pieces({ n, m, d in xor(d, block.binary(.andNot64, xor(d, n), m)) }, readsDestination: true)
    }
  }

  /// add and sub of 64-bit lanes.
  private func addVector() -> Bool {
    guard bits(11, 5) == 0x10, bits(22, 2) == 3, isFull else { return false }
    let opcode: IROpcode = bits(29, 1) == 1 ? .sub64 : .add64
    let low = block.binary(opcode, half(rn, false), half(rm, false))
    let high = block.binary(opcode, half(rn, true), half(rm, true))
    setHalves(low, high)
    return true
  }

  /// dup, ins, umov, smov.
  private func copyVector() -> Bool {
    let imm5 = Int(bits(16, 5))
    guard imm5 & 15 != 0 else { return false }
    let scale = imm5.trailingZeroBitCount
    let lane = imm5 >> (scale + 1)
    let mask = laneMask(scale)
    if bits(29, 1) == 1 {
      guard isFull else { return false }
      insert(lanePart(rn, lane: Int(bits(11, 4)) >> scale, scale: scale), rd, lane: lane, scale: scale)
      return true
    }
    switch bits(11, 4) {
    case 0, 1:
      guard scale < 3 || isFull else { return false }
      let source = bits(11, 4) == 1 ? x(rn) : lanePart(rn, lane: lane, scale: scale)
      let all = replicated(scale == 3 ? source : block.binary(.and64, source, constant(mask)), scale)
      setHalves(all, isFull ? all : nil)
    case 3:
      guard isFull else { return false }
      insert(x(rn), rd, lane: lane, scale: scale)
    case 5:
      guard scale < (isFull ? 3 : 2) else { return false }
      let part = lanePart(rn, lane: lane, scale: scale)
      let extend: [IROpcode] = [.signExtend8, .signExtend16]
      let value = scale == 2 ? block.unary(.signExtend32, narrow(part)) : block.unary(extend[scale], part)
      setX(rd, isFull ? value : block.unary(.zeroExtend32, narrow(value)))
    case 7:
      guard scale == 3 ? isFull : !isFull else { return false }
      let part = lanePart(rn, lane: lane, scale: scale)
      setX(rd, scale == 3 ? part : block.binary(.and64, part, constant(mask)))
    default: return false
    }
    return true
  }

  // MARK: Whole registers

  /// An operation of the IR with its operands' registers; b `nil` is zero.
  private struct WholeOperation {
    var operation: IRVectorOperation
    var scale: Int
    var amount = 0
    var a: Int
    var b: Int?
    /// The upper half is written; otherwise it becomes zero, or stays for `narrowHigh`.
    var isFull: Bool
    /// The upper half becomes zero after all.
    var isScalar = false
  }

  func isAvailable(_ operation: IRVectorOperation, _ scale: Int) -> Bool {
    operation.isAvailable(scale: scale, block.optimisations)
  }

  private func whole(_ one: WholeOperation) {
    let clears = !one.isFull && one.operation.isLanewise || one.isScalar
    block.vector(
      IRVectorOperand(
        one.operation, scale: one.scale, amount: one.amount, isFull: one.isFull || clears,
        clearsUpper: clears,
        destination: AArch64State.v(rd), a: AArch64State.v(one.a), b: one.b.map(AArch64State.v)))
    if !one.isFull, !clears, !one.operation.narrowsToHigh { setHigh(rd, nil) }
  }

  private func wholeOperation(_ opcode: AArch64Opcode) -> WholeOperation? {
    var found: WholeOperation?
    switch opcode {
    // Scalars of 64 bits, with both lanes; those that saturate look at the lanes.
    case .scalarThreeSame where bits(22, 2) == 3 && bits(11, 5) & 0x1b != 1 && bits(11, 5) < 0x18:
      found = threeSame()
      found?.isScalar = true
    case .scalarShift:
      found = shift()
      if found?.scale != 3 { found = nil }
      found?.isScalar = true
    case .scalarMiscellaneous where bits(22, 2) == 3 && (8..<12).contains(bits(12, 5)):
      found = miscellaneous()
      found?.isScalar = true
    case .scalarCopy where bits(16, 4) == 8:
      let operation: IRVectorOperation = bits(20, 1) == 1 ? .interleaveHigh : .move
      found = WholeOperation(operation: operation, scale: 3, a: rn, b: rn, isFull: true, isScalar: true)
    case .vectorThreeSame: found = threeSame()
    case .vectorMiscellaneous: found = miscellaneous()
    case .vectorShift: found = shift()
    case .vectorPermute: found = permute()
    case .vectorAcross: found = across()
    case .vectorExtract:
      found =
        isFull
        ? WholeOperation(operation: .extract, scale: 0, amount: Int(bits(11, 4)), a: rn, b: rm, isFull: true)
        : nil
    case .vectorTable where bits(12, 3) == 0:
      found = WholeOperation(operation: .permute, scale: 0, a: rn, b: rm, isFull: isFull)
    case .vectorCopy where bits(29, 1) == 0 && bits(11, 4) == 0 && bits(16, 4) != 0:
      let scale = bits(16, 5).trailingZeroBitCount
      found =
        isFull || scale < 3
        ? WholeOperation(
          operation: .broadcast, scale: scale, amount: Int(bits(16, 5)) >> (scale + 1), a: rn, b: nil,
          isFull: isFull) : nil
    default: found = nil
    }
    guard let found, isAvailable(found.operation, found.scale) else { return nil }
    return found
  }

  private var isUnsigned: Bool { bits(29, 1) == 1 }

  private func threeSame() -> WholeOperation? {
    let u = isUnsigned
    var scale = Int(bits(22, 2))
    let operation: IRVectorOperation
    switch bits(11, 5) {
    case 0x03:
      let operations: [IRVectorOperation] = [
        .and, .andNot, .or, .orNot, .xor, .select, .insertIfTrue, .insertIfFalse,
      ]
      operation = rn == rm && !u && scale == 2 ? .move : operations[(u ? 4 : 0) + scale]
      scale = 0
    case 0x01: operation = u ? .addSaturatedUnsigned : .addSaturatedSigned
    case 0x02 where u: operation = .averageUnsigned
    case 0x08: operation = u ? .shiftByLanesUnsigned : .shiftByLanesSigned
    case 0x05: operation = u ? .subtractSaturatedUnsigned : .subtractSaturatedSigned
    case 0x06: operation = u ? .greaterUnsigned : .greaterSigned
    case 0x07: operation = u ? .greaterOrEqualUnsigned : .greaterOrEqualSigned
    case 0x0c: operation = u ? .maxUnsigned : .maxSigned
    case 0x0d: operation = u ? .minUnsigned : .minSigned
    case 0x0e: operation = u ? .absoluteDifferenceUnsigned : .absoluteDifferenceSigned
    case 0x10: operation = u ? .subtract : .add
    case 0x11: operation = u ? .equal : .anySet
    case 0x12: operation = u ? .multiplySubtract : .multiplyAdd
    case 0x13 where !u: operation = .multiply
    case 0x16: operation = u ? .multiplyHighRoundedSaturated : .multiplyHighSaturated
    case 0x14 where isFull: operation = u ? .maxPairsUnsigned : .maxPairsSigned
    case 0x15 where isFull: operation = u ? .minPairsUnsigned : .minPairsSigned
    case 0x17 where isFull && !u: operation = .addPairs
    default: return nil
    }
    // Lanes of 64 bits need the whole register.
    guard scale < 3 || isFull else { return nil }
    return WholeOperation(operation: operation, scale: scale, a: rn, b: rm, isFull: isFull)
  }

  private func miscellaneous() -> WholeOperation? {
    let u = isUnsigned
    let scale = Int(bits(22, 2))
    func one(_ operation: IRVectorOperation) -> WholeOperation? {
      guard scale < 3 || isFull else { return nil }
      return WholeOperation(operation: operation, scale: scale, a: rn, b: nil, isFull: isFull)
    }
    switch bits(12, 5) {
    // rev64, rev32, rev16; the lanes stay within halves of the register.
    case 0x00, 0x01:
      let container = u ? 2 : bits(12, 5) == 0 ? 3 : 1
      guard scale < container, !u || bits(12, 5) == 0 else { return nil }
      return WholeOperation(
        operation: .reverse, scale: scale, amount: container, a: rn, b: nil, isFull: isFull)
    case 0x02: return one(u ? .addPairsWidenedUnsigned : .addPairsWidenedSigned)
    case 0x04 where u: return one(.countLeadingZeros)
    case 0x05 where !u && scale == 0: return one(.countOnes)
    case 0x0a where !u:
      var operation = one(.shiftRightSigned)
      operation?.amount = (8 << scale) - 1
      return operation
    case 0x05 where u && scale == 0: return one(.not)
    case 0x08: return one(u ? .greaterOrEqualSigned : .greaterSigned)
    case 0x09 where !u: return one(.equal)
    case 0x0b: return one(u ? .negate : .absolute)
    case 0x12 where !u && scale < 3:
      return WholeOperation(
        operation: isFull ? .narrowHigh : .narrowLow, scale: scale, a: rn, b: nil, isFull: false)
    case 0x12 where u: return narrowing(.clamped, scale)
    case 0x13 where u && scale < 3:  // shll
      return WholeOperation(
        operation: isFull ? .widenHighUnsigned : .widenLowUnsigned, scale: scale, amount: 8 << scale, a: rn,
        b: nil,
        isFull: true)
    case 0x14: return narrowing(u ? .unsigned : .signed, scale)
    default: return nil
    }
  }

  private enum Saturation { case signed, clamped, unsigned }
  private func narrowing(_ saturation: Saturation, _ scale: Int) -> WholeOperation {
    let operations: (low: IRVectorOperation, high: IRVectorOperation) =
      switch saturation {
      case .signed: (.narrowLowSigned, .narrowHighSigned)
      case .clamped: (.narrowLowClamped, .narrowHighClamped)
      case .unsigned: (.narrowLowUnsigned, .narrowHighUnsigned)
      }
    return WholeOperation(
      operation: isFull ? operations.high : operations.low, scale: scale, a: rn, b: nil, isFull: false)
  }

  private func across() -> WholeOperation? {
    let u = isUnsigned
    let scale = Int(bits(22, 2))
    guard scale < 2 || scale == 2 && isFull else { return nil }
    let operation: IRVectorOperation
    switch bits(12, 5) {
    case 0x0a: operation = u ? .maxAcrossUnsigned : .maxAcrossSigned
    case 0x1a: operation = u ? .minAcrossUnsigned : .minAcrossSigned
    case 0x1b where !u: operation = .addAcross
    default: return nil
    }
    return WholeOperation(operation: operation, scale: scale, a: rn, b: nil, isFull: isFull)
  }

  private func shift() -> WholeOperation? {
    let field = Int(bits(16, 7))
    guard field >= 8 else { return nil }
    let scale = 6 - (field.leadingZeroBitCount - (Int.bitWidth - 7))
    // Bits 6 to 3 hold the size: its highest bit.
    let lane = scale - 3
    let bitCount = 8 << lane
    func one(_ operation: IRVectorOperation, _ amount: Int) -> WholeOperation? {
      // Only rounded ones leave something of a shift by all bits.
      let isRounded = operation == .shiftRightRoundedSigned || operation == .shiftRightRoundedUnsigned
      guard lane < 3 || isFull, amount < bitCount || isRounded else { return nil }
      return WholeOperation(operation: operation, scale: lane, amount: amount, a: rn, b: nil, isFull: isFull)
    }
    switch bits(11, 5) {
    // All bits away: signed ones leave their sign.
    case 0x00 where !isUnsigned: return one(.shiftRightSigned, min(2 * bitCount - field, bitCount - 1))
    case 0x00: return one(.shiftRightUnsigned, 2 * bitCount - field)
    case 0x04:
      return one(isUnsigned ? .shiftRightRoundedUnsigned : .shiftRightRoundedSigned, 2 * bitCount - field)
    case 0x0a where !isUnsigned: return one(.shiftLeft, field - bitCount)
    case 0x10 where !isUnsigned && lane < 3:
      return WholeOperation(
        operation: isFull ? .narrowHigh : .narrowLow, scale: lane, amount: 2 * bitCount - field, a: rn,
        b: nil,
        isFull: false)
    case 0x14 where lane < 3:
      let operation: IRVectorOperation =
        isFull
        ? (isUnsigned ? .widenHighUnsigned : .widenHighSigned)
        : isUnsigned ? .widenLowUnsigned : .widenLowSigned
      return WholeOperation(
        operation: operation, scale: lane, amount: field - bitCount, a: rn, b: nil, isFull: true)
    default: return nil
    }
  }

  private func permute() -> WholeOperation? {
    let operation: IRVectorOperation
    switch bits(12, 3) {
    case 1 where isFull: operation = .evenLanes
    case 5 where isFull: operation = .oddLanes
    case 2: operation = .transposeEven
    case 6: operation = .transposeOdd
    case 3: operation = .interleaveLow
    case 7 where isFull: operation = .interleaveHigh
    default: return nil
    }
    let scale = Int(bits(22, 2))
    return scale < 3 || isFull
      ? WholeOperation(operation: operation, scale: scale, a: rn, b: rm, isFull: isFull) : nil
  }
}
