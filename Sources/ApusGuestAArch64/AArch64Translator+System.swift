import ApusIR
import ApusISAAArch64

// System instructions and registers [Arm ARM C4.1.93, D19].

extension AArch64Translator {
  private var key: AArch64SystemKey { .init(rawValue: UInt16(bits(5, 16))) }

  /// A control register may trap the instruction at hand.
  mutating func checkTrap() { call(.checkTrap, constant(UInt64(word))) }
  /// The same for what EL0 has by default: blocks of a mode that asks.
  mutating func checkTrapIfNeeded() { if mode.checksTraps { checkTrap() } }
  /// Before an access to a register that is there. EL0's rare ones are always looked at.
  private mutating func checkRegisterTrap(_ key: AArch64SystemKey) {
    let isRare = mode.level == 0 && (key.op1 == 4 || key.op1 == 3 && [4, 9, 14].contains(key.n))
    // SCR_EL3 keeps the interrupt controller and the secure timer from levels below it.
    let isOfMonitor = monitor != .none && mode.level < 3 && (key.isInterruptInterface || key.isSecureTimer)
    if mode.isSystem, mode.checksTraps || isRare && key != .init(3, 3, 14, 0, 2) || isOfMonitor {
      checkTrap()
    }
  }
  private var nextPC: IRValue { constant(pc &+ 4) }

  mutating func systemControl(_ opcode: AArch64Opcode) {
    if opcode == .msrImmediate, bits(16, 3) == 3 {
      // ssbs and dit, which processes may set, too
      switch bits(5, 3) {
      case 1 where features.contains(.ssbs2): return setStatus(12, constant(UInt64(bits(8, 4) & 1) << 12))
      case 2 where features.contains(.dit): return setStatus(24, constant(UInt64(bits(8, 4) & 1) << 24))
      // tco: there are no checks that it could switch off.
      case 4 where features.contains(.mte): return
      default: break
      }
    }
    // EL0 may have the interrupt masks.
    if opcode == .msrImmediate, mode.isSystem, mode.level == 0, bits(16, 3) == 3, bits(5, 3) >= 6 {
      checkTrap()
      return writeImmediate()
    }
    guard mode.isSystem, mode.level != 0 else { return undefined() }
    switch opcode {
    case .hvc where hasHypervisor:
      call(.hypervisorCall, nextPC, constant(UInt64(bits(5, 16))))
      finish(.dispatch)
    case .smc where monitor == .guest || monitor == .firmware && !hasHypervisor:
      if mode.checksTraps { checkTrap() }
      call(.monitorCall, nextPC, constant(UInt64(bits(5, 16))))
      finish(.dispatch)
    case .smc where !hasHypervisor: undefined()
    // The firmware answers hvc in place of EL2, and smc in place of EL3.
    case .hvc, .smc:
      if mode.checksTraps, opcode == .smc { checkTrap() }
      call(.firmwareCall, nextPC)
      finish(.dispatch)
    case .eret:
      call(.exceptionReturn)
      finish(.dispatch)
    default: writeImmediate()
    }
  }

  /// msr daifset, daifclr, spsel, pan.
  private mutating func writeImmediate() {
    let value = UInt64(bits(8, 4))
    switch (bits(16, 3), bits(5, 3)) {
    case (3, 6): setInterruptMask(block.binary(.or64, interruptMask, constant(value << 6)), mayUnmask: false)
    case (3, 7):
      setInterruptMask(block.binary(.andNot64, interruptMask, constant(value << 6)), mayUnmask: true)
    case (0, 5): writeSpecial(.init(3, 0, 4, 2, 0), constant(value & 1))
    case (0, 4) where features.hasPAN: writeSpecial(.init(3, 0, 4, 2, 3), constant((value & 1) << 22))
    case (0, 3) where features.hasPAN: writeSpecial(.init(3, 0, 4, 2, 4), constant((value & 1) << 23))
    default: undefined()
    }
  }

  // MARK: DAIF

  private var interruptMask: IRValue { block.get64(AArch64SystemSlot.daif.offset) }

  private mutating func setInterruptMask(_ value: IRValue, mayUnmask: Bool) {
    // D decides about debug exceptions at this level.
    if mode.hasKernelDebug { return writeSpecial(.init(3, 3, 4, 2, 1), value) }
    block.set64(AArch64SystemSlot.daif.offset, value)
    guard mayUnmask else { return }
    storeFlags()
    // An interrupt that is there already is taken before the next instruction.
    let lines = block.getVolatile64(AArch64SystemSlot.interruptLines.offset)
    let flag = block.compare(.notEqual, lines, constant(0))
    block.set32(StateHeader.pendingExit, block.unary(.truncate32, block.binary(.shl64, flag, constant(1))))
    block.poll(pc: pc &+ 4)
  }

  // MARK: Registers

  mutating func readRegister() {
    guard let key = key.resolved(level: mode.level, host: mode.isHost) else { return undefined() }
    if isUserRegister {
      if mode.isSystem { checkUserRegister() }
      if let value = userRegister() { return setX(rd, value) }
    }
    // Linux shows what identifies the CPU to processes (HWCAP_CPUID).
    if !mode.isSystem, key.op0 == 3, key.op1 == 0, key.n == 0,
      (4...7).contains(key.m) || key.m == 0 && [0, 5, 6].contains(key.op2)
    {
      return setX(rd, call(.readSystem, constant(UInt64(key.rawValue))))
    }
    guard mode.isSystem, let register = AArch64SystemRegister.named(key, features),
      mode.level >= register.reader
    else {
      // What identifies the CPU is trapped since Armv8.4.
      if mode.isSystem, mode.level == 0, features.hasRangeInvalidation, key.op0 == 3, key.n == 0, key.op1 < 3
      {
        checkTrap()
      }
      return undefined()
    }
    checkRegisterTrap(key)
    switch register.kind {
    case .slot(let slot, _), .guarded(let slot, _): setX(rd, block.get64(slot.offset))
    case .zero: setX(rd, constant(0))
    case .special:
      switch key {
      case .init(3, 3, 4, 2, 1): setX(rd, interruptMask)
      case .init(3, 0, 4, 2, 2): setX(rd, constant(UInt64(mode.level) << 2))
      default: setX(rd, call(.readSystem, constant(UInt64(key.rawValue))))
      }
    }
  }

  mutating func writeRegister() {
    guard let key = key.resolved(level: mode.level, host: mode.isHost) else { return undefined() }
    if writeUserRegister() { return }
    guard mode.isSystem, let register = AArch64SystemRegister.named(key, features),
      mode.level >= register.writer
    else {
      return undefined()
    }
    checkRegisterTrap(key)
    switch register.kind {
    case .slot(let slot, let writable):
      // EL3 finds EL2's registers fixed where there is no EL2.
      if register.writer == 2, !hasHypervisor, slot != .spEL1 { break }
      block.set64(
        slot.offset, writable == .max ? x(rd) : block.binary(.and64, x(rd), constant(writable)))
    case .zero: break
    case .guarded: writeSpecial(key, x(rd))
    case .special:
      if key == .init(3, 3, 4, 2, 1) {
        setInterruptMask(block.binary(.and64, x(rd), constant(0x3c0)), mayUnmask: true)
      } else {
        writeSpecial(key, x(rd))
      }
    }
  }

  private mutating func writeSpecial(_ key: AArch64SystemKey, _ value: IRValue) {
    call(.writeSystem, constant(UInt64(key.rawValue)), value, nextPC)
    finish(.dispatch)
  }

  /// Whether the key may be one that `userRegister` knows.
  private var isUserRegister: Bool { key.op0 == 3 && key.op1 == 3 }
  /// CTR and the counters can be kept from EL0, and from EL1.
  private mutating func checkUserRegister() {
    switch key {
    case .init(3, 3, 14, 0, 0), .init(3, 3, 14, 0, 1): if mode.level == 0 || mode.checksTraps { checkTrap() }
    case .init(3, 3, 0, 0, 1), .init(3, 3, 14, 0, 2): checkTrapIfNeeded()
    default: break
    }
  }

  /// A register that EL0 may read.
  private mutating func userRegister() -> IRValue? {
    switch key {
    case .init(3, 3, 4, 2, 0): return conditionBits()
    case .init(3, 3, 4, 4, 0): return block.get64(AArch64State.Field.fpcr.offset)
    case .init(3, 3, 4, 4, 1): return call(.readFPSR)
    case .init(3, 3, 13, 0, 2): return block.get64(AArch64State.Field.tpidr.offset)
    case .init(3, 3, 13, 0, 3): return block.get64(AArch64State.Field.tpidrro.offset)
    // CTR_EL0: lines of 64 bytes, PIPT; instruction caches need `ic ivau`.
    case .init(3, 3, 0, 0, 1): return constant(0x8444_c004)
    // DCZID_EL0: dc zva clears 64 bytes.
    case .init(3, 3, 0, 0, 7): return constant(4)
    case .init(3, 3, 14, 0, 0): return constant(AArch64CPU.counterFrequency)
    case .init(3, 3, 14, 0, 1), .init(3, 3, 14, 0, 2):
      return call(.readCounter, constant(UInt64(key.op2 >> 1)))
    case .init(3, 3, 4, 2, 5) where features.contains(.dit): return status(24)
    case .init(3, 3, 4, 2, 6) where features.contains(.ssbs2): return status(12)
    case .init(3, 3, 4, 2, 7) where features.contains(.mte): return constant(0)  // TCO
    case .init(3, 3, 2, 4, 0) where features.contains(.rng),
      .init(3, 3, 2, 4, 1) where features.contains(.rng):
      let value = call(.randomNumber)
      setFlags(.packed(constant(0)))
      return value
    default: return nil
    }
  }

  /// A bit of PSTATE that is kept in `statusBits`.
  private func status(_ bit: UInt64) -> IRValue {
    block.binary(.and64, block.get64(AArch64SystemSlot.statusBits.offset), constant(1 << bit))
  }
  private func setStatus(_ bit: UInt64, _ value: IRValue) {
    let slot = AArch64SystemSlot.statusBits.offset
    let kept = block.binary(.and64, block.get64(slot), constant(~(1 << bit)))
    block.set64(slot, block.binary(.or64, kept, block.binary(.and64, value, constant(1 << bit))))
  }

  private mutating func writeUserRegister() -> Bool {
    switch key {
    case .init(3, 3, 4, 2, 0): setConditionBits(x(rd))
    case .init(3, 3, 4, 4, 0):
      call(.writeFPCR, x(rd), nextPC)
      finish(.dispatch)
    case .init(3, 3, 4, 4, 1): call(.writeFPSR, x(rd))
    case .init(3, 3, 13, 0, 2): block.set64(AArch64State.Field.tpidr.offset, x(rd))
    case .init(3, 3, 13, 0, 3) where mode.level != 0: block.set64(AArch64State.Field.tpidrro.offset, x(rd))
    // CNTFRQ_EL0 belongs to the highest level, which sets what it is.
    case .init(3, 3, 14, 0, 0) where mode.level == (monitor != .none ? 3 : hasHypervisor ? 2 : 1): break
    case .init(3, 3, 4, 2, 5) where features.contains(.dit): setStatus(24, x(rd))
    case .init(3, 3, 4, 2, 6) where features.contains(.ssbs2): setStatus(12, x(rd))
    case .init(3, 3, 4, 2, 7) where features.contains(.mte): break
    default: return false
    }
    return true
  }

  // MARK: Caches, TLBs and address translation

  mutating func system() {
    if mode.isSystem { checkTrapIfNeeded() }
    switch (key.op1, key.n, key.m, key.op2) {
    case (3, 7, 5, 1): synchronizeInstructions()  // ic ivau
    case (3, 7, 10, 1), (3, 7, 11, 1), (3, 7, 14, 1): break  // dc cvac, cvau, civac: caches are coherent
    case (3, 7, 12, 1) where features.contains(.dpb), (3, 7, 13, 1) where features.contains(.dpb2):
      break  // dc cvap, cvadp
    case (3, 7, 4, 1): clearLine()
    case (3, 7, 4, 3) where features.contains(.mte): break  // dc gva: tags alone
    case (3, 7, 4, 4) where features.contains(.mte): clearLine()  // dc gzva
    case (3, 7, 10, 3), (3, 7, 10, 5), (3, 7, 12, 3), (3, 7, 12, 5), (3, 7, 13, 3), (3, 7, 13, 5),
      (3, 7, 14, 3), (3, 7, 14, 5):
      guard features.contains(.mte) else { return undefined() }  // dc cgvac and its like
    case _ where !mode.isSystem || mode.level == 0: undefined()
    case (0, 7, 1, 0), (0, 7, 5, 0): synchronizeInstructions()  // ic ialluis, iallu
    case (0, 7, 6, 1), (0, 7, 6, 2), (0, 7, 10, 2), (0, 7, 14, 2): break  // dc ivac, isw, csw, cisw
    case (0, 7, 8, 0...3): translateAddress()  // at s1e1r, s1e1w, s1e0r, s1e0w
    case (0, 7, 9, 0...1) where features.hasPAN: translateAddress()  // at s1e1rp, s1e1wp
    // at s1e2r, s1e2w; s12e1r to s12e0w; s1e3r, s1e3w
    case (4, 7, 8, 0...1) where mode.level >= 2 && hasHypervisor, (4, 7, 8, 4...7) where mode.level >= 2,
      (6, 7, 8, 0...1) where mode.level == 3:
      translateAddress()
    case _ where key.n == 8 && isInvalidation:
      call(.invalidateTLB, constant(UInt64(key.rawValue)), x(rd), nextPC)
      finish(.dispatch)
    default: undefined()
    }
  }

  private mutating func translateAddress() {
    call(.translateAddress, constant(UInt64(key.rawValue)), x(rd), nextPC)
    finish(.dispatch)
  }

  /// Whether the key is a tlbi that is there.
  private var isInvalidation: Bool {
    guard key.op1 == 0 || key.op1 == 4 && mode.level >= 2 || key.op1 == 6 && mode.level == 3 else {
      return false
    }
    // What is of EL2 alone.
    if key.op1 == 4, !hasHypervisor, ![0, 4].contains(key.m), ![4, 6].contains(key.op2) { return false }
    let later = features.hasRangeInvalidation
    switch key.m {
    // Stage 2's: by inner shareable domain; this CPU's and the outer domain's.
    case 0 where key.op1 == 4: return [1, 5].contains(key.op2) || later && [2, 6].contains(key.op2)
    case 4 where key.op1 == 4: return [1, 5].contains(key.op2) || later
    case 3, 7: break
    case 1: if !later { return false }
    // Ranges.
    case 2, 5, 6: return later && (key.op1 == 0 ? key.op2 & 1 != 0 : key.op2 & 3 == 1)
    default: return false
    }
    if key.op1 == 6 { return [0, 1, 5].contains(key.op2) }
    return key.op1 == 0 ? ![4, 6].contains(key.op2) : [0, 1, 4, 5, 6].contains(key.op2)
  }

  private mutating func synchronizeInstructions() {
    call(.synchronizeInstructions, nextPC)
    finish(.dispatch)
  }

  /// dc zva: 64 bytes.
  private mutating func clearLine() {
    storeFlags()
    let base = block.binary(.and64, x(rd), constant(~63))
    let zero = constant(0)
    for offset in stride(from: 0, to: 64, by: 8) { block.store(.store64, base, zero, memory(Int64(offset))) }
  }
}
