import ApusCPU
import ApusConfig
import ApusHost
import ApusMachine
import ApusMemory
import Synchronization

/// A vCPU that runs a closure in place of guest code, until it is asked to stop.
final class FakeVCPU: VCPU {
  struct State {
    var entry: UInt64 = 0
    var arguments: [UInt64] = []
    var interrupts: Set<Int> = []
    var resetCount = 0
    var exitIsRequested = false
    var programIsDone = false
  }
  let index: Int
  let state = Mutex(State())
  private let monitor = Monitor()
  private let program: @Sendable (FakeVCPU) -> Void

  init(index: Int, program: @escaping @Sendable (FakeVCPU) -> Void) {
    (self.index, self.program) = (index, program)
  }

  func reset(entry: UInt64, arguments: [UInt64]) {
    state.withLock { state in
      (state.entry, state.arguments, state.programIsDone) = (entry, arguments, false)
      state.resetCount += 1
    }
  }
  func run() -> VCPUExit {
    let starts = state.withLock { state in
      defer { state.programIsDone = true }
      return !state.programIsDone
    }
    if starts { program(self) }
    monitor.withLock {
      while !state.withLock({ $0.exitIsRequested }) { monitor.wait() }
    }
    state.withLock { $0.exitIsRequested = false }
    return .requested
  }
  func requestExit() {
    monitor.withLock {
      state.withLock { $0.exitIsRequested = true }
      monitor.broadcast()
    }
  }
  func setInterrupt(_ number: Int, _ level: Bool) {
    state.withLock { state in
      if level { state.interrupts.insert(number) } else { state.interrupts.remove(number) }
    }
  }
}

/// Makes `FakeVCPU`s and keeps them in reach.
final class FakeFactory: VCPUFactory {
  let supportedExtensions = Set(RISCVExtensions.rv64.enabled)
  let made = Mutex<[FakeVCPU]>([])
  let space = Mutex<AddressSpace?>(nil)
  private let program: @Sendable (FakeVCPU, AddressSpace) -> Void

  init(program: @escaping @Sendable (FakeVCPU, AddressSpace) -> Void = { _, _ in }) { self.program = program }

  func makeVCPUs(_ environment: VCPUEnvironment) throws(MachineError) -> [any VCPU] {
    let program = program
    let space = environment.space
    let vcpus = (0..<environment.count).map { FakeVCPU(index: $0) { program($0, space) } }
    made.withLock { $0 = vcpus }
    self.space.withLock { $0 = space }
    return vcpus
  }
}
