import ApusDevice
import ApusHost
import ApusMemory
import ApusNet
import ApusVirtio
import Synchronization

/// What a virtio-net device is made with.
public struct VirtioNetConfiguration: Sendable {
  public var name = "virtio-net"
  public var macAddress: [UInt8] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56]
  public var receiveQueueSize: UInt16 = 256
  public var transmitQueueSize: UInt16 = 256
  /// 0: not told to the guest.
  public var mtu: UInt16 = 0
  public var hasMergeableBuffers = true
  public var hasStatus = true
  public var hasControlQueue = true
  public var hasControlReceive = true
  public var hasControlReceiveExtra = true
  public var hasControlVLAN = true
  public var hasControlMACAddress = true
  public var hasGuestAnnounce = true
  /// The guest may switch offloads of frames it receives while it runs.
  public var hasControlGuestOffloads = true
  /// The guest may leave checksums to the host.
  public var hasChecksum = true
  /// The guest may take frames without a checksum.
  public var hasGuestChecksum = true
  public var hasHostTSO4 = true
  public var hasHostTSO6 = true
  public var hasHostECN = true
  public var hasGuestTSO4 = true
  public var hasGuestTSO6 = true
  public var hasGuestECN = true
  /// Mb/s; `nil`: unknown.
  public var speed: UInt32?
  public var isFullDuplex: Bool?
  public init() {}
}

/// A network card [VIRTIO 1.3 §5.1] over a `Netdev`.
///
/// Frames pass on the netdev's thread in both directions; the control queue is served on the notifying vCPU's thread.
/// Each direction has a lock of its own, since a netdev may answer a frame from inside `send`; a reset takes both.
/// Where the netdev knows no checksum offload the device finishes checksums itself, so the guest need not.
/// Not modelled: several queue pairs, RSS and hash reports, UFO and USO, notification coalescing.
public final class VirtioNet: VirtioDevice, NetworkPeer {
  enum Feature {
    static let checksum: UInt64 = 1 << 0
    static let guestChecksum: UInt64 = 1 << 1
    static let controlGuestOffloads: UInt64 = 1 << 2
    static let mtu: UInt64 = 1 << 3
    static let macAddress: UInt64 = 1 << 5
    static let guestTSO4: UInt64 = 1 << 7
    static let guestTSO6: UInt64 = 1 << 8
    static let guestECN: UInt64 = 1 << 9
    /// Bits that the command for guest offloads takes, each the feature's own.
    static let guestOffloads = guestChecksum | guestTSO4 | guestTSO6 | guestECN
    static let hostTSO4: UInt64 = 1 << 11
    static let hostTSO6: UInt64 = 1 << 12
    static let hostECN: UInt64 = 1 << 13
    static let mergeableBuffers: UInt64 = 1 << 15
    static let status: UInt64 = 1 << 16
    static let controlQueue: UInt64 = 1 << 17
    static let controlReceive: UInt64 = 1 << 18
    static let controlVLAN: UInt64 = 1 << 19
    static let controlReceiveExtra: UInt64 = 1 << 20
    static let guestAnnounce: UInt64 = 1 << 21
    static let controlMACAddress: UInt64 = 1 << 23
    static let speedAndDuplex: UInt64 = 1 << 63
  }
  /// The header in front of each frame: flags, gso type, header length, gso size, checksum start and offset, buffers.
  static let headerByteCount = 12
  private static let receiveQueue = 0
  private static let transmitQueue = 1
  private static let controlQueue = 2
  // Largest frame: a 64 KiB packet with Ethernet header and VLAN tag.
  private static let frameByteLimit = 65535 + 18

  private struct Receive {
    var isActive = false
    var hasMergeableBuffers = false
    var marksChecksumsValid = false
    /// The offloads that were negotiated.
    var offloads: UInt64 = 0
    var filter: ReceiveFilter
  }
  private struct Transmit {
    var isActive = false
    var scratch: [UInt8] = []
  }
  private struct Link {
    var driver = VirtioDriverLink()
    var isUp = true
    var announces = false
    var acceptsAnnounce = false
    var macAddress: [UInt8]
  }

  public let name: String
  public var deviceID: UInt16 { VirtioDeviceID.network }
  public let features: UInt64
  public let queues: [VirtQueue]

  private let configuration: VirtioNetConfiguration
  private let netdev: (any Netdev)?
  private let receiveState: Mutex<Receive>
  private let transmitState = Mutex(Transmit())
  private let link: Mutex<Link>
  private let isTransmitPosted = Atomic<Bool>(false)
  private let isReceiveBlocked = Atomic<Bool>(false)

  /// - Parameter netdev: `nil`: a card without a cable.
  public init(_ configuration: VirtioNetConfiguration, netdev: (any Netdev)?) {
    precondition(configuration.macAddress.count == 6, "a MAC address has 6 bytes")
    (self.configuration, self.netdev) = (configuration, netdev)
    name = configuration.name
    queues =
      [
        VirtQueue(maximumSize: configuration.receiveQueueSize),
        VirtQueue(maximumSize: configuration.transmitQueueSize),
      ]
      + (configuration.hasControlQueue ? [VirtQueue(maximumSize: 64)] : [])
    features = Self.features(configuration, netdev)
    receiveState = Mutex(Receive(filter: ReceiveFilter(configuration.macAddress)))
    link = Mutex(Link(isUp: netdev != nil, macAddress: configuration.macAddress))
    netdev?.attach(self)
  }

  private static func features(_ configuration: VirtioNetConfiguration, _ netdev: (any Netdev)?) -> UInt64 {
    let sends = netdev?.sendOffloads ?? []
    let hasHeader = netdev?.headerByteCount == headerByteCount
    let marksValid = netdev?.deliversValidChecksums == true
    var features = Feature.macAddress
    func offer(_ bit: UInt64, _ condition: Bool) { if condition { features |= bit } }
    offer(Feature.mergeableBuffers, configuration.hasMergeableBuffers)
    offer(Feature.status, configuration.hasStatus)
    offer(Feature.mtu, configuration.mtu > 0)
    offer(Feature.speedAndDuplex, configuration.speed != nil || configuration.isFullDuplex != nil)
    if configuration.hasControlQueue {
      offer(Feature.controlQueue, true)
      offer(Feature.controlReceive, configuration.hasControlReceive)
      offer(
        Feature.controlReceiveExtra, configuration.hasControlReceive && configuration.hasControlReceiveExtra)
      offer(Feature.controlVLAN, configuration.hasControlVLAN)
      offer(Feature.controlMACAddress, configuration.hasControlMACAddress)
      offer(Feature.guestAnnounce, configuration.hasGuestAnnounce && configuration.hasStatus)
    }
    // Plain checksums can always be finished here.
    offer(Feature.checksum, configuration.hasChecksum)
    if configuration.hasChecksum {
      offer(Feature.hostTSO4, configuration.hasHostTSO4 && sends.contains(.tso4))
      offer(Feature.hostTSO6, configuration.hasHostTSO6 && sends.contains(.tso6))
      offer(Feature.hostECN, configuration.hasHostECN && sends.contains(.ecn))
    }
    offer(Feature.guestChecksum, configuration.hasGuestChecksum && (hasHeader || marksValid))
    if configuration.hasGuestChecksum, hasHeader {
      offer(Feature.guestTSO4, configuration.hasGuestTSO4)
      offer(Feature.guestTSO6, configuration.hasGuestTSO6)
      offer(Feature.guestECN, configuration.hasGuestECN)
    }
    if configuration.hasControlQueue, configuration.hasControlGuestOffloads {
      offer(Feature.controlGuestOffloads, features & Feature.guestOffloads != 0)
    }
    return features
  }

  // MARK: Configuration space

  public func attach(_ link: VirtioDriverLink) { self.link.withLock { $0.driver = link } }

  public func readConfiguration(offset: Int, byteCount: Int) -> UInt64 {
    let (mac, isUp, announces) = link.withLock { ($0.macAddress, $0.isUp, $0.announces) }
    var space = VirtioConfiguration()
    space.append(mac)
    space.append(UInt16((isUp ? 1 : 0) | (announces ? 2 : 0)))
    space.append(UInt16(1))  // queue pairs
    space.append(configuration.mtu)
    space.append(configuration.speed ?? .max)
    space.append(configuration.isFullDuplex.map { $0 ? UInt8(1) : 0 } ?? 0xff)
    return space.read(offset: offset, byteCount: byteCount)
  }

  public func linkChanged(isUp: Bool) {
    let driver = link.withLock { link in
      link.isUp = isUp
      return link.driver
    }
    driver.configurationChanged()
  }

  /// Has the guest tell the network where it is now (after a migration).
  public func announce() {
    let driver: VirtioDriverLink? = link.withLock { link in
      guard link.acceptsAnnounce else { return nil }
      link.announces = true
      return link.driver
    }
    driver?.configurationChanged()
  }

  // MARK: Life

  public func activate(features: UInt64) {
    setReceiveOffloads(features)
    link.withLock { $0.acceptsAnnounce = features & Feature.guestAnnounce != 0 }
    receiveState.withLock { state in
      state.offloads = features & Feature.controlGuestOffloads != 0 ? features & Feature.guestOffloads : 0
      state.hasMergeableBuffers = features & Feature.mergeableBuffers != 0
      state.isActive = true
    }
    transmitState.withLock { $0.isActive = true }
    netdev?.post { [netdev] in netdev?.resumeReceiving() }
  }

  /// - Parameter offloads: bits of `Feature.guestOffloads`; others do not count.
  private func setReceiveOffloads(_ bits: UInt64) {
    if let netdev, netdev.headerByteCount > 0 {
      var offloads: NetworkOffloads = []
      if bits & Feature.guestChecksum != 0 { offloads.insert(.checksum) }
      if bits & Feature.guestTSO4 != 0 { offloads.insert(.tso4) }
      if bits & Feature.guestTSO6 != 0 { offloads.insert(.tso6) }
      if bits & Feature.guestECN != 0 { offloads.insert(.ecn) }
      netdev.setReceiveOffloads(offloads)
    }
    let marksValid = bits & Feature.guestChecksum != 0 && netdev?.deliversValidChecksums == true
    receiveState.withLock { $0.marksChecksumsValid = marksValid }
  }

  public func resetQueue(_ index: Int) {
    // The queue is stopped already; whoever holds a lock may be copying.
    if index == Self.receiveQueue { receiveState.withLock { _ in } } else { transmitState.withLock { _ in } }
  }

  public func reset() {
    receiveState.withLock { $0 = Receive(filter: ReceiveFilter(configuration.macAddress)) }
    transmitState.withLock { $0.isActive = false }
    link.withLock { link in
      link.announces = false
      link.acceptsAnnounce = false
      link.macAddress = configuration.macAddress
    }
  }

  public func notify(queue index: Int) {
    switch index {
    case Self.receiveQueue:
      guard let netdev, isReceiveBlocked.exchange(false, ordering: .acquiringAndReleasing) else { return }
      netdev.post { netdev.resumeReceiving() }
    case Self.transmitQueue: postTransmit()
    default: serveControl()
    }
  }

  // MARK: Transmit

  private func postTransmit() {
    guard let netdev else {
      transmitState.withLock { _ in
        _ = queues[Self.transmitQueue].process { queues[Self.transmitQueue].push($0, written: 0) }
      }
      queues[Self.transmitQueue].signal()
      return
    }
    if !isTransmitPosted.exchange(true, ordering: .acquiringAndReleasing) {
      netdev.post { [self] in
        isTransmitPosted.store(false, ordering: .sequentiallyConsistent)
        transmit(netdev)
      }
    }
  }

  public func sendReady() { if netdev != nil { postTransmit() } }

  private func transmit(_ netdev: any Netdev) {
    let queue = queues[Self.transmitQueue]
    let isUp = link.withLock { $0.isUp }
    let hasMore = transmitState.withLock { state in
      guard state.isActive else { return false }
      var left = Int(queue.maximumSize)
      repeat {
        queue.disableNotification()
        while let chain = queue.pop() {
          if isUp, !send(chain, netdev, &state) {
            queue.putBack([chain])
            return false
          }
          queue.push(chain, written: 0)
          left -= 1
          if left == 0 { return true }
        }
      } while queue.enableNotification()
      return false
    }
    queue.signal()
    if hasMore { postTransmit() }
  }

  private func send(_ chain: VirtQueueChain, _ netdev: any Netdev, _ state: inout Transmit) -> Bool {
    let frameByteCount = chain.readable.byteCount - Self.headerByteCount
    guard frameByteCount >= 14, frameByteCount <= Self.frameByteLimit else {
      GuestErrorTrace.report(name, "a frame of \(frameByteCount) bytes was dropped")
      return true
    }
    if netdev.headerByteCount == Self.headerByteCount { return netdev.send(chain.readable.ioBuffers()) }
    let flags = chain.readable.load(0, as: UInt8.self) ?? 0
    guard flags & 1 != 0 else { return netdev.send(chain.readable.ioBuffers(offset: Self.headerByteCount)) }
    // The checksum is finished in a copy: guest memory is not ours to change.
    let start = Int(chain.readable.load(6, as: UInt16.self) ?? 0)
    let offset = Int(chain.readable.load(8, as: UInt16.self) ?? 0)
    if state.scratch.count < frameByteCount {
      state.scratch = [UInt8](repeating: 0, count: max(2048, frameByteCount))
    }
    return state.scratch.withUnsafeMutableBytes { scratch in
      let frame = UnsafeMutableRawBufferPointer(rebasing: scratch[..<frameByteCount])
      chain.readable.copyOut(offset: Self.headerByteCount, into: frame)
      InternetChecksum.finish(frame, start: start, offset: offset)
      return netdev.send([IOBuffer(frame)])
    }
  }

  // MARK: Receive

  public func receive(_ frame: UnsafeRawBufferPointer) -> Bool {
    let queue = queues[Self.receiveQueue]
    let isUp = link.withLock { $0.isUp }
    let netdevHeader = netdev?.headerByteCount ?? 0
    let isTaken: Bool = receiveState.withLock { state in
      guard state.isActive, isUp, frame.count >= netdevHeader + 14 else { return true }
      guard state.filter.accepts(UnsafeRawBufferPointer(rebasing: frame[netdevHeader...])) else {
        return true
      }
      let total = frame.count - netdevHeader + Self.headerByteCount
      guard let chains = takeBuffers(queue, total, mergeable: state.hasMergeableBuffers) else { return false }
      guard !chains.isEmpty else { return true }
      fill(chains, frame, netdevHeader, state.marksChecksumsValid, queue)
      return true
    }
    queue.signal()
    return isTaken
  }

  /// Buffers for `total` bytes; `nil` if there are too few; empty if the frame can never fit and is dropped.
  private func takeBuffers(_ queue: VirtQueue, _ total: Int, mergeable: Bool) -> [VirtQueueChain]? {
    var chains: [VirtQueueChain] = []
    var room = 0
    while room < total {
      if let chain = queue.pop() {
        chains.append(chain)
        room += chain.writable.byteCount
        guard chains[0].writable.byteCount >= Self.headerByteCount else {
          queue.fail("a receive buffer has no room for the header")
          return []
        }
        if !mergeable, room < total {
          // The guest gives buffers for whole frames: this one is larger than it agreed to.
          queue.putBack(chains)
          return []
        }
        continue
      }
      queue.putBack(chains)
      chains = []
      room = 0
      isReceiveBlocked.store(true, ordering: .sequentiallyConsistent)
      // With all of the ring in our hands and too little room, more will not come.
      guard queue.enableNotification(), isReceiveBlocked.exchange(false, ordering: .sequentiallyConsistent),
        hasGrown(queue, total)
      else { return nil }
    }
    queue.disableNotification()
    return chains
  }

  /// Whether the ring now holds `total` bytes of buffers; leaves it as it was.
  private func hasGrown(_ queue: VirtQueue, _ total: Int) -> Bool {
    var chains: [VirtQueueChain] = []
    var room = 0
    while room < total, let chain = queue.pop() {
      chains.append(chain)
      room += chain.writable.byteCount
    }
    queue.putBack(chains)
    if room < total { isReceiveBlocked.store(true, ordering: .sequentiallyConsistent) }
    return room >= total
  }

  private func fill(
    _ chains: [VirtQueueChain], _ frame: UnsafeRawBufferPointer, _ netdevHeader: Int, _ marksValid: Bool,
    _ queue: VirtQueue
  ) {
    var header = [UInt8](repeating: 0, count: Self.headerByteCount)
    if netdevHeader == Self.headerByteCount {
      header = [UInt8](frame.prefix(Self.headerByteCount))
    } else if marksValid {
      header[0] = 2  // VIRTIO_NET_HDR_F_DATA_VALID
    }
    header[10] = UInt8(truncatingIfNeeded: chains.count)
    header[11] = UInt8(truncatingIfNeeded: chains.count >> 8)
    let payload = UnsafeRawBufferPointer(rebasing: frame[netdevHeader...])
    var items: [(chain: VirtQueueChain, written: Int)] = []
    items.reserveCapacity(chains.count)
    var position = 0
    for (index, chain) in chains.enumerated() {
      var written = 0
      if index == 0 { written = header.withUnsafeBytes { chain.writable.copyIn(from: $0) } }
      let count = chain.writable.copyIn(
        offset: written, from: UnsafeRawBufferPointer(rebasing: payload[position...]))
      position += count
      items.append((chain, written + count))
    }
    queue.push(items)
  }

  // MARK: Control queue

  private func serveControl() {
    guard queues.count > Self.controlQueue else { return }
    let queue = queues[Self.controlQueue]
    transmitState.withLock { _ in
      _ = queue.process(limit: 1024) { chain in
        guard chain.readable.byteCount >= 2, chain.writable.byteCount >= 1 else {
          return queue.fail("a control request has no room for header or status")
        }
        let bytes = chain.readable.bytes(count: min(chain.readable.byteCount, 65536))
        chain.writable.store(0, control(bytes[0], bytes[1], Array(bytes[2...])) ? UInt8(0) : 1)
        queue.push(chain, written: 1)
      }
    }
    queue.signal()
  }

  private func control(_ group: UInt8, _ command: UInt8, _ data: [UInt8]) -> Bool {
    switch (group, command) {
    case (0, 0...1): return receiveState.withLock { $0.filter.setMode(command, data) }
    case (0, 2...5) where configuration.hasControlReceiveExtra:
      return receiveState.withLock { $0.filter.setMode(command, data) }
    case (1, 0): return receiveState.withLock { $0.filter.setTable(data) }
    case (1, 1):
      guard data.count == 6 else { return false }
      receiveState.withLock { $0.filter.macAddress = data }
      link.withLock { $0.macAddress = data }
      return true
    case (2, 0), (2, 1): return receiveState.withLock { $0.filter.setVLAN(data, isMember: command == 0) }
    case (3, 0):
      link.withLock { $0.announces = false }
      return true
    case (5, 0):
      // Only what was negotiated may be switched [§5.1.6.5.8].
      guard data.count == 8 else { return false }
      let bits = (0..<8).reduce(UInt64(0)) { $0 | UInt64(data[$1]) << (8 * UInt64($1)) }
      guard bits & ~receiveState.withLock({ $0.offloads }) == 0 else { return false }
      setReceiveOffloads(bits)
      return true
    default:
      GuestErrorTrace.report(name, "control command \(group).\(command) is not known")
      return false
    }
  }
}
