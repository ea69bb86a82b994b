import ApusDevice
import ApusMemory
import Synchronization

/// The mailboxes between the ARM cores and the VideoCore [RPi-Firmware "Mailboxes"]: the cores write to one and read the
/// other. What the VideoCore's firmware would do is done at once, on the writing vCPU's thread.
///
/// Any thread. There are the power, framebuffer and property channels; messages on others are dropped.
public final class VideoCoreMailbox: MMIODevice {
  public static let byteCount: UInt64 = 0x40
  private enum Channel {
    static let power: UInt32 = 0
    static let framebuffer: UInt32 = 1
    static let property: UInt32 = 8
  }
  private struct State {
    static let depth = 8
    /// What the cores have not read yet.
    var replies: [UInt32] = []
    /// Bit 0: interrupt while there is something to read.
    var configuration: UInt32 = 0
    /// Full in bit 31, empty in bit 30.
    var status: UInt64 {
      (replies.count >= Self.depth ? 1 << 31 : 0) | (replies.isEmpty ? 1 << 30 : 0)
    }
  }
  private let state = Mutex(State())
  private let line: InterruptLine
  private let firmware: VideoCoreFirmware

  public init(_ line: InterruptLine, _ firmware: VideoCoreFirmware) {
    (self.line, self.firmware) = (line, firmware)
  }

  public func reset() {
    firmware.reset()
    change { $0 = State() }
  }

  @discardableResult
  private func change<R: Sendable>(_ body: (inout State) -> R) -> R {
    state.withLock { state in
      let result = body(&state)
      line.set(!state.replies.isEmpty && state.configuration & 1 != 0)
      return result
    }
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    switch offset {
    case 0x00..<0x10: return change { UInt64($0.replies.isEmpty ? 0 : $0.replies.removeFirst()) }
    case 0x10: return state.withLock { UInt64($0.replies.first ?? 0) }
    case 0x18: return state.withLock { $0.status }
    case 0x1c: return state.withLock { UInt64($0.configuration) }
    // The other mailbox is full when the answers would not fit; else it is empty.
    case 0x38: return state.withLock { $0.replies.count >= State.depth ? 1 << 31 : 1 << 30 }
    default: return 0
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let word = UInt32(truncatingIfNeeded: value)
    switch offset {
    case 0x1c: change { $0.configuration = word & 1 }
    case 0x20..<0x30: send(word)
    default: GuestErrorTrace.report("bcm2835-mbox", "write of register 0x\(String(offset, radix: 16))")
    }
  }

  private func send(_ word: UInt32) {
    guard state.withLock({ $0.replies.count < State.depth }) else {
      return GuestErrorTrace.report("bcm2835-mbox", "message while the mailbox is full")
    }
    let (channel, data) = (word & 15, word & ~15)
    let reply: UInt32
    switch channel {
    // Everything has power.
    case Channel.power: reply = data
    case Channel.framebuffer: reply = firmware.configureFramebuffer(at: data) ? 0 : 0x10
    case Channel.property:
      firmware.answer(at: data)
      reply = data
    default: return GuestErrorTrace.report("bcm2835-mbox", "message on channel \(channel)")
    }
    change { if $0.replies.count < State.depth { $0.replies.append(reply | channel) } }
  }
}
