import ApusCPU
import ApusGuest

extension RISCVCPU {
  /// slli x0, x0, 0x1f before and srai x0, x0, 7 behind an uncompressed ebreak make a call [RISC-V Semihosting 0.4 §1].
  private static let sequence: [UInt64] = [0x01f0_1013, 0x0010_0073, 0x4070_5013]

  /// Answers the semihosting call at the PC; false if the ebreak there is none.
  func answerSemihosting() -> Bool {
    guard let semihosting, privilege != 0 || semihosting.servesUserCode else { return false }
    // The three instructions lie in one page.
    let (first, last) = (s.pc &- 4, s.pc &+ 7)
    guard first >> 12 == last >> 12,
      let physical = physicalAddress(first, .fetch, context: fetchContext(mode: s.mode.rawValue))
    else { return false }
    for (index, word) in Self.sequence.enumerated() {
      guard codeWord(physical + 4 * UInt64(index)) == word else { return false }
    }
    let context = Int(s.mode.context)
    s[x: 10] = semihosting.call(s[x: 10], s[x: 11]) { address, isStore in
      physicalAddress(address, isStore ? .store : .load, context: context)
    }
    s.pc &+= 4
    s.requestDispatch()
    return true
  }

  private func physicalAddress(_ address: UInt64, _ access: GuestAccess, context: Int) -> UInt64? {
    guard case .page(let page) = translateAddress(address, access, context: context),
      access == .store ? page.canStore : access == .fetch || page.canLoad
    else { return nil }
    return page.physical
  }

  /// 32 bits of memory at a multiple of 2.
  private func codeWord(_ address: UInt64) -> UInt64? {
    guard let physicalMemory, let low = physicalMemory.load(address & ~7) else { return nil }
    let shift = (address & 7) * 8
    var value = low >> shift
    if shift > 32 {
      guard let high = physicalMemory.load((address & ~7) &+ 8) else { return nil }
      value |= high << (64 - shift)
    }
    return value & 0xffff_ffff
  }
}
