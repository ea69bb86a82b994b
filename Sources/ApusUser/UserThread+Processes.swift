import ApusGuestRISCV
import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// Creating and replacing processes and threads.

private enum CloneFlag {
  static let vm: UInt64 = 0x100
  static let vfork: UInt64 = 0x4000
  static let thread: UInt64 = 0x1_0000
  static let setTLS: UInt64 = 0x8_0000
  static let parentSetThread: UInt64 = 0x10_0000
  static let childClearThread: UInt64 = 0x20_0000
  static let childSetThread: UInt64 = 0x100_0000
}

extension UserThread {
  /// clone(flags, stack, parent's thread id address, TLS, child's thread id address).
  func clone(_ a: CallArguments) -> Int {
    if a.a & CloneFlag.thread != 0 { return startThread(a) }
    return fork(a)
  }

  /// A process of its own. Memory of a vfork child is a copy, too; the parent waits for its end or execve.
  private func fork(_ a: CallArguments) -> Int {
    var ends: [Int32] = [-1, -1]
    let isVfork = a.a & CloneFlag.vfork != 0
    if isVfork, pipe(&ends) != 0 { return -Int(errno) }
    for end in ends where isVfork { _ = apus_fcntl(end, F_SETFD, FD_CLOEXEC) }
    var all = UInt64.max
    _ = apus_user_set_mask(SIG_SETMASK, &all, nil)
    let child = process.whileForking(vcpu) { Int(apus_fork()) }
    let error = errno
    if child == 0 {
      process.keepOnly(self, apus_gettid())
      if isVfork { Glibc.close(ends[0]) }
      let state = state
      if a.b != 0 { state[x: 2] = a.b }
      if a.a & CloneFlag.setTLS != 0 { state[x: 4] = a.d }
      if a.a & CloneFlag.childSetThread != 0 {
        _ = process.memory.write(a.e, UInt32(truncatingIfNeeded: apus_gettid()))
      }
      clearChildThread = a.a & CloneFlag.childClearThread != 0 ? a.e : 0
      _ = apus_user_set_mask(SIG_SETMASK, &mask, nil)
      return 0
    }
    if isVfork {
      Glibc.close(ends[1])
      if child > 0 {
        var byte: UInt8 = 0
        while read(ends[0], &byte, 1) < 0 && errno == EINTR {}
      }
      Glibc.close(ends[0])
    }
    _ = apus_user_set_mask(SIG_SETMASK, &mask, nil)
    if child < 0 { return -Int(error) }
    if a.a & CloneFlag.parentSetThread != 0 {
      _ = process.memory.write(a.c, UInt32(truncatingIfNeeded: child))
    }
    return child
  }

  /// Carries a new thread's number back to its creator.
  private final class Birth: @unchecked Sendable {
    let monitor = Monitor()
    var number = 0
  }

  private func startThread(_ a: CallArguments) -> Int {
    guard a.a & CloneFlag.vm != 0 else { return -Int(EINVAL) }
    let thread: UserThread
    do throws(HostError) { thread = try UserThread(process) } catch { return -Int(ENOMEM) }
    thread.cpu.copyRegisters(of: cpu)
    let state = thread.state
    state[x: 10] = 0
    state[x: 2] = a.b
    if a.a & CloneFlag.setTLS != 0 { state[x: 4] = a.d }
    thread.mask = mask
    if a.a & CloneFlag.childClearThread != 0 { thread.clearChildThread = a.e }
    let birth = Birth()
    let process = process
    var all = UInt64.max
    _ = apus_user_set_mask(SIG_SETMASK, &all, nil)
    HostThread.spawn("guest") {
      let number = apus_gettid()
      process.add(thread, number)
      if a.a & CloneFlag.childSetThread != 0 {
        _ = process.memory.write(a.e, UInt32(truncatingIfNeeded: number))
      }
      if a.a & CloneFlag.parentSetThread != 0 {
        _ = process.memory.write(a.c, UInt32(truncatingIfNeeded: number))
      }
      birth.monitor.withLock {
        birth.number = number
        birth.monitor.signal()
      }
      thread.run()
    }.detach()
    birth.monitor.withLock { while birth.number == 0 { birth.monitor.wait() } }
    _ = apus_user_set_mask(SIG_SETMASK, &mask, nil)
    return birth.number
  }

  func exitThread(_ code: UInt64) -> Int {
    if !process.isMultithreaded { _exit(Int32(truncatingIfNeeded: code)) }
    vcpu.requestExit()
    return 0
  }

  // MARK: execve

  func execute(_ path: UInt64, _ arguments: UInt64, _ environment: UInt64, directory: UInt64?) -> Int {
    guard var name = process.memory.readString(path) else { return -Int(EFAULT) }
    if let directory, Int32(truncatingIfNeeded: directory) != AT_FDCWD, name.utf8.first != UInt8(ascii: "/") {
      name = "/proc/self/fd/\(Int32(truncatingIfNeeded: directory))" + (name.isEmpty ? "" : "/" + name)
    }
    guard let argumentList = readVector(arguments), let environmentList = readVector(environment) else {
      return -Int(EFAULT)
    }
    if name == "/proc/self/exe" { name = process.programPath }
    let (program, prefixed) = (process.resolve(name), argumentList)
    if access(program, X_OK) != 0 { return -Int(errno) }
    guard let own = emulated(program, name, prefixed, depth: 0) else {
      // A program of the host's.
      return replace(program, argumentList, environmentList)
    }
    return replace("/proc/self/exe", own, environmentList)
  }

  /// The command line that runs a guest program or a script of one under this emulator; `nil` if it is neither.
  private func emulated(_ program: String, _ name: String, _ arguments: [String], depth: Int) -> [String]? {
    guard depth < 4 else { return nil }
    if ProgramLoader.machine(ofFileAt: program) == ProgramLoader.machineRISCV {
      let options = process.options.inherited
      return ["apus-riscv64"] + options + ["-0", arguments.first ?? name, program] + arguments.dropFirst()
    }
    let file = apus_open(program, O_RDONLY | O_CLOEXEC, 0)
    guard file >= 0 else { return nil }
    defer { Glibc.close(file) }
    var head = [UInt8](repeating: 0, count: 256)
    let count = read(file, &head, 256)
    guard count > 2, head[0] == UInt8(ascii: "#"), head[1] == UInt8(ascii: "!") else { return nil }
    let line = head[2..<count].prefix { $0 != 10 }
    let words = String(decoding: line, as: UTF8.self).split(separator: " ", maxSplits: 1).map(String.init)
    guard let interpreter = words.first else { return nil }
    let rest = words.count > 1 ? [words[1]] : []
    return emulated(
      process.resolve(interpreter), interpreter, [interpreter] + rest + [name] + arguments.dropFirst(),
      depth: depth + 1)
  }

  private func replace(_ path: String, _ arguments: [String], _ environment: [String]) -> Int {
    var argumentPointers = arguments.map { strdup($0) } + [nil]
    var environmentPointers = environment.map { strdup($0) } + [nil]
    defer {
      for pointer in argumentPointers + environmentPointers { free(pointer) }
    }
    // Handlers of the guest's become default by themselves; the mask stays, as it must.
    execve(path, &argumentPointers, &environmentPointers)
    return -Int(errno)
  }

  private func readVector(_ address: UInt64) -> [String]? {
    if address == 0 { return [] }
    var result: [String] = []
    var position = address
    while true {
      guard let pointer = process.memory.readWord(position) else { return nil }
      if pointer == 0 { return result }
      guard let text = process.memory.readString(pointer) else { return nil }
      result.append(text)
      position += 8
    }
  }
}
