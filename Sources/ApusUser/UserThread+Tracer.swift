import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// ptrace and the wait family: the tracer's side. How the two sides work together is told in UserThread+Traced.

/// The guest threads that a process traces and that are stopped, by thread id. Any thread.
final class Tracees: @unchecked Sendable {
  struct Stop {
    /// The tracee's record in its memory; 0 before it is known.
    var record: UInt64
    /// Stopped by the host for an event, not for the record.
    var isHostEvent: Bool
  }
  private let lock = Monitor()
  // Guarded by `lock`.
  private var stops: [Int32: Stop] = [:]
  private var records: [Int32: UInt64] = [:]

  func stop(_ thread: Int32) -> Stop? { lock.withLock { stops[thread] } }
  func noteStop(_ thread: Int32, record: UInt64) {
    lock.withLock {
      records[thread] = record
      stops[thread] = Stop(record: record, isHostEvent: false)
    }
  }
  /// - Parameter isAtEnd: a thread's record is gone before the host's thread is.
  func noteEvent(_ thread: Int32, isAtEnd: Bool = false) {
    lock.withLock { stops[thread] = Stop(record: isAtEnd ? 0 : records[thread] ?? 0, isHostEvent: true) }
  }
  func noteRunning(_ thread: Int32) { _ = lock.withLock { stops.removeValue(forKey: thread) } }
  func forget(_ thread: Int32) {
    lock.withLock {
      stops[thread] = nil
      records[thread] = nil
    }
  }
  func whileForking(_ fork: () -> Int) -> Int { lock.withLock(fork) }
}

/// Requests [ptrace(2)].
private enum Request {
  static let (traceMe, peekText, peekData, pokeText, pokeData): (UInt64, UInt64, UInt64, UInt64, UInt64) = (
    0, 1, 2, 4, 5
  )
  static let (resume, kill, singleStep, attach, detach): (UInt64, UInt64, UInt64, UInt64, UInt64) = (
    7, 8, 9, 16, 17
  )
  static let call: UInt64 = 24
  static let (setOptions, eventMessage, signalInfo, setSignalInfo): (UInt64, UInt64, UInt64, UInt64) = (
    0x4200, 0x4201, 0x4202, 0x4203
  )
  static let (registerSet, setRegisterSet, seize, interrupt): (UInt64, UInt64, UInt64, UInt64) = (
    0x4204, 0x4205, 0x4206, 0x4207
  )
  static let (listen, peekSignalInfo, signalMask, setSignalMask): (UInt64, UInt64, UInt64, UInt64) = (
    0x4208, 0x4209, 0x420a, 0x420b
  )
  static let callInfo: UInt64 = 0x420e
}

extension UserThread {
  private static let knownOptions: UInt64 = 0x30_00ff
  /// Exec stops of the host's are told apart from signals by this option; the guest sees none of them.
  private static func hostOptions(_ options: UInt64) -> UInt64 { options & ~0x81 | UInt64(ThreadTrace.exec) }

  private func field(_ keyPath: PartialKeyPath<apus_trace_record>) -> UInt64 {
    UInt64(MemoryLayout<apus_trace_record>.offset(of: keyPath) ?? 0)
  }
  private func readRecord(_ thread: Int32, _ address: UInt64) -> apus_trace_record? {
    var record = apus_trace_record()
    let byteCount = MemoryLayout<apus_trace_record>.size
    guard apus_trace_read(thread, &record, address, byteCount) == byteCount,
      record.magic == UInt64(APUS_TRACE_MAGIC)
    else { return nil }
    return record
  }
  private func write<T: BitwiseCopyable>(_ thread: Int32, _ address: UInt64, _ value: T) {
    _ = withUnsafeBytes(of: value) { apus_trace_write(thread, address, $0.baseAddress, $0.count) }
  }
  private func markDirty(_ thread: Int32, _ stop: Tracees.Stop, _ bits: UInt32) {
    let address = stop.record + field(\.dirty)
    var dirty: UInt32 = 0
    _ = apus_trace_read(thread, &dirty, address, 4)
    write(thread, address, dirty | bits)
  }

  // MARK: ptrace

  func ptrace(_ a: CallArguments) -> Int {
    let thread = Int32(truncatingIfNeeded: a.b)
    switch a.a {
    case Request.traceMe:
      let result = Int(apus_trace_request(0, 0, 0, 0))
      if result == 0 { beginTrace(options: 0, isSeized: false) }
      return result
    case Request.attach: return attach(thread, options: 0, isSeized: false)
    case Request.seize:
      guard a.c == 0, a.d & ~Self.knownOptions == 0 else { return -Int(EIO) }
      return attach(thread, options: a.d, isSeized: true)
    case Request.interrupt:
      guard let group = threadGroup(thread) else { return -Int(ESRCH) }
      return Int(apus_trace_control(group, thread, UInt64(APUS_CONTROL_INTERRUPT)))
    case Request.kill:
      guard let group = threadGroup(thread) else { return -Int(ESRCH) }
      return Glibc.kill(group, SIGKILL) == 0 ? 0 : -Int(errno)
    default: break
    }
    guard let stop = process.tracees.stop(thread) else { return -Int(ESRCH) }
    switch a.a {
    case Request.resume: return resume(thread, stop, UInt32(APUS_RESUME_CONTINUE), a.d)
    case Request.call: return resume(thread, stop, UInt32(APUS_RESUME_CALL), a.d)
    case Request.singleStep: return resume(thread, stop, UInt32(APUS_RESUME_STEP), a.d)
    case Request.detach: return resume(thread, stop, UInt32(APUS_RESUME_DETACH), a.d)
    case Request.listen:
      process.tracees.noteRunning(thread)
      return Int(apus_trace_request(Int(a.a), thread, 0, 0))
    case Request.peekText, Request.peekData: return direct(101, a)
    case Request.pokeText, Request.pokeData:
      markDirty(thread, stop, UInt32(APUS_TRACE_MEMORY))
      return direct(101, a)
    case Request.setOptions:
      guard a.d & ~Self.knownOptions == 0 else { return -Int(EINVAL) }
      write(thread, stop.record + field(\.options), UInt32(truncatingIfNeeded: a.d))
      return Int(apus_trace_request(Int(a.a), thread, 0, Self.hostOptions(a.d)))
    case Request.eventMessage:
      if stop.isHostEvent { return direct(101, a) }
      guard let record = readRecord(thread, stop.record) else { return -Int(ESRCH) }
      return process.memory.write(a.d, record.message) ? 0 : -Int(EFAULT)
    case Request.signalInfo:
      if stop.isHostEvent { return direct(101, a) }
      guard var record = readRecord(thread, stop.record) else { return -Int(ESRCH) }
      return withUnsafeBytes(of: &record.info) { process.memory.write(a.d, $0) } ? 0 : -Int(EFAULT)
    case Request.setSignalInfo:
      var info = [UInt8](repeating: 0, count: 128)
      guard info.withUnsafeMutableBytes({ process.memory.read(a.d, into: $0) }) else { return -Int(EFAULT) }
      _ = apus_trace_write(thread, stop.record + field(\.info), info, 128)
      markDirty(thread, stop, UInt32(APUS_TRACE_INFO))
      return 0
    case Request.signalMask:
      guard a.c == 8 else { return -Int(EINVAL) }
      guard let record = readRecord(thread, stop.record) else { return -Int(ESRCH) }
      return process.memory.write(a.d, record.mask) ? 0 : -Int(EFAULT)
    case Request.setSignalMask:
      guard a.c == 8 else { return -Int(EINVAL) }
      guard let mask = process.memory.readWord(a.d) else { return -Int(EFAULT) }
      write(thread, stop.record + field(\.mask), mask)
      markDirty(thread, stop, UInt32(APUS_TRACE_MASK))
      return 0
    case Request.registerSet, Request.setRegisterSet: return registerSet(a, thread, stop)
    case Request.callInfo: return callInfo(a, thread, stop)
    case Request.peekSignalInfo: return direct(101, a)
    default: return -Int(EIO)
    }
  }

  /// The process that a thread belongs to.
  private func threadGroup(_ thread: Int32) -> Int32? {
    // tgkill finds the pair; most threads asked for are their process's first.
    if apus_syscall(234, UInt64(UInt32(bitPattern: thread)), UInt64(UInt32(bitPattern: thread)), 0, 0, 0, 0)
      == 0
    {
      return thread
    }
    let file = ByteString(text: "/proc/\(thread)/status").withPointer {
      apus_open($0, O_RDONLY | O_CLOEXEC, 0)
    }
    guard file >= 0 else { return nil }
    defer { Glibc.close(file) }
    var text = [UInt8](repeating: 0, count: 1024)
    let count = read(file, &text, text.count)
    guard count > 0 else { return nil }
    let lines = String(decoding: text[..<count], as: UTF8.self).split(separator: "\n")
    return lines.first { $0.hasPrefix("Tgid:") }.flatMap {
      Int32($0.dropFirst(5).drop { $0 == "\t" || $0 == " " })
    }
  }

  private func attach(_ thread: Int32, options: UInt64, isSeized: Bool) -> Int {
    guard let group = threadGroup(thread) else { return -Int(ESRCH) }
    guard group != getpid() else { return -Int(EPERM) }
    // Only an emulator knows what to do with what follows.
    guard apus_trace_is_ours(group) != 0 else { return -Int(EPERM) }
    let result = Int(apus_trace_request(0x4206, thread, 0, Self.hostOptions(options)))
    guard result == 0 else { return result }
    let what = UInt64(isSeized ? APUS_CONTROL_SEIZE : APUS_CONTROL_ATTACH)
    return Int(apus_trace_control(group, thread, options << 16 | what))
  }

  private func resume(_ thread: Int32, _ stop: Tracees.Stop, _ how: UInt32, _ signal: UInt64) -> Int {
    guard signal <= 64 else { return -Int(EIO) }
    let isDetach = how == UInt32(APUS_RESUME_DETACH)
    let request = isDetach ? Request.detach : Request.resume
    if !stop.isHostEvent { write(thread, stop.record + field(\.signal), Int32(truncatingIfNeeded: signal)) }
    // After an event, the thread looks there when it comes by.
    if stop.record != 0 { write(thread, stop.record + field(\.resume), how) }
    process.tracees.noteRunning(thread)
    if isDetach { process.tracees.forget(thread) }
    return Int(apus_trace_request(Int(request), thread, 0, stop.isHostEvent ? signal : 0))
  }

  private func registerSet(_ a: CallArguments, _ thread: Int32, _ stop: Tracees.Stop) -> Int {
    guard let vector = process.memory.read(a.d, as: (UInt64, UInt64).self, default: (0, 0)) else {
      return -Int(EFAULT)
    }
    // Whole 64-bit registers only; GDB finds out their size by that.
    guard vector.1 % 8 == 0 else { return -Int(EINVAL) }
    guard var record = readRecord(thread, stop.record) else { return -Int(ESRCH) }
    let offset = field(\.sets)
    return withUnsafeMutablePointer(to: &record.sets) { raw in
      raw.withMemoryRebound(to: apus_trace_set.self, capacity: 4) { sets in
        guard
          let index = (0..<Int(record.set_count)).first(where: { UInt64(sets[$0].kind) == a.c & 0xffff_ffff }
          ),
          sets[index].byte_count > 0
        else {
          return -Int(EINVAL)
        }
        let byteCount = min(Int(clamping: vector.1), Int(sets[index].byte_count))
        let result = withUnsafeMutableBytes(of: &sets[index].bytes) { bytes -> Int in
          let part = UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount])
          if a.a == Request.registerSet {
            return process.memory.write(vector.0, UnsafeRawBufferPointer(part)) ? 0 : -Int(EFAULT)
          }
          guard process.memory.read(vector.0, into: part) else { return -Int(EFAULT) }
          let target = stop.record + offset + UInt64(index * MemoryLayout<apus_trace_set>.stride + 8)
          _ = apus_trace_write(thread, target, part.baseAddress, byteCount)
          markDirty(thread, stop, UInt32(APUS_TRACE_SET) << UInt32(index))
          return 0
        }
        guard result == 0 else { return result }
        return process.memory.write(a.d &+ 8, UInt64(byteCount)) ? 0 : -Int(EFAULT)
      }
    }
  }

  /// PTRACE_GET_SYSCALL_INFO: `struct ptrace_syscall_info`.
  private func callInfo(_ a: CallArguments, _ thread: Int32, _ stop: Tracees.Stop) -> Int {
    guard let record = readRecord(thread, stop.record) else { return -Int(ESRCH) }
    let kind = stop.isHostEvent ? 0 : record.call_stop
    var words: [UInt64] = [UInt64(kind) | UInt64(record.architecture) << 32, record.pc, record.stack_pointer]
    let arguments = record.arguments
    var byteCount = 24
    switch kind {
    case 1, 3:
      words += [
        record.call, arguments.0, arguments.1, arguments.2, arguments.3, arguments.4, arguments.5,
      ]
      byteCount = 80
      if kind == 3 {
        words.append(record.filter_data)
        byteCount = 84
      }
    case 2:
      words += [
        record.result,
        Int64(bitPattern: record.result) < 0 && Int64(bitPattern: record.result) >= -4095 ? 1 : 0,
      ]
      byteCount = 33
    default: break
    }
    let isWritten = words.withUnsafeBytes {
      process.memory.write(a.d, UnsafeRawBufferPointer(rebasing: $0[..<min(byteCount, Int(clamping: a.c))]))
    }
    return isWritten ? byteCount : -Int(EFAULT)
  }

  // MARK: Waiting

  /// What the guest is to see of a stop that the host reports; `nil`: nothing, and the thread runs on.
  private func guestStatus(_ thread: Int32, _ status: Int32) -> Int32? {
    let signal = status >> 8 & 0xff
    let event = status >> 16
    switch event {
    case 1, 2, 3, 5, 6:
      process.tracees.noteEvent(thread, isAtEnd: event == 6)
      return status
    case 128 where signal != GuestSignal.trap:
      process.tracees.noteEvent(thread)
      return status
    case 128:
      // The beginning of a thread that is traced from there.
      return askAndContinue(thread, APUS_CONTROL_INTERRUPT)
    case 0:
      var info = [UInt8](repeating: 0, count: 128)
      let known = info.withUnsafeMutableBytes {
        apus_trace_request(0x4202, thread, 0, UInt64(UInt(bitPattern: $0.baseAddress)))
      }
      // A stop of a child that this process does not trace, or of a whole process.
      guard known == 0 else {
        if known == -Int(EINVAL) { process.tracees.noteEvent(thread) }
        return status
      }
      let code = info.withUnsafeBytes { $0.load(fromByteOffset: 8, as: Int32.self) }
      let value = info.withUnsafeBytes { $0.load(fromByteOffset: 24, as: UInt64.self) }
      if signal == GuestSignal.trap, code == -1, let record = readRecord(thread, value) {
        process.tracees.noteStop(thread, record: value)
        return record.status << 8 | 0x7f
      }
      if signal == GuestSignal.stop {
        return askAndContinue(thread, APUS_CONTROL_STOP)
      }
      // An exec's, which the new program tells itself; or a signal on its way to the handler.
      let isExec = signal == GuestSignal.trap && code == 0 && apus_trace_is_at_start(thread) != 0
      _ = apus_trace_request(7, thread, 0, isExec ? 0 : UInt64(signal))
      return nil
    default: break
    }
    _ = apus_trace_request(7, thread, 0, 0)
    return nil
  }

  /// Lets a thread run that the host has stopped, to the stop that the guest sees. It is told while it still stands.
  private func askAndContinue(_ thread: Int32, _ what: Int32) -> Int32? {
    if let group = threadGroup(thread) { _ = apus_trace_control(group, thread, UInt64(what)) }
    _ = apus_trace_request(7, thread, 0, 0)
    return nil
  }

  /// wait4(process, status, options, usage).
  func wait4(_ a: CallArguments) -> Int {
    var status: Int32 = 0
    while true {
      let result = withUnsafeMutablePointer(to: &status) { pointer in
        blocking(
          61, CallArguments(a: a.a, b: UInt64(UInt(bitPattern: pointer)), c: a.c, d: a.d, e: 0, f: 0),
          restart: .asFlagged)
      }
      guard result > 0 else { return result }
      if status & 0xff == 0x7f {
        guard let seen = guestStatus(Int32(result), status) else { continue }
        status = seen
      } else {
        process.tracees.forget(Int32(result))
      }
      return a.b == 0 || process.memory.write(a.b, status) ? result : -Int(EFAULT)
    }
  }

  /// waitid(kind, id, siginfo, options, usage).
  func waitID(_ a: CallArguments) -> Int {
    let keep: UInt64 = 0x100_0000
    var info = [UInt8](repeating: 0, count: 128)
    while true {
      let result = info.withUnsafeMutableBytes {
        blocking(
          247,
          CallArguments(a: a.a, b: a.b, c: UInt64(UInt(bitPattern: $0.baseAddress)), d: a.d, e: a.e, f: 0),
          restart: .asFlagged)
      }
      guard result == 0 else { return result }
      let (code, thread, status) = info.withUnsafeBytes {
        (
          $0.load(fromByteOffset: 8, as: Int32.self), $0.load(fromByteOffset: 12, as: Int32.self),
          $0.load(fromByteOffset: 24, as: Int32.self)
        )
      }
      if thread != 0, code == 4 || code == 5 {  // CLD_TRAPPED, CLD_STOPPED
        guard let seen = guestStatus(thread, status << 8 | 0x7f) else {
          // It is not to be seen again.
          continue
        }
        info.withUnsafeMutableBytes { $0.storeBytes(of: seen >> 8, toByteOffset: 24, as: Int32.self) }
      } else if thread != 0, a.d & keep == 0 {
        process.tracees.forget(thread)
      }
      if a.c == 0 { return 0 }
      // The kernel writes as many bytes as there are fields.
      return info.withUnsafeBytes { process.memory.write(a.c, UnsafeRawBufferPointer(rebasing: $0[..<32])) }
        ? 0 : -Int(EFAULT)
    }
  }
}
