import ApusAsmX86
import ApusIR

// What AVX-512 does in fewer instructions than `X86Emitter+Vector.swift`, or alone.

/// How AVX-512 does an operation on vectors.
enum X86WideForm {
  /// vpternlog: a bit of the table by those of d, a and b, d's the highest.
  case bits(table: UInt8)
  /// vpcmp, vpcmpu, by the predicate.
  case compare(UInt8, isSigned: Bool)
  /// vptestm.
  case test
  /// Of a, from map 0F38.
  case unary(UInt8, wide: Bool)
  /// By `amount`, of group 72.
  case shift(group: UInt8)
  /// vpsllv with vpsrlv or vpsrav.
  case shiftByLanes(isSigned: Bool)
  /// vpmovwb, dw, qd, after a shift.
  case truncate(UInt8)
  /// Of 64 bits to 32: vpmovsqd, vpmovusqd.
  case saturate(UInt8, fromSigned: Bool, toSigned: Bool)

  /// Whether a and b are left alone.
  var keepsOperands: Bool {
    switch self {
    case .bits, .compare, .test, .unary, .shift, .truncate: true
    case .shiftByLanes, .saturate: false
    }
  }

  /// Whether b is not read.
  var isOfOne: Bool {
    switch self {
    case .unary, .shift, .truncate: true
    case .bits(let table): table == Self.not
    case .compare, .test, .shiftByLanes, .saturate: false
    }
  }
  private static let not: UInt8 = 0x33

  /// - Returns: `nil` where there is nothing better than what hosts with AVX2 do.
  init?(_ operand: IRVectorOperand, _ features: X86HostFeatures) {
    guard features.hasAVX512, operand.element == nil else { return nil }
    let scale = operand.scale
    switch operand.operation {
    case .not: self = .bits(table: Self.not)
    case .orNot: self = .bits(table: 0xdd)
    case .select: self = .bits(table: 0xca)
    case .insertIfTrue: self = .bits(table: 0xd8)
    case .insertIfFalse: self = .bits(table: 0xe4)
    case .xorBoth: self = .bits(table: 0x96)
    case .xorAndNot: self = .bits(table: 0xb4)
    case .greaterOrEqualSigned: self = .compare(5, isSigned: true)
    case .greaterUnsigned: self = .compare(6, isSigned: false)
    case .greaterOrEqualUnsigned: self = .compare(5, isSigned: false)
    case .anySet: self = .test
    case .absolute where scale == 3: self = .unary(0x1f, wide: true)
    case .countLeadingZeros: self = .unary(0x44, wide: scale == 3)
    case .countOnes where features.hasBitCounts: self = .unary(0x54, wide: false)
    case .shiftRightSigned where scale == 3: self = .shift(group: 4)
    case .rotateRight where scale >= 2: self = .shift(group: 0)
    // Of 64 bits vpsravq is left alone: Bochs 2.7 takes a count of 64 for 0.
    case .shiftByLanesSigned where scale == 1 || scale == 2: self = .shiftByLanes(isSigned: true)
    case .shiftByLanesUnsigned where scale > 0: self = .shiftByLanes(isSigned: false)
    case .narrowLow, .narrowHigh: self = .truncate([0x30, 0x33, 0x35][scale])
    case .narrowLowSigned where scale == 2, .narrowHighSigned where scale == 2:
      self = .saturate(0x25, fromSigned: true, toSigned: true)
    case .narrowLowClamped where scale == 2, .narrowHighClamped where scale == 2:
      self = .saturate(0x15, fromSigned: true, toSigned: false)
    case .narrowLowUnsigned where scale == 2, .narrowHighUnsigned where scale == 2:
      self = .saturate(0x15, fromSigned: false, toSigned: false)
    default: return nil
    }
  }
}

extension X86Emitter {
  /// d = the result; d is written where all that is kept has been read.
  func emit(_ form: X86WideForm, _ operand: IRVectorOperand, _ a: X86Vector, _ b: X86Vector, _ d: X86Vector) {
    let scale = operand.scale
    let isOdd = scale & 1 != 0
    switch form {
    case .bits(let table): asm.evex(0x25, d, a, b, immediate: table, map: 3, wide: true)
    case .compare(let predicate, let isSigned):
      let opcode: UInt8 = (scale < 2 ? 0x3e : 0x1e) | (isSigned ? 1 : 0)
      asm.evex(opcode, .k1, a, b, immediate: predicate, map: 3, wide: isOdd)
      asm.expand(d, .k1, scale: scale)
    case .test:
      asm.evex(scale < 2 ? 0x26 : 0x27, .k1, a, b, map: 2, wide: isOdd)
      asm.expand(d, .k1, scale: scale)
    case .unary(let opcode, let wide): asm.evex(opcode, d, a, map: 2, wide: wide)
    case .shift(let group):
      asm.evexShift(0x72, group, d, a, by: UInt8(operand.amount), wide: isOdd)
    case .shiftByLanes(let isSigned): shiftByLanes(isSigned: isSigned, scale, d, a, b)
    case .truncate(let opcode):
      var source = a
      if operand.amount != 0 {
        shift(2, scale + 1, d, a, operand.amount)
        source = d
      }
      narrow(opcode, d, source, operand.operation)
    case .saturate(let opcode, let fromSigned, let toSigned):
      // b is zero.
      if fromSigned, !toSigned { asm.evex(0x3d, b, a, b, map: 2, wide: true) }  // vpmaxsq
      narrow(opcode, d, fromSigned && !toSigned ? b : a, operand.operation)
      asm.vector(toSigned ? 0x25 : 0x35, b, d, map: 2)  // pmovsxdq, pmovzxdq
      asm.vector(0xef, b, b, a)
      noteSaturation(b)
    }
  }

  /// To the lower half, or to both where the upper one is asked for. The destination is the instruction's r/m.
  private func narrow(
    _ opcode: UInt8, _ d: X86Vector, _ from: X86Vector, _ operation: IRVectorOperation
  ) {
    asm.evex(opcode, from, d, map: 2, prefix: 2, wide: false)
    if operation.narrowsToHigh { asm.vector(0x6c, d, d, d) }  // punpcklqdq
  }

  /// By b's lowest bytes, to the left; what is negative shifts to the right. Counts are unsigned and of any size here: those
  /// of the wrong direction are at least 128 and leave 0 or, to the right, signs.
  private func shiftByLanes(isSigned: Bool, _ scale: Int, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    let negated = takeVectorTemporary()
    let wide = scale != 2
    let rest = (8 << scale) - 8
    func byLanes(
      _ opcodes: (word: UInt8, other: UInt8), _ to: X86Vector, _ count: X86Vector, _ mask: X86Mask?
    ) {
      asm.evex(scale == 1 ? opcodes.word : opcodes.other, to, a, count, map: 2, wide: wide, mask: mask)
    }
    shift(6, scale, b, b, rest)
    if isSigned { asm.moveSigns(.k1, b, scale: scale) }
    asm.vector(0xef, negated, negated, negated)
    asm.vector([0, 0xf9, 0xfa, 0xfb][scale], negated, negated, b)  // psubw, d, q
    shift(2, scale, b, b, rest)
    shift(2, scale, negated, negated, rest)
    byLanes((0x12, 0x47), d, b, nil)  // vpsllv
    if isSigned {
      byLanes((0x11, 0x46), d, negated, .k1)  // vpsrav
    } else {
      byLanes((0x10, 0x45), a, negated, nil)  // vpsrlv
      asm.vector(0xeb, d, d, a)
    }
    lockedVectors &= ~(1 << UInt16(negated.rawValue))
  }
}
