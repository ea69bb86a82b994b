import ApusAccelTranslate
import ApusCPU
import ApusGuest
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

/// How a program is to be run.
public struct UserOptions: Sendable {
  /// The program's path and its arguments, the first of which is its name for itself.
  public var path: ByteString = []
  public var arguments: [ByteString] = []
  /// As `name=value`.
  public var environment: [ByteString] = []
  /// The program's file where it is open already (fexecve, or binfmt_misc's O flag).
  public var descriptor: Int32?
  /// `-L`: where absolute paths of the guest are looked up first.
  public var prefix: ByteString = []
  /// 0: as the stack's limit says.
  public var stackByteCount: UInt64 = 0
  public var tracesCalls = false
  /// `-g`: the port of the loopback interface to wait for a debugger on.
  public var debuggerPort: UInt16?
  public var logsUnimplemented = false
  /// A traced program executed this one.
  public var trace: HandedOnTrace?
  /// Where the seccomp filters are read from that the program which executed this one had.
  public var filterFile: Int32?
  /// Limits that the program which executed this one had: soft and hard by resource.
  public var limits: [Int: (UInt64, UInt64)] = [:]
  public var isa: any UserISA
  public var translate = TranslateOptions()
  /// The emulator's own options, for programs that the guest executes.
  public var inherited: [String] = []
  public init(_ isa: any UserISA) { self.isa = isa }
}

/// A guest process: what its threads share.
public final class UserProcess: @unchecked Sendable {
  public let options: UserOptions
  let isa: any UserISA
  let registers: UserRegisters
  let calls: SyscallTable
  public let memory: UserMemory
  /// Another process has the same memory and translated code (CLONE_VM).
  private(set) var sharesMemory: Bool
  func noteSharing() { sharesMemory = true }
  let cache: TranslationCache
  let clock = GuestClock()
  /// Where the log goes, if there is one; the guest must not close it.
  private(set) var logDescriptor: Int32?
  private let lock = Monitor()
  // Guarded by `lock`.
  private var threads: [Int: UserThread] = [:]
  let actions: SignalActions
  let tracees = Tracees()
  private var trace: HandedOnTrace?
  private var filterFile: Int32?
  /// Set once a thread is traced: what comes in is for the tracer to see, whatever the guest does about it.
  var catchesAllSignals = false
  /// Absolute path of the program, for /proc/self/exe.
  let programPath: ByteString
  /// Set before the first thread runs; gone when the debugger is.
  var debugger: UserDebugger? {
    get { hasDebugger ? lock.withLock { guardedDebugger } : nil }
    set {
      lock.withLock { guardedDebugger = newValue }
      hasDebugger = newValue != nil
    }
  }
  private var guardedDebugger: UserDebugger?
  /// Whether there may be one; only ever goes from true to false while threads run.
  private var hasDebugger = false
  /// Soft and hard limits that are the emulator's to keep, by resource (RLIMIT_DATA 2, STACK 3, AS 9), once they were set.
  var limits: [Int: (UInt64, UInt64)] { lock.withLock { guardedLimits } }
  func setLimit(_ resource: Int, _ values: (UInt64, UInt64)) {
    let limits = lock.withLock {
      guardedLimits[resource] = values
      return guardedLimits
    }
    memory.setLimits(size: limits[9]?.0 ?? .max, data: limits[2]?.0 ?? .max)
  }
  /// The limits as the next emulator takes them (-limits): `resource=soft:hard,...`.
  var limitsText: String? {
    let limits = limits
    if limits.isEmpty { return nil }
    return limits.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value.0):\($0.value.1)" }.joined(
      separator: ",")
  }
  private var hasStartedThread = false
  private var guardedLimits: [Int: (UInt64, UInt64)] = [:]
  private(set) var layout = ProcessLayout()
  private(set) var auxiliaryVector: [UInt64] = []
  /// Where a signal handler returns to.
  private(set) var signalReturn: UInt64 = 0

  public init(_ options: UserOptions) throws(ProgramError) {
    self.options = options
    (memory, sharesMemory, actions) = (UserMemory(), false, SignalActions())
    (trace, filterFile) = (options.trace, options.filterFile)
    (isa, registers, calls) = (options.isa, options.isa.registers, options.isa.syscalls)
    if options.tracesCalls || options.logsUnimplemented || !options.translate.log.items.isEmpty {
      logDescriptor = HostLog.moveAside()
    }
    programPath = Self.absolute(options.path, options.descriptor)
    memory.guardProtection = isa.guardProtection
    var translate = options.translate
    translate.forks = true
    do throws(HostError) {
      cache = try TranslationCache(memory: nil, options: translate)
    } catch { throw ProgramError(error.description) }
    for (resource, values) in options.limits { setLimit(resource, values) }
    cache.onCodePage = { [memory] page in memory.protectCode(page) }
    memory.invalidate = { [cache] start, end in cache.invalidateFlat(start, end) }
  }

  /// A process with the memory of another, which made it.
  init(sharing other: UserProcess, actions: SignalActions) {
    (options, isa, registers, calls) = (other.options, other.isa, other.registers, other.calls)
    (memory, sharesMemory, cache, self.actions) = (other.memory, true, other.cache, actions)
    (logDescriptor, programPath, catchesAllSignals) = (
      other.logDescriptor, other.programPath, other.catchesAllSignals
    )
    (layout, auxiliaryVector, signalReturn) = (other.layout, other.auxiliaryVector, other.signalReturn)
    (hasStartedThread, guardedLimits) = other.lock.withLock { (other.hasStartedThread, other.guardedLimits) }
  }

  private static func absolute(_ path: ByteString, _ descriptor: Int32?) -> ByteString {
    if let descriptor { return readLink(ByteString(text: "/proc/self/fd/\(descriptor)")) ?? path }
    return path.withPointer { pointer -> ByteString in
      guard let resolved = realpath(pointer, nil) else { return path }
      defer { free(resolved) }
      return ByteString(terminated: resolved)
    }
  }

  /// Where a symbolic link of the host leads.
  static func readLink(_ path: ByteString) -> ByteString? {
    var target = [UInt8](repeating: 0, count: 4096)
    let count = path.withPointer { pointer in
      target.withUnsafeMutableBytes { readlink(pointer, $0.baseAddress!, $0.count) }
    }
    return count > 0 ? ByteString(target[..<count]) : nil
  }

  /// Loads the program and runs it. Returns only if it cannot be loaded.
  public func run() throws(ProgramError) -> Never {
    for number in [SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE] {
      // What was ignored stays so.
      _ = actions.known(Int(number))
      _ = apus_user_catch(number, 0)
    }
    let loader = ProgramLoader(memory: memory, isa: isa) { [self] in resolve($0) }
    let program = try loader.load(options.path, descriptor: options.descriptor)
    _ = options.path.lastComponent.withPointer { apus_set_thread_name($0) }
    memory.startBreak(program.end + memory.addresses.breakGap)
    let vdso = try mapVDSO()
    let stackByteCount =
      options.stackByteCount == 0
      ? InitialStack.defaultByteCount(limit: options.limits[3]?.0) : options.stackByteCount
    guard
      let stack = InitialStack.build(
        memory, byteCount: stackByteCount, options: options, program: program, vdso: vdso)
    else {
      throw ProgramError("cannot run '\(options.path.text)': there is no memory for its stack or arguments")
    }
    (layout, auxiliaryVector) = (stack.layout, stack.auxiliary)
    describe()
    let thread: UserThread
    do throws(HostError) { thread = try UserThread(self) } catch { throw ProgramError(error.description) }
    add(thread, apus_gettid())
    var mask: UInt64 = 0
    _ = apus_user_set_mask(0, nil, &mask)
    thread.mask = mask
    thread.record.pointee.mask = mask
    if let port = options.debuggerPort {
      let debugger = try UserDebugger(port: port)
      self.debugger = debugger
      thread.wantsStop = true
      thread.vcpu.kick()
      thread.applyDisposition(GuestSignal.interrupt, thread.actions[GuestSignal.interrupt])
      // Signals are the guest's threads'.
      var (all, previous): (UInt64, UInt64) = (.max, 0)
      _ = apus_user_set_mask(SIG_SETMASK, &all, &previous)
      let error = apus_user_start_thread(
        { Unmanaged<UserDebugger>.fromOpaque($0!).takeRetainedValue().watch() },
        Unmanaged.passRetained(debugger).toOpaque())
      _ = apus_user_set_mask(SIG_SETMASK, &previous, nil)
      guard error == 0 else { throw ProgramError("-g: there is no thread to watch the debugger") }
    }
    thread.cpu.enterUserEmulation(pc: program.start, stackPointer: stack.layout.stackPointer)
    thread.run()
    // The initial thread ended while others go on.
    _ = apus_syscall(60, thread.exitCode, 0, 0, 0, 0, 0)
    _exit(0)
  }

  /// Shows the guest in /proc/PID instead of the emulator, as far as the kernel allows.
  private func describe() {
    let addresses = [
      layout.codeStart, layout.codeEnd, layout.stackPointer, layout.argumentsStart, layout.argumentsEnd,
      layout.environmentEnd,
    ]
    _ = auxiliaryVector.withUnsafeBytes { apus_user_describe(addresses, $0.baseAddress, $0.count) }
  }

  /// Maps the vDSO, where signal handlers return to.
  private func mapVDSO() throws(ProgramError) -> UInt64 {
    let vdso = isa.vdso
    let page = memory.map(
      0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, label: .vdso)
    guard page > 0, vdso.bytes.withUnsafeBytes({ memory.write(UInt64(page), $0) }) else {
      throw ProgramError("there is no memory for the vDSO")
    }
    _ = memory.protect(UInt64(page), 4096, PROT_READ | PROT_EXEC)
    signalReturn = UInt64(page + vdso.signalReturn)
    return UInt64(page)
  }

  // MARK: Paths

  /// The host path of a guest path: below the prefix if that is there, with the prefix as the root of its links.
  func resolve(_ path: ByteString) -> ByteString {
    guard !options.prefix.isEmpty, path.isAbsolute else { return path }
    return PrefixedPath.resolve(path, below: options.prefix) ?? path
  }

  /// The host path for a path that the guest names in a system call: its own program where /proc says so.
  func hostPath(_ path: ByteString) -> ByteString {
    if ProcessFile(path) == .program { return programPath }
    return resolve(path)
  }

  /// Where the emulator can be executed from; `nil` if it cannot find itself (no /proc in a chroot), which leaves guest
  /// programs to binfmt_misc.
  func ownPath() -> ByteString? {
    if access("/proc/self/exe", X_OK) == 0 { return ByteString("/proc/self/exe") }
    guard let name = UnsafePointer<CChar>(bitPattern: UInt(getauxval(31))) else { return nil }
    let path = ByteString(terminated: name)
    guard path.isAbsolute, access(name, X_OK) == 0 else { return nil }
    // Started by binfmt_misc, the name is the guest program's.
    let file = apus_open(name, O_RDONLY | O_CLOEXEC, 0)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var header = [UInt8](repeating: 0, count: 64)
    guard pread(file, &header, 64, 0) == 64 else { return nil }
    return ProgramLoader.machine(ofHeader: header) == ProgramLoader.machineHost ? path : nil
  }

  // MARK: Threads and signals

  /// Once, for the first thread.
  func takeFilterFile() -> Int32? {
    defer { filterFile = nil }
    return filterFile
  }
  var threadsByNumber: [(Int, UserThread)] { lock.withLock { threads.map { ($0.key, $0.value) } } }
  var allThreads: [UserThread] { lock.withLock { Array(threads.values) } }
  func takeTrace() -> HandedOnTrace? {
    defer { trace = nil }
    return trace
  }
  func add(_ thread: UserThread, _ number: Int) { lock.withLock { threads[number] = thread } }
  func remove(_ number: Int) { _ = lock.withLock { threads.removeValue(forKey: number) } }
  /// In the child of a fork, whose memory is its own.
  func keepOnly(_ thread: UserThread, _ number: Int) {
    lock.withLock { threads = [number: thread] }
    sharesMemory = false
  }
  /// True once.
  func noteFirstThread() -> Bool {
    lock.withLock {
      defer { hasStartedThread = true }
      return !hasStartedThread
    }
  }
  var isMultithreaded: Bool { lock.withLock { threads.count > 1 } }

  func whileForking(_ vcpu: TranslatedVCPU, _ fork: () -> Int) -> Int {
    cache.whileForking(vcpu) {
      memory.whileForking { actions.whileForking { tracees.whileForking { lock.withLock(fork) } } }
    }
  }

  func log(_ text: String) { HostLog.write(text) }
}

/// What a process does with each signal. Any thread.
final class SignalActions: @unchecked Sendable {
  private let lock = Monitor()
  // Guarded by `lock`.
  private var actions: [GuestSignalAction]
  /// The signals whose action was asked for or set, a bit each: before, it is what the process was started with.
  private var examined: UInt64 = 0

  init() { actions = [GuestSignalAction](repeating: GuestSignalAction(), count: 65) }
  init(copying other: SignalActions) {
    (actions, examined) = other.lock.withLock { (other.actions, other.examined) }
  }

  subscript(_ signal: Int) -> GuestSignalAction {
    get { lock.withLock { actions[signal] } }
    set {
      lock.withLock {
        actions[signal] = newValue
        examined |= 1 << UInt64(signal - 1)
      }
    }
  }
  /// The same, and whether the process was started with the signal ignored.
  func known(_ signal: Int) -> GuestSignalAction {
    lock.withLock {
      let bit: UInt64 = 1 << UInt64(signal - 1)
      if examined & bit == 0 {
        examined |= bit
        if apus_user_is_ignored(Int32(signal)) != 0 { actions[signal].handler = 1 }
      }
      return actions[signal]
    }
  }
  func clearHandlers() {
    lock.withLock {
      for signal in 1...64 where actions[signal].handler > 1 { actions[signal] = GuestSignalAction() }
    }
  }
  /// The signals that are ignored, as far as they were examined.
  var ignored: UInt64 {
    lock.withLock { (1...64).reduce(0) { actions[$1].handler == 1 ? $0 | 1 << UInt64($1 - 1) : $0 } }
  }
  func whileForking(_ fork: () -> Int) -> Int { lock.withLock(fork) }
}
