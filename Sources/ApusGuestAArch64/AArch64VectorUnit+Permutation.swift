// Lanes on the move: copies, permutations, tables, and the structures of loads and stores [Arm ARM C4.1.96].

extension AArch64VectorUnit {
  func scalarCopy() -> AArch64Vector? {
    let imm5 = bits(16, 5)
    guard imm5 & 15 != 0 else { return nil }
    let scale = imm5.trailingZeroBitCount
    return AArch64Vector(low: n[imm5 >> (scale + 1), scale])
  }

  func permute() -> AArch64Vector? {
    let scale = size
    guard scale < 3 || isFull else { return nil }
    let lanes = count(scale)
    let part = bits(14, 1)
    var result = AArch64Vector()
    for lane in 0..<lanes {
      switch bits(12, 2) {
      case 1:  // uzp
        let from = 2 * lane + part
        result[lane, scale] = from < lanes ? n[from, scale] : m[from - lanes, scale]
      case 2:  // trn
        let from = lane & ~1 | part
        result[lane, scale] = lane & 1 == 0 ? n[from, scale] : m[from, scale]
      case 3:  // zip
        let from = lane / 2 + part * lanes / 2
        result[lane, scale] = lane & 1 == 0 ? n[from, scale] : m[from, scale]
      default: return nil
      }
    }
    return result
  }

  func extract() -> AArch64Vector? {
    let position = bits(11, 4)
    let total = isFull ? 16 : 8
    guard position < total else { return nil }
    var result = AArch64Vector()
    for lane in 0..<total {
      let from = lane + position
      result[lane, 0] = from < total ? n[from, 0] : m[from - total, 0]
    }
    return result
  }

  func table() -> AArch64Vector? {
    let registers = bits(13, 2) + 1
    let first = bits(5, 5)
    let isExtension = bits(12, 1) == 1
    var result = AArch64Vector()
    for lane in 0..<(isFull ? 16 : 8) {
      let index = Int(m[lane, 0])
      if index < 16 * registers {
        result[lane, 0] = s[v: (first + index / 16) & 31][index & 15, 0]
      } else if isExtension {
        result[lane, 0] = d[lane, 0]
      }
    }
    return result
  }

  static func structure(_ word: UInt32) -> (elements: Int, scale: Int, byteCount: Int) {
    // 0, 4 and 8 stand for four, three and two elements.
    (4 - Int(word >> 14 & 3), Int(word >> 10 & 3), word >> 30 & 1 != 0 ? 16 : 8)
  }

  /// The registers hold memory's bytes one after the other: element i goes to register i mod n.
  static func deinterleave(_ word: UInt32, _ s: AArch64State) {
    let (elements, scale, byteCount) = structure(word)
    let first = Int(word & 31)
    let source = (0..<elements).map { s[v: (first + $0) & 31] }
    let perRegister = byteCount >> scale
    for register in 0..<elements {
      var result = AArch64Vector()
      for lane in 0..<perRegister {
        let position = lane * elements + register
        result[lane, scale] = source[position / perRegister][position % perRegister, scale]
      }
      s[v: (first + register) & 31] = result
    }
  }

  /// Puts the registers' elements into the scratch area, in memory's order.
  static func interleave(_ word: UInt32, _ s: AArch64State) {
    let (elements, scale, byteCount) = structure(word)
    let first = Int(word & 31)
    let perRegister = byteCount >> scale
    for lane in 0..<perRegister {
      for register in 0..<elements {
        var value = s[v: (first + register) & 31][lane, scale]
        let position = (lane * elements + register) << scale
        withUnsafeBytes(of: &value) {
          s.base.advanced(by: AArch64State.scratch + position).copyMemory(
            from: $0.baseAddress.unsafelyUnwrapped, byteCount: 1 << scale)
        }
      }
    }
  }
}
