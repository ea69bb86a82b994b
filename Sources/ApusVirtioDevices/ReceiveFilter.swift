/// Which frames a network card passes to the guest [VIRTIO 1.3 §5.1.6.5.1-3].
///
/// Promiscuous until the driver says otherwise, as drivers without a control queue expect.
struct ReceiveFilter: Sendable {
  var macAddress: [UInt8]
  private var isPromiscuous = true
  private var takesAllMulticast = false
  private var takesAllUnicast = false
  private var dropsMulticast = false
  private var dropsUnicast = false
  private var dropsBroadcast = false
  private var unicast: Set<[UInt8]> = []
  private var multicast: Set<[UInt8]> = []
  private var vlans: [Bool]?
  // Beyond this many addresses the card takes all, as a hash filter would.
  private static let tableLimit = 64

  init(_ macAddress: [UInt8]) { self.macAddress = macAddress }

  /// VIRTIO_NET_CTRL_RX commands 0-5.
  mutating func setMode(_ command: UInt8, _ data: [UInt8]) -> Bool {
    guard let value = data.first else { return false }
    let isOn = value != 0
    switch command {
    case 0: isPromiscuous = isOn
    case 1: takesAllMulticast = isOn
    case 2: takesAllUnicast = isOn
    case 3: dropsMulticast = isOn
    case 4: dropsUnicast = isOn
    case 5: dropsBroadcast = isOn
    default: return false
    }
    return true
  }

  /// Two tables, unicast and multicast, each a 32-bit count and addresses.
  mutating func setTable(_ data: [UInt8]) -> Bool {
    var position = 0
    var tables: [[[UInt8]]] = []
    for _ in 0..<2 {
      guard position + 4 <= data.count else { return false }
      let count = (0..<4).reduce(0) { $0 | Int(data[position + $1]) << (8 * $1) }
      position += 4
      guard count <= (data.count - position) / 6 else { return false }
      tables.append((0..<count).map { Array(data[(position + 6 * $0)..<(position + 6 * $0 + 6)]) })
      position += 6 * count
    }
    unicast = tables[0].count <= Self.tableLimit ? Set(tables[0]) : []
    multicast = tables[1].count <= Self.tableLimit ? Set(tables[1]) : []
    unicastOverflow = tables[0].count > Self.tableLimit
    multicastOverflow = tables[1].count > Self.tableLimit
    return true
  }
  private var unicastOverflow = false
  private var multicastOverflow = false

  mutating func setVLAN(_ data: [UInt8], isMember: Bool) -> Bool {
    guard data.count == 2 else { return false }
    let id = Int(data[0]) | Int(data[1]) << 8
    guard id < 4096 else { return false }
    var table = vlans ?? [Bool](repeating: false, count: 4096)
    table[id] = isMember
    vlans = table
    return true
  }

  /// - Parameter frame: at least 14 bytes.
  func accepts(_ frame: UnsafeRawBufferPointer) -> Bool {
    if isPromiscuous { return true }
    if let vlans, frame.count >= 16, frame[12] == 0x81, frame[13] == 0 {
      let id = (Int(frame[14]) << 8 | Int(frame[15])) & 0xfff
      if !vlans[id] { return false }
    }
    let destination = [UInt8](frame.prefix(6))
    if destination[0] & 1 != 0 {
      if destination.allSatisfy({ $0 == 0xff }) { return !dropsBroadcast }
      if dropsMulticast { return false }
      return takesAllMulticast || multicastOverflow || multicast.contains(destination)
    }
    if dropsUnicast { return false }
    return takesAllUnicast || unicastOverflow || destination == macAddress || unicast.contains(destination)
  }
}
