import ApusAccelTranslate
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// A guest thread that another guest process traces (ptrace): its side. The tracer's is in UserThread+Tracer.
//
// Both processes are emulators, and the relation between them is the kernel's: attaching, waiting, the tracer's death,
// children that are traced from their start are what the host's ptrace makes of them. What a tracer must see is the
// guest, though, and at a guest instruction's boundary. So the traced thread writes its registers and what happened into a
// record, and stops itself: it queues a SIGTRAP to itself that names the record. The tracer's emulator knows that stop,
// shows the guest's status for it, and answers by writing to the record. All other stops of the host's (the emulator's
// own faults, signals on their way to the handler) it lets go on unseen. What the tracer wants of a thread that runs, it
// says with a control message, a queued signal.

/// What a traced program hands on when it executes another: the tracer's options, whether it used PTRACE_SEIZE, what it wants
/// to see, and execve's number.
public struct HandedOnTrace: Sendable {
  var options: UInt32
  var isSeized: Bool
  var mode: UInt32
  var call: UInt64

  /// From the text of `-traced`.
  public init?(_ text: String) {
    let numbers = text.split(separator: ",", omittingEmptySubsequences: false).map { UInt64($0) }
    guard numbers.count == 4, let options = numbers[0], let seized = numbers[1], let mode = numbers[2],
      let call = numbers[3], seized < 2, options <= UInt64(UInt32.max), mode < 4
    else { return nil }
    (self.options, isSeized) = (UInt32(options), seized == 1)
    (self.mode, self.call) = (UInt32(mode), call)
  }
}

/// What `UserThread` knows of its tracer.
final class ThreadTrace {
  enum Mode: UInt32 {
    case run = 1
    case calls = 2
    case step = 3
  }
  // SAFETY: lives as long as self; the tracer writes to it while the thread is stopped.
  let record: UnsafeMutablePointer<apus_trace_record>
  var mode = Mode.run
  var options: UInt32
  let isSeized: Bool

  init(options: UInt32, isSeized: Bool) {
    record = .allocate(capacity: 1)
    record.initialize(to: apus_trace_record())
    record.pointee.magic = UInt64(APUS_TRACE_MAGIC)
    (self.options, self.isSeized) = (options, isSeized)
  }
  deinit { record.deallocate() }

  static let (sysgood, fork, vfork, clone, exec): (UInt32, UInt32, UInt32, UInt32, UInt32) = (1, 2, 4, 8, 16)
  static let (eventExec, eventSeccomp, eventStop): (Int32, Int32, Int32) = (4, 7, 128)
}

extension UserThread {
  /// For `-traced`, which an emulator hands on to the one that it executes.
  var traceText: String? {
    trace.map {
      "\($0.options),\($0.isSeized ? 1 : 0),\($0.mode.rawValue),\(self[register: registers.number])"
    }
  }

  func beginTrace(options: UInt32, isSeized: Bool) {
    trace = ThreadTrace(options: options, isSeized: isSeized)
    process.catchesAllSignals = true
    for signal in 1...64 { applyDisposition(signal, actions[signal]) }
    updateInterception()
  }
  func endTrace() {
    trace = nil
    isStepping = false
    updateInterception()
  }

  /// A new program of a traced thread: it stops before its first instruction, and where its execve ends.
  func stopAfterExecution(_ handedOn: HandedOnTrace) {
    beginTrace(options: handedOn.options, isSeized: handedOn.isSeized)
    guard let trace else { return }
    trace.mode = ThreadTrace.Mode(rawValue: handedOn.mode) ?? .run
    let none = CallArguments(a: 0, b: 0, c: 0, d: 0, e: 0, f: 0)
    defer {
      if trace.options & ThreadTrace.exec != 0 {
        traceCallStop(entry: false, number: handedOn.call, none, result: 0)
      }
    }
    if trace.options & ThreadTrace.exec != 0 {
      trace.record.pointee.message = UInt64(apus_gettid())
      _ = stop(Int32(GuestSignal.trap) | ThreadTrace.eventExec << 8, nil)
    } else if !trace.isSeized {
      traceCallStop(entry: false, number: handedOn.call, none, result: 0)
      var info = [UInt8](repeating: 0, count: 128)
      info[0] = UInt8(GuestSignal.trap)
      injected(traceSignal(GuestSignal.trap, &info), info)
    }
  }
  private func injected(_ signal: Int, _ info: [UInt8]) {
    guard signal != 0 else { return }
    deliverOrAct(signal, info)
  }

  /// What the tracer asked for while the thread ran.
  func takeControl() {
    let bits = apus_exchange64(&record.pointee.control, 0)
    _ = apus_fetch_and32(&record.pointee.pending, ~UInt32(APUS_PENDING_CONTROL))
    if record.pointee.pending == 0 {
      if let call = interrupted { restart(call) }
      interrupted = nil
      setMask(mask)
    }
    let wanted = Int32(truncatingIfNeeded: bits & 0xffff)
    let options = UInt32(truncatingIfNeeded: bits >> 16 & 0xff_ffff)
    if wanted & (APUS_CONTROL_ATTACH | APUS_CONTROL_SEIZE) != 0 {
      beginTrace(options: options, isSeized: wanted & APUS_CONTROL_SEIZE != 0)
    }
    if wanted & (APUS_CONTROL_ATTACH | APUS_CONTROL_STOP) != 0 {
      var info = [UInt8](repeating: 0, count: 128)
      info[0] = UInt8(GuestSignal.stop)
      // A SIGSTOP that the tracer lets through stops the process.
      let signal = traceSignal(GuestSignal.stop, &info)
      if signal == GuestSignal.stop { kill(getpid(), SIGSTOP) } else { injected(signal, info) }
    }
    if wanted & APUS_CONTROL_INTERRUPT != 0 {
      _ = stop(Int32(GuestSignal.trap) | ThreadTrace.eventStop << 8, nil)
    }
  }

  /// A signal is about to be delivered: the tracer sees it first. Returns the one to deliver, 0 for none.
  func traceSignal(_ signal: Int, _ info: inout [UInt8]) -> Int {
    guard trace != nil else { return signal }
    let result = stop(Int32(signal), info)
    if let trace, trace.record.pointee.dirty & UInt32(APUS_TRACE_INFO) != 0 {
      withUnsafeBytes(of: &trace.record.pointee.info) { info.replaceSubrange(0..<128, with: $0) }
    }
    if result != signal, result != 0 {
      info.withUnsafeMutableBytes { $0.storeBytes(of: Int32(result), as: Int32.self) }
    }
    return result
  }

  /// A stop before or after a system call.
  func traceCallStop(entry: Bool, number: UInt64, _ a: CallArguments, result: Int) {
    guard let trace, trace.mode == .calls else { return }
    fillCall(trace, entry ? 1 : 2, number, a, result)
    let status = Int32(GuestSignal.trap) | (trace.options & ThreadTrace.sysgood != 0 ? 0x80 : 0)
    let signal = stop(status, nil)
    if signal != 0 { kill(getpid(), Int32(signal)) }
  }
  private func fillCall(
    _ trace: ThreadTrace, _ kind: UInt32, _ number: UInt64, _ a: CallArguments, _ result: Int
  ) {
    let record = trace.record
    record.pointee.call_stop = kind
    record.pointee.call = number
    record.pointee.arguments = (a.a, a.b, a.c, a.d, a.e, a.f)
    record.pointee.result = UInt64(bitPattern: Int64(result))
  }
  /// SECCOMP_RET_TRACE; false: nobody asked for it.
  func traceFilterStop(number: UInt64, _ a: CallArguments, data: UInt64) -> Bool {
    guard let trace, trace.options & 0x80 != 0 else { return false }
    fillCall(trace, 3, number, a, 0)
    trace.record.pointee.filter_data = data
    trace.record.pointee.message = data
    _ = stop(Int32(GuestSignal.trap) | ThreadTrace.eventSeccomp << 8, nil)
    return true
  }

  /// Registers and what else a tracer may ask for, as they are now.
  func fillTraceRecord() {
    guard let trace else { return }
    let record = trace.record
    record.pointee.options = trace.options
    record.pointee.is_seized = trace.isSeized ? 1 : 0
    record.pointee.architecture = process.isa.auditArchitecture
    record.pointee.mask = mask
    record.pointee.pc = pc
    record.pointee.stack_pointer = stackPointer
    record.pointee.dirty = 0
    record.pointee.signal = 0
    let saved = cpu.saveRegisters()
    record.pointee.set_count = UInt32(saved.count)
    withUnsafeMutablePointer(to: &record.pointee.sets) { sets in
      sets.withMemoryRebound(to: apus_trace_set.self, capacity: 4) { sets in
        for (index, bytes) in saved.enumerated() {
          sets[index].kind = type(of: cpu!).registerSets[index]
          sets[index].byte_count = UInt32(bytes.count)
          withUnsafeMutableBytes(of: &sets[index].bytes) { $0.copyBytes(from: bytes) }
        }
      }
    }
  }

  /// Takes over what the tracer changed.
  func applyTracerChanges() {
    guard let trace else { return }
    // After a fork's event: what to show next.
    if let mode = ThreadTrace.Mode(rawValue: trace.record.pointee.resume), mode != .step { trace.mode = mode }
    let dirty = trace.record.pointee.dirty
    trace.options = trace.record.pointee.options
    if dirty & UInt32(APUS_TRACE_MASK) != 0 { setMask(trace.record.pointee.mask) }
    withUnsafeMutablePointer(to: &trace.record.pointee.sets) { sets in
      sets.withMemoryRebound(to: apus_trace_set.self, capacity: 4) { sets in
        for index in 0..<Int(trace.record.pointee.set_count)
        where dirty & UInt32(APUS_TRACE_SET) << UInt32(index) != 0 {
          withUnsafeBytes(of: &sets[index].bytes) { raw in
            let bytes = UnsafeRawBufferPointer(rebasing: raw[..<Int(sets[index].byte_count)])
            _ = cpu.setRegisterSet(sets[index].kind, bytes)
          }
        }
      }
    }
  }

  /// Stops for the tracer with a wait status (shifted right by 8). Returns the signal that it wants delivered.
  private func stop(_ status: Int32, _ info: [UInt8]?) -> Int {
    guard let trace else { return 0 }
    fillTraceRecord()
    let record = trace.record
    let isCall = record.pointee.call_stop != 0
    record.pointee.status = status
    withUnsafeMutableBytes(of: &record.pointee.info) { raw in
      raw.initializeMemory(as: UInt8.self, repeating: 0)
      if let info { return raw.copyBytes(from: info) }
      raw.storeBytes(of: Int32(GuestSignal.trap), as: Int32.self)
      raw.storeBytes(of: status, toByteOffset: 8, as: Int32.self)
    }
    let isAlive = vcpu.whileBlocking { () -> Int in
      apus_trace_stop(record)
      return Int(record.pointee.resume)
    }
    guard isAlive != 0 else {
      record.pointee.call_stop = 0
      endTrace()
      return status >> 8 == 0 && !isCall ? Int(status & 0x7f) : 0
    }
    applyTracerChanges()
    record.pointee.call_stop = 0
    // A tracer writes breakpoints into code, through /proc/PID/mem too, where nobody sees it.
    if !isCall || record.pointee.dirty & UInt32(APUS_TRACE_MEMORY) != 0 {
      process.memory.dropCode(0, UserMemory.limit)
    }
    let signal = Int(record.pointee.signal)
    switch record.pointee.resume {
    case UInt32(APUS_RESUME_DETACH): endTrace()
    case UInt32(APUS_RESUME_STEP):
      trace.mode = .step
      isStepping = true
      vcpu.kick()
    default: trace.mode = ThreadTrace.Mode(rawValue: record.pointee.resume) ?? .run
    }
    updateInterception()
    return signal
  }

  /// After a fork, in the child: whether the tracer has it, too.
  func traceInChild(_ flags: UInt64) {
    guard let trace else { return }
    let kind: UInt32 =
      flags & CloneFlag.vfork != 0
      ? ThreadTrace.vfork : flags & 0xff == UInt64(SIGCHLD) ? ThreadTrace.fork : ThreadTrace.clone
    if trace.options & kind == 0, flags & CloneFlag.ptrace == 0 {
      self.trace = nil
    } else {
      self.trace = ThreadTrace(options: trace.options, isSeized: trace.isSeized)
    }
    isStepping = false
    updateInterception()
  }
}
