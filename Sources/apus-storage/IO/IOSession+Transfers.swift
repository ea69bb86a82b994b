import ApusBlock
import ApusConfig
import ApusHost
import ApusQcow2
import ApusStorage

/// Reads and writes.
extension IOSession {
  static let transferCommands: [Command] = [
    .init(
      name: "read", aliases: ["r"], usage: "[-bqv] [-P pattern [-s off] [-l len]] off len",
      help: "reads a number of bytes at a specified offset"
    ) { (session, words) throws(ToolError) in try session.read(words, isVectored: false) },
    .init(
      name: "readv", aliases: ["rv"], usage: "[-qv] [-P pattern] off len [len..]",
      help: "the same, into several buffers"
    ) {
      (session, words) throws(ToolError) in try session.read(words, isVectored: true)
    },
    .init(
      name: "write", aliases: ["w"], usage: "[-bcfquz] [-P pattern | -s source_file] off len",
      help: "writes a number of bytes at a specified offset"
    ) { (session, words) throws(ToolError) in try session.write(words, isVectored: false) },
    .init(
      name: "writev", aliases: ["wv"], usage: "[-fq] [-P pattern] off len [len..]",
      help: "the same, from several buffers"
    ) {
      (session, words) throws(ToolError) in try session.write(words, isVectored: true)
    },
    .init(name: "aio_read", usage: "[-qv] [-P pattern] off len [len..]", help: "reads in the background") {
      (session, words) throws(ToolError) in try session.read(words, isVectored: true, isAsynchronous: true)
    },
    .init(
      name: "aio_write", usage: "[-fquz] [-P pattern] off len [len..]", help: "writes in the background"
    ) {
      (session, words) throws(ToolError) in try session.write(words, isVectored: true, isAsynchronous: true)
    },
    .init(name: "aio_flush", usage: "", help: "waits for what runs in the background, and flushes") {
      (session, words) throws(ToolError) in
      session.waitForRequests()
      let node = try session.node()
      try request("flush failed") { () throws(BlockError) in try node.flush() }
    },
    .init(name: "flush", aliases: ["f"], usage: "", help: "makes written data durable") {
      (session, words) throws(ToolError) in
      let node = try session.node()
      try request("flush failed") { () throws(BlockError) in try node.flush() }
    },
    .init(
      name: "discard", aliases: ["d"], usage: "[-q] off len",
      help: "discards a number of bytes at a specified offset"
    ) {
      (session, words) throws(ToolError) in try session.discard(words)
    },
  ]

  /// Flags and operands of a request's command.
  struct RequestWords {
    var flags: Set<Character> = []
    var pattern: UInt8?
    var source: String?
    var verifyOffset: Int?
    var verifyCount: Int?
    var offset: UInt64 = 0
    var lengths: [UInt64] = []
    var byteCount: UInt64 { lengths.reduce(0, +) }

    /// - Parameter known: the letters of the command's flags; those of `Psl` have values.
    init(_ words: [String], flags known: String, command: String, isVectored: Bool, isWrite: Bool)
      throws(ToolError)
    {
      let valued = isWrite ? "Ps" : "Psl"
      var rest = words[...]
      while let word = rest.first, word.hasPrefix("-"), word.count > 1 {
        rest.removeFirst()
        var letters = word.dropFirst()
        while let letter = letters.popFirst() {
          // For old scripts.
          if letter == "p" { continue }
          guard known.contains(letter) else { throw ToolError("\(command): invalid option -- '\(letter)'") }
          flags.insert(letter)
          guard valued.contains(letter) else { continue }
          let attached = letters.isEmpty ? nil : String(letters)
          letters = ""
          guard let value = attached ?? rest.popFirst() else {
            throw ToolError("\(command): option -\(letter) needs a value")
          }
          try take(letter, value, isWrite)
        }
      }
      guard rest.count >= 2, isVectored || rest.count == 2 else {
        throw ToolError(
          "bad argument count \(rest.count) to \(command), expected \(isVectored ? "at least 2" : "2") arguments"
        )
      }
      offset = try Self.size(rest.removeFirst())
      for word in rest { lengths.append(try Self.size(word)) }
      guard byteCount <= 2 << 30 else {
        throw ToolError("length cannot exceed \(2 << 30), given \(byteCount)")
      }
    }

    private mutating func take(_ letter: Character, _ value: String, _ isWrite: Bool) throws(ToolError) {
      switch letter {
      case "P":
        guard let number = parseNumber(value), let byte = UInt8(exactly: number) else {
          throw ToolError("\(value) is not a valid pattern byte")
        }
        pattern = byte
      case "s" where isWrite: source = value
      case "s": verifyOffset = Int(clamping: try Self.size(value))
      default: verifyCount = Int(clamping: try Self.size(value))
      }
    }

    static func size(_ text: String) throws(ToolError) -> UInt64 {
      guard !text.hasPrefix("-") else { throw ToolError("the number '\(text)' is negative") }
      guard let size = parseSize(text), size < 1 << 63 else {
        throw ToolError("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- \(text)")
      }
      return size
    }
  }

  /// The image's VM state area (`-b`).
  private func vmState() throws(ToolError) -> Qcow2Image {
    guard let image = try opened().qcow2 else {
      throw ToolError("images of the format '\(try opened().format)' have no VM state area")
    }
    return image
  }

  private func buffers(_ words: RequestWords) -> (HostBuffer, [IOBuffer]) {
    // Zeros need none.
    if words.flags.contains("z") { return (HostBuffer(byteCount: 1), []) }
    let memory = HostBuffer(byteCount: max(1, Int(words.byteCount)), isZeroed: false)
    var list: [IOBuffer] = []
    var position = 0
    for length in words.lengths {
      list.append(memory.io(position, Int(length)))
      position += Int(length)
    }
    return (memory, list)
  }

  // MARK: read

  private func read(_ words: [String], isVectored: Bool, isAsynchronous: Bool = false) throws(ToolError) {
    let command = isAsynchronous ? "aio_read" : isVectored ? "readv" : "read"
    let request = try RequestWords(
      words, flags: isVectored ? "qvP" : "bqvPsl", command: command, isVectored: isVectored, isWrite: false)
    let node = try node()
    let state = request.flags.contains("b") ? try vmState() : nil
    let (memory, list) = buffers(request)
    HostBytes.fill(memory.base, memory.byteCount, 0xab)
    let job: @Sendable () -> Bool = {
      let start = HostClock.monotonicNanoseconds()
      do throws(BlockError) {
        if let state {
          try state.readVMState(at: request.offset, into: list)
        } else {
          if let error = node.rangeError(request.offset, request.byteCount) { throw error }
          try node.read(at: request.offset, into: list)
        }
      } catch {
        printLine("\(command) failed: \(error.description)")
        return false
      }
      return Self.finishRead(request, memory, HostClock.monotonicNanoseconds() - start)
    }
    run(job, isAsynchronous)
  }

  private func run(_ job: @escaping @Sendable () -> Bool, _ isAsynchronous: Bool) {
    guard isAsynchronous else {
      if !job() { fail() }
      return
    }
    submit { [asynchronousFailure] in
      if !job() { asynchronousFailure.isSet.store(true, ordering: .relaxed) }
    }
  }

  private static func finishRead(_ words: RequestWords, _ memory: HostBuffer, _ nanoseconds: UInt64) -> Bool {
    var isGood = true
    if let pattern = words.pattern {
      let start = min(words.verifyOffset ?? 0, Int(words.byteCount))
      let count = min(words.verifyCount ?? Int(words.byteCount) - start, Int(words.byteCount) - start)
      if memory.bytes[start..<start + count].contains(where: { $0 != pattern }) {
        printLine("Pattern verification failed at offset \(words.offset + UInt64(start)), \(count) bytes")
        isGood = false
      }
    }
    if words.flags.contains("q") { return isGood }
    report(
      words.flags.contains("v") ? dump(memory, Int(words.byteCount), words.offset) : "", "read",
      words.byteCount, words.offset, nanoseconds)
    return isGood
  }

  static func dump(_ memory: HostBuffer, _ count: Int, _ offset: UInt64) -> String {
    var text = ""
    for start in stride(from: 0, to: count, by: 16) {
      let address = String(offset + UInt64(start), radix: 16)
      text += String(repeating: "0", count: max(0, 8 - address.count)) + address + ":  "
      var letters = ""
      for index in start..<min(start + 16, count) {
        let byte = memory.bytes[index]
        text += (byte < 16 ? "0" : "") + String(byte, radix: 16) + " "
        letters += (0x21...0x7e).contains(byte) ? String(UnicodeScalar(byte)) : "."
      }
      text += " " + letters + "\n"
    }
    return text
  }

  /// Tells what was done, in one piece: requests may end at the same time.
  static func report(
    _ dump: String, _ verb: String, _ byteCount: UInt64, _ offset: UInt64, _ nanoseconds: UInt64
  ) {
    let seconds = max(Double(nanoseconds) / 1e9, 1e-9)
    let whole = UInt64(seconds)
    printLine(
      "\(dump)\(verb) \(byteCount)/\(byteCount) bytes at offset \(offset)\n"
        + "\(exactSize(byteCount)), 1 ops; \(whole < 10 ? "0" : "")\(Format.fixed(seconds, 2)) sec (\(exactSize(UInt64(Double(byteCount) / seconds)))/sec "
        + "and \(Format.fixed(1 / seconds, 4)) ops/sec)")
  }

  /// `1.500 MiB`, or without decimals if there are none.
  static func exactSize(_ byteCount: UInt64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    var value = Double(byteCount)
    var unit = 0
    while value >= 1024, unit < units.count - 1 {
      value /= 1024
      unit += 1
    }
    let text = Format.fixed(value, 3)
    return "\(text.hasSuffix(".000") ? String(text.dropLast(4)) : text) \(units[unit])"
  }

  // MARK: write

  private func write(_ words: [String], isVectored: Bool, isAsynchronous: Bool = false) throws(ToolError) {
    let command = isAsynchronous ? "aio_write" : isVectored ? "writev" : "write"
    let request = try RequestWords(
      words, flags: isAsynchronous ? "fquzP" : isVectored ? "fqP" : "bcfquzPs", command: command,
      isVectored: isVectored, isWrite: true)
    let flags = request.flags
    if flags.contains("u"), !flags.contains("z") { throw ToolError("-u requires -z to be specified") }
    if flags.contains("c"), flags.contains("z") {
      throw ToolError("-c and -z cannot be specified at the same time")
    }
    if flags.contains("z"), request.pattern != nil {
      throw ToolError("-z and -P cannot be specified at the same time")
    }
    if request.source != nil, request.pattern != nil {
      throw ToolError("-s and -P cannot be specified at the same time")
    }
    if flags.contains("b"), !flags.isDisjoint(with: ["z", "c"]) {
      throw ToolError("-b and -c/-z cannot be specified at the same time")
    }
    let node = try node()
    let state = flags.contains("b") ? try vmState() : nil
    if node.isReadOnly {
      writeStandardError("\(StorageTools.name): \(command): the image is open read-only\n")
      return fail()
    }
    let (memory, list) = buffers(request)
    try fill(memory, request)
    let job: @Sendable () -> Bool = {
      let start = HostClock.monotonicNanoseconds()
      do throws(BlockError) {
        if let state {
          try state.writeVMState(at: request.offset, from: list)
        } else {
          if let error = node.writeError(request.offset, request.byteCount) { throw error }
          try Self.carryOut(node, request, memory, list)
        }
      } catch {
        printLine("\(command) failed: \(error.description)")
        return false
      }
      if !flags.contains("q") {
        Self.report("", "wrote", request.byteCount, request.offset, HostClock.monotonicNanoseconds() - start)
      }
      return true
    }
    run(job, isAsynchronous)
  }

  private func fill(_ memory: HostBuffer, _ words: RequestWords) throws(ToolError) {
    guard let path = words.source else {
      return HostBytes.fill(memory.base, memory.byteCount, words.pattern ?? 0xcd)
    }
    let bytes: [UInt8]
    do throws(HostError) { bytes = try HostDescriptor.contents(path, limit: 2 << 30) } catch {
      throw ToolError(error.description)
    }
    guard !bytes.isEmpty else { throw ToolError("\(path): file is empty") }
    // A short file is repeated.
    for index in 0..<Int(words.byteCount) { memory.bytes[index] = bytes[index % bytes.count] }
  }

  private static func carryOut(
    _ node: any ImageNode, _ words: RequestWords, _ memory: HostBuffer, _ list: [IOBuffer]
  )
    throws(BlockError)
  {
    if words.flags.contains("z") {
      try node.writeZeroes(at: words.offset, byteCount: words.byteCount, mayUnmap: words.flags.contains("u"))
    } else if words.flags.contains("c") {
      let cluster = max(512, node.clusterByteCount)
      var done: UInt64 = 0
      while done < words.byteCount {
        let count = min(cluster, words.byteCount - done)
        let piece = memory.io(Int(done), Int(count))
        try node.writeCompressed(
          at: words.offset + done, original: piece, compressed: try node.compress(piece))
        done += count
      }
    } else {
      try node.write(at: words.offset, from: list)
    }
    if words.flags.contains("f") { try node.flush() }
  }

  private func discard(_ words: [String]) throws(ToolError) {
    let parsed = try RequestWords(words, flags: "q", command: "discard", isVectored: false, isWrite: true)
    let node = try node()
    let start = HostClock.monotonicNanoseconds()
    try request("discard failed") { () throws(BlockError) in
      if let error = node.writeError(parsed.offset, parsed.byteCount) { throw error }
      try node.discard(at: parsed.offset, byteCount: parsed.byteCount)
    }
    if !parsed.flags.contains("q") {
      Self.report("", "discard", parsed.byteCount, parsed.offset, HostClock.monotonicNanoseconds() - start)
    }
  }
}
