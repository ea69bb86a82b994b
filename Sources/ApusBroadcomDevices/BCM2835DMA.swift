import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// The DMA controller: fifteen channels that follow chains of control blocks in memory [BCM2835 §4].
///
/// Registers on any thread; transfers on the event loop's, in pieces, so that an endless chain holds nobody up. A peripheral
/// paces the transfers that name it (`connect`). Not modelled: priorities, burst lengths, panics, outstanding writes; wait
/// cycles.
public final class BCM2835DMA: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  public static let channelCount = 15
  /// Bytes and control blocks of a piece.
  private static let pieceByteCount = 256 << 10
  private static let pieceBlockCount = 256

  struct State {
    var channels = (0..<channelCount).map { Channel(number: $0) }
    var enable: UInt32 = 0x7fff
    var isScheduled = false
  }
  private let state = Mutex(State())
  private let lines: [InterruptLine]
  private let space: AddressSpace
  private let loop: EventLoop
  /// Where its own registers are: a transfer that goes there fails.
  private let window: Range<UInt64>
  /// How many bytes a peripheral can give or take now, by its number in the transfer information (PERMAP).
  private let requests = Mutex<[UInt32: @Sendable () -> Int]>([:])

  /// - Parameter lines: a channel's interrupt each; several channels may share one (`InterruptLine`s of an `InterruptSum`).
  public init(_ lines: [InterruptLine], _ space: AddressSpace, _ loop: EventLoop, base: UInt64) {
    precondition(lines.count == Self.channelCount, "the controller has fifteen channels here")
    (self.lines, self.space, self.loop) = (lines, space, loop)
    window = base..<base + Self.byteCount
  }

  public func reset() { change { $0 = State() } }

  /// Lets a peripheral pace its transfers. It calls `wake` when `ready` has changed.
  public func connect(_ peripheral: UInt32, ready: @escaping @Sendable () -> Int) {
    requests.withLock { $0[peripheral] = ready }
  }

  /// A peripheral can go on. Any thread, with the peripheral's lock held, too.
  public func wake() {
    // Not under the state's lock: the transfer that holds it may be what made the peripheral ready.
    loop.post { [weak self] in self?.transferPiece() }
  }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      for (channel, line) in zip(state.channels, lines) { line.set(channel.status & Channel.interrupt != 0) }
    }
  }

  // MARK: Transfers

  private func transferPiece() {
    let requests = requests.withLock { $0 }
    change { state in
      state.isScheduled = false
      var byteLimit = Self.pieceByteCount
      var blockLimit = Self.pieceBlockCount
      for index in state.channels.indices where state.enable >> UInt32(index) & 1 != 0 {
        state.channels[index].run(
          .init(space: space, excluded: window, requests: requests), &byteLimit, &blockLimit)
      }
      if byteLimit <= 0 || blockLimit <= 0 { schedule(&state) }
    }
  }

  private func schedule(_ state: inout State) {
    guard !state.isScheduled else { return }
    state.isScheduled = true
    loop.post { [weak self] in self?.transferPiece() }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let register = offset & 0xfc
    return state.withLock { state in
      switch offset & ~3 {
      case 0xfe0:
        return state.channels.reduce(0) {
          $0 | ($1.status & Channel.interrupt != 0 ? 1 << UInt64($1.number) : 0)
        }
      case 0xff0: return UInt64(state.enable)
      default:
        let index = Int(offset >> 8)
        return index < Self.channelCount ? UInt64(state.channels[index].read(register)) : 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    change { state in
      if offset & ~3 == 0xff0 {
        state.enable = word & 0x7fff
        return schedule(&state)
      }
      let index = Int(offset >> 8)
      guard index < Self.channelCount else { return }
      if state.channels[index].write(offset & 0xfc, word) { schedule(&state) }
    }
  }
}

/// Several wires into one input: high while one of them is.
public final class InterruptSum: Sendable {
  private let levels = Mutex<UInt64>(0)
  private let output: InterruptLine
  public init(_ output: InterruptLine) { self.output = output }
  /// - Parameter number: 0 to 63.
  public func input(_ number: Int) -> InterruptLine {
    InterruptLine { [self] level in
      levels.withLock { levels in
        levels = level ? levels | 1 << UInt64(number) : levels & ~(1 << UInt64(number))
        output.set(levels != 0)
      }
    }
  }
}
