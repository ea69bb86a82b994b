import ApusBits
import ApusDevice
import ApusMemory
import Synchronization

/// What the VideoCore's firmware answers to the cores: the property interface [RPi-Firmware "Mailbox property interface"]
/// and the older framebuffer channel.
///
/// Any thread. The framebuffer is memory that nothing shows. A tag that is not known stays unanswered, as on the board.
public final class VideoCoreFirmware: Sendable {
  /// What differs from board to board.
  public struct Board: Sendable {
    public var revision: UInt32
    public var macAddress: [UInt8]
    public var serialNumber: UInt64
    /// The memory that the cores have; the VideoCore's follows it.
    public var armByteCount: UInt32
    public var videoCoreByteCount: UInt32
    /// As much of it as the peripherals do not hide.
    public var visibleVideoCoreByteCount: UInt32
    /// What started the machine (`-append`).
    public var commandLine: String
    public init(
      revision: UInt32, macAddress: [UInt8], serialNumber: UInt64 = 0, armByteCount: UInt32,
      videoCoreByteCount: UInt32, visibleVideoCoreByteCount: UInt32, commandLine: String = ""
    ) {
      (self.revision, self.macAddress, self.serialNumber) = (revision, macAddress, serialNumber)
      (self.armByteCount, self.videoCoreByteCount) = (armByteCount, videoCoreByteCount)
      (self.visibleVideoCoreByteCount, self.commandLine) = (visibleVideoCoreByteCount, commandLine)
    }
  }
  struct State: Equatable {
    var framebuffer = VideoCoreFramebuffer()
    /// By clock number, in Hz, where the guest changed it.
    var clockRates: [UInt32: UInt32] = [:]
    /// The outputs of the board's GPIO expander; HDMI's hot plug detection (4) is low-active: nothing is plugged in.
    var expander: UInt32 = 1 << 4
    var expanderDirections: UInt32 = 0
    var poweredDevices: UInt32 = 0
    var poweredDomains: UInt32 = 0
  }
  private let state = Mutex(State())
  let board: Board
  private let space: AddressSpace
  /// The framebuffer lies this far into the VideoCore's memory.
  private static let framebufferOffset: UInt32 = 1 << 20
  /// Longer messages than any tag needs are not looked at.
  private static let longestMessage: UInt32 = 1 << 16

  public init(_ board: Board, _ space: AddressSpace) { (self.board, self.space) = (board, space) }

  func reset() { state.withLock { $0 = State() } }

  /// RAM behind an address as the VideoCore sees it, where bits 31:30 choose among caches.
  static func physical(_ bus: UInt32) -> GuestPhysicalAddress { .init(UInt64(bus & 0x3fff_ffff)) }

  // MARK: Property channel

  /// Answers the message at a bus address in place: size, code, tags, each with identifier, buffer's size, code and buffer.
  func answer(at address: UInt32) {
    let base = Self.physical(address)
    guard let size: UInt32 = space.loadInteger(base), size >= 12, size % 4 == 0, size <= Self.longestMessage,
      var message = read(base, Int(size))
    else { return GuestErrorTrace.report("bcm2835-property", "message that is too long or not in memory") }
    var offset = 8
    var isComplete = false
    while offset + 4 <= message.count {
      let tag = message.word(at: offset)
      if tag == 0 {
        isComplete = true
        break
      }
      guard offset + 12 <= message.count else { break }
      let capacity = Int(message.word(at: offset + 4))
      guard capacity % 4 == 0, capacity <= message.count - offset - 12 else { break }
      let request = (0..<capacity / 4).map { message.word(at: offset + 12 + 4 * $0) }
      if let response = state.withLock({ respond(tag, request, &$0) }) {
        message.setWord(at: offset + 8, UInt32(response.count) | 1 << 31)
        for (index, byte) in response.prefix(capacity).enumerated() { message[offset + 12 + index] = byte }
      } else {
        GuestErrorTrace.report("bcm2835-property", "unknown tag 0x\(String(tag, radix: 16))")
      }
      offset += 12 + capacity
    }
    message.setWord(at: 4, isComplete ? 0x8000_0000 : 0x8000_0001)
    _ = message.withUnsafeBytes { space.write(base, from: $0) }
  }

  private func read(_ address: GuestPhysicalAddress, _ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    return bytes.withUnsafeMutableBytes({ space.read(address, into: $0) }) ? bytes : nil
  }

  // MARK: Framebuffer

  /// Where the framebuffer is; `nil` if it does not fit into the VideoCore's memory.
  func framebufferAddress(_ framebuffer: VideoCoreFramebuffer) -> UInt32? {
    let room = UInt64(board.visibleVideoCoreByteCount) - UInt64(Self.framebufferOffset)
    return framebuffer.byteCount <= room ? board.armByteCount + Self.framebufferOffset : nil
  }

  /// The framebuffer channel: ten words in memory, of which pitch, address and size are answers. False: it cannot be.
  func configureFramebuffer(at address: UInt32) -> Bool {
    let base = Self.physical(address)
    guard var words = read(base, 40) else { return false }
    var framebuffer = VideoCoreFramebuffer()
    (framebuffer.width, framebuffer.height) = (words.word(at: 0), words.word(at: 4))
    (framebuffer.virtualWidth, framebuffer.virtualHeight) = (words.word(at: 8), words.word(at: 12))
    framebuffer.depth = words.word(at: 20)
    (framebuffer.xOffset, framebuffer.yOffset) = (words.word(at: 24), words.word(at: 28))
    guard VideoCoreFramebuffer.isValid(width: framebuffer.width, height: framebuffer.height),
      VideoCoreFramebuffer.isValid(width: framebuffer.virtualWidth, height: framebuffer.virtualHeight),
      VideoCoreFramebuffer.isValid(depth: framebuffer.depth),
      let place = framebufferAddress(framebuffer)
    else { return false }
    words.setWord(at: 16, framebuffer.pitch)
    words.setWord(at: 32, place)
    words.setWord(at: 36, UInt32(framebuffer.byteCount))
    state.withLock { $0.framebuffer = framebuffer }
    return words.withUnsafeBytes { space.write(base, from: $0) }
  }
}

extension [UInt8] {
  /// A little-endian word that lies inside.
  func word(at offset: Int) -> UInt32 {
    UInt32(self[offset]) | UInt32(self[offset + 1]) << 8 | UInt32(self[offset + 2]) << 16
      | UInt32(self[offset + 3]) << 24
  }
  mutating func setWord(at offset: Int, _ value: UInt32) {
    for index in 0..<4 { self[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(8 * index)) }
  }
}
