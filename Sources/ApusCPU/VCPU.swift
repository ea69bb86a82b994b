/// Why `VCPU.run` returned.
public enum VCPUExit: Sendable, Equatable {
  /// Someone called `requestExit`.
  case requested
  /// The vCPU cannot go on; the sentence says why (an engine's internal failure, lockstep's first difference).
  case failed(String)
}

/// One virtual CPU, as machines and devices see it, whatever executes it.
///
/// `run`, `reset` belong to the vCPU's own thread (or to any thread while it is not in `run`); the rest may be
/// called from any thread at any time.
public protocol VCPU: AnyObject, Sendable {
  var index: Int { get }

  /// Puts the CPU in its power-on state, to begin at `entry` with `arguments` in its argument registers
  /// (RISC-V: a0 hart id, a1 device tree). Interrupt inputs keep their levels.
  func reset(entry: UInt64, arguments: [UInt64])

  /// Runs guest code until asked to stop; sleeps inside when the guest waits for an interrupt.
  func run() -> VCPUExit

  /// Makes `run` return `.requested` soon, now or at its next call.
  func requestExit()

  /// Sets the level of an interrupt input, by its architectural number
  /// (RISC-V: the bit in `mip`: 3 MSIP, 7 MTIP, 9 SEIP, 11 MEIP [RV-Priv 1.12 §3.1.9]).
  func setInterrupt(_ number: Int, _ level: Bool)
}
