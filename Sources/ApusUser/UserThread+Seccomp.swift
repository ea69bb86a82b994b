import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// seccomp: filters see the guest's system calls by the guest's numbers. Each that the guest installs is accompanied by one on
// the host that allows everything, so that the kernel decides who may, shows it in /proc, and knows it after execve. What
// they are is handed to an emulator that this one executes in a file without a name.

extension UserThread {
  private static let (threadSync, log, speculation): (UInt64, UInt64, UInt64) = (1, 2, 4)

  /// seccomp(operation, flags, arguments).
  func secureComputing(_ operation: UInt64, _ flags: UInt64, _ arguments: UInt64) -> Int {
    switch operation {
    case 0:
      guard flags == 0, arguments == 0 else { return -Int(EINVAL) }
      return enterStrictMode()
    case 1: return installFilter(flags, arguments)
    case 2:
      guard flags == 0 else { return -Int(EINVAL) }
      guard let action = process.memory.read(arguments, as: UInt32.self, default: 0) else {
        return -Int(EFAULT)
      }
      return SeccompFilter.Action.known.contains(action) ? 0 : -Int(EOPNOTSUPP)
    default: return -Int(EINVAL)
    }
  }

  /// prctl(PR_SET_SECCOMP, mode, program).
  func setSecureComputing(_ mode: UInt64, _ program: UInt64) -> Int {
    switch mode {
    case 1: enterStrictMode()
    case 2: installFilter(0, program)
    default: -Int(EINVAL)
    }
  }

  private func enterStrictMode() -> Int {
    guard filters.isEmpty else { return -Int(EINVAL) }
    isStrict = true
    updateInterception()
    return 0
  }

  private func installFilter(_ flags: UInt64, _ address: UInt64) -> Int {
    guard flags & ~(Self.threadSync | Self.log | Self.speculation) == 0, !isStrict else {
      return -Int(EINVAL)
    }
    // struct sock_fprog: a count, a pointer.
    guard let (count, pointer) = process.memory.read(address, as: (UInt64, UInt64).self, default: (0, 0))
    else {
      return -Int(EFAULT)
    }
    guard (1...SeccompFilter.maximumCount).contains(Int(count & 0xffff)) else { return -Int(EINVAL) }
    let none = SeccompFilter.Instruction(code: 0, ifTrue: 0, ifFalse: 0, k: 0)
    var program = [SeccompFilter.Instruction](repeating: none, count: Int(count & 0xffff))
    guard program.withUnsafeMutableBytes({ process.memory.read(pointer, into: $0) }) else {
      return -Int(EFAULT)
    }
    guard let filter = SeccompFilter(program) else { return -Int(EINVAL) }
    let result = apus_user_allow_all(flags)
    guard result == 0 else { return Int(result) }
    filters.append(filter)
    updateInterception()
    if flags & Self.threadSync != 0 {
      for thread in process.allThreads where thread !== self { thread.adoptFilters(filters) }
    }
    return 0
  }

  /// Another thread of the process said what this one's filters are; it looks when it comes by.
  private func adoptFilters(_ new: [SeccompFilter]) {
    offered.withLock { offered.filters = new }
    forceInterception()
    vcpu.kick()
  }
  func takeOfferedFilters() {
    offered.withLock {
      guard let new = offered.filters else { return }
      filters = new
      offered.filters = nil
    }
    updateInterception()
  }

  /// What the filters say of a call: its result if it is not to be made; `nil` to go on.
  func filterCall(_ number: UInt64, _ a: CallArguments) -> FilteredCall {
    takeOfferedFilters()
    if isStrict {
      // read, write, exit, rt_sigreturn.
      let known = calls.row(number).map { [63, 64, 93, 139].contains($0.number) } ?? false
      if known { return .allowed }
      apus_user_die(SIGKILL)
    }
    guard !filters.isEmpty else { return .allowed }
    let data = SeccompData(
      number: UInt32(truncatingIfNeeded: number), architecture: process.isa.auditArchitecture, address: pc,
      arguments: (a.a, a.b, a.c, a.d, a.e, a.f))
    let verdict = SeccompFilter.evaluate(filters, data)
    let value = verdict & 0xffff
    switch verdict & SeccompFilter.Action.mask {
    case SeccompFilter.Action.allow, SeccompFilter.Action.log: return .allowed
    case SeccompFilter.Action.errno: return .result(-Int(min(value, 4095)))
    case SeccompFilter.Action.trap:
      var info = [UInt8](repeating: 0, count: 128)
      info.withUnsafeMutableBytes {
        $0.storeBytes(of: Int32(GuestSignal.system), as: Int32.self)
        $0.storeBytes(of: Int32(value), toByteOffset: 4, as: Int32.self)
        $0.storeBytes(of: 1, toByteOffset: 8, as: Int32.self)  // SYS_SECCOMP
        $0.storeBytes(of: pc, toByteOffset: 16, as: UInt64.self)
        $0.storeBytes(of: data.number, toByteOffset: 24, as: UInt32.self)
        $0.storeBytes(of: data.architecture, toByteOffset: 28, as: UInt32.self)
      }
      force(GuestSignal.system, info)
      return .handled
    case SeccompFilter.Action.trace:
      return traceFilterStop(number: number, a, data: UInt64(value)) ? .traced : .result(-Int(ENOSYS))
    case SeccompFilter.Action.killThread where process.isMultithreaded && !isVforkChild:
      _ = exitThread(UInt64(GuestSignal.system))
      return .handled
    case SeccompFilter.Action.userNotification: return .result(-Int(ENOSYS))
    default: die(GuestSignal.system, [UInt8(GuestSignal.system)] + [UInt8](repeating: 0, count: 127))
    }
  }

  // MARK: execve

  /// The filters in a file without a name, for the emulator that is executed; `nil`: there are none, or no memory.
  func filterFile() -> Int32? {
    guard !filters.isEmpty || isStrict else { return nil }
    var bytes: [UInt8] = [isStrict ? 1 : 0, 0, 0, 0, 0, 0, 0, 0]
    for filter in filters {
      withUnsafeBytes(of: UInt64(filter.instructions.count)) { bytes += $0 }
      filter.instructions.withUnsafeBytes { bytes += $0 }
    }
    let file = apus_memfd_create("seccomp", 0)
    guard file >= 0 else { return nil }
    _ = bytes.withUnsafeBytes { Glibc.write(file, $0.baseAddress, $0.count) }
    lseek(file, 0, SEEK_SET)
    return file
  }

  /// Takes over what `filterFile` made. False: that it was not.
  func readFilters(_ file: Int32) -> Bool {
    defer { Glibc.close(file) }
    var word: UInt64 = 0
    guard read(file, &word, 8) == 8 else { return false }
    isStrict = word & 1 != 0
    while read(file, &word, 8) == 8 {
      guard word <= UInt64(SeccompFilter.maximumCount) else { return false }
      let none = SeccompFilter.Instruction(code: 0, ifTrue: 0, ifFalse: 0, k: 0)
      var program = [SeccompFilter.Instruction](repeating: none, count: Int(word))
      let byteCount = Int(word) * 8
      guard program.withUnsafeMutableBytes({ read(file, $0.baseAddress, byteCount) }) == byteCount,
        let filter = SeccompFilter(program)
      else { return false }
      filters.append(filter)
    }
    updateInterception()
    return true
  }
}

enum FilteredCall {
  case allowed
  case result(Int)
  /// The registers are as they should be.
  case handled
  /// A tracer looked at it and may have changed it.
  case traced
}

/// Filters that another thread gives to a thread.
final class OfferedFilters: @unchecked Sendable {
  private let lock = Monitor()
  /// Under `lock`.
  var filters: [SeccompFilter]?
  func withLock<R>(_ body: () -> R) -> R { lock.withLock(body) }
}
