import ApusDevice
import Synchronization

/// A wire whose level can be looked at.
final class Wire: Sendable {
  private let state = Mutex(false)
  var line: InterruptLine { InterruptLine { level in self.state.withLock { $0 = level } } }
  var level: Bool { state.withLock { $0 } }
}
