/// One option of the command line, and how it changes the configuration.
struct CommandLineOption: Sendable {
  enum Action: Sendable {
    case flag(@Sendable (inout CommandLineState) -> Void)
    /// Throws only `ConfigurationError`; a closure's typed throws would have to be written out in every row.
    case value(@Sendable (inout CommandLineState, String) throws -> Void)
    /// QEMU's, and not here yet.
    case refused
  }
  let name: String
  /// What follows the name in the help, and the help itself.
  let usage: String
  let action: Action

  static func flag(
    _ name: String, _ usage: String, _ body: @escaping @Sendable (inout CommandLineState) -> Void
  )
    -> CommandLineOption
  { .init(name: name, usage: usage, action: .flag(body)) }
  static func value(
    _ name: String, _ usage: String,
    _ body: @escaping @Sendable (inout CommandLineState, String) throws -> Void
  ) -> CommandLineOption { .init(name: name, usage: usage, action: .value(body)) }
}

/// What gathers while options are read, before defaults are filled in.
struct CommandLineState {
  var configuration = MachineConfiguration()
  var noGraphic = false
  var displayIsNone = false
  /// The values of `-serial`, in order.
  var serials: [String] = []
  /// What `-machine`, `-smp`, `-m` and `-cpu` said, for the machine to judge when it is known.
  var givenProperties: [String] = []
  var givenCPUCount: Int?
  var givenMemory: UInt64?
  var hasCPU = false
  /// Set when an option asks for something else than a machine.
  var invocation: Invocation?
}

extension CommandLineOption {
  /// QEMU's options that a session may use, known but not implemented: refused by name, not as unknown.
  static let refusedNames = [
    "global", "qmp", "qmp-pretty", "gdb", "s", "incoming", "loadvm",
    "vnc",
    "spice", "audio", "audiodev", "usb", "usbdevice", "icount", "vga", "k", "full-screen", "snapshot", "hda",
    "hdb",
    "hdc", "hdd", "cdrom", "fda", "fdb", "mtdblock", "virtfs", "fsdev", "net", "parallel", "mon",
    "boot",
    "numa", "mem-path", "mem-prealloc", "plugin", "trace", "sandbox", "chroot", "runas", "user", "readconfig",
    "watchdog-action", "smbios", "acpitable", "tpmdev", "seed", "singlestep", "one-insn-per-tb", "action",
    "overcommit", "add-fd", "set", "bt", "L", "async-teardown", "compat", "dfilter", "debugcon", "enable-kvm",
    "no-hpet", "no-acpi", "preconfig", "tb-size", "perfmap", "jitdump", "xen-domid",
  ]

  static let all: [CommandLineOption] =
    machineOptions + bootOptions + semihostingOptions + deviceOptions + runOptions
    + refusedNames.map { .init(name: $0, usage: "", action: .refused) }

  private static let machineOptions: [CommandLineOption] = [
    .value("machine", "TYPE[,key=value...]  the machine; 'help' lists them") { try $0.setMachine($1) },
    .value("M", "TYPE[,key=value...]  the same as -machine") { try $0.setMachine($1) },
    .value("cpu", "MODEL[,extension=on|off...]  the CPUs; 'help' lists models and extensions") {
      state, text in
      let isArm = state.configuration.target == .aarch64
      if text == "help" || text == "?" {
        state.invocation = .show(isArm ? ArmConfiguration.cpuHelp : CPUConfiguration.help)
      } else if isArm {
        try state.configuration.arm.setCPU(text)
        state.hasCPU = true
      } else {
        state.configuration.cpu = try CPUConfiguration(parsing: text)
      }
    },
    .value("smp", "N  the number of CPUs, 1 to 8") { try $0.setSMP($1) },
    .value("m", "SIZE  the memory, in MiB or with a suffix (K, M, G, T)") { try $0.setMemory($1) },
    .value("accel", "NAME[,key=value...]  how guest code runs: jit (tcg), interpreter") {
      try $0.addAccelerator($1)
    },
    .value("name", "NAME  what the machine is called") { state, text in
      let list = try OptionList(parsing: text, impliedKey: "guest")
      try list.check(known: ["guest", "debug-threads", "process"], of: "-name")
      state.configuration.name = list["guest"]
      state.configuration.processName = list["process"]
      if try list.bool("debug-threads", of: "-name") == false {
        throw ConfigurationError(
          "-name: debug-threads=off is not implemented; threads always have names here")
      }
    },
    .value("uuid", "UUID  the machine's identifier") { state, text in
      let digits = text.filter { $0 != "-" }
      let bytes = stride(from: 0, to: digits.count, by: 2).compactMap {
        UInt8(digits.dropFirst($0).prefix(2), radix: 16)
      }
      guard digits.count == 32, bytes.count == 16 else {
        throw ConfigurationError(
          "-uuid '\(text)': it must be 32 hexadecimal digits, like "
            + "550e8400-e29b-41d4-a716-446655440000")
      }
      state.configuration.uuid = bytes
    },
    .value("rtc", "base=utc|localtime|DATE  what the clock shows at the start") { try $0.setRTC($1) },
  ]

  private static let bootOptions: [CommandLineOption] = [
    .value("bios", "default|none|FILE  the firmware") { state, text in
      state.configuration.firmware = text == "none" ? .none : text == "default" ? .standard : .file(text)
    },
    .value("kernel", "FILE  the kernel: ELF or Image") { $0.configuration.kernel = $1 },
    .value("initrd", "FILE  the initial RAM disk") { $0.configuration.initrd = $1 },
    .value("append", "TEXT  the kernel's command line") { $0.configuration.commandLine = $1 },
    .value("dtb", "FILE  a device tree instead of the machine's own") { $0.configuration.deviceTree = $1 },
    .value("fw_cfg", "[name=]NAME,file=FILE|string=TEXT  a file for the firmware") { state, text in
      let list = try OptionList(parsing: text, impliedKey: "name")
      try list.check(known: ["name", "file", "string"], of: "-fw_cfg")
      guard list["name"] != nil, (list["file"] == nil) != (list["string"] == nil) else {
        throw ConfigurationError("-fw_cfg '\(text)': it needs name= and one of file= and string=")
      }
      state.configuration.firmwareFiles.append(list)
    },
  ]

  private static let semihostingOptions: [CommandLineOption] = [
    .flag("semihosting", "let guest programs reach this host's files by semihosting calls") {
      $0.configuration.semihosting = $0.configuration.semihosting ?? SemihostingConfiguration()
    },
    .value(
      "semihosting-config",
      "[enable=]on|off[,target=native|auto][,userspace=on|off][,arg=TEXT...]  the same, with arguments for the program"
    ) { try $0.configureSemihosting($1) },
  ]

  private static let deviceOptions: [CommandLineOption] = [
    .value("device", "DRIVER[,key=value...]  a device; 'help' lists them, 'DRIVER,help' its properties") {
      try $0.addDevice($1)
    },
    .value("drive", "file=FILE,if=virtio|none|pflash|sd,format=raw|qcow2...  a disk") { state, text in
      state.configuration.drives.append(try OptionList(parsing: text))
    },
    .value("sd", "FILE  a memory card: the same as -drive file=FILE,if=sd") { state, text in
      state.configuration.drives.append(OptionList([.init("file", text), .init("if", "sd")]))
    },
    .value("blockdev", "DRIVER,node-name=NAME,...  a block node") { state, text in
      state.configuration.blockDevices.append(try item(text, "driver", of: "-blockdev"))
    },
    .value("netdev", "KIND,id=ID,...  a network back end") { state, text in
      let item = try item(text, "type", of: "-netdev")
      guard item.id != nil else { throw ConfigurationError("-netdev \(text): id= is missing") }
      state.configuration.netDevices.append(item)
    },
    .value("nic", "KIND|none,...  a network card with its back end") { state, text in
      state.configuration.nics.append(try OptionList(parsing: text, impliedKey: "type"))
    },
    .value("object", "TYPE,id=ID,...  a helper object (rng-random, ...)") { state, text in
      state.configuration.objects.append(try item(text, "qom-type", of: "-object"))
    },
    .value("chardev", "KIND,id=ID,...  a character device: null, stdio, file, pipe, pty, socket") {
      state, text in
      let device = try CharDevConfiguration(chardev: text)
      guard !state.configuration.charDevs.contains(where: { $0.id == device.id }) else {
        throw ConfigurationError("-chardev: the id '\(device.id)' is used twice")
      }
      state.configuration.charDevs.append(device)
    },
    .value(
      "serial", "DEVICE  the serial port: stdio, mon:stdio, file:, unix:, tcp:, pty, null, none, chardev:ID"
    ) {
      $0.serials.append($1)
    },
    .value("monitor", "none|null  the monitor (no other yet)") { _, text in
      guard text == "none" || text == "null" else {
        throw ConfigurationError("-monitor '\(text)': there is no monitor yet; use none")
      }
    },
    .value("display", "none  the display (no other yet)") { state, text in
      guard text == "none" else {
        throw ConfigurationError("-display '\(text)': there is no display yet; use none")
      }
      state.displayIsNone = true
    },
    .flag("nographic", "no display, serial port on this terminal (Ctrl-a h for help)") {
      $0.noGraphic = true
    },
    .flag("nodefaults", "no devices that were not asked for") { $0.configuration.noDefaults = true },
    .flag("no-user-config", "accepted; there are no configuration files") { _ in },
  ]

  /// `guest_errors` and `unimp` are the devices', which do not tell them apart; the others are for the engine.
  static let logItems = [
    "guest_errors", "unimp", "in_asm", "op", "op_opt", "out_asm", "exec", "cpu", "int", "mmu", "nochain",
  ]

  private static let runOptions: [CommandLineOption] = [
    .flag("S", "start paused") { $0.configuration.startsPaused = true },
    .flag("no-reboot", "end instead of rebooting") { $0.configuration.noReboot = true },
    .flag("no-shutdown", "pause instead of ending when the guest powers off") {
      $0.configuration.noShutdown = true
    },
    .value("msg", "timestamp=on|off,guest-name=on|off  what stands in front of messages") { state, text in
      let list = try OptionList(parsing: text)
      try list.check(known: ["timestamp", "guest-name"], of: "-msg")
      state.configuration.messages.hasTimestamp = try list.bool("timestamp", of: "-msg") ?? false
      state.configuration.messages.hasGuestName = try list.bool("guest-name", of: "-msg") ?? false
    },
    .flag("daemonize", "go to the background when all is set up") { $0.configuration.daemonize = true },
    .value("pidfile", "FILE  where the process number is written") { $0.configuration.pidFile = $1 },
    .value("d", "ITEM[,...]  what to log; 'help' lists the items") { state, text in
      if text == "help" || text == "?" {
        state.invocation = .show("Log items: \(logItems.joined(separator: ", "))\n")
        return
      }
      for item in text.split(separator: ",").map(String.init) {
        guard logItems.contains(item) else {
          throw ConfigurationError.unknown("log item", item, among: logItems)
        }
        state.configuration.logItems.append(item)
      }
    },
    .value("D", "FILE  where to log") { $0.configuration.logFile = $1 },
    .flag("version", "show the version") { $0.invocation = .showVersion },
    .flag("isa-coverage", "show how many of the known encodings are implemented") {
      $0.invocation = .showCoverage
    },
    .flag("help", "show this help") { $0.invocation = .show(help($0.configuration.target)) },
    .flag("h", "the same as -help") { $0.invocation = .show(help($0.configuration.target)) },
  ]

  private static func item(_ text: String, _ key: String, of option: String) throws(ConfigurationError)
    -> MachineConfiguration.Item
  {
    var list = try OptionList(parsing: text, impliedKey: key)
    guard let name = list.take(key), !name.isEmpty else {
      throw ConfigurationError("\(option) '\(text)': \(key)= is missing")
    }
    return .init(name, list)
  }

  private static func help(_ target: MachineConfiguration.Target) -> String {
    var text = "usage: apus-system-\(target) [options]\n\n"
    for option in machineOptions + bootOptions + semihostingOptions + deviceOptions + runOptions {
      text += "-\(option.name) \(option.usage)\n"
    }
    return text
      + "\nOptions may begin with one dash or two. Ctrl-a h shows the keys during a -nographic session.\n"
  }
}
