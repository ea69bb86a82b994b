import ApusAccelTranslate
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// Creating and replacing processes and threads.

enum CloneFlag {
  static let vm: UInt64 = 0x100
  static let vfork: UInt64 = 0x4000
  static let ptrace: UInt64 = 0x2000
  static let pidDescriptor: UInt64 = 0x1000
  static let thread: UInt64 = 0x1_0000
  static let signalHandlers: UInt64 = 0x800
  static let clearHandlers: UInt64 = 0x1_0000_0000
  static let setTLS: UInt64 = 0x8_0000
  static let parentSetThread: UInt64 = 0x10_0000
  static let childClearThread: UInt64 = 0x20_0000
  static let childSetThread: UInt64 = 0x100_0000
  /// Those that are the emulator's to carry out.
  static let ours =
    vm | vfork | setTLS | parentSetThread | childClearThread | childSetThread | thread | signalHandlers
}

/// What clone and clone3 ask for.
struct CloneRequest {
  /// With the signal of the child's end in the low byte.
  var flags: UInt64
  /// The child's stack pointer; 0: the parent's.
  var stackPointer: UInt64
  var parentThread: UInt64
  var childThread: UInt64
  var threadPointer: UInt64
  var pidDescriptor: UInt64
  /// clone3: an array of ids and its count; a cgroup's descriptor.
  var chosenIDs: (UInt64, UInt64) = (0, 0)
  var group: UInt64 = 0
}

extension UserThread {
  /// clone(flags, stack, parent's thread id address, TLS, child's thread id address).
  func clone(_ a: CallArguments) -> Int {
    clone(
      CloneRequest(
        flags: a.a & 0xffff_ffff, stackPointer: a.b, parentThread: a.c, childThread: a.e, threadPointer: a.d,
        pidDescriptor: a.c))
  }

  /// clone3(`struct clone_args`, its size): flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
  /// set_tid, set_tid_size, cgroup; 64 bits each.
  func clone3(_ address: UInt64, _ byteCount: UInt64) -> Int {
    guard byteCount >= 64 else { return -Int(EINVAL) }
    guard byteCount <= 4096 else { return -Int(E2BIG) }
    var words = [UInt64](repeating: 0, count: Int(byteCount + 7) / 8)
    let isThere = words.withUnsafeMutableBytes { raw in
      process.memory.read(address, into: UnsafeMutableRawBufferPointer(rebasing: raw[..<Int(byteCount)]))
    }
    guard isThere else { return -Int(EFAULT) }
    words += [UInt64](repeating: 0, count: max(0, 11 - words.count))
    guard words[11...].allSatisfy({ $0 == 0 }) else { return -Int(E2BIG) }
    guard words[0] & 0xff == 0, words[4] & ~0xff == 0, (words[5] == 0) == (words[6] == 0) else {
      return -Int(EINVAL)
    }
    let request = CloneRequest(
      flags: words[0] | words[4], stackPointer: words[5] == 0 ? 0 : words[5] &+ words[6],
      parentThread: words[3], childThread: words[2], threadPointer: words[7], pidDescriptor: words[1],
      chosenIDs: (words[8], words[9]), group: words[10])
    // Chosen ids, cgroups and cleared handlers, for processes; callers fall back to clone.
    guard words[0] & ~0x3_ffff_ffff == 0 else { return -Int(EINVAL) }
    let isExtended = words[8] != 0 || words[9] != 0 || words[0] & ~0xffff_ffff != 0
    if isExtended, words[0] & CloneFlag.vm != 0 { return -Int(ENOSYS) }
    return clone(request)
  }

  private func clone(_ request: CloneRequest) -> Int {
    if request.flags & CloneFlag.pidDescriptor != 0 {
      guard let pointer = UnsafeMutableRawPointer(bitPattern: UInt(request.pidDescriptor)),
        apus_guard_probe(pointer) == 0
      else { return -Int(EFAULT) }
    }
    blockAllSignals()
    // A signal that came before is for this process alone: it is taken first, and the call begins again.
    if record.pointee.pending != 0 {
      interrupted = (self[register: registers.result], .always)
      return -Int(EINTR)
    }
    defer { _ = apus_user_set_mask(SIG_SETMASK, &mask, nil) }
    // A tracer may look at it while the host's clone reports the child.
    fillTraceRecord()
    defer { applyTracerChanges() }
    if request.flags & CloneFlag.thread != 0 { return startThread(request) }
    if request.flags & CloneFlag.vm != 0 {
      return request.flags & CloneFlag.vfork != 0 ? vfork(request) : startSharing(request)
    }
    return request.flags & CloneFlag.signalHandlers != 0 ? -Int(EINVAL) : fork(request)
  }

  /// The registers of a new process or thread that differ from its creator's.
  private func enterChild(_ request: CloneRequest) {
    self[register: registers.result] = 0
    if request.stackPointer != 0 { self[register: registers.stackPointer] = request.stackPointer }
    if request.flags & CloneFlag.setTLS != 0 {
      self[register: registers.threadPointer] = request.threadPointer
    }
    if request.flags & CloneFlag.childSetThread != 0 {
      _ = process.memory.write(request.childThread, UInt32(truncatingIfNeeded: apus_gettid()))
    }
    clearChildThread = request.flags & CloneFlag.childClearThread != 0 ? request.childThread : 0
  }
  private func noteChild(_ request: CloneRequest, _ child: Int) {
    guard child > 0, request.flags & CloneFlag.parentSetThread != 0 else { return }
    _ = process.memory.write(request.parentThread, UInt32(truncatingIfNeeded: child))
  }
  private func blockAllSignals() {
    var all = UInt64.max
    _ = apus_user_set_mask(SIG_SETMASK, &all, nil)
  }

  /// A process of its own with a copy of the memory. What the flags ask of the kernel (namespaces, shared descriptors) is
  /// the kernel's to do.
  private func fork(_ request: CloneRequest) -> Int {
    var descriptor: Int32 = -1
    let kernelFlags = request.flags & ~CloneFlag.ours
    let child = process.whileForking(vcpu) {
      // libc's own fork brings its locks through, too; it has no flags.
      if kernelFlags == UInt64(SIGCHLD) {
        let child = Int(apus_fork())
        return child < 0 ? -Int(errno) : child
      }
      return withUnsafeMutablePointer(to: &descriptor) { pointer in
        let target = UInt64(UInt(bitPattern: pointer))
        if request.flags >> 32 != 0 || request.chosenIDs.1 != 0 {
          let block: [UInt64] = [
            kernelFlags & ~0xff, target, 0, 0, kernelFlags & 0xff, 0, 0, 0, request.chosenIDs.0,
            request.chosenIDs.1, request.group,
          ]
          return block.withUnsafeBytes {
            apus_syscall(435, UInt64(UInt(bitPattern: $0.baseAddress)), UInt64($0.count), 0, 0, 0, 0)
          }
        }
        return apus_syscall(56, kernelFlags & ~0x100_0000, 0, target, 0, 0, 0)
      }
    }
    if child == 0 {
      process.keepOnly(self, apus_gettid())
      isVforkChild = false
      if request.flags & CloneFlag.clearHandlers != 0 { actions.clearHandlers() }
      traceInChild(request.flags)
      process.debugger?.leaveChild()
      process.debugger = nil
      enterChild(request)
    } else {
      if child > 0, request.flags & CloneFlag.pidDescriptor != 0 {
        _ = process.memory.write(request.pidDescriptor, descriptor)
      }
      noteChild(request, child)
    }
    return child
  }

  /// The child runs on this thread's CPU and in its memory, on a host stack of its own, while the thread sleeps: until it
  /// executes a program or ends. The registers are the parent's again then.
  private func vfork(_ request: CloneRequest) -> Int {
    let depth = vforkDepth
    guard let stack = vforkStack() else { return -Int(ENOMEM) }
    let saved = cpu.saveRegisters()
    let outer = (actions: actions, isVforkChild: isVforkChild, clear: clearChildThread, mask: mask)
    let sharesHandlers = request.flags & CloneFlag.signalHandlers
    if sharesHandlers == 0 { actions = SignalActions(copying: actions) }
    isVforkChild = true
    pendingRequest = request
    let outerTrace = trace
    let outerFilters = (filters, isStrict)
    var descriptor: Int32 = -1
    let kernelFlags = request.flags & ~CloneFlag.ours | CloneFlag.vm | CloneFlag.vfork | sharesHandlers
    let child = vcpu.whileChildRuns {
      withUnsafeMutablePointer(to: &descriptor) { pointer in
        apus_user_clone_on(
          kernelFlags, stack, pointer, nil,
          { raw in
            let thread = Unmanaged<UserThread>.fromOpaque(raw!).takeUnretainedValue()
            thread.runVforkChild()
          }, Unmanaged.passUnretained(self).toOpaque(), nil)
      }
    }
    freeExecutionBlock()
    cpu.restoreRegisters(saved)
    trace = outerTrace
    (filters, isStrict) = outerFilters
    updateInterception()
    vforkDepth = depth
    (actions, isVforkChild, clearChildThread, mask) = (
      outer.actions, outer.isVforkChild, outer.clear, outer.mask
    )
    record.pointee.pending &= UInt32(APUS_PENDING_CONTROL)
    record.pointee.fault_signal = 0
    interrupted = nil
    if child > 0, request.flags & CloneFlag.pidDescriptor != 0 {
      _ = process.memory.write(request.pidDescriptor, descriptor)
    }
    noteChild(request, child)
    return child
  }

  private func runVforkChild() -> Never {
    if let request = pendingRequest {
      pendingRequest = nil
      enterChild(request)
      traceInChild(request.flags)
      clearChildThread = 0
    }
    _ = apus_user_set_mask(SIG_SETMASK, &mask, nil)
    _ = vcpu.run()
    _exit(127)
  }

  /// Carries a new thread's number back to its creator.
  private final class Birth: @unchecked Sendable {
    let monitor = Monitor()
    let thread: UserThread
    let request: CloneRequest
    var number = 0
    init(_ thread: UserThread, _ request: CloneRequest) { (self.thread, self.request) = (thread, request) }
  }

  /// A thread like this one; `nil` without memory, and for the child of vfork, which has its parent's libc.
  private func copy(for process: UserProcess) -> UserThread? {
    if isVforkChild { return nil }
    let thread: UserThread
    do throws(HostError) { thread = try UserThread(process) } catch { return nil }
    thread.cpu.enterUserEmulation(pc: pc, stackPointer: stackPointer)
    thread.cpu.restoreRegisters(cpu.saveRegisters())
    thread.mask = mask
    thread.record.pointee.mask = mask
    (thread.filters, thread.isStrict) = (filters, isStrict)
    thread.updateInterception()
    return thread
  }

  /// A process that shares the memory and runs beside this one: on the host, too, with the translated code and all of the
  /// emulator's own memory, but a `UserProcess` of its own.
  private func startSharing(_ request: CloneRequest) -> Int {
    let sharesHandlers = request.flags & CloneFlag.signalHandlers
    let child = UserProcess(
      sharing: process, actions: sharesHandlers != 0 ? actions : SignalActions(copying: actions))
    guard let thread = copy(for: child) else { return -Int(EAGAIN) }
    process.noteSharing()
    thread.trace = trace
    let birth = Birth(thread, request)
    var descriptor: Int32 = -1
    let kernelFlags =
      request.flags & ~CloneFlag.ours | CloneFlag.vm | sharesHandlers | request.flags
      & CloneFlag.childClearThread
    let argument = Unmanaged.passRetained(birth)
    let number = process.memory.whileForking {
      withUnsafeMutablePointer(to: &descriptor) { pointer in
        apus_user_start_process(
          kernelFlags, pointer, UnsafeMutableRawPointer(bitPattern: UInt(request.childThread)),
          { raw in
            let birth = Unmanaged<Birth>.fromOpaque(raw!).takeRetainedValue()
            let thread = birth.thread
            thread.process.add(thread, apus_gettid())
            thread.enterChild(birth.request)
            // The kernel clears it, whichever way the process ends.
            thread.clearChildThread = 0
            thread.traceInChild(birth.request.flags)
            thread.run()
            _exit(Int32(truncatingIfNeeded: thread.exitCode))
          }, argument.toOpaque())
      }
    }
    guard number > 0 else {
      argument.release()
      process.cache.detach(thread.vcpu)
      return number
    }
    if request.flags & CloneFlag.pidDescriptor != 0 {
      _ = process.memory.write(request.pidDescriptor, descriptor)
    }
    noteChild(request, number)
    return number
  }

  private func startThread(_ request: CloneRequest) -> Int {
    guard request.flags & CloneFlag.vm != 0, request.flags & CloneFlag.signalHandlers != 0 else {
      return -Int(EINVAL)
    }
    guard let thread = copy(for: process) else { return -Int(EAGAIN) }
    if let trace, trace.options & ThreadTrace.clone != 0 || request.flags & CloneFlag.ptrace != 0 {
      thread.trace = ThreadTrace(options: trace.options, isSeized: trace.isSeized)
      thread.updateInterception()
    }
    let birth = Birth(thread, request)
    let error = apus_user_start_thread(
      { raw in
        let birth = Unmanaged<Birth>.fromOpaque(raw!).takeRetainedValue()
        let number = apus_gettid()
        let thread = birth.thread
        thread.process.add(thread, number)
        thread.enterChild(birth.request)
        thread.noteChild(birth.request, number)
        birth.monitor.withLock {
          birth.number = number
          birth.monitor.signal()
        }
        thread.run()
      }, Unmanaged.passRetained(birth).toOpaque())
    // libc takes signal 33 for itself with its first thread; the guest's libc wants it, too.
    if process.noteFirstThread() { applyDisposition(33, actions[33]) }
    if error == 0 {
      birth.monitor.withLock { while birth.number == 0 { birth.monitor.wait() } }
    } else {
      Unmanaged.passUnretained(birth).release()
      process.cache.detach(thread.vcpu)
    }
    return error == 0 ? birth.number : -Int(error)
  }

  /// exit: of this thread alone.
  func exitThread(_ code: UInt64) -> Int {
    if !isVforkChild, !process.isMultithreaded {
      process.debugger?.reportExit(Int32(truncatingIfNeeded: code))
    }
    if isVforkChild || !process.isMultithreaded && !process.sharesMemory {
      _exit(Int32(truncatingIfNeeded: code))
    }
    exitCode = code
    vcpu.requestExit()
    return 0
  }

  /// exit_group.
  func exitProcess(_ code: UInt64) -> Never {
    if !isVforkChild {
      process.debugger?.reportExit(Int32(truncatingIfNeeded: code))
      leaveSharedMemory()
    }
    _exit(Int32(truncatingIfNeeded: code))
  }

  /// Before a process ends that shares memory with another: none of its threads must count as running code there, since
  /// nobody would take that back.
  func leaveSharedMemory() {
    guard process.sharesMemory, !isVforkChild else { return }
    for thread in process.allThreads where thread !== self { thread.vcpu.requestExit() }
    // They leave generated code soon; what blocks in the kernel does not count.
    var patience = 2000
    while patience > 0, process.allThreads.contains(where: { $0 !== self && $0.vcpu.isRunningCode }) {
      usleep(500)
      patience -= 1
    }
    for thread in process.allThreads where thread !== self { process.cache.detach(thread.vcpu) }
    vcpu.leave()
    process.cache.detach(vcpu)
  }
  /// execve has failed: as before.
  func returnToSharedMemory() {
    guard process.sharesMemory, !isVforkChild else { return }
    process.cache.attachAgain(vcpu)
    vcpu.comeBack()
  }

  /// Host memory for a child of vfork to run on; kept for the next one.
  private func vforkStack() -> UnsafeMutableRawPointer? {
    let byteCount = 1 << 18
    if vforkStacks.count == vforkDepth {
      let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
      guard let base = mmap(nil, byteCount, PROT_READ | PROT_WRITE, flags, -1, 0), base != MAP_FAILED else {
        return nil
      }
      vforkStacks.append(base)
    }
    vforkDepth += 1
    return vforkStacks[vforkDepth - 1] + byteCount
  }
}
