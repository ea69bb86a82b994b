import ApusAccelTranslate
import ApusHost
import ApusIR
import ApusUser

/// The options of the user-mode emulator. Each may come from the environment, too; the command line wins.
struct UserCommandLine {
  private var rest: ArraySlice<ByteString>
  private var options: UserOptions
  private(set) var logFile: String?
  private var argumentZero: ByteString?
  /// Started by binfmt_misc with the P flag: the program, its name for itself, its arguments.
  private let isByKernel: Bool
  private(set) var appendsLog = false
  private var set: [String] = []
  private var unset: [String] = []

  init(_ arguments: [ByteString], _ isa: any UserISA) {
    options = UserOptions(isa)
    rest = arguments.dropFirst()
    isByKernel = HostProcess.auxiliaryValue(8) & 1 != 0
  }

  private struct Option {
    let name: String
    let environment: String
    let value: String?
    let help: String
  }
  private static let all: [Option] = [
    Option(name: "help", environment: "", value: nil, help: "show this text"),
    Option(name: "version", environment: "", value: nil, help: "show the version"),
    Option(
      name: "L", environment: "LD_PREFIX", value: "DIRECTORY",
      help: "look the guest's absolute paths up below DIRECTORY first"),
    Option(
      name: "E", environment: "SET_ENV", value: "NAME=VALUE",
      help: "set a variable in the guest's environment"),
    Option(
      name: "U", environment: "UNSET_ENV", value: "NAME",
      help: "remove a variable from the guest's environment"),
    Option(name: "0", environment: "ARGV0", value: "NAME", help: "what the program sees as its own name"),
    Option(
      name: "s", environment: "STACK_SIZE", value: "BYTES",
      help: "size of the guest's stack; k, M or G may follow"),
    Option(
      name: "cpu", environment: "CPU", value: "MODEL", help: "CPU model and properties, like rv64,zba=off"),
    Option(
      name: "accel", environment: "ACCEL", value: "NAME",
      help: "jit (verify=on, perf-map=on, opt=-fold..., host-level=sse4) or interpreter"
    ),
    Option(
      name: "g", environment: "", value: "PORT", help: "wait for a debugger on PORT of the loopback interface"
    ),
    Option(name: "strace", environment: "STRACE", value: nil, help: "log system calls"),
    Option(
      name: "d", environment: "LOG", value: "ITEMS",
      help: "log in_asm, op, op_opt, out_asm, exec, cpu, strace, unimp"
    ),
    Option(name: "D", environment: "LOG_FILENAME", value: "FILE", help: "write the log to FILE"),
    Option(
      name: "append-log", environment: "", value: "FILE", help: "the same behind what FILE contains already"),
    Option(
      name: "exec-fd", environment: "", value: "NUMBER",
      help: "the descriptor that PROGRAM is open as; it is closed"),
    Option(
      name: "seccomp", environment: "", value: "NUMBER",
      help: "the descriptor that a program's filters are handed on in"),
    Option(
      name: "limits", environment: "", value: "LIMITS",
      help: "what a program with limits of its memory hands on when it executes another"),
    Option(
      name: "traced", environment: "", value: "TRACE",
      help: "what a traced program hands on when it executes another"),
  ]

  /// Reads the environment, then the arguments.
  mutating func parse() throws(ProgramError) -> UserOptions {
    for option in Self.all where !option.environment.isEmpty {
      for prefix in ["QEMU_", "APUS_"] {
        guard let value = HostProcess.environment(prefix + option.environment) else { continue }
        try apply(option, value)
      }
    }
    while !isByKernel, let bytes = rest.first, bytes.first == UInt8(ascii: "-"), bytes.count > 1 {
      let word = bytes.text
      rest.removeFirst()
      if word == "--" { break }
      let name = String(word.drop { $0 == "-" })
      guard let option = Self.all.first(where: { $0.name == name || ($0.name == "help" && name == "h") })
      else {
        throw ProgramError("there is no option '\(word)'; -help lists them", code: 1)
      }
      var value = ""
      if let what = option.value {
        guard let next = rest.popFirst() else {
          throw ProgramError("option '\(word)' needs a value: \(what)", code: 1)
        }
        if name == "0" {
          argumentZero = next
          continue
        }
        value = next.text
      }
      switch name {
      case "E", "U", "exec-fd", "g", "traced", "seccomp", "limits": break
      // The log goes on in the same file.
      case "D", "append-log": options.inherited += ["-append-log", value]
      default: options.inherited += option.value == nil ? [word] : [word, value]
      }
      try apply(option, value)
    }
    guard let path = rest.popFirst() else {
      throw ProgramError(
        "a program to run is missing: apus-\(options.isa.name) [OPTIONS] PROGRAM [ARGUMENTS]", code: 1)
    }
    options.path = path
    if isByKernel { argumentZero = rest.popFirst() }
    let kernelFile = HostProcess.auxiliaryValue(2)
    if kernelFile > 2, options.descriptor == nil {
      options.descriptor = Int32(truncatingIfNeeded: kernelFile)
    }
    options.arguments = [argumentZero ?? path] + rest
    options.environment = environment()
    if let warning = options.translate.adaptToHost() {
      writeStandardError("apus-\(options.isa.name): \(warning)\n")
      // The programs that it executes need not say it again.
      options.inherited += ["-accel", "interpreter"]
    }
    let log = options.translate.log.items
    if !log.isEmpty { options.translate.log.write = { HostLog.write($0) } }
    return options
  }

  private func environment() -> [ByteString] {
    var result = HostProcess.environmentBytes
    if unset.isEmpty && set.isEmpty { return result }
    func remove(_ name: some StringProtocol) { result.removeAll { $0.starts(with: (name + "=").utf8) } }
    for name in unset { remove(name) }
    for assignment in set {
      remove(assignment.prefix { $0 != "=" })
      result.append(ByteString(text: assignment))
    }
    return result
  }

  private mutating func apply(_ option: Option, _ value: String) throws(ProgramError) {
    switch option.name {
    case "help":
      writeStandardOutput(help)
      HostProcess.exit(0)
    case "version":
      writeStandardOutput("Apus user-mode emulator version \(UserTool.version)\n")
      HostProcess.exit(0)
    case "L":
      guard let prefix = HostProcess.absolutePath(value) else {
        throw ProgramError("-L: there is no directory '\(value)'", code: 1)
      }
      options.prefix = prefix == "/" ? [] : ByteString(text: prefix)
    case "g":
      guard let port = UInt16(value), port > 0 else {
        throw ProgramError("-g: '\(value)' is no port", code: 1)
      }
      options.debuggerPort = port
    case "exec-fd":
      guard let number = Int32(value), number > 2 else {
        throw ProgramError("-exec-fd: '\(value)' is no descriptor", code: 1)
      }
      options.descriptor = number
    case "seccomp":
      guard let number = Int32(value), number > 2 else {
        throw ProgramError("-seccomp: '\(value)' is no descriptor", code: 1)
      }
      options.filterFile = number
    case "traced":
      guard let trace = HandedOnTrace(value) else {
        throw ProgramError("-traced: '\(value)' is no such thing; it is for the emulator itself", code: 1)
      }
      options.trace = trace
    case "limits":
      guard let limits = Self.limits(value) else {
        throw ProgramError("-limits: '\(value)' is no such thing; it is for the emulator itself", code: 1)
      }
      options.limits = limits
    case "E": set += value.split(separator: ",").map(String.init)
    case "U": unset += value.split(separator: ",").map(String.init)
    case "s": options.stackByteCount = try byteCount(value)
    case "cpu": try options.isa.select(value)
    case "accel": try selectAccelerator(value)
    case "strace": options.tracesCalls = true
    case "d": try selectLog(value)
    case "D": logFile = value
    case "append-log":
      logFile = value
      appendsLog = true
    default: break
    }
  }

  /// `resource=soft:hard,...`.
  private static func limits(_ text: String) -> [Int: (UInt64, UInt64)]? {
    var result: [Int: (UInt64, UInt64)] = [:]
    for entry in text.split(separator: ",") {
      let numbers = entry.split { $0 == "=" || $0 == ":" }.map { UInt64($0) }
      guard numbers.count == 3, let resource = numbers[0], [2, 3, 9].contains(resource),
        let soft = numbers[1],
        let hard = numbers[2], soft <= hard
      else { return nil }
      result[Int(resource)] = (soft, hard)
    }
    return result
  }

  private func byteCount(_ text: String) throws(ProgramError) -> UInt64 {
    var digits = text[...]
    var shift: UInt64 = 0
    switch text.last {
    case "k", "K": shift = 10
    case "m", "M": shift = 20
    case "g", "G": shift = 30
    default: break
    }
    if shift > 0 { digits = digits.dropLast() }
    guard let number = UInt64(digits), number > 0, number < 1 << 20 || shift < 30, number << shift >= 4096,
      number << shift <= 1 << 36
    else { throw ProgramError("-s: '\(text)' is no stack size; it must be from 4k to 64G", code: 1) }
    return (number << shift + 4095) & ~4095
  }

  private mutating func selectAccelerator(_ text: String) throws(ProgramError) {
    let words = text.split(separator: ",")
    switch words.first {
    case "jit", "tcg": options.translate.engine = .jit
    case "interpreter": options.translate.engine = .interpreter
    default: throw ProgramError("-accel: '\(text)' is none; there are jit and interpreter", code: 1)
    }
    for word in words.dropFirst() {
      let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
      switch (parts.first, parts.count) {
      case ("verify", 2), ("perf-map", 2):
        guard parts[1] == "on" || parts[1] == "off" else {
          throw ProgramError("-accel: \(parts[0]) is 'on' or 'off', not '\(parts[1])'", code: 1)
        }
        if parts[0] == "verify" {
          options.translate.verifies = parts[1] == "on"
        } else {
          options.translate.writesPerfMap = parts[1] == "on"
        }
      case ("opt", 2): try selectOptimisations(parts[1])
      case ("host-level", 2):
        do throws(HostLevelError) { try options.translate.limitHostLevel(parts[1]) } catch {
          throw ProgramError("-accel: \(error.description)", code: 1)
        }
      default:
        throw ProgramError(
          "-accel: '\(word)' is no property; there are verify=on, perf-map=on, opt= and host-level=", code: 1)
      }
    }
  }

  /// `none`, `all`, or names with - in front to switch one off: `opt=-fold-pin`, `opt=fold+pin`.
  private mutating func selectOptimisations(_ text: String) throws(ProgramError) {
    if text == "all" { return }
    if text == "none" {
      options.translate.optimisations = []
      return
    }
    var result: IROptimisations = text.hasPrefix("-") ? .all : []
    // Names contain hyphens themselves: longest first.
    var rest = text[...]
    while !rest.isEmpty {
      let isOff = rest.hasPrefix("-")
      if isOff || rest.hasPrefix("+") { rest.removeFirst() }
      guard let (name, one) = IROptimisations.names.first(where: { rest.hasPrefix($0.0) }) else {
        let names = IROptimisations.names.map(\.0).joined(separator: ", ")
        throw ProgramError("-accel: '\(rest)' is no optimisation; there are \(names)", code: 1)
      }
      if isOff { result.remove(one) } else { result.insert(one) }
      rest = rest.dropFirst(name.count)
    }
    options.translate.optimisations = result
  }

  private mutating func selectLog(_ text: String) throws(ProgramError) {
    for word in text.split(separator: ",") {
      switch word {
      case "strace": options.tracesCalls = true
      case "unimp": options.logsUnimplemented = true
      default:
        guard let item = TranslateLog.Items.names.first(where: { $0.0 == word })?.1, item != .mmu,
          item != .interrupts
        else { throw ProgramError("-d: there is no log item '\(word)' in user mode", code: 1) }
        options.translate.log.items.insert(item)
      }
    }
  }

  private var help: String {
    let name = options.isa.name
    var text = "usage: apus-\(name) [OPTIONS] PROGRAM [ARGUMENTS]\nRuns a \(name) Linux program.\n\n"
    for option in Self.all {
      let left = "-\(option.name)" + (option.value.map { " \($0)" } ?? "")
      text += "  " + left + String(repeating: " ", count: max(1, 22 - left.count)) + option.help + "\n"
      if !option.environment.isEmpty {
        text += String(repeating: " ", count: 24) + "or APUS_\(option.environment)\n"
      }
    }
    return text
  }
}
