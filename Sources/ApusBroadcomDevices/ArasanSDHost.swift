import ApusDevice
import ApusMemory
import Synchronization

/// The second SD host controller, Arasan's, called EMMC [BCM2835 §5; SD Host Controller Simplified 3.00], moved by the processor.
///
/// Any thread; the card's completions come on its node's. Without a card that its pins lead to, commands time out. Not modelled:
/// DMA (which the capabilities do not offer), SDIO interrupts, tuning, clocks and time-outs of the bus.
public final class ArasanSDHost: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  static let bufferByteCount = 64 << 10

  /// Interrupt status.
  enum Interrupt {
    static let command: UInt32 = 1
    static let transfer: UInt32 = 2
    static let writeReady: UInt32 = 0x10
    static let readReady: UInt32 = 0x20
    static let error: UInt32 = 0x8000
    static let commandTimeOut: UInt32 = 1 << 16
    static let dataTimeOut: UInt32 = 1 << 20
  }
  enum Register {
    static let sizeAndCount = 1
    static let argument = 2
    static let command = 3
    static let response = 4
    static let control1 = 11
    static let status = 12
    static let statusEnable = 13
    static let signalEnable = 14
  }
  /// CMDTM's bits.
  enum Mode {
    static let countEnabled: UInt32 = 2
    /// CMD12 behind a transfer, or CMD23 before it, by itself.
    static let automatic: UInt32 = 0xc
    static let stopsAutomatically: UInt32 = 4
    static let countsAutomatically: UInt32 = 8
    static let isRead: UInt32 = 0x10
    static let isMultiple: UInt32 = 0x20
    static let hasData: UInt32 = 1 << 21
  }
  enum Direction { case none, read, write }

  struct State {
    var registers = [UInt32](repeating: 0, count: 64)
    var direction = Direction.none
    var buffer: [UInt8] = []
    var position = 0
    /// Bytes that the card has not given, or the guest has not written yet.
    var remaining = 0
    var movedOfBlock = 0
    var blockCount = 0
    var isBusy = false
    var waitsForReady = false
    /// Tells an overtaken request from the current one.
    var generation: UInt64 = 0
    var isInterrupting = false

    var blockByteCount: Int { Int(registers[Register.sizeAndCount] & 0xfff) }
    var available: Int { direction == .read ? buffer.count - position : 0 }
    var room: Int { direction == .write ? min(remaining, ArasanSDHost.bufferByteCount - buffer.count) : 0 }

    mutating func raise(_ bits: UInt32) {
      let enabled = bits & registers[Register.statusEnable]
      registers[Register.status] |= enabled | (enabled >> 16 != 0 ? Interrupt.error : 0)
    }
    mutating func endTransfer() {
      (direction, buffer, position, remaining, movedOfBlock, isBusy) = (.none, [], 0, 0, 0, false)
      generation += 1
    }
  }
  let state = Mutex(State())
  private let line: InterruptLine
  private let slot: SDCard?
  private let isConnected: @Sendable () -> Bool
  /// The card, if the pins lead to it now.
  var card: SDCard? { isConnected() ? slot : nil }

  /// - Parameter isConnected: whether the controller has the card's pins.
  public init(_ line: InterruptLine, card: SDCard?, isConnected: @escaping @Sendable () -> Bool) {
    (self.line, slot, self.isConnected) = (line, card, isConnected)
    card?.onReady { [weak self] in self?.cardIsReady() }
  }

  public func reset() {
    change { state in
      let old = state
      state = State()
      (state.generation, state.isInterrupting) = (old.generation + 1, old.isInterrupting)
    }
  }

  @discardableResult
  func change<R: Sendable>(_ body: (inout State) -> R) -> R {
    state.withLock { state in
      let result = body(&state)
      let level = state.registers[Register.status] & state.registers[Register.signalEnable] != 0
      if level != state.isInterrupting { line.set(level) }
      state.isInterrupting = level
      return result
    }
  }

  func cardIsReady() {
    change { state in
      guard state.waitsForReady else { return }
      state.waitsForReady = false
      state.raise(Interrupt.transfer)
    }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    guard offset < 0x100 else { return 0 }
    let word = Int(offset) / 4
    let value: UInt32
    switch word {
    case 8: value = readData()
    case 9: value = presentState
    // Version 3; the capabilities: 52 MHz, blocks of 1024 bytes, high speed, 3.3 V.
    case 0x3f: value = 0x9902_0000
    case 0x10: value = 0x0121_34b4
    default: value = state.withLock { $0.registers[word] }
    }
    return UInt64(value >> UInt32(8 * (offset & 3)))
  }

  private var presentState: UInt32 {
    let hasCard = card != nil
    return state.withLock { state in
      var value: UInt32 = 0x01f0_0000 | (hasCard ? 0xf_0000 : 0xa_0000)
      if state.direction != .none || state.waitsForReady { value |= 6 }
      if state.direction == .read { value |= 1 << 9 | (state.available > 0 ? 1 << 11 : 0) }
      if state.direction == .write { value |= 1 << 8 | (state.room > 0 ? 1 << 10 : 0) }
      return value
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard offset < 0x100 else { return }
    let word = Int(offset) / 4
    let shift = UInt32(8 * (offset & 3))
    let mask = byteCount >= 4 ? UInt32.max : (UInt32(1) << UInt32(8 * byteCount)) - 1
    let covered = mask << shift
    let bits = UInt32(truncatingIfNeeded: value) << shift & covered
    if word == 8 { return writeData(UInt32(truncatingIfNeeded: value)) }
    let command = change { state -> UInt32? in
      switch word {
      case Register.status: state.registers[word] &= ~bits
      case 9, 0x10, 0x3f: break  // read-only
      default: state.registers[word] = state.registers[word] & ~covered | bits
      }
      if word == Register.status, state.registers[word] >> 16 == 0 {
        state.registers[word] &= ~Interrupt.error
      }
      if word == Register.control1 { Self.control(&state) }
      return word == Register.command && covered >> 24 != 0 ? state.registers[word] : nil
    }
    if let command { issue(command) }
  }

  /// The clock is stable as soon as it runs; resets are over at once.
  private static func control(_ state: inout State) {
    let value = state.registers[Register.control1]
    if value & 0x0100_0000 != 0 {
      let (old, generation) = (state.isInterrupting, state.generation)
      state = State()
      (state.isInterrupting, state.generation) = (old, generation + 1)
      return
    }
    if value & 0x0400_0000 != 0 { state.endTransfer() }
    state.registers[Register.control1] = value & 0x00ff_fffd | (value & 1) << 1
  }
}
