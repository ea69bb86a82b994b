import ApusCPU
import ApusConfig
import ApusMachine
import ApusMemory
import ApusSemihosting

extension Semihosting {
  /// What `-semihosting` asks for; `nil` without it. A program ends the machine with its exit code.
  static func make(
    _ configuration: MachineConfiguration, _ machine: Machine, space: AddressSpace, ram: GuestRAM
  ) -> Semihosting? {
    guard let wanted = configuration.semihosting else { return nil }
    let arguments =
      wanted.arguments.isEmpty
      ? [configuration.kernel, configuration.commandLine].compactMap { $0 } : wanted.arguments
    // Behind what is loaded at the start of RAM, before the device tree at its end.
    let (base, size) = (ram.base.rawValue, ram.byteCount)
    return Semihosting(
      .init(
        servesUserCode: wanted.servesUserCode, commandLine: arguments.joined(separator: " "),
        heap: base + size / 2..<base + size / 4 * 3), space: space, clock: machine.clock,
      isRunning: { [weak machine] in machine?.isRunning == true },
      exit: { [weak machine] code in machine?.request(.exit(code: code)) })
  }
}
