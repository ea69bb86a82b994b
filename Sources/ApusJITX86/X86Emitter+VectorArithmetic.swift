import ApusAsmX86
import ApusIR

// Saturation, products and sums of products of vectors' lanes, as parts of the operations of X86Emitter+Vector.swift.

extension X86Emitter {
  /// The saturating instruction; where the plain one gives something else, a lane was held to its range.
  func saturate(
    _ saturating: Opcodes, _ plain: Opcodes, _ scale: Int, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector
  ) {
    emit(saturating, scale, d, a, b)
    emit(plain, scale, a, a, b)
    asm.vector(0xef, a, a, d)
    noteSaturation(a)
  }

  /// Signed lanes of 32 bits. Changes a and b.
  func saturateWords(isSubtraction: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    withVectorTemporary { scratch in
      emit(isSubtraction ? Self.subtract : Self.add, 2, d, a, b)
      // The sign is wrong if the operands of a sum are of the same, those of a difference of different signs, and it is another.
      asm.vector(0xef, scratch, a, d)
      asm.vector(0xef, b, b, isSubtraction ? a : d)
      asm.vector(0xdb, b, b, scratch)
      shift(4, 2, b, b, 31)
      asm.vector(0x76, scratch, scratch, scratch)
      shift(2, 2, scratch, scratch, 1)
      shift(4, 2, a, a, 31)
      asm.vector(0xef, a, a, scratch)
      asm.vector(0xef, a, a, d)
      asm.vector(0xdb, a, a, b)
      asm.vector(0xef, d, d, a)
    }
    noteSaturation(b)
  }

  /// Notes saturation if any bit of the register is set.
  func noteSaturation(_ mask: X86Vector) {
    let register = takeTemporary()
    asm.vector(0x17, mask, mask, map: 2)  // ptest
    asm.set(.notEqual, register)
    asm.extend(register, register, bits: 8, signed: false)
    asm.arithmetic(.or, register, state(StateHeader.saturation), wide: false)
    asm.store(state(StateHeader.saturation), register, wide: false)
    locked &= ~(1 << UInt16(register.rawValue))
  }

  /// `to` may be a.
  func multiply(_ scale: Int, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    guard scale == 0 else { return emit(Self.multiply, scale, to, a, b) }
    // Even and odd bytes as words.
    let even = takeVectorTemporary()
    emit(Self.multiply, 1, even, a, b)
    shift(6, 1, even, even, 8)
    shift(2, 1, even, even, 8)
    shift(2, 1, to, a, 8)
    shift(2, 1, b, b, 8)
    emit(Self.multiply, 1, to, to, b)
    shift(6, 1, to, to, 8)
    asm.vector(0xeb, to, to, even)
    lockedVectors &= ~(1 << UInt16(even.rawValue))
  }

  /// The upper half of 2ab. Its smallest value comes from the product of the smallest ones alone, which is too large.
  func multiplyHigh(
    _ scale: Int, isRounded: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector
  ) {
    switch (scale, isRounded) {
    case (1, true): asm.vector(0x0b, d, a, b, map: 2)  // pmulhrsw
    case (1, false):
      asm.vector(0xe5, d, a, b)  // pmulhw
      emit(Self.multiply, 1, a, a, b)
      emit(Self.add, 1, d, d, d)
      shift(2, 1, a, a, 15)
      asm.vector(0xeb, d, d, a)
    default:
      withVectorTemporary { even in
        product(isSigned: true, even, a, b)
        shift(2, 3, a, a, 32)
        shift(2, 3, b, b, 32)
        product(isSigned: true, a, a, b)
        for register in [even, a] { emit(Self.add, 3, register, register, register) }
        if isRounded {
          asm.vector(0x76, b, b, b)
          shift(2, 3, b, b, 63)
          shift(6, 3, b, b, 31)
          for register in [even, a] { emit(Self.add, 3, register, register, b) }
        }
        shift(2, 3, even, even, 32)
        asm.vector(0x0e, d, even, a, immediate: 0xcc, map: 3)  // pblendw
      }
    }
    signs(b, scale)
    emit(Self.equal, scale, b, b, d)
    asm.vector(0xef, d, d, b)
    noteSaturation(b)
  }

  /// pmuldq, pmuludq: of the even lanes of 32 bits.
  private func product(isSigned: Bool, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    if isSigned { asm.vector(0x28, to, a, b, map: 2) } else { asm.vector(0xf4, to, a, b) }
  }

  func multiplyWidened(
    _ scale: Int, isHigh: Bool, isSigned: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector
  ) {
    let interleave = isHigh ? Self.interleaveHigh : Self.interleaveLow
    switch scale {
    case 0:
      for register in [a, b] {
        if isHigh { asm.vectorShift(0x73, 3, register, register, by: 8) }
        emit(isSigned ? Self.widenSigned : Self.widenUnsigned, 0, register, register)
      }
      emit(Self.multiply, 1, d, a, b)
    case 1:
      asm.vector(isSigned ? 0xe5 : 0xe4, d, a, b)  // pmulhw, pmulhuw
      emit(Self.multiply, 1, a, a, b)
      emit(interleave, 1, d, a, d)
    default:
      emit(interleave, 2, a, a, a)
      emit(interleave, 2, b, b, b)
      product(isSigned: isSigned, d, a, b)
    }
  }

  func addPairsWidened(_ scale: Int, isSigned: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    func one(_ scale: Int) {
      asm.vector(0x76, b, b, b)
      emit(Self.absolute, scale, b, b)
    }
    switch (scale, isSigned) {
    case (0, _):
      // pmaddubsw: unsigned bytes times signed ones.
      one(0)
      asm.vector(0x04, d, isSigned ? b : a, isSigned ? a : b, map: 2)
    case (1, true):
      one(1)
      asm.vector(0xf5, d, a, b)  // pmaddwd
    case (1, false):
      shift(6, 2, d, a, 16)
      shift(2, 2, d, d, 16)
      shift(2, 2, a, a, 16)
      emit(Self.add, 2, d, d, a)
    default:
      one(2)
      product(isSigned: isSigned, d, a, b)
      shift(2, 3, a, a, 32)
      product(isSigned: isSigned, a, a, b)
      emit(Self.add, 3, d, d, a)
    }
  }

  /// Words, whose products pmaddwd adds by twos. Changes a and b.
  func dot(aIsSigned: Bool, bIsSigned: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    let (widenA, widenB) = (
      aIsSigned ? Self.widenSigned : Self.widenUnsigned, bIsSigned ? Self.widenSigned : Self.widenUnsigned
    )
    withVectorTemporary { scratch in
      emit(widenA, 0, d, a)
      emit(widenB, 0, scratch, b)
      asm.vector(0xf5, d, d, scratch)
    }
    for register in [a, b] { asm.vectorShift(0x73, 3, register, register, by: 8) }
    emit(widenA, 0, a, a)
    emit(widenB, 0, b, b)
    asm.vector(0xf5, a, a, b)
    asm.vector(0x02, d, d, a, map: 2)  // phaddd
  }
}
