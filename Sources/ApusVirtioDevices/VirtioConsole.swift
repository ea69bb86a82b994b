import ApusDevice
import ApusHost
import ApusMemory
import ApusVirtio
import Synchronization

/// Serial ports and consoles [VIRTIO 1.3 §5.3], with several ports if the driver can.
///
/// Guest output is copied on the notifying vCPU's thread and handed to the back end, which never blocks; input arrives
/// on the back end's thread. Each port's two directions have a lock of their own, which guards ring and carry-over.
/// Not modelled: hot-plug of ports.
public final class VirtioConsole: VirtioDevice {
  private enum Feature {
    static let size: UInt64 = 1
    static let multiport: UInt64 = 2
    static let emergencyWrite: UInt64 = 4
  }
  /// Control events [§5.3.6.2].
  private enum Event {
    static let deviceReady: UInt16 = 0
    static let deviceAdd: UInt16 = 1
    static let portReady: UInt16 = 3
    static let consolePort: UInt16 = 4
    static let resize: UInt16 = 5
    static let portOpen: UInt16 = 6
    static let portName: UInt16 = 7
  }
  private struct Control {
    var isMultiport = false
    var isActive = false
    var messages: [[UInt8]] = []
    var columns: UInt16
    var rows: UInt16
  }
  private struct Output {
    var isActive = false
    /// A request that the back end took only part of.
    var pending: (chain: VirtQueueChain, offset: Int)?
  }
  private struct Input {
    var isActive = false
    var isOpen = false
  }
  /// One port's queues and state.
  private final class Port: Sendable {
    let description: VirtioConsolePort
    let receive: VirtQueue
    let transmit: VirtQueue
    let output = Mutex(Output())
    let input = Mutex(Input())
    init(_ description: VirtioConsolePort, receive: VirtQueue, transmit: VirtQueue) {
      (self.description, self.receive, self.transmit) = (description, receive, transmit)
    }
  }

  public let name: String
  public var deviceID: UInt16 { VirtioDeviceID.console }
  public let features: UInt64
  public let queues: [VirtQueue]
  private let ports: [Port?]
  private let control: Mutex<Control>
  private let link = Mutex(VirtioDriverLink())
  private static let controlReceiveQueue = 2
  private static let controlTransmitQueue = 3

  /// - Parameters:
  ///   - ports: by port number; `nil` leaves a number free. Port 0 serves drivers that know one port only.
  ///   - maximumPortCount: 1 leaves the multi-port feature out.
  ///   - size: the terminal's size, if it is known.
  public init(
    name: String = "virtio-serial", ports: [VirtioConsolePort?], maximumPortCount: Int = 31,
    size: (columns: UInt16, rows: UInt16)? = nil, hasEmergencyWrite: Bool = true
  ) {
    self.name = name
    let portCount = max(1, min(maximumPortCount, 511), ports.count)
    let isMultiport = portCount > 1
    let queues = (0..<(isMultiport ? 2 * (portCount + 1) : 2)).map { _ in VirtQueue(maximumSize: 128) }
    self.queues = queues
    self.ports = (0..<portCount).map { index in
      guard index < ports.count, let description = ports[index] else { return nil }
      let first = index == 0 ? 0 : 2 * (index + 1)
      return Port(description, receive: queues[first], transmit: queues[first + 1])
    }
    features =
      (size != nil ? Feature.size : 0) | (isMultiport ? Feature.multiport : 0)
      | (hasEmergencyWrite ? Feature.emergencyWrite : 0)
    control = Mutex(Control(columns: size?.columns ?? 0, rows: size?.rows ?? 0))
    for port in self.ports {
      guard let port else { continue }
      port.description.backend.connect(
        receive: { [weak self] bytes in self?.deliver(bytes, to: port) ?? bytes.count },
        writable: { [weak self] in self?.transmit(port) })
    }
  }

  public func attach(_ link: VirtioDriverLink) { self.link.withLock { $0 = link } }

  // MARK: Configuration space

  public func readConfiguration(offset: Int, byteCount: Int) -> UInt64 {
    var space = VirtioConfiguration()
    let (columns, rows) = control.withLock { ($0.columns, $0.rows) }
    space.append(columns)
    space.append(rows)
    space.append(UInt32(ports.count))
    space.append(UInt32(0))  // emergency write
    return space.read(offset: offset, byteCount: byteCount)
  }
  public func writeConfiguration(offset: Int, byteCount: Int, value: UInt64) {
    guard offset == 8, features & Feature.emergencyWrite != 0, let port = ports[0] else { return }
    _ = port.description.backend.write([UInt8(truncatingIfNeeded: value)])
  }

  /// The terminal has a new size.
  public func resize(columns: UInt16, rows: UInt16) {
    let isMultiport = control.withLock { control in
      (control.columns, control.rows) = (columns, rows)
      return control.isActive && control.isMultiport
    }
    if isMultiport {
      for (index, port) in ports.enumerated() where port?.description.isConsole == true {
        send(
          index, Event.resize, 0,
          [UInt8(rows & 0xff), UInt8(rows >> 8), UInt8(columns & 0xff), UInt8(columns >> 8)])
      }
      flushControl()
    }
    link.withLock { $0 }.configurationChanged()
  }

  // MARK: Life

  public func activate(features: UInt64) {
    let isMultiport = features & Feature.multiport != 0
    control.withLock {
      $0.isActive = true
      $0.isMultiport = isMultiport
    }
    for (index, port) in ports.enumerated() where isMultiport || index == 0 {
      port?.output.withLock { $0.isActive = true }
      port?.input.withLock { input in
        input.isActive = true
        input.isOpen = !isMultiport
      }
    }
  }

  public func resetQueue(_ index: Int) {
    if index == Self.controlReceiveQueue || index == Self.controlTransmitQueue, queues.count > 2 {
      control.withLock { _ in }
      return
    }
    for port in ports {
      guard let port else { continue }
      if port.transmit === queues[index] { port.output.withLock { $0.pending = nil } }
      if port.receive === queues[index] { port.input.withLock { _ in } }
    }
  }

  public func reset() {
    control.withLock { control in
      control.isActive = false
      control.isMultiport = false
      control.messages = []
    }
    for port in ports {
      port?.output.withLock { $0 = Output() }
      port?.input.withLock { $0 = Input() }
    }
  }

  public func notify(queue index: Int) {
    if queues.count > 2, index == Self.controlReceiveQueue { return flushControl() }
    if queues.count > 2, index == Self.controlTransmitQueue { return readControl() }
    let number = index < 2 ? 0 : index / 2 - 1
    guard ports.indices.contains(number), let port = ports[number] else {
      if index & 1 == 1 { drop(queues[index]) }
      return
    }
    if index & 1 == 0 { port.description.backend.resumeReceiving() } else { transmit(port) }
  }

  private func drop(_ queue: VirtQueue) {
    _ = queue.process(limit: 128) { queue.push($0, written: 0) }
    queue.signal()
  }

  // MARK: Data

  /// Hands the guest's output to the back end until one of them has had enough.
  private func transmit(_ port: Port) {
    port.output.withLock { output in
      guard output.isActive else { return }
      let queue = port.transmit
      // Each turn of the outer loop ends with notifications on, unless the back end is full.
      repeat {
        queue.disableNotification()
        while true {
          guard let (chain, offset) = output.pending ?? queue.pop().map({ ($0, 0) }) else { break }
          let bytes = chain.readable.bytes(
            offset: offset, count: min(65536, chain.readable.byteCount - offset))
          let taken = bytes.isEmpty ? 0 : port.description.backend.write(bytes)
          if offset + taken < chain.readable.byteCount {
            output.pending = (chain, offset + taken)
            if taken < bytes.count {
              queue.signal()
              return
            }
          } else {
            output.pending = nil
            queue.push(chain, written: 0)
          }
        }
        queue.signal()
      } while queue.enableNotification()
    }
  }

  /// Puts host bytes into the guest's buffers; returns how many fitted.
  private func deliver(_ bytes: [UInt8], to port: Port) -> Int {
    port.input.withLock { input in
      // Nobody listens: a port that is not open loses input; before the driver is there it waits.
      guard input.isActive else { return 0 }
      guard input.isOpen || port.description.isConsole else { return bytes.count }
      var done = 0
      var isLooking = true
      while done < bytes.count, isLooking {
        guard let chain = port.receive.pop() else {
          isLooking = port.receive.enableNotification()
          continue
        }
        let count = bytes[done...].withUnsafeBytes { chain.writable.copyIn(from: $0) }
        port.receive.push(chain, written: count)
        done += count
      }
      if done > 0 { port.receive.signal() }
      return done
    }
  }

  // MARK: Control messages

  private func send(_ port: Int, _ event: UInt16, _ value: UInt16, _ extra: [UInt8] = []) {
    var message = VirtioConfiguration()
    message.append(UInt32(port))
    message.append(event)
    message.append(value)
    control.withLock { control in
      guard control.isActive, control.messages.count < 4096 else { return }
      control.messages.append(message.bytes + extra)
    }
  }

  private func flushControl() {
    guard queues.count > 2 else { return }
    let queue = queues[Self.controlReceiveQueue]
    control.withLock { control in
      var sent = 0
      var isLooking = true
      while sent < control.messages.count, isLooking {
        guard let chain = queue.pop() else {
          isLooking = queue.enableNotification()
          continue
        }
        let count = control.messages[sent].withUnsafeBytes { chain.writable.copyIn(from: $0) }
        queue.push(chain, written: count)
        sent += 1
      }
      control.messages.removeFirst(sent)
    }
    queue.signal()
  }

  private func readControl() {
    let queue = queues[Self.controlTransmitQueue]
    var messages: [(port: UInt32, event: UInt16, value: UInt16)] = []
    _ = queue.process(limit: 1024) { chain in
      if let port = chain.readable.load(0, as: UInt32.self),
        let event = chain.readable.load(4, as: UInt16.self),
        let value = chain.readable.load(6, as: UInt16.self)
      {
        messages.append((port, event, value))
      }
      queue.push(chain, written: 0)
    }
    queue.signal()
    for message in messages { handle(message) }
    flushControl()
  }

  private func handle(_ message: (port: UInt32, event: UInt16, value: UInt16)) {
    if message.event == Event.deviceReady {
      guard message.value == 1 else { return }
      for (index, port) in ports.enumerated() where port != nil { send(index, Event.deviceAdd, 1) }
      return
    }
    let index = Int(message.port)
    guard ports.indices.contains(index), let port = ports[index] else {
      GuestErrorTrace.report(name, "control message for port \(index), which does not exist")
      return
    }
    switch message.event {
    case Event.portReady:
      guard message.value == 1 else { return }
      if port.description.isConsole { send(index, Event.consolePort, 1) }
      if !port.description.name.isEmpty {
        send(index, Event.portName, 1, Array(port.description.name.utf8) + [0])
      }
      send(index, Event.portOpen, 1)
    case Event.portOpen:
      port.input.withLock { $0.isOpen = message.value != 0 }
      if message.value != 0 { port.description.backend.resumeReceiving() }
    default: break
    }
  }
}
