import ApusAsmX86
import ApusIR

// Vector registers of the state, 128 bits, on AVX. The lower half of some lies in a pinned register, everything else in
// memory; the operation is between: load, compute, store.

extension X86Emitter {
  /// Opcodes after 66 0F (map 1) and 66 0F38 (map 2) by scale; `nil`: there is none.
  private struct Opcodes {
    let byScale: [(opcode: UInt8, map: UInt8)?]
    init(_ byScale: (UInt8, UInt8)?...) {
      self.byScale = byScale.map { $0.map { (opcode: $0.0, map: $0.1) } }
    }
  }
  private static let add = Opcodes((0xfc, 1), (0xfd, 1), (0xfe, 1), (0xd4, 1))
  private static let subtract = Opcodes((0xf8, 1), (0xf9, 1), (0xfa, 1), (0xfb, 1))
  private static let multiply = Opcodes(nil, (0xd5, 1), (0x40, 2), nil)
  private static let equal = Opcodes((0x74, 1), (0x75, 1), (0x76, 1), (0x29, 2))
  private static let greater = Opcodes((0x64, 1), (0x65, 1), (0x66, 1), (0x37, 2))
  private static let minSigned = Opcodes((0x38, 2), (0xea, 1), (0x39, 2), nil)
  private static let maxSigned = Opcodes((0x3c, 2), (0xee, 1), (0x3d, 2), nil)
  private static let minUnsigned = Opcodes((0xda, 1), (0x3a, 2), (0x3b, 2), nil)
  private static let maxUnsigned = Opcodes((0xde, 1), (0x3e, 2), (0x3f, 2), nil)
  private static let absolute = Opcodes((0x1c, 2), (0x1d, 2), (0x1e, 2), nil)
  private static let interleaveLow = Opcodes((0x60, 1), (0x61, 1), (0x62, 1), (0x6c, 1))
  private static let interleaveHigh = Opcodes((0x68, 1), (0x69, 1), (0x6a, 1), (0x6d, 1))
  private static let widenSigned = Opcodes((0x20, 2), (0x23, 2), (0x25, 2), nil)
  private static let widenUnsigned = Opcodes((0x30, 2), (0x33, 2), (0x35, 2), nil)

  private func emit(_ opcodes: Opcodes, _ scale: Int, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    guard let one = opcodes.byScale[scale] else { preconditionFailure("no such lanes") }
    asm.avx(one.opcode, to, a, b, map: one.map)
  }

  /// The pinned register of a slot.
  private func pinnedVector(_ offset: Int) -> X86Vector? {
    let slot = offset >> 3
    guard slot < Self.slotCount, slotRegister[slot] != 0xff else { return nil }
    return X86Vector(rawValue: slotRegister[slot])
  }

  func loadRegister(_ to: X86Vector, _ offset: Int, isFull: Bool) {
    if let pinned = pinnedVector(offset) {
      asm.move(to, pinned)
      if isFull { asm.loadUpper(to, state(offset + 8)) }
    } else if isFull {
      asm.loadWhole(to, state(offset))
    } else {
      asm.load(to, state(offset), double: true)
    }
  }

  /// Which halves an operation writes.
  enum Halves { case low, high, both }

  func storeRegister(_ offset: Int, _ value: X86Vector, _ halves: Halves) {
    if let pinned = pinnedVector(offset) {
      if halves != .low { asm.storeUpper(state(offset + 8), value) }
      if halves != .high { asm.move(pinned, value) }
      return
    }
    switch halves {
    case .both: asm.storeWhole(state(offset), value)
    case .low: asm.store(state(offset), value, double: true)
    case .high: asm.storeUpper(state(offset + 8), value)
    }
  }

  /// Values that live in the destination move away.
  func giveUp(_ offset: Int, _ halves: Halves) {
    if halves != .low { forgetMemory(offset + 8) }
    guard halves != .high else { return }
    if let pinned = pinnedVector(offset) {
      vacate(16 + Int(pinned.rawValue))
      content[16 + Int(pinned.rawValue)] = .max
    } else {
      forgetMemory(offset)
    }
  }

  func emitVector(_ operand: IRVectorOperand) {
    let operation = operand.operation
    if operation.rawValue >= IRVectorOperation.sha1Choose.rawValue,
      operation.rawValue <= IRVectorOperation.sha256ScheduleSecond.rawValue
    {
      return emitHash(operand)
    }
    let halves: Halves =
      operation == .narrowHigh ? .high : operand.isFull && operation != .narrowLow ? .both : .low
    giveUp(operand.destination, halves)
    // What moved may move on: it is no operand.
    lockedVectors = 0
    // An operation on lower halves needs the upper ones where lanes move.
    let readsAll: Bool
    switch operation {
    case .narrowLow, .narrowHigh, .widenHighSigned, .widenHighUnsigned: readsAll = true
    case .widenLowSigned, .widenLowUnsigned: readsAll = false
    default: readsAll = operand.isFull
    }
    let a = takeVectorTemporary()
    loadRegister(a, operand.a, isFull: readsAll)
    let b = takeVectorTemporary()
    if let offset = operand.b {
      if offset == operand.a { asm.move(b, a) } else { loadRegister(b, offset, isFull: readsAll) }
    } else {
      asm.avx(0xef, b, b, b)
    }
    // The result, and d where it is read.
    let d = takeVectorTemporary()
    if operation.readsDestination { loadRegister(d, operand.destination, isFull: operand.isFull) }
    emit(operand, a, b, d)
    storeRegister(operand.destination, d, halves)
    for register in [a, b, d] { lockedVectors &= ~(1 << UInt16(register.rawValue)) }
  }

  /// d = the result; a and b may be changed.
  private func emit(_ operand: IRVectorOperand, _ a: X86Vector, _ b: X86Vector, _ d: X86Vector) {
    let scale = operand.scale
    func ones(_ to: X86Vector) { asm.avx(0x76, to, to, to) }
    switch operand.operation {
    case .move: asm.move(d, a)
    case .not:
      ones(b)
      asm.avx(0xef, d, a, b)
    case .and: asm.avx(0xdb, d, a, b)
    case .andNot: asm.avx(0xdf, d, b, a)
    case .or: asm.avx(0xeb, d, a, b)
    case .orNot:
      ones(d)
      asm.avx(0xef, d, d, b)
      asm.avx(0xeb, d, d, a)
    case .xor: asm.avx(0xef, d, a, b)
    case .select:
      asm.avx(0xdb, a, a, d)
      asm.avx(0xdf, b, d, b)
      asm.avx(0xeb, d, a, b)
    case .insertIfTrue:
      asm.avx(0xdb, a, a, b)
      asm.avx(0xdf, b, b, d)
      asm.avx(0xeb, d, a, b)
    case .insertIfFalse:
      asm.avx(0xdf, a, b, a)
      asm.avx(0xdb, b, b, d)
      asm.avx(0xeb, d, a, b)
    case .add: emit(Self.add, scale, d, a, b)
    case .subtract: emit(Self.subtract, scale, d, a, b)
    case .multiply: emit(Self.multiply, scale, d, a, b)
    case .multiplyAdd:
      emit(Self.multiply, scale, a, a, b)
      emit(Self.add, scale, d, d, a)
    case .multiplySubtract:
      emit(Self.multiply, scale, a, a, b)
      emit(Self.subtract, scale, d, d, a)
    case .negate: emit(Self.subtract, scale, d, b, a)
    // One operand: the second register field must be all ones, register 0.
    case .absolute: emit(Self.absolute, scale, d, .xmm0, a)
    case .equal: emit(Self.equal, scale, d, a, b)
    case .greaterSigned: emit(Self.greater, scale, d, a, b)
    case .greaterOrEqualSigned:
      emit(Self.maxSigned, scale, d, a, b)
      emit(Self.equal, scale, d, d, a)
    case .greaterOrEqualUnsigned:
      emit(Self.maxUnsigned, scale, d, a, b)
      emit(Self.equal, scale, d, d, a)
    case .greaterUnsigned:
      // Not (a <= b).
      emit(Self.minUnsigned, scale, d, a, b)
      emit(Self.equal, scale, d, d, a)
      ones(b)
      asm.avx(0xef, d, d, b)
    case .anySet:
      asm.avx(0xdb, d, a, b)
      asm.avx(0xef, b, b, b)
      emit(Self.equal, scale, d, d, b)
      ones(b)
      asm.avx(0xef, d, d, b)
    case .minSigned: emit(Self.minSigned, scale, d, a, b)
    case .maxSigned: emit(Self.maxSigned, scale, d, a, b)
    case .minUnsigned: emit(Self.minUnsigned, scale, d, a, b)
    case .maxUnsigned: emit(Self.maxUnsigned, scale, d, a, b)
    case .shiftLeft: shift(6, scale, d, a, operand.amount)
    case .shiftRightSigned: shift(4, scale, d, a, operand.amount)
    case .shiftRightUnsigned: shift(2, scale, d, a, operand.amount)
    case .interleaveLow: emit(Self.interleaveLow, scale, d, a, b)
    case .interleaveHigh: emit(Self.interleaveHigh, scale, d, a, b)
    case .evenLanes: lanes(scale, isOdd: false, d, a, b)
    case .oddLanes: lanes(scale, isOdd: true, d, a, b)
    case .addPairs, .minPairsSigned, .maxPairsSigned, .minPairsUnsigned, .maxPairsUnsigned:
      pairs(operand.operation, scale, d, a, b)
    case .extract: asm.avx(0x0f, d, b, a, immediate: UInt8(operand.amount), map: 3, prefix: 1)
    case .narrowLow, .narrowHigh:
      if operand.amount != 0 { shift(2, scale + 1, a, a, operand.amount) }
      asm.move(b, a)
      lanes(scale, isOdd: false, d, a, b)
    case .widenLowSigned, .widenLowUnsigned, .widenHighSigned, .widenHighUnsigned:
      let isHigh = operand.operation == .widenHighSigned || operand.operation == .widenHighUnsigned
      let isSigned = operand.operation == .widenLowSigned || operand.operation == .widenHighSigned
      if isHigh { asm.avxShift(0x73, 3, a, a, by: 8) }
      emit(isSigned ? Self.widenSigned : Self.widenUnsigned, scale, d, .xmm0, a)
      if operand.amount != 0 { shift(6, scale + 1, d, d, operand.amount) }
    case .rotateRight:
      shift(2, scale, d, a, operand.amount)
      shift(6, scale, a, a, (8 << scale) - operand.amount)
      asm.avx(0xeb, d, d, a)
    case .reverse: reverse(scale, within: operand.amount, d, a)
    case .aesEncrypt, .aesDecrypt, .aesEncryptMix, .aesDecryptMix, .aesMix, .aesInverseMix:
      cipher(operand.operation, a, b, d)
    case .carrylessLow: asm.avx(0x44, d, a, b, immediate: 0, map: 3, prefix: 1)
    case .carrylessHigh: asm.avx(0x44, d, a, b, immediate: 0x11, map: 3, prefix: 1)
    case .sha1Choose, .sha1Parity, .sha1Majority, .sha1Rotate, .sha1ScheduleFirst, .sha1ScheduleSecond,
      .sha256First, .sha256Second, .sha256ScheduleFirst, .sha256ScheduleSecond:
      preconditionFailure("emitHash does them")
    }
  }

  /// d = a's lanes in reverse order within each `8 << container` bits. Changes a.
  private func reverse(_ scale: Int, within container: Int, _ d: X86Vector, _ a: X86Vector) {
    if scale == 2 { return asm.avx(0x70, d, .xmm0, a, immediate: 0xb1, map: 1, prefix: 1) }
    var source = a
    if scale == 0 {
      // The bytes of words change places.
      shift(6, 1, d, a, 8)
      shift(2, 1, a, a, 8)
      asm.avx(0xeb, d, d, a)
      source = d
    }
    guard container > 1 else { return }
    // Then the words: those of the lower half (F2), those of the upper one (F3).
    let order: UInt8 = container == 2 ? 0xb1 : 0x1b
    asm.avx(0x70, d, .xmm0, source, immediate: order, map: 1, prefix: 3)
    asm.avx(0x70, d, .xmm0, d, immediate: order, map: 1, prefix: 2)
  }

  /// group: 2 right unsigned, 4 right signed, 6 left.
  private func shift(_ group: UInt8, _ scale: Int, _ to: X86Vector, _ a: X86Vector, _ amount: Int) {
    asm.avxShift(0x70 + UInt8(scale), group, to, a, by: UInt8(amount))
  }

  /// The even or odd lanes of a and, behind them, of b. Changes a and b; d is written last.
  private func lanes(_ scale: Int, isOdd: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    switch scale {
    case 0:
      for register in [a, b] {
        if !isOdd { shift(6, 1, register, register, 8) }
        shift(2, 1, register, register, 8)
      }
      asm.avx(0x67, d, a, b)  // vpackuswb
    case 1:
      for register in [a, b] {
        if !isOdd { shift(6, 2, register, register, 16) }
        shift(4, 2, register, register, 16)
      }
      asm.avx(0x6b, d, a, b)  // vpackssdw
    case 2: asm.avx(0xc6, d, a, b, immediate: isOdd ? 0xdd : 0x88, map: 1, prefix: 0)  // vshufps
    default: asm.avx(isOdd ? 0x6d : 0x6c, d, a, b)
    }
  }

  private func pairs(
    _ operation: IRVectorOperation, _ scale: Int, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector
  ) {
    let other = takeVectorTemporary()
    asm.move(d, a)
    asm.move(other, b)
    lanes(scale, isOdd: true, other, d, other)
    lanes(scale, isOdd: false, d, a, b)
    let opcodes =
      switch operation {
      case .addPairs: Self.add
      case .minPairsSigned: Self.minSigned
      case .maxPairsSigned: Self.maxSigned
      case .minPairsUnsigned: Self.minUnsigned
      default: Self.maxUnsigned
      }
    emit(opcodes, scale, d, d, other)
    lockedVectors &= ~(1 << UInt16(other.rawValue))
  }
}
