import ApusDevice
import ApusHost
import Synchronization

/// The common part of back ends that move bytes over descriptors: buffering, back-pressure and readiness.
///
/// `write` and `acceptInput` come from any thread; all input and output happens on the event loop's thread, and the
/// front end is called without a lock held. At most `outputLimit` bytes wait for a slow reader.
public final class CharacterStream: CharacterBackend {
  /// Bytes that wait for the outside before `write` refuses more.
  static let outputLimit = 64 << 10
  /// Most that is read at once.
  static let inputChunk = 4096

  /// The descriptors of the connection, and how they may be used.
  struct Connection {
    var input: Int32?
    var output: Int32?
    /// Shared with other processes: stays in blocking mode, so readiness is asked for before each transfer.
    var isShared = false
    /// Closed when the connection ends.
    var isOwned = true
    /// The end of input ends the connection (sockets), or only the input (standard input, pipes).
    var endsWithInput = true
    /// Output that nobody takes for a second is dropped until someone does (pseudo-terminals).
    var dropsStaleOutput = false
  }

  private struct State {
    var frontEnd: CharacterFrontEnd?
    var connection: Connection?
    var output: [UInt8] = []
    var outputIsBlocked = false
    /// The front end was refused bytes and waits for `becameWritable`.
    var writerWaits = false
    /// The front end had no room when input was there.
    var inputIsHeld = false
    var flushIsPosted = false
    /// Output is being dropped, as nobody takes it.
    var isDropping = false
    /// What the loop watches: a descriptor without interest is taken out, or its hang-up would spin the loop.
    var watched: [Int32: EventLoop.Interest] = [:]
  }
  private let state = Mutex(State())
  private let loop: EventLoop
  private let onDisconnect: @Sendable () -> Void

  /// - Parameter onDisconnect: called on the loop's thread after the connection ended.
  init(_ loop: EventLoop, onDisconnect: @escaping @Sendable () -> Void = {}) {
    (self.loop, self.onDisconnect) = (loop, onDisconnect)
  }

  deinit { if let connection = state.withLock({ $0.connection }) { release(connection) } }

  // MARK: Connections

  var isConnected: Bool { state.withLock { $0.connection != nil } }

  /// Starts to use `connection`, in place of none.
  func open(_ connection: Connection) {
    let frontEnd = state.withLock { state in
      state.connection = connection
      (state.outputIsBlocked, state.isDropping) = (false, false)
      return state.frontEnd
    }
    updateInterest()
    frontEnd?.connectionChanged(true)
    flush()
  }

  private func release(_ connection: Connection) {
    for descriptor in Set([connection.input, connection.output].compactMap { $0 }) {
      if state.withLock({ $0.watched.removeValue(forKey: descriptor) != nil }) { loop.remove(descriptor) }
      if connection.isOwned { HostDescriptor.close(descriptor) }
    }
  }

  /// Ends the connection; what waits for it is dropped.
  private func disconnect() {
    let (connection, frontEnd) = state.withLock { state in
      defer {
        state.connection = nil
        state.output.removeAll()
      }
      return (state.connection, state.frontEnd)
    }
    guard let connection else { return }
    release(connection)
    frontEnd?.connectionChanged(false)
    frontEnd?.becameWritable()
    onDisconnect()
  }

  // MARK: CharacterBackend

  public func attach(_ frontEnd: CharacterFrontEnd?) {
    let connected = state.withLock { state in
      state.frontEnd = frontEnd
      return state.connection != nil
    }
    if connected { loop.post { frontEnd?.connectionChanged(true) } }
    acceptInput()
  }

  public func write(_ bytes: [UInt8]) -> Int {
    let (taken, post) = state.withLock { state in
      guard state.connection?.output != nil else { return (bytes.count, false) }  // nobody listens
      if state.isDropping { return (bytes.count, false) }
      let count = min(bytes.count, max(0, Self.outputLimit - state.output.count))
      state.output += bytes.prefix(count)
      if count < bytes.count { state.writerWaits = true }
      let post = count > 0 && !state.flushIsPosted && !state.outputIsBlocked
      if post { state.flushIsPosted = true }
      return (count, post)
    }
    if post { loop.post { [weak self] in self?.flush() } }
    return taken
  }

  public func acceptInput() {
    let held = state.withLock { state in
      defer { state.inputIsHeld = false }
      return state.inputIsHeld
    }
    if held { loop.post { [weak self] in self?.updateInterest() } }
  }

  // MARK: The loop's thread

  private func updateInterest() {
    let (connection, held, blocked) = state.withLock { ($0.connection, $0.inputIsHeld, $0.outputIsBlocked) }
    guard let connection else { return }
    var wanted: [Int32: EventLoop.Interest] = [:]
    if let input = connection.input { wanted[input] = held ? [] : .read }
    if let output = connection.output, blocked { wanted[output, default: []].insert(.write) }
    for descriptor in Set([connection.input, connection.output].compactMap { $0 }) {
      let interest = wanted[descriptor] ?? []
      let old = state.withLock { state in
        let old = state.watched[descriptor]
        state.watched[descriptor] = interest.isEmpty ? nil : interest
        return old
      }
      if interest.isEmpty {
        if old != nil { loop.remove(descriptor) }
      } else if old == nil {
        loop.add(descriptor, interest) { [weak self] ready in self?.handle(ready, descriptor) }
      } else if old != interest {
        loop.modify(descriptor, interest)
      }
    }
  }

  private func handle(_ ready: EventLoop.Interest, _ descriptor: Int32) {
    guard let connection = state.withLock({ $0.connection }) else { return }
    let hungUp = !ready.isDisjoint(with: .hangUp)
    if descriptor == connection.output, ready.contains(.write) || hungUp {
      state.withLock { ($0.outputIsBlocked, $0.isDropping) = (false, false) }
      updateInterest()
      flush()
    }
    if descriptor == connection.input, ready.contains(.read) || hungUp { readInput(connection) }
  }

  private func readInput(_ connection: Connection) {
    guard let input = connection.input else { return }
    guard let frontEnd = state.withLock({ $0.frontEnd }) else {
      holdInput()
      return
    }
    let room = min(frontEnd.capacity(), Self.inputChunk)
    guard room > 0 else {
      holdInput()
      return
    }
    if connection.isShared && !HostDescriptor.isReady(input, forWriting: false) { return }
    var bytes: [UInt8] = []
    switch HostDescriptor.readSome(input, limit: room, into: &bytes) {
    case .wouldBlock: return
    case .transferred(let count) where count > 0: frontEnd.receive(bytes)
    case .transferred, .failed: inputEnded(connection)
    }
  }

  private func holdInput() {
    state.withLock { $0.inputIsHeld = true }
    updateInterest()
    // Room may have come between the question and the mark.
    if let frontEnd = state.withLock({ $0.frontEnd }), frontEnd.capacity() > 0 { acceptInput() }
  }

  private func inputEnded(_ connection: Connection) {
    if connection.endsWithInput {
      disconnect()
      return
    }
    guard let input = connection.input else { return }
    if input != connection.output {
      let watched = state.withLock { $0.watched.removeValue(forKey: input) != nil }
      if watched { loop.remove(input) }
      if connection.isOwned { HostDescriptor.close(input) }
    }
    state.withLock { $0.connection?.input = nil }
    updateInterest()
  }

  /// Writes what waits, as far as the host takes it.
  private func flush() {
    state.withLock { $0.flushIsPosted = false }
    while true {
      let (output, bytes, shared) = state.withLock { state in
        (state.connection?.output, state.output, state.connection?.isShared ?? false)
      }
      guard let output, !bytes.isEmpty else { break }
      if shared && !HostDescriptor.isReady(output, forWriting: true) {
        block()
        break
      }
      let result = HostDescriptor.writeSome(output, shared ? bytes.prefix(Self.inputChunk) : bytes[...])
      switch result {
      case .transferred(let count): state.withLock { $0.output.removeFirst(min(count, $0.output.count)) }
      case .wouldBlock: block()
      case .failed:
        disconnect()
        return
      }
      if result == .wouldBlock { break }
    }
    let frontEnd = state.withLock { state -> CharacterFrontEnd? in
      guard state.writerWaits, state.output.count < Self.outputLimit / 2 else { return nil }
      state.writerWaits = false
      return state.frontEnd
    }
    frontEnd?.becameWritable()
  }

  private func block() {
    let drops = state.withLock { state in
      state.outputIsBlocked = true
      return state.connection?.dropsStaleOutput ?? false
    }
    updateInterest()
    guard drops else { return }
    loop.schedule(at: HostClock.monotonicNanoseconds() + 1_000_000_000) { [weak self] in
      self?.dropStaleOutput()
    }
  }

  private func dropStaleOutput() {
    let frontEnd = state.withLock { state -> CharacterFrontEnd? in
      guard state.outputIsBlocked else { return nil }
      state.isDropping = true
      state.output.removeAll()
      state.writerWaits = false
      return state.frontEnd
    }
    frontEnd?.becameWritable()
  }

  /// Hands the waiting output to the host, for a limited time: at the machine's end.
  public func drain() {
    let deadline = HostClock.monotonicNanoseconds() + 500_000_000
    while HostClock.monotonicNanoseconds() < deadline {
      let (output, waiting) = state.withLock { ($0.connection?.output, !$0.output.isEmpty) }
      guard let output, waiting else { return }
      if HostDescriptor.isReady(output, forWriting: true) { flush() }
    }
  }
}
