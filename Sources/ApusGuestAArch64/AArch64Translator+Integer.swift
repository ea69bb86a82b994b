import ApusIR
import ApusISAAArch64

// Data processing on general registers [Arm ARM C4.1.92, C4.1.95].

extension AArch64Translator {
  mutating func integer(_ opcode: AArch64Opcode) {
    switch opcode {
    case .adr: setX(rd, constant(pc &+ UInt64(bitPattern: pageOffset)))
    case .adrp: setX(rd, constant((pc & ~0xfff) &+ UInt64(bitPattern: pageOffset << 12)))
    case .addImmediate, .addsImmediate, .subImmediate, .subsImmediate:
      let immediate = UInt64(bits(10, 12)) << (bits(22, 1) == 1 ? 12 : 0)
      let a = isWide ? xsp(rn) : block.unary(.zeroExtend32, narrow(xsp(rn)))
      arithmetic(
        a, constant(immediate), isSubtraction: opcode == .subImmediate || opcode == .subsImmediate,
        setsFlags: opcode == .addsImmediate || opcode == .subsImmediate)
    case .addExtended, .addsExtended, .subExtended, .subsExtended:
      guard bits(10, 3) <= 4 else { return undefined() }
      let a = isWide ? xsp(rn) : block.unary(.zeroExtend32, narrow(xsp(rn)))
      arithmetic(
        a, extended(x(rm), option: bits(13, 3), shift: bits(10, 3)),
        isSubtraction: opcode == .subExtended || opcode == .subsExtended,
        setsFlags: opcode == .addsExtended || opcode == .subsExtended)
    case .add, .adds, .sub, .subs:
      guard bits(22, 2) != 3, let b = shifted() else { return undefined() }
      let setsFlags = opcode == .adds || opcode == .subs
      let result = sum(operand(rn), b, isSubtraction: opcode == .sub || opcode == .subs, setsFlags: setsFlags)
      setX(rd, result)
    case .andImmediate, .orrImmediate, .eorImmediate, .andsImmediate:
      guard
        let mask = logicalImmediate(n: bits(22, 1), immr: bits(16, 6), imms: bits(10, 6), isWide: isWide)
      else { return undefined() }
      let operations: [IROpcode] = [.and64, .or64, .xor64, .and64]
      let result = block.binary(operations[Int(bits(29, 2))], operand(rn), constant(mask))
      if opcode == .andsImmediate {
        setFlags(.logic(result, isWide: isWide))
        setX(rd, result)
      } else {
        setXSP(rd, result)
      }
    case .and, .bic, .orr, .orn, .eor, .eon, .ands, .bics: logical(opcode)
    case .movn, .movz, .movk:
      guard isWide || bits(22, 1) == 0 else { return undefined() }
      let shift = UInt64(bits(21, 2)) * 16
      let value = UInt64(bits(5, 16)) << shift
      if opcode == .movk {
        let kept = block.binary(
          .and64, operand(rd), constant(~(0xffff << shift) & (isWide ? .max : 0xffff_ffff)))
        setX(rd, block.binary(.or64, kept, constant(value)))
      } else {
        setX(rd, constant((opcode == .movn ? ~value : value) & (isWide ? .max : 0xffff_ffff)))
      }
    case .sbfm, .ubfm, .bfm: bitfield(opcode)
    case .extr:
      let low = bits(10, 6)
      guard bits(22, 1) == (isWide ? 1 : 0), isWide || low < 32 else { return undefined() }
      if rn == rm {
        setX(rd, binary(.rotr64, .rotr32, x(rn), constant(UInt64(low))))
      } else if low == 0 {
        setX(rd, operand(rm))
      } else {
        let width: UInt64 = isWide ? 64 : 32
        let right = binary(.shrU64, .shrU32, x(rm), constant(UInt64(low)))
        let left = binary(.shl64, .shl32, x(rn), constant(width - UInt64(low)))
        setX(rd, block.binary(.or64, left, right))
      }
    case .adc, .adcs, .sbc, .sbcs: withCarry(opcode)
    case .ccmn, .ccmp: conditionalCompare(isSubtraction: opcode == .ccmp)
    case .csel, .csinc, .csinv, .csneg: conditionalSelect(opcode)
    case .udiv: divide(.divU64, .divU32)
    case .sdiv: divide(.divS64, .divS32)
    case .lslv: setX(rd, binary(.shl64, .shl32, x(rn), x(rm)))
    case .lsrv: setX(rd, binary(.shrU64, .shrU32, x(rn), x(rm)))
    case .asrv: setX(rd, binary(.shrS64, .shrS32, x(rn), x(rm)))
    case .rorv: setX(rd, binary(.rotr64, .rotr32, x(rn), x(rm)))
    case .crc32: crc32()
    case .rbit: setX(rd, reversedBits(operand(rn)))
    case .rev:
      let swapped = block.unary(.byteSwap64, x(rn))
      setX(rd, isWide ? swapped : block.binary(.shrU64, swapped, constant(32)))
    case .rev16: setX(rd, swapped(operand(rn), 8, 0x00ff_00ff_00ff_00ff))
    case .rev32: setX(rd, block.binary(.rotr64, block.unary(.byteSwap64, x(rn)), constant(32)))
    case .clz:
      setX(
        rd,
        isWide
          ? block.unary(.countLeadingZeros64, x(rn))
          : block.unary(.zeroExtend32, block.unary(.countLeadingZeros32, narrow(x(rn)))))
    case .cls:
      // Leading bits that equal the sign: zeros of x ^ (x >> 1) without the first.
      let value = isWide ? x(rn) : block.binary(.shl64, x(rn), constant(32))
      let changes = block.binary(.xor64, value, block.binary(.shrS64, value, constant(1)))
      let marked = block.binary(
        .or64, block.binary(.shl64, changes, constant(1)), constant(isWide ? 1 : 1 << 32))
      setX(rd, block.unary(.countLeadingZeros64, marked))
    case .madd, .msub:
      let product = binary(.mul64, .mul32, x(rn), x(rm))
      setX(
        rd,
        opcode == .madd
          ? (ra == 31 ? product : binary(.add64, .add32, x(ra), product))
          : binary(.sub64, .sub32, x(ra), product))
    case .smaddl, .smsubl, .umaddl, .umsubl:
      let extend: IROpcode = opcode == .smaddl || opcode == .smsubl ? .signExtend32 : .zeroExtend32
      let product = block.binary(
        .mul64, block.unary(extend, narrow(x(rn))), block.unary(extend, narrow(x(rm))))
      setX(
        rd, block.binary(opcode == .smaddl || opcode == .umaddl ? .add64 : .sub64, x(ra), product))
    case .smulh: setX(rd, block.binary(.mulHighS64, x(rn), x(rm)))
    case .umulh: setX(rd, block.binary(.mulHighU64, x(rn), x(rm)))
    default: preconditionFailure("not an integer instruction")
    }
  }

  private var pageOffset: Int64 { signedBits(5, 19) << 2 | Int64(bits(29, 2)) }

  // MARK: Addition and subtraction

  private mutating func sum(_ a: IRValue, _ b: IRValue, isSubtraction: Bool, setsFlags: Bool) -> IRValue {
    let result =
      isSubtraction ? binary(.sub64, .sub32, a, b) : binary(.add64, .add32, a, b)
    if setsFlags {
      setFlags(
        isSubtraction
          ? .subtraction(a: a, b: b, isWide: isWide)
          : .addition(a: a, b: b, result: result, isWide: isWide))
    }
    return result
  }

  /// Forms whose destination may be the stack pointer, unless they set flags.
  private mutating func arithmetic(_ a: IRValue, _ b: IRValue, isSubtraction: Bool, setsFlags: Bool) {
    let result = sum(a, b, isSubtraction: isSubtraction, setsFlags: setsFlags)
    if setsFlags { setX(rd, result) } else { setXSP(rd, result) }
  }

  /// Rm, shifted by the instruction's type and amount; i64 with the upper half clear for 32 bits.
  private func shifted() -> IRValue? {
    let amount = bits(10, 6)
    guard isWide || amount < 32 else { return nil }
    if amount == 0 { return operand(rm) }
    let count = constant(UInt64(amount))
    switch bits(22, 2) {
    case 0: return binary(.shl64, .shl32, x(rm), count)
    case 1: return binary(.shrU64, .shrU32, x(rm), count)
    case 2: return binary(.shrS64, .shrS32, x(rm), count)
    default: return binary(.rotr64, .rotr32, x(rm), count)
    }
  }

  /// A register extended by its option (uxtb .. sxtx) and shifted left.
  func extended(_ value: IRValue, option: UInt32, shift: UInt32) -> IRValue {
    let result: IRValue
    switch option {
    case 0: result = block.unary(.zeroExtend8, value)
    case 1: result = block.unary(.zeroExtend16, value)
    case 2: result = block.unary(.zeroExtend32, narrow(value))
    case 4: result = block.unary(.signExtend8, value)
    case 5: result = block.unary(.signExtend16, value)
    case 6: result = block.unary(.signExtend32, narrow(value))
    default: result = value
    }
    return shift == 0 ? result : block.binary(.shl64, result, constant(UInt64(shift)))
  }

  private mutating func withCarry(_ opcode: AArch64Opcode) {
    let isSubtraction = opcode == .sbc || opcode == .sbcs
    // a - b - !C is a + ~b + C.
    let carry = value(of: 2)
    let a = operand(rn)
    let b = isSubtraction ? binary(.xor64, .xor32, x(rm), constant(isWide ? .max : 0xffff_ffff)) : operand(rm)
    if opcode == .adcs || opcode == .sbcs {
      let immediate = IRFlagsOperand(width: isWide ? 64 : 32, isNZCVOnly: true).rawValue
      let new = block.unary(.flagsPack, block.ternary(.flagsAddCarry, a, b, carry, immediate: immediate))
      setX(rd, binary(.add64, .add32, binary(.add64, .add32, a, b), carry))
      setFlags(.packed(new))
    } else {
      setX(rd, binary(.add64, .add32, binary(.add64, .add32, a, b), carry))
    }
  }

  // MARK: Logic, bit fields

  private mutating func logical(_ opcode: AArch64Opcode) {
    guard let b = shifted() else { return undefined() }
    let a = operand(rn)
    let all: UInt64 = isWide ? .max : 0xffff_ffff
    let result: IRValue
    switch opcode {
    case .and, .ands: result = block.binary(.and64, a, b)
    case .bic, .bics: result = block.binary(.andNot64, a, b)
    case .orr: result = rn == 31 ? b : block.binary(.or64, a, b)
    case .orn:
      let inverted = block.binary(.xor64, b, constant(all))
      result = rn == 31 ? inverted : block.binary(.or64, a, inverted)
    case .eor: result = block.binary(.xor64, a, b)
    default: result = block.binary(.xor64, a, block.binary(.xor64, b, constant(all)))
    }
    if opcode == .ands || opcode == .bics { setFlags(.logic(result, isWide: isWide)) }
    setX(rd, result)
  }

  private mutating func bitfield(_ opcode: AArch64Opcode) {
    let (r, s) = (UInt64(bits(16, 6)), UInt64(bits(10, 6)))
    let width: UInt64 = isWide ? 64 : 32
    guard bits(22, 1) == (isWide ? 1 : 0), r < width, s < width else { return undefined() }
    let source = x(rn)
    /// The field moved to the top of 64 bits, then down to where it belongs.
    func field(_ shiftRight: IROpcode) -> IRValue {
      if s >= r {
        let top = block.binary(.shl64, source, constant(63 - s))
        return block.binary(shiftRight, top, constant(63 - s + r))
      }
      // The s + 1 lowest bits go up to bit width - r.
      let top = block.binary(.shl64, source, constant(63 - s))
      return block.binary(shiftRight, top, constant(63 - s - (width - r)))
    }
    switch opcode {
    case .ubfm:
      if r == 0, s == 7 || s == 15 {
        setX(rd, block.unary(s == 7 ? .zeroExtend8 : .zeroExtend16, source))
      } else if s == width - 1 {
        setX(rd, binary(.shrU64, .shrU32, source, constant(r)))
      } else if s + 1 == r {
        setX(rd, binary(.shl64, .shl32, source, constant(width - r)))
      } else {
        setX(rd, field(.shrU64))
      }
    case .sbfm:
      let value: IRValue
      if r == 0, s == 7 || s == 15 || s == 31 {
        value =
          s == 31
          ? block.unary(.signExtend32, narrow(source))
          : block.unary(s == 7 ? .signExtend8 : .signExtend16, source)
      } else if s == width - 1 {
        return setX(rd, binary(.shrS64, .shrS32, source, constant(r)))
      } else {
        value = field(.shrS64)
      }
      setX(rd, isWide ? value : block.unary(.zeroExtend32, narrow(value)))
    default:
      // bfm: the field replaces bits of the destination.
      let count = s >= r ? s - r + 1 : s + 1
      let position = s >= r ? 0 : width - r
      let ones: UInt64 = count == 64 ? .max : (1 << count) - 1
      let mask = ones << position
      var moved = source
      if s >= r {
        moved = block.binary(.shrU64, moved, constant(r))
      } else {
        moved = block.binary(.shl64, moved, constant(position))
      }
      moved = block.binary(.and64, moved, constant(mask))
      let kept = block.binary(.and64, operand(rd), constant(~mask & (isWide ? .max : 0xffff_ffff)))
      setX(rd, block.binary(.or64, kept, moved))
    }
  }

  /// Neighbouring groups of `count` bits change places.
  private func swapped(_ value: IRValue, _ count: UInt64, _ mask: UInt64) -> IRValue {
    let up = block.binary(.shl64, block.binary(.and64, value, constant(mask)), constant(count))
    let down = block.binary(.and64, block.binary(.shrU64, value, constant(count)), constant(mask))
    let result = block.binary(.or64, up, down)
    return isWide ? result : block.unary(.zeroExtend32, narrow(result))
  }
  private func reversedBits(_ value: IRValue) -> IRValue {
    var result = swapped(value, 1, 0x5555_5555_5555_5555)
    result = swapped(result, 2, 0x3333_3333_3333_3333)
    result = swapped(result, 4, 0x0f0f_0f0f_0f0f_0f0f)
    result = block.unary(.byteSwap64, result)
    return isWide ? result : block.binary(.shrU64, result, constant(32))
  }

  // MARK: Division, conditions

  /// x / 0 is 0.
  private func divide(_ wide: IROpcode, _ narrowOpcode: IROpcode) {
    let divisor = operand(rm)
    let quotient = binary(wide, narrowOpcode, operand(rn), divisor)
    setX(rd, block.ternary(.select64, divisor, quotient, constant(0)))
  }

  private mutating func conditionalCompare(isSubtraction: Bool) {
    let a = operand(rn)
    let b = bits(11, 1) == 1 ? constant(UInt64(rm)) : operand(rm)
    let condition = bits(12, 4)
    let old = condition >= 14 ? constant(1) : value(of: condition)
    let immediate = IRFlagsOperand(width: isWide ? 64 : 32, isNZCVOnly: true).rawValue
    let new = block.unary(
      .flagsPack, block.binary(isSubtraction ? .flagsSub : .flagsAdd, a, b, immediate: immediate))
    setFlags(.packed(block.ternary(.select64, old, new, immediateFlags())))
  }

  private mutating func conditionalSelect(_ opcode: AArch64Opcode) {
    let condition = bits(12, 4)
    let chosen = operand(rn)
    if condition >= 14 { return setX(rd, chosen) }
    let other: IRValue
    let all: UInt64 = isWide ? .max : 0xffff_ffff
    switch opcode {
    case .csel: other = operand(rm)
    case .csinc:
      if rn == 31, rm == 31 {
        // cset of the opposite condition
        return setX(rd, value(of: condition ^ 1))
      }
      other = binary(.add64, .add32, x(rm), constant(1))
    case .csinv: other = block.binary(.xor64, operand(rm), constant(all))
    default: other = binary(.sub64, .sub32, constant(0), x(rm))
    }
    setX(rd, block.ternary(.select64, value(of: condition), chosen, other))
  }
}
