import ApusHost
import CURing

/// Transfers that the kernel carries out while no thread waits for each of them (io_uring).
///
/// Any thread may start and submit. Completions run on a thread of the ring's, one after the other; they must not block.
public final class IORing: @unchecked Sendable {
  /// The bytes that were moved, or a negative errno.
  public typealias Completion = @Sendable (Int) -> Void

  private final class Pending {
    let vectors: UnsafeMutableBufferPointer<iovec>
    let buffers: [IOBuffer]
    let completion: Completion
    init(_ buffers: [IOBuffer], _ completion: @escaping Completion) {
      (self.buffers, self.completion) = (buffers, completion)
      vectors = .allocate(capacity: buffers.count)
      for (index, buffer) in buffers.enumerated() {
        vectors[index] = iovec(iov_base: buffer.base, iov_len: buffer.byteCount)
      }
    }
    deinit { vectors.deallocate() }
  }

  // SAFETY: the library's object lives as long as this one. The submission side is touched with `submitting` held, the
  // completion side by the ring's thread alone; each pending request's memory is kept until it has completed.
  private let ring: OpaquePointer
  private let submitting = Monitor()
  private var queuedCount = 0
  private var isStopped = false
  private var thread: HostThread?

  /// - Parameter depth: requests that are queued before they are handed to the kernel; more than that may be under way.
  public init(depth: UInt32 = 128) throws(HostError) {
    var code: Int32 = 0
    guard let ring = apus_ring_create(depth, &code) else { throw HostError("set up io_uring", errno: -code) }
    self.ring = ring
    let cell = RingCell(ring: ring)
    thread = HostThread.spawn("io-uring") { Self.complete(cell) }
  }

  private struct RingCell: @unchecked Sendable {
    // SAFETY: the thread that gets it is joined before the ring goes.
    let ring: OpaquePointer
  }

  deinit {
    stop()
    apus_ring_destroy(ring)
  }

  /// Queues a transfer; `submit` hands it to the kernel. False if the queue has no room even then.
  ///
  /// - Parameter buffers: at most 1024.
  public func start(
    isWrite: Bool, _ descriptor: Int32, offset: UInt64, _ buffers: [IOBuffer],
    completion: @escaping Completion
  ) -> Bool {
    guard buffers.count <= 1024 else { return false }
    let pending = Pending(buffers, completion)
    return submitting.withLock {
      guard !isStopped else { return false }
      let data = Unmanaged.passRetained(pending)
      for _ in 0..<2 {
        let isQueued = apus_ring_transfer(
          ring, isWrite, descriptor, pending.vectors.baseAddress, UInt32(buffers.count), offset,
          data.toOpaque())
        if isQueued {
          queuedCount += 1
          return true
        }
        submitLocked()
      }
      data.release()
      return false
    }
  }

  /// Hands what was queued to the kernel.
  public func submit() { submitting.withLock { submitLocked() } }

  private func submitLocked() {
    while queuedCount > 0 {
      let code = apus_ring_submit(ring)
      if code > 0 {
        queuedCount -= Int(code)
        continue
      }
      // EINTR; EAGAIN and EBUSY: the kernel is out of room until something completes.
      precondition([-4, -11, -16].contains(code), "io_uring_submit failed with \(code)")
      HostThread.yield()
    }
  }

  /// Waits for what is under way. Nothing may be started any more.
  public func stop() {
    let thread = submitting.withLock {
      defer { self.thread = nil }
      guard !isStopped else { return self.thread }
      submitLocked()
      isStopped = true
      while !apus_ring_nothing(ring) { HostThread.yield() }
      queuedCount += 1
      submitLocked()
      return self.thread
    }
    thread?.join()
  }

  private static func complete(_ cell: RingCell) {
    var isStopping = false
    var data: UnsafeMutableRawPointer?
    var result: Int32 = 0
    while !isStopping {
      let code = apus_ring_wait(cell.ring, &data, &result)
      if code == -4 { continue }
      precondition(code == 0, "io_uring_wait_cqe failed with \(code)")
      guard let data else {
        isStopping = true
        continue
      }
      let pending = Unmanaged<Pending>.fromOpaque(data).takeRetainedValue()
      pending.completion(Int(result))
    }
  }
}
