import ApusDevice
import ApusMemory
import Synchronization

/// The SD host controller that the boards' card slot is wired to [Linux `brcm,bcm2835-sdhost`].
///
/// Any thread; the card's completions come on its node's. The FIFO holds up to 64 KiB, of which the guest sees sixteen words.
/// Not modelled: clocks and time-outs of the bus, SDIO interrupts, block gaps.
public final class BCM2835SDHost: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  static let bufferByteCount = 64 << 10

  enum Command {
    static let isNew: UInt32 = 0x8000
    static let failed: UInt32 = 0x4000
    static let waitsBusy: UInt32 = 0x800
    static let hasNoResponse: UInt32 = 0x400
    static let isWrite: UInt32 = 0x80
    static let isRead: UInt32 = 0x40
  }
  /// SDHSTS.
  enum HostStatus {
    static let busy: UInt32 = 0x400
    static let block: UInt32 = 0x200
    static let commandTimeOut: UInt32 = 0x40
    static let dataTimeOut: UInt32 = 0x80
    static let fifoError: UInt32 = 0x08
    static let data: UInt32 = 0x01
    /// Those that stay until they are written back.
    static let sticky: UInt32 = 0x7f8
  }
  /// SDHCFG's interrupt enables.
  enum Configuration {
    static let busy: UInt32 = 1 << 10
    static let block: UInt32 = 1 << 8
    static let data: UInt32 = 1 << 4
  }
  enum Direction { case none, read, write }

  struct State {
    var command: UInt32 = 0
    var argument: UInt32 = 0
    var timeOut: UInt32 = 0x0f00_0000
    var clockDivider: UInt32 = 0x1fb
    var response: [UInt32] = [0, 0, 0, 0]
    var status: UInt32 = 0
    var power: UInt32 = 0
    /// SDEDM's thresholds and forced bits.
    var debugMode: UInt32 = 0
    var configuration: UInt32 = 0
    var blockByteCount: UInt32 = 0
    var blockCount: UInt32 = 0

    var direction = Direction.none
    var buffer: [UInt8] = []
    var position = 0
    /// Bytes that the card has not given, or the guest has not written yet.
    var remaining = 0
    /// Bytes moved between guest and buffer.
    var moved = 0
    var movedOfBlock = 0
    /// The card has a request of this transfer.
    var isBusy = false
    /// The card's readiness is to raise the busy interrupt.
    var waitsForReady = false
    /// Tells an overtaken request from the current one.
    var generation: UInt64 = 0
    /// The interrupt's level, so that the wire is not touched for each word.
    var isInterrupting = false

    var available: Int { direction == .read ? buffer.count - position : 0 }
    /// Bytes that the guest may write now.
    var room: Int {
      direction == .write ? min(remaining, BCM2835SDHost.bufferByteCount - buffer.count) : 0
    }
    var hasData: Bool { available > 0 || room > 0 }
    /// Words in the FIFO, as SDEDM shows them. What is written leaves it at once, as long as the buffer has room.
    var fillLevel: UInt32 {
      if direction == .read { return UInt32(min(16, (available + 3) / 4)) }
      return remaining > 0 && room == 0 ? 16 : 0
    }
    /// The state machine in SDEDM: idle in data mode, reading, or writing.
    var machine: UInt32 {
      switch direction {
      case .none: 1
      case .read: 2
      case .write: 3
      }
    }
  }
  let state = Mutex(State())
  private let line: InterruptLine
  let card: SDCard?
  private let dataChanged: @Sendable () -> Void

  /// - Parameters:
  ///   - card: `nil` for an empty slot.
  ///   - dataChanged: tells the DMA controller that `readyByteCount` has changed; called with the lock held.
  public init(_ line: InterruptLine, card: SDCard?, dataChanged: @escaping @Sendable () -> Void) {
    (self.line, self.card, self.dataChanged) = (line, card, dataChanged)
    card?.onReady { [weak self] in self?.cardIsReady() }
  }

  public func reset() {
    card?.reset()
    change { state in
      let old = state
      state = State()
      (state.generation, state.isInterrupting) = (old.generation + 1, old.isInterrupting)
    }
  }

  /// How many bytes DMA can move now.
  public var readyByteCount: Int { state.withLock { max($0.available, $0.room) } }

  @discardableResult
  func change<R: Sendable>(_ body: (inout State) -> R) -> R {
    state.withLock { state in
      let couldMove = state.hasData
      let result = body(&state)
      let enabled = state.configuration
      let level =
        state.status & HostStatus.busy != 0 && enabled & Configuration.busy != 0
        || state.status & HostStatus.block != 0 && enabled & Configuration.block != 0
        || state.hasData && enabled & Configuration.data != 0
      if level != state.isInterrupting { line.set(level) }
      state.isInterrupting = level
      if state.hasData, !couldMove { dataChanged() }
      return result
    }
  }

  /// The card is not busy (any more).
  func cardIsReady() {
    change { state in
      guard state.waitsForReady else { return }
      state.waitsForReady = false
      if state.configuration & Configuration.busy != 0 { state.status |= HostStatus.busy }
    }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    if offset & ~3 == 0x40 { return UInt64(readWord()) }
    return state.withLock { state in
      switch offset & ~3 {
      case 0x00: return UInt64(state.command)
      case 0x04: return UInt64(state.argument)
      case 0x08: return UInt64(state.timeOut)
      case 0x0c: return UInt64(state.clockDivider)
      case 0x10, 0x14, 0x18, 0x1c: return UInt64(state.response[Int(offset >> 2 & 3)])
      case 0x20: return UInt64(state.status | (state.hasData ? HostStatus.data : 0))
      case 0x30: return UInt64(state.power)
      case 0x34:
        return UInt64(state.debugMode | state.fillLevel << 4 | state.machine)
      case 0x38: return UInt64(state.configuration)
      case 0x3c: return UInt64(state.blockByteCount)
      case 0x50: return UInt64(state.blockCount)
      default: return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    switch offset & ~3 {
    case 0x00: return writeCommand(word)
    case 0x40: return writeWord(word)
    default: break
    }
    change { state in
      switch offset & ~3 {
      case 0x04: state.argument = word
      case 0x08: state.timeOut = word
      case 0x0c: state.clockDivider = word & 0x7ff
      case 0x20: state.status &= ~(word & HostStatus.sticky)
      case 0x30:
        state.power = word & 1
        if state.power == 0 { Self.endTransfer(&state) }
      case 0x34:
        state.debugMode = word & 0x7fe00
        // Forced back into data mode: the transfer is over.
        if word & 1 << 19 != 0 { Self.endTransfer(&state) }
      case 0x38: state.configuration = word & 0xfff
      case 0x3c: state.blockByteCount = word & 0x3ff
      case 0x50: state.blockCount = word & 0xffff
      default: GuestErrorTrace.report("bcm2835-sdhost", "write of register 0x\(String(offset, radix: 16))")
      }
    }
  }
}
