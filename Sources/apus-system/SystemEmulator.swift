import ApusBoards
import ApusCharDev
import ApusConfig
import ApusDevice
import ApusHost
import ApusISARISCV
import ApusMachine

/// From the command line to a machine's exit code.
enum SystemEmulator {
  static let version = "0.1.0"
  static let targets = ["riscv64"]

  static func run() {
    let arguments = CommandLine.arguments
    switch selectTarget(arguments) {
    case .failure(let error): fail(error.description)
    case .success(let rest):
      switch SystemCommandLine.parse(rest) {
      case .failure(let error): fail(error.description)
      case .success(let invocation): HostProcess.exit(perform(invocation))
      }
    }
  }

  /// The machine's architecture from the program's name (`apus-system-riscv64`) or `--target`; the other arguments.
  private static func selectTarget(_ arguments: [String]) -> Result<[String], ConfigurationError> {
    var rest = Array(arguments.dropFirst())
    let program = arguments.first.map { String($0.split(separator: "/").last ?? "") } ?? ""
    var target =
      program.hasPrefix("apus-system-") ? String(program.dropFirst("apus-system-".count)) : "riscv64"
    if let index = rest.firstIndex(of: "--target") {
      guard index + 1 < rest.count else {
        return .failure(.init("option '--target' needs a value, like riscv64"))
      }
      target = rest[index + 1]
      rest.removeSubrange(index...index + 1)
    }
    guard targets.contains(target) else { return .failure(.unknown("target", target, among: targets)) }
    return .success(rest)
  }

  private static func fail(_ message: String) -> Never {
    Messages.write(message)
    HostProcess.exit(1)
  }

  private static func perform(_ invocation: Invocation) -> Int32 {
    do throws(MachineError) {
      switch invocation {
      case .show(let text): writeStandardOutput(text)
      case .showVersion: writeStandardOutput("Apus emulator version \(version)\n")
      case .showCoverage: writeStandardOutput(RISCVCoverage.report())
      case .listDevices: writeStandardOutput(makeDeviceRegistry().help)
      case .describeDevice(let name): writeStandardOutput(try makeDeviceRegistry().help(for: name))
      case .run(let configuration): return try SystemSession(configuration).run()
      }
      return 0
    } catch { fail(error.description) }
  }
}
