import ApusGuest
import ApusISAAArch64
import Synchronization

// tlbi and at [Arm ARM C5.4, C5.5].

extension AArch64CPU {
  /// tlbi. What other virtual machines' entries are is not looked at: they go, too.
  func invalidateTLB(_ key: AArch64SystemKey, _ operand: UInt64) {
    let level = s[.exceptionLevel]
    // EL1's operations are the host's from EL2 on with E2H and TGE.
    let isGuest =
      key.op1 == 0
      ? !(level >= 2 && isHost) : key.op1 == 4 && (key.m == 0 || key.m == 4 || key.op2 == 4 || key.op2 == 6)
    let contexts =
      key.op1 == 6
      ? ContextGroup.monitor.contexts : isGuest ? ContextGroup.guest : ContextGroup.hypervisor.contexts
    // CRm 7 and 6, and of stage 2 operations 4, are this CPU's alone, but for HCR_EL2.FB and what is of the outer domain.
    let isOfOuterDomain = key.op1 == 4 && key.m == 4 && [0, 3, 4, 7].contains(key.op2)
    let isLocal = key.m >= 6 || key.op1 == 4 && key.m == 4 && !isOfOuterDomain
    let isShared = !isLocal || level == 1 && s[.hcr] & HCR.broadcasts != 0
    if key.op1 == 4, isGuest {
      // Stage 2's entries are part of stage 1's.
      engine.invalidateTLB(page: nil, keepGlobal: false, contexts: contexts, isShared: isShared)
    } else if key.op2 & 1 == 0 {
      // All, or those of an address space.
      engine.invalidateTLB(
        page: nil, keepGlobal: key.op1 == 0 && key.op2 == 2, contexts: contexts, isShared: isShared)
    } else {
      for page in pages(key, operand) ?? [] {
        engine.invalidateTLB(page: page, keepGlobal: false, contexts: contexts, isShared: isShared)
      }
      if pages(key, operand) == nil {
        engine.invalidateTLB(page: nil, keepGlobal: false, contexts: contexts, isShared: isShared)
      }
    }
    s.requestDispatch()
  }

  /// The pages of 4 KiB of an operation by address; `nil`: too many, or addresses that may have had tags.
  private func pages(_ key: AArch64SystemKey, _ operand: UInt64) -> [UInt64]? {
    guard system?.cluster.hasSeenTags.load(ordering: .relaxed) == false else { return nil }
    guard [2, 5, 6].contains(key.m) else {
      return [UInt64(bitPattern: Int64(bitPattern: operand << 20) >> 8)]
    }
    // TG, SCALE, NUM and the first address in units of the granule.
    let granuleBits = (operand >> 46 & 3) * 2 + 10
    guard granuleBits >= 12 else { return [] }
    let count = ((operand >> 39 & 31) + 1) << (5 * (operand >> 44 & 3) + 1)
    let pageCount = count << (granuleBits - 12)
    guard pageCount <= 16 else { return nil }
    let first = UInt64(bitPattern: Int64(bitPattern: operand << 27) >> 27) << granuleBits
    return (0..<pageCount).map { first &+ $0 << 12 }
  }

  /// at: PAR_EL1 [D19.2.100].
  func translateToRegister(_ key: AArch64SystemKey, _ address: UInt64) {
    let isStore = key.op2 & 1 != 0
    let level = s[.exceptionLevel]
    // CRm 9: as PSTATE.PAN says.
    let isGuarded = key.m == 9 && s[.pan] != 0
    let context: Int
    if key.op1 == 6 {
      context = 8
    } else if key.op1 == 4, key.op2 < 2 {
      context = 4
    } else if level >= 2, isHost, key.op1 == 0 {
      context = key.op2 >= 2 ? 5 : isGuarded ? 3 : 4
    } else {
      context = key.op2 & 2 != 0 ? 0 : isGuarded ? 1 : 2
    }
    let isStage1Only = key.op1 != 4 || key.op2 < 2
    switch walk(address, isStore ? .store : .load, context: context, isStage1Only: isStage1Only) {
    case .page(let page):
      // Normal memory, inner shareable, and NS.
      let isSecure = page.physical & Self.secureBit != 0
      s[.par] = page.physical & 0xf_ffff_ffff_f000 | 0x800 | 0xff << 56 | (isSecure ? 0 : 1 << 9) | 3 << 7
    case .fault(let number):
      let isStage2 = number & Syndrome.isStage2 != 0
      // EL2 hears of a virtual machine's tables that are not there.
      if isStage2, level == 1 { return enterAbort(number & ~Syndrome.isWrite, address: address) }
      s[.par] =
        1 | (number & 63) << 1 | 0x800 | (isStage2 ? 1 << 9 : 0)
        | (number & Syndrome.isWalk != 0 ? 1 << 8 : 0)
    }
  }
}
