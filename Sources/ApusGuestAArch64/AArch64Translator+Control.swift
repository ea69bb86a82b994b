import ApusIR
import ApusISAAArch64

// Branches, exceptions, barriers and system registers [Arm ARM C4.1.93].

extension AArch64Translator {
  mutating func control(_ opcode: AArch64Opcode) {
    switch opcode {
    case .b, .bl:
      let target = pc &+ UInt64(bitPattern: signedBits(0, 26) << 2)
      storeFlags()
      if target <= pc { block.poll(pc: pc) }
      if opcode == .bl { setX(30, constant(pc &+ 4)) }
      finish(.direct(target: target))
    case .bCond:
      let target = pc &+ UInt64(bitPattern: signedBits(5, 19) << 2)
      let condition = bits(0, 4)
      guard condition < 14 else {
        storeFlags()
        if target <= pc { block.poll(pc: pc) }
        return finish(.direct(target: target))
      }
      branch(to: target) { $0.comparison(condition) }
    case .cbz, .cbnz:
      let target = pc &+ UInt64(bitPattern: signedBits(5, 19) << 2)
      let condition: IRCondition = opcode == .cbz ? .equal : .notEqual
      branch(to: target) { this in
        this.isWide
          ? Comparison(condition: condition, a: this.x(this.rd), b: this.constant(0))
          : Comparison(
            condition: condition, a: this.narrow(this.x(this.rd)), b: this.narrow(this.constant(0)),
            isNarrow: true)
      }
    case .tbz, .tbnz:
      let target = pc &+ UInt64(bitPattern: signedBits(5, 14) << 2)
      let bit = UInt64(bits(31, 1) << 5 | bits(19, 5))
      branch(to: target) { this in
        // The bit becomes the sign.
        let value = this.block.binary(.shl64, this.x(this.rd), this.constant(63 - bit))
        return Comparison(
          condition: opcode == .tbz ? .greaterOrEqualSigned : .lessSigned, a: value, b: this.constant(0))
      }
    case .br, .blr, .ret:
      storeFlags()
      block.poll(pc: pc)
      let target = x(rn)
      if opcode == .blr { setX(30, constant(pc &+ 4)) }
      finish(.indirect(target: target, hint: opcode == .ret ? .return : opcode == .blr ? .call : .jump))
    case .svc:
      call(.systemCall, constant(pc &+ 4))
      finish(.dispatch)
    case .brk:
      call(.raiseBreakpoint)
      finish(.dispatch)
    // nop, yield, wfe, wfi, sev; pointer authentication and branch targets where there are none
    case .hint: break
    case .clrex: block.set64(StateHeader.monitorAddress, constant(StateHeader.noAddress))
    case .barrier: block.fence()
    case .isb:
      storeFlags()
      finish(.direct(target: pc &+ 4))
    case .sys: system()
    case .mrs: readRegister()
    case .msr: writeRegister()
    default: preconditionFailure("not a control instruction")
    }
  }

  private mutating func branch(to target: UInt64, _ comparison: (inout Self) -> Comparison) {
    let isBackward = target <= pc
    if isBackward {
      storeFlags()
      block.poll(pc: pc)
    }
    let c = comparison(&self)
    exit(if: c, to: target)
    if isBackward || !block.optimisations.contains(.superblock) { finish(.direct(target: pc &+ 4)) }
  }

  // MARK: System instructions and registers

  /// op1, CRn, CRm, op2 in one number, as 3, 4, 4 and 3 bits.
  private var systemNumber: UInt32 { bits(5, 14) }
  private static func number(_ op1: UInt32, _ n: UInt32, _ m: UInt32, _ op2: UInt32) -> UInt32 {
    op1 << 11 | n << 7 | m << 3 | op2
  }

  private mutating func system() {
    switch systemNumber {
    case Self.number(3, 7, 5, 1):  // ic ivau
      call(.synchronizeInstructions, constant(pc &+ 4))
      finish(.dispatch)
    case Self.number(3, 7, 10, 1), Self.number(3, 7, 11, 1), Self.number(3, 7, 12, 1),
      Self.number(3, 7, 14, 1):
      break  // dc cvac, cvau, cvap, civac: caches are coherent
    default: undefined()
    }
  }

  private mutating func readRegister() {
    guard bits(20, 1) == 1 else { return undefined() }
    // op0 is 3: its lower bit is bit 19.
    guard bits(19, 1) == 1 else { return undefined() }
    switch systemNumber {
    case Self.number(3, 4, 2, 0): setX(rd, packedFlags())
    case Self.number(3, 4, 4, 0): setX(rd, block.get64(AArch64State.Field.fpcr.offset))
    case Self.number(3, 4, 4, 1): setX(rd, call(.readFPSR))
    case Self.number(3, 13, 0, 2): setX(rd, block.get64(AArch64State.Field.tpidr.offset))
    case Self.number(3, 13, 0, 3): setX(rd, block.get64(AArch64State.Field.tpidrro.offset))
    // CTR_EL0: lines of 64 bytes, PIPT; instruction caches need `ic ivau`.
    case Self.number(3, 0, 0, 1): setX(rd, constant(0x8444_c004))
    // DCZID_EL0: dc zva is prohibited.
    case Self.number(3, 0, 0, 7): setX(rd, constant(0x10))
    case Self.number(3, 14, 0, 0): setX(rd, constant(AArch64CPU.counterFrequency))
    case Self.number(3, 14, 0, 1), Self.number(3, 14, 0, 2): setX(rd, call(.readCounter))
    default: undefined()
    }
  }

  private mutating func writeRegister() {
    guard bits(20, 1) == 1, bits(19, 1) == 1 else { return undefined() }
    switch systemNumber {
    case Self.number(3, 4, 2, 0): setFlags(.packed(block.binary(.and64, x(rd), constant(0xf000_0000))))
    case Self.number(3, 4, 4, 0):
      call(.writeFPCR, x(rd), constant(pc &+ 4))
      finish(.dispatch)
    case Self.number(3, 4, 4, 1): call(.writeFPSR, x(rd))
    case Self.number(3, 13, 0, 2): block.set64(AArch64State.Field.tpidr.offset, x(rd))
    default: undefined()
    }
  }
}
