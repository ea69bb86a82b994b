import ApusDevice
import ApusMemory
import Synchronization

/// Ring features of a device, as the properties `event_idx`, `indirect_desc`, `packed`, `queue_reset` choose them.
public struct VirtioRingOptions: Sendable, Equatable {
  public var eventIndex = true
  public var indirectDescriptors = true
  public var packed = false
  public var queueReset = true
  public init() {}

  var features: UInt64 {
    VirtioFeature.version1 | (eventIndex ? VirtioFeature.eventIndex : 0)
      | (indirectDescriptors ? VirtioFeature.indirectDescriptors : 0)
      | (packed ? VirtioFeature.packedRing : 0)
      | (queueReset ? VirtioFeature.ringReset : 0)
  }
}

/// Why a transport interrupts the driver.
public enum VirtioInterrupt: Sendable, Equatable {
  case queue(Int)
  case configuration
}

/// What all transports share: status, feature negotiation, queue set-up and reset [VIRTIO 1.3 §2.1-2.3, §3].
///
/// Any thread. `control` serialises what changes the device's life (status, queue enable and reset) and is held while
/// the device activates or resets; status bits are an atomic of their own, since a broken queue sets one from any thread.
final class VirtioTransportState: Sendable {
  private struct Control {
    var driverFeatures: UInt64 = 0
    var setups: [VirtQueueSetup]
    var enabled: [Bool]
    var isActive = false
  }

  let device: any VirtioDevice
  let queues: [VirtQueue]
  let offeredFeatures: UInt64
  private let control: Mutex<Control>
  private let statusBits = Atomic<UInt8>(0)
  private let generation = Atomic<UInt8>(0)
  private let interrupt: @Sendable (VirtioInterrupt) -> Void

  init(
    device: any VirtioDevice, space: AddressSpace, options: VirtioRingOptions,
    interrupt: @escaping @Sendable (VirtioInterrupt) -> Void
  ) {
    (self.device, self.interrupt) = (device, interrupt)
    queues = device.queues
    offeredFeatures = device.features | options.features
    control = Mutex(
      Control(
        setups: queues.map { VirtQueueSetup(size: $0.maximumSize) },
        enabled: queues.map { _ in false }))
    for (index, queue) in queues.enumerated() {
      queue.connect(
        VirtQueue.Connection(
          space: space, interrupt: { interrupt(.queue(index)) },
          broken: { [weak self] error in self?.needsReset("queue \(index): \(error)") }))
    }
    device.attach(
      VirtioDriverLink(
        configurationChanged: { [weak self] in self?.configurationChanged() },
        needsReset: { [weak self] reason in self?.needsReset(reason) }))
  }

  private func needsReset(_ reason: String) {
    GuestErrorTrace.report(device.name, reason)
    let old = statusBits.bitwiseOr(VirtioStatus.needsReset, ordering: .acquiringAndReleasing).oldValue
    if old & VirtioStatus.driverOK != 0, old & VirtioStatus.needsReset == 0 { configurationChanged() }
  }

  private func configurationChanged() {
    generation.wrappingAdd(1, ordering: .acquiringAndReleasing)
    if statusBits.load(ordering: .acquiring) & VirtioStatus.driverOK != 0 { interrupt(.configuration) }
  }

  // MARK: Status and features

  var status: UInt8 { statusBits.load(ordering: .acquiring) }
  var configurationGeneration: UInt8 { generation.load(ordering: .acquiring) }

  /// The driver's write of the status field; 0 resets. Bits cannot be taken back otherwise.
  func writeStatus(_ value: UInt8, didReset: () -> Void) {
    control.withLock { control in
      guard value != 0 else {
        resetLocked(&control)
        didReset()
        return
      }
      var new = status | (value & ~VirtioStatus.needsReset)
      if new & ~status & VirtioStatus.featuresOK != 0 {
        if acceptable(control.driverFeatures) {
          device.negotiated(features: control.driverFeatures)
        } else {
          GuestErrorTrace.report(
            device.name, "features 0x\(String(control.driverFeatures, radix: 16)) are not acceptable")
          new &= ~VirtioStatus.featuresOK
        }
      }
      if new & VirtioStatus.featuresOK == 0 { new &= ~VirtioStatus.driverOK }
      statusBits.bitwiseOr(new, ordering: .acquiringAndReleasing)
      if new & VirtioStatus.driverOK != 0, !control.isActive {
        control.isActive = true
        device.activate(features: control.driverFeatures)
      }
    }
  }

  private func acceptable(_ features: UInt64) -> Bool {
    // VERSION_1 is not insisted on: small systems (xv6) look at the low feature word only, and the layout is the
    // modern one either way, as in QEMU.
    features & ~offeredFeatures == 0
  }

  func reset(didReset: () -> Void = {}) { writeStatus(0, didReset: didReset) }

  private func resetLocked(_ control: inout Control) {
    // Queues first: no request can start any more; then the device waits for those under way.
    statusBits.store(0, ordering: .sequentiallyConsistent)
    for queue in queues { queue.reset() }
    device.reset()
    control.driverFeatures = 0
    control.isActive = false
    for index in queues.indices {
      control.setups[index] = VirtQueueSetup(size: queues[index].maximumSize)
      control.enabled[index] = false
    }
  }

  func deviceFeatures(word: UInt32) -> UInt32 {
    word < 2 ? UInt32(truncatingIfNeeded: offeredFeatures >> (32 * UInt64(word))) : 0
  }
  func driverFeatures(word: UInt32) -> UInt32 {
    word < 2 ? UInt32(truncatingIfNeeded: control.withLock { $0.driverFeatures } >> (32 * UInt64(word))) : 0
  }
  func writeDriverFeatures(word: UInt32, _ value: UInt32) {
    guard word < 2 else { return }
    control.withLock { control in
      guard status & VirtioStatus.featuresOK == 0 else {
        GuestErrorTrace.report(device.name, "features written after FEATURES_OK")
        return
      }
      let shift = 32 * UInt64(word)
      control.driverFeatures = control.driverFeatures & ~(0xffff_ffff << shift) | UInt64(value) << shift
    }
  }

  // MARK: Queues

  func setup(_ index: Int) -> VirtQueueSetup? {
    guard queues.indices.contains(index) else { return nil }
    return control.withLock { $0.setups[index] }
  }
  /// Changes a queue's setup; ignored while the queue is enabled.
  func modifySetup(_ index: Int, _ body: (inout VirtQueueSetup) -> Void) {
    guard queues.indices.contains(index) else { return }
    control.withLock { control in
      guard !control.enabled[index] else {
        GuestErrorTrace.report(device.name, "set-up of queue \(index) while it is enabled")
        return
      }
      body(&control.setups[index])
    }
  }
  func isEnabled(_ index: Int) -> Bool {
    queues.indices.contains(index) && control.withLock { $0.enabled[index] }
  }

  func enable(_ index: Int) {
    guard queues.indices.contains(index) else { return }
    control.withLock { control in
      guard !control.enabled[index] else { return }
      guard status & VirtioStatus.featuresOK != 0 else {
        GuestErrorTrace.report(device.name, "queue \(index) enabled before FEATURES_OK")
        return
      }
      control.enabled[index] = true
      queues[index].enable(
        control.setups[index], packed: control.driverFeatures & VirtioFeature.packedRing != 0,
        eventIndex: control.driverFeatures & VirtioFeature.eventIndex != 0)
    }
  }

  /// Stops one queue [VIRTIO 1.3 §2.6.1] (or, in MMIO, QueueReady = 0) and forgets its set-up.
  func disable(_ index: Int) {
    guard queues.indices.contains(index) else { return }
    control.withLock { control in
      guard control.enabled[index] else { return }
      queues[index].reset()
      if control.isActive { device.resetQueue(index) }
      control.setups[index] = VirtQueueSetup(size: queues[index].maximumSize)
      control.enabled[index] = false
    }
  }

  func notify(_ index: Int) {
    let status = status
    guard queues.indices.contains(index) else {
      GuestErrorTrace.report(device.name, "notification of queue \(index), which does not exist")
      return
    }
    guard status & VirtioStatus.driverOK != 0, status & (VirtioStatus.needsReset | VirtioStatus.failed) == 0
    else { return }
    device.notify(queue: index)
  }
}
