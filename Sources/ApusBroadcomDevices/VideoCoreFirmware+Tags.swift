/// The tags of the property interface.
extension VideoCoreFirmware {
  /// The VideoCore's clocks: numbers, rates at the start and largest rates, in Hz.
  private static let clocks: [(number: UInt32, rate: UInt32, maximum: UInt32)] = [
    (1, 250_000_000, 250_000_000),  // EMMC
    (2, 48_000_000, 1_000_000_000),  // UART
    (3, 600_000_000, 1_200_000_000),  // ARM
    (4, 400_000_000, 400_000_000),  // core
    (5, 300_000_000, 300_000_000),  // V3D
    (6, 300_000_000, 300_000_000),  // H.264
    (7, 300_000_000, 300_000_000),  // ISP
    (8, 450_000_000, 450_000_000),  // SDRAM
    (9, 108_000_000, 2_400_000_000),  // pixels
    (10, 0, 500_000_000),  // PWM
  ]

  /// The bytes of a tag's answer; `nil`: the tag is not known.
  func respond(_ tag: UInt32, _ request: [UInt32], _ state: inout State) -> [UInt8]? {
    switch tag >> 16 & 15 {
    case 4: return respondFramebuffer(tag, request, &state.framebuffer)
    case 5 where tag == 0x0005_0001: return Array(board.commandLine.utf8) + [0]
    // The DMA channels that are the cores' own.
    case 6 where tag == 0x0006_0001: return Self.bytes(0x7f35)
    case 1 where tag == 0x0001_0003: return board.macAddress
    case 0, 1: return identity(tag).map { Self.bytes($0) }
    case 2: return power(tag, request, &state).map { Self.bytes($0) }
    case 3: return hardware(tag, request, &state).map { Self.bytes($0) }
    default: return nil
    }
  }

  private static func bytes(_ words: UInt32...) -> [UInt8] { bytes(words) }
  private static func bytes(_ words: [UInt32]) -> [UInt8] {
    words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32(8 * $0)) } }
  }

  private func identity(_ tag: UInt32) -> [UInt32]? {
    switch tag {
    // The firmware's date, in seconds since 1970.
    case 0x0000_0001: [1_600_000_000]
    case 0x0001_0001: [0]
    case 0x0001_0002: [board.revision]
    case 0x0001_0004: [UInt32(truncatingIfNeeded: board.serialNumber), UInt32(board.serialNumber >> 32)]
    case 0x0001_0005: [0, board.armByteCount]
    case 0x0001_0006: [board.armByteCount, board.videoCoreByteCount]
    case 0x0001_0007: Self.clocks.flatMap { [0, $0.number] } + [0, 0]
    default: nil
    }
  }

  /// Power of devices: a bit each; all of the first nine exist.
  private func power(_ tag: UInt32, _ request: [UInt32], _ state: inout State) -> [UInt32]? {
    guard let device = request.first else { return nil }
    guard device < 9 else { return tag == 0x0002_0002 ? [device, 0] : [device, 2] }
    switch tag {
    case 0x0002_0001: break
    case 0x0002_0002: return [device, 1]
    case 0x0002_8001: Self.set(&state.poweredDevices, device, (request.dropFirst().first ?? 0) & 1)
    default: return nil
    }
    return [device, state.poweredDevices >> device & 1]
  }

  private static func set(_ mask: inout UInt32, _ bit: UInt32, _ value: UInt32) {
    mask = mask & ~(1 << bit) | value << bit
  }

  private func hardware(_ tag: UInt32, _ request: [UInt32], _ state: inout State) -> [UInt32]? {
    switch tag {
    case 0x0003_0046: return [0]  // throttled: never
    case 0x0003_0048: return []  // the kernel is about to restart
    case 0x0003_0041, 0x0003_8041, 0x0003_0043, 0x0003_8043: return expander(tag, request, &state)
    default: break
    }
    guard let subject = request.first else { return nil }
    let second = request.dropFirst().first ?? 0
    let clock = Self.clocks.first { $0.number == subject }
    switch tag {
    case 0x0003_0001, 0x0003_8001: return [subject, clock == nil ? 2 : 1]
    case 0x0003_0002, 0x0003_0047: return [subject, state.clockRates[subject] ?? clock?.rate ?? 0]
    case 0x0003_8002:
      guard let clock else { return [subject, 0] }
      state.clockRates[subject] = min(second, clock.maximum)
      return [subject, min(second, clock.maximum)]
    case 0x0003_0004: return [subject, clock?.maximum ?? 0]
    case 0x0003_0007: return [subject, clock == nil ? 0 : 1_000_000]
    case 0x0003_0003, 0x0003_0005, 0x0003_0008, 0x0003_8003: return [subject, 1_200_000]  // microvolts
    case 0x0003_0006: return [subject, 41_000]  // thousandths of a degree
    case 0x0003_000a: return [subject, 85_000]
    case 0x0003_0009, 0x0003_8009: return [subject, 0]  // turbo
    case 0x0003_0030: return [subject, subject < 32 ? state.poweredDomains >> subject & 1 : 0]
    case 0x0003_8030:
      if subject < 32 { Self.set(&state.poweredDomains, subject, second & 1) }
      return [subject, second]
    // EDID: no display.
    case 0x0003_0020: return [subject, 1]
    default: return nil
    }
  }

  /// The pins 128 to 135 of the expander. Its answers begin with 0 for success.
  private func expander(_ tag: UInt32, _ request: [UInt32], _ state: inout State) -> [UInt32]? {
    guard let pin = request.first, (128..<136).contains(pin) else { return request }
    let bit = pin - 128
    switch tag {
    case 0x0003_0041: return [0, state.expander >> bit & 1]
    case 0x0003_8041:
      Self.set(&state.expander, bit, (request.dropFirst().first ?? 0) & 1)
      return [0] + request.dropFirst()
    // Direction, polarity, termination and its direction.
    case 0x0003_0043: return [0, state.expanderDirections >> bit & 1, 0, 0, 0]
    default:
      Self.set(&state.expanderDirections, bit, (request.dropFirst().first ?? 0) & 1)
      if request.count >= 6 { Self.set(&state.expander, bit, request[5] & 1) }
      return [0] + request.dropFirst()
    }
  }

  // MARK: Framebuffer

  /// In a tag's bits 15:12: get, test, set (0, 4, 8).
  private func respondFramebuffer(
    _ tag: UInt32, _ request: [UInt32], _ framebuffer: inout VideoCoreFramebuffer
  )
    -> [UInt8]?
  {
    let kind = tag >> 12 & 15
    guard kind == 0 || kind == 4 || kind == 8 else { return nil }
    var changed = framebuffer
    guard let answer = Self.apply(tag & 0xfff, kind == 0 ? [] : request, &changed) else {
      return transfer(tag, request, &framebuffer)
    }
    if kind == 8 { framebuffer = changed }
    return Self.bytes(answer)
  }

  /// A property that can be read, tested and set; no `values`: it is only read.
  private static func apply(_ property: UInt32, _ values: [UInt32], _ framebuffer: inout VideoCoreFramebuffer)
    -> [UInt32]?
  {
    let first = values.first
    switch property {
    case 3:
      if values.count >= 2, VideoCoreFramebuffer.isValid(width: values[0], height: values[1]) {
        (framebuffer.width, framebuffer.height) = (values[0], values[1])
      }
      return [framebuffer.width, framebuffer.height]
    case 4:
      if values.count >= 2, VideoCoreFramebuffer.isValid(width: values[0], height: values[1]) {
        (framebuffer.virtualWidth, framebuffer.virtualHeight) = (values[0], values[1])
      }
      return [framebuffer.virtualWidth, framebuffer.virtualHeight]
    case 5:
      if let first, VideoCoreFramebuffer.isValid(depth: first) { framebuffer.depth = first }
      return [framebuffer.depth]
    case 6:
      if let first, first < 2 { framebuffer.pixelOrder = first }
      return [framebuffer.pixelOrder]
    case 7:
      if let first, first < 3 { framebuffer.alphaMode = first }
      return [framebuffer.alphaMode]
    case 8: return [framebuffer.pitch]
    case 9:
      if values.count >= 2 { (framebuffer.xOffset, framebuffer.yOffset) = (values[0], values[1]) }
      return [framebuffer.xOffset, framebuffer.yOffset]
    case 10:
      if values.count >= 4 { framebuffer.overscan = Array(values.prefix(4)) }
      return framebuffer.overscan
    case 0x13: return [1]  // displays
    default: return nil
    }
  }

  /// What is no such property: memory, blanking, the palette.
  private func transfer(_ tag: UInt32, _ request: [UInt32], _ framebuffer: inout VideoCoreFramebuffer)
    -> [UInt8]?
  {
    switch tag {
    case 0x0004_0001:
      guard let address = framebufferAddress(framebuffer) else { return Self.bytes(0, 0) }
      return Self.bytes(address, UInt32(framebuffer.byteCount))
    case 0x0004_8001: return []
    case 0x0004_0002, 0x0004_4002: return Self.bytes((request.first ?? 0) & 1)
    case 0x0004_000b: return Self.bytes(framebuffer.palette)
    case 0x0004_400b, 0x0004_800b:
      // First entry, count, entries; answered by 0 if they are valid.
      guard request.count >= 2, request[0] < 256, (1...256).contains(request[1]),
        request[0] + request[1] <= 256,
        request.count >= 2 + Int(request[1])
      else { return Self.bytes(1) }
      if tag == 0x0004_800b {
        for index in 0..<Int(request[1]) { framebuffer.palette[Int(request[0]) + index] = request[2 + index] }
      }
      return Self.bytes(0)
    default: return nil
    }
  }
}
