import ApusAccelTranslate
import ApusGuestRISCV
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

/// The arguments of a system call: a0 to a5.
struct CallArguments {
  var a, b, c, d, e, f: UInt64
}

extension UserThread {
  /// ecall: the number is in a7, arguments in a0 to a5, the result goes to a0.
  func systemCall() {
    let state = state
    let number = state[x: 17]
    let arguments = CallArguments(
      a: state[x: 10], b: state[x: 11], c: state[x: 12], d: state[x: 13], e: state[x: 14], f: state[x: 15])
    guard let row = SyscallTable.shared[number] else {
      if process.options.logsUnimplemented { process.log("unimp: system call \(number) is unknown\n") }
      state[x: 10] = UInt64(bitPattern: Int64(-ENOSYS))
      return
    }
    if process.options.tracesCalls { traceCall(row, arguments) }
    let result = perform(row, arguments)
    if row.name.utf8CodeUnitCount == 12, number == 139 { return }  // rt_sigreturn set all registers
    if process.options.tracesCalls { traceResult(row, result) }
    state[x: 10] = UInt64(bitPattern: Int64(result))
  }

  private func perform(_ row: SyscallRow, _ a: CallArguments) -> Int {
    switch row.kind {
    case .direct: return retryingAfterCode { direct(row.host, a) }
    case .blocking, .waiting:
      return retryingAfterCode { blocking(row.host, a, honoursRestart: row.kind == .blocking) }
    case .emulated: return retryingAfterCode { emulate(row, a) }
    case .planned:
      if process.options.logsUnimplemented {
        process.log("unimp: system call \(row.name) is not implemented\n")
      }
      return -Int(ENOSYS)
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
  func blocking(_ number: Int, _ a: CallArguments, honoursRestart: Bool) -> Int {
    let result = process.cache.whileBlocking {
      Int(apus_syscall_interruptible(&record.pointee.pending, number, a.a, a.b, a.c, a.d, a.e, a.f))
    }
    // ERESTARTSYS: not begun.
    if result == -512 {
      interrupted = (state[x: 10], honoursRestart, false)
      return -Int(EINTR)
    }
    if result == -Int(EINTR), record.pointee.pending != 0, honoursRestart {
      interrupted = (state[x: 10], true, true)
    }
    return result
  }

  // MARK: Emulated calls, by number

  private func emulate(_ row: SyscallRow, _ a: CallArguments) -> Int {
    switch row.number {
    case 21: return epollControl(a)
    case 22: return epollWait(a)
    case 48, 439:
      return withPath(a.b) {
        direct(row.host, CallArguments(a: a.a, b: $0, c: a.c, d: row.number == 439 ? a.d : 0, e: 0, f: 0))
      }
    case 56: return open(a)
    case 437:
      return withPath(a.b) { direct(row.host, CallArguments(a: a.a, b: $0, c: a.c, d: a.d, e: 0, f: 0)) }
    case 78: return readLink(a)
    case 79:
      return withPath(a.b) { fileStatus(262, CallArguments(a: a.a, b: $0, c: 0, d: a.d, e: 0, f: 0), a.c) }
    case 80: return fileStatus(5, CallArguments(a: a.a, b: 0, c: 0, d: 0, e: 0, f: 0), a.b)
    case 291: return withPath(a.b) { direct(332, CallArguments(a: a.a, b: $0, c: a.c, d: a.d, e: a.e, f: 0)) }
    case 93: return exitThread(a.a)
    case 94: _exit(Int32(truncatingIfNeeded: a.a))
    case 96:
      clearChildThread = a.a
      return apus_gettid()
    case 132: return signalStack(a.a, a.b)
    case 133: return signalSuspend(a.a, a.b)
    case 134: return signalAction(a.a, a.b, a.c, a.d)
    case 135: return signalMask(a.a, a.b, a.c, a.d)
    case 139:
      returnFromSignal()
      return 0
    case 160: return systemName(a.a)
    case 163: return direct(302, CallArguments(a: 0, b: a.a, c: 0, d: a.b, e: 0, f: 0))
    case 164: return limits(CallArguments(a: 0, b: a.a, c: a.b, d: 0, e: 0, f: 0))
    case 261: return limits(a)
    case 167: return control(a)
    case 214: return Int(bitPattern: UInt(process.memory.setBreak(a.a)))
    case 215: return process.memory.unmap(a.a, a.b)
    case 216: return process.memory.remap(a.a, a.b, a.c, Int32(truncatingIfNeeded: a.d), a.e)
    case 222:
      return process.memory.map(
        a.a, a.b, Int32(truncatingIfNeeded: a.c), Int32(truncatingIfNeeded: a.d),
        Int32(truncatingIfNeeded: a.e),
        Int(bitPattern: UInt(a.f)))
    case 226: return process.memory.protect(a.a, a.b, Int32(truncatingIfNeeded: a.c))
    case 220: return clone(a)
    case 221: return execute(a.a, a.b, a.c, directory: nil)
    case 281: return execute(a.b, a.c, a.d, directory: a.a)
    case 233: return advise(a)
    case 258: return hardwareProbe(a)
    case 259:
      process.memory.dropCode(a.a, a.b)
      return 0
    default:
      if process.options.logsUnimplemented { process.log("unimp: system call \(row.name) has no code\n") }
      return -Int(ENOSYS)
    }
  }

  // MARK: Small ones

  private func systemName(_ address: UInt64) -> Int {
    var name = utsname()
    guard uname(&name) == 0 else { return -Int(errno) }
    withUnsafeMutableBytes(of: &name) { raw in
      // sysname, nodename, release, version, machine, domainname: 65 bytes each.
      let machine = Array("riscv64".utf8)
      for k in 0..<65 { raw[4 * 65 + k] = k < machine.count ? machine[k] : 0 }
    }
    return process.memory.write(address, name) ? 0 : -Int(EFAULT)
  }

  /// A limit on address space or data would hit the emulator instead of the guest: accepted and ignored.
  private func limits(_ a: CallArguments) -> Int {
    var a = a
    if [2, 3, 9].contains(a.b) { a.c = 0 }
    return direct(302, a)
  }

  private func control(_ a: CallArguments) -> Int {
    switch a.a {
    // PDEATHSIG, DUMPABLE, NAME, child subreaper, timer slack, no_new_privs: the host's.
    case 1, 2, 3, 4, 7, 8, 15, 16, 23, 24, 29, 30, 36, 37, 38, 39: return direct(157, a)
    default: return -Int(EINVAL)
    }
  }

  /// Advice that changes contents is the host's; the rest is for the emulator to ignore.
  private func advise(_ a: CallArguments) -> Int {
    guard a.a & 4095 == 0 else { return -Int(EINVAL) }
    switch a.c {
    case 4, 8, 9, 20:  // DONTNEED, FREE, REMOVE, COLD
      return direct(28, a)
    default: return 0
    }
  }

  /// riscv_hwprobe: pairs of key and value.
  private func hardwareProbe(_ a: CallArguments) -> Int {
    for index in 0..<a.b {
      let pair = a.a &+ 16 &* index
      guard let key = process.memory.read(pair, as: Int64.self, default: 0) else { return -Int(EFAULT) }
      var value: UInt64 = 0
      var result = key
      let extensions = process.options.extensions
      switch key {
      case 0, 1, 2: value = 0  // vendor, architecture, implementation
      case 3: value = 1  // base behaviour: IMA
      case 4:
        value =
          (extensions.contains(.f) && extensions.contains(.d) ? 1 : 0) | (extensions.contains(.c) ? 2 : 0)
        if extensions.contains(.zba) { value |= 1 << 3 }
        if extensions.contains(.zbb) { value |= 1 << 4 }
        if extensions.contains(.zbs) { value |= 1 << 5 }
      case 5: value = 3  // misaligned accesses are fast
      default: result = -1
      }
      guard process.memory.write(pair, (result, value)) else { return -Int(EFAULT) }
    }
    return 0
  }
}
