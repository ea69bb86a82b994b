import ApusAsmX86
import ApusIR
import ApusJIT

/// Code that is rarely run, put behind the block's end.
struct ColdStub {
  enum Kind {
    /// Leaves to the dispatcher at `pc`.
    case exit(pc: UInt64)
    /// Leaves to the dispatcher; the PC is in the register. A branch that has a kind says so, and where it is.
    case indirectMiss(X86Register, kind: UInt8, source: UInt64)
    /// Goes to a block of another page through the jump cache.
    case crossPage(target: UInt64)
    /// A slow memory access. Operands as they were at the access.
    case memory(site: UInt32, address: X86Register, value: StubOperand, result: StubResult)
    /// The look-up of a group failed: `address` is the base, `offset` what was compared with the page's size.
    case group(site: UInt32, address: X86Register, offset: X86Register, pc: UInt64)
    /// Loads the default NaN into a vector register.
    case defaultNaN(X86Vector, double: Bool)
    /// Sets the floating-point exception flags.
    case setFloatFlags(X86Register)
    /// Saturation of a failed conversion to a signed integer of a vector register.
    case saturate(X86Register, from: X86Vector, double: Bool, wide: Bool)
    /// The same to an unsigned integer.
    case saturateUnsigned(X86Register, from: X86Vector, double: Bool)
    /// A conversion to an unsigned integer that no instruction does: the slow path does.
    case convert(site: UInt32, X86Register, from: X86Vector)
    /// A fused multiply-add gave a NaN: the slow path computes it again, flags included.
    case fused(site: UInt32, X86Vector, X86Vector, X86Vector, X86Vector, double: Bool)
    /// An operation on vectors has lanes that the host's unit gets wrong: the slow path computes all of them.
    case vectorFloat(site: UInt32)
    /// Runs a soft-float minimum or maximum: both operands equal or one a NaN.
    case minMax(X86Vector, X86Vector, X86Vector, double: Bool, isMaximum: Bool)
  }
  enum StubOperand {
    case none
    case register(X86Register)
    case vector(X86Vector, double: Bool)
    case constant(Int32)
  }
  enum StubResult {
    case none
    case register(X86Register)
    case vector(X86Vector, double: Bool)
  }
  var kind: Kind
  /// Displacements of the jumps that lead here.
  var sites: (Int, Int)
  /// Where to go on, for those that come back.
  var resume: Int
}

extension X86Emitter {
  func addStub(_ kind: ColdStub.Kind, _ site: Int, _ second: Int = -1, resume: Int = -1) {
    stubs.append(ColdStub(kind: kind, sites: (site, second), resume: resume))
  }

  /// Stores a guest PC; may clobber rax, so only where the block is left, or with `scratch` taken before.
  func storePC(_ pc: UInt64, scratch: X86Register = .rax) {
    if Int64(bitPattern: pc) == Int64(Int32(truncatingIfNeeded: pc)) {
      asm.store(state(StateHeader.pc), immediate: Int32(truncatingIfNeeded: pc), byteCount: 8)
    } else {
      asm.moveKeepingFlags(scratch, immediate: pc)
      asm.store(state(StateHeader.pc), scratch)
    }
  }

  func emitPoll(_ i: IRInstruction) {
    asm.arithmetic(.cmp, state(StateHeader.exitRequest), immediate: 0)
    addStub(.exit(pc: UInt64(bitPattern: i.immediate)), asm.jump(.notEqual))
  }

  /// cmp and the condition to test, with operands in the cheapest order.
  ///
  /// - Parameters:
  ///   - keepsOrder: the flags themselves are wanted: operands do not change places.
  ///   - clearing: a register that becomes 0 before the comparison; it holds no operand.
  func emitCompare(
    _ a: UInt16, _ b: UInt16, _ condition: IRCondition, wide: Bool, keepsOrder: Bool = false,
    clearing cleared: X86Register? = nil
  ) -> X86Condition {
    func clear() { if let cleared { asm.arithmetic(.xor, cleared, cleared, wide: false) } }
    var (a, b) = (a, b)
    var result: X86Condition
    switch condition {
    case .equal: result = .equal
    case .notEqual: result = .notEqual
    case .lessSigned: result = .less
    case .greaterOrEqualSigned: result = .greaterOrEqual
    case .lessUnsigned: result = .below
    case .greaterOrEqualUnsigned: result = .aboveOrEqual
    }
    if constant(a) != nil, constant(b) == nil, !keepsOrder {
      swap(&a, &b)
      switch result {
      case .less: result = .greater
      case .greaterOrEqual: result = .lessOrEqual
      case .below: result = .above
      case .aboveOrEqual: result = .belowOrEqual
      default: break
      }
    }
    let right = wide ? operand(b) : operand32(b)
    if case .immediate(let immediate) = right {
      if case .memory(let memory) = operand(a) {
        clear()
        asm.arithmetic(.cmp, memory, immediate: immediate, wide: wide)
        return result
      }
      let left = use(a)
      clear()
      if immediate == 0 {
        asm.test(left, left, wide: wide)
      } else {
        asm.arithmetic(.cmp, left, immediate: immediate, wide: wide)
      }
      return result
    }
    switch right {
    case .register(let register):
      if case .memory(let memory) = operand(a) {
        clear()
        asm.arithmetic(.cmp, memory, from: register, wide: wide)
      } else {
        let left = use(a)
        clear()
        asm.arithmetic(.cmp, left, register, wide: wide)
      }
    case .memory(let memory):
      let left = use(a)
      clear()
      asm.arithmetic(.cmp, left, memory, wide: wide)
    case .immediate: break
    }
    return result
  }

  func emitExitIf(_ i: IRInstruction) {
    let condition: X86Condition
    if let tested = fusedTest(i) {
      condition = tested
      comparison = nil
    } else if let inForce = conditionInForce(i) {
      condition = inForce
    } else {
      condition = emitCompare(
        i.a, i.b, IRCondition(rawValue: i.c).unsafelyUnwrapped, wide: i.opcode == .exitIf64)
      comparison = nil
    }
    let target = UInt64(bitPattern: i.immediate)
    if isLinkable(target) {
      keepDisplacementInLine(opcodeByteCount: 2)
      let site = asm.jump(condition)
      links.append(PendingLink(siteOffset: site, stubOffset: 0, targetPC: target))
    } else {
      addStub(.crossPage(target: target), asm.jump(condition))
    }
  }

  /// A displacement must not straddle a cache line, so that it can be patched while others run the code.
  func keepDisplacementInLine(opcodeByteCount: Int) {
    let distance = (asm.offset + opcodeByteCount) & 63
    if distance > 60 { asm.pad(64 - distance) }
  }

  /// Whether a link from this block to `target` stays valid for as long as both blocks do.
  private func isLinkable(_ target: UInt64) -> Bool {
    guard optimisations.contains(.chain) else { return false }
    return !context.isPaged || target >> 12 == currentPC >> 12
  }

  func emitTerminator(_ terminator: IRTerminator) {
    // Everything is in its slot: all temporaries are free.
    switch terminator {
    case .direct(let target):
      if isLinkable(target) {
        keepDisplacementInLine(opcodeByteCount: 1)
        links.append(PendingLink(siteOffset: asm.jump(), stubOffset: 0, targetPC: target))
      } else {
        emitCrossPage(target)
      }
    case .indirect(let target, _, let kind):
      let register = use(target.index)
      if optimisations.contains(.jumpCache) {
        let scratch: X86Register = register == .rax ? .rcx : .rax
        var key = register
        if kind != 0 {
          key = register == .rdx ? .rcx : .rdx
          asm.moveKeepingFlags(key, immediate: StateHeader.jumpCacheTag(UInt32(kind)))
          asm.arithmetic(.xor, key, register)
        }
        let cache = StateHeader.jumpCache(context.jumpCacheContext) - StateHeader.bias
        // Entry (pc >> 1) & mask, 16 bytes each: eight times the masked PC.
        asm.move(scratch, key, wide: false)
        asm.arithmetic(
          .and, scratch, immediate: Int32((StateHeader.jumpCacheEntryCount - 1) << 1), wide: false)
        asm.arithmetic(.cmp, key, X86Memory(.rbp, Int32(cache), index: scratch, scale: 3))
        addStub(.indirectMiss(register, kind: kind, source: currentPC), asm.jump(.notEqual))
        asm.jump(X86Memory(.rbp, Int32(cache + 8), index: scratch, scale: 3))
      } else {
        emitIndirectMiss(register, kind, source: currentPC)
      }
    case .dispatch:
      asm.jump(to: thunks.dispatch)
    }
  }

  private func emitIndirectMiss(_ register: X86Register, _ kind: UInt8, source: UInt64) {
    asm.store(state(StateHeader.pc), register)
    if kind != 0 {
      asm.store(state(StateHeader.branchKind), immediate: Int32(kind), byteCount: 4)
      asm.moveKeepingFlags(.rax, immediate: source)
      asm.store(state(StateHeader.argument0), .rax)
    }
    asm.jump(to: thunks.dispatch)
  }

  private func emitCrossPage(_ target: UInt64) {
    guard optimisations.contains(.jumpCache) else {
      storePC(target)
      asm.jump(to: thunks.dispatch)
      return
    }
    let index = Int(target >> 1) & (StateHeader.jumpCacheEntryCount - 1)
    let entry =
      StateHeader.jumpCache(context.jumpCacheContext) + index * StateHeader.jumpCacheEntryByteCount
    if Int64(bitPattern: target) == Int64(Int32(truncatingIfNeeded: target)) {
      asm.arithmetic(.cmp, state(entry), immediate: Int32(truncatingIfNeeded: target))
    } else {
      asm.moveKeepingFlags(.rax, immediate: target)
      asm.arithmetic(.cmp, .rax, state(entry))
    }
    let miss = asm.jumpShort(.notEqual)
    asm.jump(state(entry + 8))
    asm.bindShort(miss)
    storePC(target)
    asm.jump(to: thunks.dispatch)
  }

  // MARK: Calls

  func emitCall(_ i: IRInstruction) {
    let helper = helpers[Int(i.immediate & 0xffff_ffff)]
    if helper.effects.contains(.writesState) { detachFromState() }
    for (operand, offset) in [
      (i.a, StateHeader.argument0), (i.b, StateHeader.argument1), (i.c, StateHeader.argument2),
    ] where operand != .max {
      if case .immediate(let immediate) = self.operand(operand) {
        asm.store(state(offset), immediate: immediate, byteCount: 8)
      } else {
        asm.store(state(offset), use(operand))
        locked = 0
      }
    }
    let scratch = takeTemporary()
    if helper.effects.contains(.readsPC) { storePC(currentPC, scratch: scratch) }
    let address = UInt64(UInt(bitPattern: unsafeBitCast(helper.function, to: Int.self)))
    asm.moveKeepingFlags(scratch, immediate: address)
    asm.store(state(StateHeader.result), scratch)
    asm.call(to: helper.effects.contains(.mayExit) ? thunks.helperMayExit : thunks.helper)
    // Pinned registers hold what the state holds; nothing is known of what that is after a writer.
    if helper.effects.contains(.writesState) {
      for (register, _) in pinnedIntegers { content[Int(register.rawValue)] = .max }
      for (register, _) in pinnedFloats { content[16 + Int(register.rawValue)] = .max }
      (clearAbove64, clearAbove32) = (0, 0)
    }
    if values[index].lastUse != 0 {
      let register = destination()
      asm.load(register, state(StateHeader.result))
    }
  }

  // MARK: Cold code

  func emitStubs() {
    for stub in stubs {
      asm.bind(stub.sites.0)
      if stub.sites.1 >= 0 { asm.bind(stub.sites.1) }
      switch stub.kind {
      case .exit(let pc):
        storePC(pc)
        asm.jump(to: thunks.dispatch)
      case .indirectMiss(let register, let kind, let source): emitIndirectMiss(register, kind, source: source)
      case .crossPage(let target):
        emitCrossPage(target)
      case .memory(let site, let address, let value, let result):
        emitMemoryStub(site, address, value, result)
        asm.jump(to: stub.resume)
      case .group(let site, let address, let offset, let pc):
        emitGroupStub(site, address, offset, pc, retry: stub.resume)
      case .defaultNaN(let register, let double):
        asm.load(register, state(double ? Self.defaultNaN64 : Self.defaultNaN32), double: double)
        asm.jump(to: stub.resume)
      case .fused(let site, let to, let a, let b, let c, let double):
        storeVectors([(a, StateHeader.argument0), (b, StateHeader.argument1), (c, StateHeader.result)])
        asm.store(state(StateHeader.argument2), immediate: Int32(site), byteCount: 4)
        asm.call(to: thunks.slowMemory)
        asm.load(to, state(StateHeader.result), double: double)
        asm.jump(to: stub.resume)
      case .vectorFloat(let site):
        asm.store(state(StateHeader.argument2), immediate: Int32(site), byteCount: 4)
        asm.call(to: thunks.slowMemory)
        asm.jump(to: stub.resume)
      case .setFloatFlags(let value):
        let scratch: X86Register = value == .rax ? .rcx : .rax
        asm.push(scratch)
        setFloatFlags(value, scratch: scratch)
        asm.pop(scratch)
        asm.jump(to: stub.resume)
      case .saturate(let register, let from, let double, let wide):
        emitSaturation(register, from, double: double, wide: wide)
        asm.jump(to: stub.resume)
      case .saturateUnsigned(let register, let from, let double):
        emitUnsignedSaturation(register, from, double: double)
        asm.jump(to: stub.resume)
      case .convert(let site, let register, let from):
        storeVectors([(from, StateHeader.argument0)])
        asm.store(state(StateHeader.argument2), immediate: Int32(site), byteCount: 4)
        asm.call(to: thunks.slowMemory)
        asm.load(register, state(StateHeader.result))
        asm.jump(to: stub.resume)
      case .minMax(let to, let a, let b, let double, let isMaximum):
        emitMinMaxStub(to, a, b, double: double, isMaximum: isMaximum)
        asm.jump(to: stub.resume)
      }
    }
    for number in links.indices {
      links[number].stubOffset = asm.offset
      asm.bind(links[number].siteOffset)
      // The link's number is not known yet: the block table fills it in.
      asm.push(immediate: 0)
      asm.jump(to: thunks.resolveLink)
    }
  }

  /// Offset of the link number inside a link stub: a 5-byte push ends with it.
  public static let linkNumberOffsetInStub = 1

  /// Calls a slow path: it finds its operands on the stack, the site last, and leaves a load's result there.
  private func emitMemoryStub(
    _ site: UInt32, _ address: X86Register, _ value: ColdStub.StubOperand, _ result: ColdStub.StubResult
  ) {
    asm.push(address)
    switch value {
    case .none: break
    case .register(let register): asm.push(register)
    case .constant(let value): asm.push(immediate: value)
    case .vector(let register, let double):
      asm.store(state(StateHeader.argument1), register, double: double)
    }
    asm.push(immediate: Int32(bitPattern: site))
    switch (value, result) {
    case (.register, _), (.constant, _): asm.call(to: thunks.slowStore)
    case (_, .register(let register)):
      asm.call(to: thunks.slowAccess)
      asm.pop(register)
    case (_, .vector(let register, let double)):
      asm.call(to: thunks.slowAccess)
      asm.load(register, X86Memory(.rsp), double: double)
      asm.loadAddress(.rsp, X86Memory(.rsp, 8))
    case (_, .none):
      asm.call(to: thunks.slowAccess)
      asm.loadAddress(.rsp, X86Memory(.rsp, 8))
    }
  }

  /// Puts operands where the slow path looks for them.
  func storeVectors(_ operands: [(X86Vector, Int)]) {
    for (register, offset) in operands { asm.store(state(offset), register, double: true) }
  }
}
