/// The device's side of a character stream: what a back end calls, always on the event loop's thread.
public struct CharacterFrontEnd: Sendable {
  /// How many bytes the device can take now.
  public var capacity: @Sendable () -> Int
  /// Delivers bytes, no more than `capacity` said.
  public var receive: @Sendable ([UInt8]) -> Void
  /// The back end has room again after a `write` that was cut short.
  public var becameWritable: @Sendable () -> Void
  /// A client came or went (sockets), or the stream began.
  public var connectionChanged: @Sendable (Bool) -> Void
  /// The other side sent a break condition.
  public var receiveBreak: @Sendable () -> Void

  public init(
    capacity: @escaping @Sendable () -> Int, receive: @escaping @Sendable ([UInt8]) -> Void,
    becameWritable: @escaping @Sendable () -> Void = {},
    connectionChanged: @escaping @Sendable (Bool) -> Void = { _ in },
    receiveBreak: @escaping @Sendable () -> Void = {}
  ) {
    (self.capacity, self.receive, self.becameWritable) = (capacity, receive, becameWritable)
    (self.connectionChanged, self.receiveBreak) = (connectionChanged, receiveBreak)
  }
}

/// The host's side of a character stream (a serial port, a virtio console port), used by one front end.
///
/// Any thread. Nothing here blocks.
public protocol CharacterBackend: AnyObject, Sendable {
  /// Connects the device; its closures are called from now on, on the event loop's thread. `nil` disconnects it.
  func attach(_ frontEnd: CharacterFrontEnd?)

  /// Takes bytes for the outside and returns how many it took: fewer than given when its buffer is full, then
  /// `becameWritable` follows. Bytes for which nobody listens are taken and dropped.
  func write(_ bytes: [UInt8]) -> Int

  /// The device can take input again after its `capacity` was 0.
  func acceptInput()

  /// Hands waiting output to the host, for half a second at most; at the machine's end, on the loop's thread.
  func drain()
}

extension CharacterBackend {
  public func drain() {}
}

/// The back end that takes everything and says nothing.
public final class NullCharacterBackend: CharacterBackend {
  public init() {}
  public func attach(_ frontEnd: CharacterFrontEnd?) {}
  public func write(_ bytes: [UInt8]) -> Int { bytes.count }
  public func acceptInput() {}
}
