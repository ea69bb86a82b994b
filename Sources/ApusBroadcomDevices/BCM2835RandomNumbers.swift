import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// The random number generator [Linux `brcm,bcm2835-rng`], fed by the host's.
///
/// Any thread. Its interrupt is not modelled: there is always a word.
public final class BCM2835RandomNumbers: MMIODevice {
  public static let byteCount: UInt64 = 0x10
  private struct State {
    /// Bit 0: running.
    var control: UInt32 = 0
    /// Words that are thrown away first, and from bit 24 those that are there.
    var warmUp: UInt32 = 0
    var mask: UInt32 = 0
  }
  private let state = Mutex(State())
  public init() {}
  public func reset() { state.withLock { $0 = State() } }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state in
      switch offset & ~3 {
      case 0x00: return UInt64(state.control)
      case 0x04: return UInt64(state.warmUp & 0xf_ffff | (state.control & 1) << 24)
      case 0x08:
        guard state.control & 1 != 0 else { return 0 }
        var word: UInt32 = 0
        withUnsafeMutableBytes(of: &word) { HostRandom.fill($0) }
        return UInt64(word)
      default: return UInt64(state.mask)
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    state.withLock { state in
      switch offset & ~3 {
      case 0x00: state.control = word & 3
      case 0x04: state.warmUp = word & 0xf_ffff
      case 0x08: break
      default: state.mask = word & 1
      }
    }
  }
}
