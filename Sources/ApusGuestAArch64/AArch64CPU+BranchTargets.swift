import ApusGuest
import ApusISAAArch64

// Branch target identification [Arm ARM D8.4.5]: an indirect branch that comes to a guarded page must come to an instruction
// that takes its kind. The branch itself looks, before it leaves: PSTATE.BTYPE, the slot `branchType`, stays 0 where the
// target takes the branch. If it does not, or cannot be fetched yet, BTYPE is set, and the mode of the next block says so:
// that block is the check alone, unless an exception comes before it, which saves BTYPE in SPSR. So it is, too, where the
// next instruction may be stepped or have a break point; an interrupt, which comes before the branch or at the target, saves 0.
//
// Most systems have no guarded pages. Until the first one is fetched, an indirect branch notes its target alone, in the slot
// `lastBranch`; from then on all of this CPU's are checked.

extension AArch64CPU {
  /// The kinds of branches: PSTATE.BTYPE at the target.
  enum BranchType: UInt64 {
    /// br by x16 or x17, or from a page that is not guarded.
    case jumpToCall = 1
    case call = 2
    case jump = 3
  }

  /// From now on indirect branches are checked. Between blocks.
  public func checkBranchTargets() {
    guard features.contains(.bti), !checksBranchTargets else { return }
    checksBranchTargets = true
    updateMode()
    s.requestDispatch()
  }

  /// Before an indirect branch, whose other effects are made: raises SIGILL at the target, or goes there with BTYPE set, if the
  /// branch may not go there.
  func checkBranch(to target: UInt64, isCall: Bool, usesLinkageRegister: Bool) {
    guard target & 3 == 0 else { return }
    guard system == nil else {
      let context = fetchContext(mode: s.mode.rawValue)
      let isFromGuarded =
        !isCall && !usesLinkageRegister && engine.codePage(s.pc, context: context)?.isGuarded == true
      let type: BranchType = isCall ? .call : isFromGuarded ? .jump : .jumpToCall
      if s.mode.seesBranchType || canBranch(to: target, type, context: context) != true {
        s.pc = target
        // The branch is done, which ends a step.
        if s.mode.step == .active { s[.step] = 1 << 24 }
        setBranchType(type.rawValue)
      }
      return
    }
    guard isGuarded(target), let word = UnsafeRawPointer(bitPattern: UInt(target))?.load(as: UInt32.self)
    else {
      return
    }
    let type: BranchType = isCall ? .call : usesLinkageRegister || !isGuarded(s.pc) ? .jumpToCall : .jump
    guard !Self.accepts(word, type, isStrict: true) else { return }
    s.pc = target
    raise(.illegalInstruction, address: target)
  }

  /// `nil` where nothing can be fetched.
  private func canBranch(to target: UInt64, _ type: BranchType, context: Int) -> Bool? {
    guard let page = engine.codePage(target, context: context) else { return nil }
    guard page.isGuarded, let host = page.host else { return true }
    return Self.accepts(host.load(as: UInt32.self), type, isStrict: isStrictAboutSigning)
  }

  /// SCTLR_ELx.BT0 and BT1: paciasp and pacibsp are no targets of jumps.
  private var isStrictAboutSigning: Bool {
    let level = s[.exceptionLevel]
    let control = s[level == 2 || level == 0 && isHost ? .sctlr2 : .sctlr]
    return control >> (level == 0 ? 35 : 36) & 1 != 0
  }

  private func setBranchType(_ type: UInt64) {
    s[.branchType] = type
    updateMode()
    s.requestDispatch()
  }

  /// The block at the target of a branch that has not been found in order.
  func checkBranchTarget() {
    guard let type = BranchType(rawValue: s[.branchType]) else { return setBranchType(0) }
    switch canBranch(to: s.pc, type, context: fetchContext(mode: s.mode.rawValue)) {
    case true?: setBranchType(0)
    case false?: trap(Syndrome.branchTarget | type.rawValue)
    case nil: s.requestDispatch()
    }
  }

  /// The instruction at `address` is about to be fetched from the first guarded page.
  func noteGuardedPage(_ address: UInt64) {
    guard !checksBranchTargets else { return }
    takeLastBranch(to: address)
    checkBranchTargets()
  }

  /// Sets BTYPE if the last indirect branch, not checked, led to this address.
  func takeLastBranch(to address: UInt64) {
    let last = s[.lastBranch]
    guard last & ~3 == address, last & 3 != 0 else { return }
    s[.lastBranch] = 0
    setBranchType(last & 3)
  }

  /// Whether an instruction is a target for a kind of branch.
  /// - Parameter isStrict: instructions that sign the return address do not take jumps.
  static func accepts(_ word: UInt32, _ type: BranchType, isStrict: Bool) -> Bool {
    switch word {
    case 0xd503_245f: type != .jump  // bti c
    case 0xd503_233f, 0xd503_237f: type != .jump || !isStrict  // paciasp, pacibsp
    case 0xd503_249f: type != .call  // bti j
    case 0xd503_24df: true  // bti jc
    // brk and hlt have their own exceptions.
    default: word & 0xffe0_001f == 0xd420_0000 || word & 0xffe0_001f == 0xd440_0000
    }
  }
}
