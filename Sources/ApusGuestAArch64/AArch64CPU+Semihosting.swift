import ApusCPU
import ApusGuest

extension AArch64CPU {
  /// The immediate of `hlt` that calls the semihosting host [Arm Semihosting 2.0 §3].
  private static let semihostingCall: UInt64 = 0xf000

  /// hlt: a semihosting call, or undefined, as no debugger halts the CPU.
  func halt(_ immediate: UInt64, nextPC: UInt64) {
    guard immediate == Self.semihostingCall, let semihosting,
      s[.exceptionLevel] != 0 || semihosting.servesUserCode
    else { return raise(.illegalInstruction, address: s.pc) }
    let context = Int(s.mode.context)
    s[x: 0] = semihosting.call(s[x: 0], s[x: 1]) { address, isStore in
      guard
        case .page(let page) = translateAddress(address, isStore ? .store : .load, context: context),
        isStore ? page.canStore : page.canLoad
      else { return nil }
      return page.physical
    }
    s.pc = nextPC
    s.requestDispatch()
  }
}
