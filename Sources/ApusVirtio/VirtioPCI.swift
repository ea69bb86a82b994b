import ApusDevice
import ApusMemory
import ApusPCI
import Synchronization

/// The virtio transport over PCI, modern interface [VIRTIO 1.3 §4.1].
///
/// BAR 4 holds the four structures, BAR 1 the MSI-X table (only where the machine has an MSI controller):
///
///     0x0000 common configuration   0x1000 ISR   0x2000 device configuration   0x3000 notifications, 4 bytes a queue
///
/// Any vCPU's thread. Identification is QEMU's with `disable-legacy=on`: vendor 1af4, device 1040 + type, revision 1.
/// Not modelled: the legacy interface, shared memory capabilities, the administration queue.
public final class VirtioPCI: PCIDevice {
  private enum Layout {
    static let common: UInt64 = 0x0000, isr: UInt64 = 0x1000, device: UInt64 = 0x2000, notify: UInt64 = 0x3000
    static let structureByteCount: UInt64 = 0x1000
    static let msixBAR = 1, modernBAR = 4
    static let notifyMultiplier: UInt32 = 4
  }
  private enum Common {
    static let deviceFeatureSelect = 0x00, deviceFeature = 0x04, driverFeatureSelect = 0x08,
      driverFeature = 0x0c
    static let configurationVector = 0x10, queueCount = 0x12, status = 0x14, generation = 0x15
    static let queueSelect = 0x16, queueSize = 0x18, queueVector = 0x1a, queueEnable = 0x1c,
      queueNotifyOffset = 0x1e
    static let descriptorLow = 0x20, descriptorHigh = 0x24, driverLow = 0x28, driverHigh = 0x2c
    static let deviceLow = 0x30, deviceHigh = 0x34, queueNotifyData = 0x38, queueReset = 0x3a
  }
  /// "No interrupt" [§4.1.5.1.2].
  private static let noVector: UInt16 = 0xffff

  private struct Selectors {
    var deviceFeatures: UInt32 = 0
    var driverFeatures: UInt32 = 0
    var queue = 0
  }
  /// Vectors and interrupt status; the queues' interrupts come here from any thread.
  private final class Interrupts: Sendable {
    struct State {
      var status: UInt8 = 0
      var configurationVector = VirtioPCI.noVector
      var queueVectors: [UInt16]
    }
    let function: PCIFunction
    let state: Mutex<State>
    init(_ function: PCIFunction, _ queueCount: Int) {
      self.function = function
      state = Mutex(State(queueVectors: [UInt16](repeating: VirtioPCI.noVector, count: queueCount)))
    }

    func raise(_ reason: VirtioInterrupt) {
      if function.usesMSIX {
        let vector = state.withLock { state in
          switch reason {
          case .queue(let index): return state.queueVectors[index]
          case .configuration: return state.configurationVector
          }
        }
        if vector != VirtioPCI.noVector { function.signal(vector: Int(vector)) }
        return
      }
      // The lock is held while the line changes, so that a concurrent read of the status cannot cross it.
      state.withLock { state in
        state.status |= reason == .configuration ? 2 : 1
        function.setInterrupt(true)
      }
    }
    /// Reading the status clears it and drops the line.
    func takeStatus() -> UInt8 {
      state.withLock { state in
        let status = state.status
        state.status = 0
        function.setInterrupt(false)
        return status
      }
    }
    func clear() {
      state.withLock { state in
        state = State(queueVectors: state.queueVectors.map { _ in VirtioPCI.noVector })
        function.setInterrupt(false)
      }
    }
  }

  /// The function to attach to a host.
  public let function: PCIFunction
  public var device: any VirtioDevice { transport.device }
  private let transport: VirtioTransportState
  private let interrupts: Interrupts
  private let selectors = Mutex(Selectors())
  // Offset of the capability through which configuration accesses reach the BAR [§4.1.4.9].
  private let windowCapability: Int

  /// - Parameters:
  ///   - vectorCount: MSI-X vectors; 0 or a host without messages: INTx only. `nil`: one a queue and one more.
  public init(
    device: any VirtioDevice, space: AddressSpace, host: PCIHost, options: VirtioRingOptions = .init(),
    vectorCount: Int? = nil, isMultifunction: Bool = false
  ) {
    let vectors = host.hasMessages ? min(vectorCount ?? device.queues.count + 1, 2048) : 0
    var bars = [
      PCIBAR(Layout.modernBAR, .memory64(isPrefetchable: true), byteCount: 4 * Layout.structureByteCount)
    ]
    let pendingOffset = max(0x800, UInt64(vectors * 16 + 7) & ~7)
    if vectors > 0 {
      var byteCount: UInt64 = 0x1000
      while byteCount < pendingOffset + UInt64((vectors + 63) / 64) * 8 { byteCount *= 2 }
      bars.append(PCIBAR(Layout.msixBAR, .memory32, byteCount: byteCount))
    }
    let identity = PCIIdentity(
      vendorID: 0x1af4, deviceID: 0x1040 + device.deviceID, revision: 1,
      classCode: Self.classCode(device.deviceID), subsystemVendorID: 0x1af4, subsystemID: 0x1100)
    let function = PCIFunction(
      name: device.name, identity: identity, bars: bars, interruptPin: 1, isMultifunction: isMultifunction)
    if vectors > 0 {
      function.addMSIX(vectorCount: vectors, bar: Layout.msixBAR, pendingOffset: pendingOffset)
    }
    Self.addStructure(function, type: 1, Layout.common)
    Self.addStructure(function, type: 3, Layout.isr)
    Self.addStructure(function, type: 4, Layout.device)
    Self.addStructure(function, type: 2, Layout.notify, extra: [UInt8(Layout.notifyMultiplier), 0, 0, 0])
    // bar, offset, length and data are the driver's.
    let windowBody = [UInt8(20), 5] + [UInt8](repeating: 0, count: 16)
    windowCapability = function.addCapability(
      id: 9, body: windowBody,
      writableMask: [0, 0, 0xff, 0, 0, 0] + [UInt8](repeating: 0xff, count: 12))
    let interrupts = Interrupts(function, device.queues.count)
    (self.function, self.interrupts) = (function, interrupts)
    transport = VirtioTransportState(device: device, space: space, options: options) { interrupts.raise($0) }
    function.setDevice(self)
  }

  private static func addStructure(
    _ function: PCIFunction, type: UInt8, _ offset: UInt64, extra: [UInt8] = []
  ) {
    var body = [UInt8(16 + extra.count), type, UInt8(Layout.modernBAR), 0, 0, 0]
    for value in [UInt32(offset), UInt32(Layout.structureByteCount)] {
      for shift in 0..<4 { body.append(UInt8(value >> UInt32(8 * shift) & 0xff)) }
    }
    function.addCapability(id: 9, body: body + extra)
  }

  private static func classCode(_ deviceID: UInt16) -> UInt32 {
    switch deviceID {
    case VirtioDeviceID.network: return 0x020000
    case VirtioDeviceID.block: return 0x010000
    case VirtioDeviceID.console: return 0x078000
    default: return 0x00ff00
    }
  }

  public func reset() {
    selectors.withLock { $0 = Selectors() }
    transport.reset { interrupts.clear() }
  }

  // MARK: BAR accesses

  public func readBAR(_ index: Int, offset: UInt64, byteCount: Int) -> UInt64 {
    guard index == Layout.modernBAR else { return 0 }
    switch offset & ~(Layout.structureByteCount - 1) {
    case Layout.common:
      if byteCount == 8 {
        return UInt64(readCommon(Int(offset), 4)) | UInt64(readCommon(Int(offset) + 4, 4)) << 32
      }
      return UInt64(readCommon(Int(offset), byteCount))
    case Layout.isr: return offset == Layout.isr ? UInt64(interrupts.takeStatus()) : 0
    case Layout.device:
      return transport.device.readConfiguration(offset: Int(offset - Layout.device), byteCount: byteCount)
    default: return 0
    }
  }

  public func writeBAR(_ index: Int, offset: UInt64, byteCount: Int, value: UInt64) {
    guard index == Layout.modernBAR else { return }
    switch offset & ~(Layout.structureByteCount - 1) {
    case Layout.common:
      writeCommon(Int(offset), byteCount == 8 ? 4 : byteCount, UInt32(truncatingIfNeeded: value))
      if byteCount == 8 { writeCommon(Int(offset) + 4, 4, UInt32(value >> 32)) }
    case Layout.device:
      transport.device.writeConfiguration(
        offset: Int(offset - Layout.device), byteCount: byteCount, value: value)
    case Layout.notify:
      guard function.isBusMaster else {
        GuestErrorTrace.report(transport.device.name, "a notification while bus mastering is off")
        return
      }
      transport.notify(Int((offset - Layout.notify) / UInt64(Layout.notifyMultiplier)))
    default: break
    }
  }

  private func readCommon(_ offset: Int, _ byteCount: Int) -> UInt32 {
    let selected = selectors.withLock { $0 }
    let setup = transport.setup(selected.queue)
    // Fields are read at their own width; a 64-bit one as two words.
    switch offset {
    case Common.deviceFeatureSelect: return selected.deviceFeatures
    case Common.deviceFeature: return transport.deviceFeatures(word: selected.deviceFeatures)
    case Common.driverFeatureSelect: return selected.driverFeatures
    case Common.driverFeature: return transport.driverFeatures(word: selected.driverFeatures)
    case Common.configurationVector: return UInt32(interrupts.state.withLock { $0.configurationVector })
    case Common.queueCount: return UInt32(transport.queues.count)
    case Common.status: return UInt32(transport.status)
    case Common.generation: return UInt32(transport.configurationGeneration)
    case Common.queueSelect: return UInt32(selected.queue)
    case Common.queueSize: return UInt32(setup?.size ?? 0)
    case Common.queueVector:
      return UInt32(
        interrupts.state.withLock {
          $0.queueVectors.indices.contains(selected.queue) ? $0.queueVectors[selected.queue] : Self.noVector
        })
    case Common.queueEnable: return transport.isEnabled(selected.queue) ? 1 : 0
    case Common.queueNotifyOffset, Common.queueNotifyData: return setup == nil ? 0 : UInt32(selected.queue)
    case Common.descriptorLow: return UInt32(truncatingIfNeeded: setup?.descriptorArea ?? 0)
    case Common.descriptorHigh: return UInt32((setup?.descriptorArea ?? 0) >> 32)
    case Common.driverLow: return UInt32(truncatingIfNeeded: setup?.driverArea ?? 0)
    case Common.driverHigh: return UInt32((setup?.driverArea ?? 0) >> 32)
    case Common.deviceLow: return UInt32(truncatingIfNeeded: setup?.deviceArea ?? 0)
    case Common.deviceHigh: return UInt32((setup?.deviceArea ?? 0) >> 32)
    case Common.queueReset: return 0  // over before the write returns
    default: return 0
    }
  }

  private func writeCommon(_ offset: Int, _ byteCount: Int, _ value: UInt32) {
    let selected = selectors.withLock { $0 }
    let queue = selected.queue
    switch offset {
    case Common.deviceFeatureSelect: selectors.withLock { $0.deviceFeatures = value }
    case Common.driverFeatureSelect: selectors.withLock { $0.driverFeatures = value }
    case Common.driverFeature: transport.writeDriverFeatures(word: selected.driverFeatures, value)
    case Common.configurationVector:
      let vector = checked(value)
      interrupts.state.withLock { $0.configurationVector = vector }
    case Common.status:
      transport.writeStatus(UInt8(truncatingIfNeeded: value)) { interrupts.clear() }
    case Common.queueSelect: selectors.withLock { $0.queue = Int(value & 0xffff) }
    case Common.queueSize: transport.modifySetup(queue) { $0.size = UInt16(truncatingIfNeeded: value) }
    case Common.queueVector:
      let vector = checked(value)
      interrupts.state.withLock {
        if $0.queueVectors.indices.contains(queue) { $0.queueVectors[queue] = vector }
      }
    // Only 1 may be written; disabling takes a queue reset.
    case Common.queueEnable: if value & 0xffff == 1 { transport.enable(queue) }
    case Common.descriptorLow: transport.modifySetup(queue) { $0.descriptorArea.setLow(value) }
    case Common.descriptorHigh: transport.modifySetup(queue) { $0.descriptorArea.setHigh(value) }
    case Common.driverLow: transport.modifySetup(queue) { $0.driverArea.setLow(value) }
    case Common.driverHigh: transport.modifySetup(queue) { $0.driverArea.setHigh(value) }
    case Common.deviceLow: transport.modifySetup(queue) { $0.deviceArea.setLow(value) }
    case Common.deviceHigh: transport.modifySetup(queue) { $0.deviceArea.setHigh(value) }
    case Common.queueReset: if value & 0xffff == 1 { transport.disable(queue) }
    default:
      GuestErrorTrace.report(
        transport.device.name, "write of \(byteCount) bytes at common configuration offset \(offset)")
    }
  }

  /// A vector that exists, or none: the driver reads back which [§4.1.5.1.2].
  private func checked(_ value: UInt32) -> UInt16 {
    value & 0xffff < function.vectorCount ? UInt16(value & 0xffff) : Self.noVector
  }

  // MARK: The configuration window [§4.1.4.9]

  private func windowTarget() -> (offset: UInt64, byteCount: Int)? {
    let bar = function.storedConfiguration(windowCapability + 4, 1)
    let offset = function.storedConfiguration(windowCapability + 8, 4)
    let length = function.storedConfiguration(windowCapability + 12, 4)
    guard bar == UInt32(Layout.modernBAR), length == 1 || length == 2 || length == 4, offset % length == 0,
      UInt64(offset) + UInt64(length) <= 4 * Layout.structureByteCount
    else { return nil }
    return (UInt64(offset), Int(length))
  }
  public func overrideConfigurationRead(offset: Int, byteCount: Int) -> UInt32? {
    guard offset == windowCapability + 16, let target = windowTarget() else { return nil }
    return UInt32(
      truncatingIfNeeded: readBAR(Layout.modernBAR, offset: target.offset, byteCount: target.byteCount))
  }
  public func configurationWritten(offset: Int, byteCount: Int, value: UInt32) {
    guard offset == windowCapability + 16, let target = windowTarget() else { return }
    writeBAR(Layout.modernBAR, offset: target.offset, byteCount: target.byteCount, value: UInt64(value))
  }
}
