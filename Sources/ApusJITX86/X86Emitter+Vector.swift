import ApusAsmX86
import ApusIR

// Vector registers of the state, 128 bits, on AVX or SSE 4.2. Some are pinned host registers, the others lie in memory. An operation
// that is one instruction, or leaves its operands alone, works on the pinned ones; others on copies.

extension X86Emitter {
  /// Opcodes after 66 0F (map 1) and 66 0F38 (map 2) by scale; `nil`: there is none.
  struct Opcodes {
    let byScale: [(opcode: UInt8, map: UInt8)?]
    init(_ byScale: (UInt8, UInt8)?...) {
      self.byScale = byScale.map { $0.map { (opcode: $0.0, map: $0.1) } }
    }
  }
  static let add = Opcodes((0xfc, 1), (0xfd, 1), (0xfe, 1), (0xd4, 1))
  static let subtract = Opcodes((0xf8, 1), (0xf9, 1), (0xfa, 1), (0xfb, 1))
  static let multiply = Opcodes(nil, (0xd5, 1), (0x40, 2), nil)
  static let equal = Opcodes((0x74, 1), (0x75, 1), (0x76, 1), (0x29, 2))
  static let greater = Opcodes((0x64, 1), (0x65, 1), (0x66, 1), (0x37, 2))
  static let minSigned = Opcodes((0x38, 2), (0xea, 1), (0x39, 2), nil)
  static let maxSigned = Opcodes((0x3c, 2), (0xee, 1), (0x3d, 2), nil)
  static let minUnsigned = Opcodes((0xda, 1), (0x3a, 2), (0x3b, 2), nil)
  static let maxUnsigned = Opcodes((0xde, 1), (0x3e, 2), (0x3f, 2), nil)
  static let absolute = Opcodes((0x1c, 2), (0x1d, 2), (0x1e, 2), nil)
  static let interleaveLow = Opcodes((0x60, 1), (0x61, 1), (0x62, 1), (0x6c, 1))
  static let interleaveHigh = Opcodes((0x68, 1), (0x69, 1), (0x6a, 1), (0x6d, 1))
  static let widenSigned = Opcodes((0x20, 2), (0x23, 2), (0x25, 2), nil)
  static let average = Opcodes((0xe0, 1), (0xe3, 1), nil, nil)
  static let addSaturatedSigned = Opcodes((0xec, 1), (0xed, 1), nil, nil)
  static let addSaturatedUnsigned = Opcodes((0xdc, 1), (0xdd, 1), nil, nil)
  static let subtractSaturatedSigned = Opcodes((0xe8, 1), (0xe9, 1), nil, nil)
  static let subtractSaturatedUnsigned = Opcodes((0xd8, 1), (0xd9, 1), nil, nil)
  static let packSigned = Opcodes((0x63, 1), (0x6b, 1), nil, nil)
  static let packUnsigned = Opcodes((0x67, 1), (0x2b, 2), nil, nil)
  static let widenUnsigned = Opcodes((0x30, 2), (0x33, 2), (0x35, 2), nil)

  func emit(_ opcodes: Opcodes, _ scale: Int, _ to: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    guard let one = opcodes.byScale[scale] else { preconditionFailure("no such lanes") }
    asm.vector(one.opcode, to, a, b, map: one.map)
  }
  func emit(_ opcodes: Opcodes, _ scale: Int, _ to: X86Vector, _ from: X86Vector) {
    guard let one = opcodes.byScale[scale] else { preconditionFailure("no such lanes") }
    asm.vector(one.opcode, to, from, map: one.map)
  }

  /// The pinned register that holds the vector register at `offset`.
  func pinnedWhole(_ offset: Int) -> X86Vector? {
    let slot = offset >> 3
    guard slot < Self.slotCount, slotRegister[slot] != 0xff else { return nil }
    return X86Vector(rawValue: slotRegister[slot])
  }

  func loadRegister(_ to: X86Vector, _ offset: Int, isFull: Bool) {
    if let pinned = pinnedWhole(offset) {
      if isFull { asm.move(to, pinned) } else { asm.moveLower(to, pinned) }
    } else if isFull {
      asm.loadWhole(to, state(offset))
    } else {
      asm.load(to, state(offset), double: true)
    }
  }

  /// Which halves an operation writes.
  enum Halves { case low, high, both }

  func storeRegister(_ offset: Int, _ value: X86Vector, _ halves: Halves) {
    if let pinned = pinnedWhole(offset) {
      noteChange(pinned)
      switch halves {
      case .both: if pinned != value { asm.move(pinned, value) }
      case .low: asm.mergeLower(pinned, value)
      case .high: asm.vector(0x0d, pinned, pinned, value, immediate: 2, map: 3)  // blendpd
      }
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
    if let pinned = pinnedWhole(offset) {
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
      operation.narrowsToHigh ? .high : operand.isFull && !operation.narrowsToLow ? .both : .low
    giveUp(operand.slots.destination, halves)
    // What moved may move on: it is no operand.
    lockedVectors = 0
    // An operation on lower halves needs the upper ones where lanes move.
    let readsAll: Bool
    switch operation {
    case .widenHighSigned, .widenHighUnsigned, .multiplyHighSigned, .multiplyHighUnsigned, .permute,
      .permuteOnto, .reorder, .reorderOnto:
      readsAll = true
    case .widenLowSigned, .widenLowUnsigned, .multiplyLowSigned, .multiplyLowUnsigned: readsAll = false
    case .broadcast: readsAll = operand.amount << operand.scale >= 8
    default: readsAll = operand.isFull || operation.narrowsToLow || operation.narrowsToHigh
    }
    let wide = X86WideForm(operand, features)
    let keeps =
      wide?.keepsOperands ?? Self.keepsOperands(operation, scale: operand.scale, isFull: operand.isFull)
    func source(_ offset: Int) -> X86Vector {
      if keeps, let pinned = pinnedWhole(offset) { return pinned }
      let register = takeVectorTemporary()
      loadRegister(register, offset, isFull: readsAll)
      return register
    }
    // What is known before anything changes.
    let hasClearUpper = upperHalvesAreClear(operand)
    let a = source(operand.slots.a)
    let b: X86Vector
    if let offset = operand.slots.b, let element = operand.element {
      b = takeVectorTemporary()
      let from = pinnedWhole(offset) ?? b
      if from == b { loadRegister(b, offset, isFull: true) }
      broadcast(b, from, element, operand.scale)
      if !readsAll, !operand.isFull { asm.moveLower(b, b) }
    } else if operand.slots.b == operand.slots.a, keeps {
      b = a
    } else if let offset = operand.slots.b {
      b = source(offset)
    } else if let wide, wide.isOfOne {
      b = a
    } else {
      b = takeVectorTemporary()
      if operation.readsSecond { asm.vector(0xef, b, b, b) }
    }
    func compute(_ d: X86Vector) {
      if let wide { emit(wide, operand, a, b, d) } else { emit(operand, a, b, d) }
    }
    // The result, and d where it is read: in place where the operands are copies, or gone with the only instruction.
    let target = operand.slots.destination
    let pinned = halves == .both ? pinnedWhole(target) : nil
    var result = pinned ?? takeVectorTemporary()
    if operand.accumulation != .none {
      if pinned != nil { result = takeVectorTemporary() }
      compute(result)
      result = accumulate(operand, result, onto: pinned)
    } else {
      if pinned == nil, operation.readsDestination { loadRegister(result, target, isFull: operand.isFull) }
      compute(result)
    }
    if operand.clearsUpper, !hasClearUpper { asm.moveLower(result, result) }
    storeRegister(target, result, halves)
    if let pinned, operand.clearsUpper || hasClearUpper { noteClear(pinned, above: 64) }
    lockedVectors = 0
  }

  /// Whether all that a lanewise operation reads has zeros in its upper half.
  private func upperHalvesAreClear(_ operand: IRVectorOperand) -> Bool {
    func isClear(_ offset: Int) -> Bool { pinnedWhole(offset).map { self.isClear($0, above: 64) } ?? false }
    guard operand.operation.keepsZeros, operand.isFull, operand.element == nil, operand.accumulation == .none,
      isClear(operand.slots.a)
    else { return false }
    if let b = operand.slots.b, !isClear(b) { return false }
    return !operand.operation.readsDestination || isClear(operand.slots.destination)
  }

  /// The destination plus or minus the term; in its own register if it has one, else in the term's.
  private func accumulate(_ operand: IRVectorOperand, _ term: X86Vector, onto pinned: X86Vector?) -> X86Vector
  {
    let scale = operand.operation.resultScale(operand.scale)
    let old = pinned ?? takeVectorTemporary()
    if pinned == nil { loadRegister(old, operand.slots.destination, isFull: true) }
    emit(operand.accumulation == .add ? Self.add : Self.subtract, scale, pinned ?? term, old, term)
    return pinned ?? term
  }

  /// Whether an operation is one instruction that does not change a and b, lanes that are not asked for left alone.
  private static func keepsOperands(_ operation: IRVectorOperation, scale: Int, isFull: Bool) -> Bool {
    switch operation {
    case .move, .and, .andNot, .or, .xor, .add, .subtract, .negate, .absolute, .equal, .greaterSigned,
      .minSigned, .maxSigned, .minUnsigned, .maxUnsigned, .averageUnsigned:
      true
    case .multiply, .shiftLeft, .shiftRightUnsigned: scale > 0
    case .shiftRightSigned: scale == 1 || scale == 2
    case .interleaveLow, .interleaveHigh, .extract, .carrylessLow, .carrylessHigh: isFull
    case .evenLanes, .oddLanes: isFull && scale >= 2
    case .broadcast: true
    case .transposeEven, .transposeOdd: scale > 0
    default: false
    }
  }

  /// d = the result; a and b may be changed.
  private func emit(_ operand: IRVectorOperand, _ a: X86Vector, _ b: X86Vector, _ d: X86Vector) {
    let scale = operand.scale
    func ones(_ to: X86Vector) { asm.vector(0x76, to, to, to) }
    switch operand.operation {
    case .move: asm.move(d, a)
    case .not:
      ones(b)
      asm.vector(0xef, d, a, b)
    case .and: asm.vector(0xdb, d, a, b)
    case .andNot: asm.vector(0xdf, d, b, a)
    case .or: asm.vector(0xeb, d, a, b)
    case .orNot:
      ones(d)
      asm.vector(0xef, d, d, b)
      asm.vector(0xeb, d, d, a)
    case .xor: asm.vector(0xef, d, a, b)
    case .select:
      asm.vector(0xdb, a, a, d)
      asm.vector(0xdf, b, d, b)
      asm.vector(0xeb, d, a, b)
    case .insertIfTrue:
      asm.vector(0xdb, a, a, b)
      asm.vector(0xdf, b, b, d)
      asm.vector(0xeb, d, a, b)
    case .insertIfFalse:
      asm.vector(0xdf, a, b, a)
      asm.vector(0xdb, b, b, d)
      asm.vector(0xeb, d, a, b)
    case .add: emit(Self.add, scale, d, a, b)
    case .subtract: emit(Self.subtract, scale, d, a, b)
    case .multiply: multiply(scale, d, a, b)
    case .multiplyAdd:
      multiply(scale, a, a, b)
      emit(Self.add, scale, d, d, a)
    case .multiplySubtract:
      multiply(scale, a, a, b)
      emit(Self.subtract, scale, d, d, a)
    case .negate: emit(Self.subtract, scale, d, b, a)
    case .absolute: emit(Self.absolute, scale, d, a)
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
      asm.vector(0xef, d, d, b)
    case .anySet:
      asm.vector(0xdb, d, a, b)
      asm.vector(0xef, b, b, b)
      emit(Self.equal, scale, d, d, b)
      ones(b)
      asm.vector(0xef, d, d, b)
    case .minSigned: emit(Self.minSigned, scale, d, a, b)
    case .maxSigned: emit(Self.maxSigned, scale, d, a, b)
    case .minUnsigned: emit(Self.minUnsigned, scale, d, a, b)
    case .maxUnsigned: emit(Self.maxUnsigned, scale, d, a, b)
    case .shiftLeft where scale == 0: shiftBytes(isLeft: true, d, a, b, operand.amount)
    case .shiftLeft: shift(6, scale, d, a, operand.amount)
    case .shiftRightUnsigned where scale == 0: shiftBytes(isLeft: false, d, a, b, operand.amount)
    case .shiftRightUnsigned: shift(2, scale, d, a, operand.amount)
    case .shiftRightSigned: shiftRightSigned(scale, d, a, b, operand.amount)
    case .shiftRightRoundedSigned:
      shiftRightSigned(scale, d, a, b, operand.amount - 1)
      shiftRightSigned(scale, a, d, b, 1)
      emit(Self.subtract, scale, d, d, a)
    case .shiftRightRoundedUnsigned where scale == 0:
      shiftBytes(isLeft: false, d, a, b, operand.amount - 1)
      shiftBytes(isLeft: false, a, d, b, 1)
      emit(Self.subtract, scale, d, d, a)
    case .shiftRightRoundedUnsigned:
      shift(2, scale, d, a, operand.amount - 1)
      shift(2, scale, a, d, 1)
      emit(Self.subtract, scale, d, d, a)
    case .absoluteDifferenceSigned:
      emit(Self.maxSigned, scale, d, a, b)
      emit(Self.minSigned, scale, a, a, b)
      emit(Self.subtract, scale, d, d, a)
    case .absoluteDifferenceUnsigned:
      emit(Self.maxUnsigned, scale, d, a, b)
      emit(Self.minUnsigned, scale, a, a, b)
      emit(Self.subtract, scale, d, d, a)
    case .averageUnsigned: emit(Self.average, scale, d, a, b)
    case .addSaturatedSigned where scale == 2: saturateWords(isSubtraction: false, d, a, b)
    case .subtractSaturatedSigned where scale == 2: saturateWords(isSubtraction: true, d, a, b)
    case .addSaturatedUnsigned where scale == 2:
      withVectorTemporary { complement in
        ones(complement)
        asm.vector(0xef, complement, complement, a)
        emit(Self.minUnsigned, 2, complement, complement, b)
        emit(Self.add, 2, d, a, complement)
      }
      emit(Self.add, 2, a, a, b)
      asm.vector(0xef, a, a, d)
      noteSaturation(a)
    case .subtractSaturatedUnsigned where scale == 2:
      emit(Self.maxUnsigned, 2, d, a, b)
      emit(Self.subtract, 2, d, d, b)
      emit(Self.subtract, 2, a, a, b)
      asm.vector(0xef, a, a, d)
      noteSaturation(a)
    case .addSaturatedSigned: saturate(Self.addSaturatedSigned, Self.add, scale, d, a, b)
    case .addSaturatedUnsigned: saturate(Self.addSaturatedUnsigned, Self.add, scale, d, a, b)
    case .subtractSaturatedSigned: saturate(Self.subtractSaturatedSigned, Self.subtract, scale, d, a, b)
    case .subtractSaturatedUnsigned: saturate(Self.subtractSaturatedUnsigned, Self.subtract, scale, d, a, b)
    case .multiplyHighSaturated: multiplyHigh(scale, isRounded: false, d, a, b)
    case .multiplyHighRoundedSaturated: multiplyHigh(scale, isRounded: true, d, a, b)
    case .countOnes: countOnes(d, a, b)
    case .permute, .permuteOnto:
      if operand.amount != 0 {
        withVectorTemporary { first in
          loadConstant(first) { _ in UInt8(operand.amount) }
          emit(Self.subtract, 0, b, b, first)
        }
      }
      bias(b, b)
      shuffle(d, a, b, isOnto: operand.operation == .permuteOnto)
    case .reorder, .reorderOnto:
      loadConstant(b) { operand.order.source(of: $0, scale: scale).map { UInt8($0) } ?? 0x80 }
      shuffle(d, a, b, isOnto: operand.operation == .reorderOnto)
    case .shiftByLanesSigned, .shiftByLanesUnsigned:
      shiftByLanes(operand.operation == .shiftByLanesSigned, scale, d, a, b)
    case .broadcast: broadcast(d, a, operand.amount, scale)
    case .transposeEven: transpose(scale, isOdd: false, d, a, b)
    case .transposeOdd: transpose(scale, isOdd: true, d, a, b)
    case .addAcross: across(Self.add, operand, d, a, b)
    case .minAcrossSigned: across(Self.minSigned, operand, d, a, b)
    case .maxAcrossSigned: across(Self.maxSigned, operand, d, a, b)
    case .minAcrossUnsigned: across(Self.minUnsigned, operand, d, a, b)
    case .maxAcrossUnsigned: across(Self.maxUnsigned, operand, d, a, b)
    case .addPairsWidenedSigned: addPairsWidened(scale, isSigned: true, d, a, b)
    case .addPairsWidenedUnsigned: addPairsWidened(scale, isSigned: false, d, a, b)
    case .multiplyLowSigned: multiplyWidened(scale, isHigh: false, isSigned: true, d, a, b)
    case .multiplyLowUnsigned: multiplyWidened(scale, isHigh: false, isSigned: false, d, a, b)
    case .multiplyHighSigned: multiplyWidened(scale, isHigh: true, isSigned: true, d, a, b)
    case .multiplyHighUnsigned: multiplyWidened(scale, isHigh: true, isSigned: false, d, a, b)
    case .dotSigned: dot(aIsSigned: true, bIsSigned: true, d, a, b)
    case .dotUnsigned: dot(aIsSigned: false, bIsSigned: false, d, a, b)
    case .dotUnsignedSigned: dot(aIsSigned: false, bIsSigned: true, d, a, b)
    case .dotSignedUnsigned: dot(aIsSigned: true, bIsSigned: false, d, a, b)
    case .narrowLowSigned, .narrowHighSigned:
      emit(Self.packSigned, scale, d, a, a)
      emit(Self.widenSigned, scale, b, d)
      asm.vector(0xef, b, b, a)
      noteSaturation(b)
    case .narrowLowClamped, .narrowHighClamped:
      emit(Self.packUnsigned, scale, d, a, a)
      emit(Self.widenUnsigned, scale, b, d)
      asm.vector(0xef, b, b, a)
      noteSaturation(b)
    case .narrowLowUnsigned, .narrowHighUnsigned:
      ones(b)
      shift(2, scale + 1, b, b, 8 << scale)
      emit(Self.minUnsigned, scale + 1, b, a, b)
      emit(Self.packUnsigned, scale, d, b, b)
      asm.vector(0xef, b, b, a)
      noteSaturation(b)
    case .interleaveLow: emit(Self.interleaveLow, scale, d, a, b)
    case .interleaveHigh: emit(Self.interleaveHigh, scale, d, a, b)
    case .evenLanes: lanes(scale, isOdd: false, d, a, b)
    case .oddLanes: lanes(scale, isOdd: true, d, a, b)
    case .flipSigns, .clearSigns:
      signs(b, scale)
      asm.vector(operand.operation == .flipSigns ? 0xef : 0xdf, d, b, a)
    case .addPairs, .minPairsSigned, .maxPairsSigned, .minPairsUnsigned, .maxPairsUnsigned:
      pairs(operand.operation, scale, d, a, b)
    case .extract: asm.vector(0x0f, d, b, a, immediate: UInt8(operand.amount), map: 3)
    case .narrowLow, .narrowHigh: narrow(scale, operand.amount, d, a)
    case .narrowLowRounded, .narrowHighRounded:
      shift(2, scale + 1, a, a, operand.amount - 1)
      shift(2, scale + 1, b, a, 1)
      emit(Self.subtract, scale + 1, a, a, b)
      narrow(scale, 0, d, a)
    case .widenLowSigned, .widenLowUnsigned, .widenHighSigned, .widenHighUnsigned:
      let isHigh = operand.operation == .widenHighSigned || operand.operation == .widenHighUnsigned
      let isSigned = operand.operation == .widenLowSigned || operand.operation == .widenHighSigned
      if isHigh { asm.vectorShift(0x73, 3, a, a, by: 8) }
      emit(isSigned ? Self.widenSigned : Self.widenUnsigned, scale, d, a)
      if operand.amount != 0 { shift(6, scale + 1, d, d, operand.amount) }
    case .rotateRight:
      shift(2, scale, d, a, operand.amount)
      shift(6, scale, a, a, (8 << scale) - operand.amount)
      asm.vector(0xeb, d, d, a)
    case .reverse: reverse(scale, within: operand.amount, d, a)
    case .aesEncrypt, .aesDecrypt, .aesEncryptMix, .aesDecryptMix, .aesMix, .aesInverseMix:
      cipher(operand.operation, a, b, d)
    case .carrylessLow: asm.vector(0x44, d, a, b, immediate: 0, map: 3)
    case .carrylessHigh: asm.vector(0x44, d, a, b, immediate: 0x11, map: 3)
    case .sha1Choose, .sha1Parity, .sha1Majority, .sha1Rotate, .sha1ScheduleFirst, .sha1ScheduleSecond,
      .sha256First, .sha256Second, .sha256ScheduleFirst, .sha256ScheduleSecond:
      preconditionFailure("emitHash does them")
    case .xorBoth, .xorAndNot, .countLeadingZeros:
      preconditionFailure("the translation cache has switched this off")
    }
  }

  /// The highest bit of each lane of at least 16 bits.
  func signs(_ to: X86Vector, _ scale: Int) {
    asm.vector(0x76, to, to, to)
    shift(6, scale, to, to, (8 << scale) - 1)
  }

  /// d = a's lanes in reverse order within each `8 << container` bits. Changes a.
  private func reverse(_ scale: Int, within container: Int, _ d: X86Vector, _ a: X86Vector) {
    if scale == 2 { return asm.vector(0x70, d, a, immediate: 0xb1) }
    var source = a
    if scale == 0 {
      // The bytes of words change places.
      shift(6, 1, d, a, 8)
      shift(2, 1, a, a, 8)
      asm.vector(0xeb, d, d, a)
      source = d
    }
    guard container > 1 else { return }
    // Then the words: those of the lower half (F2), those of the upper one (F3).
    let order: UInt8 = container == 2 ? 0xb1 : 0x1b
    asm.vector(0x70, d, source, immediate: order, prefix: 3)
    asm.vector(0x70, d, d, immediate: order, prefix: 2)
  }

  /// The even or odd lanes of a and, behind them, of b. Changes a and b; d is written last.
  private func lanes(_ scale: Int, isOdd: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    switch scale {
    case 0:
      for register in [a, b] {
        if !isOdd { shift(6, 1, register, register, 8) }
        shift(2, 1, register, register, 8)
      }
      asm.vector(0x67, d, a, b)  // packuswb
    case 1:
      for register in [a, b] {
        if !isOdd { shift(6, 2, register, register, 16) }
        shift(4, 2, register, register, 16)
      }
      asm.vector(0x6b, d, a, b)  // packssdw
    case 2: asm.vector(0xc6, d, a, b, immediate: isOdd ? 0xdd : 0x88, prefix: 0)  // shufps
    default: asm.vector(isOdd ? 0x6d : 0x6c, d, a, b)
    }
  }

  /// The even or odd lanes of a and b, alternating. Changes a and b where lanes are bytes.
  private func transpose(_ scale: Int, isOdd: Bool, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    let bits = 8 << scale
    switch scale {
    case 0:
      if isOdd { shift(2, 1, b, b, bits) } else { shift(6, 1, a, a, bits) }
      shift(2, 1, a, a, bits)
      shift(6, 1, b, b, bits)
      asm.vector(0xeb, d, a, b)
    case 1, 2:
      withVectorTemporary { moved in
        shift(isOdd ? 2 : 6, scale + 1, moved, isOdd ? a : b, bits)
        // pblendw
        asm.vector(
          0x0e, d, isOdd ? moved : a, isOdd ? b : moved, immediate: scale == 1 ? 0xaa : 0xcc, map: 3)
      }
    default: emit(isOdd ? Self.interleaveHigh : Self.interleaveLow, 3, d, a, b)
    }
  }

  /// a's lane in all lanes of `to`.
  private func broadcast(_ to: X86Vector, _ a: X86Vector, _ lane: Int, _ scale: Int) {
    switch scale {
    case 0 where lane == 0 && features.hasAVX2: asm.vector(0x78, to, a, map: 2)
    case 1 where lane == 0 && features.hasAVX2: asm.vector(0x79, to, a, map: 2)
    case 0:
      emit(lane < 8 ? Self.interleaveLow : Self.interleaveHigh, 0, to, a, a)
      broadcast(to, to, lane & 7, 1)
    case 1:
      // pshuflw, pshufhw
      asm.vector(0x70, to, a, immediate: UInt8((lane & 3) * 0x55), prefix: lane < 4 ? 3 : 2)
      emit(lane < 4 ? Self.interleaveLow : Self.interleaveHigh, 3, to, to, to)
    case 2: asm.vector(0x70, to, a, immediate: UInt8(lane * 0x55))
    default: emit(lane == 0 ? Self.interleaveLow : Self.interleaveHigh, 3, to, a, a)
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

  // MARK: Parts

  /// A constant by its bytes; takes a general register.
  func loadConstant(_ to: X86Vector, _ byte: (Int) -> UInt8) {
    func half(_ first: Int) -> UInt64 {
      (0..<8).reduce(0) { $0 | UInt64(byte(first + $1)) << UInt64(8 * $1) }
    }
    let register = takeTemporary()
    asm.moveKeepingFlags(register, immediate: half(0))
    if features.hasAVX512, half(0) == half(8) {
      asm.broadcast(to, register, wide: true)
      locked &= ~(1 << UInt16(register.rawValue))
      return
    }
    asm.move(to, register, wide: true)
    if half(0) == half(8) {
      asm.vector(0x6c, to, to, to)  // punpcklqdq
    } else {
      asm.moveKeepingFlags(register, immediate: half(8))
      asm.insertUpper(to, register)
    }
    locked &= ~(1 << UInt16(register.rawValue))
  }

  func withVectorTemporary(_ body: (X86Vector) -> Void) {
    let register = takeVectorTemporary()
    body(register)
    lockedVectors &= ~(1 << UInt16(register.rawValue))
  }
  func constant(_ constant: VectorConstant) -> X86Memory { state(constant.offset) }

  /// to = indices for pshufb, which gives 0 for those above 15.
  func bias(_ to: X86Vector, _ indices: X86Vector) {
    asm.vector(0xdc, to, indices, constant(.indexBias), prefix: 1)  // paddusb
  }
  /// a's bytes by the indices in b, ORed to d if they go onto it. Changes a.
  private func shuffle(_ d: X86Vector, _ a: X86Vector, _ b: X86Vector, isOnto: Bool) {
    asm.vector(0, isOnto ? a : d, a, b, map: 2)
    if isOnto { asm.vector(0xeb, d, d, a) }
  }

  /// By halves of bytes, which a table counts.
  private func countOnes(_ d: X86Vector, _ a: X86Vector, _ b: X86Vector) {
    let table = takeVectorTemporary()
    loadConstant(table) { UInt8(truncatingIfNeeded: $0.nonzeroBitCount) }
    loadConstant(b) { _ in 0x0f }
    asm.vector(0xdb, d, a, b)
    asm.vector(0, d, table, d, map: 2)
    shift(2, 1, a, a, 4)
    asm.vector(0xdb, a, a, b)
    asm.vector(0, a, table, a, map: 2)
    emit(Self.add, 0, d, d, a)
    lockedVectors &= ~(1 << UInt16(table.rawValue))
  }

  private func across(
    _ opcodes: Opcodes, _ operand: IRVectorOperand, _ d: X86Vector, _ a: X86Vector, _ b: X86Vector
  ) {
    let byteCount = 1 << operand.scale
    var distance = operand.isFull ? 8 : 4
    while distance >= byteCount {
      asm.vectorShift(0x73, 3, b, a, by: UInt8(distance))
      emit(opcodes, operand.scale, a, a, b)
      distance /= 2
    }
    // Only the lowest lane.
    asm.vectorShift(0x73, 7, a, a, by: UInt8(16 - byteCount))
    asm.vectorShift(0x73, 3, d, a, by: UInt8(16 - byteCount))
  }

}
