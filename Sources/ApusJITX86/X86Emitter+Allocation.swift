import ApusAsmX86
import ApusIR

// Local register allocation. A value lives in one place at a time; a pinned register's value may be the slot's
// content too (`content[register]` names it).

extension X86Emitter {
  @inline(__always) func root(_ value: UInt16) -> Int { Int(values[Int(value)].root) }
  @inline(__always) func isTemporary(_ register: UInt8) -> Bool {
    Self.temporaryMask >> UInt16(register) & 1 != 0
  }
  @inline(__always) func diesHere(_ value: Int) -> Bool { Int(values[value].lastUse) <= index }
  /// As many as fit before what follows in the state.
  static let spillCount = (StateHeader.floatFlagTable - StateHeader.spill - 128) / 8
  func spillMemory(_ number: Int16) -> X86Memory { state(StateHeader.spill + 128 + Int(number) * 8) }

  // MARK: General registers

  /// A free temporary; evicts a value if there is none.
  func takeTemporary() -> X86Register {
    var candidates = Self.temporaryMask & ~locked
    var best: UInt8 = 0xff
    var bestUse = -1
    while candidates != 0 {
      let number = UInt8(candidates.trailingZeroBitCount)
      candidates &= candidates &- 1
      let value = content[Int(number)]
      if value == .max || diesBefore(Int(value)) {
        content[Int(number)] = .max
        locked |= 1 << UInt16(number)
        return X86Register(rawValue: number).unsafelyUnwrapped
      }
      let use = Int(values[Int(value)].lastUse)
      if use > bestUse { (best, bestUse) = (number, use) }
    }
    precondition(best != 0xff, "no temporary register left")
    evict(best)
    locked |= 1 << UInt16(best)
    return X86Register(rawValue: best).unsafelyUnwrapped
  }

  /// Whether the value is not used by this instruction or a later one.
  @inline(__always) private func diesBefore(_ value: Int) -> Bool { Int(values[value].lastUse) < index }

  /// Moves the value of a temporary to its home or the spill area.
  func evict(_ register: UInt8) {
    let value = Int(content[Int(register)])
    content[Int(register)] = .max
    if values[value].home >= 0 {
      values[value].place = .slot
      values[value].offset = values[value].home
      return
    }
    let number = takeSpill()
    asm.store(spillMemory(number), X86Register(rawValue: register).unsafelyUnwrapped)
    values[value].place = .spill
    values[value].offset = number
  }

  /// A free place in the spill area.
  private func takeSpill() -> Int16 {
    if (~spillsInUse).trailingZeroBitCount >= Self.spillCount {
      // Values that died in the area gave nothing back yet.
      spillsInUse = 0
      for value in 0..<index where values[value].place == .spill && Int(values[value].lastUse) >= index {
        spillsInUse |= 1 << UInt64(values[value].offset)
      }
      for group in groups.indices {
        let value = AccessGroup.value(group)
        if values[value].place == .spill, Int(values[value].lastUse) >= index {
          spillsInUse |= 1 << UInt64(values[value].offset)
        }
      }
    }
    let number = (~spillsInUse).trailingZeroBitCount
    precondition(number < Self.spillCount, "spill area full")
    spillsInUse |= 1 << UInt64(number)
    return Int16(number)
  }

  /// Makes a certain temporary free, moving what it holds.
  func claim(_ register: X86Register) {
    let number = register.rawValue
    let value = content[Int(number)]
    locked |= 1 << UInt16(number)
    guard value != .max, !diesBefore(Int(value)) else {
      content[Int(number)] = .max
      return
    }
    // Another free temporary, or memory.
    var candidates = Self.temporaryMask & ~locked
    while candidates != 0 {
      let other = UInt8(candidates.trailingZeroBitCount)
      candidates &= candidates &- 1
      if content[Int(other)] == .max || diesBefore(Int(content[Int(other)])) {
        asm.move(X86Register(rawValue: other).unsafelyUnwrapped, register)
        content[Int(number)] = .max
        content[Int(other)] = value
        values[Int(value)].register = other
        return
      }
    }
    evict(number)
  }

  /// The operand in a register; loads it if it is not. Locks the register.
  func use(_ operand: UInt16) -> X86Register {
    let value = root(operand)
    switch values[value].place {
    case .register: break
    case .constant:
      let register = takeTemporary()
      asm.moveKeepingFlags(register, immediate: UInt64(bitPattern: ir[value].immediate))
      return register
    case .slot, .spill:
      let register = takeTemporary()
      asm.load(register, memory(value))
      if values[value].place == .slot { values[value].home = values[value].offset }
      if values[value].place == .spill { spillsInUse &= ~(1 << UInt64(values[value].offset)) }
      values[value].place = .register
      values[value].register = register.rawValue
      content[Int(register.rawValue)] = UInt16(value)
    case .nowhere: preconditionFailure("%\(value) was never computed")
    }
    locked |= 1 << UInt16(values[value].register)
    return X86Register(rawValue: values[value].register).unsafelyUnwrapped
  }

  func memory(_ value: Int) -> X86Memory {
    values[value].place == .slot ? state(Int(values[value].offset)) : spillMemory(values[value].offset)
  }

  /// The operand as it is cheapest to use.
  enum Operand {
    case register(X86Register)
    case immediate(Int32)
    case memory(X86Memory)
  }
  func operand(_ operand: UInt16) -> Operand {
    let value = root(operand)
    switch values[value].place {
    case .constant:
      let immediate = ir[value].immediate
      if immediate == Int64(Int32(truncatingIfNeeded: immediate)) { return .immediate(Int32(immediate)) }
      return .register(use(operand))
    case .slot, .spill:
      // Used again later: worth a register.
      if Int(values[value].lastUse) > index { return .register(use(operand)) }
      return .memory(memory(value))
    case .register, .nowhere: return .register(use(operand))
    }
  }
  /// A 32-bit operand: a constant always fits.
  func operand32(_ operand: UInt16) -> Operand {
    let value = root(operand)
    if values[value].place == .constant { return .immediate(Int32(truncatingIfNeeded: ir[value].immediate)) }
    return self.operand(operand)
  }
  func constant(_ operand: UInt16) -> Int64? {
    let value = root(operand)
    return values[value].place == .constant ? ir[value].immediate : nil
  }

  /// The register for the result of the instruction at hand: the pinned register that the next instruction stores
  /// it to, if that is free to be overwritten, or a temporary. Operands keep their registers.
  func destination() -> X86Register {
    if let register = pinnedDestination(.set64) { return X86Register(rawValue: register).unsafelyUnwrapped }
    return freshDestination()
  }

  private func freshDestination() -> X86Register {
    // An operand that dies here may give its temporary away.
    let i = ir[index]
    for operand in [i.a, i.b] where operand != .max {
      let value = root(operand)
      if values[value].place == .register, diesHere(value), isTemporary(values[value].register),
        content[Int(values[value].register)] == UInt16(value), values[value].lastUse != 0
      {
        let register = values[value].register
        bindResult(register)
        locked |= 1 << UInt16(register)
        return X86Register(rawValue: register).unsafelyUnwrapped
      }
    }
    let register = takeTemporary()
    bindResult(register.rawValue)
    return register
  }

  private func bindResult(_ register: UInt8) {
    content[Int(register)] = UInt16(index)
    values[index].place = .register
    values[index].register = register
  }

  /// The pinned register of the slot that the next instruction sets to this result, made ready to be overwritten.
  ///
  /// - Parameter except: it is none of these.
  func pinnedDestination(_ setter: IROpcode, except: [X86Vector?]? = nil) -> UInt8? {
    var following = index + 1
    // Other names of the result.
    while following < irCount, Int(values[following].root) == index { following &+= 1 }
    guard following < irCount else { return nil }
    let next = ir[following]
    guard next.opcode == setter, root(next.a) == index, next.immediate < Int64(Self.slotCount * 8) else {
      return nil
    }
    let register = slotRegister[Int(next.immediate >> 3)]
    guard register != 0xff else { return nil }
    let base = setter == .setF64 ? 16 : 0
    if base != 0 {
      // The upper half would be lost.
      if layout.hasVectors, upperHalf(behind: following) == .kept { return nil }
      if let except, except.contains(where: { $0?.rawValue == register }) { return nil }
      noteChange(X86Vector(rawValue: register).unsafelyUnwrapped)
      pinnedSetter = following
    }
    vacate(Int(register) + base)
    content[Int(register) + base] = UInt16(index)
    values[index].place = .register
    values[index].register = register
    return register
  }

  // MARK: Halves of vector registers

  /// What becomes of a vector register's upper half behind `setF64` of the lower one.
  enum UpperHalf { case kept, cleared, set }
  /// - Parameter number: the `setF64`.
  func upperHalf(behind number: Int) -> UpperHalf {
    var next = number + 1
    while next < irCount, ir[next].opcode == .const64 { next &+= 1 }
    guard next < irCount, ir[next].opcode == .set64, ir[next].immediate == ir[number].immediate + 8 else {
      return .kept
    }
    let value = ir[root(ir[next].a)]
    return value.opcode == .const64 && value.immediate == 0 ? .cleared : .set
  }

  /// A vector register has new contents, of which nothing is known.
  func noteChange(_ register: X86Vector) {
    clearAbove64 &= ~(1 << UInt16(register.rawValue))
    clearAbove32 &= ~(1 << UInt16(register.rawValue))
  }
  /// - Parameter above: 64, or 32, which implies the other.
  func noteClear(_ register: X86Vector, above: Int) {
    clearAbove64 |= 1 << UInt16(register.rawValue)
    if above == 32 {
      clearAbove32 |= 1 << UInt16(register.rawValue)
    } else {
      clearAbove32 &= ~(1 << UInt16(register.rawValue))
    }
  }
  func isClear(_ register: X86Vector, above: Int) -> Bool {
    (above == 32 ? clearAbove32 : clearAbove64) >> UInt16(register.rawValue) & 1 != 0
  }
  /// What is known of one register holds for another.
  func noteCopy(_ to: X86Vector, of from: X86Vector) {
    let (clear64, clear32) = (isClear(from, above: 64), isClear(from, above: 32))
    noteChange(to)
    if clear64 { noteClear(to, above: clear32 ? 32 : 64) }
  }

  /// Moves the value that lives in a pinned register elsewhere if it is needed after the instruction at hand.
  /// `number`: general 0..15, vector 16..31.
  func vacate(_ number: Int) {
    let old = content[number]
    content[number] = .max
    guard old != .max else { return }
    let value = Int(old)
    let isVector = number >= 16
    guard values[value].place == .register, Int(values[value].register) + (isVector ? 16 : 0) == number,
      Int(values[value].lastUse) > index
    else { return }
    // Another pinned register may hold it too.
    if isVector {
      for (register, _) in pinnedFloats where content[16 + Int(register.rawValue)] == old {
        values[value].register = register.rawValue
        return
      }
      let register = takeVectorTemporary()
      asm.move(register, X86Vector(rawValue: UInt8(number - 16)).unsafelyUnwrapped)
      noteCopy(register, of: X86Vector(rawValue: UInt8(number - 16)).unsafelyUnwrapped)
      content[16 + Int(register.rawValue)] = old
      values[value].register = register.rawValue
    } else {
      for (register, _) in pinnedIntegers where content[Int(register.rawValue)] == old {
        values[value].register = register.rawValue
        return
      }
      let register = takeTemporary()
      asm.move(register, X86Register(rawValue: UInt8(number)).unsafelyUnwrapped)
      content[Int(register.rawValue)] = old
      values[value].register = register.rawValue
    }
  }

  // MARK: Vector registers

  func takeVectorTemporary() -> X86Vector {
    var candidates = Self.vectorTemporaryMask & ~lockedVectors
    var best: UInt8 = 0xff
    var bestUse = -1
    while candidates != 0 {
      let number = UInt8(candidates.trailingZeroBitCount)
      candidates &= candidates &- 1
      let value = content[16 + Int(number)]
      if value == .max || diesBefore(Int(value)) {
        content[16 + Int(number)] = .max
        lockedVectors |= 1 << UInt16(number)
        noteChange(X86Vector(rawValue: number).unsafelyUnwrapped)
        return X86Vector(rawValue: number).unsafelyUnwrapped
      }
      let use = Int(values[Int(value)].lastUse)
      if use > bestUse { (best, bestUse) = (number, use) }
    }
    precondition(best != 0xff, "no temporary vector register left")
    let value = Int(content[16 + Int(best)])
    content[16 + Int(best)] = .max
    if values[value].home >= 0 {
      values[value].place = .slot
      values[value].offset = values[value].home
    } else {
      let number = takeSpill()
      asm.store(spillMemory(number), X86Vector(rawValue: best).unsafelyUnwrapped, double: true)
      values[value].place = .spill
      values[value].offset = number
    }
    lockedVectors |= 1 << UInt16(best)
    noteChange(X86Vector(rawValue: best).unsafelyUnwrapped)
    return X86Vector(rawValue: best).unsafelyUnwrapped
  }

  func useVector(_ operand: UInt16) -> X86Vector {
    let value = root(operand)
    switch values[value].place {
    case .register: break
    case .slot, .spill:
      let register = takeVectorTemporary()
      asm.load(register, memory(value), double: true)
      noteClear(register, above: 64)
      if values[value].place == .slot { values[value].home = values[value].offset }
      if values[value].place == .spill { spillsInUse &= ~(1 << UInt64(values[value].offset)) }
      values[value].place = .register
      values[value].register = register.rawValue
      content[16 + Int(register.rawValue)] = UInt16(value)
    case .constant, .nowhere: preconditionFailure("%\(value) is no vector")
    }
    lockedVectors |= 1 << UInt16(values[value].register)
    return X86Vector(rawValue: values[value].register).unsafelyUnwrapped
  }

  /// The vector register for the result. It is none of the operands' registers, except where `mayReuse` says that
  /// the instruction reads its operands before it writes.
  func vectorDestination(mayReuse: Bool = true) -> X86Vector {
    if mayReuse, let register = pinnedDestination(.setF64) {
      return X86Vector(rawValue: register).unsafelyUnwrapped
    }
    let register = takeVectorTemporary()
    content[16 + Int(register.rawValue)] = UInt16(index)
    values[index].place = .register
    values[index].register = register.rawValue
    return register
  }

  // MARK: State slots

  func emitGet(_ i: IRInstruction) {
    let slot = Int(i.immediate >> 3)
    let isFloat = i.opcode == .getF64
    let base = isFloat ? 16 : 0
    if slot < Self.slotCount, slotRegister[slot] != 0xff {
      let number = Int(slotRegister[slot]) + base
      if content[number] != .max, Int(content[number]) != index,
        Int(values[Int(content[number])].lastUse) > index
      {
        // Another value is the slot's content already (forwarding is off): keep both apart.
        if isFloat {
          let register = vectorDestination(mayReuse: false)
          asm.move(register, X86Vector(rawValue: slotRegister[slot]).unsafelyUnwrapped)
          noteCopy(register, of: X86Vector(rawValue: slotRegister[slot]).unsafelyUnwrapped)
        } else {
          let register = freshDestination()
          asm.move(register, X86Register(rawValue: slotRegister[slot]).unsafelyUnwrapped)
        }
        return
      }
      content[number] = UInt16(index)
      values[index].place = .register
      values[index].register = slotRegister[slot]
      return
    }
    if slot < Self.slotCount, let vector = X86Vector(rawValue: upperRegister[slot]) {
      asm.extractUpper(freshDestination(), vector)
      return
    }
    if slot >= Self.slotCount || slotContent[slot] != .max {
      // Read now, not when it is used.
      if isFloat {
        asm.load(vectorDestination(mayReuse: false), state(Int(i.immediate)), double: true)
      } else {
        asm.load(freshDestination(), state(Int(i.immediate)))
      }
      return
    }
    slotContent[slot] = UInt16(index)
    values[index].place = .slot
    values[index].offset = Int16(i.immediate)
    values[index].home = Int16(i.immediate)
  }
  func emitSet(_ i: IRInstruction) {
    let slot = Int(i.immediate >> 3)
    let value = root(i.a)
    let isFloat = i.opcode == .setF64
    if slot < Self.slotCount, slotRegister[slot] != 0xff {
      setPinned(slotRegister[slot], value, isFloat, i.a)
      return
    }
    if slot < Self.slotCount, let vector = X86Vector(rawValue: upperRegister[slot]) {
      return setUpper(vector, i.a)
    }
    if slot < Self.slotCount { forgetSlotMemory(slot, exceptFor: value) }
    if slot == clearedSlot {
      clearedSlot = -1
      return
    }
    let target = state(Int(i.immediate))
    if isFloat, layout.hasVectors, slot + 1 < Self.slotCount, upperHalf(behind: index) == .cleared {
      forgetSlotMemory(slot + 1, exceptFor: -1)
      storeCleared(target, useVector(i.a))
      clearedSlot = slot + 1
    } else if isFloat {
      asm.store(target, useVector(i.a), double: true)
    } else if let constant = constant(i.a), constant == Int64(Int32(truncatingIfNeeded: constant)) {
      asm.store(target, immediate: Int32(constant), byteCount: 8)
      return
    } else {
      asm.store(target, use(i.a))
    }
    if slot < Self.slotCount {
      slotContent[slot] = UInt16(value)
      if values[value].place == .register { values[value].home = Int16(i.immediate) }
    }
  }

  /// The upper half of a pinned vector register.
  private func setUpper(_ register: X86Vector, _ operand: UInt16) {
    if constant(operand) == 0 {
      if isClear(register, above: 64) { return }
      asm.moveLower(register, register)
      return noteClear(register, above: 64)
    }
    asm.insertUpper(register, use(operand))
    noteChange(register)
  }

  /// A whole register in memory, its upper half clear; the `set64` that follows writes nothing.
  private func storeCleared(_ target: X86Memory, _ source: X86Vector) {
    var register = source
    if !isClear(source, above: 64) {
      register = takeVectorTemporary()
      asm.moveLower(register, source)
      noteClear(register, above: 64)
    }
    asm.storeWhole(target, register)
  }

  private func setPinned(_ register: UInt8, _ value: Int, _ isFloat: Bool, _ operand: UInt16) {
    let number = Int(register) + (isFloat ? 16 : 0)
    if values[value].place == .register, Int(values[value].register) + (isFloat ? 16 : 0) == number {
      content[number] = UInt16(value)  // computed in place
      return
    }
    if isFloat {
      let source = useVector(operand)
      vacate(number)
      movePinned(X86Vector(rawValue: register).unsafelyUnwrapped, source, upper: upperHalf(behind: index))
    } else if let constant = constant(operand) {
      vacate(number)
      asm.moveKeepingFlags(
        X86Register(rawValue: register).unsafelyUnwrapped, immediate: UInt64(bitPattern: constant))
      return
    } else if values[value].place == .register {
      let source = use(operand)
      vacate(number)
      asm.move(X86Register(rawValue: register).unsafelyUnwrapped, source)
    } else {
      vacate(number)
      asm.load(X86Register(rawValue: register).unsafelyUnwrapped, memory(value))
      if values[value].place == .spill { spillsInUse &= ~(1 << UInt64(values[value].offset)) }
      values[value].place = .register
      values[value].register = register
      values[value].home = -1
      content[number] = UInt16(value)
      return
    }
    // The value lives on in the pinned register; its temporary is free.
    content[number] = UInt16(value)
    let old = values[value].register
    let isTemporary =
      isFloat ? Self.vectorTemporaryMask >> UInt16(old) & 1 != 0 : self.isTemporary(old)
    if isTemporary {
      content[Int(old) + (isFloat ? 16 : 0)] = .max
      values[value].register = register
    }
  }

  /// Copies a float into a pinned register.
  func movePinned(_ to: X86Vector, _ from: X86Vector, upper: UpperHalf) {
    if !layout.hasVectors {
      asm.move(to, from)
      noteCopy(to, of: from)
    } else if upper == .kept {
      let isClear = isClear(to, above: 64)
      asm.mergeLower(to, from)
      noteChange(to)
      if isClear { noteClear(to, above: 64) }
    } else if upper == .cleared, !isClear(from, above: 64) {
      asm.moveLower(to, from)
      noteClear(to, above: 64)
    } else {
      asm.move(to, from)
      noteCopy(to, of: from)
    }
  }

  /// The slot's memory is about to change: values that live there move to registers.
  private func forgetSlotMemory(_ slot: Int, exceptFor new: Int) {
    let old = slotContent[slot]
    slotContent[slot] = .max
    guard old != .max, Int(old) != new else { return }
    let value = Int(old)
    if values[value].place == .slot, Int(values[value].offset) >> 3 == slot,
      Int(values[value].lastUse) > index
    {
      if ir[value].opcode.resultType == .f64 || ir[value].opcode.resultType == .f32 {
        _ = useVector(UInt16(value))
      } else {
        _ = use(UInt16(value))
      }
    }
    values[value].home = -1
  }

  /// The same for the slot at an offset, by an operation without values.
  func forgetMemory(_ offset: Int) {
    if offset >> 3 < Self.slotCount { forgetSlotMemory(offset >> 3, exceptFor: -1) }
  }

  /// Before a helper that changes guest registers: what lives in slots must survive on its own, and nothing is
  /// known about the slots afterwards.
  func detachFromState() {
    for (register, _) in pinnedIntegers { vacate(Int(register.rawValue)) }
    for (register, _) in pinnedFloats { vacate(16 + Int(register.rawValue)) }
    for slot in 0..<Self.slotCount where slotContent[slot] != .max { forgetSlotMemory(slot, exceptFor: -1) }
  }
}
