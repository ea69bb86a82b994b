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
      branchConditionally(to: target) { $0.comparison(condition) }
    case .cbz, .cbnz:
      let target = pc &+ UInt64(bitPattern: signedBits(5, 19) << 2)
      let condition: IRCondition = opcode == .cbz ? .equal : .notEqual
      branchConditionally(to: target) { this in
        this.isWide
          ? Comparison(condition: condition, a: this.x(this.rd), b: this.constant(0))
          : Comparison(
            condition: condition, a: this.narrow(this.x(this.rd)), b: this.narrow(this.constant(0)),
            isNarrow: true)
      }
    case .tbz, .tbnz:
      let target = pc &+ UInt64(bitPattern: signedBits(5, 14) << 2)
      let bit = UInt64(bits(31, 1) << 5 | bits(19, 5))
      branchConditionally(to: target) { this in
        if bit < 31 {
          let value = this.block.binary(.and64, this.x(this.rd), this.constant(1 << bit))
          return Comparison(condition: opcode == .tbz ? .equal : .notEqual, a: value, b: this.constant(0))
        }
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
      if opcode == .ret { return finish(.indirect(target: target, hint: .return)) }
      branchIndirectly(to: target, isCall: opcode == .blr)
    case .svc:
      call(.systemCall, constant(pc &+ 4), constant(UInt64(bits(5, 16))))
      finish(.dispatch)
    case .brk:
      call(.raiseBreakpoint, constant(UInt64(bits(5, 16))))
      finish(.dispatch)
    case .hlt:
      call(.semihosting, constant(pc &+ 4), constant(UInt64(bits(5, 16))))
      finish(.dispatch)
    case .hvc, .smc, .eret, .msrImmediate: systemControl(opcode)
    case .hint:
      if authenticationHint(bits(5, 7)) { break }
      if mode.isSystem, mode.checksTraps, [2, 3].contains(bits(5, 7)) { checkTrap() }
      if mode.level == 3, [2, 4, 5].contains(bits(5, 7)) { return event(bits(5, 7)) }
      // wfi. nop, yield, wfe and sev do nothing below EL3; neither do pointer authentication and branch targets, which are not there.
      guard bits(5, 7) == 3, mode.isSystem else { break }
      if mode.level == 0 { break }  // SCTLR_EL1.nTWI is taken to be 1
      call(.waitForInterrupt, constant(pc &+ 4))
      finish(.dispatch)
    case .clrex: block.set64(StateHeader.monitorAddress, constant(StateHeader.noAddress))
    case .barrier:
      block.fence()
      // dsb waits for the TLBs of other CPUs.
      if mode.isSystem, mode.level != 0, bits(5, 2) == 0 { call(.completeInvalidations, constant(pc &+ 4)) }
    case .isb:
      storeFlags()
      finish(.direct(target: pc &+ 4))
    case .sys: system()
    case .mrs: readRegister()
    case .msr: writeRegister()
    default: preconditionFailure("not a control instruction")
    }
  }

  /// wfe (2), sev (4) or sevl (5) at EL3.
  private mutating func event(_ number: UInt32) {
    call(number == 2 ? .waitForEvent : .sendEvent, constant(pc &+ 4))
    if number == 2 { finish(.dispatch) }
  }

  /// The end of an indirect branch that is no return.
  mutating func branchIndirectly(to target: IRValue, isCall: Bool) {
    var kind: AArch64CPU.BranchType?
    if features.contains(.bti), mode.isSystem || mode.checksBranchTargets {
      kind = isCall ? .call : rn == 16 || rn == 17 ? .jumpToCall : .jump
    }
    if let kind, mode.step == .active || mode.checksBreakPoints {
      call(.branch, target, constant(kind.rawValue))
      return finish(.dispatch)
    }
    finish(.indirect(target: target, hint: isCall ? .call : .jump, kind: UInt8(kind?.rawValue ?? 0)))
  }

  private mutating func branchConditionally(to target: UInt64, _ comparison: (inout Self) -> Comparison) {
    if mode.step == .active {
      let c = comparison(&self)
      let holds = block.binary(
        c.isNarrow ? .compare32 : .compare64, c.a, c.b, immediate: Int64(c.condition.rawValue))
      let next = block.ternary(.select64, holds, constant(target), constant(pc &+ 4))
      return finish(.indirect(target: next, hint: .jump))
    }
    let isBackward = target <= pc
    if isBackward {
      storeFlags()
      if polledBranch != pc { block.poll(pc: pc) }
    }
    let c = comparison(&self)
    exit(if: c, to: target)
    if isBackward || !block.optimisations.contains(.superblock) { finish(.direct(target: pc &+ 4)) }
  }
}
