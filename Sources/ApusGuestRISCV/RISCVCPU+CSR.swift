import ApusGuest
import ApusHost
import ApusIR
import ApusISARISCV
import CApusHost

// Control and status registers [RV-Priv 1.12 ch. 2-4].

extension RISCVCPU {
  /// Interrupts that can be delegated: the supervisor's.
  private static let supervisorInterrupts: UInt64 = 1 << 1 | 1 << 5 | 1 << 9
  private static let machineInterrupts: UInt64 = 1 << 3 | 1 << 7 | 1 << 11
  private static let delegatableExceptions: UInt64 = 0xb3ff & ~(1 << 11)
  private static let externalInterrupt: UInt64 = 1 << 9
  private static let environmentMask: UInt64 = 1 | 0xf << 4

  /// csrrw, csrrs, csrrc and their immediate forms, where they write.
  func executeCSR(word: UInt64, value: UInt64, nextPC: UInt64) {
    let number = UInt16(word >> 20)
    let rd = Int(word >> 7 & 31)
    let isReplace = word >> 12 & 3 == 1
    // csrrw with rd = x0 does not read.
    guard let old = readCSR(number, forWrite: true, isRead: !(isReplace && rd == 0)) else {
      return trap(RISCVCause.illegalInstruction, value: word, pc: s.pc)
    }
    let new: UInt64
    let changed: UInt64
    switch word >> 12 & 3 {
    case 1: (new, changed) = (value, .max)
    case 2: (new, changed) = (old | value, value)
    default: (new, changed) = (old & ~value, value)
    }
    guard writeCSR(number, new, changed: changed) else {
      return trap(RISCVCause.illegalInstruction, value: word, pc: s.pc)
    }
    if rd != 0 { s[x: rd] = old }
    s.pc = nextPC
    s.requestDispatch()
  }

  /// The CSR's value, or `nil` if the hart in its present state may not access it.
  func readCSR(_ number: UInt16, forWrite: Bool, isRead: Bool = true) -> UInt64? {
    if userHooks == nil, privilege < UInt64(number >> 8 & 3) { return nil }
    if forWrite, number >> 10 == 3 { return nil }
    switch number {
    case 0xb03...0xb1f, 0x323...0x33f: return 0  // mhpmcounter, mhpmevent
    case 0xc03...0xc1f: return isCounterAllowed(Int(number & 31)) ? 0 : nil
    case 0x3a0...0x3af where !hasPMP, 0x3b0...0x3bf where !hasPMP: return nil
    case 0x3a0: return s[.pmpcfg0]
    case 0x3a2: return s[.pmpcfg2]
    case 0x3b0...0x3bf: return readPMPAddress(Int(number & 15))
    default: break
    }
    guard let csr = RISCVCSR(rawValue: number) else { return nil }
    if userHooks != nil {
      switch csr {
      case .fflags, .frm, .fcsr, .cycle, .time, .instret: break
      default: return nil
      }
    }
    switch csr {
    case .fflags: return isFloatOn ? s.floatFlags : nil
    case .frm: return isFloatOn ? s[.frm] : nil
    case .fcsr: return isFloatOn ? s.floatFlags | s[.frm] << 5 : nil
    case .cycle: return isCounterAllowed(0) ? cycles(.cycleOffset) : nil
    case .time: return isCounterAllowed(1) ? time() : nil
    case .instret: return isCounterAllowed(2) ? cycles(.instretOffset) : nil
    case .sstatus: return s[.mstatus] & MStatus.supervisorVisible
    case .sie: return s[.mie] & s[.mideleg]
    case .stvec: return s[.stvec]
    case .scounteren: return s[.scounteren]
    case .senvcfg: return s[.senvcfg]
    case .sscratch: return s[.sscratch]
    case .sepc: return s[.sepc]
    case .scause: return s[.scause]
    case .stval: return s[.stval]
    case .sip: return s[.mip] & s[.mideleg]
    case .stimecmp:
      guard extensions.contains(.sstc) else { return nil }
      if privilege < 3, !hasSupervisorTimer || s[.mcounteren] & 2 == 0 { return nil }
      return s[.stimecmp]
    case .satp:
      if privilege == 1, s[.mstatus] & MStatus.tvm != 0 { return nil }
      return s[.satp]
    case .mvendorid, .mimpid, .mconfigptr: return 0
    case .marchid: return 0
    case .mhartid: return UInt64(hartID)
    case .mstatus: return s[.mstatus]
    case .misa: return misa
    case .medeleg: return s[.medeleg]
    case .mideleg: return s[.mideleg]
    case .mie: return s[.mie]
    case .mtvec: return s[.mtvec]
    case .mcounteren: return s[.mcounteren]
    case .menvcfg: return s[.menvcfg]
    case .mcountinhibit: return s[.mcountinhibit]
    case .mscratch: return s[.mscratch]
    case .mepc: return s[.mepc]
    case .mcause: return s[.mcause]
    case .mtval: return s[.mtval]
    case .mip: return s[.mip]
    case .mcycle: return cycles(.cycleOffset)
    case .minstret: return cycles(.instretOffset)
    // No debug triggers: selector 0 has type 0 [RISC-V Debug 1.0 §5.7].
    case .tselect, .tdata1, .tdata2, .tdata3: return 0
    case .mseccfg: return nil
    }
  }

  /// Writes a CSR that `readCSR` allowed. False for a write that the hart refuses.
  ///
  /// - Parameter changed: the bits that the instruction writes; the others of `value` are what was read before.
  private func writeCSR(_ number: UInt16, _ value: UInt64, changed: UInt64) -> Bool {
    switch number {
    case 0xb03...0xb1f, 0x323...0x33f: return true
    case 0x3a0: writePMPConfiguration(.pmpcfg0, 0, value)
    case 0x3a2: writePMPConfiguration(.pmpcfg2, 8, value)
    case 0x3b0...0x3bf: writePMPAddress(Int(number & 15), value)
    default: break
    }
    guard let csr = RISCVCSR(rawValue: number) else { return true }
    switch csr {
    case .fflags:
      s.floatFlags = value
      setFloatDirty()
    case .frm:
      s[.frm] = value & 7
      setFloatDirty()
    case .fcsr:
      s.floatFlags = value
      s[.frm] = value >> 5 & 7
      setFloatDirty()
    case .sstatus:
      writeStatus(s[.mstatus] & ~MStatus.supervisorWritable | value & MStatus.supervisorWritable)
    case .mstatus: writeStatus(s[.mstatus] & ~MStatus.writable | value & MStatus.writable)
    case .sie:
      s[.mie] = s[.mie] & ~s[.mideleg] | value & s[.mideleg]
      engine.requestInterruptCheck()
    case .mie:
      s[.mie] = value & (Self.supervisorInterrupts | Self.machineInterrupts)
      engine.requestInterruptCheck()
    case .sip: writePending(value, mask: s[.mideleg] & 2 & changed)
    case .mip: writePending(value, mask: (2 | 1 << 9 | (hasSupervisorTimer ? 0 : 1 << 5)) & changed)
    case .stvec: s[.stvec] = value & ~2
    case .mtvec: s[.mtvec] = value & ~2
    case .scounteren: s[.scounteren] = value & 0xffff_ffff
    case .mcounteren: s[.mcounteren] = value & 0xffff_ffff
    case .senvcfg: s[.senvcfg] = value & Self.environmentMask
    case .menvcfg:
      var mask = Self.environmentMask
      if extensions.contains(.sstc) { mask |= 1 << 63 }
      if extensions.contains(.svpbmt) { mask |= 1 << 62 }
      if extensions.contains(.svadu) { mask |= 1 << 61 }
      s[.menvcfg] = value & mask
      rearmTimer()
      engine.flushTLB(page: nil, keepGlobal: false, contexts: Self.contexts)
    case .mcountinhibit: s[.mcountinhibit] = value & 5
    case .sscratch: s[.sscratch] = value
    case .mscratch: s[.mscratch] = value
    case .sepc: s[.sepc] = value & ~1
    case .mepc: s[.mepc] = value & ~1
    case .scause: s[.scause] = value
    case .mcause: s[.mcause] = value
    case .stval: s[.stval] = value
    case .mtval: s[.mtval] = value
    case .stimecmp: writeTimerCompare(value)
    case .satp: writeAddressTranslation(value)
    case .medeleg: s[.medeleg] = value & Self.delegatableExceptions
    case .mideleg: s[.mideleg] = value & Self.supervisorInterrupts
    case .tselect, .tdata1, .tdata2, .tdata3: break
    case .misa: break  // extensions cannot be switched at run time
    case .mcycle: s[.cycleOffset] = value &- ticks()
    case .minstret: s[.instretOffset] = value &- ticks()
    case .cycle, .time, .instret, .mvendorid, .marchid, .mimpid, .mhartid, .mconfigptr, .mseccfg:
      return false
    }
    return true
  }

  // MARK: Status

  private var isFloatOn: Bool { s[.mstatus] & MStatus.fs != 0 }
  private func setFloatDirty() {
    s[.mstatus] |= MStatus.fs | MStatus.sd
    updateMode()
  }

  private func writeStatus(_ value: UInt64) {
    let old = s[.mstatus]
    var new = value & ~MStatus.sd
    if new & MStatus.fs == MStatus.fs { new |= MStatus.sd }
    if new & MStatus.mpp == 2 << 11 { new = new & ~MStatus.mpp | old & MStatus.mpp }  // 2 is reserved
    s[.mstatus] = new
    if (old ^ new) & MStatus.mxr != 0 {
      engine.flushTLB(page: nil, keepGlobal: false, contexts: Self.contexts)
    }
    updateMode()
    engine.requestInterruptCheck()
  }

  /// Sets the bits of mip in `mask` to those of `value`. Devices change other bits at the same time.
  private func writePending(_ value: UInt64, mask: UInt64) {
    let mip = state + RISCVState.Field.mip.offset
    _ = apus_fetch_or64(mip, value & mask)
    // SEIP is software's bit or the interrupt controller's [RV-Priv 1.12 §3.1.9]: only what software set goes.
    let clears = ~value & mask & ~(Self.externalInterrupt & ~softwarePending)
    softwarePending = (softwarePending & ~mask | value & mask) & Self.externalInterrupt
    if clears != 0 { _ = apus_fetch_and64(mip, ~clears) }
    engine.requestInterruptCheck()
  }

  /// satp: an unsupported mode leaves it as it is [RV-Priv 1.12 §4.1.11].
  private func writeAddressTranslation(_ value: UInt64) {
    switch value >> 60 {
    case 0: break
    case 8 where translationLevels >= 3: break
    case 9 where translationLevels >= 4: break
    case 10 where translationLevels >= 5: break
    default: return
    }
    if s[.satp] == value { return }
    s[.satp] = value
    engine.addressSpaceChanged(
      GuestAddressSpace(identifier: UInt32(value >> 44 & 0xffff | (value >> 60) << 16)),
      contexts: Self.pagedContexts)
  }

  private var misa: UInt64 {
    var value: UInt64 = 2 << 62
    let letters: [(RISCVExtension, UInt64)] = [
      (.a, 0), (.c, 2), (.d, 3), (.f, 5), (.i, 8), (.m, 12), (.s, 18), (.u, 20),
    ]
    for (one, bit) in letters where extensions.contains(one) { value |= 1 << bit }
    return value
  }

  // MARK: Counters

  private func isCounterAllowed(_ index: Int) -> Bool {
    if userHooks != nil { return true }
    let bit = UInt64(1) << UInt64(index)
    if privilege < 3, s[.mcounteren] & bit == 0 { return false }
    return privilege > 0 || s[.scounteren] & bit != 0
  }
  /// Cycles and retired instructions are not counted one by one: both advance with the host's clock, 1 GHz.
  private func ticks() -> UInt64 { clock.nowNanoseconds() }
  private func cycles(_ offset: RISCVState.Field) -> UInt64 { ticks() &+ s[offset] }

  // MARK: Physical memory protection

  private func readPMPAddress(_ index: Int) -> UInt64 {
    let value = pmpAddress(index)
    // With a grain above 4 bytes the low bits read as ones (NAPOT) or zeros [RV-Priv 1.12 §3.7.1].
    return pmpConfiguration(index) >> 4 & 1 != 0
      ? value | (1 << (Self.pmpGrain - 1) - 1) : value & ~(1 << Self.pmpGrain - 1)
  }

  private func writePMPAddress(_ index: Int, _ value: UInt64) {
    if pmpConfiguration(index) & 0x80 != 0 { return }
    // The lower bound of a locked top-of-range entry is locked too.
    if index < 15, pmpConfiguration(index + 1) & 0x98 == 0x88 { return }
    state.storeBytes(
      of: value & ((1 << 54) - 1), toByteOffset: RISCVState.Field.pmpaddr0.offset + index * 8, as: UInt64.self
    )
    pmpRange = PMPRange()
    engine.flushTLB(page: nil, keepGlobal: false, contexts: Self.contexts)
  }

  private func writePMPConfiguration(_ field: RISCVState.Field, _ first: Int, _ value: UInt64) {
    var result = s[field]
    for index in 0..<8 {
      let shift = UInt64(8 * index)
      if result >> shift & 0x80 != 0 { continue }
      var new = value >> shift & 0x9f
      if new & 3 == 2 { new &= ~3 }  // W without R is reserved
      if new >> 3 & 3 == 2 { new = new & ~0x18 | result >> shift & 0x18 }  // NA4 needs a 4-byte grain
      result = result & ~(0xff << shift) | new << shift
    }
    s[field] = result
    pmpRange = PMPRange()
    engine.flushTLB(page: nil, keepGlobal: false, contexts: Self.contexts)
  }
}
