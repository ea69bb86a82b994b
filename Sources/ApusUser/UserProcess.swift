import ApusAccelTranslate
import ApusCPU
import ApusGuest
import ApusGuestRISCV
import ApusHost
import ApusISARISCV
import ApusUserABI
import CApusHost
import Glibc

/// How a program is to be run.
public struct UserOptions: Sendable {
  /// The program's path and its arguments, the first of which is its name for itself.
  public var path = ""
  public var arguments: [String] = []
  /// As `name=value`.
  public var environment: [String] = []
  /// `-L`: where absolute paths of the guest are looked up first.
  public var prefix = ""
  public var stackByteCount = InitialStack.defaultByteCount
  public var tracesCalls = false
  public var logsUnimplemented = false
  public var extensions = RISCVExtensionSet.default
  public var translate = TranslateOptions()
  /// The emulator's own options, for programs that the guest executes.
  public var inherited: [String] = []
  public init() {}
}

/// A guest process: what its threads share.
public final class UserProcess: @unchecked Sendable {
  public let options: UserOptions
  public let memory = UserMemory()
  let cache: TranslationCache
  let clock = GuestClock()
  private let lock = Monitor()
  // Guarded by `lock`.
  private var threads: [Int: UserThread] = [:]
  private var actions = [GuestSignalAction](repeating: GuestSignalAction(), count: 65)
  /// Absolute path of the program, for /proc/self/exe.
  let programPath: String
  /// The page that a signal handler returns to.
  private(set) var signalReturn: UInt64 = 0

  public init(_ options: UserOptions) throws(ProgramError) {
    self.options = options
    programPath = Self.absolute(options.path)
    var translate = options.translate
    translate.forks = true
    do throws(HostError) {
      cache = try TranslationCache(memory: nil, options: translate)
    } catch { throw ProgramError(error.description) }
    cache.onCodePage = { [memory] page in memory.protectCode(page) }
    memory.dropCode = { [cache] start, end in cache.invalidateFlat(start, end) }
  }

  private static func absolute(_ path: String) -> String {
    guard let resolved = realpath(path, nil) else { return path }
    defer { free(resolved) }
    return String(cString: resolved)
  }

  /// Loads the program and runs it. Returns only if it cannot be loaded.
  public func run() throws(ProgramError) -> Never {
    for number in [SIGSEGV, SIGBUS] { _ = apus_user_catch(number) }
    let loader = ProgramLoader(memory: memory) { [self] in resolve($0) }
    let program = try loader.load(options.path)
    memory.startBreak(program.end)
    guard
      let stackPointer = InitialStack.build(
        memory, byteCount: options.stackByteCount, arguments: options.arguments,
        environment: options.environment,
        path: options.path, program: program, hardwareCapabilities: hardwareCapabilities)
    else { throw ProgramError("cannot run '\(options.path)': there is no memory for its stack") }
    try mapSignalReturn()
    let thread: UserThread
    do throws(HostError) { thread = try UserThread(self) } catch { throw ProgramError(error.description) }
    add(thread, apus_gettid())
    var mask: UInt64 = 0
    _ = apus_user_set_mask(0, nil, &mask)
    thread.mask = mask
    thread.cpu.enterUserEmulation(pc: program.start, stackPointer: stackPointer)
    thread.run()
    // The initial thread ended while others go on.
    _ = apus_syscall(60, 0, 0, 0, 0, 0, 0)
    _exit(0)
  }

  /// AT_HWCAP: one bit for each single-letter extension.
  private var hardwareCapabilities: UInt64 {
    var bits: UInt64 = 0
    for (letter, one) in [("i", RISCVExtension.i), ("m", .m), ("a", .a), ("f", .f), ("d", .d), ("c", .c)]
      as [(Unicode.Scalar, RISCVExtension)] where options.extensions.contains(one)
    {
      bits |= 1 << UInt64(letter.value - 97)
    }
    return bits
  }

  /// li a7, rt_sigreturn; ecall.
  private func mapSignalReturn() throws(ProgramError) {
    let page = memory.map(0x3f_0001_0000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard page > 0, memory.write(UInt64(page), 0x0000_0073_08b0_0893 as UInt64) else {
      throw ProgramError("there is no memory for the signal trampoline")
    }
    _ = memory.protect(UInt64(page), 4096, PROT_READ | PROT_EXEC)
    signalReturn = UInt64(page)
  }

  // MARK: Paths

  /// The host path of a guest path: below the prefix if that is there.
  func resolve(_ path: String) -> String {
    guard !options.prefix.isEmpty, path.hasPrefix("/") else { return path }
    let candidate = options.prefix + path
    return access(candidate, F_OK) == 0 ? candidate : path
  }

  // MARK: Threads and signals

  func add(_ thread: UserThread, _ number: Int) { lock.withLock { threads[number] = thread } }
  func remove(_ number: Int) { _ = lock.withLock { threads.removeValue(forKey: number) } }
  func keepOnly(_ thread: UserThread, _ number: Int) { lock.withLock { threads = [number: thread] } }
  var isMultithreaded: Bool { lock.withLock { threads.count > 1 } }

  func action(_ signal: Int) -> GuestSignalAction { lock.withLock { actions[signal] } }
  func setAction(_ signal: Int, _ action: GuestSignalAction) { lock.withLock { actions[signal] = action } }

  func whileForking(_ vcpu: TranslatedVCPU, _ fork: () -> Int) -> Int {
    cache.whileForking(vcpu) { memory.whileForking { lock.withLock(fork) } }
  }

  func log(_ text: String) { HostLog.write(text) }
}
