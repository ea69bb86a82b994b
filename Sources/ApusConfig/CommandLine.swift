/// What the program is to do.
public enum Invocation: Equatable, Sendable {
  case run(MachineConfiguration)
  /// Print this and end with success.
  case show(String)
  case showVersion
  /// Which encodings of the guest architecture are implemented.
  case showCoverage
  /// `-device help`
  case listDevices
  /// `-device NAME,help`
  case describeDevice(String)
}

/// The command line of `apus-system`, in QEMU's language.
public enum SystemCommandLine {
  /// Reads the arguments after the program's name. Opens nothing, prints nothing.
  public static func parse(_ arguments: [String], target: MachineConfiguration.Target = .riscv64)
    -> Result<Invocation, ConfigurationError>
  {
    do throws(ConfigurationError) {
      return .success(try read(arguments, target))
    } catch {
      return .failure(error)
    }
  }

  private static func read(_ arguments: [String], _ target: MachineConfiguration.Target)
    throws(ConfigurationError) -> Invocation
  {
    var state = CommandLineState()
    state.configuration.target = target
    var index = 0
    while index < arguments.count {
      let argument = arguments[index]
      index += 1
      guard argument.hasPrefix("-"), argument.count > 1 else {
        throw ConfigurationError(
          "unexpected argument '\(argument)'; a disk is given as -drive file=\(argument)")
      }
      let name = String(argument.dropFirst(argument.hasPrefix("--") ? 2 : 1))
      guard let option = CommandLineOption.all.first(where: { $0.name == name }) else {
        throw unknown(argument, name)
      }
      switch option.action {
      case .flag(let body): body(&state)
      case .value(let body):
        guard index < arguments.count else {
          throw ConfigurationError("option '\(argument)' needs a value: -\(name) \(option.usage)")
        }
        do {
          try body(&state, arguments[index])
        } catch {
          throw error as? ConfigurationError ?? ConfigurationError("\(error)")
        }
        index += 1
      case .refused: throw ConfigurationError("option '\(argument)' is not implemented yet")
      }
      if let invocation = state.invocation { return invocation }
    }
    return .run(try state.finish())
  }

  private static func unknown(_ argument: String, _ name: String) -> ConfigurationError {
    let known = CommandLineOption.all.compactMap { option -> String? in
      if case .refused = option.action { return nil }
      return option.name
    }
    let hint = nearest(name, among: known).map { "did you mean '-\($0)'?" } ?? "-help lists the options"
    return ConfigurationError("unknown option '\(argument)'; \(hint)")
  }
}

extension CommandLineState {
  /// Fills in the defaults and checks what hangs together.
  mutating func finish() throws(ConfigurationError) -> MachineConfiguration {
    try applyModel()
    var result = configuration
    if result.accelerators.isEmpty { result.accelerators = [.init("jit")] }
    var serials = serials
    if serials.isEmpty, !result.noDefaults {
      // Without a display to show it in, the serial port is what the user sees.
      serials = [displayIsNone && !noGraphic ? "null" : "mon:stdio"]
    }
    let model = result.model
    // The secure state has one of its own.
    let serialCount = model.serialCount + (result.arm.hasSecurity ? 1 : 0)
    if let extra = serials.dropFirst(serialCount).first(where: { $0 != "none" }) {
      let ports = serialCount == 1 ? "one serial port" : "\(serialCount) serial ports"
      throw ConfigurationError("-serial '\(extra)': machine \(model.name) has \(ports)")
    }
    for (index, serial) in serials.prefix(serialCount).enumerated() {
      if serial == "none" {
        result.serials.append(nil)
      } else if serial.hasPrefix("chardev:") {
        let id = String(serial.dropFirst("chardev:".count))
        guard result.charDevs.contains(where: { $0.id == id }) else {
          throw .unknown("chardev", id, among: result.charDevs.map(\.id))
        }
        result.serials.append(id)
      } else {
        let device = try CharDevConfiguration(legacy: serial, id: "serial\(index)")
        result.charDevs.append(device)
        result.serials.append(device.id)
      }
    }
    let terminals = result.charDevs.filter { if case .stdio = $0.kind { true } else { false } }
    guard terminals.count <= 1 else {
      throw ConfigurationError(
        "char devices '\(terminals[0].id)' and '\(terminals[1].id)' both want stdio; only one can have it")
    }
    if result.daemonize, let terminal = terminals.first {
      guard serials != ["mon:stdio"] || self.serials.contains("mon:stdio") || noGraphic else {
        result.charDevs.removeAll { $0.id == terminal.id }
        result.charDevs.append(.init(id: terminal.id, kind: .null))
        return result
      }
      throw ConfigurationError(
        "-daemonize: char device '\(terminal.id)' wants the terminal; give -serial another")
    }
    if result.kernel == nil {
      if result.initrd != nil { throw ConfigurationError("-initrd needs -kernel") }
      if result.commandLine != nil { throw ConfigurationError("-append needs -kernel") }
    }
    return result
  }
}
