import ApusHost
import ApusMemory
import ApusVirtio

/// An entropy source [VIRTIO 1.3 §5.4] that hands out the host kernel's random bytes.
///
/// Requests are filled on the notifying vCPU's thread, at most 4 KiB each: getrandom does not block there.
/// Not modelled: rate limits (`max-bytes`, `period`); the options are refused.
public final class VirtioEntropy: VirtioDevice {
  public let name: String
  public var deviceID: UInt16 { VirtioDeviceID.entropy }
  public var features: UInt64 { 0 }
  public let queues = [VirtQueue(maximumSize: 8)]
  private static let requestByteLimit = 4096
  private let inFlight = InFlightCounter()
  private let pool: WorkerPool

  public init(name: String = "virtio-rng", pool: WorkerPool) { (self.name, self.pool) = (name, pool) }

  public func activate(features: UInt64) {}
  public func resetQueue(_ index: Int) { inFlight.waitUntilIdle() }
  public func reset() { inFlight.waitUntilIdle() }

  public func notify(queue index: Int) {
    inFlight.enter()
    defer { inFlight.leave() }
    let queue = queues[0]
    let hasMore = queue.process(limit: 64) { chain in
      var left = Self.requestByteLimit
      chain.writable.forEachRun(offset: 0, count: left) { _, base, count in
        HostRandom.fill(UnsafeMutableRawBufferPointer(start: base, count: count))
        left -= count
      }
      queue.push(chain, written: Self.requestByteLimit - left)
    }
    queue.signal()
    if hasMore {
      inFlight.enter()
      pool.submit { [self] in
        notify(queue: index)
        inFlight.leave()
      }
    }
  }
}
