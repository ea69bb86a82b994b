import ApusBoards
import ApusCharDev
import ApusConfig
import ApusDevice
import ApusHost
import ApusISAAArch64
import ApusISARISCV
import ApusMachine

/// From the command line to a machine's exit code.
enum SystemEmulator {
  static let version = "0.1.0"

  static func run() {
    let arguments = CommandLine.arguments
    switch selectTarget(arguments) {
    case .failure(let error): fail(error.description)
    case .success(let (target, rest)):
      Messages.setProgram("apus-system-\(target)")
      switch SystemCommandLine.parse(rest, target: target) {
      case .failure(let error): fail(error.description)
      case .success(let invocation): HostProcess.exit(perform(invocation, target))
      }
    }
  }

  /// The machine's architecture from the program's name (`apus-system-riscv64`) or `--target`; the other arguments.
  private static func selectTarget(_ arguments: [String]) -> Result<
    (MachineConfiguration.Target, [String]), ConfigurationError
  > {
    var rest = Array(arguments.dropFirst())
    let program = arguments.first.map { String($0.split(separator: "/").last ?? "") } ?? ""
    var name =
      program.hasPrefix("apus-system-") ? String(program.dropFirst("apus-system-".count)) : "riscv64"
    if let index = rest.firstIndex(of: "--target") {
      guard index + 1 < rest.count else {
        return .failure(.init("option '--target' needs a value, like riscv64"))
      }
      name = rest[index + 1]
      rest.removeSubrange(index...index + 1)
    }
    guard let target = MachineConfiguration.Target(rawValue: name) else {
      return .failure(.unknown("target", name, among: MachineConfiguration.Target.allCases.map(\.rawValue)))
    }
    return .success((target, rest))
  }

  private static func fail(_ message: String) -> Never {
    Messages.write(message)
    HostProcess.exit(1)
  }

  private static func perform(_ invocation: Invocation, _ target: MachineConfiguration.Target) -> Int32 {
    do throws(MachineError) {
      switch invocation {
      case .show(let text): writeStandardOutput(text)
      case .showVersion: writeStandardOutput("Apus emulator version \(version)\n")
      case .showCoverage:
        writeStandardOutput(target == .riscv64 ? RISCVCoverage.report() : AArch64Coverage.report())
      case .listDevices: writeStandardOutput(makeDeviceRegistry().help)
      case .describeDevice(let name): writeStandardOutput(try makeDeviceRegistry().help(for: name))
      case .run(let configuration): return try SystemSession(configuration).run()
      }
      return 0
    } catch { fail(error.description) }
  }
}
