/// Encodings that a row's pattern matches and that are not allocated all the same: their fields have values that the
/// pattern cannot exclude. The translator raises an exception for them.
extension AArch64Row {
  public func isReserved(_ word: UInt32) -> Bool {
    func bits(_ low: UInt32, _ count: UInt32) -> UInt32 { word >> low & ((1 << count) - 1) }
    let isWide = word >> 31 == 1
    switch opcode {
    case .add, .adds, .sub, .subs: return bits(22, 2) == 3 || !isWide && bits(15, 1) == 1
    case .and, .bic, .orr, .orn, .eor, .eon, .ands, .bics: return !isWide && bits(15, 1) == 1
    case .sbfm, .bfm, .ubfm:
      return bits(22, 1) != bits(31, 1) || !isWide && (bits(15, 1) == 1 || bits(21, 1) == 1)
    case .extr: return bits(22, 1) != bits(31, 1) || !isWide && bits(15, 1) == 1
    case .addExtended, .addsExtended, .subExtended, .subsExtended: return bits(10, 3) > 4
    case .andImmediate, .orrImmediate, .eorImmediate, .andsImmediate:
      return logicalImmediate(n: bits(22, 1), immr: bits(16, 6), imms: bits(10, 6), isWide: isWide) == nil
    case .movn, .movz, .movk: return !isWide && bits(22, 1) == 1
    case .fixedToFloat, .floatToFixed: return !isWide && bits(15, 1) == 0
    case .pair: return bits(30, 2) == 3 || bits(30, 2) == 1 && bits(23, 2) == 0
    case .pairVector, .loadLiteralVector: return bits(30, 2) == 3
    case .casp: return (bits(0, 1) | bits(16, 1)) == 1
    case .loadStore:
      let (size, operation) = (bits(30, 2), bits(22, 2))
      if bits(24, 1) == 0, bits(21, 1) == 1, bits(14, 1) == 0 { return true }
      // Prefetches have no indexed and no unprivileged form.
      if size == 3, operation == 2 { return bits(24, 1) == 0 && bits(21, 1) == 0 && bits(10, 2) != 0 }
      return size >= 2 && operation == 3
    case .loadStoreVector:
      if bits(24, 1) == 0, bits(21, 1) == 1, bits(14, 1) == 0 { return true }
      if bits(24, 1) == 0, bits(21, 1) == 0, bits(10, 2) == 2 { return true }
      return bits(23, 1) == 1 && bits(30, 2) != 0
    default: return false
    }
  }
}
