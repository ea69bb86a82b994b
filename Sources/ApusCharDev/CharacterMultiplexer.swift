import ApusDevice
import ApusHost
import Synchronization

/// The `mon:` escape layer between a terminal and a device: Ctrl-a and a letter are commands to the emulator.
///
/// Commands are heard even while the device takes no input, until `inputLimit` bytes wait for it. Threads as for
/// `CharacterBackend`.
public final class CharacterMultiplexer: CharacterBackend {
  /// What the user asked the emulator for.
  public enum Command: Equatable, Sendable {
    case quit
    case switchToMonitor
    case pressPowerKey
  }

  static let escape: UInt8 = 0x01  // Ctrl-a
  /// Typed bytes that wait for the device before the back end is held.
  static let inputLimit = 64 << 10
  static let help =
    "\r\nCtrl-a h    this help\r\nCtrl-a x    end the emulator\r\nCtrl-a c    switch to the monitor\r\n"
    + "Ctrl-a b    send a break\r\nCtrl-a p    press the power key\r\nCtrl-a Ctrl-a    send Ctrl-a\r\n"

  private struct State {
    var frontEnd: CharacterFrontEnd?
    var input: [UInt8] = []
    var escaped = false
  }
  private let state = Mutex(State())
  private let backend: any CharacterBackend
  private let loop: EventLoop
  private let onCommand: @Sendable (CharacterMultiplexer, Command) -> Void

  /// `onCommand` is called on the event loop's thread.
  public init(
    _ backend: any CharacterBackend, _ loop: EventLoop,
    onCommand: @escaping @Sendable (CharacterMultiplexer, Command) -> Void
  ) {
    (self.backend, self.loop, self.onCommand) = (backend, loop, onCommand)
    backend.attach(
      CharacterFrontEnd(
        capacity: { [weak self] in self?.state.withLock { max(0, Self.inputLimit - $0.input.count) } ?? 0 },
        receive: { [weak self] in self?.filter($0) },
        becameWritable: { [weak self] in self?.current?.becameWritable() },
        connectionChanged: { [weak self] in self?.current?.connectionChanged($0) },
        receiveBreak: { [weak self] in self?.current?.receiveBreak() }))
  }

  private var current: CharacterFrontEnd? { state.withLock { $0.frontEnd } }

  public func attach(_ frontEnd: CharacterFrontEnd?) {
    state.withLock { $0.frontEnd = frontEnd }
    frontEnd?.connectionChanged(true)
  }
  public func write(_ bytes: [UInt8]) -> Int { backend.write(bytes) }
  public func drain() { backend.drain() }
  public func acceptInput() {
    // The device may call from a vCPU's thread; delivery belongs to the loop's.
    if state.withLock({ !$0.input.isEmpty }) { loop.post { [weak self] in self?.deliver() } }
  }

  private func filter(_ bytes: [UInt8]) {
    for byte in bytes {
      let wasEscaped = state.withLock { state in
        let escaped = state.escaped
        state.escaped = !escaped && byte == Self.escape
        if escaped ? byte == Self.escape : byte != Self.escape { state.input.append(byte) }
        return escaped
      }
      if wasEscaped { command(byte) }
    }
    deliver()
  }

  private func command(_ byte: UInt8) {
    switch byte {
    case UInt8(ascii: "x"): onCommand(self, .quit)
    case UInt8(ascii: "c"): onCommand(self, .switchToMonitor)
    case UInt8(ascii: "p"): onCommand(self, .pressPowerKey)
    case UInt8(ascii: "b"): current?.receiveBreak()
    case UInt8(ascii: "h"), UInt8(ascii: "?"): print(Self.help)
    default: break
    }
  }

  /// Shows a message to the user, as far as there is room.
  public func print(_ text: String) { _ = backend.write(Array(text.utf8)) }

  private func deliver() {
    while let frontEnd = current {
      let room = frontEnd.capacity()
      let bytes = state.withLock { state in
        let bytes = Array(state.input.prefix(max(0, room)))
        state.input.removeFirst(bytes.count)
        return bytes
      }
      if bytes.isEmpty { return }
      frontEnd.receive(bytes)
      backend.acceptInput()
    }
  }
}
