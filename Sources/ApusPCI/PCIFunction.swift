import ApusDevice
import Synchronization

/// What a kind of device does behind its configuration space.
///
/// Called on vCPU threads without locks of the function held.
public protocol PCIDevice: AnyObject, Sendable {
  /// A load or store in a BAR; `offset` is inside it, `byteCount` 1, 2, 4 or 8.
  func readBAR(_ index: Int, offset: UInt64, byteCount: Int) -> UInt64
  func writeBAR(_ index: Int, offset: UInt64, byteCount: Int, value: UInt64)
  /// Gives a configuration read another value than the stored one; `nil` for the stored one.
  func overrideConfigurationRead(offset: Int, byteCount: Int) -> UInt32?
  /// Hears of a configuration write after it was stored.
  func configurationWritten(offset: Int, byteCount: Int, value: UInt32)
  /// The machine was reset.
  func reset()
}
extension PCIDevice {
  public func overrideConfigurationRead(offset: Int, byteCount: Int) -> UInt32? { nil }
  public func configurationWritten(offset: Int, byteCount: Int, value: UInt32) {}
  public func reset() {}
}

/// One PCI function: configuration space, BARs, INTx and MSI-X; the device behind it does the rest.
///
/// Any thread; one lock guards configuration and MSI-X table and is not held during calls out;
/// a second one orders changes of the INTx line.
/// Not modelled: MSI without X, power management states, AER, expansion ROM.
public final class PCIFunction: Sendable {
  /// How the function reaches the outside; the host installs it.
  struct Connection: Sendable {
    var setINTx: @Sendable (_ pin: Int, _ level: Bool) -> Void = { _, _ in }
    var sendMessage: @Sendable (_ address: UInt64, _ data: UInt32) -> Void = { _, _ in }
    var mappingsChanged: @Sendable () -> Void = {}
  }
  private struct Vector {
    var address: UInt64 = 0
    var data: UInt32 = 0
    var isMasked = true
    var isPending = false
  }
  private struct MSIX {
    var capability: Int
    var bar: Int
    var tableOffset: UInt64
    var pendingOffset: UInt64
    var vectors: [Vector]
  }
  private struct State {
    var space: PCIConfigurationSpace
    var connection = Connection()
    var msix: MSIX?
    var interruptLevel = false
    var shownLevel = false
  }

  public let name: String
  public let bars: [PCIBAR]
  /// 0: none; 1...4: INTA...INTD.
  public let interruptPin: UInt8
  private let state: Mutex<State>
  private let initialSpace: Mutex<PCIConfigurationSpace?>
  private let device: Mutex<(any PCIDevice)?>
  private let lineOrder = Mutex<Void>(())

  public init(
    name: String, identity: PCIIdentity, bars: [PCIBAR] = [], interruptPin: UInt8 = 0,
    isMultifunction: Bool = false
  ) {
    (self.name, self.bars, self.interruptPin) = (name, bars, interruptPin)
    state = Mutex(
      State(
        space: PCIConfigurationSpace(
          identity, bars: bars, interruptPin: interruptPin, isMultifunction: isMultifunction)))
    initialSpace = Mutex(nil)
    device = Mutex(nil)
  }

  // MARK: Building, before it is attached to a host

  /// Connects the behaviour; the function keeps it alive.
  public func setDevice(_ device: any PCIDevice) { self.device.withLock { $0 = device } }

  /// Appends a capability; returns its offset. `body` follows id and next pointer; bits in `writableMask` are
  /// software's.
  @discardableResult
  public func addCapability(id: UInt8, body: [UInt8], writableMask: [UInt8] = []) -> Int {
    state.withLock { $0.space.addCapability(id: id, body: body, writableMask: writableMask) }
  }

  /// A PCI Express capability, version 2 [PCIe 5.0 §7.5.3].
  /// - Parameter portType: 0 endpoint, 4 root port, 9 integrated endpoint.
  public func addExpressCapability(portType: UInt8) {
    var body = [UInt8](repeating: 0, count: 58)
    body[0] = 2 | portType << 4
    body[2] = 0x00  // device capabilities: 128-byte payloads
    body[3] = 0x80  // role-based error reporting
    if portType != 9 {
      body[10] = 0x11  // link capabilities: 2.5 GT/s, x1
      body[16] = 0x11  // link status
    }
    var mask = [UInt8](repeating: 0, count: 58)
    (mask[6], mask[7]) = (0xff, 0x7f)  // device control
    addCapability(id: 0x10, body: body, writableMask: mask)
  }

  /// MSI-X [PCI 3.0 §6.8.2] with its table and pending bits in a BAR that the function then answers itself there.
  public func addMSIX(vectorCount: Int, bar: Int, tableOffset: UInt64 = 0, pendingOffset: UInt64) {
    precondition((1...2048).contains(vectorCount), "MSI-X has 1 to 2048 vectors")
    let control = UInt16(vectorCount - 1)
    let table = UInt32(tableOffset) | UInt32(bar)
    let pending = UInt32(pendingOffset) | UInt32(bar)
    var body: [UInt8] = [UInt8(control & 0xff), UInt8(control >> 8)]
    for value in [table, pending] {
      for shift in 0..<4 { body.append(UInt8(value >> UInt32(8 * shift) & 0xff)) }
    }
    state.withLock { state in
      let offset = state.space.addCapability(id: 0x11, body: body, writableMask: [0, 0xc0])
      state.msix = MSIX(
        capability: offset, bar: bar, tableOffset: tableOffset, pendingOffset: pendingOffset,
        vectors: (0..<vectorCount).map { _ in Vector() })
    }
  }

  func connect(_ connection: Connection) {
    state.withLock { state in
      state.connection = connection
      initialSpace.withLock { $0 = state.space }
    }
  }

  // MARK: Configuration accesses, by the host

  public func readConfiguration(_ offset: Int, _ byteCount: Int) -> UInt32 {
    if let value = device.withLock({ $0 })?.overrideConfigurationRead(offset: offset, byteCount: byteCount) {
      return value
    }
    return state.withLock { $0.space.read(offset, byteCount) }
  }

  /// The stored bytes, whatever the device would answer.
  public func storedConfiguration(_ offset: Int, _ byteCount: Int) -> UInt32 {
    state.withLock { $0.space.read(offset, byteCount) }
  }

  public func writeConfiguration(_ offset: Int, _ byteCount: Int, _ value: UInt32) {
    let (actions, connection, remaps) = state.withLock { state in
      state.space.write(offset, byteCount, value)
      let remaps = offset < 0x28 && offset + byteCount > PCIConfigurationSpace.Register.command
      return (Self.settle(&state, interruptPin), state.connection, remaps)
    }
    perform(actions, connection)
    if remaps { connection.mappingsChanged() }
    device.withLock { $0 }?.configurationWritten(offset: offset, byteCount: byteCount, value: value)
  }

  /// Whether the function may access memory on its own.
  public var isBusMaster: Bool {
    state.withLock { $0.space.command & PCIConfigurationSpace.Command.busMaster != 0 }
  }
  /// Whether other functions may share its slot.
  public var isMultifunction: Bool {
    state.withLock { $0.space.bytes[PCIConfigurationSpace.Register.headerType] & 0x80 != 0 }
  }

  /// The BARs that decode now, with their addresses on the bus.
  func decodedBARs() -> [(bar: PCIBAR, address: UInt64)] {
    state.withLock { state in bars.compactMap { bar in state.space.address(of: bar).map { (bar, $0) } } }
  }

  public func reset() {
    let (actions, connection) = state.withLock { state in
      if let space = initialSpace.withLock({ $0 }) { state.space = space }
      state.interruptLevel = false
      if let count = state.msix?.vectors.count { state.msix?.vectors = (0..<count).map { _ in Vector() } }
      return (Self.settle(&state, interruptPin), state.connection)
    }
    perform(actions, connection)
    connection.mappingsChanged()
    device.withLock { $0 }?.reset()
  }

  // MARK: Interrupts

  private struct Actions {
    var intx: Bool?
    var messages: [(address: UInt64, data: UInt32)] = []
  }

  private static func isMSIXEnabled(_ state: State) -> Bool {
    guard let msix = state.msix else { return false }
    return state.space.bytes[msix.capability + 3] & 0x80 != 0
  }

  /// Works out what has to happen after a change: the INTx level and messages that were held back.
  private static func settle(_ state: inout State, _ pin: UInt8) -> Actions {
    var actions = Actions()
    let isEnabled = isMSIXEnabled(state)
    let status = PCIConfigurationSpace.Register.status
    var statusBits = state.space.get16(status) & ~8
    if state.interruptLevel { statusBits |= 8 }
    state.space.set16(status, statusBits)
    let isDisabled = state.space.command & PCIConfigurationSpace.Command.interruptDisable != 0
    let level = state.interruptLevel && !isDisabled && !isEnabled && pin != 0
    if level != state.shownLevel {
      state.shownLevel = level
      actions.intx = level
    }
    if isEnabled, let msix = state.msix, state.space.bytes[msix.capability + 3] & 0x40 == 0,
      state.space.command & PCIConfigurationSpace.Command.busMaster != 0
    {
      for index in msix.vectors.indices where msix.vectors[index].isPending && !msix.vectors[index].isMasked {
        state.msix?.vectors[index].isPending = false
        actions.messages.append((msix.vectors[index].address, msix.vectors[index].data))
      }
    }
    return actions
  }

  private func perform(_ actions: Actions, _ connection: Connection) {
    if actions.intx != nil {
      // Whoever comes last shows the newest level, however the threads cross.
      lineOrder.withLock { _ in
        let level = state.withLock { $0.shownLevel }
        connection.setINTx(Int(interruptPin) - 1, level)
      }
    }
    for message in actions.messages { connection.sendMessage(message.address, message.data) }
  }

  /// Sets the level that the function wants on its INTx pin.
  public func setInterrupt(_ level: Bool) {
    let (actions, connection) = state.withLock { state in
      state.interruptLevel = level
      return (Self.settle(&state, interruptPin), state.connection)
    }
    perform(actions, connection)
  }

  /// Whether software chose MSI-X over INTx.
  public var usesMSIX: Bool { state.withLock { Self.isMSIXEnabled($0) } }
  public var vectorCount: Int { state.withLock { $0.msix?.vectors.count ?? 0 } }

  /// Signals an MSI-X vector: sends its message, or holds it back while masked. Ignored unless MSI-X is enabled.
  public func signal(vector: Int) {
    let (actions, connection) = state.withLock { state in
      guard Self.isMSIXEnabled(state), let msix = state.msix, msix.vectors.indices.contains(vector) else {
        return (Actions(), state.connection)
      }
      state.msix?.vectors[vector].isPending = true
      return (Self.settle(&state, interruptPin), state.connection)
    }
    perform(actions, connection)
  }

  // MARK: BAR accesses, by the host

  func readBAR(_ index: Int, _ offset: UInt64, _ byteCount: Int) -> UInt64 {
    let own: UInt64? = state.withLock { state in
      guard let msix = state.msix, msix.bar == index else { return nil }
      return Self.readTable(msix, offset, byteCount)
    }
    if let own { return own }
    return device.withLock { $0 }?.readBAR(index, offset: offset, byteCount: byteCount) ?? 0
  }

  func writeBAR(_ index: Int, _ offset: UInt64, _ byteCount: Int, _ value: UInt64) {
    let own: (Actions, Connection)? = state.withLock { state in
      guard let msix = state.msix, msix.bar == index else { return nil }
      let end = msix.tableOffset + UInt64(msix.vectors.count) * 16
      if offset >= msix.tableOffset, offset < end {
        Self.writeTable(&state, offset - msix.tableOffset, byteCount, value)
        return (Self.settle(&state, interruptPin), state.connection)
      }
      // The pending bits are read-only.
      return Self.isInPendingBits(msix, offset) ? (Actions(), state.connection) : nil
    }
    if let (actions, connection) = own { return perform(actions, connection) }
    device.withLock { $0 }?.writeBAR(index, offset: offset, byteCount: byteCount, value: value)
  }

  private static func isInPendingBits(_ msix: MSIX, _ offset: UInt64) -> Bool {
    offset >= msix.pendingOffset && offset < msix.pendingOffset + UInt64((msix.vectors.count + 63) / 64) * 8
  }

  private static func readTable(_ msix: MSIX, _ offset: UInt64, _ byteCount: Int) -> UInt64? {
    let isTable = offset >= msix.tableOffset && offset < msix.tableOffset + UInt64(msix.vectors.count) * 16
    guard isTable || isInPendingBits(msix, offset) else { return nil }
    var value: UInt64 = 0
    for index in 0..<byteCount {
      let position = offset + UInt64(index)
      let byte =
        isTable
        ? tableByte(msix, position - msix.tableOffset) : pendingByte(msix, position - msix.pendingOffset)
      value |= UInt64(byte) << UInt64(8 * index)
    }
    return value
  }
  private static func tableByte(_ msix: MSIX, _ position: UInt64) -> UInt8 {
    let index = Int(position / 16)
    guard index < msix.vectors.count else { return 0 }
    let vector = msix.vectors[index]
    let shift = position % 4 * 8
    switch position % 16 {
    case 0..<8: return UInt8(truncatingIfNeeded: vector.address >> (position % 8 * 8))
    case 8..<12: return UInt8(truncatingIfNeeded: UInt64(vector.data) >> shift)
    default: return position % 16 == 12 && vector.isMasked ? 1 : 0
    }
  }
  private static func pendingByte(_ msix: MSIX, _ position: UInt64) -> UInt8 {
    (0..<8).reduce(UInt8(0)) { byte, bit in
      let index = Int(position) * 8 + bit
      return index < msix.vectors.count && msix.vectors[index].isPending ? byte | 1 << UInt8(bit) : byte
    }
  }
  private static func writeTable(_ state: inout State, _ offset: UInt64, _ byteCount: Int, _ value: UInt64) {
    // Only aligned accesses of 4 or 8 bytes are defined [PCI 3.0 §6.8.2].
    guard byteCount >= 4, offset % UInt64(byteCount) == 0 else { return }
    for part in 0..<(byteCount / 4) {
      let position = offset + UInt64(4 * part)
      let word = UInt32(truncatingIfNeeded: value >> UInt64(32 * part))
      let index = Int(position / 16)
      guard var vector = state.msix?.vectors[index] else { return }
      switch position % 16 {
      case 0: vector.address = vector.address & ~0xffff_ffff | UInt64(word & ~3)
      case 4: vector.address = vector.address & 0xffff_ffff | UInt64(word) << 32
      case 8: vector.data = word
      default: vector.isMasked = word & 1 != 0
      }
      state.msix?.vectors[index] = vector
    }
  }
}
