import ApusHost
import CApusHost
import Glibc

/// The remote side of a debugger for one guest process: GDB's remote serial protocol [GDB manual, appendix E] on TCP.
///
/// The thread that stops serves the packets; the others run on, and only the one that stopped is shown. Breakpoints are the
/// debugger's own, written into memory. Children are not debugged. A stopped thread's own thread calls everything but
/// `watch`'s loop.
final class UserDebugger: @unchecked Sendable {
  enum Resumption {
    case run(signal: Int)
    case step(signal: Int)
    case kill
    /// The debugger is gone: the program runs on without it.
    case detach
  }

  private var connection: Int32
  private var received: [UInt8] = []
  private var acknowledges = true
  /// One thread at a time is stopped.
  private let stopped = Monitor()
  /// Wakes `watch` when the program runs on.
  private let isRunning = Monitor()
  private var runs = false
  private var lastReport = "S05"

  /// Listens on the loopback interface and waits for a debugger.
  init(port: UInt16) throws(ProgramError) {
    let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard listener >= 0 else {
      throw ProgramError("-g: cannot make a socket: \(String(cString: strerror(errno)))")
    }
    defer { Glibc.close(listener) }
    var yes: Int32 = 1
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, 4)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(listener, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard bound == 0, listen(listener, 1) == 0 else {
      throw ProgramError("-g: cannot listen on port \(port): \(String(cString: strerror(errno)))")
    }
    repeat { connection = apus_accept(listener) } while connection < 0 && errno == EINTR
    guard connection >= 0 else {
      throw ProgramError("-g: no connection: \(String(cString: strerror(errno)))")
    }
    setsockopt(connection, Int32(IPPROTO_TCP), TCP_NODELAY, &yes, 4)
    // Blocking, and out of the way of the guest's descriptors.
    let high = apus_fcntl(connection, F_DUPFD_CLOEXEC, 901)
    if high >= 0 {
      Glibc.close(connection)
      connection = high
    }
    _ = apus_fcntl(connection, F_SETFL, 0)
  }

  var descriptor: Int32? { connection >= 0 ? connection : nil }

  // MARK: Packets

  private func send(_ text: String) {
    let sum = text.utf8.reduce(0 as UInt8) { $0 &+ $1 }
    let digits = String(sum, radix: 16)
    let packet = Array("$\(text)#\(digits.count == 1 ? "0" : "")\(digits)".utf8)
    write(packet)
  }
  private func write(_ bytes: [UInt8]) {
    var offset = 0
    while offset < bytes.count, connection >= 0 {
      let count = bytes.withUnsafeBytes {
        Glibc.send(
          connection, $0.baseAddress! + offset, bytes.count - offset, Int32(truncatingIfNeeded: MSG_NOSIGNAL))
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return hangUp() }
      offset += count
    }
  }
  private func hangUp() {
    if connection >= 0 { Glibc.close(connection) }
    connection = -1
  }

  /// The next packet's contents; `nil` when the connection has ended.
  private func receive() -> String? {
    while true {
      if let start = received.firstIndex(of: UInt8(ascii: "$")),
        let end = received[start...].firstIndex(of: UInt8(ascii: "#")), end + 2 < received.count
      {
        let text = String(decoding: received[(start + 1)..<end], as: UTF8.self)
        received.removeSubrange(...(end + 2))
        if acknowledges { write([UInt8(ascii: "+")]) }
        return text
      }
      var part = [UInt8](repeating: 0, count: 4096)
      guard connection >= 0 else { return nil }
      let count = read(connection, &part, part.count)
      if count < 0, errno == EINTR { continue }
      guard count > 0 else {
        hangUp()
        return nil
      }
      received += part[..<count]
    }
  }

  // MARK: Stopping

  /// Reports a stop of the calling thread and serves the debugger until the program is to go on.
  func stop(_ signal: Int, _ thread: UserThread) -> Resumption {
    stopped.lock()
    defer { stopped.unlock() }
    guard connection >= 0 else { return .detach }
    lastReport = "T\(hex(UInt64(signal), 1))thread:1;"
    isRunning.withLock { runs = false }
    if hasReported { send(lastReport) }
    hasReported = true
    while true {
      guard let packet = receive() else { return .detach }
      if let resumption = serve(packet, thread) {
        if case .run = resumption {
          isRunning.withLock {
            runs = true
            isRunning.broadcast()
          }
        }
        return resumption
      }
    }
  }
  private var hasReported = false

  func reportExit(_ code: Int32) {
    guard connection >= 0 else { return }
    send("W" + hex(UInt64(UInt8(truncatingIfNeeded: code)), 1))
  }
  func reportDeath(_ signal: Int) {
    guard connection >= 0 else { return }
    send("X" + hex(UInt64(signal), 1))
  }
  /// The child of a fork is not debugged.
  func leaveChild() { hangUp() }

  /// A thread of its own: an interrupt (0x03) while the program runs becomes a SIGINT.
  func watch() {
    while connection >= 0 {
      isRunning.withLock { while !runs { isRunning.wait() } }
      var poll = pollfd(fd: connection, events: Int16(POLLIN), revents: 0)
      guard Glibc.poll(&poll, 1, 200) > 0 else { continue }
      var byte: UInt8 = 0
      let isStill = isRunning.withLock { runs }
      guard isStill, recv(connection, &byte, 1, Int32(truncatingIfNeeded: MSG_PEEK)) == 1, byte == 3 else {
        usleep(10_000)
        continue
      }
      _ = recv(connection, &byte, 1, 0)
      kill(getpid(), SIGINT)
    }
  }

  // MARK: Commands

  private func hex(_ value: UInt64, _ byteCount: Int) -> String {
    var text = ""
    for index in 0..<byteCount {
      let byte = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
      text += (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }
    return text
  }
  private func bytes(_ text: Substring) -> [UInt8]? {
    let digits = Array(text.utf8)
    guard digits.count % 2 == 0 else { return nil }
    var result: [UInt8] = []
    for index in stride(from: 0, to: digits.count, by: 2) {
      guard let byte = UInt8(String(decoding: digits[index...(index + 1)], as: UTF8.self), radix: 16) else {
        return nil
      }
      result.append(byte)
    }
    return result
  }

  private func register(_ number: Int, _ thread: UserThread) -> String {
    thread.cpu.debuggerRegister(number).map { hex(UInt64($0), 1) }.joined()
  }

  /// Answers a packet; a resumption ends the stop.
  private func serve(_ packet: String, _ thread: UserThread) -> Resumption? {
    let memory = thread.process.memory
    let registerCount = thread.process.isa.debuggerRegisterCount
    let rest = packet.dropFirst()
    switch packet.first {
    case "?": send(lastReport)
    case "g": send((0..<registerCount).map { register($0, thread) }.joined())
    case "G":
      var position = rest
      for number in 0..<registerCount {
        let digits = position.prefix(thread.cpu.debuggerRegister(number).count * 2)
        guard let value = bytes(digits), !digits.isEmpty else { break }
        thread.cpu.setDebuggerRegister(number, value)
        position = position.dropFirst(digits.count)
      }
      send("OK")
    case "p":
      guard let number = Int(rest, radix: 16), number < registerCount else {
        send("E01")
        return nil
      }
      send(register(number, thread))
    case "P":
      let parts = rest.split(separator: "=")
      guard parts.count == 2, let number = Int(parts[0], radix: 16), number < registerCount,
        let value = bytes(parts[1])
      else {
        send("E01")
        return nil
      }
      thread.cpu.setDebuggerRegister(number, value)
      send("OK")
    case "m":
      let parts = rest.split(separator: ",")
      guard parts.count == 2, let address = UInt64(parts[0], radix: 16), let count = Int(parts[1], radix: 16),
        count <= 8192
      else {
        send("E01")
        return nil
      }
      var contents = [UInt8](repeating: 0, count: count)
      let isThere = contents.withUnsafeMutableBytes { memory.read(address, into: $0) }
      send(isThere ? contents.map { hex(UInt64($0), 1) }.joined() : "E0e")
    case "M":
      let parts = rest.split(separator: ":", omittingEmptySubsequences: false)
      let place = parts[0].split(separator: ",")
      guard parts.count == 2, let address = UInt64(place[0], radix: 16), let contents = bytes(parts[1]) else {
        send("E01")
        return nil
      }
      send(memory.writeAnyway(address, contents) ? "OK" : "E0e")
    case "c", "s", "C", "S":
      let isSignal = packet.first == "C" || packet.first == "S"
      let signal = isSignal ? Int(rest.prefix(2), radix: 16) ?? 0 : 0
      return packet.first == "c" || packet.first == "C" ? .run(signal: signal) : .step(signal: signal)
    case "k": return .kill
    case "D":
      send("OK")
      hangUp()
      return .detach
    case "H", "T": send("OK")
    case "q", "Q": query(packet, thread)
    default: send("")
    }
    return nil
  }

  private func query(_ packet: String, _ thread: UserThread) {
    switch packet {
    case _ where packet.hasPrefix("qSupported"):
      send("PacketSize=4000;QStartNoAckMode+;qXfer:features:read+;qXfer:auxv:read+;qXfer:exec-file:read+")
    case "QStartNoAckMode":
      send("OK")
      acknowledges = false
    case "qC": send("QC1")
    case "qfThreadInfo": send("m1")
    case "qsThreadInfo": send("l")
    case _ where packet.hasPrefix("qAttached"): send("0")
    case _ where packet.hasPrefix("qXfer:"):
      let parts = packet.split(separator: ":", omittingEmptySubsequences: false)
      guard parts.count == 5, parts[2] == "read" else { return send("") }
      let range = parts[4].split(separator: ",").compactMap { Int($0, radix: 16) }
      guard range.count == 2, range[0] >= 0, range[1] >= 0 else { return send("E01") }
      let contents: [UInt8]
      switch parts[1] {
      case "features": contents = Array(thread.process.isa.debuggerDescription.utf8)
      case "auxv": contents = thread.process.auxiliaryVector.flatMap { withUnsafeBytes(of: $0) { Array($0) } }
      case "exec-file": contents = thread.process.programPath
      default: return send("")
      }
      sendBinary(
        contents.dropFirst(range[0]).prefix(min(range[1], 2000)),
        isLast: range[0] + range[1] >= contents.count)
    default: send("")
    }
  }

  /// `l` or `m` and bytes, of which four are escaped.
  private func sendBinary(_ contents: ArraySlice<UInt8>, isLast: Bool) {
    var payload: [UInt8] = [UInt8(ascii: isLast && contents.count < 2000 ? "l" : "m")]
    for byte in contents {
      if [0x23, 0x24, 0x2a, 0x7d].contains(byte) {
        payload += [0x7d, byte ^ 0x20]
      } else {
        payload.append(byte)
      }
    }
    let sum = payload.reduce(0 as UInt8) { $0 &+ $1 }
    write([UInt8(ascii: "$")] + payload + Array(("#" + hex(UInt64(sum), 1)).utf8))
  }
}

extension UserMemory {
  /// A debugger's store: to pages that the guest must not write, too. Code there goes.
  func writeAnyway(_ address: UInt64, _ contents: [UInt8]) -> Bool {
    if contents.isEmpty { return true }
    let first = address & ~Self.pageMask
    let end = (address + UInt64(contents.count) + Self.pageMask) & ~Self.pageMask
    let isWritten = lock.withLock { () -> Bool in
      for page in stride(from: first, to: end, by: 4096) {
        guard let position = index(page) else { return false }
        mprotect(
          UnsafeMutableRawPointer(bitPattern: UInt(page)), 4096,
          hostProtection(regions[position].protection) | PROT_READ | PROT_WRITE)
      }
      let target = UnsafeMutableRawPointer(bitPattern: UInt(address))
      let failed = contents.withUnsafeBytes { apus_guard_copy(target, $0.baseAddress, contents.count) }
      for page in stride(from: first, to: end, by: 4096) {
        codePages[page] = nil
        guard let position = index(page) else { continue }
        mprotect(
          UnsafeMutableRawPointer(bitPattern: UInt(page)), 4096, hostProtection(regions[position].protection))
      }
      return failed == 0
    }
    dropCode(first, end)
    return isWritten
  }
}
