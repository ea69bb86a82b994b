import ApusDevice
import ApusMemory
import Synchronization

/// The GPU's interrupt controller, as the ARM cores see it: 64 interrupts of peripherals and 8 of the ARM block, one output
/// for IRQs and one for the FIQ [BCM2835 §7.5].
///
/// Any thread. Not modelled: the two access-error and the two GPU-halted interrupts, which nothing raises.
public final class BCM2835InterruptController: MMIODevice {
  public static let byteCount: UInt64 = 0x200
  /// The first interrupt of the ARM block among the inputs.
  public static let basicBase = 64
  public static let inputCount = 72
  /// Registers: 0x00 basic pending, 0x04 and 0x08 pending, 0x0c FIQ, 0x10 to 0x18 enable, 0x1c to 0x24 disable.
  private struct State {
    var lines: UInt64 = 0
    var basicLines: UInt32 = 0
    var enabled: UInt64 = 0
    var basicEnabled: UInt32 = 0
    var fiqControl: UInt32 = 0

    var pending: UInt64 { lines & enabled }
    /// Interrupts that basic pending shows itself, in its bits 10 to 20.
    static let shortcuts: [UInt64] = [7, 9, 10, 18, 19, 53, 54, 55, 56, 57, 62]
    static let shortcutMask: UInt64 = shortcuts.reduce(0) { $0 | 1 << $1 }
    /// Bits 8 and 9 tell of the two pending registers, without the interrupts that have a bit here.
    var basicPending: UInt32 {
      var result = basicLines & basicEnabled
      let others = pending & ~Self.shortcutMask
      if others & 0xffff_ffff != 0 { result |= 1 << 8 }
      if others >> 32 != 0 { result |= 1 << 9 }
      for (bit, number) in Self.shortcuts.enumerated() where pending >> number & 1 != 0 {
        result |= 1 << UInt32(10 + bit)
      }
      return result
    }
    var fiq: Bool {
      guard fiqControl & 0x80 != 0 else { return false }
      let source = fiqControl & 0x7f
      switch source {
      case 0..<64: return lines >> UInt64(source) & 1 != 0
      case 64..<72: return basicLines >> (source - 64) & 1 != 0
      default: return false
      }
    }
  }
  private let state = Mutex(State())
  private let irq: InterruptLine
  private let fiq: InterruptLine

  public init(irq: InterruptLine, fiq: InterruptLine) { (self.irq, self.fiq) = (irq, fiq) }

  public func reset() {
    change { state in
      let (lines, basic) = (state.lines, state.basicLines)
      state = State()
      (state.lines, state.basicLines) = (lines, basic)
    }
  }

  /// The wire into input 0 to 63 (peripherals) or 64 to 71 (the ARM block's).
  public func input(_ number: Int) -> InterruptLine {
    precondition((0..<Self.inputCount).contains(number), "the controller has 72 inputs")
    return InterruptLine { [weak self] level in
      self?.change { state in
        if number < Self.basicBase {
          let bit = UInt64(1) << UInt64(number)
          state.lines = level ? state.lines | bit : state.lines & ~bit
        } else {
          let bit = UInt32(1) << UInt32(number - Self.basicBase)
          state.basicLines = level ? state.basicLines | bit : state.basicLines & ~bit
        }
      }
    }
  }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      irq.set(state.pending != 0 || state.basicLines & state.basicEnabled != 0)
      fiq.set(state.fiq)
    }
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state in
      switch offset & ~3 {
      case 0x00: return UInt64(state.basicPending)
      case 0x04: return state.pending & 0xffff_ffff
      case 0x08: return state.pending >> 32
      case 0x0c: return UInt64(state.fiqControl)
      case 0x10, 0x1c: return state.enabled & 0xffff_ffff
      case 0x14, 0x20: return state.enabled >> 32
      case 0x18, 0x24: return UInt64(state.basicEnabled)
      default: return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = value & 0xffff_ffff
    change { state in
      switch offset & ~3 {
      case 0x0c: state.fiqControl = UInt32(word & 0xff)
      case 0x10: state.enabled |= word
      case 0x14: state.enabled |= word << 32
      case 0x18: state.basicEnabled |= UInt32(word & 0xff)
      case 0x1c: state.enabled &= ~word
      case 0x20: state.enabled &= ~(word << 32)
      case 0x24: state.basicEnabled &= ~UInt32(word & 0xff)
      default: GuestErrorTrace.report("bcm2835-ic", "write of register 0x\(String(offset, radix: 16))")
      }
    }
  }
}
