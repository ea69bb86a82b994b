import ApusAsmX86
import ApusIR
import ApusJIT

// Scalar floating point on the host's unit. MXCSR holds the guest's rounding mode and collects its flags while
// translated code runs; only NaN results, saturating conversions and minimum/maximum need fix-ups, in cold code.

extension X86Emitter {
  func emitFloat(_ i: IRInstruction) {
    switch i.opcode {
    case .addF32: emitArithmetic(i, 0x58, double: false)
    case .subF32: emitArithmetic(i, 0x5c, double: false)
    case .mulF32: emitArithmetic(i, 0x59, double: false)
    case .divF32: emitArithmetic(i, 0x5e, double: false)
    case .addF64: emitArithmetic(i, 0x58, double: true)
    case .subF64: emitArithmetic(i, 0x5c, double: true)
    case .mulF64: emitArithmetic(i, 0x59, double: true)
    case .divF64: emitArithmetic(i, 0x5e, double: true)
    case .sqrtF32, .sqrtF64:
      let isDouble = i.opcode == .sqrtF64
      let source = useVector(i.a)
      if propagatesNaN(i) {
        let register = takeVectorTemporary()
        asm.sse(isDouble ? 0xf2 : 0xf3, 0x51, register, source)
        return finishPropagating(i, register, source, source, double: isDouble)
      }
      let register = vectorDestination()
      asm.sse(isDouble ? 0xf2 : 0xf3, 0x51, register, source)
      checkNaN(register, double: isDouble)
    case .mulAddF32: emitFused(i, double: false)
    case .mulAddF64: emitFused(i, double: true)
    case .minF32: emitMinMax(i, double: false, isMaximum: false)
    case .maxF32: emitMinMax(i, double: false, isMaximum: true)
    case .minF64: emitMinMax(i, double: true, isMaximum: false)
    case .maxF64: emitMinMax(i, double: true, isMaximum: true)
    case .compareF32: emitCompare(i, double: false)
    case .compareF64: emitCompare(i, double: true)
    case .convertF32ToF64, .convertF64ToF32:
      let toDouble = i.opcode == .convertF32ToF64
      let source = useVector(i.a)
      if propagatesNaN(i) {
        let register = takeVectorTemporary()
        asm.sse(toDouble ? 0xf3 : 0xf2, 0x5a, register, source)
        return finishPropagating(i, register, source, source, double: toDouble)
      }
      let register = vectorDestination()
      asm.sse(toDouble ? 0xf3 : 0xf2, 0x5a, register, source)
      checkNaN(register, double: toDouble)
    case .convertF32ToS32: emitToSigned(i, double: false, wide: false)
    case .convertF32ToS64: emitToSigned(i, double: false, wide: true)
    case .convertF64ToS32: emitToSigned(i, double: true, wide: false)
    case .convertF64ToS64: emitToSigned(i, double: true, wide: true)
    case .convertF32ToU32: emitToUnsigned(i, double: false, wide: false)
    case .convertF32ToU64: emitToUnsigned(i, double: false, wide: true)
    case .convertF64ToU32: emitToUnsigned(i, double: true, wide: false)
    case .convertF64ToU64: emitToUnsigned(i, double: true, wide: true)
    case .convertS32ToF32: emitFromSigned(i, double: false, wide: false)
    case .convertS64ToF32: emitFromSigned(i, double: false, wide: true)
    case .convertS32ToF64: emitFromSigned(i, double: true, wide: false)
    case .convertS64ToF64: emitFromSigned(i, double: true, wide: true)
    case .convertU32ToF32, .convertU32ToF64:
      // Zero-extended to 64 bits it is a positive signed number.
      let scratch = takeTemporary()
      asm.move(scratch, use(i.a), wide: false)
      convertFromSigned(scratch, double: i.opcode == .convertU32ToF64, wide: true)
    case .convertU64ToF32: emitFromUnsigned64(i, double: false)
    case .convertU64ToF64: emitFromUnsigned64(i, double: true)
    case .signInjectF32: emitSignInjection(i, double: false)
    case .signInjectF64: emitSignInjection(i, double: true)
    case .moveF32ToI64:
      let source = useVector(i.a)
      let register = destination()
      asm.move(register, source, wide: false)
      asm.extend(register, register, bits: 32, signed: true)
    case .moveF64ToI64:
      let value = root(i.a)
      if values[value].place == .slot, diesHere(value) {
        asm.load(destination(), memory(value))
      } else {
        let source = useVector(i.a)
        asm.move(destination(), source, wide: true)
      }
    case .moveI64ToF32, .moveI64ToF64:
      if constant(i.a) == 0 {
        let register = vectorDestination()
        asm.sse(0, 0x57, register, register)
        noteClear(register, above: 32)
      } else {
        let source = use(i.a)
        let register = vectorDestination()
        asm.move(register, source, wide: i.opcode == .moveI64ToF64)
        noteClear(register, above: i.opcode == .moveI64ToF64 ? 64 : 32)
      }
    case .boxF32 where i.immediate == 1:
      let source = useVector(i.a)
      let isClear = isClear(source, above: 32)
      let register = vectorDestination()
      if !isClear {
        asm.vector(0x21, register, source, source, immediate: 0x0e, map: 3)  // insertps: zeros above
      } else if register != source {
        asm.move(register, source)
      }
      noteClear(register, above: 32)
    case .boxF32:
      let source = useVector(i.a)
      let register = vectorDestination()
      if register != source { asm.move(register, source) }
      asm.sse(0, 0x56, register, state(Self.boxMask))
    case .unboxF32:
      let source = useVector(i.a)
      let register = vectorDestination(mayReuse: false)
      let scratch = takeTemporary()
      asm.move(scratch, source, wide: true)
      asm.move(register, source)
      asm.shift(.rightSigned, scratch, by: 32)
      asm.arithmetic(.cmp, scratch, immediate: -1)
      addStub(.defaultNaN(register, double: false), asm.jump(.notEqual), resume: asm.offset)
    default: preconditionFailure("\(i.opcode) has no emitter")
    }
  }

  /// A NaN result becomes the default NaN.
  private func checkNaN(_ register: X86Vector, double: Bool) {
    asm.sse(double ? 0x66 : 0, 0x2e, register, register)
    addStub(.defaultNaN(register, double: double), asm.jump(.parity), resume: asm.offset)
  }

  private func propagatesNaN(_ i: IRInstruction) -> Bool {
    let operand = IRFloatOperand(rawValue: i.immediate)
    return operand.nanRule != .positiveDefault || operand.isTinyBeforeRounding
  }

  /// Ends an operation whose result in the temporary `register` is computed again by the slow path if it is a NaN.
  private func finishPropagating(
    _ i: IRInstruction, _ register: X86Vector, _ a: X86Vector, _ b: X86Vector, double: Bool
  ) {
    let wrong = jumpsIfWrong(i, register, double: double)
    addStub(.fused(site: site(i), register, a, b, b, double: double), wrong.0, wrong.1, resume: asm.offset)
    finishVector(register)
  }

  /// Jumps if the result is a NaN or, where underflow counts before rounding, may have been rounded up to the smallest
  /// normal number: the host, which looks afterwards, has missed that. Sums that small are exact. The second jump may be -1.
  private func jumpsIfWrong(_ i: IRInstruction, _ register: X86Vector, double: Bool) -> (Int, Int) {
    let prefix: UInt8 = double ? 0x66 : 0
    var tiny = -1
    switch i.opcode {
    case .mulF32, .mulF64, .divF32, .divF64, .mulAddF32, .mulAddF64, .convertF64ToF32:
      guard IRFloatOperand(rawValue: i.immediate).isTinyBeforeRounding else { break }
      let smallest = state(double ? Self.smallestNormal64 : Self.smallestNormal32)
      if Self.vectorTemporaryMask & ~lockedVectors != 0 {
        // Without the sign. Unordered counts as equal.
        let magnitude = takeVectorTemporary()
        asm.vector(
          0x54, magnitude, register, state(double ? Self.magnitudeMask64 : Self.magnitudeMask32), prefix: 0)
        asm.sse(prefix, 0x2e, magnitude, smallest)
        return (asm.jump(.equal), -1)
      }
      let bits = takeTemporary()
      asm.move(bits, register, wide: double)
      asm.arithmetic(.and, bits, state(double ? Self.magnitudeMask64 : Self.magnitudeMask32), wide: double)
      asm.arithmetic(.cmp, bits, smallest, wide: double)
      tiny = asm.jump(.equal)
    default: break
    }
    asm.sse(prefix, 0x2e, register, register)
    return (asm.jump(.parity), tiny)
  }

  private func emitArithmetic(_ i: IRInstruction, _ opcode: UInt8, double: Bool) {
    let a = useVector(i.a)
    let b = useVector(i.b)
    let bitCount = double ? 64 : 32
    // The bits above come from the first source. Which NaN wins does not matter here.
    let commutes = opcode == 0x58 || opcode == 0x59
    let (aIsClear, bIsClear) = (isClear(a, above: bitCount), isClear(b, above: bitCount))
    var swaps = commutes && !aIsClear && bIsClear
    let propagates = propagatesNaN(i)
    let inPlace: X86Vector?
    if propagates {
      // The slow path needs the operands.
      inPlace = pinnedResult(except: [a, b])
    } else if features.hasAVX || commutes {
      inPlace = vectorDestination()
      // SSE's form overwrites its first source.
      if !features.hasAVX, inPlace == a || inPlace == b { swaps = inPlace == b }
    } else {
      inPlace = pinnedResult(except: [b])
    }
    let register = inPlace ?? takeVectorTemporary()
    let (first, second) = swaps ? (b, a) : (a, b)
    asm.vector(opcode, register, first, second, prefix: double ? 3 : 2)
    if swaps ? bIsClear : aIsClear { noteClear(register, above: bitCount) }
    if propagates {
      let wrong = jumpsIfWrong(i, register, double: double)
      addStub(.fused(site: site(i), register, a, b, b, double: double), wrong.0, wrong.1, resume: asm.offset)
    } else {
      checkNaN(register, double: double)
    }
    if inPlace == nil { finishVector(register) }
  }

  /// The pinned register of the slot that the result goes to, if it is none of the operands'.
  private func pinnedResult(except operands: [X86Vector?]) -> X86Vector? {
    pinnedDestination(.setF64, except: operands).flatMap(X86Vector.init(rawValue:))
  }

  private func emitFused(_ i: IRInstruction, double: Bool) {
    let operand = IRFloatOperand(rawValue: i.immediate)
    let a = useVector(i.a)
    let b = useVector(i.b)
    let c = useVector(i.c)
    guard features.hasFMA else {
      callSlowPath(i, [(a, StateHeader.argument0), (b, StateHeader.argument1), (c, StateHeader.result)])
      let register = vectorDestination()
      asm.load(register, state(StateHeader.result), double: double)
      return noteClear(register, above: double ? 64 : 32)
    }
    let inPlace = pinnedResult(except: [a, b, c])
    let register = inPlace ?? takeVectorTemporary()
    asm.move(register, c)
    noteCopy(register, of: c)
    let opcode: UInt8 =
      switch (operand.negateProduct, operand.negateAddend) {
      case (false, false): 0xb9
      case (false, true): 0xbb
      case (true, false): 0xbd
      case (true, true): 0xbf
      }
    asm.fused231(opcode, register, a, b, double: double)
    // Infinity times zero is invalid even with a quiet NaN as addend, which hosts may not say: the slow path does.
    let wrong = jumpsIfWrong(i, register, double: double)
    addStub(.fused(site: site(i), register, a, b, c, double: double), wrong.0, wrong.1, resume: asm.offset)
    if inPlace == nil { finishVector(register) }
  }

  func finishVector(_ register: X86Vector) {
    lockedVectors = 1 << UInt16(register.rawValue)
    if let pinned = pinnedDestination(.setF64) {
      movePinned(
        X86Vector(rawValue: pinned).unsafelyUnwrapped, register, upper: upperHalf(behind: pinnedSetter))
    } else {
      content[16 + Int(register.rawValue)] = UInt16(index)
      values[index].place = .register
      values[index].register = register.rawValue
    }
  }

  private func emitMinMax(_ i: IRInstruction, double: Bool, isMaximum: Bool) {
    let a = useVector(i.a)
    let b = useVector(i.b)
    let register = takeVectorTemporary()
    // Equal values (zeros of either sign) and NaNs are left to the stub.
    asm.sse(double ? 0x66 : 0, 0x2e, a, b)
    let site = asm.jump(.equal)  // unordered sets ZF too
    asm.vector(isMaximum ? 0x5f : 0x5d, register, a, b, prefix: double ? 3 : 2)
    addStub(.minMax(register, a, b, double: double, isMaximum: isMaximum), site, resume: asm.offset)
    finishVector(register)
  }

  /// Both equal or unordered: zeros take the wanted sign, a NaN loses, two NaNs give the default one. `ucomis` has
  /// raised invalid for signalling NaNs already.
  func emitMinMaxStub(_ to: X86Vector, _ a: X86Vector, _ b: X86Vector, double: Bool, isMaximum: Bool) {
    let prefix: UInt8 = double ? 0x66 : 0
    let unordered = asm.jumpShort(.parity)
    asm.move(to, a)
    asm.sse(0, isMaximum ? 0x54 : 0x56, to, b)  // and / or of equal values
    let done = asm.jumpShort()
    asm.bindShort(unordered)
    asm.move(to, b)
    asm.sse(prefix, 0x2e, a, a)
    let aIsNaN = asm.jumpShort(.parity)
    asm.move(to, a)
    asm.bindShort(aIsNaN)
    asm.sse(prefix, 0x2e, to, to)
    let number = asm.jumpShort(.notParity)
    asm.load(to, state(double ? Self.defaultNaN64 : Self.defaultNaN32), double: double)
    asm.bindShort(number)
    asm.bindShort(done)
  }

  private func emitCompare(_ i: IRInstruction, double: Bool) {
    let kind = IRFloatComparison(rawValue: IRFloatOperand(rawValue: i.immediate).kind).unsafelyUnwrapped
    let prefix: UInt8 = double ? 0x66 : 0
    let a = useVector(i.a)
    let b = useVector(i.b)
    let register = destination()
    switch kind {
    case .equal:
      let scratch = takeTemporary()
      asm.sse(prefix, 0x2e, a, b)
      asm.set(.notParity, scratch)
      asm.set(.equal, register)
      asm.arithmetic(.and, register, scratch, wide: false)
      asm.extend(register, register, bits: 8, signed: false)
    case .less, .lessOrEqual, .lessQuiet, .lessOrEqualQuiet:
      // b > a, b >= a: false for NaNs.
      let isQuiet = kind == .lessQuiet || kind == .lessOrEqualQuiet
      asm.sse(prefix, isQuiet ? 0x2e : 0x2f, b, a)
      asm.set(kind == .less || kind == .lessQuiet ? .above : .aboveOrEqual, register)
      asm.extend(register, register, bits: 8, signed: false)
    }
  }

  // MARK: Conversions

  private func emitToSigned(_ i: IRInstruction, double: Bool, wide: Bool) {
    let isTruncating = IRFloatOperand(rawValue: i.immediate).rounding == .towardZero
    let source = useVector(i.a)
    let register = destination()
    asm.convertToInteger(register, source, double: double, wide: wide, truncating: isTruncating)
    // 0x8000... is either the true result or "invalid".
    asm.arithmetic(.cmp, register, immediate: 1, wide: wide)
    let site = asm.jump(.overflow)
    let resume = asm.offset
    if !wide { asm.extend(register, register, bits: 32, signed: true) }
    addStub(.saturate(register, from: source, double: double, wide: wide), site, resume: resume)
  }

  /// The conversion gave 0x8000...: right for negative values; NaNs and positive ones saturate at the top. The host
  /// has raised invalid where it is due.
  func emitSaturation(_ register: X86Register, _ from: X86Vector, double: Bool, wide: Bool) {
    asm.push(register == .rax ? .rcx : .rax)
    let scratch: X86Register = register == .rax ? .rcx : .rax
    asm.sse(double ? 0x66 : 0, 0x2e, from, from)
    let isNaN = asm.jumpShort(.parity)
    asm.move(scratch, from, wide: double)
    asm.test(scratch, scratch, wide: double)
    let isNegative = asm.jumpShort(.sign)
    asm.bindShort(isNaN)
    asm.arithmetic(.sub, register, immediate: 1, wide: wide)
    asm.bindShort(isNegative)
    asm.pop(scratch)
  }

  private func emitToUnsigned(_ i: IRInstruction, double: Bool, wide: Bool) {
    let isTruncating = IRFloatOperand(rawValue: i.immediate).rounding == .towardZero
    let source = useVector(i.a)
    let register = destination()
    guard features.hasAVX512 else {
      // What is positive and small enough by its exponent is the signed conversion's.
      asm.move(register, source, wide: double)
      asm.shift(.right, register, by: double ? 52 : 23, wide: double)
      let limit: Int32 = wide ? 63 : isTruncating ? 32 : 31
      asm.arithmetic(.cmp, register, immediate: limit + (double ? 1023 : 127), wide: false)
      let site = asm.jump(.aboveOrEqual)
      asm.convertToInteger(register, source, double: double, wide: true, truncating: isTruncating)
      let resume = asm.offset
      if !wide { asm.extend(register, register, bits: 32, signed: true) }
      return addStub(.convert(site: self.site(i), register, from: source), site, resume: resume)
    }
    asm.convertToUnsigned(register, source, double: double, wide: wide, truncating: isTruncating)
    // All ones are either the true result or "invalid".
    asm.arithmetic(.cmp, register, immediate: -1, wide: wide)
    let site = asm.jump(.equal)
    let resume = asm.offset
    if !wide { asm.extend(register, register, bits: 32, signed: true) }
    addStub(.saturateUnsigned(register, from: source, double: double), site, resume: resume)
  }

  /// The conversion gave all ones: right for NaNs and what is too large; negative values are 0.
  func emitUnsignedSaturation(_ register: X86Register, _ from: X86Vector, double: Bool) {
    asm.sse(double ? 0x66 : 0, 0x2e, from, from)
    let isNaN = asm.jumpShort(.parity)
    asm.move(register, from, wide: double)
    asm.shift(.right, register, by: double ? 63 : 31, wide: double)
    asm.arithmetic(.sub, register, immediate: 1)
    asm.bindShort(isNaN)
  }

  private func convertFromSigned(_ source: X86Register, double: Bool, wide: Bool) {
    let register = vectorDestination()
    asm.sse(0, 0x57, register, register)  // breaks the dependency on the old content
    asm.convertFromInteger(register, source, double: double, wide: wide)
    noteClear(register, above: double ? 64 : 32)
  }
  private func emitFromSigned(_ i: IRInstruction, double: Bool, wide: Bool) {
    convertFromSigned(use(i.a), double: double, wide: wide)
  }

  private func emitFromUnsigned64(_ i: IRInstruction, double: Bool) {
    let source = use(i.a)
    let half = takeTemporary()
    let low = takeTemporary()
    let register = vectorDestination()
    asm.sse(0, 0x57, register, register)
    asm.test(source, source)
    let isLarge = asm.jumpShort(.sign)
    asm.convertFromInteger(register, source, double: double, wide: true)
    let done = asm.jumpShort()
    asm.bindShort(isLarge)
    // Half the value with the lost bit kept sticky rounds as the whole would; doubling is exact.
    asm.move(half, source)
    asm.move(low, source, wide: false)
    asm.shift(.right, half, by: 1)
    asm.arithmetic(.and, low, immediate: 1, wide: false)
    asm.arithmetic(.or, half, low)
    asm.convertFromInteger(register, half, double: double, wide: true)
    asm.sse(double ? 0xf2 : 0xf3, 0x58, register, register)
    asm.bindShort(done)
  }

  private func emitSignInjection(_ i: IRInstruction, double: Bool) {
    let kind = IRSignInjection(rawValue: UInt8(i.immediate)).unsafelyUnwrapped
    let mask = state(double ? Self.signMask64 : Self.signMask32)
    let a = useVector(i.a)
    if i.a == i.b, kind != .copy {
      // Negation, absolute value.
      let register = vectorDestination()
      if kind == .negate {
        if register != a { asm.move(register, a) }
        asm.sse(0, 0x57, register, mask)
      } else {
        let scratch = takeVectorTemporary()
        asm.sse(0, 0x28, scratch, mask)
        asm.vector(0x55, register, scratch, a, prefix: 0)
      }
      return
    }
    let b = useVector(i.b)
    let sign = takeVectorTemporary()
    asm.sse(0, 0x28, sign, mask)
    let magnitude = takeVectorTemporary()
    switch kind {
    case .copy, .negate:
      // magnitude = ~mask & a; sign = mask & (b or ~b)
      asm.vector(0x55, magnitude, sign, a, prefix: 0)
      if kind == .copy {
        asm.sse(0, 0x54, sign, b)
      } else {
        asm.vector(0x55, sign, b, sign, prefix: 0)
      }
      asm.sse(0, 0x56, magnitude, sign)
    case .xor:
      asm.sse(0, 0x54, sign, b)
      asm.move(magnitude, a)
      asm.sse(0, 0x57, magnitude, sign)
    }
    finishVector(magnitude)
  }

  // MARK: Flags

  func emitGetFloatFlags() {
    let register = destination()
    asm.storeMXCSR(state(StateHeader.guestMXCSR))
    asm.load(register, state(StateHeader.guestMXCSR), wide: false)
    asm.arithmetic(.and, register, immediate: 0x3f, wide: false)
    asm.loadExtended(
      register, X86Memory(.rbp, Int32(StateHeader.floatFlagTable - StateHeader.bias), index: register),
      bits: 8,
      signed: false)
    asm.arithmetic(.or, register, state(StateHeader.softFloatFlags), wide: false)
  }

  func emitSetFloatFlags(_ i: IRInstruction) { setFloatFlags(use(i.a), scratch: takeTemporary()) }

  /// What reads the flags waits for all arithmetic before it: they are left alone where nothing can have changed.
  func emitSetFloatFlagsIfNaN(_ i: IRInstruction) {
    let value = use(i.a)
    let (b, c) = (useVector(i.b), useVector(i.c))
    asm.sse(i.opcode == .setFloatFlagsIfNaNF64 ? 0x66 : 0, 0x2e, b, c)
    addStub(.setFloatFlags(value), asm.jump(.parity), resume: asm.offset)
  }

  func setFloatFlags(_ value: X86Register, scratch: X86Register) {
    asm.move(scratch, value, wide: false)
    asm.arithmetic(.and, scratch, immediate: 31, wide: false)
    asm.store(state(StateHeader.softFloatFlags), scratch, wide: false)
    asm.storeMXCSR(state(StateHeader.guestMXCSR))
    asm.arithmetic(.and, state(StateHeader.guestMXCSR), immediate: ~0x3f, wide: false)
    asm.loadMXCSR(state(StateHeader.guestMXCSR))
  }

  // MARK: Slow path

  /// Has the slow path do the operation on operands that it finds in the state.
  func callSlowPath(_ i: IRInstruction, _ operands: [(X86Vector, Int)] = []) {
    storeVectors(operands)
    asm.store(
      state(StateHeader.argument2), immediate: Int32(site(i)), byteCount: 4)
    asm.call(to: thunks.slowMemory)
  }
}
