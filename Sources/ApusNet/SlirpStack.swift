import ApusHost
import CSlirp

/// libslirp with its timers and poll set. Owned by the netdev's thread after `init`.
final class SlirpStack: @unchecked Sendable {
  // SAFETY: made on one thread, then used on the netdev's thread only; libslirp's callbacks run there too, and get
  // `self` unretained: `shutDown` ends them before the object can go.
  private var slirp: OpaquePointer?
  private var peer: (any NetworkPeer)?
  private var waiting = FrameQueue()
  private var polls = HostPollSet()
  private var timers: [SlirpTimer] = []
  private var forwards: [GuestForwardConnection] = []
  private var scratch: [UInt8] = []
  private let dhcpStart: IPv4Address
  // libslirp keeps the pointer to its callbacks.
  private let callbacks = UnsafeMutablePointer<SlirpCb>.allocate(capacity: 1)

  private final class SlirpTimer {
    let body: SlirpTimerCb?
    let opaque: UnsafeMutableRawPointer?
    var deadlineMilliseconds: Int64?
    init(_ body: SlirpTimerCb?, _ opaque: UnsafeMutableRawPointer?) {
      (self.body, self.opaque) = (body, opaque)
    }
  }

  init(_ configuration: UserNetConfiguration) throws(NetdevError) {
    dhcpStart = configuration.dhcpStart
    callbacks.initialize(to: Self.makeCallbacks())
    let prefix = try Self.ipv6(configuration.ipv6Prefix, configuration.id)
    let host6 = try configuration.ipv6Host.map { text throws(NetdevError) in
      try Self.ipv6(text, configuration.id)
    }
    let dns6 = try configuration.ipv6DNS.map { text throws(NetdevError) in
      try Self.ipv6(text, configuration.id)
    }

    var settings = SlirpConfig()
    settings.version = 1
    settings.restricted = configuration.isRestricted ? 1 : 0
    settings.in_enabled = configuration.isIPv4Enabled
    settings.vnetwork = Self.inAddress(configuration.network)
    settings.vnetmask = Self.inAddress(configuration.mask)
    settings.vhost = Self.inAddress(configuration.host)
    settings.in6_enabled = configuration.isIPv6Enabled
    settings.vprefix_addr6 = prefix
    settings.vprefix_len = UInt8(clamping: configuration.ipv6PrefixLength)
    settings.vhost6 = host6 ?? Self.ipv6(prefix, lastByte: 2)
    settings.vdhcp_start = Self.inAddress(configuration.dhcpStart)
    settings.vnameserver = Self.inAddress(configuration.dns)
    settings.vnameserver6 = dns6 ?? Self.ipv6(prefix, lastByte: 3)
    // libslirp copies the strings.
    var strings: [UnsafeMutablePointer<CChar>] = []
    func keep(_ text: String?) -> UnsafePointer<CChar>? {
      guard let text else { return nil }
      let copy = UnsafeMutablePointer<CChar>.allocate(capacity: text.utf8.count + 1)
      for (index, byte) in text.utf8.enumerated() { copy[index] = CChar(bitPattern: byte) }
      copy[text.utf8.count] = 0
      strings.append(copy)
      return UnsafePointer(copy)
    }
    defer { for string in strings { string.deallocate() } }
    settings.vhostname = keep(configuration.hostName)
    settings.vdomainname = keep(configuration.domainName)
    settings.tftp_server_name = keep(configuration.tftpServerName)
    settings.tftp_path = keep(configuration.tftpPath)
    settings.bootfile = keep(configuration.bootFile)
    var search = configuration.dnsSearch.map { keep($0) } + [nil]
    let opaque = Unmanaged.passUnretained(self).toOpaque()
    slirp = search.withUnsafeMutableBufferPointer { search in
      if search.count > 1 { settings.vdnssearch = search.baseAddress }
      return slirp_new(&settings, callbacks, opaque)
    }
    guard slirp != nil else {
      throw NetdevError("netdev '\(configuration.id)': libslirp refused the addresses")
    }
    for forward in configuration.hostForwards where !add(forward) {
      throw NetdevError(
        "netdev '\(configuration.id)': cannot forward host port \(forward.hostPort): the port is in use or not allowed"
      )
    }
    for forward in configuration.guestForwards { try add(forward, configuration) }
  }

  deinit {
    shutDown()
    callbacks.deallocate()
  }

  func shutDown() {
    forwards = []
    if let slirp { slirp_cleanup(slirp) }
    slirp = nil
    peer = nil
    timers = []
  }

  // MARK: Addresses

  static func inAddress(_ address: IPv4Address) -> in_addr { in_addr(s_addr: address.rawValue.bigEndian) }
  private static func ipv6(_ text: String, _ id: String) throws(NetdevError) -> in6_addr {
    var address = in6_addr()
    guard inet_pton(AF_INET6, text, &address) == 1 else {
      throw NetdevError("netdev '\(id)': '\(text)' is no IPv6 address")
    }
    return address
  }
  private static func ipv6(_ prefix: in6_addr, lastByte: UInt8) -> in6_addr {
    var address = prefix
    withUnsafeMutableBytes(of: &address) { $0[15] |= lastByte }
    return address
  }

  // MARK: Forwardings

  func add(_ forward: HostForward) -> Bool {
    let guest = Self.inAddress(forward.guestAddress ?? dhcpStart)
    return slirp_add_hostfwd(
      slirp, forward.isUDP ? 1 : 0, Self.inAddress(forward.hostAddress), Int32(forward.hostPort), guest,
      Int32(forward.guestPort)) == 0
  }
  func remove(_ forward: HostForward) -> Bool {
    slirp_remove_hostfwd(
      slirp, forward.isUDP ? 1 : 0, Self.inAddress(forward.hostAddress), Int32(forward.hostPort)) == 0
  }

  private func add(_ forward: GuestForward, _ configuration: UserNetConfiguration) throws(NetdevError) {
    var address = Self.inAddress(forward.address ?? IPv4Address(configuration.network.rawValue | 4))
    let port = Int32(forward.port)
    let status: Int32
    switch forward.target {
    case .command(let command): status = slirp_add_exec(slirp, command, &address, port)
    case .unix(let path): status = slirp_add_unix(slirp, path, &address, port)
    case .tcp(let host, let hostPort):
      do throws(HostError) {
        let connection = GuestForwardConnection(
          try HostSocket.connect(.inet(host: host, port: hostPort)), address, port)
        forwards.append(connection)
        status = slirp_add_guestfwd(
          slirp,
          { bytes, count, opaque in
            guard let opaque, let bytes else { return -1 }
            let connection = Unmanaged<GuestForwardConnection>.fromOpaque(opaque).takeUnretainedValue()
            return connection.write(UnsafeRawBufferPointer(start: bytes, count: count))
          }, Unmanaged.passUnretained(connection).toOpaque(), &address, port)
      } catch {
        throw NetdevError(configuration.id, error)
      }
    }
    guard status == 0 else {
      throw NetdevError(
        "netdev '\(configuration.id)': the address of guestfwd port \(forward.port) is in use or outside the network"
      )
    }
  }

  // MARK: The thread's loop

  /// Sleeps until a socket, a timer or the doorbell has something to do.
  func wait(_ doorbell: HostDoorbell) {
    polls.removeAll()
    _ = polls.add(doorbell.descriptor, events: HostPollSet.readable)
    var timeout = UInt32.max
    slirp_pollfds_fill(
      slirp, &timeout,
      { descriptor, events, opaque in SlirpStack.from(opaque).addPoll(descriptor, events) },
      Unmanaged.passUnretained(self).toOpaque())
    for forward in forwards { forward.prepare(slirp, &polls) }
    if let deadline = timers.compactMap(\.deadlineMilliseconds).min() {
      timeout = min(timeout, UInt32(clamping: max(0, deadline - Self.nowMilliseconds())))
    }
    let didWait = polls.wait(milliseconds: timeout == .max ? -1 : Int32(clamping: timeout))
    pollFailed = !didWait
  }
  private var pollFailed = false

  /// Handles what the last wait found.
  func dispatch() {
    slirp_pollfds_poll(
      slirp, pollFailed ? 1 : 0,
      { index, opaque in SlirpStack.from(opaque).pollResult(index) },
      Unmanaged.passUnretained(self).toOpaque())
    for forward in forwards { forward.dispatch(slirp, polls) }
    let now = Self.nowMilliseconds()
    for timer in timers {
      guard let deadline = timer.deadlineMilliseconds, deadline <= now else { continue }
      timer.deadlineMilliseconds = nil
      timer.body?(timer.opaque)
    }
  }

  private static let eventPairs: [(slirp: Int32, host: Int32)] = [
    (1 << 0, HostPollSet.readable), (1 << 1, HostPollSet.writable), (1 << 2, HostPollSet.urgent),
    (1 << 3, HostPollSet.error), (1 << 4, HostPollSet.hangUp),
  ]
  private func addPoll(_ descriptor: Int32, _ events: Int32) -> Int32 {
    var wanted: Int32 = 0
    for pair in Self.eventPairs where events & pair.slirp != 0 { wanted |= pair.host }
    return Int32(polls.add(descriptor, events: wanted))
  }
  private func pollResult(_ index: Int32) -> Int32 {
    let result = polls.result(Int(index))
    var events: Int32 = 0
    for pair in Self.eventPairs where result & pair.host != 0 { events |= pair.slirp }
    return events
  }

  // MARK: Frames

  func attach(_ peer: any NetworkPeer) {
    self.peer = peer
    flush()
  }
  func flush() { if let peer { _ = waiting.flush(to: peer) } }

  func input(_ frame: [IOBuffer]) {
    guard let slirp else { return }
    if frame.count == 1 {
      let bytes = frame[0].base.assumingMemoryBound(to: UInt8.self)
      slirp_input(slirp, bytes, Int32(clamping: frame[0].byteCount))
      return
    }
    let count = frame.totalByteCount
    if scratch.count < count { scratch = [UInt8](repeating: 0, count: max(count, 2048)) }
    scratch.withUnsafeMutableBytes { target in
      var position = 0
      for part in frame {
        target.baseAddress.unsafelyUnwrapped.advanced(by: position).copyMemory(
          from: part.base, byteCount: part.byteCount)
        position += part.byteCount
      }
    }
    scratch.withUnsafeBufferPointer { slirp_input(slirp, $0.baseAddress, Int32(clamping: count)) }
  }

  private func deliver(_ frame: UnsafeRawBufferPointer) {
    // Ethernet frames below the minimum are padded, as a real segment would show them.
    guard let peer else { return }
    if waiting.isEmpty, peer.receive(frame) { return }
    waiting.append(frame)
  }

  func connectionInformation() -> String {
    guard let slirp, let text = slirp_connection_info(slirp) else { return "" }
    defer { HostMemory.free(text) }
    return String(cString: text)
  }

  // MARK: Callbacks

  private static func from(_ opaque: UnsafeMutableRawPointer?) -> SlirpStack {
    guard let opaque else { preconditionFailure("libslirp lost its opaque pointer") }
    return Unmanaged<SlirpStack>.fromOpaque(opaque).takeUnretainedValue()
  }
  private static func nowMilliseconds() -> Int64 { Int64(HostClock.monotonicNanoseconds() / 1_000_000) }

  private static func makeCallbacks() -> SlirpCb {
    var callbacks = SlirpCb()
    callbacks.send_packet = { bytes, count, opaque in
      guard let bytes else { return -1 }
      SlirpStack.from(opaque).deliver(UnsafeRawBufferPointer(start: bytes, count: count))
      return count
    }
    callbacks.guest_error = { _, _ in }
    callbacks.clock_get_ns = { _ in Int64(HostClock.monotonicNanoseconds()) }
    callbacks.timer_new = { body, bodyOpaque, opaque in
      let timer = SlirpTimer(body, bodyOpaque)
      SlirpStack.from(opaque).timers.append(timer)
      return Unmanaged.passUnretained(timer).toOpaque()
    }
    callbacks.timer_free = { timer, opaque in
      guard let timer else { return }
      SlirpStack.from(opaque).timers.removeAll { Unmanaged.passUnretained($0).toOpaque() == timer }
    }
    callbacks.timer_mod = { timer, milliseconds, _ in
      guard let timer else { return }
      Unmanaged<SlirpTimer>.fromOpaque(timer).takeUnretainedValue().deadlineMilliseconds = milliseconds
    }
    callbacks.register_poll_fd = { _, _ in }
    callbacks.unregister_poll_fd = { _, _ in }
    callbacks.notify = { _ in }
    return callbacks
  }
}

/// A `guestfwd=` to a TCP server: one connection, made at the start, that the guest's connections talk to.
///
/// Owned by the netdev's thread.
final class GuestForwardConnection {
  private let descriptor: Int32
  private let address: in_addr
  private let port: Int32
  private var isOpen = true
  private var pending: [UInt8] = []
  private var pollIndex = 0
  private var room = 0

  init(_ descriptor: Int32, _ address: in_addr, _ port: Int32) {
    (self.descriptor, self.address, self.port) = (descriptor, address, port)
  }
  deinit { HostSocket.close(descriptor) }

  /// Data from the guest; kept while the server does not take it.
  func write(_ bytes: UnsafeRawBufferPointer) -> Int {
    guard isOpen else { return -1 }
    pending.append(contentsOf: bytes)
    flush()
    return bytes.count
  }
  private func flush() {
    while isOpen, !pending.isEmpty {
      let result = pending.withUnsafeMutableBytes { HostSocket.send(descriptor, [IOBuffer($0)]) }
      switch result {
      case .count(let count): pending.removeFirst(count)
      case .wouldBlock: return
      case .ended, .failed: isOpen = false
      }
    }
  }

  func prepare(_ slirp: OpaquePointer?, _ polls: inout HostPollSet) {
    room = isOpen ? Int(slirp_socket_can_recv(slirp, address, port)) : 0
    let events =
      (room > 0 ? HostPollSet.readable : 0) | (isOpen && !pending.isEmpty ? HostPollSet.writable : 0)
    pollIndex = polls.add(isOpen && events != 0 ? descriptor : -1, events: events)
  }

  func dispatch(_ slirp: OpaquePointer?, _ polls: HostPollSet) {
    let result = polls.result(pollIndex)
    if result & HostPollSet.writable != 0 { flush() }
    guard result & (HostPollSet.readable | HostPollSet.hangUp | HostPollSet.error) != 0, room > 0 else {
      return
    }
    var buffer = [UInt8](repeating: 0, count: min(room, 65536))
    switch buffer.withUnsafeMutableBytes({ HostSocket.receive(descriptor, into: $0) }) {
    case .count(let count): slirp_socket_recv(slirp, address, port, buffer, Int32(count))
    case .wouldBlock: break
    case .ended, .failed: isOpen = false
    }
  }
}
