import CApusHost
import Glibc

/// Where a program's parts are put: random, unless the process asked for the same addresses each time (ADDR_NO_RANDOMIZE,
/// which debuggers do).
struct AddressChoice {
  /// Position-independent programs; their interpreters go into the mapping area.
  var program: UInt64 = 0x2a_0000_0000
  /// The end of the stack.
  var stackEnd: UInt64 = 0x3f_0000_0000
  /// Where mappings without a wish begin; far from the emulator, the host's libraries and guest programs.
  var mappings: UInt64 = 0x40_0000_0000
  /// Between the program and its break.
  var breakGap: UInt64 = 0

  private static let noRandomisation = 0x4_0000

  init() {
    guard apus_syscall(135, 0xffff_ffff, 0, 0, 0, 0, 0) & Self.noRandomisation == 0 else { return }
    var random: (UInt64, UInt64) = (0, 0)
    guard withUnsafeMutableBytes(of: &random, { getrandom($0.baseAddress, 16, 0) }) == 16 else { return }
    // 4 GiB for the program and the stack, 16 GiB for mappings, 32 MiB for the break.
    program += (random.0 & 0xf_ffff) << 12
    stackEnd -= (random.0 >> 20 & 0xf_ffff) << 12
    mappings += (random.1 & 0x3f_ffff) << 12
    breakGap = (random.1 >> 22 & 0x1fff) << 12
  }
}
