import ApusIR
import ApusISARISCV

extension RISCVTranslator {
  mutating func system() {
    let word = block.const64(UInt64(instruction.word))
    switch instruction.opcode {
    case .ecall: call(.environmentCall, block.const64(nextPC))
    case .ebreak: call(.raiseBreakpoint)
    case .fenceI: call(.fenceI, block.const64(nextPC))
    case .sret: call(.supervisorReturn, word)
    case .mret: call(.machineReturn, word)
    case .wfi, .wrsNto, .wrsSto:
      // A reservation may be lost at any time, so that a short wait is a valid one [RV-Unpriv 15].
      if instruction.opcode != .wfi { return }
      call(.waitForInterrupt, word, block.const64(nextPC))
    case .sfenceVma, .sinvalVma:
      call(.fenceVMA, word, block.const64(nextPC))
    case .sfenceWInval, .sfenceInvalIr:
      // sinval.vma is carried out at once: nothing is left to order. They need S-mode all the same.
      if mode.privilege == 0 { illegal() }
      return
    default: preconditionFailure("not a system instruction")
    }
    finish(.dispatch)
  }

  /// Cache-block management [RV-CMO]. The guest's caches are always coherent, so that only permission checks,
  /// faults and zeroing are left.
  mutating func cacheBlock() {
    call(.cacheBlock, block.const64(UInt64(instruction.word)), rs1)
  }

  // MARK: CSRs

  mutating func controlRegister() {
    let number = UInt16(instruction.immediate)
    let isImmediate = instruction.format == .csri
    let opcode = instruction.opcode
    let isReplace = opcode == .csrrw || opcode == .csrrwi
    // csrrs and csrrc with x0 or 0 do not write [RV-Unpriv 7.1].
    let isWrite = isReplace || instruction.rs1 != 0
    let value = isImmediate ? block.const64(UInt64(instruction.rs1)) : rs1
    if number == RISCVCSR.fflags.rawValue || (number == RISCVCSR.fcsr.rawValue && !isWrite) {
      return floatFlags(number, isReplace, isWrite, value)
    }
    if inlineCSR(number, isReplace, isWrite, value) { return }
    if !isWrite {
      setRD(call(.readCSR, block.const64(UInt64(number)), block.const64(UInt64(instruction.word))))
      return
    }
    call(.writeCSR, block.const64(UInt64(instruction.word)), value, block.const64(nextPC))
    finish(.dispatch)
  }

  /// fflags, and reads of fcsr, whose rounding mode is part of the CPU mode.
  private mutating func floatFlags(_ number: UInt16, _ isReplace: Bool, _ isWrite: Bool, _ value: IRValue) {
    guard requireFloat() else { return }
    if isWrite, mode.floatState == 1 {
      call(.setFloatDirty)
      return finish(.dispatch)
    }
    let old = block.getFloatFlags()
    if isWrite {
      let isSet = instruction.opcode == .csrrs || instruction.opcode == .csrrsi
      block.setFloatFlags(isReplace ? value : block.binary(isSet ? .or64 : .andNot64, old, value))
    }
    let isWhole = number == RISCVCSR.fcsr.rawValue
    setRD(isWhole ? block.binary(.or64, old, block.const64(UInt64(mode.frm) << 5)) : old)
  }

  /// CSRs without side effects are plain state. Returns false where the helper must do it.
  private mutating func inlineCSR(_ number: UInt16, _ isReplace: Bool, _ isWrite: Bool, _ value: IRValue)
    -> Bool
  {
    guard !mode.isUserEmulation, let csr = RISCVCSR(rawValue: number),
      mode.privilege >= UInt32(number >> 8 & 3)
    else { return false }
    let field: RISCVState.Field
    var mask = UInt64.max
    switch csr {
    case .sscratch: field = .sscratch
    case .mscratch: field = .mscratch
    case .scause: field = .scause
    case .stval: field = .stval
    case .mcause: field = .mcause
    case .mtval: field = .mtval
    case .sepc: (field, mask) = (.sepc, ~1)
    case .mepc: (field, mask) = (.mepc, ~1)
    case .sstatus: return inlineStatus(isReplace, isWrite, value)
    default: return false
    }
    let old = block.get64(field.offset)
    if isWrite {
      let new: IRValue
      if isReplace {
        new = value
      } else if instruction.opcode == .csrrs || instruction.opcode == .csrrsi {
        new = block.binary(.or64, old, value)
      } else {
        new = block.binary(.andNot64, old, value)
      }
      // rd may be rs1: the old value is read before, the new one computed before rd is written.
      let masked = mask == .max ? new : block.binary(.and64, new, block.const64(mask))
      block.set64(field.offset, masked)
    }
    setRD(old)
    return true
  }

  /// sstatus reads, and setting or clearing SIE alone, which kernels do all the time.
  private mutating func inlineStatus(_ isReplace: Bool, _ isWrite: Bool, _ value: IRValue) -> Bool {
    if isReplace { return false }
    if isWrite, block.constant(value) != MStatus.sie { return false }
    let status = block.get64(RISCVState.Field.mstatus.offset)
    let visible = block.binary(.and64, status, block.const64(MStatus.supervisorVisible))
    if !isWrite {
      setRD(visible)
      return true
    }
    let sie = block.const64(MStatus.sie)
    if instruction.opcode == .csrrc || instruction.opcode == .csrrci {
      block.set64(RISCVState.Field.mstatus.offset, block.binary(.andNot64, status, sie))
      setRD(visible)
      return true
    }
    block.set64(RISCVState.Field.mstatus.offset, block.binary(.or64, status, sie))
    setRD(visible)
    // An interrupt that became pending meanwhile is taken before the next instruction.
    let pending = block.binary(
      .and64, volatileGet(.mip), volatileGet(.mie))
    let flag = block.compare(.notEqual, pending, block.const64(0))
    let request = block.binary(.shl64, flag, block.const64(1))
    block.set32(StateHeader.pendingExit, block.unary(.truncate32, request))
    block.poll(pc: nextPC)
    return true
  }

  /// Reads state that other threads write: never forwarded.
  private func volatileGet(_ field: RISCVState.Field) -> IRValue { block.getVolatile64(field.offset) }
}
