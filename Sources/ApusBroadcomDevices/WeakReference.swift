import Synchronization

/// Lets a closure that is made before its object is complete find it.
final class WeakReference<Object: AnyObject & Sendable>: Sendable {
  private struct Slot { weak var object: Object? }
  private let slot = Mutex(Slot())
  var value: Object? {
    get { slot.withLock { $0.object } }
    set { slot.withLock { $0.object = newValue } }
  }
}
