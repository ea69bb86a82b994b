/// The card's registers [SD-Phys 9.00 §5].
extension SDCard {
  /// OCR: 2.7 to 3.6 V.
  static let voltages: UInt32 = 0x00ff_8000

  /// 128 bits of a register, filled by the numbers of its bits.
  private struct Register {
    var words: [UInt32] = [0, 0, 0, 0]
    mutating func set(_ low: Int, _ value: UInt64, _ width: Int) {
      for bit in 0..<width where value >> UInt64(bit) & 1 != 0 {
        words[3 - (low + bit) / 32] |= 1 << UInt32((low + bit) % 32)
      }
    }
    /// With the CRC of the upper 120 bits, and the end bit [§4.5].
    var closed: [UInt32] {
      var crc: UInt32 = 0
      for bit in stride(from: 127, through: 8, by: -1) {
        let input = words[3 - bit / 32] >> UInt32(bit % 32) & 1
        let carry = crc >> 6 & 1 ^ input
        crc = crc << 1 & 0x7f ^ (carry != 0 ? 0x09 : 0)
      }
      var result = words
      result[3] = result[3] & ~0xff | crc << 1 | 1
      return result
    }
  }

  /// CID [§5.2].
  var identification: [UInt32] {
    var register = Register()
    register.set(120, 0xaa, 8)  // manufacturer: none that exists
    register.set(104, 0x4150, 16)  // "AP"
    register.set(64, 0x41_5055_5321, 40)  // "APUS!"
    register.set(56, 0x01, 8)
    register.set(24, 0x0000_0001, 32)
    register.set(8, 0x19_b, 12)  // 2025, November
    return register.closed
  }

  /// CSD [§5.3]: version 1 for SDSC, 2 for larger cards.
  var specificData: [UInt32] {
    var register = Register()
    register.set(112, isHighCapacity ? 0x0e : 0x26, 8)  // access time
    register.set(96, 0x32, 8)  // 25 MHz
    register.set(84, 0x535, 12)  // classes: basic, block read and write, erase, applications, switch
    register.set(46, 1, 1)  // single blocks can be erased
    register.set(39, 0x7f, 7)  // of a sector of 128
    register.set(26, 2, 3)
    register.set(22, 9, 4)  // blocks of 512 bytes are written
    if isHighCapacity {
      register.set(126, 1, 2)
      register.set(80, 9, 4)
      register.set(48, node.byteCount / (512 << 10) - 1, 22)
    } else {
      // 512 units of the read length (1024 only for 2 GiB) times the size.
      let exponent: UInt64 = node.byteCount > 1 << 30 ? 10 : 9
      register.set(80, exponent, 4)
      register.set(79, 1, 1)
      register.set(62, node.byteCount >> (exponent + 9) - 1, 12)
      register.set(50, 0xfff, 12)  // currents
      register.set(47, 7, 3)
    }
    if node.isReadOnly { register.set(12, 1, 1) }
    return register.closed
  }

  /// SCR [§5.6]: version 3, one or four lines, CMD23.
  var configuration: [UInt8] { [0x02, isHighCapacity ? 0x35 : 0x25, 0x80, 0x02, 0, 0, 0, 0] }

  /// The SD status [§4.10.2].
  func cardStatus(isWide: Bool) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 64)
    bytes[0] = isWide ? 0x80 : 0
    bytes[8] = 2  // class 4
    bytes[10] = 0x90  // allocation units of 4 MiB
    return bytes
  }

  /// CMD6 [§4.3.10]: high speed is function 1 of group 1, all else has function 0 only.
  func switchFunction(_ argument: UInt32, _ state: inout State) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 64)
    bytes[1] = 100  // mA
    var isPossible = true
    var selected: [UInt8] = []
    for group in 0..<6 {
      let wanted = UInt8(argument >> UInt32(4 * group) & 15)
      let current: UInt8 = group == 0 && state.isHighSpeed ? 1 : 0
      let isKnown = wanted == 15 || wanted <= (group == 0 ? 1 : 0)
      if !isKnown { isPossible = false }
      selected.append(!isKnown ? 15 : wanted == 15 ? current : wanted)
      bytes[12 - 2 * group] = 0x80
      bytes[13 - 2 * group] = group == 0 ? 3 : 1
    }
    for pair in 0..<3 { bytes[16 - pair] = selected[2 * pair + 1] << 4 | selected[2 * pair] }
    if argument >> 31 != 0, isPossible { state.isHighSpeed = selected[0] == 1 }
    return bytes
  }
}
