import ApusAsmX86
import ApusIR
import ApusJIT

// Guest memory. A paged access looks its page up in the TLB of its context:
//
//     lea  t1, [address + displacement]
//     rorx t2, t1, 7 ; and t2, entries * 32 - 32        the entry's offset
//     sub  t1, [rbp + t2 + tlb]                         minus the page: the offset in it, if it is that page
//     cmp  t1, 4096 - size ; ja slow                    also where the access runs over the page's end
//     mov  t2, [rbp + t2 + tlb + 16]                    the page on the host
//     mov  result, [t1 + t2]

extension X86Emitter {
  func byteCount(_ opcode: IROpcode) -> Int {
    switch opcode {
    case .loadU8, .loadS8, .store8: 1
    case .loadU16, .loadS16, .store16: 2
    case .loadU32, .loadS32, .store32, .loadF32, .storeF32, .atomicRMW32, .atomicCompareExchange32,
      .loadLinked32,
      .storeConditional32:
      4
    case .loadV128, .storeV128: 16
    default: 8
    }
  }

  func emitMemory(_ i: IRInstruction) {
    switch i.opcode {
    case .loadU8, .loadS8, .loadU16, .loadS16, .loadU32, .loadS32, .load64, .loadF32, .loadF64: emitLoad(i)
    case .store8, .store16, .store32, .store64, .storeF32, .storeF64: emitStore(i)
    case .loadV128: emitWholeLoad(i)
    case .storeV128: emitWholeStore(i)
    default: emitAtomic(i)
    }
  }

  /// Emits the look-up. Returns the host address as a memory operand and the jump to the slow path, if any.
  private func translateAddress(
    _ i: IRInstruction, _ address: X86Register, isStore: Bool, aligned: Bool = false
  )
    -> (memory: X86Memory, slow: (Int, Int))
  {
    let operand = IRMemoryOperand(rawValue: i.immediate)
    let size = byteCount(i.opcode)
    if values[index].group != 0, groups[Int(values[index].group) - 1].memberCount > 1 {
      return (translateInGroup(Int(values[index].group) - 1, address, operand.displacement), (-1, -1))
    }
    if context.isFlat, !aligned { return (X86Memory(address, operand.displacement), (-1, -1)) }
    if context.isFlat {
      // Atomics that are not aligned must fault.
      let t1 = takeTemporary()
      asm.loadAddress(t1, X86Memory(address, operand.displacement))
      asm.registerForm(0, t1.rawValue, wide: false, 0xf6, byteRegister: true)  // test t1b, size - 1
      asm.byte(UInt8(size - 1))
      return (X86Memory(t1), (asm.jump(.notEqual), -1))
    }
    let t1 = takeTemporary()
    let t2 = takeTemporary()
    var misaligned = -1
    let slow = emitLookUp(
      address, operand.displacement, context: operand.context, isStore: isStore, span: size, t1, t2
    ) {
      guard aligned else { return }
      asm.registerForm(0, t1.rawValue, wide: false, 0xf6, byteRegister: true)
      asm.byte(UInt8(size - 1))
      misaligned = asm.jump(.notEqual)
    }
    return (X86Memory(t1, index: t2), (slow, misaligned))
  }

  /// A plain access's base register, its host address as a memory operand and the jump to the slow path, if any.
  private func place(_ i: IRInstruction, isStore: Bool) -> (
    address: X86Register, memory: X86Memory, slow: (Int, Int)
  ) {
    if let memory = fusedAddress(i) { return (memory.base, memory, (-1, -1)) }
    let address = baseRegister(i)
    let (memory, slow) = translateAddress(i, address, isStore: isStore)
    return (address, memory, slow)
  }

  /// Looks the page of `address + displacement` up: leaves the offset in it in `offset` and its host address in
  /// `host`. Returns the jump that is taken unless `span` bytes lie in a page that the TLB has. `checks` emits more
  /// checks of the offset's low bits.
  func emitLookUp(
    _ address: X86Register, _ displacement: Int32, context: Int, isStore: Bool, span: Int,
    _ offset: X86Register, _ host: X86Register, checks: () -> Void = {}
  ) -> Int {
    if displacement != 0 {
      asm.loadAddress(offset, X86Memory(address, displacement))
    } else {
      asm.move(offset, address)
    }
    let table = StateHeader.tlb(context) - StateHeader.bias
    if features.hasBMI {
      asm.rotateRightX(host, offset, by: 7, wide: false)
    } else {
      asm.move(host, offset, wide: false)
      asm.shift(.right, host, by: 7, wide: false)
    }
    asm.arithmetic(
      .and, host, immediate: Int32((StateHeader.tlbEntryCount - 1) * StateHeader.tlbEntryByteCount),
      wide: false
    )
    asm.arithmetic(.sub, offset, X86Memory(.rbp, Int32(table + (isStore ? 8 : 0)), index: host))
    checks()
    asm.arithmetic(.cmp, offset, immediate: Int32(4096 - span))
    let slow = asm.jump(.above)
    asm.load(host, X86Memory(.rbp, Int32(table + 16), index: host))
    return slow
  }

  /// The number of a site for the access or operation that is emitted next.
  func site(_ i: IRInstruction) -> UInt32 {
    sites.append(
      SlowSite(pc: currentPC, memoryOperand: i.immediate, opcode: i.opcode),
      flatOffset: context.isFlat ? asm.offset : nil)
  }

  private func emitLoad(_ i: IRInstruction) {
    // The destination first: making it free may emit code, which the slow path must not skip. A destination that
    // is the address register is fine, since the write comes last.
    if i.opcode == .loadF64 || i.opcode == .loadF32 {
      let isDouble = i.opcode == .loadF64
      let register = vectorDestination()
      let (address, memory, slow) = place(i, isStore: false)
      finishAccess(i, address, slow, result: .vector(register, double: isDouble)) {
        asm.load(register, memory, double: isDouble)
        noteClear(register, above: isDouble ? 64 : 32)
      }
      return
    }
    let register = destination()
    let (address, memory, slow) = place(i, isStore: false)
    let isSigned = i.opcode == .loadS8 || i.opcode == .loadS16 || i.opcode == .loadS32
    finishAccess(i, address, slow, result: .register(register)) {
      asm.loadExtended(register, memory, bits: byteCount(i.opcode) * 8, signed: isSigned)
    }
  }

  /// Emits the access itself and notes its slow path, or, in flat memory, where a fault would come from.
  private func finishAccess(
    _ i: IRInstruction, _ address: X86Register, _ slow: (Int, Int), value: ColdStub.StubOperand = .none,
    result: ColdStub.StubResult = .none, _ access: () -> Void
  ) {
    let site = site(i)
    access()
    if slow.0 >= 0 {
      addStub(
        .memory(site: site, address: address, value: value, result: result), slow.0, slow.1,
        resume: asm.offset)
    }
  }

  /// The slow path works on the state.
  private func emitWholeLoad(_ i: IRInstruction) {
    let offset = IRMemoryOperand(rawValue: i.immediate).vectorRegister
    giveUp(offset, .both)
    // What moved may move on.
    lockedVectors = 0
    let register = pinnedWhole(offset) ?? takeVectorTemporary()
    let (address, memory, slow) = place(i, isStore: false)
    finishAccess(i, address, slow) {
      asm.loadWhole(register, memory)
      storeRegister(offset, register, .both)
    }
  }

  private func emitWholeStore(_ i: IRInstruction) {
    let offset = IRMemoryOperand(rawValue: i.immediate).vectorRegister
    let pinned = pinnedWhole(offset)
    let register = pinned ?? takeVectorTemporary()
    let (address, memory, slow) = place(i, isStore: true)
    finishAccess(i, address, slow) {
      // Behind the look-up, whose cold code keeps only the lower halves of temporaries.
      if pinned == nil { loadRegister(register, offset, isFull: true) }
      asm.storeWhole(memory, register)
    }
  }

  private func emitStore(_ i: IRInstruction) {
    if i.opcode == .storeF64 || i.opcode == .storeF32 {
      let isDouble = i.opcode == .storeF64
      let value = useVector(i.b)
      let (address, memory, slow) = place(i, isStore: true)
      finishAccess(i, address, slow, value: .vector(value, double: isDouble)) {
        asm.store(memory, value, double: isDouble)
      }
      return
    }
    let size = byteCount(i.opcode)
    let stubValue: ColdStub.StubOperand
    var immediate: Int32?
    var value = X86Register.rax
    if let constant = constant(i.b) {
      let fits = size < 8 || constant == Int64(Int32(truncatingIfNeeded: constant))
      immediate = fits ? Int32(truncatingIfNeeded: constant) : nil
    }
    if let immediate {
      stubValue = .constant(immediate)
    } else {
      value = use(i.b)
      stubValue = .register(value)
    }
    let (address, memory, slow) = place(i, isStore: true)
    finishAccess(i, address, slow, value: stubValue) {
      if let immediate {
        asm.store(memory, immediate: immediate, byteCount: size)
        return
      }
      switch size {
      case 1: asm.store8(memory, value)
      case 2: asm.store16(memory, value)
      case 4: asm.store(memory, value, wide: false)
      default: asm.store(memory, value)
      }
    }
  }

  // MARK: Atomics

  /// Operands b and c go through the state's argument area, so that the slow path finds them there and no more
  /// than four temporaries are needed.
  private func emitAtomic(_ i: IRInstruction) {
    let isWide = byteCount(i.opcode) == 8
    for (operand, offset) in [(i.b, StateHeader.argument1), (i.c, StateHeader.result)] where operand != .max {
      if case .immediate(let immediate) = self.operand(operand) {
        asm.store(state(offset), immediate: immediate, byteCount: 8)
      } else {
        asm.store(state(offset), use(operand))
      }
      locked = 0
    }
    claim(.rax)
    let address = use(i.a)
    let isLoad = i.opcode == .loadLinked32 || i.opcode == .loadLinked64
    let (memory, slow) = translateAddress(i, address, isStore: !isLoad, aligned: true)
    var target = memory
    var scratch = X86Register.rax
    if let second = memory.index {
      asm.arithmetic(.add, memory.base, second)
      target = X86Memory(memory.base)
      scratch = second
    } else {
      scratch = takeTemporary()
    }
    let argument = state(StateHeader.argument1)
    let site = site(i)
    let operation = IRMemoryOperand(rawValue: i.immediate).operation
    // The result is formed in rax.
    switch i.opcode {
    case .loadLinked32, .loadLinked64:
      asm.loadExtended(.rax, target, bits: isWide ? 64 : 32, signed: !isWide)
      asm.loadAddress(scratch, X86Memory(address, IRMemoryOperand(rawValue: i.immediate).displacement))
      asm.store(state(StateHeader.monitorAddress), scratch)
      asm.store(state(StateHeader.monitorValue), .rax)
    case .storeConditional32, .storeConditional64:
      // Succeeds if the monitor holds this address and memory still holds the value that was loaded.
      asm.loadAddress(scratch, X86Memory(address, IRMemoryOperand(rawValue: i.immediate).displacement))
      asm.arithmetic(.cmp, scratch, state(StateHeader.monitorAddress))
      asm.moveKeepingFlags(.rax, immediate: 1)
      let mismatch = asm.jumpShort(.notEqual)
      asm.load(.rax, state(StateHeader.monitorValue))
      asm.load(scratch, argument)
      asm.lockedCompareExchange(target, scratch, wide: isWide)
      asm.set(.notEqual, .rax)
      asm.extend(.rax, .rax, bits: 8, signed: false)
      asm.bindShort(mismatch)
      // Last: in flat memory the exchange may fault and be done over.
      asm.store(state(StateHeader.monitorAddress), immediate: -1, byteCount: 8)
    case .atomicCompareExchange32, .atomicCompareExchange64:
      asm.load(.rax, argument)
      asm.load(scratch, state(StateHeader.result))
      asm.lockedCompareExchange(target, scratch, wide: isWide)
      if !isWide { asm.extend(.rax, .rax, bits: 32, signed: true) }
    default:
      emitReadModifyWrite(operation, target, argument, scratch, isWide)
    }
    addStub(
      .memory(site: site, address: address, value: .none, result: .register(.rax)), slow.0, slow.1,
      resume: asm.offset)
    if values[index].lastUse != 0 { finishIn(.rax) }
  }

  private func emitReadModifyWrite(
    _ operation: IRAtomicOperation, _ target: X86Memory, _ argument: X86Memory, _ scratch: X86Register,
    _ isWide: Bool
  ) {
    func signExtendResult() { if !isWide { asm.extend(.rax, .rax, bits: 32, signed: true) } }
    switch operation {
    case .exchange:
      asm.load(.rax, argument)
      asm.exchange(target, .rax, wide: isWide)
      signExtendResult()
      return
    case .add:
      asm.load(.rax, argument)
      asm.lockedExchangeAdd(target, .rax, wide: isWide)
      signExtendResult()
      return
    default: break
    }
    asm.load(.rax, target, wide: isWide)
    let loop = asm.offset
    asm.load(scratch, argument, wide: isWide)
    switch operation {
    case .and: asm.arithmetic(.and, scratch, .rax, wide: isWide)
    case .or: asm.arithmetic(.or, scratch, .rax, wide: isWide)
    case .xor: asm.arithmetic(.xor, scratch, .rax, wide: isWide)
    default:
      // Keep the old value where it is the one wanted.
      asm.arithmetic(.cmp, .rax, scratch, wide: isWide)
      let keep: X86Condition
      switch operation {
      case .minSigned: keep = .less
      case .maxSigned: keep = .greater
      case .minUnsigned: keep = .below
      default: keep = .above
      }
      asm.conditionalMove(keep, scratch, .rax, wide: isWide)
    }
    asm.lockedCompareExchange(target, scratch, wide: isWide)
    let again = asm.jump(.notEqual)
    asm.bind(again, to: loop)
    signExtendResult()
  }
}
