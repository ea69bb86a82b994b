import ApusDevice
import ApusHost
import ApusMemory
import ApusVirtio
import Synchronization

/// A memory balloon [VIRTIO 1.3 §5.5]: gives pages that the guest does not need back to the host.
///
/// Pages are discarded on a pool thread. Inflated pages stay readable (as zeros): the guest is trusted no more than
/// with its own memory. Not modelled: free page hints, page poison.
public final class VirtioBalloon: VirtioDevice {
  /// A guest statistic [§5.5.6.3]: tag and value.
  public struct Statistic: Sendable, Equatable {
    public var tag: UInt16
    public var value: UInt64
    public init(tag: UInt16, value: UInt64) { (self.tag, self.value) = (tag, value) }
  }
  private enum Feature {
    static let statistics: UInt64 = 1 << 1
    static let deflateOnOOM: UInt64 = 1 << 2
    static let pageReporting: UInt64 = 1 << 5
  }
  private struct State {
    var targetPages: UInt32 = 0
    var actualPages: UInt32 = 0
    var statisticsRequest: VirtQueueChain?
    var statistics: [Statistic] = []
  }
  private static let pageShift: UInt64 = 12

  public let name: String
  public var deviceID: UInt16 { VirtioDeviceID.balloon }
  public let features: UInt64
  public let queues: [VirtQueue]
  private let state = Mutex(State())
  private let link = Mutex(VirtioDriverLink())
  private let inFlight = InFlightCounter()
  private let pool: WorkerPool
  // One lock at a time works on a queue, so that a second notification does not overtake the first.
  private let work = Mutex<Void>(())

  public init(
    name: String = "virtio-balloon", deflatesOnOOM: Bool = false, reportsFreePages: Bool = false,
    pool: WorkerPool
  ) {
    (self.name, self.pool) = (name, pool)
    features =
      Feature.statistics | (deflatesOnOOM ? Feature.deflateOnOOM : 0)
      | (reportsFreePages ? Feature.pageReporting : 0)
    queues =
      [128, 128, 128].map { VirtQueue(maximumSize: $0) }
      + (reportsFreePages ? [VirtQueue(maximumSize: 32)] : [])
  }

  public func attach(_ link: VirtioDriverLink) { self.link.withLock { $0 = link } }

  /// Asks the guest to keep `byteCount` bytes in the balloon.
  public func setTarget(byteCount: UInt64) {
    state.withLock { $0.targetPages = UInt32(clamping: byteCount >> Self.pageShift) }
    link.withLock { $0 }.configurationChanged()
  }
  /// What the guest says is in the balloon, in bytes.
  public var actualByteCount: UInt64 { state.withLock { UInt64($0.actualPages) << Self.pageShift } }
  /// The guest's last statistics; `requestStatistics` asks for new ones.
  public var statistics: [Statistic] { state.withLock { $0.statistics } }
  public func requestStatistics() {
    let request = state.withLock { state in
      defer { state.statisticsRequest = nil }
      return state.statisticsRequest
    }
    if let request { queues[2].complete(request, written: 0) }
  }

  public func readConfiguration(offset: Int, byteCount: Int) -> UInt64 {
    var space = VirtioConfiguration()
    let (target, actual) = state.withLock { ($0.targetPages, $0.actualPages) }
    space.append(target)
    space.append(actual)
    space.append(UInt64(0))
    return space.read(offset: offset, byteCount: byteCount)
  }
  public func writeConfiguration(offset: Int, byteCount: Int, value: UInt64) {
    guard offset == 4, byteCount == 4 else { return }
    state.withLock { $0.actualPages = UInt32(truncatingIfNeeded: value) }
  }

  public func activate(features: UInt64) {}
  public func resetQueue(_ index: Int) {
    inFlight.waitUntilIdle()
    if index == 2 { state.withLock { $0.statisticsRequest = nil } }
  }
  public func reset() {
    inFlight.waitUntilIdle()
    state.withLock { state in
      state.statisticsRequest = nil
      state.actualPages = 0
      state.statistics = []
    }
  }

  public func notify(queue index: Int) {
    inFlight.enter()
    pool.submit { [self] in
      let hasMore = work.withLock { _ in process(index) }
      if hasMore { notify(queue: index) }
      inFlight.leave()
    }
  }

  private func process(_ index: Int) -> Bool {
    let queue = queues[index]
    guard let space = queue.space else { return false }
    let hasMore = queue.process(limit: 64) { chain in
      switch index {
      case 0: inflate(chain, space)
      case 2: return keepStatistics(chain)
      case 3:
        for segment in chain.writable.segments {
          Self.discard(segment.address, UInt64(segment.byteCount), space)
        }
      default: break
      }
      queue.push(chain, written: 0)
    }
    queue.signal()
    return hasMore
  }

  /// The chain is an array of 32-bit page numbers; neighbours are discarded together.
  private func inflate(_ chain: VirtQueueChain, _ space: AddressSpace) {
    let bytes = chain.readable.bytes(count: min(chain.readable.byteCount, 1 << 20))
    var run: (first: UInt64, count: UInt64)?
    for index in stride(from: 0, to: bytes.count - 3, by: 4) {
      let page = (0..<4).reduce(UInt64(0)) { $0 | UInt64(bytes[index + $1]) << UInt64(8 * $1) }
      if let current = run, current.first + current.count == page {
        run = (current.first, current.count + 1)
      } else if let current = run, current.first == page + 1 {
        run = (page, current.count + 1)
      } else {
        if let run { discardPages(run, space) }
        run = (page, 1)
      }
    }
    if let run { discardPages(run, space) }
  }
  private func discardPages(_ run: (first: UInt64, count: UInt64), _ space: AddressSpace) {
    Self.discard(GuestPhysicalAddress(run.first << Self.pageShift), run.count << Self.pageShift, space)
  }
  private static func discard(_ address: GuestPhysicalAddress, _ byteCount: UInt64, _ space: AddressSpace) {
    guard let ram = space.ramRegion(address, byteCount), !ram.isReadOnly else { return }
    ram.discard(offset: address - ram.base, count: byteCount)
    space.noteDMAWrite(address, byteCount)
  }

  /// The driver's buffer stays with the device until statistics are asked for again.
  private func keepStatistics(_ chain: VirtQueueChain) {
    var statistics: [Statistic] = []
    var offset = 0
    while offset + 10 <= min(chain.readable.byteCount, 1024) {
      guard let tag = chain.readable.load(offset, as: UInt16.self),
        let value = chain.readable.load(offset + 2, as: UInt64.self)
      else { break }
      statistics.append(Statistic(tag: tag, value: value))
      offset += 10
    }
    let previous = state.withLock { state in
      let previous = state.statisticsRequest
      state.statisticsRequest = chain
      state.statistics = statistics
      return previous
    }
    if let previous { queues[2].push(previous, written: 0) }
  }
}
