import ApusAccelTranslate
import ApusHost
import CApusHost
import Glibc

/// The remote side of a debugger for one guest process: GDB's remote serial protocol [GDB manual, appendix E] on TCP.
///
/// The thread that stops serves the packets while all others rest between two of their blocks, or wait in the kernel. A
/// debugger that lets one run alone, as to step over a breakpoint, finds the others where they were. Breakpoints are its
/// own, written into memory. Children are not debugged. A stopped thread's own thread calls everything but `watch`'s
/// loop.
final class UserDebugger: @unchecked Sendable {
  enum Resumption {
    case run(signal: Int)
    case step(signal: Int, since: Int)
    case kill
    /// The debugger is gone: the program runs on without it.
    case detach
  }
  /// Why a thread comes to a stop.
  enum Reason {
    case signal, breakpoint, step
  }

  private var connection: Int32
  private var received: [UInt8] = []
  private var acknowledges = true
  /// One thread at a time serves the debugger.
  private let stopped = Monitor()
  // Guarded by `stopped`.
  private var isServing = false
  /// The thread that runs while all others rest.
  private var soleThread: UserThread?
  /// How many stops there were. A breakpoint or step that was met before the last one means nothing any more: the debugger
  /// may have taken the breakpoint out, or wants something else.
  private var stopCount = 0
  // The serving thread's.
  private var selected: UserThread?
  private var lastNumber = 0
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

  /// What `stop` takes as the number of stops that the thread knows of.
  var stopNumber: Int { stopped.withLock { stopCount } }

  /// Reports a stop of the calling thread, which is not counted as running code, and serves the debugger until the program is
  /// to go on. `nil`: the reason is out of date.
  func stop(_ signal: Int, _ reason: Reason, since number: Int, _ thread: UserThread) -> Resumption? {
    let cache = thread.process.cache
    stopped.lock()
    while isServing || soleThread != nil && soleThread !== thread { stopped.wait() }
    let isOutdated = reason != .signal && number != stopCount
    guard connection >= 0, !isOutdated else {
      stopped.unlock()
      return connection < 0 ? .detach : nil
    }
    stopCount += 1
    isServing = true
    let wasAlone = soleThread != nil
    soleThread = nil
    stopped.unlock()
    if wasAlone { cache.restAgain() } else { cache.beginRest() }
    for other in thread.process.allThreads { other.isStepping = false }
    selected = thread
    lastNumber = apus_gettid()
    lastReport = "T\(hex(UInt64(signal), 1))thread:\(String(lastNumber, radix: 16));"
    isRunning.withLock { runs = false }
    if hasReported { send(lastReport) }
    hasReported = true
    var resumption: Resumption?
    while resumption == nil {
      guard let packet = receive() else {
        resumption = .detach
        break
      }
      resumption = serve(packet, thread)
    }
    selected = nil
    goOn(resumption ?? .detach, cache)
    return resumption
  }
  private var hasReported = false

  /// Lets the others run, or the one that is to run alone.
  private func goOn(_ resumption: Resumption, _ cache: TranslationCache) {
    switch resumption {
    case .run, .step:
      isRunning.withLock {
        runs = true
        isRunning.broadcast()
      }
    case .kill, .detach: nextSole = nil
    }
    let sole = nextSole
    nextSole = nil
    stopped.withLock {
      isServing = false
      soleThread = sole
      if let sole { cache.letRun(sole.vcpu) } else { cache.endRest() }
      stopped.broadcast()
    }
  }
  private var nextSole: UserThread?

  /// A thread is at its end.
  func leave(_ thread: UserThread) {
    stopped.withLock {
      guard soleThread === thread else { return }
      soleThread = nil
      thread.process.cache.endRest()
      stopped.broadcast()
    }
  }

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
      // One that runs alone must be the one.
      let isAlone = stopped.withLock { soleThread != nil }
      if !isAlone || apus_syscall(234, UInt64(getpid()), UInt64(lastNumber), UInt64(SIGINT), 0, 0, 0) != 0 {
        kill(getpid(), SIGINT)
      }
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

  /// A thread by the number that a packet names in hexadecimal; 0 and -1 stand for any.
  private func find(_ text: Substring, _ stopped: UserThread) -> UserThread? {
    guard let number = Int(text, radix: 16) else { return nil }
    if number <= 0 { return stopped }
    return stopped.process.threadsByNumber.first { $0.0 == number }?.1
  }

  /// Answers a packet; a resumption ends the stop.
  private func serve(_ packet: String, _ stopped: UserThread) -> Resumption? {
    let thread = selected ?? stopped
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
      return packet.first == "c" || packet.first == "C"
        ? .run(signal: signal) : .step(signal: signal, since: stopCount)
    case "k": return .kill
    case "D":
      send("OK")
      hangUp()
      return .detach
    case "H":
      guard let other = find(rest.dropFirst(), stopped) else {
        send("E01")
        return nil
      }
      // Which thread is to run is said when it is.
      if rest.first == "g" { selected = other }
      send("OK")
    case "T": send(find(rest, stopped) == nil ? "E01" : "OK")
    case "v":
      if packet == "vCont?" {
        send("vCont;c;C;s;S")
      } else if packet.hasPrefix("vCont;") {
        return resume(packet.dropFirst(6), stopped)
      } else {
        send("")
      }
    case "q", "Q": query(packet, thread)
    default: send("")
    }
    return nil
  }

  /// `ACTION[:THREAD];...`: the first action that a thread matches is what it does; one without any stays where it is.
  private func resume(_ text: Substring, _ stopped: UserThread) -> Resumption? {
    let actions = text.split(separator: ";").map { $0.split(separator: ":", maxSplits: 1) }
    func action(_ thread: UserThread) -> Substring? {
      actions.first { $0.count == 1 || $0[1] == "-1" || find($0[1], stopped) === thread }?.first
    }
    let threads = stopped.process.allThreads
    let moving = threads.filter { action($0) != nil }
    guard !moving.isEmpty, actions.allSatisfy({ "cCsS".contains($0[0].first ?? "?") }) else {
      send("E01")
      return nil
    }
    if moving.count < threads.count {
      // More than one, but not all, is nothing that debuggers ask for.
      nextSole = moving.first { $0 === stopped } ?? moving[0]
    }
    for other in moving where other !== stopped && action(other)?.first?.lowercased() == "s" {
      other.beginStep(since: stopCount)
    }
    guard let own = action(stopped) else { return .run(signal: 0) }
    let signal = Int(own.dropFirst().prefix(2), radix: 16) ?? 0
    return own.first?.lowercased() == "s" ? .step(signal: signal, since: stopCount) : .run(signal: signal)
  }

  /// A thread's name, as its owner set it.
  private func name(_ text: Substring) -> String {
    guard let number = Int(text, radix: 16), number > 0 else { return "" }
    let file = apus_open("/proc/self/task/\(number)/comm", O_RDONLY | O_CLOEXEC, 0)
    guard file >= 0 else { return "" }
    defer { Glibc.close(file) }
    var bytes = [UInt8](repeating: 0, count: 64)
    let count = read(file, &bytes, bytes.count)
    return bytes.prefix(max(count - 1, 0)).map { hex(UInt64($0), 1) }.joined()
  }

  private func query(_ packet: String, _ thread: UserThread) {
    switch packet {
    case _ where packet.hasPrefix("qSupported"):
      send(
        "PacketSize=4000;QStartNoAckMode+;vContSupported+;qXfer:features:read+;qXfer:auxv:read+;qXfer:exec-file:read+"
      )
    case "QStartNoAckMode":
      send("OK")
      acknowledges = false
    case "qC": send("QC" + String(lastNumber, radix: 16))
    case "qfThreadInfo":
      let numbers = thread.process.threadsByNumber.map { String($0.0, radix: 16) }.sorted()
      send("m" + numbers.joined(separator: ","))
    case _ where packet.hasPrefix("qThreadExtraInfo,"): send(name(packet.dropFirst(17)))
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
