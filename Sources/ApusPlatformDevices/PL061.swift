import ApusDevice
import ApusMemory
import Synchronization

/// Arm's eight general-purpose pins [PrimeCell GPIO PL061, DDI 0190].
///
/// Any thread. Inputs come from `setInput`; pins that the guest drives high are told to `rise`.
public final class PL061: MMIODevice {
  public static let byteCount: UInt64 = 0x1000
  private struct State {
    var inputs: UInt8 = 0
    var outputs: UInt8 = 0
    var direction: UInt8 = 0
    var isLevel: UInt8 = 0
    var isBothEdges: UInt8 = 0
    var event: UInt8 = 0
    var mask: UInt8 = 0
    var edges: UInt8 = 0
    var alternate: UInt8 = 0
    /// What the guest drives.
    var driven: UInt8 { outputs & direction }
    var data: UInt8 { inputs & ~direction | driven }
    /// GPIORIS.
    var raw: UInt8 { edges & ~isLevel | ~(data ^ event) & isLevel }
  }
  private let state = Mutex(State())
  private let line: InterruptLine
  private let rise: @Sendable (_ pin: Int) -> Void
  /// - Parameter rise: called, by any thread, when the guest drives a pin high that it did not drive high before.
  public init(_ line: InterruptLine, rise: @escaping @Sendable (_ pin: Int) -> Void = { _ in }) {
    (self.line, self.rise) = (line, rise)
  }

  public func reset() { change { $0 = State(inputs: $0.inputs) } }

  /// The level of pin 0 to 7 from outside.
  public func setInput(_ pin: Int, _ level: Bool) {
    let bit = UInt8(1) << UInt8(pin)
    change { $0.inputs = level ? $0.inputs | bit : $0.inputs & ~bit }
  }

  private func change(_ body: (inout State) -> Void) {
    var risen = state.withLock { state in
      let (before, driven) = (state.data, state.driven)
      body(&state)
      let changed = before ^ state.data
      state.edges |= changed & (state.isBothEdges | ~(state.data ^ state.event))
      line.set(state.raw & state.mask != 0)
      return state.driven & ~driven
    }
    while risen != 0 {
      rise(risen.trailingZeroBitCount)
      risen &= risen - 1
    }
  }

  private static let identification: [UInt64] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    state.withLock { state in
      switch offset {
      // The address chooses the pins [§3.3.1].
      case 0..<0x400: return UInt64(state.data & UInt8(truncatingIfNeeded: offset >> 2))
      case 0x400: return UInt64(state.direction)
      case 0x404: return UInt64(state.isLevel)
      case 0x408: return UInt64(state.isBothEdges)
      case 0x40c: return UInt64(state.event)
      case 0x410: return UInt64(state.mask)
      case 0x414: return UInt64(state.raw)
      case 0x418: return UInt64(state.raw & state.mask)
      case 0x420: return UInt64(state.alternate)
      case 0xfe0..<0x1000: return Self.identification[Int(offset - 0xfe0) / 4]
      default:
        GuestErrorTrace.report("pl061", "read of register 0x\(String(offset, radix: 16))")
        return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    change { state in
      switch offset {
      case 0..<0x400:
        let pins = UInt8(truncatingIfNeeded: offset >> 2) & state.direction
        state.outputs = state.outputs & ~pins | byte & pins
      case 0x400: state.direction = byte
      case 0x404: state.isLevel = byte
      case 0x408: state.isBothEdges = byte
      case 0x40c: state.event = byte
      case 0x410: state.mask = byte
      case 0x41c: state.edges &= ~byte
      case 0x420: state.alternate = byte
      default: GuestErrorTrace.report("pl061", "write of register 0x\(String(offset, radix: 16))")
      }
    }
  }
}
