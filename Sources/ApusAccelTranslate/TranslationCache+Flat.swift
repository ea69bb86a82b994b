import ApusJIT
import ApusJITX86
import CApusHost

// What user-mode emulation asks of the cache: code in flat memory, faults in generated code, forks.

/// Where generated code lies and what the host's registers hold in it; what a signal handler must know to leave it.
public struct GeneratedCodeLayout: Sendable {
  public var begin: UInt64
  public var end: UInt64
  /// The routine that leaves generated code once the pinned registers are in the state.
  public var leave: UInt64
  /// Host register number and the offset of the state slot that it holds.
  public var pinned: [(register: UInt8, offset: Int)]
  public var pinnedVectors: [(register: UInt8, offset: Int)]
  /// 8 or 16.
  public var pinnedVectorByteCount: Int
}

extension TranslationCache {
  /// `nil` without generated code. After the first vCPU was attached.
  public var codeLayout: GeneratedCodeLayout? {
    guard let buffer, let emitter else { return nil }
    let pinned = emitter.pinnedSlots
    return GeneratedCodeLayout(
      begin: buffer.address(0), end: buffer.address(0) + UInt64(buffer.byteCount), leave: emitter.leave,
      pinned: pinned.general, pinnedVectors: pinned.vector, pinnedVectorByteCount: pinned.vectorByteCount)
  }

  /// Drops the blocks made from flat memory in `start ..< end`; returns whether there were any. Any thread that does not
  /// hold `lock`.
  public func invalidateFlat(_ start: UInt64, _ end: UInt64) -> Bool {
    guard start < end else { return false }
    var hadBlocks = false
    let pages = lock.withLock { codePages(start >> 12, (end - 1) >> 12) }
    for page in pages {
      let low = max(start, page << 12)
      let high = min(end, (page + 1) << 12)
      if invalidate(low, high - low) { hadBlocks = true }
    }
    return hadBlocks
  }

  /// Holds the cache still while the process forks; in the child, `vcpu` is the only one left.
  public func whileForking(_ vcpu: TranslatedVCPU, _ fork: () -> Int) -> Int {
    lock.lock()
    gate.lock()
    let result = fork()
    if result == 0 {
      vcpus = [vcpu]
      runningCount = 1
      isExclusive = false
      soleVCPU = nil
    }
    gate.unlock()
    lock.unlock()
    return result
  }

  /// Brings all vCPUs to rest between two blocks and keeps them there until `endRest`. The caller's thread is not counted as
  /// running code.
  public func beginRest() {
    gate.lock()
    while isExclusive { gate.wait() }
    isExclusive = true
    gate.unlock()
    // Who comes later rests already.
    for vcpu in lock.withLock({ vcpus }) { vcpu.requestAttention() }
    gate.lock()
    while runningCount > 0 { gate.wait() }
    gate.unlock()
  }
  /// Lets one vCPU run although the others rest; `nil`: none again.
  public func letRun(_ vcpu: TranslatedVCPU?) {
    gate.lock()
    soleVCPU = vcpu
    gate.broadcast()
    gate.unlock()
  }
  /// Waits until a vCPU that ran alone rests like the others. The caller's thread is not counted as running code.
  public func restAgain() {
    gate.lock()
    soleVCPU = nil
    while runningCount > 0 { gate.wait() }
    gate.unlock()
  }
  public func endRest() {
    gate.lock()
    (isExclusive, soleVCPU) = (false, nil)
    gate.broadcast()
    gate.unlock()
  }

  /// Forgets a vCPU that will not run again. Its own thread.
  public func detach(_ vcpu: TranslatedVCPU) { lock.withLock { vcpus.removeAll { $0 === vcpu } } }
  /// Takes a vCPU back that was forgotten. Its own thread, not running code.
  public func attachAgain(_ vcpu: TranslatedVCPU) {
    lock.withLock {
      vcpus.append(vcpu)
      vcpu.forgetCode()
    }
  }
}

extension TranslatedVCPU {
  /// Whether it counts as running code.
  public var isRunningCode: Bool { isInCode }
  /// Before the process ends, or may: the vCPU does not count as running code any more.
  public func leave() { if isInCode { endRunning() } }
  /// The process goes on, in a system call.
  public func comeBack() { beginRunning() }
  /// Lets code be dropped while this vCPU blocks in the host; it must come back through the dispatcher.
  public func whileBlocking<R>(_ body: () -> R) -> R {
    // Between two blocks it does not count anyway.
    let isCounted = isInCode
    if isCounted { endRunning() }
    let result = body()
    if isCounted { beginRunning() }
    return result
  }
  /// Not generic, for system calls, which count.
  public func whileCallBlocks(_ body: () -> Int) -> Int {
    endRunning()
    let result = body()
    beginRunning()
    return result
  }
  /// The same while a child of vfork uses this vCPU, which may end wherever it is.
  public func whileChildRuns(_ body: () -> Int) -> Int {
    endRunning()
    let result = body()
    if isInCode { endRunning() }
    beginRunning()
    return result
  }
}
