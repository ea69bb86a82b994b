import ApusAccelTranslate
import ApusGuest
import ApusHost
import ApusIR
import ApusUserABI
import CApusHost
import Glibc

/// What becomes of a system call when a signal's handler has run in its midst.
enum SyscallRestart {
  /// EINTR.
  case never
  /// It begins again where the handler has SA_RESTART.
  case asFlagged
  /// It begins again.
  case always
}

/// A guest thread: a vCPU on a host thread of its own, and its side of signals and system calls.
///
/// Everything belongs to that thread.
public final class UserThread: @unchecked Sendable {
  let process: UserProcess
  private(set) var vcpu: TranslatedVCPU!
  private(set) var cpu: (any UserCPU)!
  // SAFETY: the vCPU's state, which lives as long as self.
  private let base: UnsafeMutableRawPointer
  let registers: UserRegisters
  let calls: SyscallTable
  let tracesCalls: Bool
  /// Set while another guest process traces this thread.
  var trace: ThreadTrace?
  /// System calls are to be shown, filtered or stopped at.
  private(set) var interceptsCalls = false
  func updateInterception() {
    interceptsCalls = tracesCalls || trace != nil || !filters.isEmpty || isStrict
  }
  /// From another thread: what is to be looked at then is behind a lock.
  func forceInterception() { interceptsCalls = true }
  /// seccomp: filters, the oldest first; or the mode without any.
  var filters: [SeccompFilter] = []
  var isStrict = false
  let offered = OfferedFilters()
  /// The descriptor that they are handed on in, while execve goes on.
  var filtersForExecution: Int32?
  /// What a debugger asked for: a step, or a stop before anything else.
  var isStepping = false
  var stepNumber = 0
  var wantsStop = false
  /// The process's, but for the child of vfork, which has its own.
  var actions: SignalActions
  /// The child of vfork, in its parent's memory and thread until it executes a program or ends.
  var isVforkChild = false
  /// What the signal handler sees. Lives as long as self.
  let record: UnsafeMutablePointer<apus_user_thread>
  /// The guest's signal mask, which the host's is but for the signals of faults.
  var mask: UInt64 = 0
  /// sigaltstack: base, size; size 0: none.
  var alternateStack: (base: UInt64, byteCount: UInt64) = (0, 0)
  /// Where to store 0 and wake a waiter at the thread's end.
  var clearChildThread: UInt64 = 0
  /// A system call that a signal interrupted: what its result's register held, and whether it begins again.
  var interrupted: (argument: UInt64, restart: SyscallRestart)?
  /// What the last fault that the evaluator met was, for the exception that follows.
  private var lastFault: (signal: Int, code: Int32) = (GuestSignal.segmentation, 1)
  /// What the child of vfork that is about to run was asked to be.
  var pendingRequest: CloneRequest?
  /// Host stacks for children of vfork, and how many are in use (a child may vfork itself).
  var vforkStacks: [UnsafeMutableRawPointer] = []
  var vforkDepth = 0
  /// What execve was called with, while it is.
  var executionBlock: ExecutionBlock?
  /// set_robust_list.
  var robustList: UInt64 = 0
  /// What `exit` was called with.
  var exitCode: UInt64 = 0
  private var releasedPages: [UInt64] = []
  private var isRepeating = false

  init(_ process: UserProcess) throws(HostError) {
    self.process = process
    actions = process.actions
    tracesCalls = process.options.tracesCalls
    record = .allocate(capacity: 1)
    record.initialize(to: apus_user_thread())
    let process = process
    registers = process.registers
    calls = process.calls
    var made: (any UserCPU)?
    let vcpu = try TranslatedVCPU(index: 0, cache: process.cache) { state, engine in
      let cpu = process.isa.makeCPU(state: state, engine: engine, clock: process.clock)
      made = cpu
      return cpu
    }
    self.vcpu = vcpu
    base = vcpu.state
    cpu = made
    if process.memory.guardProtection != 0 {
      cpu.setGuardedPages { [memory = process.memory] in memory.isGuarded($0) }
      if process.memory.hasGuardedPages { cpu.checkBranchTargets() }
    }
    vcpu.isExecutable = { [memory = process.memory] in memory.isExecutable($0) }
    vcpu.flatFault = { [unowned(unsafe) self] address, access in mayRetry(address, access) }
    vcpu.onInstructionFence = { [memory = process.memory] in memory.dropChangedCode() }
    cpu.userHooks = GuestUserHooks(
      context: Unmanaged.passUnretained(self).toOpaque(),
      systemCall: { Unmanaged<UserThread>.fromOpaque($0)._withUnsafeGuaranteedRef { $0.systemCall() } },
      interrupt: { Unmanaged<UserThread>.fromOpaque($0)._withUnsafeGuaranteedRef { $0.takeSignals() } },
      exception: { raw, kind, address in
        Unmanaged<UserThread>.fromOpaque(raw)._withUnsafeGuaranteedRef {
          $0.exception(GuestUserException(rawValue: kind) ?? .access, address)
        }
      })
    fillRecord()
    updateInterception()
  }

  deinit {
    for stack in vforkStacks { munmap(stack, 1 << 18) }
    record.deinitialize(count: 1)
    record.deallocate()
  }

  // MARK: Registers

  /// A 64-bit register by its offset in the state.
  subscript(register offset: Int) -> UInt64 {
    get { base.load(fromByteOffset: offset, as: UInt64.self) }
    set { base.storeBytes(of: newValue, toByteOffset: offset, as: UInt64.self) }
  }
  var pc: UInt64 {
    get { self[register: StateHeader.pc] }
    set { self[register: StateHeader.pc] = newValue }
  }
  var stackPointer: UInt64 { self[register: registers.stackPointer] }

  private func fillRecord() {
    record.pointee.state = vcpu.state
    record.pointee.guest_mxcsr_offset = UInt32(StateHeader.guestMXCSR)
    record.pointee.host_mxcsr_offset = UInt32(StateHeader.hostMXCSR)
    record.pointee.exit_request_offset = UInt32(StateHeader.exitRequest)
    guard let layout = process.cache.codeLayout else { return }
    (record.pointee.code_begin, record.pointee.code_end) = (layout.begin, layout.end)
    record.pointee.leave = layout.leave
    record.pointee.pinned_count = UInt32(layout.pinned.count)
    record.pointee.pinned_vector_count = UInt32(layout.pinnedVectors.count)
    record.pointee.pinned_vector_bytes = UInt32(layout.pinnedVectorByteCount)
    withUnsafeMutableBytes(of: &record.pointee.pinned_register) { registers in
      withUnsafeMutableBytes(of: &record.pointee.pinned_offset) { offsets in
        for (index, slot) in layout.pinned.enumerated() {
          registers[index] = slot.register
          offsets.storeBytes(of: UInt16(slot.offset), toByteOffset: index * 2, as: UInt16.self)
        }
      }
    }
    withUnsafeMutableBytes(of: &record.pointee.pinned_vector) { registers in
      withUnsafeMutableBytes(of: &record.pointee.pinned_vector_offset) { offsets in
        for (index, slot) in layout.pinnedVectors.enumerated() {
          registers[index] = slot.register
          offsets.storeBytes(of: UInt16(slot.offset), toByteOffset: index * 2, as: UInt16.self)
        }
      }
    }
  }

  /// Runs the guest until this thread ends.
  func run() {
    apus_user_set_thread(record)
    _ = apus_user_set_mask(SIG_SETMASK, &mask, nil)
    if let file = process.takeFilterFile(), !readFilters(file) {
      writeStandardError("apus: internal error: the seccomp filters were not handed on\n")
      _exit(134)
    }
    if let handedOn = process.takeTrace() { stopAfterExecution(handedOn) }
    switch vcpu.run() {
    case .requested: break
    case .failed(let reason):
      writeStandardError("apus: \(reason)\n")
      _exit(134)
    }
    finish()
  }

  private func finish() {
    var all = UInt64.max
    _ = apus_user_set_mask(SIG_SETMASK, &all, nil)
    process.cache.detach(vcpu)
    process.remove(apus_gettid())
    process.debugger?.leave(self)
    releaseRobustList()
    if clearChildThread != 0 {
      _ = process.memory.write(clearChildThread, 0 as UInt32)
      _ = apus_syscall(202, clearChildThread, 1, 1, 0, 0, 0)  // FUTEX_WAKE
    }
    apus_user_set_thread(nil)
  }

  // MARK: Faults

  /// A guarded access faulted: stores to pages that are read-only for their code are worth another attempt.
  private func mayRetry(_ address: UInt64, _ access: GuestAccess) -> Bool {
    let faulting = record.pointee.guard_address
    let code = record.pointee.guard_code
    // A non-canonical address comes as SI_KERNEL without the address.
    lastFault = (Int(record.pointee.guard_signal), code == 128 ? 1 : code)
    guard access == .store, code == 2 else { return false }
    let page = faulting & ~4095
    guard process.memory.releaseCode(faulting) else { return false }
    if isRepeating {
      releasedPages.append(page)
    } else {
      // Nobody guards the page again after the store: all of its code goes.
      process.memory.dropCode(page, page + 4096)
    }
    return true
  }

  /// Generated code faulted at `fault_rip`; the state is as it was at the end of the instruction before. The
  /// evaluator does the instruction over: the store of one to code goes through, anything else faults properly.
  private func repeatFault() {
    record.pointee.fault_signal = 0
    guard let site = process.cache.faultSite(record.pointee.fault_rip) else {
      writeStandardError("apus: internal error: a fault in generated code that accesses no guest memory\n")
      _exit(134)
    }
    pc = site.pc
    isRepeating = true
    vcpu.interpretOne()
    isRepeating = false
    for page in releasedPages { process.memory.protectCodeAgain(page) }
    releasedPages.removeAll()
  }

  /// Called by the engine outside generated code when an exit was requested.
  private func takeSignals() {
    if record.pointee.fault_signal != 0 { repeatFault() }
    if record.pointee.pending & UInt32(APUS_PENDING_CONTROL) != 0 { takeControl() }
    if record.pointee.pending != 0 { takePending() }
    if isStepping || wantsStop { takeDebugRequest() }
  }

  /// A synchronous exception of the instruction at the PC.
  private func exception(_ kind: GuestUserException, _ address: UInt64) {
    if kind == .breakpoint, process.debugger != nil {
      if debugStop(GuestSignal.trap, .breakpoint) == 0 || process.debugger != nil { return }
    }
    switch kind {
    case .illegalInstruction: force(GuestSignal.illegal, code: 1, address: pc)
    case .breakpoint: force(GuestSignal.trap, code: 1, address: pc)
    case .division: force(GuestSignal.floatingPoint, code: 1, address: pc)
    case .misaligned: force(GuestSignal.bus, code: 1, address: address)
    case .fetch:
      force(
        GuestSignal.segmentation, code: process.memory.region(at: address) == nil ? 1 : 2, address: address)
    case .access: force(lastFault.signal, code: lastFault.code, address: address)
    }
  }
}
