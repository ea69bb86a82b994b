import ApusIR
import ApusISAAArch64

// SHA-512 [Arm ARM C7.2.252 to C7.2.255]: two rounds or two words of the schedule, in integers of 64 bits.

extension AArch64Translator {
  /// Translates the instruction if it is one of these.
  func sha512(_ opcode: AArch64Opcode) -> Bool {
    let (n, m, d) = (pair(rn), pair(rm), pair(rd))
    switch opcode {
    case .sha512h:
      // Of two rounds: what e and a get, without a's own part.
      let high = sum(choose(m.high, n.low, n.high), rotations(m.high, 14, 18, 41), d.high)
      let next = sum(high, m.low)
      setHalves(sum(choose(next, m.high, n.low), rotations(next, 14, 18, 41), d.low), high)
    case .sha512h2:
      // a's part.
      let high = sum(majority(n.low, m.high, m.low), rotations(m.low, 28, 34, 39), d.high)
      setHalves(sum(majority(high, m.low, m.high), rotations(high, 28, 34, 39), d.low), high)
    case .sha512su0: setHalves(sum(d.low, schedule(d.high, 1, 8, 7)), sum(d.high, schedule(n.low, 1, 8, 7)))
    case .sha512su1:
      setHalves(
        sum(d.low, schedule(n.low, 19, 61, 6), m.low), sum(d.high, schedule(n.high, 19, 61, 6), m.high))
    default: return false
    }
    return true
  }

  private func pair(_ number: Int) -> (low: IRValue, high: IRValue) {
    (half(number, false), half(number, true))
  }
  private func xor(_ a: IRValue, _ b: IRValue) -> IRValue { block.binary(.xor64, a, b) }
  private func rotated(_ x: IRValue, _ count: UInt64) -> IRValue {
    block.binary(.rotr64, x, constant(count))
  }
  private func sum(_ first: IRValue, _ others: IRValue...) -> IRValue {
    others.reduce(first) { block.binary(.add64, $0, $1) }
  }
  private func rotations(_ x: IRValue, _ a: UInt64, _ b: UInt64, _ c: UInt64) -> IRValue {
    xor(xor(rotated(x, a), rotated(x, b)), rotated(x, c))
  }
  private func schedule(_ x: IRValue, _ a: UInt64, _ b: UInt64, _ shift: UInt64) -> IRValue {
    xor(xor(rotated(x, a), rotated(x, b)), block.binary(.shrU64, x, constant(shift)))
  }
  private func choose(_ x: IRValue, _ y: IRValue, _ z: IRValue) -> IRValue {
    xor(block.binary(.and64, xor(y, z), x), z)
  }
  private func majority(_ x: IRValue, _ y: IRValue, _ z: IRValue) -> IRValue {
    block.binary(.or64, block.binary(.and64, x, y), block.binary(.and64, block.binary(.or64, x, y), z))
  }
}
