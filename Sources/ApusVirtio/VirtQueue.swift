import ApusDevice
import ApusMemory
import Synchronization

/// Where a driver placed a queue.
public struct VirtQueueSetup: Sendable, Equatable, CustomStringConvertible {
  /// Entries: a power of two for split rings, 1...32768.
  public var size: UInt16
  /// Guest-physical addresses of the descriptor table (or packed ring), driver area and device area.
  public var descriptorArea: UInt64
  public var driverArea: UInt64
  public var deviceArea: UInt64
  public init(size: UInt16, descriptorArea: UInt64 = 0, driverArea: UInt64 = 0, deviceArea: UInt64 = 0) {
    (self.size, self.descriptorArea, self.driverArea, self.deviceArea) = (
      size, descriptorArea, driverArea, deviceArea
    )
  }
  public var description: String {
    "\(size) entries at \(GuestPhysicalAddress(descriptorArea)), \(GuestPhysicalAddress(driverArea)), "
      + "\(GuestPhysicalAddress(deviceArea))"
  }
}

/// The device side of a virtqueue, split or packed [VIRTIO 1.3 §2.6-2.8].
///
/// Any thread; its own lock guards the ring indices. The guest may do anything to the ring's memory: an impossible
/// value breaks the queue (`pop` returns `nil` until it is reset) and tells the transport, which sets NEEDS_RESET.
/// Not modelled: VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_ACCESS_PLATFORM.
public final class VirtQueue: Sendable {
  /// What the transport gives a queue to talk to the driver with.
  public struct Connection: Sendable {
    public var space: AddressSpace
    /// Interrupts the driver: a buffer was used.
    public var interrupt: @Sendable () -> Void
    /// The queue met a value it cannot continue from.
    public var broken: @Sendable (VirtQueueError) -> Void
    public init(
      space: AddressSpace, interrupt: @escaping @Sendable () -> Void,
      broken: @escaping @Sendable (VirtQueueError) -> Void
    ) {
      (self.space, self.interrupt, self.broken) = (space, interrupt, broken)
    }
  }

  private struct State {
    var connection: Connection?
    var split: SplitRing?
    var packed: PackedRing?
    var isBroken = false
    var epoch: UInt32 = 0

    mutating func clear() {
      split = nil
      packed = nil
      isBroken = false
      epoch &+= 1
    }
  }

  /// The largest size that the device allows, in entries.
  public let maximumSize: UInt16
  private let state = Mutex(State())

  public init(maximumSize: UInt16) { self.maximumSize = maximumSize }

  // MARK: For the transport

  public func connect(_ connection: Connection) { state.withLock { $0.connection = connection } }

  /// Starts the queue with the driver's addresses. An unusable setup leaves it stopped and reports it as broken.
  @discardableResult
  public func enable(_ setup: VirtQueueSetup, packed: Bool, eventIndex: Bool) -> Bool {
    let failure: (VirtQueueError, Connection)? = state.withLock { state in
      guard let connection = state.connection else { return nil }
      state.clear()
      do throws(VirtQueueError) {
        guard setup.size <= maximumSize else {
          throw VirtQueueError("queue size \(setup.size) is above the maximum of \(maximumSize)")
        }
        if packed {
          state.packed = try PackedRing(connection.space, setup, hasEventIndex: eventIndex)
        } else {
          state.split = try SplitRing(connection.space, setup, hasEventIndex: eventIndex)
        }
        return nil
      } catch {
        state.isBroken = true
        return (error, connection)
      }
    }
    if let (error, connection) = failure { connection.broken(error) }
    return failure == nil
  }

  /// Stops the queue; chains still out are forgotten.
  public func reset() { state.withLock { $0.clear() } }

  public var isEnabled: Bool { state.withLock { $0.split != nil || $0.packed != nil } }

  // MARK: For the device

  /// The address space that chains point into, once a transport is connected.
  public var space: AddressSpace? { state.withLock { $0.connection?.space } }

  /// The next request, or `nil` when there is none (or the queue is stopped or broken).
  public func pop() -> VirtQueueChain? {
    let (chain, failure): (VirtQueueChain?, (VirtQueueError, Connection?)?) = state.withLock { state in
      guard !state.isBroken else { return (nil, nil) }
      do throws(VirtQueueError) {
        if state.packed != nil { return (try state.packed?.pop(epoch: state.epoch), nil) }
        return (try state.split?.pop(epoch: state.epoch), nil)
      } catch {
        state.isBroken = true
        return (nil, (error, state.connection))
      }
    }
    if let (error, connection) = failure { connection?.broken(error) }
    return chain
  }

  /// Takes back the chains that were popped last, `chains` in the order of popping, none of them pushed.
  public func putBack(_ chains: [VirtQueueChain]) {
    state.withLock { state in
      for chain in chains.reversed() where chain.epoch == state.epoch {
        state.split?.putBack(chain)
        state.packed?.putBack(chain)
      }
    }
  }

  /// Returns a request with `written` bytes of its writable part filled in. `signal` tells the driver.
  public func push(_ chain: VirtQueueChain, written: Int) {
    state.withLock { state in
      guard chain.epoch == state.epoch, !state.isBroken else { return }
      if written > 0, let space = state.connection?.space { chain.writable.noteWritten(written, in: space) }
      if state.packed != nil { state.packed?.push(chain, written) } else { state.split?.push(chain, written) }
    }
  }

  /// Returns several requests so that the driver sees all of them or none (one packet in merged buffers).
  public func push(_ items: [(chain: VirtQueueChain, written: Int)]) {
    state.withLock { state in
      guard let first = items.first, first.chain.epoch == state.epoch, !state.isBroken else { return }
      if let space = state.connection?.space {
        for item in items { item.chain.writable.noteWritten(item.written, in: space) }
      }
      if state.packed != nil { state.packed?.push(items) } else { state.split?.push(items) }
    }
  }

  /// Interrupts the driver if it wants to know about what was pushed since the last call.
  public func signal() {
    let interrupt: (@Sendable () -> Void)? = state.withLock { state in
      guard !state.isBroken else { return nil }
      let isNeeded =
        state.packed != nil ? state.packed?.takeInterruptNeed() : state.split?.takeInterruptNeed()
      return isNeeded == true ? state.connection?.interrupt : nil
    }
    interrupt?()
  }

  /// `push` and `signal` in one.
  public func complete(_ chain: VirtQueueChain, written: Int) {
    push(chain, written: written)
    signal()
  }

  /// Asks the driver for no notifications; a hint only.
  public func disableNotification() {
    state.withLock { state in
      guard !state.isBroken else { return }
      state.packed?.disableNotification()
      state.split?.disableNotification()
    }
  }

  /// Asks the driver for a notification at its next buffer. True if one is there already: look again.
  public func enableNotification() -> Bool {
    state.withLock { state in
      guard !state.isBroken else { return false }
      return state.packed?.enableNotification() ?? state.split?.enableNotification() ?? false
    }
  }

  /// Pops requests and hands them to `body` until there are none, with notifications off meanwhile.
  ///
  /// - Parameter limit: the most requests to take.
  /// - Returns: true if the limit was reached; notifications are still off then: call again from somewhere else.
  public func process(limit: Int = .max, _ body: (VirtQueueChain) -> Void) -> Bool {
    var left = limit
    repeat {
      disableNotification()
      while let chain = pop() {
        body(chain)
        left -= 1
        if left <= 0 { return true }
      }
    } while enableNotification()
    return false
  }

  /// Reports misuse that only the device type can see (a request too short for its header) and stops the queue.
  public func fail(_ reason: String) {
    let connection: Connection? = state.withLock { state in
      guard !state.isBroken else { return nil }
      state.isBroken = true
      return state.connection
    }
    connection?.broken(VirtQueueError(reason))
  }
}
