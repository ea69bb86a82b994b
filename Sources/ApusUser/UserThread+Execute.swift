import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// execve and execveat. A guest program is run by executing the emulator again, which needs no binfmt_misc; a script, by
// its interpreter in the guest's view; a program of the host's, by the host.

extension UserThread {
  private static let emptyPath: UInt64 = 0x1000
  private static let noFollow: UInt64 = 0x100
  /// As the kernel: scripts of scripts, five deep.
  private static let maximumScriptDepth = 5

  /// What is to be run instead of what was asked for.
  private struct Command {
    var path: ByteString
    var arguments: [ByteString]
    /// Handed on to the emulator; to be closed if it cannot be executed.
    var file: Int32?
  }
  private struct Refusal: Error {
    var number: Int32
  }

  func execute(
    _ path: UInt64, _ arguments: UInt64, _ environment: UInt64, directory: Int32 = AT_FDCWD, flags: UInt64 = 0
  ) -> Int {
    guard flags & ~(Self.emptyPath | Self.noFollow) == 0 else { return -Int(EINVAL) }
    // A child of vfork leaves its parent's memory behind as it is: by now all but the block is free again, and the
    // parent frees that.
    let file: Int32?
    do throws(Refusal) {
      file = try prepare(path, arguments, environment, directory: directory, flags: flags)
    } catch { return -Int(error.number) }
    guard let block = executionBlock else { return -Int(ENOMEM) }
    // Handlers of the guest's become default by themselves; the mask stays, as it must. What the guest ignores but the host
    // catches must be ignored then, too.
    let caught = process.catchesAllSignals ? .max : Self.alwaysCaught
    let ignored = actions.ignored & caught
    for signal in 1...64 where ignored & Self.bit(signal) != 0 {
      _ = apus_user_set_disposition(Int32(signal), 1, 0)
    }
    defer {
      for signal in 1...64 where ignored & Self.bit(signal) != 0 { _ = apus_user_catch(Int32(signal), 0) }
    }
    leaveSharedMemory()
    execve(block.path, block.arguments, block.environment)
    let error = errno
    returnToSharedMemory()
    freeExecutionBlock()
    if let file { Glibc.close(file) }
    if let file = filtersForExecution { Glibc.close(file) }
    filtersForExecution = nil
    return -Int(error)
  }

  func freeExecutionBlock() {
    executionBlock?.free()
    executionBlock = nil
  }

  /// Fills `executionBlock`; returns a descriptor that is to be closed if the program cannot be executed.
  private func prepare(
    _ path: UInt64, _ arguments: UInt64, _ environment: UInt64, directory: Int32, flags: UInt64
  ) throws(Refusal) -> Int32? {
    guard let name = process.memory.readString(path), let argumentList = readVector(arguments),
      let environmentList = readVector(environment)
    else { throw Refusal(number: EFAULT) }
    var file: Int32?
    var program = name
    if name.isEmpty {
      guard flags & Self.emptyPath != 0 else { throw Refusal(number: ENOENT) }
      guard apus_fcntl(directory, F_GETFD, 0) >= 0 else { throw Refusal(number: EBADF) }
      file = directory
      program = ByteString(text: "/proc/self/fd/\(directory)")
    } else if directory != AT_FDCWD, !name.isAbsolute {
      guard apus_fcntl(directory, F_GETFD, 0) >= 0 else { throw Refusal(number: EBADF) }
      program = ByteString(text: "/proc/self/fd/\(directory)/") + name
    } else {
      program = process.hostPath(name)
    }
    if flags & Self.noFollow != 0, !name.isEmpty {
      var status = stat()
      guard program.withPointer({ lstat($0, &status) }) == 0 else { throw Refusal(number: errno) }
      if status.st_mode & S_IFMT == S_IFLNK { throw Refusal(number: ELOOP) }
    }
    let command = try command(program, name, argumentList, file: file, depth: 0)
    executionBlock = ExecutionBlock(command.path, command.arguments, environmentList)
    return command.file
  }

  private func command(
    _ program: ByteString, _ name: ByteString, _ arguments: [ByteString], file: Int32?, depth: Int
  ) throws(Refusal) -> Command {
    var status = stat()
    guard program.withPointer({ stat($0, &status) }) == 0 else { throw Refusal(number: errno) }
    guard status.st_mode & S_IFMT == S_IFREG,
      program.withPointer({ faccessat(AT_FDCWD, $0, X_OK, AT_EACCESS) }) == 0
    else { throw Refusal(number: EACCES) }
    let check = checkExecution(program)
    guard check == 0 || check == -Int(EINVAL) else { throw Refusal(number: Int32(-check)) }
    let descriptor = program.withPointer { apus_open($0, O_RDONLY | O_CLOEXEC, 0) }
    // Executable but not readable: the kernel may know what to do.
    guard descriptor >= 0 else { return Command(path: program, arguments: arguments) }
    defer { Glibc.close(descriptor) }
    // Nobody may be writing to it: where the kernel was not asked, a lease for reading says so (EAGAIN).
    if check != 0 {
      if apus_fcntl(descriptor, 1024, F_RDLCK) == 0 {
        _ = apus_fcntl(descriptor, 1024, F_UNLCK)
      } else if errno == EAGAIN {
        throw Refusal(number: ETXTBSY)
      }
    }
    var head = [UInt8](repeating: 0, count: 256)
    let count = pread(descriptor, &head, 256, 0)
    if count > 2, head[0] == UInt8(ascii: "#"), head[1] == UInt8(ascii: "!") {
      return try script(head[2..<count], isWhole: count < 256, name, program, arguments, file: file, depth)
    }
    guard ProgramLoader.machine(ofHeader: Array(head[..<max(count, 0)])) == process.isa.machine else {
      return Command(path: program, arguments: arguments)
    }
    try checkInterpreter(descriptor, head, Int(status.st_size))
    guard let own = process.ownPath() else { return Command(path: program, arguments: arguments) }
    var words =
      [ByteString(text: "apus-" + process.isa.name)] + process.options.inherited.map { ByteString(text: $0) }
    filtersForExecution = filterFile()
    if let filters = filtersForExecution {
      words += [ByteString("-seccomp"), ByteString(text: "\(filters)")]
    }
    if let limits = process.limitsText { words += [ByteString("-limits"), ByteString(text: limits)] }
    if let traceText { words += [ByteString("-traced"), ByteString(text: traceText)] }
    var copy: Int32?
    if file != nil {
      // It may be marked to be closed, or open for its path only: the copy is not, and the next emulator closes it.
      let number = apus_fcntl(descriptor, F_DUPFD, 100)
      guard number >= 0 else { throw Refusal(number: errno) }
      words += [ByteString("-exec-fd"), ByteString(text: "\(number)")]
      copy = number
    }
    words += [ByteString("-0"), arguments.first ?? name, program]
    return Command(path: own, arguments: words + arguments.dropFirst(), file: copy)
  }

  /// Asks the kernel whether the file may be executed, and has it tell who watches for that (FAN_OPEN_EXEC). 0 or a negative
  /// errno: EINVAL before Linux 6.14.
  private func checkExecution(_ program: ByteString) -> Int {
    let onlyCheck: UInt64 = 0x10000  // AT_EXECVE_CHECK
    return program.withAddress { path in
      withUnsafePointer(to: 0x78 as UInt16) { name in
        let arguments: [UInt64] = [UInt64(UInt(bitPattern: name)), 0]
        return arguments.withUnsafeBytes { raw in
          let vector = UInt64(UInt(bitPattern: raw.baseAddress))
          return direct(
            322,
            CallArguments(
              a: UInt64(bitPattern: Int64(AT_FDCWD)), b: path, c: vector, d: vector + 8, e: onlyCheck, f: 0))
        }
      }
    }
  }

  /// `#!interpreter [argument]`.
  private func script(
    _ line: ArraySlice<UInt8>, isWhole: Bool, _ name: ByteString, _ program: ByteString,
    _ arguments: [ByteString], file: Int32?, _ depth: Int
  ) throws(Refusal) -> Command {
    guard depth < Self.maximumScriptDepth else { throw Refusal(number: ELOOP) }
    func isBlank(_ byte: UInt8) -> Bool { byte == 32 || byte == 9 }
    guard isWhole || line.contains(10) else { throw Refusal(number: ENOEXEC) }
    let text = line.prefix { $0 != 10 && $0 != 0 }.drop(while: isBlank)
    let interpreter = ByteString(text.prefix { !isBlank($0) })
    guard !interpreter.isEmpty else { throw Refusal(number: ENOEXEC) }
    var rest = ByteString(text.dropFirst(interpreter.count).drop(while: isBlank))
    while let last = rest.last, isBlank(last) { rest.removeLast() }
    if file != nil, let file, apus_fcntl(file, F_GETFD, 0) & FD_CLOEXEC != 0 { throw Refusal(number: ENOENT) }
    let script = file == nil ? name : program
    let words = [interpreter] + (rest.isEmpty ? [] : [rest]) + [script] + arguments.dropFirst()
    return try command(process.hostPath(interpreter), interpreter, words, file: nil, depth: depth + 1)
  }

  /// Refuses what the emulator could not load, so that the caller hears of it as the kernel would say it.
  private func checkInterpreter(_ file: Int32, _ header: [UInt8], _ byteCount: Int) throws(Refusal) {
    guard let segments = ProgramLoader.readSegments(file, header: header, fileByteCount: UInt64(byteCount))
    else { throw Refusal(number: ENOEXEC) }
    guard let segment = segments.first(where: { $0.type == 3 }) else { return }
    var name = [UInt8](repeating: 0, count: Int(min(segment.fileByteCount, 4096)))
    guard pread(file, &name, name.count, Int(segment.offset)) == name.count, let end = name.firstIndex(of: 0)
    else { throw Refusal(number: ENOEXEC) }
    let path = process.hostPath(ByteString(name[..<end]))
    guard path.withPointer({ access($0, F_OK) }) == 0 else { throw Refusal(number: errno) }
  }

  private func readVector(_ address: UInt64) -> [ByteString]? {
    if address == 0 { return [] }
    var result: [ByteString] = []
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

/// What execve takes, in one piece of host memory.
struct ExecutionBlock {
  // SAFETY: all point into one allocation, which lives until `free`.
  let path: UnsafeMutablePointer<CChar>
  let arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
  let environment: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>

  init?(_ path: ByteString, _ arguments: [ByteString], _ environment: [ByteString]) {
    let pointerCount = arguments.count + environment.count + 2
    let texts = [path] + arguments + environment
    let byteCount = texts.reduce(pointerCount * 8) { $0 + $1.count + 1 }
    guard let base = malloc(byteCount) else { return nil }
    var text = (base + pointerCount * 8).assumingMemoryBound(to: CChar.self)
    func append(_ bytes: ByteString) -> UnsafeMutablePointer<CChar> {
      let start = text
      bytes.withUnsafeBytes {
        UnsafeMutableRawBufferPointer(start: start, count: bytes.count).copyMemory(from: $0)
      }
      start[bytes.count] = 0
      text += bytes.count + 1
      return start
    }
    self.arguments = base.assumingMemoryBound(to: UnsafeMutablePointer<CChar>?.self)
    self.environment = self.arguments + arguments.count + 1
    self.path = append(path)
    for (index, argument) in arguments.enumerated() { self.arguments[index] = append(argument) }
    self.arguments[arguments.count] = nil
    for (index, variable) in environment.enumerated() { self.environment[index] = append(variable) }
    self.environment[environment.count] = nil
  }
  func free() { Glibc.free(arguments) }
}
