import ApusDevice
import ApusMemory
import Synchronization

/// A function's place on a bus.
public struct PCIAddress: Hashable, Sendable, CustomStringConvertible {
  public var bus: UInt8
  /// 0...31.
  public var slot: UInt8
  /// 0...7.
  public var function: UInt8
  public init(bus: UInt8 = 0, slot: UInt8, function: UInt8 = 0) {
    (self.bus, self.slot, self.function) = (bus, slot, function)
  }
  /// How the function names itself on the bus [PCIe 5.0 §2.2.4.2].
  public var requesterID: UInt16 { UInt16(bus) << 8 | UInt16(slot) << 3 | UInt16(function) }
  /// Parses `addr=`: hexadecimal slot and optional function, "5", "1f.2".
  public init?(_ text: String) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard (1...2).contains(parts.count) else { return nil }
    let digits = parts[0].hasPrefix("0x") ? parts[0].dropFirst(2) : parts[0]
    guard let slot = UInt8(digits, radix: 16), slot < 32 else { return nil }
    var function: UInt8 = 0
    if parts.count == 2 {
      guard let number = UInt8(parts[1]), number < 8 else { return nil }
      function = number
    }
    self.init(slot: slot, function: function)
  }
  public var description: String {
    func hexadecimal(_ value: UInt8) -> String { (value < 16 ? "0" : "") + String(value, radix: 16) }
    return "\(hexadecimal(bus)):\(hexadecimal(slot)).\(function)"
  }
}

/// Why a function could not be attached.
public struct PCIError: Error, Equatable, CustomStringConvertible {
  public var description: String
  public init(_ description: String) { self.description = description }
}

/// Where a PCI host's windows lie in the guest's address space, in bytes; memory windows map 1:1 onto the bus.
public struct PCIHostLayout: Sendable {
  public var ecamBase: UInt64
  public var ecamByteCount: UInt64
  public var memory32Base: UInt64
  public var memory32ByteCount: UInt64
  public var memory64Base: UInt64
  public var memory64ByteCount: UInt64
  /// I/O port 0 is at its start.
  public var ioBase: UInt64
  public var ioByteCount: UInt64
  /// The RISC-V `virt` board's.
  public static let riscvVirt = PCIHostLayout(
    ecamBase: 0x3000_0000, ecamByteCount: 0x1000_0000, memory32Base: 0x4000_0000,
    memory32ByteCount: 0x4000_0000,
    memory64Base: 0x4_0000_0000, memory64ByteCount: 0x4_0000_0000, ioBase: 0x300_0000, ioByteCount: 0x1_0000)
  public init(
    ecamBase: UInt64, ecamByteCount: UInt64, memory32Base: UInt64, memory32ByteCount: UInt64,
    memory64Base: UInt64,
    memory64ByteCount: UInt64, ioBase: UInt64, ioByteCount: UInt64
  ) {
    (self.ecamBase, self.ecamByteCount) = (ecamBase, ecamByteCount)
    (self.memory32Base, self.memory32ByteCount) = (memory32Base, memory32ByteCount)
    (self.memory64Base, self.memory64ByteCount) = (memory64Base, memory64ByteCount)
    (self.ioBase, self.ioByteCount) = (ioBase, ioByteCount)
  }
}

/// A PCI Express root complex with an ECAM window (the generic host that firmware and Linux know), bus 0 only.
///
/// Any thread. The windows are mapped once; BARs come and go inside them, so that no BAR can hide a platform device.
/// Accesses to nothing read as all ones. Not modelled: bridges and root ports, ACS, hot-plug.
public final class PCIHost: Sendable {
  private struct Mapping {
    var isIO: Bool
    var address: UInt64
    var byteCount: UInt64
    var bar: Int
    var function: PCIFunction
  }
  private struct State {
    var functions: [PCIAddress: PCIFunction] = [:]
    var mappings: [Mapping] = []
    // Which functions pull each of the four lines.
    var pulls: [Set<PCIAddress>] = [[], [], [], []]
  }
  public let layout: PCIHostLayout
  private let lines: [InterruptLine]
  private let message: (@Sendable (UInt64, UInt32, UInt16) -> Void)?
  private let state = Mutex(State())

  /// - Parameters:
  ///   - lines: four; the pins of slot s use line (pin + s) mod 4.
  ///   - message: delivers an MSI write of the function with this requester ID; `nil` if the machine has no MSI controller, so that functions offer no MSI-X.
  public init(
    layout: PCIHostLayout = .riscvVirt, lines: [InterruptLine],
    message: (@Sendable (_ address: UInt64, _ data: UInt32, _ requester: UInt16) -> Void)?
  ) {
    precondition(lines.count == 4, "a PCI host has four interrupt lines")
    (self.layout, self.lines, self.message) = (layout, lines, message)
    let bridge = PCIFunction(
      name: "host bridge",
      identity: PCIIdentity(
        vendorID: 0x1b36, deviceID: 0x0008, classCode: 0x060000, subsystemVendorID: 0x1af4,
        subsystemID: 0x1100))
    install(bridge, at: PCIAddress(slot: 0))
  }

  /// Whether functions should offer MSI-X.
  public var hasMessages: Bool { message != nil }

  /// Maps the four windows. False if one overlaps something.
  @discardableResult
  public func map(into space: AddressSpace) -> Bool {
    let windows: [(String, UInt64, UInt64, Window.Kind)] = [
      ("pcie-ecam", layout.ecamBase, layout.ecamByteCount, .configuration),
      ("pcie-mmio", layout.memory32Base, layout.memory32ByteCount, .memory(layout.memory32Base)),
      ("pcie-mmio-high", layout.memory64Base, layout.memory64ByteCount, .memory(layout.memory64Base)),
      ("pcie-pio", layout.ioBase, layout.ioByteCount, .io),
    ]
    return windows.allSatisfy { name, base, byteCount, kind in
      space.map(
        MMIORegion(
          name: name, base: GuestPhysicalAddress(base), byteCount: byteCount,
          device: Window(host: self, kind: kind)))
    }
  }

  // MARK: Functions

  /// Attaches a function at `address`, or in the lowest free slot.
  /// - Returns: where it is.
  @discardableResult
  public func attach(_ function: PCIFunction, at address: PCIAddress? = nil) throws(PCIError) -> PCIAddress {
    let result: Result<PCIAddress, PCIError> = state.withLock { state in
      guard let address else {
        for slot in 0..<32 as Range<UInt8> {
          if !state.functions.keys.contains(where: { $0.slot == slot }) {
            return .success(PCIAddress(slot: slot))
          }
        }
        return .failure(PCIError("PCI bus 0 has no free slot for '\(function.name)'"))
      }
      if let other = state.functions[address] {
        return .failure(
          PCIError("PCI address \(address) for '\(function.name)' is taken by '\(other.name)'"))
      }
      if address.function != 0 {
        guard let first = state.functions[PCIAddress(slot: address.slot)], first.isMultifunction else {
          return .failure(
            PCIError(
              "PCI address \(address) for '\(function.name)' needs a function 0 with multifunction=on"))
        }
      }
      return .success(address)
    }
    let place = try result.get()
    install(function, at: place)
    return place
  }

  private func install(_ function: PCIFunction, at address: PCIAddress) {
    let message = message ?? { _, _, _ in }
    function.connect(
      PCIFunction.Connection(
        setINTx: { [weak self] pin, level in self?.setINTx(address, pin, level) },
        sendMessage: { message($0, $1, address.requesterID) },
        mappingsChanged: { [weak self, weak function] in
          if let function { self?.updateMappings(function) }
        }))
    state.withLock { $0.functions[address] = function }
    updateMappings(function)
  }

  /// All functions with their places, in bus order.
  public var functions: [(address: PCIAddress, function: PCIFunction)] {
    state.withLock { $0.functions }.map { ($0.key, $0.value) }.sorted {
      ($0.address.slot, $0.address.function) < ($1.address.slot, $1.address.function)
    }
  }

  public func reset() { for (_, function) in functions { function.reset() } }

  private func updateMappings(_ function: PCIFunction) {
    state.withLock { state in
      state.mappings.removeAll { $0.function === function }
      for (bar, address) in function.decodedBARs() {
        state.mappings.append(
          Mapping(
            isIO: bar.kind == .io, address: address, byteCount: bar.byteCount, bar: bar.index,
            function: function))
      }
    }
  }

  private func setINTx(_ address: PCIAddress, _ pin: Int, _ level: Bool) {
    let index = (pin + Int(address.slot)) % 4
    // The lock is held while the line changes, so that two functions cannot cross.
    state.withLock { state in
      if level { state.pulls[index].insert(address) } else { state.pulls[index].remove(address) }
      lines[index].set(!state.pulls[index].isEmpty)
    }
  }

  // MARK: Accesses

  /// A configuration read by its offset in the ECAM window [PCIe 5.0 §7.2.2].
  public func readECAM(_ offset: UInt64, _ byteCount: Int) -> UInt64 {
    guard byteCount <= 4, let function = function(at: offset) else {
      return .max >> UInt64(64 - 8 * min(byteCount, 8))
    }
    return UInt64(function.readConfiguration(Int(offset & 0xfff), byteCount))
  }
  public func writeECAM(_ offset: UInt64, _ byteCount: Int, _ value: UInt64) {
    guard byteCount <= 4, let function = function(at: offset) else { return }
    function.writeConfiguration(Int(offset & 0xfff), byteCount, UInt32(truncatingIfNeeded: value))
  }
  private func function(at offset: UInt64) -> PCIFunction? {
    guard offset < layout.ecamByteCount else { return nil }
    let address = PCIAddress(
      bus: UInt8(truncatingIfNeeded: offset >> 20), slot: UInt8(offset >> 15 & 31),
      function: UInt8(offset >> 12 & 7))
    return state.withLock { $0.functions[address] }
  }

  private func mapping(_ isIO: Bool, _ address: UInt64, _ byteCount: Int) -> (PCIFunction, Int, UInt64)? {
    state.withLock { state in
      for mapping in state.mappings where mapping.isIO == isIO {
        guard address >= mapping.address else { continue }
        let offset = address - mapping.address
        if offset < mapping.byteCount, mapping.byteCount - offset >= UInt64(byteCount) {
          return (mapping.function, mapping.bar, offset)
        }
      }
      return nil
    }
  }

  func readBus(isIO: Bool, _ address: UInt64, _ byteCount: Int) -> UInt64 {
    guard let (function, bar, offset) = mapping(isIO, address, byteCount) else {
      return .max >> UInt64(64 - 8 * min(byteCount, 8))
    }
    return function.readBAR(bar, offset, byteCount)
  }
  func writeBus(isIO: Bool, _ address: UInt64, _ byteCount: Int, _ value: UInt64) {
    guard let (function, bar, offset) = mapping(isIO, address, byteCount) else { return }
    function.writeBAR(bar, offset, byteCount, value)
  }

  /// One of the host's windows in the address space, which keeps the host alive.
  private final class Window: MMIODevice {
    enum Kind {
      case configuration
      case memory(UInt64)
      case io
    }
    let host: PCIHost
    let kind: Kind
    init(host: PCIHost, kind: Kind) { (self.host, self.kind) = (host, kind) }
    func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
      switch kind {
      case .configuration: return host.readECAM(offset, byteCount)
      case .memory(let base): return host.readBus(isIO: false, base + offset, byteCount)
      case .io: return host.readBus(isIO: true, offset, byteCount)
      }
    }
    func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
      switch kind {
      case .configuration: host.writeECAM(offset, byteCount, value)
      case .memory(let base): host.writeBus(isIO: false, base + offset, byteCount, value)
      case .io: host.writeBus(isIO: true, offset, byteCount, value)
      }
    }
  }
}
