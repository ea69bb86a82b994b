import ApusGuest
import ApusISAAArch64

// Branch target identification [Arm ARM D8.4.5]: an indirect branch that comes to a guarded page must come to an instruction
// that takes its kind. The engine asks when a branch leads where none of its kind has been before; what is found in order it
// remembers, so that PSTATE.BTYPE, the slot `branchType`, stays 0 there. If the target does not take the branch, or cannot
// be fetched yet, BTYPE is set, and the mode of the next block says so: that block is the check alone, unless an exception
// comes before it, which saves BTYPE in SPSR. So it is, too, where the next instruction may be stepped or have a break point.
// In a process the exception is SIGILL, at once.

extension AArch64CPU {
  /// The kinds of branches: PSTATE.BTYPE at the target.
  enum BranchType: UInt64 {
    /// br by x16 or x17, or from a page that is not guarded.
    case jumpToCall = 1
    case call = 2
    case jump = 3
  }

  /// A process has guarded pages: from now on indirect branches are checked. Between blocks.
  public func checkBranchTargets() {
    guard features.contains(.bti), !checksBranchTargets else { return }
    checksBranchTargets = true
    updateMode()
    s.requestDispatch()
  }

  public func checkBranch(kind: UInt32, from source: UInt64) -> Bool {
    guard let kind = BranchType(rawValue: UInt64(kind)), s.pc & 3 == 0 else { return false }
    guard system == nil else {
      let type = type(of: kind, from: source)
      guard canBranch(to: s.pc, type, context: fetchContext(mode: s.mode.rawValue)) == true else {
        setBranchType(type.rawValue)
        return false
      }
      return type == kind
    }
    guard isGuarded(s.pc), let word = UnsafeRawPointer(bitPattern: UInt(s.pc))?.load(as: UInt32.self) else {
      return true
    }
    let type: BranchType = kind == .jump && !isGuarded(source) ? .jumpToCall : kind
    if !Self.accepts(word, type, isStrict: true) { raise(.illegalInstruction, address: s.pc) }
    return type == kind
  }

  /// The end of an indirect branch that may be stepped, or whose target may have a break point.
  func branch(to target: UInt64, kind: UInt64) {
    guard let kind = BranchType(rawValue: kind) else { return }
    let type = type(of: kind, from: s.pc)
    s.pc = target
    if s.mode.step == .active { s[.step] = 1 << 24 }
    setBranchType(type.rawValue)
  }

  /// A jump from a page that is not guarded is as one by x16 or x17.
  private func type(of kind: BranchType, from source: UInt64) -> BranchType {
    guard kind == .jump else { return kind }
    let page = engine.codePage(source, context: fetchContext(mode: s.mode.rawValue))
    return page?.isGuarded == true ? .jump : .jumpToCall
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
    let control = s[level == 3 ? .sctlr3 : level == 2 || level == 0 && isHost ? .sctlr2 : .sctlr]
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
