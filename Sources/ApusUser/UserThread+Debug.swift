import ApusAccelTranslate
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// A debugger's view of a thread (-g).

extension UserThread {
  /// The thread has come to a stop at the state's PC; returns the signal that it is to go on with, 0 for none.
  func debugStop(_ signal: Int, _ reason: UserDebugger.Reason = .signal, since number: Int? = nil) -> Int {
    guard let debugger = process.debugger, !isVforkChild else { return signal }
    let number = number ?? debugger.stopNumber
    switch vcpu.whileBlocking({ debugger.stop(signal, reason, since: number, self) }) {
    case nil: return 0
    case .run(let signal):
      // The others are to get somewhere, too, before this one is at the next breakpoint.
      usleep(200)
      return signal
    case .step(let signal, let number):
      beginStep(since: number)
      return signal
    case .kill: _exit(128 + SIGKILL)
    case .detach:
      process.debugger = nil
      // A breakpoint that stands alone is no signal of the program's.
      return signal == GuestSignal.trap || signal == GuestSignal.stop ? 0 : signal
    }
  }

  /// One instruction, then a stop, unless there was another in between.
  func beginStep(since number: Int) {
    stepNumber = number
    isStepping = true
    vcpu.kick()
  }

  /// At a block's edge: carries out a step that was asked for, or the stop before the first instruction.
  func takeDebugRequest() {
    if isStepping {
      isStepping = false
      if process.memory.isExecutable(pc) {
        vcpu.interpretOne()
        if trace != nil { return stepDone() }
        stopWithSignal(GuestSignal.trap, .step)
      }
    }
    if wantsStop {
      wantsStop = false
      stopWithSignal(GuestSignal.trap)
    }
  }

  /// A tracer's single step.
  private func stepDone() {
    var info = [UInt8](repeating: 0, count: 128)
    (info[0], info[8]) = (UInt8(GuestSignal.trap), 2)  // TRAP_TRACE
    let signal = traceSignal(GuestSignal.trap, &info)
    if signal != 0 { deliverOrAct(signal, info) }
  }

  private func stopWithSignal(_ signal: Int, _ reason: UserDebugger.Reason = .signal) {
    let next = debugStop(signal, reason, since: reason == .step ? stepNumber : nil)
    if next != 0, next != GuestSignal.trap { kill(getpid(), Int32(next)) }
  }
}
