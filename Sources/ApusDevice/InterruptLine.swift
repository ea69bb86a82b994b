/// A level-triggered interrupt wire from a device to an interrupt controller.
///
/// Any thread. Setting a level twice is harmless. Edge-like uses pulse it: `set(true)` then `set(false)`.
public struct InterruptLine: Sendable {
  private let handler: @Sendable (Bool) -> Void
  public init(_ handler: @escaping @Sendable (Bool) -> Void) { self.handler = handler }
  /// A wire that ends nowhere.
  public static let unconnected = InterruptLine { _ in }
  public func set(_ level: Bool) { handler(level) }
}
