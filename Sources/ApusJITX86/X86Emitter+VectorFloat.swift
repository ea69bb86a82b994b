import ApusAsmX86
import ApusIR

// Floating-point lanes, as X86Emitter+Vector.swift does integers. The host computes and collects the flags; what it
// gets wrong is seen in the result or, where that would raise a flag too many, in the operands: NaNs, underflow that
// counts before rounding, conversions out of range. Then the slow path computes the whole operation from the state, which
// has not been changed yet. Lanes that are not asked for hold copies of those that are, so that they raise nothing else.

extension X86Emitter {
  func emitVectorFloat(_ i: IRInstruction) {
    let operand = IRVectorFloatOperand(rawValue: i.immediate)
    let (operation, slots) = (operand.operation, operand.slots)
    let halves: Halves =
      operation == .narrowHigh ? .high : operand.shape == .full && operation != .narrowLow ? .both : .low
    giveUp(slots.destination, halves)
    // What moved may move on: it is no operand.
    lockedVectors = 0
    if operation.readsDestination, !features.hasFMA {
      callSlowPath(i)
      if let pinned = pinnedWhole(slots.destination) { noteChange(pinned) }
      return
    }
    let keeps = Self.keepsOperands(operation, features)
    func source(
      _ offset: Int, _ shape: IRVectorShape, element: Int? = nil
    ) -> X86Vector {
      if keeps, shape == .full, element == nil, let pinned = pinnedWhole(offset) { return pinned }
      let register = takeVectorTemporary()
      loadLanes(register, offset, operand, shape, element: element)
      return register
    }
    let a = source(slots.a, shapeOfSource(operand))
    let b: X86Vector
    if slots.b == slots.a, keeps, operand.element == nil {
      b = a
    } else if let offset = slots.b {
      b = source(offset, operand.shape, element: operand.element)
    } else {
      b = takeVectorTemporary()
      asm.vector(0xef, b, b, b)
    }
    let (d, scratch) = (takeVectorTemporary(), takeVectorTemporary())
    if operation.readsDestination { loadLanes(d, slots.destination, operand, operand.shape) }
    let compute = VectorFloatEmission(emitter: self, operand: operand, a: a, b: b, d: d, scratch: scratch)
    let slow = compute.emit()
    if operand.shape == .scalar, !operand.isDouble {
      asm.vector(0xef, scratch, scratch, scratch)
      asm.sse(0xf3, 0x10, scratch, d)  // movss
      storeRegister(slots.destination, scratch, halves)
    } else {
      storeRegister(slots.destination, d, halves)
    }
    if slow >= 0 { addStub(.vectorFloat(site: site(i)), slow, resume: asm.offset) }
    lockedVectors = 0
  }

  /// Whether a and b are left alone.
  private static func keepsOperands(
    _ operation: IRVectorFloatOperation, _ features: X86HostFeatures
  ) -> Bool {
    switch operation {
    case .add, .subtract, .multiply, .divide, .squareRoot, .multiplyAdd, .multiplySubtract, .minimum,
      .maximum,
      .minimumNumber, .maximumNumber, .equal, .greaterOrEqual, .greater, .lessOrEqual, .less, .addPairs,
      .toSigned, .roundToIntegral, .roundToIntegralExact:
      true
    case .toUnsigned: features.hasAVX512
    default: false
    }
  }

  private func shapeOfSource(_ operand: IRVectorFloatOperand) -> IRVectorShape {
    switch operand.operation {
    case .narrowLow, .narrowHigh, .widenHigh: .full
    case .widenLow: .half
    case .addPairs where operand.shape == .scalar: operand.isDouble ? .full : .half
    default: operand.shape
    }
  }

  /// The lanes of the shape, and copies of them in the others.
  private func loadLanes(
    _ to: X86Vector, _ offset: Int, _ operand: IRVectorFloatOperand, _ shape: IRVectorShape,
    element: Int? = nil
  ) {
    if let element {
      let isUpper = element >= (operand.isDouble ? 1 : 2)
      loadRegister(to, offset, isFull: isUpper)
      if operand.isDouble {
        asm.vector(isUpper ? 0x15 : 0x14, to, to, to)  // unpckhpd, unpcklpd
      } else {
        asm.vector(0xc6, to, to, to, immediate: UInt8(element * 0x55), prefix: 0)
      }
      return
    }
    switch shape {
    case .full: loadRegister(to, offset, isFull: true)
    case .scalar where !operand.isDouble:
      loadRegister(to, offset, isFull: false)
      asm.vector(0xc6, to, to, to, immediate: 0, prefix: 0)
    case .half, .scalar:
      // movddup
      if let pinned = pinnedWhole(offset) {
        asm.sse(0xf2, 0x12, to, pinned)
      } else {
        asm.sse(0xf2, 0x12, to, state(offset))
      }
    }
  }
}

/// One `vectorFloat`: its operands are in a, b and, for fused operations, d; the result goes to d. All four registers may be
/// changed, a and b not where `keepsOperands` says so. General registers are taken before the jump to the slow path: what
/// gives way is stored on the fast path alone.
private struct VectorFloatEmission {
  let emitter: X86Emitter
  let operand: IRVectorFloatOperand
  let a: X86Vector
  let b: X86Vector
  let d: X86Vector
  let scratch: X86Vector

  /// Of cmpps: those that order raise invalid for quiet NaNs, too.
  private enum Predicate: UInt8 {
    case equal = 0
    case less = 1
    case lessOrEqual = 2
    case unordered = 3
    case greaterOrEqual = 0x0d
    case greater = 0x0e
  }

  /// A packed instruction in the operand's format.
  private func packed(_ opcode: UInt8, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    emitter.asm.vector(opcode, to, a, b, prefix: operand.isDouble ? 1 : 0)
  }
  /// cmpps, cmppd.
  private func compare(_ predicate: Predicate, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    let prefix: UInt8 = operand.isDouble ? 1 : 0
    // SSE has no greater: less the other way round.
    switch predicate {
    case .greaterOrEqual where !emitter.features.hasAVX:
      emitter.asm.vector(0xc2, to, b, a, immediate: Predicate.lessOrEqual.rawValue, prefix: prefix)
    case .greater where !emitter.features.hasAVX:
      emitter.asm.vector(0xc2, to, b, a, immediate: Predicate.less.rawValue, prefix: prefix)
    default: emitter.asm.vector(0xc2, to, a, b, immediate: predicate.rawValue, prefix: prefix)
    }
  }
  /// A jump if any bit of the register is set.
  private func jumpIfAny(_ mask: X86Vector) -> Int {
    emitter.asm.vector(0x17, mask, mask, map: 2)  // ptest
    return emitter.asm.jump(.notEqual)
  }
  private func clearSigns(_ register: X86Vector, _ mask: X86Vector) {
    emitter.signs(mask, operand.isDouble ? 3 : 2)
    emitter.asm.vector(0xdf, register, mask, register)
  }
  /// All lanes of 32 bits.
  private func broadcast(_ to: X86Vector, _ value: UInt32) {
    let register = emitter.takeTemporary()
    emitter.asm.move(register, immediate: UInt64(value))
    emitter.asm.move(to, register, wide: false)
    emitter.asm.vector(0xc6, to, to, to, immediate: 0, prefix: 0)
  }

  /// A jump if a lane of the result is a NaN or may have been tiny before it was rounded; scratch is lost.
  private func jumpIfWrong(mayBeTiny: Bool, isDouble: Bool) -> Int {
    let prefix: UInt8 = isDouble ? 1 : 0
    if mayBeTiny, operand.isTinyBeforeRounding {
      // Equal to the smallest normal number, whatever the sign, or unordered.
      let mask = isDouble ? X86Emitter.magnitudeMask64 : X86Emitter.magnitudeMask32
      let normal = isDouble ? X86Emitter.smallestNormal64 : X86Emitter.smallestNormal32
      emitter.asm.vector(0x54, scratch, d, emitter.state(mask), prefix: prefix)
      guard emitter.features.hasAVX else { return jumpIfEqualOrUnordered(emitter.state(normal), isDouble) }
      emitter.asm.vector(0xc2, scratch, scratch, emitter.state(normal), immediate: 8, prefix: prefix)
    } else {
      emitter.asm.vector(0xc2, scratch, d, d, immediate: Predicate.unordered.rawValue, prefix: prefix)
    }
    return jumpIfAny(scratch)
  }
  /// A jump if a lane of scratch is that of the memory, or one of d is a NaN: SSE has no comparison for both.
  private func jumpIfEqualOrUnordered(_ memory: X86Memory, _ isDouble: Bool) -> Int {
    let prefix: UInt8 = isDouble ? 1 : 0
    let (equal, unordered) = (emitter.takeTemporary(), emitter.takeTemporary())
    emitter.asm.vector(
      0xc2, scratch, scratch, memory, immediate: Predicate.equal.rawValue, prefix: prefix)
    emitter.asm.moveSigns(equal, scratch, double: isDouble)
    emitter.asm.vector(0xc2, scratch, d, d, immediate: Predicate.unordered.rawValue, prefix: prefix)
    emitter.asm.moveSigns(unordered, scratch, double: isDouble)
    emitter.asm.arithmetic(.or, equal, unordered, wide: false)
    return emitter.asm.jump(.notEqual)
  }

  /// Returns the jump to the slow path, or -1.
  func emit() -> Int {
    switch operand.operation {
    case .add: packed(0x58, d, a, b)
    case .subtract: packed(0x5c, d, a, b)
    case .multiply: packed(0x59, d, a, b)
    case .divide: packed(0x5e, d, a, b)
    case .squareRoot: emitter.asm.vector(0x51, d, a, prefix: operand.isDouble ? 1 : 0)
    case .multiplyAdd, .multiplySubtract:
      emitter.asm.fused231(operand.operation == .multiplyAdd ? 0xb8 : 0xbc, d, a, b, double: operand.isDouble)
    case .absoluteDifference:
      packed(0x5c, d, a, b)
      let slow = jumpIfWrong(mayBeTiny: false, isDouble: operand.isDouble)
      clearSigns(d, scratch)
      return slow
    case .minimum, .minimumNumber: return minimum(isMaximum: false)
    case .maximum, .maximumNumber: return minimum(isMaximum: true)
    case .equal: compare(.equal, d, a, b)
    case .greaterOrEqual: compare(.greaterOrEqual, d, a, b)
    case .greater: compare(.greater, d, a, b)
    case .lessOrEqual: compare(.lessOrEqual, d, a, b)
    case .less: compare(.less, d, a, b)
    case .absoluteGreaterOrEqual, .absoluteGreater:
      clearSigns(a, d)
      clearSigns(b, d)
      compare(operand.operation == .absoluteGreater ? .greater : .greaterOrEqual, d, a, b)
    case .addPairs: addPairs()
    case .fromSigned where operand.isDouble, .toSigned where operand.isDouble,
      .toUnsigned where emitter.features.hasAVX512:
      return convertOnAVX512()
    case .fromSigned:
      emitter.asm.vector(0x5b, d, a, prefix: 0)  // cvtdq2ps
      divideByFraction()
    case .fromUnsigned:
      fromUnsigned()
      divideByFraction()
    case .toSigned: return toSigned()
    case .toUnsigned: return toUnsigned()
    case .roundToIntegral, .roundToIntegralExact:
      let modes: [IRRounding: UInt8] = [.nearestEven: 0, .down: 1, .up: 2, .towardZero: 3]
      guard let mode = modes[operand.rounding] else { preconditionFailure("no such rounding") }
      let isSilent = operand.operation == .roundToIntegral
      emitter.asm.vector(
        operand.isDouble ? 0x09 : 0x08, d, a, immediate: mode | (isSilent ? 8 : 0), map: 3)
    case .widenLow, .widenHigh:
      if operand.operation == .widenHigh { emitter.asm.vector(0x15, a, a, a) }  // unpckhpd
      emitter.asm.vector(0x5a, d, a, prefix: 0)
    case .narrowLow, .narrowHigh:
      emitter.asm.vector(0x5a, d, a)
      let slow = jumpIfWrong(mayBeTiny: true, isDouble: false)
      if operand.operation == .narrowHigh { emitter.asm.vector(0x14, d, d, d) }  // unpcklpd
      return slow
    }
    switch operand.operation {
    case .equal, .greaterOrEqual, .greater, .lessOrEqual, .less, .absoluteGreaterOrEqual, .absoluteGreater,
      .fromSigned, .fromUnsigned:
      return -1
    case .multiply, .divide, .multiplyAdd, .multiplySubtract:
      return jumpIfWrong(mayBeTiny: true, isDouble: operand.isDouble)
    default: return jumpIfWrong(mayBeTiny: false, isDouble: operand.isDouble)
    }
  }

  /// NaNs are looked for first: the host's minimum would call a quiet one invalid. Of zeros it gives the second operand:
  /// both orders together have the sign.
  private func minimum(isMaximum: Bool) -> Int {
    compare(.unordered, d, a, b)
    let slow = jumpIfAny(d)
    let opcode: UInt8 = isMaximum ? 0x5f : 0x5d
    packed(opcode, scratch, b, a)
    packed(opcode, d, a, b)
    emitter.asm.vector(isMaximum ? 0xdb : 0xeb, d, d, scratch)
    return slow
  }

  private func addPairs() {
    let prefix: UInt8 = operand.isDouble ? 1 : 3
    switch operand.shape {
    case .full: emitter.asm.vector(0x7c, d, a, b, prefix: prefix)  // haddps, haddpd
    case .half:
      emitter.asm.vector(0x14, d, a, b)  // unpcklpd
      emitter.asm.vector(0x7c, d, d, d, prefix: prefix)
    case .scalar: emitter.asm.vector(0x7c, d, a, a, prefix: prefix)
    }
  }

  /// The halves of 16 bits are exact; so is the upper one times 65536.
  private func fromUnsigned() {
    emitter.shift(2, 2, scratch, a, 16)
    emitter.shift(6, 2, a, a, 16)
    emitter.shift(2, 2, a, a, 16)
    emitter.asm.vector(0x5b, scratch, scratch, prefix: 0)
    emitter.asm.vector(0x5b, a, a, prefix: 0)
    broadcast(d, 0x4780_0000)
    emitter.asm.vector(0x59, scratch, scratch, d, prefix: 0)
    emitter.asm.vector(0x58, d, scratch, a, prefix: 0)
  }

  /// d = d / 2^fraction, single precision.
  private func divideByFraction() {
    guard operand.fraction != 0 else { return }
    broadcast(scratch, UInt32(127 - operand.fraction) << 23)
    emitter.asm.vector(0x59, d, d, scratch, prefix: 0)
  }

  /// 0x8000_0000 is either the true result or "invalid".
  private func toSigned() -> Int {
    guard operand.fraction == 0 else {
      // What would be too large must not overflow first. b is a temporary that holds nothing.
      broadcast(b, UInt32(127 + operand.fraction) << 23)
      broadcast(d, UInt32(127 + 31 - operand.fraction) << 23 - 1)
      emitter.asm.vector(0x54, scratch, a, emitter.state(X86Emitter.magnitudeMask32), prefix: 0)
      emitter.asm.vector(0x66, scratch, scratch, d)  // pcmpgtd
      let slow = jumpIfAny(scratch)
      emitter.asm.vector(0x59, d, a, b, prefix: 0)
      emitter.asm.vector(0x5b, d, d, prefix: 2)
      return slow
    }
    emitter.asm.vector(0x5b, d, a, prefix: 2)  // cvttps2dq
    emitter.signs(scratch, 2)
    emitter.asm.vector(0x76, scratch, scratch, d)
    return jumpIfAny(scratch)
  }

  /// Lanes of 64 bits, and to unsigned ones. Those from unsigned ones (vcvtudq2ps, vcvtuqq2pd, vcvtusi2sd) are left alone: the
  /// only AVX-512 that tests could be run on, that of Bochs 2.7, loses the lowest bit of large values.
  private func convertOnAVX512() -> Int {
    let isDouble = operand.isDouble
    let (opcode, prefix): (UInt8, UInt8) =
      switch operand.operation {
      case .fromSigned: (0xe6, 2)  // vcvtqq2pd
      case .toSigned: (0x7a, 1)  // vcvttpd2qq
      default: (0x78, isDouble ? 1 : 0)  // vcvttpd2uqq, vcvttps2udq
      }
    emitter.asm.evex(opcode, d, a, map: 1, prefix: prefix, wide: isDouble)
    // "Invalid" is all ones, or 0x8000...
    switch operand.operation {
    case .toSigned: emitter.signs(scratch, 3)
    case .toUnsigned: emitter.asm.vector(0x76, scratch, scratch, scratch)
    default: return -1
    }
    emitter.asm.vector(isDouble ? 0x29 : 0x76, scratch, scratch, d, map: isDouble ? 2 : 1)
    return jumpIfAny(scratch)
  }

  /// Negative numbers, those from 2^31 and NaNs are left alone: as integers none is less than 2^31's bits.
  private func toUnsigned() -> Int {
    broadcast(scratch, 0x4f00_0000)
    emitter.asm.vector(0x3f, scratch, scratch, a, map: 2)  // pmaxud
    emitter.asm.vector(0x76, scratch, scratch, a)
    let slow = jumpIfAny(scratch)
    emitter.asm.vector(0x5b, d, a, prefix: 2)
    return slow
  }
}
