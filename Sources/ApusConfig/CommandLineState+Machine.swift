extension CommandLineState {
  static let machineProperties = [
    "type", "accel", "dumpdtb", "kernel", "initrd", "append", "dtb", "firmware", "pflash0", "pflash1",
    "aclint",
    "aia", "acpi", "usb", "graphics", "mem-merge", "dump-guest-core", "memory-backend",
  ]

  mutating func setMachine(_ text: String) throws(ConfigurationError) {
    if text == "help" || text == "?" {
      invocation = .show(MachineModel.help(configuration.target))
      return
    }
    let list = try OptionList(parsing: text, impliedKey: "type")
    let isArm = configuration.target == .aarch64
    let known =
      isArm
      ? Self.machineProperties.filter { $0 != "aclint" && $0 != "aia" } + ArmConfiguration.machineProperties
      : Self.machineProperties
    for entry in list.entries {
      guard known.contains(entry.key) else {
        throw .unknown("property of machine \(configuration.machine)", entry.key, among: known)
      }
      if entry.key != "type" { givenProperties.append(entry.key) }
      let what = "-machine \(configuration.machine)"
      if isArm, try configuration.arm.setMachineProperty(entry, list, what) { continue }
      try setMachineProperty(entry, list)
    }
  }

  private mutating func setMachineProperty(_ entry: OptionList.Entry, _ list: OptionList)
    throws(ConfigurationError)
  {
    let what = "-machine \(configuration.machine)"
    switch entry.key {
    case "type":
      let names = MachineModel.all(of: configuration.target).map(\.name)
      guard names.contains(entry.value) else { throw .unknown("machine", entry.value, among: names) }
      configuration.machine = entry.value
    case "accel":
      for name in entry.value.split(separator: ":") { try addAccelerator(String(name)) }
    case "dumpdtb": configuration.dumpDeviceTree = entry.value
    case "kernel": configuration.kernel = entry.value
    case "initrd": configuration.initrd = entry.value
    case "append": configuration.commandLine = entry.value
    case "dtb": configuration.deviceTree = entry.value
    case "firmware": configuration.firmware = .file(entry.value)
    case "pflash0", "pflash1": configuration.machineOptions.entries.append(entry)
    case "aia":
      guard entry.value == "none" else {
        throw ConfigurationError("\(what): aia is '\(entry.value)'; only none (a PLIC) is implemented")
      }
    case "memory-backend":
      throw ConfigurationError("\(what): memory-backend is not implemented; use -m")
    case "aclint", "acpi", "usb":
      if try list.bool(entry.key, of: what) == true {
        throw ConfigurationError("\(what): \(entry.key)=on is not implemented; leave it off")
      }
    case "dump-guest-core":
      configuration.dumpsGuestMemory = try list.bool(entry.key, of: what) ?? true
    case "mem-merge":
      if try list.bool(entry.key, of: what) == true {
        throw ConfigurationError(
          "\(what): mem-merge=on is not implemented: the host cannot merge shared memory; leave it off")
      }
    default:  // graphics
      if try list.bool(entry.key, of: what) == true {
        throw ConfigurationError(
          "\(what): graphics=on is not implemented: there is no display yet; leave it off")
      }
    }
  }

  mutating func addAccelerator(_ text: String) throws(ConfigurationError) {
    var list = try OptionList(parsing: text, impliedKey: "accel")
    let name = list.take("accel") ?? ""
    switch name {
    case "jit", "tcg": configuration.accelerators.append(.init("jit", list))
    case "interpreter": configuration.accelerators.append(.init(name, list))
    case "help", "?": invocation = .show("Accelerators supported:\njit (tcg)\ninterpreter\n")
    case "kvm":
      throw ConfigurationError(
        "-accel kvm: this host cannot run \(configuration.target) guests natively; use jit")
    default: throw .unknown("accelerator", name, among: ["jit", "tcg", "interpreter"])
    }
  }

  mutating func setSMP(_ text: String) throws(ConfigurationError) {
    let list = try OptionList(parsing: text, impliedKey: "cpus")
    try list.check(
      known: ["cpus", "sockets", "dies", "clusters", "cores", "threads", "maxcpus"], of: "-smp")
    func number(_ key: String) throws(ConfigurationError) -> Int? {
      try list.number(key, of: "-smp", in: 1...1024).map { Int($0) }
    }
    // Without a total, a level that is left out counts one; with one, cores (else sockets, else threads) make it up.
    let levels = ["sockets", "dies", "clusters", "cores", "threads"]
    var counts: [String: Int] = [:]
    for level in levels { counts[level] = try number(level) }
    func product() -> Int {
      counts.values.reduce(1) { product, count in
        let (value, overflow) = product.multipliedReportingOverflow(by: count)
        return overflow ? .max : value
      }
    }
    let cpus = try number("cpus")
    let given = try number("maxcpus") ?? cpus
    if let given, let missing = ["cores", "sockets", "threads"].first(where: { counts[$0] == nil }) {
      counts[missing] = max(1, given / product())
    }
    let maximum = given ?? product()
    let count = cpus ?? maximum
    guard count <= 8, maximum <= 8 else {
      throw ConfigurationError("-smp \(text): machines have at most 8 CPUs here")
    }
    guard count <= maximum else {
      throw ConfigurationError("-smp \(text): \(count) CPUs are more than maxcpus=\(maximum)")
    }
    guard product() == maximum else {
      let described = levels.compactMap { level in counts[level].map { "\(level)=\($0)" } }
      throw ConfigurationError(
        "-smp \(text): \(described.joined(separator: ",")) make \(product()) CPUs, not the \(maximum) asked for"
      )
    }
    givenCPUCount = count
  }

  mutating func setMemory(_ text: String) throws(ConfigurationError) {
    let list = try OptionList(parsing: text, impliedKey: "size")
    try list.check(known: ["size", "slots", "maxmem"], of: "-m")
    guard list["slots"] == nil, list["maxmem"] == nil else {
      throw ConfigurationError("-m \(text): memory cannot be plugged in later yet; give only the size")
    }
    guard let size = list["size"].flatMap({ parseSize($0, unit: 1 << 20) }), size > 0 else {
      throw ConfigurationError("-m '\(text)': it must be a size like 512, 512M or 2G")
    }
    guard size >= 1 << 20, size <= 1 << 40 else {
      throw ConfigurationError("-m \(text): machines take from 1M to 1T of memory")
    }
    givenMemory = (size + 4095) & ~4095
  }

  mutating func setRTC(_ text: String) throws(ConfigurationError) {
    let list = try OptionList(parsing: text)
    try list.check(known: ["base", "clock", "driftfix"], of: "-rtc")
    if let clock = list["clock"], clock != "host" {
      throw ConfigurationError("-rtc: clock is '\(clock)'; only host is implemented")
    }
    if let fix = list["driftfix"], fix != "none" {
      throw ConfigurationError("-rtc: driftfix is '\(fix)'; only none is implemented")
    }
    switch list["base"] {
    case nil, "utc": configuration.rtcBase = .utc
    case "localtime": configuration.rtcBase = .localTime
    case let text?:
      guard let seconds = Self.seconds(text) else {
        throw ConfigurationError(
          "-rtc: base is '\(text)'; it must be utc, localtime or a date like 2026-01-31T12:00:00")
      }
      configuration.rtcBase = .date(seconds)
    }
  }

  /// Seconds since 1970 of `YYYY-MM-DD` with or without `Thh:mm:ss`, in UTC.
  private static func seconds(_ text: String) -> Int64? {
    let parts = text.split(separator: "T", omittingEmptySubsequences: false)
    let date = parts[0].split(separator: "-").map { Int64($0) ?? -1 }
    let time = parts.count > 1 ? parts[1].split(separator: ":").map { Int64($0) ?? -1 } : [0, 0, 0]
    guard parts.count <= 2, date.count == 3, time.count == 3, (1970...9999).contains(date[0]),
      (1...12).contains(date[1]), (1...31).contains(date[2]), (0..<24).contains(time[0]),
      (0..<60).contains(time[1]), (0..<60).contains(time[2])
    else { return nil }
    // Days since 1970 by the civil calendar, counted in years that begin in March.
    let year = date[1] <= 2 ? date[0] - 1 : date[0]
    let month = (date[1] + 9) % 12
    let days =
      365 * year + year / 4 - year / 100 + year / 400 + (month * 306 + 5) / 10 + date[2] - 1 - 719_468
    return days * 86400 + time[0] * 3600 + time[1] * 60 + time[2]
  }

  mutating func addDevice(_ text: String) throws(ConfigurationError) {
    var list = try OptionList(parsing: text, impliedKey: "driver")
    guard let name = list.take("driver"), !name.isEmpty else {
      throw ConfigurationError("-device '\(text)': the driver is missing")
    }
    if name == "help" || name == "?" {
      invocation = .listDevices
    } else if list["help"] != nil || list["?"] != nil {
      invocation = .describeDevice(name)
    } else {
      configuration.devices.append(.init(name, list))
    }
  }
}
