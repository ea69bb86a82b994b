// Layouts that differ between the generic 64-bit Linux ABI and the host's (x86-64) [Linux UAPI].

/// `struct stat` of asm-generic/stat.h from the host's.
public enum GuestStat {
  public enum Layout: Sendable {
    /// asm-generic/stat.h.
    case generic
    /// The host's own.
    case host
  }
  public static let byteCount = 128
  public static let hostByteCount = 144

  /// Converts the host's `hostByteCount` bytes to the guest's `byteCount` bytes.
  public static func convert(_ host: UnsafeRawPointer, to guest: UnsafeMutableRawPointer) {
    func word(_ offset: Int) -> UInt64 { host.load(fromByteOffset: offset, as: UInt64.self) }
    func half(_ offset: Int) -> UInt32 { host.load(fromByteOffset: offset, as: UInt32.self) }
    func put(_ value: UInt64, _ offset: Int) {
      guest.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }
    func put32(_ value: UInt32, _ offset: Int) {
      guest.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
    }
    guest.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
    put(word(0), 0)  // device
    put(word(8), 8)  // inode
    put32(half(24), 16)  // mode
    put32(UInt32(truncatingIfNeeded: word(16)), 20)  // links
    put32(half(28), 24)  // user
    put32(half(32), 28)  // group
    put(word(40), 32)  // special device
    put(word(48), 48)  // size
    put32(UInt32(truncatingIfNeeded: word(56)), 56)  // block size
    put(word(64), 64)  // blocks
    for k in 0..<6 { put(word(72 + 8 * k), 72 + 8 * k) }  // times
  }
}

/// Flags of open and fcntl where an architecture has its own: ARM's O_DIRECTORY, O_NOFOLLOW, O_DIRECT and O_LARGEFILE are
/// bits 14, 15, 16 and 17; asm-generic and the host have them at 16, 17, 14 and 15.
public enum GuestOpenFlags: Sendable {
  case generic
  case arm

  /// From the guest's to the host's, and back.
  public func converted(_ flags: UInt64) -> UInt64 {
    switch self {
    case .generic: flags
    case .arm: flags & ~0x3_c000 | (flags & 0xc000) << 2 | (flags & 0x3_0000) >> 2
    }
  }
}

/// `struct epoll_event`: packed on x86-64 only.
public enum GuestEpollEvent {
  public static let byteCount = 16
  public static let hostByteCount = 12
}

/// `struct sigaction` of the generic ABI: handler, flags, a restorer where the architecture has one, mask.
public struct GuestSignalAction: Sendable {
  public var handler: UInt64 = 0
  public var flags: UInt64 = 0
  /// What the handler returns to, with the flag `hasRestorer`.
  public var restorer: UInt64 = 0
  public var mask: UInt64 = 0
  public init() {}

  public static let noChildStop: UInt64 = 1
  public static let hasRestorer: UInt64 = 0x0400_0000
  public static let onStack: UInt64 = 0x0800_0000
  public static let restart: UInt64 = 0x1000_0000
  public static let noDefer: UInt64 = 0x4000_0000
  public static let resetHandler: UInt64 = 0x8000_0000
}

/// The signal frame of 64-bit RISC-V: siginfo, then ucontext.
///
/// ```
///    0  siginfo                 128
///  128  uc_flags, uc_link         16     144  uc_stack  24      168  uc_sigmask  128
///  304  pc, x1 .. x31            256     (16-byte aligned)
///  560  f0 .. f31                256     816  fcsr  4           the rest of 528 bytes reserved
/// ```
public enum RISCVSignalFrame {
  public static let byteCount: UInt64 = 1088
  public static let context: UInt64 = 128
  public static let stack = 144
  public static let mask = 168
  public static let registers = 304
  public static let floats = 560
  public static let floatControl = 816
}

/// AArch64's `struct rt_sigframe` and the frame record above it, as offsets from its start.
///
/// ```
///    0  siginfo     128      128  uc_flags, uc_link  16      144  uc_stack  24      168  uc_sigmask
///  304  fault address        312  x0 .. x30, sp, pc, pstate                          592  reserved, 4096 bytes:
///  592  fpsimd_context: magic and size, fpsr, fpcr, v0 .. v31 (528), then zeros      4688  x29, x30
/// ```
public enum AArch64SignalFrame {
  public static let byteCount: UInt64 = 4704
  public static let context: UInt64 = 128
  public static let stack = 144
  public static let mask = 168
  public static let faultAddress = 304
  public static let registers = 312
  public static let floats = 592
  /// FPSIMD_MAGIC, and the size of 528 bytes.
  public static let floatMagic: UInt64 = 0x4650_8001 | 528 << 32
  public static let frameRecord = 4688
}

/// Auxiliary vector keys.
public enum AuxiliaryKey {
  public static let null: UInt64 = 0
  public static let programHeaders: UInt64 = 3
  public static let programHeaderByteCount: UInt64 = 4
  public static let programHeaderCount: UInt64 = 5
  public static let pageByteCount: UInt64 = 6
  public static let interpreterBase: UInt64 = 7
  public static let flags: UInt64 = 8
  public static let entry: UInt64 = 9
  public static let user: UInt64 = 11
  public static let effectiveUser: UInt64 = 12
  public static let group: UInt64 = 13
  public static let effectiveGroup: UInt64 = 14
  public static let hardwareCapabilities: UInt64 = 16
  public static let hardwareCapabilities2: UInt64 = 26
  public static let platform: UInt64 = 15
  public static let clockTicks: UInt64 = 17
  public static let isSecure: UInt64 = 23
  public static let random: UInt64 = 25
  public static let programName: UInt64 = 31
  public static let vdso: UInt64 = 33
  public static let minimumSignalStack: UInt64 = 51
}

/// Signals by number, the same on the generic ABI and x86-64.
public enum GuestSignal {
  public static let interrupt = 2
  public static let illegal = 4
  public static let trap = 5
  public static let abort = 6
  public static let bus = 7
  public static let floatingPoint = 8
  public static let kill = 9
  public static let segmentation = 11
  public static let child = 17
  public static let stop = 19
  public static let system = 31

  public static let names = [
    "0", "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL",
    "SIGUSR1",
    "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO",
    "SIGPWR",
    "SIGSYS",
  ]
  public static func name(_ number: Int) -> String {
    number >= 0 && number < names.count ? names[number] : "SIG\(number)"
  }
}
