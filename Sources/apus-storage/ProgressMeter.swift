import ApusHost
import Synchronization

/// The line `    (12.34/100%)`: with -p on standard output, else on a terminal once a job lasts over a second.
final class ProgressMeter: Sendable {
  private struct State {
    var lastUpdate: UInt64 = 0
    var hasShown = false
    var best = 0.0
  }
  private let state = Mutex(State())
  private let isForced: Bool
  private let isTerminal = HostPath.isTerminal(2)
  private let start = HostClock.monotonicNanoseconds()

  init(isForced: Bool) { self.isForced = isForced }

  func update(_ part: Double) {
    guard isForced || isTerminal else { return }
    let now = HostClock.monotonicNanoseconds()
    guard isForced || now - start > 1_000_000_000 else { return }
    let shown: Double? = state.withLock { state in
      state.best = max(state.best, part)
      guard now - state.lastUpdate > 100_000_000 || part >= 1 else { return nil }
      state.lastUpdate = now
      state.hasShown = true
      return state.best
    }
    if let shown { write(shown) }
  }

  func finish() {
    if isForced { write(1) }
    if isForced || state.withLock({ $0.hasShown }) {
      isForced ? writeStandardOutput("\n") : writeStandardError("\n")
    }
  }

  private func write(_ part: Double) {
    let text = "    (\(Format.padded(Format.fixed(part * 100, 2), 5, left: true))/100%)\r"
    isForced ? writeStandardOutput(text) : writeStandardError(text)
  }
}
