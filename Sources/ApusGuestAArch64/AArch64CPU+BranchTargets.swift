import ApusGuest
import ApusISAAArch64

// Branch target identification for processes [Arm ARM D8.4.5]: an indirect branch that comes to a guarded page must come to
// an instruction that takes its kind. The branch itself looks, before it leaves, so that PSTATE.BTYPE is 0 wherever somebody
// could see it. In the machine there are no guarded pages.

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

  /// Raises the Branch Target exception, as SIGILL at the target, if the branch may not go there.
  func checkBranch(to target: UInt64, isCall: Bool, usesLinkageRegister: Bool) {
    guard target & 3 == 0, isGuarded(target), let word = hostWord(target) else { return }
    let type: BranchType = isCall ? .call : usesLinkageRegister || !isGuarded(s.pc) ? .jumpToCall : .jump
    guard !Self.accepts(word, type) else { return }
    s.pc = target
    raise(.illegalInstruction, address: target)
  }

  /// The process's memory is the host's, and what is guarded can be read.
  private func hostWord(_ address: UInt64) -> UInt32? {
    UnsafeRawPointer(bitPattern: UInt(address))?.load(as: UInt32.self)
  }

  /// Whether an instruction is a target for a kind of branch.
  static func accepts(_ word: UInt32, _ type: BranchType) -> Bool {
    switch word {
    case 0xd503_245f, 0xd503_233f, 0xd503_237f: type != .jump  // bti c, paciasp, pacibsp (with SCTLR_EL1.BT0)
    case 0xd503_249f: type != .call  // bti j
    case 0xd503_24df: true  // bti jc
    // brk and hlt have their own exceptions.
    default: word & 0xffe0_001f == 0xd420_0000 || word & 0xffe0_001f == 0xd440_0000
    }
  }
}
