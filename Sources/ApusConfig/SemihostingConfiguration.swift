/// What `-semihosting` and `-semihosting-config` ask for.
public struct SemihostingConfiguration: Equatable, Sendable {
  /// EL0 and U-mode may call, too.
  public var servesUserCode = false
  /// The program's arguments, in order; none: the kernel's path and command line.
  public var arguments: [String] = []

  public init() {}
}

extension CommandLineState {
  mutating func configureSemihosting(_ text: String) throws(ConfigurationError) {
    let what = "-semihosting-config"
    let list = try OptionList(parsing: text, impliedKey: "enable")
    try list.check(known: ["enable", "target", "userspace", "arg", "chardev"], of: what)
    if list["chardev"] != nil {
      throw ConfigurationError("\(what): chardev= is not implemented; programs' console is standard error")
    }
    if let target = list["target"], target != "native", target != "auto" {
      throw ConfigurationError(
        "\(what): target is '\(target)'; only native (auto) is implemented: there is no debugger to ask")
    }
    guard try list.bool("enable", of: what) ?? true else {
      configuration.semihosting = nil
      return
    }
    var result = configuration.semihosting ?? SemihostingConfiguration()
    if let serves = try list.bool("userspace", of: what) { result.servesUserCode = serves }
    result.arguments += list.entries.filter { $0.key == "arg" }.map(\.value)
    configuration.semihosting = result
  }
}
