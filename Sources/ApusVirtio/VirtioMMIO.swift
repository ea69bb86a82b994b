import ApusDevice
import ApusMemory
import Synchronization

/// The memory-mapped virtio transport, version 2 [VIRTIO 1.3 §4.2], with or without a device behind it.
///
/// Any vCPU's thread. An empty slot shows device id 0, which drivers skip.
/// Not modelled: the legacy interface (version 1), shared memory regions.
public final class VirtioMMIO: MMIODevice {
  /// Size of the register window, in bytes.
  public static let byteCount: UInt64 = 0x1000

  private enum Register {
    static let magic = 0x000, version = 0x004, deviceID = 0x008, vendorID = 0x00c
    static let deviceFeatures = 0x010, deviceFeaturesSelect = 0x014
    static let driverFeatures = 0x020, driverFeaturesSelect = 0x024
    static let queueSelect = 0x030, queueSizeMaximum = 0x034, queueSize = 0x038, queueReady = 0x044
    static let queueNotify = 0x050, interruptStatus = 0x060, interruptAcknowledge = 0x064, status = 0x070
    static let descriptorLow = 0x080, descriptorHigh = 0x084, driverLow = 0x090, driverHigh = 0x094
    static let deviceLow = 0x0a0, deviceHigh = 0x0a4
    static let sharedMemoryLengthLow = 0x0b0, sharedMemoryBaseHigh = 0x0bc
    static let queueReset = 0x0c0, configurationGeneration = 0x0fc, configuration = 0x100
  }

  private struct Selectors {
    var deviceFeatures: UInt32 = 0
    var driverFeatures: UInt32 = 0
    var queue = 0
  }
  /// The interrupt status; its lock is held while the line changes, so that level and status never disagree.
  private final class Interrupt: Sendable {
    let line: InterruptLine
    let pending = Mutex<UInt32>(0)
    init(_ line: InterruptLine) { self.line = line }
    func raise(_ bits: UInt32) {
      pending.withLock {
        $0 |= bits
        line.set(true)
      }
    }
    func acknowledge(_ bits: UInt32) {
      pending.withLock {
        $0 &= ~bits
        if $0 == 0 { line.set(false) }
      }
    }
  }

  private let selectors = Mutex(Selectors())
  private let interrupt: Interrupt
  private let transport: VirtioTransportState?

  /// - Parameters:
  ///   - device: `nil` for an empty slot.
  ///   - line: raised while the interrupt status is not 0.
  public init(
    device: (any VirtioDevice)?, space: AddressSpace, line: InterruptLine,
    options: VirtioRingOptions = .init()
  ) {
    let interrupt = Interrupt(line)
    self.interrupt = interrupt
    transport = device.map {
      VirtioTransportState(device: $0, space: space, options: options) { reason in
        interrupt.raise(reason == .configuration ? 2 : 1)
      }
    }
  }

  /// The device behind the registers.
  public var device: (any VirtioDevice)? { transport?.device }

  /// Back to the power-on state (a machine reset).
  public func reset() {
    selectors.withLock { $0 = Selectors() }
    transport?.reset { interrupt.acknowledge(.max) }
    interrupt.acknowledge(.max)
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let offset = Int(offset)
    if offset >= Register.configuration {
      return transport?.device.readConfiguration(
        offset: offset - Register.configuration, byteCount: byteCount) ?? 0
    }
    guard byteCount == 4, offset % 4 == 0 else {
      GuestErrorTrace.report(name, "read of \(byteCount) bytes at register 0x\(String(offset, radix: 16))")
      return 0
    }
    return UInt64(readRegister(offset))
  }

  private var name: String { transport?.device.name ?? "virtio-mmio" }

  private func readRegister(_ offset: Int) -> UInt32 {
    switch offset {
    case Register.magic: return 0x7472_6976  // "virt"
    case Register.version: return 2
    case Register.deviceID: return UInt32(transport?.device.deviceID ?? 0)
    case Register.vendorID: return 0x554d_4551  // what QEMU shows
    default: break
    }
    guard let transport else { return 0 }
    let selected = selectors.withLock { $0 }
    switch offset {
    case Register.deviceFeatures: return transport.deviceFeatures(word: selected.deviceFeatures)
    case Register.queueSizeMaximum:
      return transport.queues.indices.contains(selected.queue)
        ? UInt32(transport.queues[selected.queue].maximumSize) : 0
    case Register.queueReady: return transport.isEnabled(selected.queue) ? 1 : 0
    case Register.queueReset: return 0  // a reset is over before the write returns
    case Register.interruptStatus: return interrupt.pending.withLock { $0 }
    case Register.status: return UInt32(transport.status)
    case Register.sharedMemoryLengthLow...Register.sharedMemoryBaseHigh: return .max  // no shared memory
    case Register.configurationGeneration: return UInt32(transport.configurationGeneration)
    default:
      GuestErrorTrace.report(name, "read of write-only or unknown register 0x\(String(offset, radix: 16))")
      return 0
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard let transport else { return }
    let offset = Int(offset)
    if offset >= Register.configuration {
      transport.device.writeConfiguration(
        offset: offset - Register.configuration, byteCount: byteCount, value: value)
      return
    }
    guard byteCount == 4, offset % 4 == 0 else {
      GuestErrorTrace.report(name, "write of \(byteCount) bytes at register 0x\(String(offset, radix: 16))")
      return
    }
    let value = UInt32(truncatingIfNeeded: value)
    if offset == Register.queueNotify { return transport.notify(Int(value & 0xffff)) }
    writeRegister(transport, offset, value)
  }

  private func writeRegister(_ transport: VirtioTransportState, _ offset: Int, _ value: UInt32) {
    let selected = selectors.withLock { $0 }
    switch offset {
    case Register.deviceFeaturesSelect: selectors.withLock { $0.deviceFeatures = value }
    case Register.driverFeatures: transport.writeDriverFeatures(word: selected.driverFeatures, value)
    case Register.driverFeaturesSelect: selectors.withLock { $0.driverFeatures = value }
    case Register.queueSelect: selectors.withLock { $0.queue = Int(value) }
    case Register.queueSize:
      transport.modifySetup(selected.queue) { $0.size = UInt16(truncatingIfNeeded: min(value, 0xffff)) }
    case Register.queueReady:
      if value & 1 != 0 { transport.enable(selected.queue) } else { transport.disable(selected.queue) }
    case Register.queueReset: if value & 1 != 0 { transport.disable(selected.queue) }
    case Register.interruptAcknowledge: interrupt.acknowledge(value)
    case Register.status:
      transport.writeStatus(UInt8(truncatingIfNeeded: value)) { interrupt.acknowledge(.max) }
    case Register.descriptorLow: transport.modifySetup(selected.queue) { $0.descriptorArea.setLow(value) }
    case Register.descriptorHigh: transport.modifySetup(selected.queue) { $0.descriptorArea.setHigh(value) }
    case Register.driverLow: transport.modifySetup(selected.queue) { $0.driverArea.setLow(value) }
    case Register.driverHigh: transport.modifySetup(selected.queue) { $0.driverArea.setHigh(value) }
    case Register.deviceLow: transport.modifySetup(selected.queue) { $0.deviceArea.setLow(value) }
    case Register.deviceHigh: transport.modifySetup(selected.queue) { $0.deviceArea.setHigh(value) }
    case 0x0ac: break  // shared memory selector
    default:
      GuestErrorTrace.report(name, "write of read-only or unknown register 0x\(String(offset, radix: 16))")
    }
  }
}

extension UInt64 {
  mutating func setLow(_ value: UInt32) { self = self & 0xffff_ffff_0000_0000 | UInt64(value) }
  mutating func setHigh(_ value: UInt32) { self = self & 0xffff_ffff | UInt64(value) << 32 }
}
