/// What the command line asks for, as plain values; nothing is opened or looked up yet.
public struct MachineConfiguration: Equatable, Sendable {
  public enum Firmware: Equatable, Sendable {
    /// OpenSBI, where distributions put it.
    case standard
    case none
    case file(String)

    public var isFile: Bool { if case .file = self { true } else { false } }
  }
  /// A line of `-device`, `-object`, `-netdev` or `-blockdev`: what and how.
  public struct Item: Equatable, Sendable {
    /// The driver, type or back end.
    public var name: String
    public var options: OptionList
    public var id: String? { options["id"] }
    public init(_ name: String, _ options: OptionList) { (self.name, self.options) = (name, options) }
  }
  public struct Accelerator: Equatable, Sendable {
    /// `jit` (also for `tcg`), `interpreter`, `kvm`.
    public var name: String
    /// Passed to the engine as they are.
    public var options: OptionList
    public init(_ name: String, _ options: OptionList = .init()) {
      (self.name, self.options) = (name, options)
    }
  }
  /// What stands in front of the emulator's messages (`-msg`).
  public struct MessageFormat: Equatable, Sendable {
    public var hasTimestamp = false
    public var hasGuestName = false
    public init() {}
  }
  public enum RTCBase: Equatable, Sendable {
    case utc, localTime
    /// Seconds since 1970.
    case date(Int64)
  }

  /// The guest's architecture.
  public enum Target: String, CaseIterable, Sendable { case riscv64, aarch64 }
  public var target = Target.riscv64
  public var arm = ArmConfiguration()
  public var machine = "virt"
  /// Machine properties without a field of their own.
  public var machineOptions = OptionList()
  public var dumpDeviceTree: String?
  public var memoryByteCount: UInt64 = 128 << 20
  public var cpuCount = 1
  public var cpu = CPUConfiguration()
  /// Guest memory is part of a core dump of the emulator.
  public var dumpsGuestMemory = true
  public var accelerators: [Accelerator] = []

  public var firmware = Firmware.standard
  public var kernel: String?
  public var initrd: String?
  public var commandLine: String?
  public var deviceTree: String?

  public var devices: [Item] = []
  public var drives: [OptionList] = []
  public var blockDevices: [Item] = []
  public var netDevices: [Item] = []
  public var nics: [OptionList] = []
  public var objects: [Item] = []
  public var firmwareFiles: [OptionList] = []

  public var charDevs: [CharDevConfiguration] = []
  /// The ids of the char devices behind the serial ports, `nil` for none.
  public var serials: [String?] = []

  /// Guest programs reach the host's files; `nil`: they do not.
  public var semihosting: SemihostingConfiguration?

  public var noDefaults = false
  public var noReboot = false
  public var noShutdown = false
  public var startsPaused = false
  public var daemonize = false
  public var pidFile: String?
  public var name: String?
  /// What `ps` shows instead of the program's name.
  public var processName: String?
  public var messages = MessageFormat()
  /// 16 bytes.
  public var uuid: [UInt8]?
  public var rtcBase = RTCBase.utc
  public var logItems: [String] = []
  public var logFile: String?

  public init() {}
}

/// One character device.
public struct CharDevConfiguration: Equatable, Sendable {
  public struct Socket: Equatable, Sendable {
    public var address: SocketAddress
    public var isServer = false
    /// A server's start waits for its client.
    public var waits = true
    /// Small writes are sent at once (TCP).
    public var isUndelayed = false
    public init(address: SocketAddress) { self.address = address }
  }
  public enum Kind: Equatable, Sendable {
    case null
    /// - signals: whether Ctrl-C ends the emulator.
    case stdio(signals: Bool)
    case file(path: String, append: Bool)
    case pipe(path: String)
    case pty
    case socket(Socket)
  }
  public var id: String
  public var kind: Kind
  /// With Ctrl-a commands to the emulator.
  public var isMultiplexed = false
  public init(id: String, kind: Kind, isMultiplexed: Bool = false) {
    (self.id, self.kind, self.isMultiplexed) = (id, kind, isMultiplexed)
  }
}

/// Where a socket is.
public enum SocketAddress: Equatable, Sendable {
  case unix(path: String)
  case tcp(host: String, port: UInt16)
}
