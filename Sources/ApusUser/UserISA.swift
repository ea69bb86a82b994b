import ApusCPU
import ApusGuest
import ApusUserABI

// What user mode needs of a guest architecture; docs/user-mode.md, "Adding an ISA". Everything else in this target is
// shared. Chosen once, when a process starts; what runs at every system call goes through `UserRegisters`.

/// Where the state has the registers that system calls use: byte offsets of 64-bit slots. The PC is `StateHeader.pc`.
public struct UserRegisters: Sendable {
  /// The system call's number, its six arguments, and its result. The result's slot may be another's, too.
  public var number: Int
  public var arguments: (Int, Int, Int, Int, Int, Int)
  public var result: Int
  public var stackPointer: Int
  public var threadPointer: Int
  /// Of the instruction that enters the kernel, for restarts.
  public var callByteCount: UInt64

  public init(
    number: Int, arguments: (Int, Int, Int, Int, Int, Int), result: Int, stackPointer: Int,
    threadPointer: Int,
    callByteCount: UInt64
  ) {
    (self.number, self.arguments, self.result) = (number, arguments, result)
    (self.stackPointer, self.threadPointer) = (stackPointer, threadPointer)
    self.callByteCount = callByteCount
  }
}

/// A guest architecture with its options (`-cpu`).
public protocol UserISA: Sendable {
  /// As uname says it and the emulator is called: apus-NAME.
  var name: String { get }
  /// As messages call it.
  var title: String { get }
  /// e_machine and e_flags of its programs.
  var machine: UInt16 { get }
  var elfFlags: UInt32 { get }
  /// AUDIT_ARCH_*, for seccomp and PTRACE_GET_SYSCALL_INFO.
  var auditArchitecture: UInt32 { get }
  var registers: UserRegisters { get }
  var syscalls: SyscallTable { get }
  /// `struct stat` and what else differs between the 64-bit ABIs.
  var statusLayout: GuestStat.Layout { get }
  var openFlags: GuestOpenFlags { get }
  /// `struct sigaction` has a restorer.
  var hasSignalRestorer: Bool { get }
  /// The bit of mmap's and mprotect's protection that guards a page's branch targets (PROT_BTI); 0 if there is none.
  var guardProtection: Int32 { get }
  var vdso: GuestVDSO { get }
  /// AT_HWCAP, AT_HWCAP2, AT_MINSIGSTKSZ and other entries of its own.
  var auxiliaryEntries: [(UInt64, UInt64)] { get }
  /// AT_PLATFORM's string, if there is one.
  var platform: String? { get }
  /// The text of /proc/cpuinfo.
  func processorText(count: Int) -> String
  /// The target description for GDB (`-g`).
  var debuggerDescription: String { get }
  var debuggerRegisterCount: Int { get }

  /// `-cpu`: a model, then properties.
  mutating func select(_ text: String) throws(ProgramError)
  /// Makes a thread's CPU. Its hooks are set before it runs.
  func makeCPU(state: UnsafeMutableRawPointer, engine: any GuestEngine, clock: GuestClock) -> any UserCPU
  /// A system call that only this architecture has; its row says `.emulated`. `nil`: there is none.
  func call(_ number: Int, _ a: CallArguments, _ thread: UserThread) -> Int?
}

/// A signal on its way to a handler, as its frame needs it.
public struct SignalDelivery {
  public var signal: Int
  /// `siginfo_t`, 128 bytes.
  public var info: UnsafeRawBufferPointer
  public var handler: UInt64
  public var flags: UInt64
  /// Where the frame goes below.
  public var stackPointer: UInt64
  public var context: SignalContext
  /// What the handler returns to.
  public var returnAddress: UInt64
}

/// What a frame keeps besides the registers.
public struct SignalContext {
  public var mask: UInt64
  /// `stack_t`.
  public var stackBase: UInt64
  public var stackFlags: UInt64
  public var stackByteCount: UInt64
}

/// A guest's CPU in user mode.
public protocol UserCPU: GuestCPU {
  var userHooks: GuestUserHooks? { get set }
  /// The state of a process that begins.
  func enterUserEmulation(pc: UInt64, stackPointer: UInt64)
  /// Where guarded pages are, and that there are some now.
  func setGuardedPages(_ isGuarded: @escaping (UInt64) -> Bool)
  func checkBranchTargets()
  /// The kinds of register sets (NT_PRSTATUS 1, NT_PRFPREG 2, ...) that all registers of a thread are in.
  static var registerSets: [UInt32] { get }
  /// A set in the layout of ptrace and core dumps; `nil` if there is none of the kind.
  func registerSet(_ kind: UInt32) -> [UInt8]?
  /// Sets as many registers as there are bytes for. False if there is no such set.
  func setRegisterSet(_ kind: UInt32, _ bytes: UnsafeRawBufferPointer) -> Bool
  /// Builds the frame and makes the handler the next thing to run; false if the frame cannot be stored.
  func enterHandler(_ delivery: SignalDelivery, _ memory: UserMemory) -> Bool
  /// Takes the registers from the frame of a handler that returns; `nil` if it cannot be read.
  func leaveHandler(_ memory: UserMemory) -> SignalContext?
  /// A register by its number in the target description, little-endian.
  func debuggerRegister(_ number: Int) -> [UInt8]
  func setDebuggerRegister(_ number: Int, _ bytes: [UInt8])
}

extension UserISA {
  public var guardProtection: Int32 { 0 }
}

extension UserCPU {
  public func setGuardedPages(_ isGuarded: @escaping (UInt64) -> Bool) {}
  public func checkBranchTargets() {}

  /// All registers of the thread.
  func saveRegisters() -> [[UInt8]] { Self.registerSets.map { registerSet($0) ?? [] } }
  func restoreRegisters(_ saved: [[UInt8]]) {
    for (kind, bytes) in zip(Self.registerSets, saved) {
      _ = bytes.withUnsafeBytes { setRegisterSet(kind, $0) }
    }
  }
}

/// The guests that there are, by name or e_machine.
public enum UserISAs {
  public static let all: [any UserISA] = [RISCVUserISA(), AArch64UserISA()]
  public static func named(_ name: String) -> (any UserISA)? { all.first { $0.name == name } }
  public static func ofMachine(_ machine: UInt16) -> (any UserISA)? { all.first { $0.machine == machine } }
}
