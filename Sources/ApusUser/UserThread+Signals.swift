import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// Signals. A guest handler's signal is caught on the host: the handler (CApusHost) keeps its siginfo, blocks all others
// and asks generated code to leave; the guest's frame is built here, between two blocks. The host's mask and pending
// signals are the guest's, so that the kernel does the queueing; signals without a handler keep the kernel's
// default or ignoring disposition.

extension UserThread {
  static func bit(_ signal: Int) -> UInt64 { 1 << UInt64(signal - 1) }
  static let alwaysCaught =
    bit(GuestSignal.segmentation) | bit(GuestSignal.bus) | bit(GuestSignal.illegal) | bit(GuestSignal.trap)
    | bit(GuestSignal.floatingPoint)
  private static let unblockable = bit(GuestSignal.kill) | bit(GuestSignal.stop)

  func setMask(_ new: UInt64) {
    mask = new & ~Self.unblockable
    record.pointee.mask = mask
    // While a signal waits to be taken all others stay blocked: there is room for one.
    _ = apus_user_set_mask_unless(&record.pointee.pending, mask)
    takeDeferred(~mask)
  }

  /// Makes one of the signals in `wanted` pending that the host could not block for the guest.
  private func takeDeferred(_ wanted: UInt64) {
    let ready = record.pointee.deferred & wanted
    guard ready != 0, record.pointee.pending & 0xff == 0 else { return }
    let signal = ready.trailingZeroBitCount + 1
    var all = UInt64.max
    // As the handler would have it.
    _ = apus_user_set_mask(SIG_SETMASK, &all, nil)
    record.pointee.deferred &= ~Self.bit(signal)
    withUnsafeMutableBytes(of: &record.pointee.pending_info) { target in
      withUnsafeBytes(of: &record.pointee.deferred_info) { source in
        target.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[signal * 128..<signal * 128 + 128]))
      }
    }
    record.pointee.pending = record.pointee.pending & UInt32(APUS_PENDING_CONTROL) | UInt32(signal)
    vcpu.kick()
  }

  /// rt_sigpending.
  func pendingSignals(_ target: UInt64, _ byteCount: UInt64) -> Int {
    guard byteCount <= 8 else { return -Int(EINVAL) }
    var set: UInt64 = 0
    let result = withUnsafeMutablePointer(to: &set) {
      direct(127, CallArguments(a: UInt64(UInt(bitPattern: $0)), b: 8, c: 0, d: 0, e: 0, f: 0))
    }
    guard result == 0 else { return result }
    set |= record.pointee.deferred
    return withUnsafeBytes(of: set) {
      process.memory.write(target, UnsafeRawBufferPointer(rebasing: $0[..<Int(byteCount)]))
    }
      ? 0 : -Int(EFAULT)
  }

  /// rt_sigtimedwait.
  func waitForSignal(_ a: CallArguments) -> Int {
    if record.pointee.deferred != 0, a.d == 8, let wanted = process.memory.readWord(a.a) {
      let ready = record.pointee.deferred & wanted
      if ready != 0 {
        let signal = ready.trailingZeroBitCount + 1
        record.pointee.deferred &= ~Self.bit(signal)
        if a.b == 0 { return signal }
        return withUnsafeBytes(of: &record.pointee.deferred_info) { source in
          process.memory.write(
            a.b, UnsafeRawBufferPointer(rebasing: source[signal * 128..<signal * 128 + 128]))
        } ? signal : -Int(EFAULT)
      }
    }
    return blocking(128, a, restart: .never)
  }

  /// Delivers the signal that the host's handler kept.
  func takePending() {
    var signal = Int(record.pointee.pending & 0xff)
    var info = [UInt8](repeating: 0, count: 128)
    withUnsafeBytes(of: &record.pointee.pending_info) { info.replaceSubrange(0..<128, with: $0) }
    _ = apus_fetch_and32(&record.pointee.pending, UInt32(APUS_PENDING_CONTROL))
    if trace != nil {
      signal = traceSignal(signal, &info)
      if signal == 0 {
        if let call = interrupted { restart(call) }
        interrupted = nil
        return setMask(mask)
      }
    }
    if process.debugger != nil {
      signal = debugStop(signal)
      if signal == 0 {
        if let call = interrupted { restart(call) }
        interrupted = nil
        return setMask(mask)
      }
      info[0] = UInt8(truncatingIfNeeded: signal)
    }
    deliverOrAct(signal, info)
  }

  /// Calls the guest's handler for a signal, or does what the kernel does without one.
  func deliverOrAct(_ signal: Int, _ info: [UInt8]) {
    let action = actions[signal]
    let call = interrupted
    interrupted = nil
    if action.handler <= 1 {
      if let call { restart(call) }
      if action.handler == 0 { act(signal, info) }
      return setMask(mask)
    }
    if let call {
      switch call.restart {
      case .always: restart(call)
      case .asFlagged where action.flags & GuestSignalAction.restart != 0: restart(call)
      default: break
      }
    }
    deliver(signal, info, action)
  }

  /// The default action of a signal that the host's handler caught although the guest has none: faults always, SIGINT with a
  /// debugger, all while the process is traced.
  private func act(_ signal: Int, _ info: [UInt8]) {
    switch signal {
    case 17, 18, 23, 28: return  // SIGCHLD, SIGCONT, SIGURG, SIGWINCH
    case 20, 21, 22:  // SIGTSTP, SIGTTIN, SIGTTOU
      _ = apus_user_set_disposition(Int32(signal), 0, 0)
      let bit = Self.bit(signal)
      var unblocked = ~bit
      _ = apus_syscall(234, UInt64(getpid()), UInt64(apus_gettid()), UInt64(signal), 0, 0, 0)
      // Here it stops.
      _ = apus_user_set_mask(SIG_SETMASK, &unblocked, nil)
      unblocked = .max
      _ = apus_user_set_mask(SIG_SETMASK, &unblocked, nil)
      applyDisposition(signal, actions[signal])
    default: die(signal, info)
    }
  }

  /// Ends the process with a signal.
  func die(_ signal: Int, _ info: [UInt8]) -> Never {
    process.debugger?.reportDeath(signal)
    GuestCore.write(self, signal, info)
    leaveSharedMemory()
    apus_user_die(Int32(signal))
  }

  func restart(_ call: (argument: UInt64, restart: SyscallRestart)) {
    self[register: registers.result] = call.argument
    pc = pc &- registers.callByteCount
  }

  /// A signal that the thread's own instruction caused.
  func force(_ signal: Int, code: Int32, address: UInt64) {
    var info = [UInt8](repeating: 0, count: 128)
    info.withUnsafeMutableBytes {
      $0.storeBytes(of: Int32(signal), as: Int32.self)
      $0.storeBytes(of: code, toByteOffset: 8, as: Int32.self)
      $0.storeBytes(of: address, toByteOffset: 16, as: UInt64.self)
    }
    force(signal, info)
  }

  func force(_ signal: Int, _ info: [UInt8]) {
    if process.debugger != nil, debugStop(signal) == 0 { return }
    var (signal, info) = (signal, info)
    if trace != nil {
      let wanted = traceSignal(signal, &info)
      if wanted == 0 { return }
      if wanted != signal { return deliverOrAct(wanted, info) }
      signal = wanted
    }
    let action = actions[signal]
    if action.handler <= 1 || mask & Self.bit(signal) != 0 { die(signal, info) }
    deliver(signal, info, action)
  }

  /// Builds the frame and makes the handler the next thing to run.
  private func deliver(_ signal: Int, _ info: [UInt8], _ action: GuestSignalAction) {
    var stackPointer = stackPointer
    let isOnAlternate =
      alternateStack.byteCount > 0 && stackPointer &- alternateStack.base < alternateStack.byteCount
    if action.flags & GuestSignalAction.onStack != 0, alternateStack.byteCount > 0, !isOnAlternate {
      stackPointer = alternateStack.base &+ alternateStack.byteCount
    }
    let isStored = info.withUnsafeBytes { info in
      cpu.enterHandler(
        SignalDelivery(
          signal: signal, info: info, handler: action.handler, flags: action.flags,
          stackPointer: stackPointer,
          context: SignalContext(
            mask: mask, stackBase: alternateStack.base,
            stackFlags: alternateStack.byteCount == 0 ? 2 : isOnAlternate ? 1 : 0,
            stackByteCount: alternateStack.byteCount),
          returnAddress: action.flags & GuestSignalAction.hasRestorer != 0 && process.isa.hasSignalRestorer
            ? action.restorer : process.signalReturn), process.memory)
    }
    guard isStored else {
      leaveSharedMemory()
      apus_user_die(SIGSEGV)
    }
    if process.options.tracesCalls {
      process.log(
        "--- \(GuestSignal.name(signal)) {si_code=\(info[8]), handler=0x\(String(action.handler, radix: 16))} ---\n"
      )
    }
    if action.flags & GuestSignalAction.resetHandler != 0 {
      // The flags stay.
      var reset = action
      reset.handler = 0
      actions[signal] = reset
      applyDisposition(signal, reset)
    }
    var blocked = mask | action.mask
    if action.flags & GuestSignalAction.noDefer == 0 { blocked |= Self.bit(signal) }
    setMask(blocked)
  }

  /// rt_sigreturn.
  func returnFromSignal() {
    guard let context = cpu.leaveHandler(process.memory) else { apus_user_die(SIGSEGV) }
    if context.stackFlags & 2 == 0 { alternateStack = (context.stackBase, context.stackByteCount) }
    setMask(context.mask)
  }

  // MARK: System calls

  func applyDisposition(_ signal: Int, _ action: GuestSignalAction) {
    // Faults stay ours whatever the guest wants.
    if Self.alwaysCaught & Self.bit(signal) != 0 { return }
    if process.catchesAllSignals || action.handler > 1
      || (signal == GuestSignal.interrupt && process.debugger != nil)
    {
      // Children of a process that ignores SIGCHLD leave nothing to wait for.
      let flags: UInt64 = signal == GuestSignal.child && action.handler == 1 ? 2 : 0
      _ = apus_user_catch(Int32(signal), action.flags | flags)
    } else {
      _ = apus_user_set_disposition(Int32(signal), action.handler == 1 ? 1 : 0, action.flags)
    }
  }

  func signalAction(_ signal: UInt64, _ new: UInt64, _ old: UInt64, _ setByteCount: UInt64) -> Int {
    guard setByteCount == 8, signal >= 1, signal <= 64 else { return -Int(EINVAL) }
    let number = Int(signal)
    let previous = actions.known(number)
    if new != 0 {
      guard number != GuestSignal.kill, number != GuestSignal.stop else { return -Int(EINVAL) }
      typealias Words = (UInt64, UInt64, UInt64)
      let memory = process.memory
      guard let words = memory.read(new, as: Words.self, default: (0, 0, 0)) else { return -Int(EFAULT) }
      var action = GuestSignalAction()
      (action.handler, action.flags, action.mask) = words
      if process.isa.hasSignalRestorer {
        action.restorer = action.mask
        guard let mask = memory.readWord(new &+ 24) else { return -Int(EFAULT) }
        action.mask = mask
      }
      actions[number] = action
      applyDisposition(number, action)
    }
    if old != 0 {
      let isStored =
        process.isa.hasSignalRestorer
        ? process.memory.write(old, (previous.handler, previous.flags, previous.restorer, previous.mask))
        : process.memory.write(old, (previous.handler, previous.flags, previous.mask))
      guard isStored else { return -Int(EFAULT) }
    }
    return 0
  }

  func signalMask(_ how: UInt64, _ new: UInt64, _ old: UInt64, _ setByteCount: UInt64) -> Int {
    guard setByteCount == 8 else { return -Int(EINVAL) }
    let previous = mask
    if new != 0 {
      guard let wanted = process.memory.readWord(new) else { return -Int(EFAULT) }
      switch how {
      case 0: setMask(mask | wanted)
      case 1: setMask(mask & ~wanted)
      case 2: setMask(wanted)
      default: return -Int(EINVAL)
      }
    }
    if old != 0, !process.memory.write(old, previous) { return -Int(EFAULT) }
    return 0
  }

  func signalStack(_ new: UInt64, _ old: UInt64) -> Int {
    let stackPointer = stackPointer
    let previous = alternateStack
    let isOn = previous.byteCount > 0 && stackPointer &- previous.base < previous.byteCount
    if new != 0 {
      guard let words = process.memory.read(new, as: (UInt64, UInt64, UInt64).self, default: (0, 0, 0)) else {
        return -Int(EFAULT)
      }
      if isOn { return -Int(EPERM) }
      guard words.1 & ~0x8000_0000 <= 2 else { return -Int(EINVAL) }
      if words.1 & 2 != 0 {
        alternateStack = (0, 0)
      } else {
        guard words.2 >= 2048 else { return -Int(ENOMEM) }
        alternateStack = (words.0, words.2)
      }
    }
    if old != 0 {
      let flags: UInt64 = previous.byteCount == 0 ? 2 : isOn ? 1 : 0
      guard process.memory.write(old, (previous.base, flags, previous.byteCount)) else { return -Int(EFAULT) }
    }
    return 0
  }

  /// Waits with another mask in force. Always interrupted in the end.
  func signalSuspend(_ set: UInt64, _ setByteCount: UInt64) -> Int {
    guard setByteCount == 8 else { return -Int(EINVAL) }
    guard let wanted = process.memory.readWord(set) else { return -Int(EFAULT) }
    var temporary = wanted & ~Self.unblockable
    _ = withUnsafePointer(to: &temporary) { pointer in
      vcpu.whileCallBlocks {
        apus_syscall_interruptible(
          &record.pointee.pending, 130, UInt64(UInt(bitPattern: pointer)), 8, 0, 0, 0, 0)
      }
    }
    return -Int(EINTR)
  }
}
