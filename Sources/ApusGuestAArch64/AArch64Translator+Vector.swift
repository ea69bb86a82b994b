import ApusIR
import ApusISAAArch64

// Advanced SIMD [Arm ARM C4.1.96]. What works on 64-bit pieces is IR; the rest is `AArch64VectorUnit`'s.

extension AArch64Translator {
  mutating func vector(_ opcode: AArch64Opcode) {
    switch opcode {
    case .vectorImmediate: if immediateVector() { return }
    case .vectorThreeSame: if bitwiseVector() || addVector() { return }
    case .vectorCopy: if copyVector() { return }
    default: break
    }
    call(.vector, constant(UInt64(word)))
  }

  private var isFull: Bool { bits(30, 1) == 1 }

  private func setHalves(_ low: IRValue, _ high: IRValue?) {
    setVector(rd, Halves(low: block.unary(.moveI64ToF64, low), high: high))
  }

  /// movi, mvni, fmov: constants. orr and bic with immediates are left to the vector unit.
  private func immediateVector() -> Bool {
    let cmode = bits(12, 4)
    let isOr = cmode & 1 == 1 && cmode < 12
    guard !isOr, let value = AArch64VectorUnit.expandedImmediate(word) else { return false }
    setHalves(constant(value), isFull ? constant(value) : nil)
    return true
  }

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
    let mask: UInt64 = scale == 3 ? .max : (1 << (8 << UInt64(scale))) - 1
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
}
