import ApusHost
import CSlirp
import Synchronization

/// `-netdev user`: a NAT'ed network made of the host's sockets, by libslirp.
///
/// libslirp is single-threaded: the netdev's thread owns it and waits with `poll` for libslirp's sockets, posted work
/// and timers; with no connection open it sleeps without a limit. Not modelled: SMB shares, IPv6 host forwardings.
public final class UserNetdev: Netdev {
  private struct Inbox {
    var posted: [@Sendable () -> Void] = []
    var isClosing = false
  }

  public let id: String
  public var kind: String { "user" }
  public var deliversValidChecksums: Bool { true }
  /// libslirp takes TCP segments of any length up to 64 KiB, with their checksum finished.
  public var sendOffloads: NetworkOffloads { [.tso4, .tso6] }
  private let inbox = Mutex(Inbox())
  private let doorbell: HostDoorbell
  private let stack: SlirpStack
  private let thread: Mutex<HostThread?>

  public init(_ configuration: UserNetConfiguration) throws(NetdevError) {
    id = configuration.id
    do throws(HostError) { doorbell = try HostDoorbell() } catch {
      throw NetdevError(configuration.id, error)
    }
    stack = try SlirpStack(configuration)
    thread = Mutex(nil)
    let (stack, doorbell) = (stack, doorbell)
    let thread = HostThread.spawn("net \(id)") { [weak self] in
      // The thread must not keep the netdev alive while it sleeps, so it holds the parts.
      while true {
        stack.wait(doorbell)
        guard let inbox = self?.takeInbox() else { break }
        for body in inbox.posted { body() }
        stack.dispatch()
        if inbox.isClosing { break }
      }
      stack.shutDown()
    }
    self.thread.withLock { $0 = thread }
  }

  deinit { doorbell.ring() }

  private func takeInbox() -> Inbox {
    doorbell.clear()
    return inbox.withLock { inbox in
      let taken = inbox
      inbox.posted = []
      return taken
    }
  }

  public func attach(_ peer: any NetworkPeer) { post { [stack] in stack.attach(peer) } }

  public func post(_ body: @escaping @Sendable () -> Void) {
    let wasEmpty = inbox.withLock { inbox in
      inbox.posted.append(body)
      return inbox.posted.count == 1
    }
    if wasEmpty { doorbell.ring() }
  }

  public func send(_ frame: [IOBuffer]) -> Bool {
    stack.input(frame)
    return true
  }
  public func resumeReceiving() { stack.flush() }

  /// libslirp's own table of connections, as `info usernet` shows it. Waits for the netdev's thread.
  public func connectionInformation() -> String {
    let done = Monitor()
    let result = Mutex<String?>(nil)
    post { [stack] in
      result.withLock { $0 = stack.connectionInformation() }
      done.withLock { done.broadcast() }
    }
    return done.withLock {
      while true {
        if let text = result.withLock({ $0 }) { return text }
        done.wait(until: HostClock.monotonicNanoseconds() + 100_000_000)
      }
    }
  }

  /// Adds a forwarding at run time; `completion` gets whether the host port could be taken.
  public func addHostForward(_ forward: HostForward, completion: @escaping @Sendable (Bool) -> Void) {
    post { [stack] in completion(stack.add(forward)) }
  }
  public func removeHostForward(_ forward: HostForward, completion: @escaping @Sendable (Bool) -> Void) {
    post { [stack] in completion(stack.remove(forward)) }
  }

  public func close() {
    inbox.withLock { $0.isClosing = true }
    doorbell.ring()
    let thread = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    thread?.join()
  }
}
