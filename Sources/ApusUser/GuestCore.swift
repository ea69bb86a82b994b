import ApusHost
import ApusUserABI
import CApusHost
import Glibc

/// The core file of a guest process, in the format of the guest's kernel [gABI ch. 4; core(5)].
///
/// ```
///  ELF header, program headers: PT_NOTE, then a PT_LOAD for each region
///  notes: PRSTATUS of each thread (the one that died first), PRPSINFO, SIGINFO, AUXV, FPREGSET of each thread
///  the regions' contents
/// ```
///
/// The emulator writes it where core_pattern says. The host's kernel then writes a core of the emulator, too, since only that
/// makes the wait status say so: of one page, in a directory that is removed when the process is gone.
struct GuestCore {
  private static let coreSignals: Set<Int> = [3, 4, 5, 6, 7, 8, 11, 24, 25, 31]

  let process: UserProcess
  let thread: UserThread
  let signal: Int
  let info: [UInt8]

  /// Writes the file if there is to be one. The caller ends the process with the signal.
  static func write(_ thread: UserThread, _ signal: Int, _ info: [UInt8]) {
    guard coreSignals.contains(signal) else { return }
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(4), &limit) == 0, limit.rlim_cur >= 4096 else { return }
    guard apus_syscall(157, 3, 0, 0, 0, 0, 0) == 1 else { return }  // PR_GET_DUMPABLE
    let core = GuestCore(process: thread.process, thread: thread, signal: signal, info: info)
    guard let path = core.path() else { return }
    core.write(to: path, limit: limit.rlim_cur)
    limit.rlim_cur = 4096
    setrlimit(__rlimit_resource_t(4), &limit)
    // An absolute name is where the kernel would write, too.
    if path.isAbsolute {
      limit.rlim_cur = 0
      setrlimit(__rlimit_resource_t(4), &limit)
    } else {
      leaveForDump()
    }
  }

  /// Goes to a directory of its own, which a child removes when this process is gone.
  private static func leaveForDump() {
    var name = Array("/tmp/apus-core-XXXXXX".utf8CString)
    guard mkdtemp(&name) != nil else { return }
    let pid = getpid()
    let watched = Int32(truncatingIfNeeded: apus_syscall(434, UInt64(pid), 0, 0, 0, 0, 0))
    let child = apus_fork()
    if child == 0 {
      chdir(name)
      for descriptor in 0..<3 { Glibc.close(Int32(descriptor)) }
      var wait = pollfd(fd: watched, events: Int16(POLLIN), revents: 0)
      _ = poll(&wait, 1, 60_000)
      for file in ["core", "core.\(pid)"] { unlink(file) }
      rmdir(name)
      _exit(0)
    }
    if watched >= 0 { Glibc.close(watched) }
    chdir(name)
  }

  /// Where core_pattern says; `nil`: to a program, which gets the emulator's.
  private func path() -> ByteString? {
    var pattern = Array("core".utf8)
    let file = apus_open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC, 0)
    if file >= 0 {
      var text = [UInt8](repeating: 0, count: 256)
      let count = Glibc.read(file, &text, text.count)
      Glibc.close(file)
      if count > 0 { pattern = text[..<count].filter { $0 != 10 } }
    }
    guard let first = pattern.first, first != UInt8(ascii: "|") else { return nil }
    var result: ByteString = []
    var names = pattern[...]
    while let byte = names.popFirst() {
      guard byte == UInt8(ascii: "%"), let letter = names.popFirst() else {
        result.append(byte)
        continue
      }
      switch letter {
      case UInt8(ascii: "%"): result.append(letter)
      case UInt8(ascii: "p"), UInt8(ascii: "P"): result += Array("\(getpid())".utf8)
      case UInt8(ascii: "i"), UInt8(ascii: "I"): result += Array("\(apus_gettid())".utf8)
      case UInt8(ascii: "u"): result += Array("\(getuid())".utf8)
      case UInt8(ascii: "g"): result += Array("\(getgid())".utf8)
      case UInt8(ascii: "s"): result += Array("\(signal)".utf8)
      case UInt8(ascii: "t"): result += Array("\(time(nil))".utf8)
      case UInt8(ascii: "e"), UInt8(ascii: "f"): result += process.programPath.lastComponent.prefix(15)
      default: break
      }
    }
    return result
  }

  // MARK: Contents

  private struct Writer {
    var bytes: [UInt8] = []
    mutating func put<T: FixedWidthInteger>(_ value: T) {
      withUnsafeBytes(of: value.littleEndian) { bytes += $0 }
    }
    mutating func pad(to count: Int) { while bytes.count < count { bytes.append(0) } }
    mutating func note(_ type: UInt32, _ contents: [UInt8], name: String = "CORE") {
      let name = Array(name.utf8) + [0]
      put(UInt32(name.count))
      put(UInt32(contents.count))
      put(type)
      bytes += name
      pad(to: (bytes.count + 3) & ~3)
      bytes += contents
      pad(to: (bytes.count + 3) & ~3)
    }
  }

  /// `struct elf_prstatus`: siginfo's first three fields, signal, sets, ids, four times, registers, whether there are floats.
  private func status(_ thread: UserThread, _ number: Int, _ registers: [UInt8]) -> [UInt8] {
    var writer = Writer()
    writer.put(Int32(signal))
    let word = info.withUnsafeBytes {
      ($0.load(fromByteOffset: 8, as: Int32.self), $0.load(fromByteOffset: 4, as: Int32.self))
    }
    writer.put(word.0)
    writer.put(word.1)
    writer.put(Int16(signal))
    writer.put(Int16(0))
    writer.put(UInt64(0))
    writer.put(thread.mask)
    for id in [Int32(number), getppid(), getpgrp(), getsid(0)] { writer.put(id) }
    for _ in 0..<8 { writer.put(UInt64(0)) }
    writer.bytes += registers
    writer.put(Int32(1))
    writer.put(Int32(0))
    return writer.bytes
  }

  /// `struct elf_prpsinfo`.
  private func identity() -> [UInt8] {
    var writer = Writer()
    writer.bytes = [0, UInt8(ascii: "R"), 0, 0]
    writer.put(UInt32(0))
    writer.put(UInt64(0))
    writer.put(getuid())
    writer.put(getgid())
    for id in [getpid(), getppid(), getpgrp(), getsid(0)] { writer.put(id) }
    writer.bytes += process.programPath.lastComponent.prefix(15)
    writer.pad(to: 56)
    writer.bytes += process.options.arguments.joined(separator: [32]).prefix(79)
    writer.pad(to: 136)
    return writer.bytes
  }

  private func notes() -> [UInt8] {
    var writer = Writer()
    let others = process.threadsByNumber.filter { $0.1 !== thread }
    var isFirst = true
    for (number, one) in [(apus_gettid(), thread)] + others {
      for kind in type(of: one.cpu!).registerSets {
        guard let set = one.cpu.registerSet(kind) else { continue }
        writer.note(kind, kind == 1 ? status(one, number, set) : set, name: kind < 0x100 ? "CORE" : "LINUX")
        if kind == 1, isFirst {
          isFirst = false
          writer.note(3, identity())
          writer.note(0x5349_4749, info)  // NT_SIGINFO
          writer.note(6, process.auxiliaryVector.flatMap { word in withUnsafeBytes(of: word) { Array($0) } })
        }
      }
    }
    return writer.bytes
  }

  private func write(to path: ByteString, limit: UInt) {
    let file = path.withPointer { pointer -> Int32 in
      unlink(pointer)
      return apus_open(pointer, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    }
    guard file >= 0 else { return }
    defer { Glibc.close(file) }
    let regions = process.memory.all
    let notes = notes()
    let headerCount = regions.count + 1
    var writer = Writer()
    writer.bytes = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    writer.put(UInt16(4))
    writer.put(process.isa.machine)
    writer.put(UInt32(1))
    for word: UInt64 in [0, 64, 0] { writer.put(word) }
    writer.put(process.isa.elfFlags)
    for half: UInt16 in [64, 56, UInt16(clamping: headerCount), 0, 0, 0] { writer.put(half) }
    let notesOffset = 64 + headerCount * 56
    writer.put(UInt32(4))
    writer.put(UInt32(0))
    for word: UInt64 in [UInt64(notesOffset), 0, 0, UInt64(notes.count), 0, 4] { writer.put(word) }
    var offset = UInt64((notesOffset + notes.count + 4095) & ~4095)
    var parts: [(UInt64, UInt64, UInt64)] = []
    for region in regions {
      let byteCount = region.end - region.start
      // What is not there to be read is not in the file, nor what was not to be (MADV_DONTDUMP); the kernel leaves out what
      // is only reserved, too.
      let isReadable = region.protection & (PROT_READ | PROT_EXEC | PROT_WRITE) != 0
      let kept = isReadable && region.isDumped ? byteCount : 0
      writer.put(UInt32(1))
      writer.put(
        UInt32(region.protection & 1 != 0 ? 4 : 0) | UInt32(region.protection & 2)
          | UInt32(region.protection >> 2 & 1))
      for word in [offset, region.start, 0, kept, byteCount, 4096] { writer.put(word) }
      if kept > 0 { parts.append((offset, region.start, kept)) }
      offset += kept
    }
    writer.bytes += notes
    _ = writer.bytes.withUnsafeBytes { pwrite(file, $0.baseAddress, min($0.count, Int(clamping: limit)), 0) }
    let ranges = fileRanges()
    for (offset, start, byteCount) in parts where offset < UInt64(limit) {
      writePages(file, offset, start, min(byteCount, UInt64(limit) - offset), ranges)
    }
    if offset <= UInt64(limit) { ftruncate(file, Int(offset)) }
  }

  /// The mappings of files, ascending: their pages have contents although nobody has touched them.
  private func fileRanges() -> [Range<UInt64>] {
    guard let maps = try? HostDescriptor.contents("/proc/self/maps") else { return [] }
    return String(decoding: maps, as: UTF8.self).split(separator: "\n").compactMap { text in
      guard let line = MapQuery.Line(text), line.inode != 0 else { return nil }
      return line.start..<line.end
    }
  }

  /// Leaves holes where pages of anonymous memory were never touched.
  private func writePages(
    _ file: Int32, _ offset: UInt64, _ start: UInt64, _ byteCount: UInt64, _ fileRanges: [Range<UInt64>]
  ) {
    let map = apus_open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0)
    defer { if map >= 0 { Glibc.close(map) } }
    var entries = [UInt64](repeating: 0, count: 512)
    var page: UInt64 = 0
    let pageCount = (byteCount + 4095) >> 12
    while page < pageCount {
      let count = Int(min(512, pageCount - page))
      let isKnown = map >= 0 && pread(map, &entries, count * 8, Int((start >> 12 + page) * 8)) == count * 8
      for index in 0..<count {
        let at = (page + UInt64(index)) << 12
        // Present, or swapped out.
        if isKnown, entries[index] >> 62 == 0 {
          let next = fileRanges.partitioningIndex { $0.upperBound > start + at }
          guard next < fileRanges.count, fileRanges[next].contains(start + at) else { continue }
        }
        _ = apus_syscall(18, UInt64(file), start + at, min(4096, byteCount - at), offset + at, 0, 0)
      }
      page += UInt64(count)
    }
  }
}
