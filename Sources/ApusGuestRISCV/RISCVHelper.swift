import ApusFloat
import ApusGuest
import ApusIR
import ApusISARISCV

/// The helpers of translated RISC-V code, by index into `table`.
enum RISCVHelper: Int, CaseIterable {
  case raiseIllegal, raiseBreakpoint, raiseMisalignedFetch, environmentCall, supervisorReturn, machineReturn
  case waitForInterrupt, fenceI, fenceVMA, cacheBlock, readCSR, writeCSR, setFloatDirty, requireFloat
  case executeFloat, classifyFloat, orCombineBytes, compareExchangeQuad

  static let table: [IRHelper] = allCases.map(\.helper)

  private static let exits: IRHelperEffects = [.readsPC, .mayExit]
  private static let everything: IRHelperEffects = [.readsState, .writesState, .mayExit, .readsPC]

  private var helper: IRHelper {
    switch self {
    case .raiseIllegal:
      // a: the encoding, which becomes stval.
      IRHelper("raise-illegal", Self.exits) { state, word, _, _ in
        let cpu = RISCVCPU.of(state)
        cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
        return 0
      }
    case .raiseBreakpoint:
      IRHelper("raise-breakpoint", Self.everything) { state, _, _, _ in
        let cpu = RISCVCPU.of(state)
        if cpu.semihosting != nil, cpu.answerSemihosting() { return 0 }
        cpu.trap(RISCVCause.breakpoint, value: cpu.s.pc, pc: cpu.s.pc)
        return 0
      }
    case .raiseMisalignedFetch:
      // a: the target.
      IRHelper("raise-misaligned-fetch", Self.exits) { state, target, _, _ in
        let cpu = RISCVCPU.of(state)
        cpu.trap(RISCVCause.instructionMisaligned, value: target, pc: cpu.s.pc)
        return 0
      }
    case .environmentCall:
      // a: the next PC.
      IRHelper("ecall", Self.everything) { state, nextPC, _, _ in
        RISCVCPU.with(state) { cpu in
          if let hooks = cpu.userHooks {
            cpu.s.pc = nextPC
            hooks.systemCall(hooks.context)
            cpu.s.requestDispatch()
          } else {
            cpu.trap(RISCVCause.ecallFromU + cpu.privilege, value: 0, pc: cpu.s.pc)
          }
        }
        return 0
      }
    case .supervisorReturn:
      IRHelper("sret", Self.exits) { state, word, _, _ in
        let cpu = RISCVCPU.of(state)
        if cpu.privilege == 0 || (cpu.privilege == 1 && cpu.s[.mstatus] & MStatus.tsr != 0) {
          cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
        } else {
          cpu.returnFromTrap(machine: false)
        }
        return 0
      }
    case .machineReturn:
      IRHelper("mret", Self.exits) { state, word, _, _ in
        let cpu = RISCVCPU.of(state)
        if cpu.privilege != 3 {
          cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
        } else {
          cpu.returnFromTrap(machine: true)
        }
        return 0
      }
    case .waitForInterrupt:
      // a: the encoding, b: the next PC.
      IRHelper("wfi", Self.exits) { state, word, nextPC, _ in
        let cpu = RISCVCPU.of(state)
        if cpu.privilege == 0 || (cpu.privilege == 1 && cpu.s[.mstatus] & MStatus.tw != 0) {
          cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
          return 0
        }
        cpu.s.pc = nextPC
        if !cpu.shouldWake() { cpu.engine.requestSleep() }
        cpu.engine.requestInterruptCheck()
        cpu.s.requestDispatch()
        return 0
      }
    case .fenceI:
      IRHelper("fence.i", Self.exits) { state, nextPC, _, _ in
        let cpu = RISCVCPU.of(state)
        cpu.s.pc = nextPC
        cpu.engine.synchronizeInstructions()
        cpu.s.requestDispatch()
        return 0
      }
    case .fenceVMA:
      // a: the encoding, b: the next PC. Reads rs1 (address) and rs2 (address space).
      IRHelper("sfence.vma", Self.everything) { state, word, nextPC, _ in
        let cpu = RISCVCPU.of(state)
        if cpu.privilege == 0 || (cpu.privilege == 1 && cpu.s[.mstatus] & MStatus.tvm != 0) {
          cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
          return 0
        }
        let rs1 = Int(word >> 15 & 31)
        let rs2 = Int(word >> 20 & 31)
        cpu.engine.flushTLB(
          page: rs1 == 0 ? nil : cpu.s[x: rs1], keepGlobal: rs2 != 0, contexts: RISCVCPU.contexts)
        cpu.s.pc = nextPC
        cpu.s.requestDispatch()
        return 0
      }
    case .cacheBlock:
      IRHelper("cbo", Self.exits) { state, word, address, _ in
        RISCVCPU.of(state).cacheBlock(word: word, address: address)
        return 0
      }
    case .readCSR:
      // a: number, b: the encoding.
      IRHelper("csr-read", Self.exits) { state, number, word, _ in
        let cpu = RISCVCPU.of(state)
        if let value = cpu.readCSR(UInt16(number), forWrite: false) { return value }
        cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
        return 0
      }
    case .writeCSR:
      // a: the encoding, b: the value or mask, c: the next PC.
      IRHelper("csr-write", Self.everything) { state, word, value, nextPC in
        RISCVCPU.of(state).executeCSR(word: word, value: value, nextPC: nextPC)
        return 0
      }
    case .setFloatDirty:
      IRHelper("set-fs-dirty", Self.exits) { state, _, _, _ in
        let cpu = RISCVCPU.of(state)
        cpu.s[.mstatus] |= MStatus.fs | MStatus.sd
        cpu.updateMode()
        cpu.s.requestDispatch()
        return 0
      }
    case .requireFloat:
      // a: the encoding. For S and M, where FS is no part of the mode.
      IRHelper("require-fs", Self.everything) { state, word, _, _ in
        let cpu = RISCVCPU.of(state)
        if cpu.s[.mstatus] & MStatus.fs == 0 {
          cpu.trap(RISCVCause.illegalInstruction, value: word, pc: cpu.s.pc)
        } else {
          cpu.s[.mstatus] |= MStatus.fs | MStatus.sd
        }
        return 0
      }
    case .executeFloat:
      // a: the encoding, b: the rounding mode.
      IRHelper("execute-float", [.readsState, .writesState]) { state, word, rounding, _ in
        RISCVCPU.of(state).executeFloat(
          UInt32(word), FloatRounding(rawValue: UInt8(rounding)) ?? .nearestEven)
        return 0
      }
    case .classifyFloat:
      // a: the register, b: the format field.
      IRHelper("fclass", []) { _, value, format, _ in
        let (bits, format) = RISCVCPU.unbox(value, UInt32(format))
        return SoftFloat.classify(bits, format)
      }
    case .orCombineBytes:
      IRHelper("orc.b", []) { _, value, _, _ in
        var result: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 64, by: 8) where value >> shift & 0xff != 0 {
          result |= 0xff << shift
        }
        return result
      }
    case .compareExchangeQuad:
      // a: the address, b: the encoding.
      IRHelper("amocas.q", Self.everything) { state, address, word, _ in
        RISCVCPU.of(state).compareExchangeQuad(address: address, word: word)
        return 0
      }
    }
  }
}
