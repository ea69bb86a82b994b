import ApusDevice
import ApusMemory
import Synchronization

/// The 54 general-purpose pins: functions, levels and event detection [BCM2835 §6].
///
/// Any thread. Nothing is connected: inputs are low. Not modelled: pull-ups' effect, events without a change of the level
/// that the guest itself drives.
public final class BCM2835GPIO: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  public static let pinCount = 54
  private static let pins: UInt64 = (1 << 54) - 1

  private struct State {
    /// GPFSEL: three bits a pin.
    var functions = [UInt32](repeating: 0, count: 6)
    var outputs: UInt64 = 0
    var events: UInt64 = 0
    /// Rising, falling, high, low, asynchronous rising and falling.
    var detect = [UInt64](repeating: 0, count: 6)
    var pull: UInt32 = 0
    var pullClock: UInt64 = 0

    var driven: UInt64 {
      var mask: UInt64 = 0
      for pin in 0..<pinCount where functions[pin / 10] >> UInt32(3 * (pin % 10)) & 7 == 1 {
        mask |= 1 << UInt64(pin)
      }
      return mask
    }
    var levels: UInt64 { outputs & driven }
  }
  private let state = Mutex(State())
  private let lines: [InterruptLine]

  /// - Parameter lines: of pins 0 to 27, of 28 to 45, of 46 to 53, and of all.
  public init(_ lines: [InterruptLine]) {
    precondition(lines.count == 4, "the pins have four interrupts")
    self.lines = lines
  }

  /// The function that the guest chose for a pin: 0 input, 1 output, 4 to 7 alternatives 0 to 3, 3 and 2 alternatives 4 and 5.
  public func function(of pin: Int) -> UInt32 {
    state.withLock { $0.functions[pin / 10] >> UInt32(3 * (pin % 10)) & 7 }
  }

  public func reset() { change { $0 = State() } }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      let before = state.levels
      body(&state)
      let levels = state.levels
      let (risen, fallen) = (levels & ~before, before & ~levels)
      state.events |=
        risen & (state.detect[0] | state.detect[4]) | fallen & (state.detect[1] | state.detect[5])
      state.events |= levels & state.detect[2] | ~levels & Self.pins & state.detect[3]
      lines[0].set(state.events & 0xfff_ffff != 0)
      lines[1].set(state.events >> 28 & 0x3_ffff != 0)
      lines[2].set(state.events >> 46 != 0)
      lines[3].set(state.events != 0)
    }
  }

  // Pairs of registers begin at multiples of 12 from 0x1c: 0x1c set, 0x28 clear, 0x34 level, 0x40 events, then detection.
  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state in
      switch offset & ~3 {
      case 0x00..<0x18: return UInt64(state.functions[Int(offset) / 4])
      case 0x34, 0x38: return Self.word(state.levels, offset - 0x34)
      case 0x40, 0x44: return Self.word(state.events, offset - 0x40)
      case 0x4c..<0x94: return pair(offset, 0x4c).map { Self.word(state.detect[$0.index], $0.half) } ?? 0
      case 0x94: return UInt64(state.pull)
      case 0x98, 0x9c: return Self.word(state.pullClock, offset - 0x98)
      // Set and clear are write-only.
      default: return 0
      }
    }
  }

  private static func word(_ value: UInt64, _ half: UInt64) -> UInt64 {
    half & 4 != 0 ? value >> 32 : value & 0xffff_ffff
  }
  private static func wide(_ word: UInt64, _ half: UInt64) -> UInt64 { half & 4 != 0 ? word << 32 : word }

  private func pair(_ offset: UInt64, _ base: UInt64) -> (index: Int, half: UInt64)? {
    let distance = (offset & ~3) - base
    let half = distance % 12
    return half > 4 ? nil : (Int(distance / 12), half)
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = value & 0xffff_ffff
    change { state in
      switch offset & ~3 {
      case 0x00..<0x18: state.functions[Int(offset) / 4] = UInt32(word) & 0x3fff_ffff
      case 0x1c, 0x20: state.outputs |= Self.wide(word, offset - 0x1c) & Self.pins
      case 0x28, 0x2c: state.outputs &= ~Self.wide(word, offset - 0x28)
      case 0x40, 0x44: state.events &= ~Self.wide(word, offset - 0x40)
      case 0x4c..<0x94:
        guard let (index, half) = pair(offset, 0x4c) else { return }
        let mask = Self.wide(0xffff_ffff, half)
        state.detect[index] = (state.detect[index] & ~mask | Self.wide(word, half)) & Self.pins
      case 0x94: state.pull = UInt32(word & 3)
      case 0x98, 0x9c:
        let mask = Self.wide(0xffff_ffff, offset - 0x98)
        state.pullClock = state.pullClock & ~mask | Self.wide(word, offset - 0x98)
      default: GuestErrorTrace.report("bcm2835-gpio", "write of register 0x\(String(offset, radix: 16))")
      }
    }
  }
}
