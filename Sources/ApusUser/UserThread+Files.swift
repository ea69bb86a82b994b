import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// System calls on files whose arguments or results differ from the host's, or that name files of the guest's own.

extension UserThread {
  /// Calls `body` with the path's address: the guest's own, or that of the name that it stands for.
  func withPath(_ address: UInt64, _ body: (UInt64) -> Int) -> Int {
    guard let path = process.memory.readString(address), let other = substitute(path) else {
      return body(address)
    }
    return other.withCString { body(UInt64(UInt(bitPattern: $0))) }
  }

  /// The host path for a guest path that is not to be taken as it is.
  private func substitute(_ path: String) -> String? {
    guard path.utf8.first == UInt8(ascii: "/") else { return nil }
    if isOwnProgram(path) { return process.programPath }
    if process.options.prefix.isEmpty { return nil }
    let resolved = process.resolve(path)
    return resolved == path ? nil : resolved
  }
  private func isOwnProgram(_ path: String) -> Bool {
    path == "/proc/self/exe" || path == "/proc/\(getpid())/exe" || path == "/proc/thread-self/exe"
  }

  func open(_ a: CallArguments) -> Int {
    if let path = process.memory.readString(a.b) {
      if path == "/proc/self/maps" || path == "/proc/\(getpid())/maps" { return openMaps() }
      if path == "/proc/cpuinfo" { return openText(processorText()) }
    }
    return withPath(a.b) { path in
      let arguments = CallArguments(a: a.a, b: path, c: a.c, d: a.d, e: 0, f: 0)
      // Fifos and terminals block.
      return blocking(257, arguments, honoursRestart: true)
    }
  }

  private func openText(_ text: String) -> Int {
    let file = apus_memfd_create("apus-text", 1)
    guard file >= 0 else { return -Int(errno) }
    var text = text
    text.withUTF8 { bytes in _ = Glibc.write(file, bytes.baseAddress, bytes.count) }
    lseek(file, 0, SEEK_SET)
    return Int(file)
  }

  private func openMaps() -> Int {
    var text = ""
    func hex(_ value: UInt64) -> String {
      let digits = String(value, radix: 16)
      return String(repeating: "0", count: max(0, 8 - digits.count)) + digits
    }
    for region in process.memory.all {
      let p = region.protection
      let letters =
        (p & PROT_READ != 0 ? "r" : "-") + (p & PROT_WRITE != 0 ? "w" : "-")
        + (p & PROT_EXEC != 0 ? "x" : "-")
        + (region.isShared ? "s" : "p")
      let isStack = state[x: 2] >= region.start && state[x: 2] < region.end
      text +=
        "\(hex(region.start))-\(hex(region.end)) \(letters) 00000000 00:00 0 \(isStack ? "[stack]" : "")\n"
    }
    return openText(text)
  }

  private func processorText() -> String {
    var text = ""
    for number in 0..<HostProcess.processorCount {
      text += "processor\t: \(number)\nhart\t\t: \(number)\nisa\t\t: rv64imafdc\nmmu\t\t: sv48\n\n"
    }
    return text
  }

  func readLink(_ a: CallArguments) -> Int {
    if let path = process.memory.readString(a.b), isOwnProgram(path) {
      let bytes = Array(process.programPath.utf8.prefix(Int(clamping: a.d)))
      return bytes.withUnsafeBytes { process.memory.write(a.c, $0) } ? bytes.count : -Int(EFAULT)
    }
    return withPath(a.b) { direct(267, CallArguments(a: a.a, b: $0, c: a.c, d: a.d, e: 0, f: 0)) }
  }

  /// A stat call whose buffer is argument b (fstat) or c (newfstatat) on the host.
  func fileStatus(_ number: Int, _ a: CallArguments, _ target: UInt64) -> Int {
    var host = [UInt8](repeating: 0, count: GuestStat.hostByteCount)
    var guest = [UInt8](repeating: 0, count: GuestStat.byteCount)
    let result = host.withUnsafeMutableBytes { buffer -> Int in
      let address = UInt64(UInt(bitPattern: buffer.baseAddress))
      var a = a
      if number == 5 { a.b = address } else { a.c = address }
      return direct(number, a)
    }
    guard result == 0 else { return result }
    host.withUnsafeBytes { from in
      guest.withUnsafeMutableBytes { GuestStat.convert(from.baseAddress!, to: $0.baseAddress!) }
    }
    return guest.withUnsafeBytes { process.memory.write(target, $0) } ? 0 : -Int(EFAULT)
  }

  // MARK: epoll

  func epollControl(_ a: CallArguments) -> Int {
    guard a.d != 0 else { return direct(233, a) }
    guard let words = process.memory.read(a.d, as: (UInt64, UInt64).self, default: (0, 0)) else {
      return -Int(EFAULT)
    }
    // events u32, data u64: packed on the host.
    var packed = [UInt8](repeating: 0, count: GuestEpollEvent.hostByteCount)
    return packed.withUnsafeMutableBytes { raw in
      raw.storeBytes(of: UInt32(truncatingIfNeeded: words.0), as: UInt32.self)
      raw.storeBytes(of: words.1, toByteOffset: 4, as: UInt64.self)
      var a = a
      a.d = UInt64(UInt(bitPattern: raw.baseAddress))
      return direct(233, a)
    }
  }

  func epollWait(_ a: CallArguments) -> Int {
    let count = Int(Int32(truncatingIfNeeded: a.c))
    guard count > 0, count < 1 << 20 else { return -Int(EINVAL) }
    var packed = [UInt8](repeating: 0, count: count * GuestEpollEvent.hostByteCount)
    return packed.withUnsafeMutableBytes { raw in
      var arguments = a
      arguments.b = UInt64(UInt(bitPattern: raw.baseAddress))
      let result = blocking(281, arguments, honoursRestart: false)
      for index in 0..<max(result, 0) {
        let events = raw.loadUnaligned(fromByteOffset: index * 12, as: UInt32.self)
        let data = raw.loadUnaligned(fromByteOffset: index * 12 + 4, as: UInt64.self)
        guard process.memory.write(a.b + UInt64(index * 16), (UInt64(events), data)) else {
          return -Int(EFAULT)
        }
      }
      return result
    }
  }
}
