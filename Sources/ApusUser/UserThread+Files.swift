import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// System calls on files whose arguments or results differ from the host's, or that name files of the guest's own.

extension UserThread {
  /// The guest's path if it may stand for another name on the host; `nil` for all that the host takes as it is.
  private func specialPath(_ address: UInt64) -> ByteString? {
    var first: UInt64 = 0
    guard let pointer = UnsafeRawPointer(bitPattern: UInt(address)), apus_guard_load8(pointer, &first) == 0,
      first == UInt64(UInt8(ascii: "/"))
    else { return nil }
    if process.options.prefix.isEmpty {
      var second: UInt64 = 0
      guard apus_guard_load8(pointer + 1, &second) == 0, second == UInt64(UInt8(ascii: "p")) else {
        return nil
      }
    }
    return process.memory.readString(address)
  }

  /// Calls `body` with the path's address: the guest's own, or that of the name that it stands for.
  func withPath(_ address: UInt64, _ body: (UInt64) -> Int) -> Int {
    guard let path = specialPath(address) else { return body(address) }
    let other = process.hostPath(path)
    return other == path ? body(address) : other.withAddress(body)
  }

  func open(_ a: CallArguments) -> Int {
    var a = a
    a.c = process.isa.openFlags.converted(a.c)
    if let path = specialPath(a.b), let file = ProcessFile(path) {
      return process.open(file, flags: Int32(truncatingIfNeeded: a.c))
    }
    return withPath(a.b) { path in
      let arguments = CallArguments(a: a.a, b: path, c: a.c, d: a.d, e: 0, f: 0)
      if wouldWriteProgram(path, from: a.a, flags: a.c) { return -Int(ETXTBSY) }
      // Fifos and terminals block.
      return blocking(257, arguments, restart: .asFlagged)
    }
  }

  /// Whether an open with these flags of the host's wants to write to a program that runs.
  private func wouldWriteProgram(_ path: UInt64, from directory: UInt64, flags: UInt64) -> Bool {
    // O_WRONLY, O_RDWR, O_TRUNC, but not O_EXCL, which wants a new file, nor O_PATH, which opens nothing.
    flags & 0x203 != 0 && flags & 0x20_0080 == 0
      && RunningPrograms.contains(path, from: Int32(truncatingIfNeeded: directory))
  }

  func truncate(_ a: CallArguments) -> Int {
    withPath(a.a) { path in
      // AT_FDCWD. A length that cannot be is refused first.
      if Int64(bitPattern: a.b) >= 0, RunningPrograms.contains(path, from: -100) {
        return -Int(ETXTBSY)
      }
      return direct(76, CallArguments(a: path, b: a.b, c: 0, d: 0, e: 0, f: 0))
    }
  }

  /// openat2(directory, path, `struct open_how`, its size).
  func openExtended(_ a: CallArguments) -> Int {
    var a = a
    // struct open_how: flags, mode, rules.
    var how: (UInt64, UInt64, UInt64) = (0, 0, 0)
    if process.isa.openFlags != .generic, a.d == 24 {
      guard let words = process.memory.read(a.c, as: (UInt64, UInt64, UInt64).self, default: how) else {
        return -Int(EFAULT)
      }
      how = (process.isa.openFlags.converted(words.0), words.1, words.2)
      return withUnsafeBytes(of: &how) { raw in
        a.c = UInt64(UInt(bitPattern: raw.baseAddress))
        return openWithRules(a)
      }
    }
    return openWithRules(a)
  }

  private func openWithRules(_ a: CallArguments) -> Int {
    // With rules of how to get there, the kernel is to say whether that works.
    if let path = specialPath(a.b), let file = ProcessFile(path),
      let (flags, _, rules) = process.memory.read(a.c, as: (UInt64, UInt64, UInt64).self, default: (0, 0, 0)),
      a.d >= 24, rules & 2 == 0
    {
      return process.open(file, flags: Int32(truncatingIfNeeded: flags))
    }
    let rules = a.d >= 24 ? process.memory.readWord(a.c &+ 16) ?? 0 : 0
    if rules & 2 != 0 { return blocking(437, a, restart: .asFlagged) }
    return withPath(a.b) { path in
      if a.d >= 24, let flags = process.memory.readWord(a.c), wouldWriteProgram(path, from: a.a, flags: flags)
      {
        return -Int(ETXTBSY)
      }
      return blocking(437, CallArguments(a: a.a, b: path, c: a.c, d: a.d, e: 0, f: 0), restart: .asFlagged)
    }
  }

  /// fcntl, pipe2 and open_by_handle_at, which have flags of open's.
  func descriptorControl(_ a: CallArguments) -> Int {
    let flags = process.isa.openFlags
    guard flags != .generic, a.b == 3 || a.b == 4 else { return blocking(72, a, restart: .asFlagged) }
    var a = a
    if a.b == 4 { a.c = flags.converted(a.c) }
    let result = direct(72, a)
    return a.b == 3 && result > 0 ? Int(flags.converted(UInt64(result))) : result
  }
  func makePipe(_ a: CallArguments) -> Int {
    direct(293, CallArguments(a: a.a, b: process.isa.openFlags.converted(a.b), c: 0, d: 0, e: 0, f: 0))
  }
  func openByHandle(_ a: CallArguments) -> Int {
    direct(304, CallArguments(a: a.a, b: a.b, c: process.isa.openFlags.converted(a.c), d: 0, e: 0, f: 0))
  }

  func readLink(_ a: CallArguments) -> Int {
    if let path = specialPath(a.b), ProcessFile(path) == .program {
      guard Int64(bitPattern: a.d) > 0 else { return -Int(EINVAL) }
      let bytes = process.programPath.prefix(Int(clamping: a.d))
      return bytes.withUnsafeBytes { process.memory.write(a.c, $0) } ? bytes.count : -Int(EFAULT)
    }
    return withPath(a.b) { direct(267, CallArguments(a: a.a, b: $0, c: a.c, d: a.d, e: 0, f: 0)) }
  }

  /// close, dup3, close_range: the log's descriptor is not the guest's.
  func close(_ a: CallArguments) -> Int {
    isOurs(a.a) ? -Int(EBADF) : direct(3, a)
  }
  func duplicate(_ a: CallArguments) -> Int {
    isOurs(a.a) || isOurs(a.b) ? -Int(EBADF) : direct(292, a)
  }
  func closeRange(_ a: CallArguments) -> Int {
    let (first, last) = (a.a & 0xffff_ffff, a.b & 0xffff_ffff)
    guard let ours = process.logDescriptor.map(UInt64.init), first <= ours, ours <= last else {
      return direct(436, a)
    }
    var result = 0
    if first < ours { result = direct(436, CallArguments(a: first, b: ours - 1, c: a.c, d: 0, e: 0, f: 0)) }
    if result == 0, last > ours {
      result = direct(436, CallArguments(a: ours + 1, b: last, c: a.c, d: 0, e: 0, f: 0))
    }
    return result
  }
  private func isOurs(_ descriptor: UInt64) -> Bool {
    process.logDescriptor.map { UInt64($0) == descriptor & 0xffff_ffff } ?? false
  }

  /// A stat call whose buffer is argument b (fstat) or c (newfstatat) on the host.
  func fileStatus(_ number: Int, _ a: CallArguments, _ target: UInt64) -> Int {
    if process.isa.statusLayout == .host {
      var a = a
      if number == 5 { a.b = target } else { a.c = target }
      return direct(number, a)
    }
    return withUnsafeTemporaryAllocation(
      byteCount: GuestStat.hostByteCount + GuestStat.byteCount, alignment: 16
    ) {
      raw in
      let host = raw.baseAddress!
      var a = a
      if number == 5 { a.b = UInt64(UInt(bitPattern: host)) } else { a.c = UInt64(UInt(bitPattern: host)) }
      let result = direct(number, a)
      guard result == 0 else { return result }
      let guest = host + GuestStat.hostByteCount
      GuestStat.convert(host, to: guest)
      let bytes = UnsafeRawBufferPointer(start: guest, count: GuestStat.byteCount)
      return process.memory.write(target, bytes) ? 0 : -Int(EFAULT)
    }
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

  /// epoll_pwait and epoll_pwait2.
  func epollWait(_ a: CallArguments, host: Int) -> Int {
    let count = Int(Int32(truncatingIfNeeded: a.c))
    guard count > 0, count <= Int(Int32.max) / GuestEpollEvent.byteCount else { return -Int(EINVAL) }
    // More than a few hundred at a time is not worth a large buffer.
    let most = min(count, 512)
    return withUnsafeTemporaryAllocation(byteCount: most * GuestEpollEvent.hostByteCount, alignment: 8) {
      raw in
      var arguments = a
      arguments.b = UInt64(UInt(bitPattern: raw.baseAddress))
      arguments.c = UInt64(most)
      let result = blocking(host, arguments, restart: .never)
      for index in 0..<max(result, 0) {
        let events = raw.loadUnaligned(fromByteOffset: index * 12, as: UInt32.self)
        let data = raw.loadUnaligned(fromByteOffset: index * 12 + 4, as: UInt64.self)
        guard process.memory.write(a.b &+ UInt64(index * 16), (UInt64(events), data)) else {
          return -Int(EFAULT)
        }
      }
      return result
    }
  }
}
