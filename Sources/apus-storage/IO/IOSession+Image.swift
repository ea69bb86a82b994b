import ApusBlock
import ApusConfig
import ApusHost
import ApusStorage

/// Commands about the image as a whole, and about the session.
extension IOSession {
  static let imageCommands: [Command] = [
    .init(name: "alloc", usage: "offset [count]", help: "checks if a range is allocated in the file") {
      (session, words) throws(ToolError) in try session.showAllocation(words)
    },
    .init(name: "map", usage: "", help: "prints the allocated areas of a file") {
      (session, words) throws(ToolError) in
      try session.showMap()
    },
    .init(name: "length", aliases: ["l"], usage: "", help: "gets the length of the current file") {
      (session, words) throws(ToolError) in printLine(exactSize(try session.node().byteCount))
    },
    .init(name: "info", aliases: ["i"], usage: "", help: "prints information about the current file") {
      (session, words) throws(ToolError) in
      let image = try session.opened()
      printLine("format name: \(image.format)")
      // A protocol's driver has its name twice.
      if image.node.children.isEmpty { printLine("format name: \(image.node.driverName)") }
      if image.node.clusterByteCount > 0 {
        printLine("cluster size: \(exactSize(image.node.clusterByteCount))")
      }
      if let qcow2 = image.qcow2 {
        printLine("vm state offset: \(exactSize(qcow2.vmStateOffset))")
      }
    },
    .init(
      name: "truncate", aliases: ["t"], usage: "[-m prealloc_mode] off", help: "sets the current file's size"
    ) {
      (session, words) throws(ToolError) in try session.truncate(words)
    },
    .init(
      name: "open", aliases: ["o"], usage: "[-rsCnU] [-t cache] [-d discard] [-o options] [path]",
      help: "opens a file"
    ) {
      (session, words) throws(ToolError) in try session.openCommand(words)
    },
    .init(name: "close", aliases: ["c"], usage: "", help: "closes the current open file") {
      (session, words) throws(ToolError) in
      _ = try session.node()
      try session.close()
    },
    .init(
      name: "reopen", usage: "[-r|-w] [-c cache] [-o options]", help: "opens the file again in another way"
    ) { (session, words) throws(ToolError) in
      do throws(ToolError) { try session.reopenCommand(words) } catch {
        writeStandardError("\(StorageTools.name): \(error.message)\n")
        session.fail()
      }
    },
    .init(name: "sleep", usage: "milliseconds", help: "waits") { (session, words) throws(ToolError) in
      guard let text = words.first, let milliseconds = parseNumber(text), milliseconds <= 1 << 32 else {
        throw ToolError("sleep: expected a number of milliseconds")
      }
      let end = HostClock.monotonicNanoseconds() + milliseconds * 1_000_000
      let monitor = Monitor()
      monitor.withLock { while HostClock.monotonicNanoseconds() < end { monitor.wait(until: end) } }
    },
    .init(name: "abort", usage: "", help: "ends like a crashed program, without closing anything") {
      (session, words) throws(ToolError) in HostProcess.dieBySignal(6)
    },
    .init(name: "sigraise", usage: "signal", help: "raises a signal") { (session, words) throws(ToolError) in
      guard let text = words.first, let number = Int32(text), (1...64).contains(number) else {
        throw ToolError("sigraise: expected a signal number")
      }
      HostProcess.dieBySignal(number)
    },
    .init(name: "quit", aliases: ["q"], usage: "", help: "ends the program") {
      (session, words) throws(ToolError) in
      session.quit()
    },
    .init(name: "help", aliases: ["?"], usage: "[command]", help: "help for one or all commands") {
      (session, words) throws(ToolError) in
      for command in commands where words.isEmpty || words.contains(command.name) {
        printLine("\(command.name) \(command.usage)\(command.usage.isEmpty ? "" : " ")-- \(command.help)")
      }
    },
  ]

  private func showAllocation(_ words: [String]) throws(ToolError) {
    guard (1...2).contains(words.count) else { throw ToolError("alloc: expected an offset and a count") }
    let offset = try RequestWords.size(words[0])
    let asked = words.count == 2 ? try RequestWords.size(words[1]) : 512
    let node = try node()
    // What lies behind the image's end is not asked about.
    let count = offset <= node.byteCount ? min(asked, node.byteCount - offset) : asked
    var allocated: UInt64 = 0
    var position = offset
    try request("alloc failed") { () throws(BlockError) in
      if let error = node.rangeError(offset, count) { throw error }
      while position < offset + count {
        let status = try node.status(at: position, byteCount: offset + count - position)
        if status.isAllocated { allocated += status.byteCount }
        position += status.byteCount
      }
    }
    printLine("\(allocated)/\(count) bytes allocated at offset \(Self.exactSize(offset))")
  }

  private func showMap() throws(ToolError) {
    let node = try node()
    var position: UInt64 = 0
    let size = node.byteCount
    while position < size {
      let start = position
      var isAllocated = false
      try request("map failed") { () throws(BlockError) in
        isAllocated = try node.status(at: start, byteCount: size - start).isAllocated
        while position < size {
          let status = try node.status(at: position, byteCount: size - position)
          guard status.isAllocated == isAllocated else { break }
          position += status.byteCount
        }
      }
      let length = position - start
      printLine(
        "\(Self.exactSize(length)) (0x\(String(length, radix: 16))) bytes \(isAllocated ? "    allocated" : "not allocated") "
          + "at offset \(Self.exactSize(start)) (0x\(String(start, radix: 16)))")
    }
  }

  private func truncate(_ words: [String]) throws(ToolError) {
    var words = words
    var mode = Preallocation.off
    if words.first == "-m", words.count == 3 {
      guard let given = Preallocation(rawValue: words[1]) else {
        throw ToolError("invalid preallocation mode '\(words[1])'")
      }
      mode = given
      words.removeFirst(2)
    }
    guard words.count == 1 else { throw ToolError("truncate: expected a size") }
    let size = try RequestWords.size(words[0])
    let node = try node()
    try request("truncate failed") { () throws(BlockError) in try node.truncate(size, preallocation: mode) }
  }

  private func reopenCommand(_ words: [String]) throws(ToolError) {
    var isReadOnly: Bool?
    var cache: BlockCacheMode?
    var options: [String] = []
    var rest = words[...]
    while let word = rest.popFirst() {
      switch word {
      case "-r", "-w":
        guard isReadOnly == nil else { throw ToolError("reopen: -r and -w can be given only once") }
        isReadOnly = word == "-r"
      case "-c":
        guard cache == nil else { throw ToolError("reopen: -c can be given only once") }
        cache = try ImgTool.cacheMode(rest.popFirst(), default: .writeback)
      case "-o":
        guard let text = rest.popFirst() else { throw ToolError("reopen: option -o needs a value") }
        options.append(text)
      default: throw ToolError("reopen: invalid option '\(word)'")
      }
    }
    var list = try ImgTool.parsed { () throws(ConfigurationError) in
      var list = OptionList()
      for text in options { list.entries += try OptionList(parsing: text).entries }
      return list
    }
    for key in list.keys where ["node-name", "driver"].contains(key.split(separator: ".").last ?? "") {
      guard list[key] == present(key) else { throw ToolError("reopen: '\(key)' cannot be changed") }
      list.entries.removeAll { $0.key == key }
    }
    // What cannot change while an image is open.
    for (key, given) in [
      ("read-only", isReadOnly != nil), ("cache.direct", cache != nil), ("cache.no-flush", cache != nil),
    ]
    where list[key] != nil && given { throw ToolError("reopen: \(key) is given twice") }
    try reopen { settings in
      if let isReadOnly { settings.isReadOnly = isReadOnly }
      if let cache { settings.cache = cache }
      settings.changes = list
    }
  }

  private func openNamed(_ name: String, _ shown: String, _ settings: OpenSettings) throws(ToolError) {
    do throws(ToolError) { try open(name, settings) } catch {
      writeStandardError("\(StorageTools.name): can't open: \(error.message)\n")
      fail()
    }
  }

  private func openCommand(_ words: [String]) throws(ToolError) {
    var settings = OpenSettings()
    var path: String?
    var options: [String] = []
    settings.objects = objects
    var rest = words[...]
    while let word = rest.popFirst() {
      // `-roPATH`: single letters in one word.
      if word.hasPrefix("-"), word.count > 2 {
        let letters = Array(word.dropFirst())
        rest =
          "tdo".contains(letters[0])
          ? ["-\(letters[0])", String(letters[1...])] + rest
          : ["-\(letters[0])", "-" + String(letters[1...])] + rest
        continue
      }
      switch word {
      case "-r": settings.isReadOnly = true
      case "-C": settings.copiesOnRead = true
      case "-s": settings.isTemporary = true
      case "-n": settings.cache = .none
      case "-U": settings.sharesAll = true
      case "-t": settings.cache = try ImgTool.cacheMode(rest.popFirst(), default: .writeback)
      case "-d": settings.unmaps = ["unmap", "on"].contains(rest.popFirst() ?? "")
      case "-o": if let text = rest.popFirst() { options.append(text) }
      default:
        guard !word.hasPrefix("-"), path == nil else { throw ToolError("open: invalid option '\(word)'") }
        path = word
      }
    }
    if settings.copiesOnRead, settings.isReadOnly { throw ToolError("-C and -r exclude each other") }
    if !options.isEmpty {
      settings.isOptionList = true
      let list = try ImgTool.parsed { () throws(ConfigurationError) in
        try OptionList(parsing: options.joined(separator: ","))
      }
      settings.options =
        try path.map { (path) throws(ToolError) in
          try tool { () throws(StorageError) in try FileNames.options(list, of: path) }
        } ?? list
      try openNamed(path ?? options[0], path ?? options[0], settings)
    } else if let path {
      try openNamed(path, path, settings)
    } else {
      throw ToolError("open: expected a path")
    }
  }
}
