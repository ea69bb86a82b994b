import ApusBits

/// What runs first on every RISC-V hart, and what it hands to the firmware.
public enum RISCVReset {
  /// The privilege mode that firmware leaves to the next stage in.
  public enum NextMode: UInt64, Sendable {
    case user = 0
    case supervisor = 1
    case machine = 3
  }

  /// The hand-over to OpenSBI's `fw_dynamic` [OpenSBI docs/firmware/fw_dynamic.md]: six little-endian 64-bit words.
  public struct DynamicInfo: Equatable, Sendable {
    public static let magic: UInt64 = 0x4942_534f  // "OSBI"
    /// Where the firmware goes next; 0 if there is nothing.
    public var nextAddress: UInt64
    public var nextMode: NextMode
    public var options: UInt64 = 0
    /// The preferred boot hart; all ones: any.
    public var bootHart: UInt64 = 0

    public init(nextAddress: UInt64, nextMode: NextMode = .supervisor) {
      (self.nextAddress, self.nextMode) = (nextAddress, nextMode)
    }

    public func encode() -> [UInt8] {
      var bytes: [UInt8] = []
      for word in [Self.magic, 2, nextAddress, nextMode.rawValue, options, bootHart] {
        bytes.appendLittleEndian(word)
      }
      return bytes
    }
  }

  /// The boot ROM's content: a0 = hart id, a1 = device tree, a2 = `DynamicInfo`, jump to `start`.
  ///
  /// ```
  /// 0x00  instructions      0x20  start     0x28  device tree     0x30  DynamicInfo
  /// ```
  public static func vector(start: UInt64, deviceTree: UInt64, info: DynamicInfo) -> [UInt8] {
    let instructions: [UInt32] = [
      0x0000_0617,  // auipc a2, 0
      0x0206_3283,  // ld    t0, 0x20(a2)
      0x0286_3583,  // ld    a1, 0x28(a2)
      0xf140_2573,  // csrr  a0, mhartid
      0x0306_0613,  // addi  a2, a2, 0x30
      0x0002_8067,  // jr    t0
      0, 0,
    ]
    var bytes: [UInt8] = []
    for instruction in instructions { bytes.appendLittleEndian(instruction) }
    bytes.appendLittleEndian(start)
    bytes.appendLittleEndian(deviceTree)
    return bytes + info.encode()
  }
}
