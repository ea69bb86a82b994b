/// Ethernet, ARP, IPv4, UDP and TCP frames for tests, with right checksums.
public enum TestFrames {
  public static let guestMAC: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]
  public static let broadcast: [UInt8] = [UInt8](repeating: 0xff, count: 6)

  public static func big(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xff)] }
  public static func big(_ value: UInt32) -> [UInt8] {
    big(UInt16(value >> 16)) + big(UInt16(value & 0xffff))
  }
  public static func read16(_ bytes: [UInt8], _ offset: Int) -> UInt16 {
    UInt16(bytes[offset]) << 8 | UInt16(bytes[offset + 1])
  }
  public static func read32(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
    UInt32(read16(bytes, offset)) << 16 | UInt32(read16(bytes, offset + 2))
  }

  /// The folded ones' complement sum, not complemented.
  public static func sum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
      sum = sum & 0xffff + sum >> 16
    }
    return UInt16(sum & 0xffff + sum >> 16)
  }

  public static func arpRequest(for target: [UInt8], from source: [UInt8]) -> [UInt8] {
    broadcast + guestMAC + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + guestMAC + source + [0, 0, 0, 0, 0, 0] + target
  }

  public static func ipv4(
    to mac: [UInt8], source: [UInt8], target: [UInt8], protocolNumber: UInt8, _ payload: [UInt8]
  ) -> [UInt8] {
    var header: [UInt8] =
      [0x45, 0] + big(UInt16(20 + payload.count)) + [0, 1, 0x40, 0, 64, protocolNumber, 0, 0]
    header += source + target
    let check = ~sum(header)
    (header[10], header[11]) = (UInt8(check >> 8), UInt8(check & 0xff))
    return mac + guestMAC + [8, 0] + header + payload
  }

  public static func pseudoHeader(_ source: [UInt8], _ target: [UInt8], _ protocolNumber: UInt8, _ count: Int)
    -> [UInt8]
  {
    source + target + [0, protocolNumber] + big(UInt16(count))
  }

  public static func udp(
    to mac: [UInt8], source: [UInt8], sourcePort: UInt16, target: [UInt8], targetPort: UInt16, _ data: [UInt8]
  ) -> [UInt8] {
    // A zero checksum means none.
    let datagram = big(sourcePort) + big(targetPort) + big(UInt16(8 + data.count)) + [0, 0] + data
    return ipv4(to: mac, source: source, target: target, protocolNumber: 17, datagram)
  }

  /// - Parameter partialChecksum: leaves the pseudo-header's sum in the field, for the device to finish.
  public static func tcp(
    to mac: [UInt8], source: [UInt8], sourcePort: UInt16, target: [UInt8], targetPort: UInt16,
    sequence: UInt32,
    acknowledge: UInt32, flags: UInt8, _ data: [UInt8] = [], partialChecksum: Bool = false
  ) -> [UInt8] {
    var segment = big(sourcePort) + big(targetPort) + big(sequence) + big(acknowledge) + [0x50, flags]
    segment += big(UInt16(65535)) + [0, 0, 0, 0] + data
    let pseudo = pseudoHeader(source, target, 6, segment.count)
    let check = partialChecksum ? sum(pseudo) : ~sum(pseudo + segment)
    (segment[16], segment[17]) = (UInt8(check >> 8), UInt8(check & 0xff))
    return ipv4(to: mac, source: source, target: target, protocolNumber: 6, segment)
  }

  /// A DHCPDISCOVER.
  public static func dhcpDiscover(transaction: UInt32) -> [UInt8] {
    var message: [UInt8] = [1, 1, 6, 0] + big(transaction) + [UInt8](repeating: 0, count: 20)
    message += guestMAC + [UInt8](repeating: 0, count: 10 + 64 + 128)
    message += [99, 130, 83, 99, 53, 1, 1, 255]
    message += [UInt8](repeating: 0, count: 60)
    return udp(
      to: broadcast, source: [0, 0, 0, 0], sourcePort: 68, target: [255, 255, 255, 255], targetPort: 67,
      message)
  }
}
