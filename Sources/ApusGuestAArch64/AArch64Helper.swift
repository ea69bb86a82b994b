import ApusBits
import ApusFloat
import ApusGuest
import ApusIR
import ApusISAAArch64

/// The helpers of translated AArch64 code, by index into `table`.
enum AArch64Helper: Int, CaseIterable {
  case raiseUndefined, raiseBreakpoint, raiseMisalignedPC, systemCall, synchronizeInstructions
  case readFPSR, writeFPSR, writeFPCR, readCounter, crc32
  case softFloat, softCompare, vector, interleave, deinterleave
  case raiseFloatTrap, exceptionReturn, firmwareCall, waitForInterrupt, readSystem, writeSystem
  case invalidateTLB, completeInvalidations, translateAddress
  case raiseStep, checkBreakPoints, checkTrap, hypervisorCall
  case extensionVector, randomNumber, authenticate
  case semihosting, checkGranule, branch, checkBranchTarget, monitorCall, waitForEvent, sendEvent
  case storeExclusiveNarrow, atomicNarrow, loadExclusivePair, storeExclusivePair, compareAndSwapPair

  static let table: [IRHelper] = allCases.map(\.helper)

  private static let exits: IRHelperEffects = [.readsState, .readsPC, .mayExit]
  private static let everything: IRHelperEffects = [.readsState, .writesState, .mayExit, .readsPC]

  private var helper: IRHelper {
    switch self {
    case .raiseUndefined:
      IRHelper("raise-undefined", Self.exits) { state, _, _, _ in
        AArch64CPU.with(state) { $0.raise(.illegalInstruction, address: $0.s.pc) }
        return 0
      }
    case .raiseBreakpoint:
      // a: the immediate.
      IRHelper("raise-breakpoint", Self.exits) { state, immediate, _, _ in
        AArch64CPU.with(state) { $0.raise(.breakpoint, address: $0.s.pc, immediate: immediate) }
        return 0
      }
    case .raiseMisalignedPC:
      IRHelper("raise-misaligned-pc", Self.exits) { state, _, _, _ in
        AArch64CPU.with(state) { cpu in
          if cpu.system == nil {
            cpu.raise(.misaligned, address: cpu.s.pc)
          } else {
            cpu.trap(Syndrome.misalignedPC, address: cpu.s.pc)
          }
        }
        return 0
      }
    case .raiseFloatTrap:
      IRHelper("raise-float-trap", Self.exits) { state, _, _, _ in
        AArch64CPU.with(state) { $0.trapFloat() }
        return 0
      }
    case .systemCall:
      // a: the next PC, b: the immediate.
      IRHelper("svc", Self.everything) { state, nextPC, immediate, _ in
        AArch64CPU.with(state) { cpu in
          cpu.s.pc = nextPC
          if let hooks = cpu.userHooks {
            hooks.systemCall(hooks.context)
            cpu.s.requestDispatch()
          } else {
            cpu.trap(Syndrome.call(Syndrome.supervisorCall, immediate))
          }
        }
        return 0
      }
    case .exceptionReturn:
      IRHelper("eret", Self.everything) { state, _, _, _ in
        AArch64CPU.with(state) { $0.returnFromException() }
        return 0
      }
    case .firmwareCall:
      // a: the next PC.
      IRHelper("firmware-call", Self.everything) { state, nextPC, _, _ in
        AArch64CPU.with(state) { cpu in
          if cpu.system?.environment.hasPSCI == false { return cpu.trap(Syndrome.undefined) }
          cpu.s.pc = nextPC
          cpu.callFirmware()
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .semihosting:
      // a: the next PC, b: the immediate.
      IRHelper("hlt", Self.everything) { state, nextPC, immediate, _ in
        AArch64CPU.with(state) { $0.halt(immediate, nextPC: nextPC) }
        return 0
      }
    case .branch:
      // a: the target, b: the kind.
      IRHelper("branch", Self.everything) { state, target, kind, _ in
        AArch64CPU.with(state) { $0.branch(to: target, kind: kind) }
        return 0
      }
    case .checkBranchTarget:
      IRHelper("check-branch-target", Self.everything) { state, _, _, _ in
        AArch64CPU.with(state) { $0.checkBranchTarget() }
        return 0
      }
    case .checkGranule:
      // a: the address of a tag granule.
      IRHelper("check-granule", Self.exits) { state, address, _, _ in
        AArch64CPU.with(state) { cpu in if address & 15 != 0 { cpu.raise(.misaligned, address: address) } }
        return 0
      }
    case .hypervisorCall:
      // a: the next PC, b: the immediate.
      IRHelper("hvc-el2", Self.everything) { state, nextPC, immediate, _ in
        AArch64CPU.with(state) { cpu in
          guard cpu.permitsHypervisorCall else { return cpu.trap(Syndrome.undefined) }
          cpu.s.pc = nextPC
          cpu.trap(
            Syndrome.call(Syndrome.hypervisorCall, immediate), to: max(2, cpu.s[.exceptionLevel]))
        }
        return 0
      }
    case .monitorCall:
      // a: the next PC, b: the immediate.
      IRHelper("smc-el3", Self.everything) { state, nextPC, immediate, _ in
        AArch64CPU.with(state) { cpu in
          guard cpu.s[.scr] & SCR.disablesCall == 0 else { return cpu.trap(Syndrome.undefined) }
          cpu.s.pc = nextPC
          cpu.trap(Syndrome.call(Syndrome.secureMonitorCall, immediate), to: 3)
        }
        return 0
      }
    case .checkTrap:
      // a: the encoding, b: the request of an instruction that authenticates pointers.
      IRHelper("check-trap", Self.exits) { state, word, request, _ in
        AArch64CPU.with(state) {
          $0.checkTrap(UInt32(truncatingIfNeeded: word), .init(rawValue: UInt8(truncatingIfNeeded: request)))
        }
        return 0
      }
    case .waitForInterrupt:
      // a: the next PC.
      IRHelper("wfi", Self.exits) { state, nextPC, _, _ in
        AArch64CPU.with(state) { cpu in
          cpu.s.pc = nextPC
          cpu.eventDeadline = nil
          cpu.engine.requestSleep()
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .waitForEvent:
      // a: the next PC.
      IRHelper("wfe", Self.exits) { state, nextPC, _, _ in
        AArch64CPU.with(state) { cpu in
          cpu.s.pc = nextPC
          cpu.waitForEvent()
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .sendEvent:
      IRHelper("sev", [.readsState, .writesState]) { state, _, _, _ in
        AArch64CPU.with(state) { $0.hasEvent = true }
        return 0
      }
    case .readSystem:
      // a: the key.
      IRHelper("mrs", Self.everything) { state, key, _, _ in
        AArch64CPU.with(state) { cpu in
          if let value = cpu.readSystem(.init(rawValue: UInt16(truncatingIfNeeded: key))) { return value }
          cpu.trap(Syndrome.undefined)
          return 0
        }
      }
    case .writeSystem:
      // a: the key, b: the value, c: the next PC.
      IRHelper("msr", Self.everything) { state, key, value, nextPC in
        AArch64CPU.with(state) { cpu in
          guard cpu.writeSystem(.init(rawValue: UInt16(truncatingIfNeeded: key)), value) else {
            return cpu.trap(Syndrome.undefined)
          }
          cpu.s.pc = nextPC
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .invalidateTLB:
      // a: the key, b: the operand, c: the next PC.
      IRHelper("tlbi", Self.exits) { state, key, operand, nextPC in
        AArch64CPU.with(state) { cpu in
          cpu.s.pc = nextPC
          cpu.invalidateTLB(.init(rawValue: UInt16(truncatingIfNeeded: key)), operand)
        }
        return 0
      }
    case .completeInvalidations:
      // a: the next PC.
      IRHelper("dsb", Self.exits) { state, nextPC, _, _ in
        AArch64CPU.with(state) { cpu in
          guard cpu.engine.completeInvalidations() else { return }
          cpu.s.pc = nextPC
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .translateAddress:
      // a: the key, b: the address, c: the next PC.
      IRHelper("at", Self.everything) { state, key, address, nextPC in
        AArch64CPU.with(state) { cpu in
          let pc = cpu.s.pc
          cpu.translateToRegister(.init(rawValue: UInt16(truncatingIfNeeded: key)), address)
          // A fault of stage 2 leads elsewhere.
          if cpu.s.pc == pc { cpu.s.pc = nextPC }
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .raiseStep:
      IRHelper("raise-step", Self.exits) { state, _, _, _ in
        AArch64CPU.with(state) { $0.raiseStep() }
        return 0
      }
    case .checkBreakPoints:
      IRHelper("check-break-points", Self.exits) { state, _, _, _ in
        AArch64CPU.with(state) { $0.checkBreakPoints() }
        return 0
      }
    case .synchronizeInstructions:
      // a: the next PC.
      IRHelper("ic", Self.exits) { state, nextPC, _, _ in
        AArch64CPU.with(state) { cpu in
          cpu.s.pc = nextPC
          cpu.engine.synchronizeInstructions()
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .readFPSR:
      IRHelper("read-fpsr", [.readsState]) { state, _, _, _ in AArch64State(state).fpsr }
    case .writeFPSR:
      IRHelper("write-fpsr", [.readsState, .writesState]) { state, value, _, _ in
        AArch64State(state).fpsr = value
        return 0
      }
    case .writeFPCR:
      // a: the value, b: the next PC. The mode changes.
      IRHelper("write-fpcr", Self.everything) { state, value, nextPC, _ in
        AArch64CPU.with(state) { cpu in
          cpu.setFPCR(value)
          cpu.s.pc = nextPC
          cpu.s.requestDispatch()
        }
        return 0
      }
    case .readCounter:
      // a: 1 for the virtual counter. The level and offsets lie in the state at every instruction's end.
      IRHelper("read-counter", [.varies]) { state, isVirtual, _, _ in
        AArch64CPU.with(state) { isVirtual != 0 ? $0.virtualCounter() : $0.counter() }
      }
    case .crc32:
      // a: the sum so far, b: the data, c: 2-bit size and bit 2 for the Castagnoli polynomial.
      IRHelper("crc32", []) { _, sum, data, kind in
        let kernel: CyclicRedundancy = kind & 4 != 0 ? .castagnoli : .ieee
        return UInt64(
          kernel.updated(UInt32(truncatingIfNeeded: sum), with: data, byteCount: 1 << Int(kind & 3)))
      }
    case .softFloat:
      // a: the encoding.
      IRHelper("soft-float", Self.everything) { state, word, _, _ in
        AArch64CPU.with(state) { cpu in
          if !AArch64FloatUnit.execute(UInt32(truncatingIfNeeded: word), cpu.s) {
            cpu.raise(.illegalInstruction, address: cpu.s.pc)
          }
        }
        return 0
      }
    case .softCompare:
      IRHelper("soft-compare", [.readsState, .writesState]) { state, word, _, _ in
        AArch64FloatUnit.compare(UInt32(truncatingIfNeeded: word), AArch64State(state))
        return 0
      }
    case .vector:
      IRHelper("vector", Self.everything) { state, word, _, _ in
        AArch64CPU.with(state) { cpu in
          var unit = AArch64VectorUnit(UInt32(truncatingIfNeeded: word), cpu.s)
          if !unit.execute() { cpu.raise(.illegalInstruction, address: cpu.s.pc) }
        }
        return 0
      }
    case .extensionVector:
      // a: the encoding, b: the opcode.
      IRHelper("extension-vector", [.readsState, .writesState]) { state, word, opcode, _ in
        var unit = AArch64VectorUnit(UInt32(truncatingIfNeeded: word), AArch64State(state))
        unit.executeExtension(
          AArch64Opcode(rawValue: UInt8(truncatingIfNeeded: opcode)).unsafelyUnwrapped)
        return 0
      }
    case .randomNumber:
      IRHelper("rndr", [.varies]) { _, _, _, _ in UInt64.random(in: .min ... .max) }
    case .authenticate:
      // a: the pointer, b: the modifier, c: what to do, an `AArch64PointerAuthentication.Request`. The new pointer.
      // Keys and control registers are no registers that back ends keep: they lie in the state at every instruction's end.
      IRHelper("authenticate", [.varies]) { state, pointer, modifier, request in
        AArch64CPU.with(state) {
          $0.authenticate(pointer, modifier, .init(rawValue: UInt8(truncatingIfNeeded: request)))
        }
      }
    case .interleave:
      IRHelper("interleave", [.readsState, .writesState]) { state, word, _, _ in
        AArch64VectorUnit.interleave(UInt32(truncatingIfNeeded: word), AArch64State(state))
        return 0
      }
    case .deinterleave:
      IRHelper("deinterleave", [.readsState, .writesState]) { state, word, _, _ in
        AArch64VectorUnit.deinterleave(UInt32(truncatingIfNeeded: word), AArch64State(state))
        return 0
      }
    case .storeExclusiveNarrow:
      // a: address, b: value, c: 0 byte, 1 half word. 0 if it stored.
      IRHelper("stxr-narrow", Self.everything) { state, address, value, size in
        AArch64CPU.with(state) { $0.storeExclusiveNarrow(address, value, Int(size)) }
      }
    case .atomicNarrow:
      // a: address, b: operand, c: size, operation from bit 8, what to compare with from bit 16. The old value.
      IRHelper("atomic-narrow", Self.everything) { state, address, value, control in
        AArch64CPU.with(state) { $0.atomicNarrow(address, value, control) }
      }
    case .loadExclusivePair:
      IRHelper("ldxp", Self.everything) { state, address, word, _ in
        AArch64CPU.with(state) { $0.loadExclusivePair(address, UInt32(truncatingIfNeeded: word)) }
        return 0
      }
    case .storeExclusivePair:
      IRHelper("stxp", Self.everything) { state, address, word, _ in
        AArch64CPU.with(state) { $0.storeExclusivePair(address, UInt32(truncatingIfNeeded: word)) }
        return 0
      }
    case .compareAndSwapPair:
      IRHelper("casp", Self.everything) { state, address, word, _ in
        AArch64CPU.with(state) { $0.compareAndSwapPair(address, UInt32(truncatingIfNeeded: word)) }
        return 0
      }
    }
  }
}
