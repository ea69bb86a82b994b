import ApusIR
import ApusISAAArch64

// Memory tagging at the level that has instructions and no tags: what is read of them is 0, what is written is lost
// [Arm ARM D10, ID_AA64PFR1_EL1.MTE = 1].

extension AArch64Translator {
  /// Bits 59:56 of an address.
  private static let tagMask: UInt64 = 0xf << 56

  mutating func memoryTagging(_ opcode: AArch64Opcode) {
    switch opcode {
    case .addTag:
      let offset = constant(UInt64(bits(16, 6)) << 4)
      setXSP(rd, untagged(block.binary(bits(30, 1) == 0 ? .add64 : .sub64, xsp(rn), offset)))
    case .irg: setXSP(rd, untagged(xsp(rn)))
    case .gmi:
      let tag = block.binary(.and64, block.binary(.shrU64, xsp(rn), constant(56)), constant(15))
      setX(rd, block.binary(.or64, x(rm), block.binary(.shl64, constant(1), tag)))
    case .subp:
      let (a, b) = (extended(xsp(rn)), extended(xsp(rm)))
      setX(rd, block.binary(.sub64, a, b))
      if bits(29, 1) == 1 { setFlags(.subtraction(a: a, b: b, isWide: true)) }
    case .ldg:
      storeFlags()
      let granule = block.binary(
        .and64, block.binary(.add64, xsp(rn), constant(displacement)), constant(~15))
      _ = block.load(.loadU8, granule, memory())
      setX(rd, untagged(x(rd)))
    case .storeTag: storeTag()
    default: storePair()
    }
  }

  /// The address with tag 0.
  private func untagged(_ address: IRValue) -> IRValue {
    block.binary(.and64, address, constant(~Self.tagMask))
  }
  /// Bits 55:0 with their sign.
  private func extended(_ address: IRValue) -> IRValue {
    block.binary(.shrS64, block.binary(.shl64, address, constant(8)), constant(8))
  }
  /// In granules of 16 bytes, as bytes.
  private var displacement: UInt64 { UInt64(bitPattern: signedBits(12, 9) << 4) }

  /// stg, stzg, st2g, stz2g: one or two granules, zeroed or only looked at.
  private mutating func storeTag() {
    storeFlags()
    // Bits 11:10: behind the access, none, before it.
    let form = bits(10, 2)
    let moved = block.binary(.add64, xsp(rn), constant(displacement))
    let base = form == 1 ? xsp(rn) : moved
    call(.checkGranule, base)
    let (count, isZeroing): (Int64, Bool) = (bits(23, 1) == 1 ? 2 : 1, bits(22, 1) == 1)
    for granule in 0..<count {
      if isZeroing {
        block.store(.store64, base, constant(0), memory(16 * granule))
        block.store(.store64, base, constant(0), memory(16 * granule + 8))
      } else {
        // The page must be one that can be stored to.
        _ = block.binary(
          .atomicRMW64, base, constant(0), immediate: memory(16 * granule, ordered: true, .add).rawValue)
      }
    }
    if form != 2 { setXSP(rn, moved) }
  }

  /// stgp: two registers.
  private mutating func storePair() {
    storeFlags()
    // Bits 24:23: behind the access, none, before it.
    let form = bits(23, 2)
    let moved = block.binary(.add64, xsp(rn), constant(UInt64(bitPattern: signedBits(15, 7) << 4)))
    let base = form == 1 ? xsp(rn) : moved
    call(.checkGranule, base)
    block.store(.store64, base, x(rd), memory())
    block.store(.store64, base, x(Int(bits(10, 5))), memory(8))
    if form != 2 { setXSP(rn, moved) }
  }
}
