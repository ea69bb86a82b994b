import ApusAsmX86
import ApusIR

// Shifts of vectors' lanes, and narrowing, as parts of the operations of X86Emitter+Vector.swift.

extension X86Emitter {
  /// group: 2 right unsigned, 4 right signed, 6 left.
  func shift(_ group: UInt8, _ scale: Int, _ to: X86Vector, _ a: X86Vector, _ amount: Int) {
    asm.vectorShift(0x70 + UInt8(scale), group, to, a, by: UInt8(amount))
  }

  /// Bytes, which the host shifts as words. b is lost.
  func shiftBytes(isLeft: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector, _ amount: Int) {
    loadConstant(b) { _ in isLeft ? 0xff << UInt8(amount) : 0xff >> UInt8(amount) }
    shift(isLeft ? 6 : 2, 1, d, a, amount)
    asm.vector(0xdb, d, d, b)
  }

  /// a and scratch may be changed.
  func shiftRightSigned(
    _ scale: Int, _ d: X86Vector, _ a: X86Vector, _ scratch: X86Vector, _ amount: Int
  ) {
    switch scale {
    case 0:
      asm.vector(0x60, d, a, a)  // bytes to the upper halves of words
      asm.vector(0x68, scratch, a, a)
      shift(4, 1, d, d, 8 + amount)
      shift(4, 1, scratch, scratch, 8 + amount)
      asm.vector(0x63, d, d, scratch)
    case 3:
      asm.vector(0xef, scratch, scratch, scratch)
      emit(Self.greater, 3, scratch, scratch, a)
      shift(2, 3, d, a, amount)
      shift(6, 3, scratch, scratch, 64 - amount)
      asm.vector(0xeb, d, d, scratch)
    default: shift(4, scale, d, a, amount)
    }
  }

  /// Lanes of twice the size, shifted right by at most their half and cut, in both halves of d. Changes a.
  func narrow(_ scale: Int, _ amount: Int, _ d: X86Vector, _ a: X86Vector) {
    let bits = 8 << scale
    switch (scale, amount) {
    case (2, _):
      if amount != 0 { shift(2, 3, a, a, amount) }
      asm.vector(0xc6, d, a, a, immediate: 0x88, prefix: 0)  // shufps
    case (_, bits):
      shift(2, scale + 1, a, a, bits)
      emit(Self.packUnsigned, scale, d, a, a)
    default:
      // What is left as a signed lane fits.
      shift(6, scale + 1, a, a, bits - amount)
      shift(4, scale + 1, a, a, bits)
      emit(Self.packSigned, scale, d, a, a)
    }
  }

  // MARK: By lanes

  /// Left by b's signed lowest bytes, to the right where they are negative. Changes a and b.
  func shiftByLanes(
    _ isSigned: Bool, _ scale: Int, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector
  ) {
    withVectorTemporary { scratch in
      switch scale {
      case 0: shiftBytesByLanes(isSigned, d, a, b, scratch)
      case 1: shiftWordsByLanes(isSigned, d, a, b, scratch)
      default: shiftWideByLanes(isSigned, scale, d, a, b, scratch)
      }
    }
  }

  /// As products of words with 2^(count + 8), of which the upper bytes are the result.
  private func shiftBytesByLanes(
    _ isSigned: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector, _ scratch: X86Vector
  ) {
    asm.vector(0x3c, b, b, constant(.leastInBytes), map: 2, prefix: 1)  // pmaxsb
    asm.vector(0xfc, d, b, constant(.eights), prefix: 1)
    raisePowers([d, b], table: scratch)
    emit(Self.interleaveLow, 0, scratch, d, b)
    emit(Self.interleaveHigh, 0, d, d, b)
    emit(Self.interleaveLow, 0, b, a, a)
    emit(Self.interleaveHigh, 0, a, a, a)
    for (words, powers) in [(b, scratch), (a, d)] {
      shift(isSigned ? 4 : 2, 1, words, words, 8)
      emit(Self.multiply, 1, words, words, powers)
      shift(2, 1, words, words, 8)
    }
    emit(Self.packUnsigned, 0, d, b, a)
  }

  /// As a product with 2^count and the upper half of one with 2^(count + 16): one of the two powers is 0.
  private func shiftWordsByLanes(
    _ isSigned: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector, _ scratch: X86Vector
  ) {
    asm.vector(0, b, b, constant(.lowerBytes), map: 2, prefix: 1)
    asm.vector(0x3c, b, b, constant(.leastInWords), map: 2, prefix: 1)
    asm.vector(0xfc, d, b, constant(.leftWords), prefix: 1)
    asm.vector(0xfc, b, b, constant(.rightWords), prefix: 1)
    raisePowers([d, b], table: scratch)
    emit(Self.multiply, 1, d, d, a)
    if isSigned {
      // The product of unsigned numbers is too large by the power where a is negative.
      shift(4, 1, scratch, a, 15)
      asm.vector(0xdb, scratch, scratch, b)
      emit(Self.subtract, 1, d, d, scratch)
    }
    asm.vector(0xe4, a, a, b)  // pmulhuw
    emit(Self.add, 1, d, d, a)
  }

  /// The host's counts are unsigned: those of the other direction are above 128 and leave nothing, or signs.
  private func shiftWideByLanes(
    _ isSigned: Bool, _ scale: Int, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector, _ scratch: X86Vector
  ) {
    let wide = scale == 3
    let rest = (8 << scale) - 8
    shift(6, scale, b, b, rest)
    asm.vector(0xef, scratch, scratch, scratch)
    emit(Self.subtract, scale, scratch, scratch, b)
    shift(2, scale, scratch, scratch, rest)
    switch (isSigned, wide) {
    case (false, _): asm.shiftByLanes(0x45, scratch, a, scratch, wide: wide)
    case (true, false):
      asm.shiftByLanes(0x46, scratch, a, scratch, wide: false)
      shift(4, 2, d, b, 31)
      asm.vector(0xdb, scratch, scratch, d)
    case (true, true):
      // The magnitude's complement, and back.
      asm.vector(0xef, d, d, d)
      emit(Self.greater, 3, d, d, a)
      asm.vector(0xef, a, a, d)
      asm.shiftByLanes(0x45, scratch, a, scratch, wide: true)
      asm.vector(0xef, scratch, scratch, d)
      asm.vector(0xef, a, a, d)
      asm.vector(0xef, d, d, d)
      emit(Self.greater, 3, d, d, b)
      asm.vector(0xdb, scratch, scratch, d)
    }
    shift(2, scale, b, b, rest)
    asm.shiftByLanes(0x47, d, a, b, wide: wide)
    asm.vector(0xeb, d, d, scratch)
  }

  /// Bytes from 0 to 7 become that power of 2, others 0. `table` is lost.
  private func raisePowers(_ registers: [X86Vector], table: X86Vector) {
    asm.loadWhole(table, constant(.powers))
    for register in registers {
      bias(register, register)
      asm.vector(0, register, table, register, map: 2)
    }
  }
}
