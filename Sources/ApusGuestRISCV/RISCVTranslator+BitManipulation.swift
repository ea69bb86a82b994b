import ApusIR
import ApusISARISCV

extension RISCVTranslator {
  /// Zba, Zbb, Zbc, Zbs, Zicond [RV-Unpriv 12, 30].
  func bitManipulation() {
    guard instruction.rd != 0 else { return }
    func word(_ value: IRValue) -> IRValue { block.unary(.truncate32, value) }
    func signed(_ value: IRValue) -> IRValue { block.unary(.signExtend32, value) }
    func count(_ opcode: IROpcode) -> IRValue { block.unary(.zeroExtend32, block.unary(opcode, word(rs1))) }
    func shiftedAdd(_ amount: UInt64, unsignedWord: Bool) -> IRValue {
      let index = unsignedWord ? block.unary(.zeroExtend32, word(rs1)) : rs1
      return block.binary(.add64, block.binary(.shl64, index, block.const64(amount)), rs2)
    }
    /// 1 << the bit number in rs2 or the immediate.
    func singleBit(_ isImmediate: Bool) -> IRValue {
      isImmediate
        ? block.const64(1 << UInt64(instruction.immediate)) : block.binary(.shl64, block.const64(1), rs2)
    }
    func negated(_ value: IRValue) -> IRValue { block.binary(.sub64, block.const64(0), value) }

    let value: IRValue
    switch instruction.opcode {
    case .addUw: value = shiftedAdd(0, unsignedWord: true)
    case .slliUw: value = block.binary(.shl64, block.unary(.zeroExtend32, word(rs1)), immediate)
    case .sh1add: value = shiftedAdd(1, unsignedWord: false)
    case .sh1addUw: value = shiftedAdd(1, unsignedWord: true)
    case .sh2add: value = shiftedAdd(2, unsignedWord: false)
    case .sh2addUw: value = shiftedAdd(2, unsignedWord: true)
    case .sh3add: value = shiftedAdd(3, unsignedWord: false)
    case .sh3addUw: value = shiftedAdd(3, unsignedWord: true)
    case .andn: value = block.binary(.andNot64, rs1, rs2)
    case .orn: value = block.binary(.or64, rs1, block.binary(.xor64, rs2, block.const64(.max)))
    case .xnor: value = block.binary(.xor64, block.binary(.xor64, rs1, rs2), block.const64(.max))
    case .clz: value = block.unary(.countLeadingZeros64, rs1)
    case .ctz: value = block.unary(.countTrailingZeros64, rs1)
    case .cpop: value = block.unary(.countOnes64, rs1)
    case .clzw: value = count(.countLeadingZeros32)
    case .ctzw: value = count(.countTrailingZeros32)
    case .cpopw: value = count(.countOnes32)
    case .sextB: value = block.unary(.signExtend8, rs1)
    case .sextH: value = block.unary(.signExtend16, rs1)
    case .zextH: value = block.unary(.zeroExtend16, rs1)
    case .min: value = block.binary(.minS64, rs1, rs2)
    case .minu: value = block.binary(.minU64, rs1, rs2)
    case .max: value = block.binary(.maxS64, rs1, rs2)
    case .maxu: value = block.binary(.maxU64, rs1, rs2)
    case .rol: value = block.binary(.rotr64, rs1, negated(rs2))
    case .ror: value = block.binary(.rotr64, rs1, rs2)
    case .rori: value = block.binary(.rotr64, rs1, immediate)
    case .rolw: value = signed(block.binary(.rotr32, word(rs1), word(negated(rs2))))
    case .rorw: value = signed(block.binary(.rotr32, word(rs1), word(rs2)))
    case .roriw: value = signed(block.binary(.rotr32, word(rs1), word(immediate)))
    case .orcB: value = call(.orCombineBytes, rs1)
    case .rev8: value = block.unary(.byteSwap64, rs1)
    case .clmul: value = block.binary(.carrylessMultiply64, rs1, rs2)
    case .clmulh: value = block.binary(.carrylessMultiplyHigh64, rs1, rs2)
    case .clmulr:
      // Bits 126..63 of the product.
      let high = block.binary(.carrylessMultiplyHigh64, rs1, rs2)
      let low = block.binary(.carrylessMultiply64, rs1, rs2)
      value = block.binary(
        .or64, block.binary(.shl64, high, block.const64(1)), block.binary(.shrU64, low, block.const64(63)))
    case .bclr, .bclri: value = block.binary(.andNot64, rs1, singleBit(instruction.opcode == .bclri))
    case .binv, .binvi: value = block.binary(.xor64, rs1, singleBit(instruction.opcode == .binvi))
    case .bset, .bseti: value = block.binary(.or64, rs1, singleBit(instruction.opcode == .bseti))
    case .bext, .bexti:
      let amount = instruction.opcode == .bexti ? immediate : rs2
      value = block.binary(.and64, block.binary(.shrU64, rs1, amount), block.const64(1))
    case .czeroEqz: value = block.ternary(.select64, rs2, rs1, block.const64(0))
    case .czeroNez: value = block.ternary(.select64, rs2, block.const64(0), rs1)
    default: preconditionFailure("not a bit manipulation instruction")
    }
    setRD(value)
  }
}
