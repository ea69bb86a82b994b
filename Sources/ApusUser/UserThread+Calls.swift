import ApusAccelTranslate
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

/// The arguments of a system call.
public struct CallArguments {
  public var a, b, c, d, e, f: UInt64

  subscript(_ number: Int) -> UInt64 {
    get { [a, b, c, d, e, f][number] }
    set {
      switch number {
      case 0: a = newValue
      case 1: b = newValue
      case 2: c = newValue
      case 3: d = newValue
      case 4: e = newValue
      default: f = newValue
      }
    }
  }
}

extension UserThread {
  /// A system call of the guest's.
  func systemCall() {
    let registers = registers
    let number = self[register: registers.number]
    let (a, b, c, d, e, f) = registers.arguments
    let arguments = CallArguments(
      a: self[register: a], b: self[register: b], c: self[register: c], d: self[register: d],
      e: self[register: e], f: self[register: f])
    if interceptsCalls { return interceptedCall(arguments) }
    guard let result = perform(number, arguments) else { return }
    self[register: registers.result] = UInt64(bitPattern: Int64(result))
  }

  /// The call's result; `nil` if it set all registers.
  func perform(_ number: UInt64, _ a: CallArguments) -> Int? {
    guard number < UInt64(calls.count) else { return unknown(number) }
    let entry = calls.entries[Int(number)]
    switch entry.kind {
    case .direct:
      if entry.names != 0 {
        return retryingAfterCode { withNames(entry.names, a) { direct(Int(entry.host), $0) } }
      }
      let result = direct(Int(entry.host), a)
      return result == -Int(EFAULT) ? retryingAfterCode { direct(Int(entry.host), a) } : result
    case .blocking:
      return retryingAfterCode {
        withNames(entry.names, a) { blocking(Int(entry.host), $0, restart: .asFlagged) }
      }
    case .waiting: return retryingAfterCode { blocking(Int(entry.host), a, restart: .never) }
    case .emulated:
      switch entry.number {
      // Programs that ask for the time do so all the time.
      case 113: return clockTime(a.a, a.b)
      case 139:
        returnFromSignal()
        return nil
      default: return retryingAfterCode { emulate(Int(entry.number), number, a) }
      }
    case .planned: return unknown(number)
    }
  }

  private func unknown(_ number: UInt64) -> Int {
    if process.options.logsUnimplemented {
      if let row = calls.row(number) {
        process.log("unimp: system call \(row.name) is not implemented\n")
      } else {
        process.log("unimp: system call \(number) is unknown\n")
      }
    }
    return -Int(ENOSYS)
  }

  private var currentArguments: CallArguments {
    let (a, b, c, d, e, f) = registers.arguments
    return CallArguments(
      a: self[register: a], b: self[register: b], c: self[register: c], d: self[register: d],
      e: self[register: e], f: self[register: f])
  }

  /// A call that is logged, or that a tracer sees before and after.
  private func interceptedCall(_ arguments: CallArguments) {
    var arguments = arguments
    var number = self[register: registers.number]
    if trace != nil {
      traceCallStop(entry: true, number: number, arguments, result: -Int(ENOSYS))
      // The tracer may have changed both.
      number = self[register: registers.number]
      arguments = currentArguments
    }
    var result: Int?
    if Int64(bitPattern: number) == -1 {
      result = -Int(ENOSYS)
    } else {
      var verdict = filterCall(number, arguments)
      if case .traced = verdict {
        number = self[register: registers.number]
        arguments = currentArguments
        verdict = Int64(bitPattern: number) == -1 ? .handled : .allowed
      }
      let text = tracesCalls ? calls.row(number).map { traceCall($0, arguments) } : nil
      switch verdict {
      case .allowed, .traced: result = perform(number, arguments)
      case .result(let value): result = value
      case .handled: result = nil
      }
      if let text, let result { traceResult(text, result) }
    }
    if let result { self[register: registers.result] = UInt64(bitPattern: Int64(result)) }
    if trace != nil {
      // A call that a signal will begin again shows itself as the kernel's do: ERESTARTSYS.
      let isRestarted = result == -Int(EINTR) && interrupted != nil
      let shown =
        result.map { isRestarted ? -512 : $0 } ?? Int(truncatingIfNeeded: self[register: registers.result])
      traceCallStop(entry: false, number: number, arguments, result: shown)
    }
  }

  /// Calls `body` with the arguments, those that name files replaced by what they stand for.
  private func withNames(_ names: UInt8, _ a: CallArguments, _ body: (CallArguments) -> Int) -> Int {
    guard names != 0 else { return body(a) }
    let index = names.trailingZeroBitCount
    return withPath(a[index]) { path in
      var arguments = a
      if arguments[index] != path { arguments[index] = path }
      return withNames(names & (names - 1), arguments, body)
    }
  }

  func direct(_ number: Int, _ a: CallArguments) -> Int {
    Int(apus_syscall(number, a.a, a.b, a.c, a.d, a.e, a.f))
  }

  /// The kernel may have refused to store to a page that is read-only only because code was translated from it.
  private func retryingAfterCode(_ body: () -> Int) -> Int {
    let result = body()
    return result == -Int(EFAULT) && process.memory.releaseAllCode() ? body() : result
  }

  /// A call that may block; a signal's arrival ends it.
  func blocking(_ number: Int, _ a: CallArguments, restart: SyscallRestart) -> Int {
    let result = vcpu.whileCallBlocks {
      Int(apus_syscall_interruptible(&record.pointee.pending, number, a.a, a.b, a.c, a.d, a.e, a.f))
    }
    // ERESTARTSYS: not begun.
    if result == -512 || (result == -Int(EINTR) && record.pointee.pending != 0) {
      interrupted = (self[register: registers.result], restart)
      return -Int(EINTR)
    }
    return result
  }

  // MARK: Emulated calls, by number

  /// - Parameters: `call`, the generic ABI's number; `number`, the ISA's.
  private func emulate(_ call: Int, _ number: UInt64, _ a: CallArguments) -> Int {
    switch call {
    case 21: return epollControl(a)
    case 22: return epollWait(a, host: 281)
    case 441: return epollWait(a, host: 441)
    case 24: return duplicate(a)
    case 29:
      if a.b == MapQuery.request, MapQuery.isMaps(a.a) { return process.answerMapQuery(a.c) }
      return blocking(16, a, restart: .asFlagged)
    case 25: return descriptorControl(a)
    case 59: return makePipe(a)
    case 265: return openByHandle(a)
    case 56: return open(a)
    case 437: return openExtended(a)
    case 45: return truncate(a)
    case 57: return close(a)
    case 436: return closeRange(a)
    case 78: return readLink(a)
    case 79:
      return withPath(a.b) { fileStatus(262, CallArguments(a: a.a, b: $0, c: 0, d: a.d, e: 0, f: 0), a.c) }
    case 80: return fileStatus(5, CallArguments(a: a.a, b: 0, c: 0, d: 0, e: 0, f: 0), a.b)
    case 99: return setRobustList(a.a, a.b)
    case 169: return timeOfDay(a.a, a.b)
    case 191: return semaphoreControl(a)
    case 196:
      return process.memory.attach(Int32(truncatingIfNeeded: a.a), a.b, Int32(truncatingIfNeeded: a.c))
    case 197: return process.memory.detach(a.a)
    case 230: return direct(151, CallArguments(a: a.a | 4, b: 0, c: 0, d: 0, e: 0, f: 0))  // MCL_ONFAULT
    case 435: return clone3(a.a, a.b)
    case 93: return exitThread(a.a)
    case 94: exitProcess(a.a)
    case 96:
      clearChildThread = a.a
      return apus_gettid()
    case 95: return waitID(a)
    case 117: return ptrace(a)
    case 260: return wait4(a)
    case 277: return secureComputing(a.a, a.b, a.c)
    case 136: return pendingSignals(a.a, a.b)
    case 137: return waitForSignal(a)
    case 234:
      let result = direct(216, a)
      if result == 0, a.a & 4095 == 0 { process.memory.dropCode(a.a, a.a &+ a.b) }
      return result
    case 132: return signalStack(a.a, a.b)
    case 133: return signalSuspend(a.a, a.b)
    case 134: return signalAction(a.a, a.b, a.c, a.d)
    case 135: return signalMask(a.a, a.b, a.c, a.d)
    case 160: return systemName(a.a)
    case 163: return limits(CallArguments(a: 0, b: a.a, c: 0, d: a.b, e: 0, f: 0))
    case 164: return limits(CallArguments(a: 0, b: a.a, c: a.b, d: 0, e: 0, f: 0))
    case 261: return limits(a)
    case 167: return control(a)
    case 214: return Int(bitPattern: UInt(process.memory.setBreak(a.a)))
    case 215: return process.memory.unmap(a.a, a.b)
    case 216: return process.memory.remap(a.a, a.b, a.c, Int32(truncatingIfNeeded: a.d), a.e)
    case 222:
      let result = process.memory.map(
        a.a, a.b, Int32(truncatingIfNeeded: a.c), Int32(truncatingIfNeeded: a.d),
        Int32(truncatingIfNeeded: a.e),
        Int(bitPattern: UInt(a.f)))
      if process.memory.hasGuardedPages { cpu.checkBranchTargets() }
      return result
    case 462: return process.memory.seal(a.a, a.b, a.c)
    case 226:
      let result = process.memory.protect(a.a, a.b, Int32(truncatingIfNeeded: a.c))
      if process.memory.hasGuardedPages { cpu.checkBranchTargets() }
      return result
    case 220: return clone(a)
    case 221: return execute(a.a, a.b, a.c)
    case 281: return execute(a.b, a.c, a.d, directory: Int32(truncatingIfNeeded: a.a), flags: a.e)
    case 233: return advise(a)
    default: return process.isa.call(call, a, self) ?? unknown(number)
    }
  }

  // MARK: Small ones

  private func systemName(_ address: UInt64) -> Int {
    var name = utsname()
    guard uname(&name) == 0 else { return -Int(errno) }
    withUnsafeMutableBytes(of: &name) { raw in
      // sysname, nodename, release, version, machine, domainname: 65 bytes each.
      let machine = Array(process.isa.name.utf8)
      for k in 0..<65 { raw[4 * 65 + k] = k < machine.count ? machine[k] : 0 }
    }
    return process.memory.write(address, name) ? 0 : -Int(EFAULT)
  }

  /// Limits on address space, data and a small stack would hit the emulator instead of the guest: the first two are in force
  /// for the guest's own memory, a small stack's for the programs that it executes.
  private func limits(_ a: CallArguments) -> Int {
    let isOwn = a.a == 0 || a.a == UInt64(getpid())
    guard isOwn, [2, 3, 9].contains(a.b) else { return direct(302, a) }
    let resource = Int(a.b)
    var values: (UInt64, UInt64) = (0, 0)
    let host = withUnsafeMutablePointer(to: &values) {
      apus_syscall(302, 0, a.b, 0, UInt64(UInt(bitPattern: $0)), 0, 0)
    }
    guard host == 0 else { return Int(host) }
    let previous = process.limits[resource] ?? values
    if a.c != 0 {
      guard let wanted = process.memory.read(a.c, as: (UInt64, UInt64).self, default: (0, 0)) else {
        return -Int(EFAULT)
      }
      guard wanted.0 <= wanted.1 else { return -Int(EINVAL) }
      guard wanted.1 <= previous.1 || geteuid() == 0 else { return -Int(EPERM) }
      // A stack of this size is enough for the emulator, too.
      if resource == 3, wanted.0 >= 1 << 20 {
        let result = direct(302, CallArguments(a: 0, b: a.b, c: a.c, d: 0, e: 0, f: 0))
        guard result == 0 else { return result }
      }
      process.setLimit(resource, wanted)
    }
    if a.d != 0, !process.memory.write(a.d, previous) { return -Int(EFAULT) }
    return 0
  }

  private func control(_ a: CallArguments) -> Int {
    switch a.a {
    // PDEATHSIG, DUMPABLE, KEEPCAPS, NAME, GET_SECCOMP, capabilities, TIMERSLACK, children, NO_NEW_PRIVS, THP, CAP_AMBIENT,
    // speculation, IO_FLUSHER, PTRACER, names of mappings: the host's.
    case 1...4, 7, 8, 15, 16, 21, 23, 24, 27...30, 33, 34, 36...39, 41, 42, 47, 52, 53, 57, 58, 66,
      0x5961_6d61,
      0x5356_4d41:
      return direct(157, a)
    case 22: return setSecureComputing(a.b, a.c)
    case 40: return process.memory.write(a.b, clearChildThread) ? 0 : -Int(EFAULT)
    case 0x4155_5856:  // GET_AUXV
      guard a.d == 0, a.e == 0 else { return -Int(EINVAL) }
      let byteCount = process.auxiliaryVector.count * 8
      let isWritten = process.auxiliaryVector.withUnsafeBytes {
        process.memory.write(a.b, UnsafeRawBufferPointer(rebasing: $0[..<min(byteCount, Int(clamping: a.c))]))
      }
      return isWritten ? byteCount : -Int(EFAULT)
    default: return -Int(EINVAL)
    }
  }

  /// The host's clocks without a system call.
  private func clockTime(_ clock: UInt64, _ target: UInt64) -> Int {
    var time = timespec()
    guard clock_gettime(clockid_t(truncatingIfNeeded: clock), &time) == 0 else { return -Int(errno) }
    if let pointer = UnsafeMutableRawPointer(bitPattern: UInt(target)),
      apus_guard_store64(pointer, UInt64(bitPattern: Int64(time.tv_sec))) == 0,
      apus_guard_store64(pointer + 8, UInt64(time.tv_nsec)) == 0
    {
      return 0
    }
    return process.memory.write(target, time) ? 0 : -Int(EFAULT)
  }
  private func timeOfDay(_ target: UInt64, _ zone: UInt64) -> Int {
    if zone != 0 { return direct(96, CallArguments(a: target, b: zone, c: 0, d: 0, e: 0, f: 0)) }
    var time = timeval()
    gettimeofday(&time, nil)
    return target == 0 || process.memory.write(target, time) ? 0 : -Int(EFAULT)
  }

  /// `struct semid64_ds` has padding behind its times on the host.
  private func semaphoreControl(_ a: CallArguments) -> Int {
    let command = a.c & 0xff
    guard [1, 2, 18, 20].contains(command) else { return direct(66, a) }  // SET, STAT, SEM_STAT, SEM_STAT_ANY
    var host = [UInt64](repeating: 0, count: 13)
    if command == 1 {
      var guest = [UInt64](repeating: 0, count: 11)
      guard guest.withUnsafeMutableBytes({ process.memory.read(a.d, into: $0) }) else { return -Int(EFAULT) }
      host.replaceSubrange(0..<6, with: guest[0..<6])
    }
    let result = host.withUnsafeMutableBytes { raw in
      direct(
        66,
        CallArguments(a: a.a, b: a.b, c: a.c, d: UInt64(UInt(bitPattern: raw.baseAddress)), e: 0, f: 0))
    }
    guard result >= 0, command != 1 else { return result }
    let guest = Array(host[0..<6]) + [host[6], host[8], host[10], 0, 0]
    return guest.withUnsafeBytes { process.memory.write(a.d, $0) } ? result : -Int(EFAULT)
  }

  /// madvise: the host's on what is the guest's of the range.
  private func advise(_ a: CallArguments) -> Int {
    guard a.a & 4095 == 0, a.b < UserMemory.limit, a.a < UserMemory.limit else { return -Int(EINVAL) }
    let end = (a.a &+ a.b &+ 4095) & ~4095
    let (ranges, isWhole) = process.memory.guestRanges(a.a, end)
    // Whether there is such advice, the host knows for no bytes, too.
    if ranges.isEmpty {
      let result = direct(28, CallArguments(a: a.a, b: 0, c: a.c, d: 0, e: 0, f: 0))
      return result != 0 || isWhole ? result : -Int(ENOMEM)
    }
    // DONTNEED, FREE, REMOVE, DONTFORK, WIPEONFORK, DONTNEED_LOCKED.
    if [4, 8, 9, 10, 18, 24].contains(a.c), process.memory.refusesDiscarding(a.a, end) { return -Int(EPERM) }
    var result = 0
    for (low, high) in ranges {
      let one = direct(28, CallArguments(a: low, b: high - low, c: a.c, d: 0, e: 0, f: 0))
      if result == 0 { result = one }
      if one == 0, a.c == 16 || a.c == 17 { process.memory.setDumped(a.c == 17, low, high) }
      // DONTNEED, FREE, REMOVE and DONTNEED_LOCKED change what is there.
      if [4, 8, 9, 24].contains(a.c) { process.memory.dropCode(low, high) }
    }
    return result != 0 || isWhole ? result : -Int(ENOMEM)
  }
}
