import ApusBlock
import ApusConfig
import ApusCrypto
import ApusHost
import ApusQcow2
import ApusStorage

extension ImgTool {
  static let commit = Command(
    name: "commit", usage: "[-q] [-f FMT] [-t CACHE] [-b BASE] [-d] [-p] FILE",
    help: """
      Writes what an image has into the image behind it, and empties it (-d: leaves it as it is).
        -b BASE  an image further down the chain
      """,
    options: [
      format, quiet, cache, .init("b", "", value: true),
      .init("d", ""), progressOption,
    ]
  ) { (arguments) throws(ToolError) in
    let name = try operand(arguments, "commit")
    let mode = try cacheMode(arguments["cache"], default: .writeback)
    // Once to learn the chain, then each image for what is done with it: one file is not opened twice.
    let chain = try open(name, arguments, format: arguments["format"], OpenOptions()).chain
    if arguments.has("image-opts")
      || ([name] + chain.compactMap(\.backingFilename)).contains(where: { $0.hasPrefix("json:") })
    {
      // Options say more than the names of images: the chain is opened as a whole, for writing.
      try request { () throws(BlockError) in try chain[0].node.close() }
      var options = OpenOptions(writable: true)
      options.writesBacking = true
      options.cache = mode
      let front = try open(name, arguments, format: arguments["format"], options)
      let base = try commitBase(front.chain, arguments, name)
      return try carryOutCommit(
        front, front.chain[base], arguments, empties: !arguments.has("d") && !arguments.has("b"))
    }
    let baseIndex = try commitBase(chain, arguments, name)
    let baseName = chain[baseIndex].filename
    let baseFormat = chain[baseIndex].format
    let names = chain[..<baseIndex].map { ($0.filename, $0.format) }
    try request { () throws(BlockError) in for image in chain { try image.node.close() } }
    return try commitChain(
      names, baseName, baseFormat, mode, arguments, empties: !arguments.has("d") && !arguments.has("b"))
  }

  /// Where in the chain the image lies that is written to.
  private static func commitBase(_ chain: [OpenedImage], _ arguments: Arguments, _ name: String)
    throws(ToolError)
    -> Int
  {
    guard chain.count > 1 else { throw ToolError("'\(name)': image does not have a backing file") }
    guard let base = arguments["b"] else { return 1 }
    // Names are relative to the image, as they are stored in it.
    let path = FileNames.resolve(base, from: name)
    guard
      let index = chain.indices.dropFirst().first(where: {
        chain[$0].filename == path || chain[$0 - 1].backingFilename == base
          || ImageGraph.isSameFile(chain[$0].filename, path)
      })
    else {
      throw ToolError("did not find '\(base)' in the backing chain of '\(name)'")
    }
    return index
  }

  private static func commitChain(
    _ names: [(String, String)], _ baseName: String, _ baseFormat: String, _ mode: BlockCacheMode,
    _ arguments: Arguments,
    empties: Bool
  ) throws(ToolError) -> Int32 {
    var writable = OpenOptions(writable: true)
    writable.cache = mode
    writable.objects = try objects(arguments)
    let base = try tool { () throws(StorageError) in
      try ImageGraph(writable).open(baseName, format: baseFormat)
    }
    var front = base
    for (index, (name, format)) in names.enumerated().reversed() {
      var options = OpenOptions(writable: index == 0)
      options.objects = writable.objects
      options.withoutBacking = true
      let image = try tool { () throws(StorageError) in try ImageGraph(options).open(name, format: format) }
      image.qcow2?.attachBacking(front.node)
      (image.node as? any BackedImage)?.attachBacking(front.node)
      front = OpenedImage(
        image.node, filename: name, format: format, backing: front, backingFilename: image.backingFilename)
    }
    return try carryOutCommit(front, base, arguments, empties: empties)
  }

  private static func carryOutCommit(
    _ front: OpenedImage, _ base: OpenedImage, _ arguments: Arguments, empties: Bool
  ) throws(ToolError) -> Int32 {
    let meter = ProgressMeter(isForced: arguments.has("progress"))
    try request("commit to '\(base.filename)'") { () throws(BlockError) in
      if front.node.byteCount > base.node.byteCount {
        try base.node.truncate(front.node.byteCount, preallocation: .off)
      }
      let size = front.node.byteCount
      let buffer = HostBuffer(byteCount: 2 << 20)
      var position: UInt64 = 0
      while position < size {
        let found = try front.chainStatus(at: position, byteCount: size - position, downTo: base)
        var count = found.status.byteCount
        if found.isPresent {
          if found.status.isZero {
            try base.node.writeZeroes(at: position, byteCount: count, mayUnmap: true)
          } else {
            count = min(count, UInt64(buffer.byteCount))
            try front.node.read(at: position, into: [buffer.io(0, Int(count))])
            try base.node.write(at: position, from: [buffer.io(0, Int(count))])
          }
        }
        position += count
        meter.update(Double(position) / Double(size))
      }
      try base.node.flush()
      if empties { try front.qcow2?.makeEmpty() }
      try front.node.close()
    }
    meter.finish()
    if !arguments.has("quiet") { printLine("Image committed.") }
    return 0
  }

  static let rebase = Command(
    name: "rebase", usage: "[-f FMT] [-t CACHE] [-T CACHE] [-p] [-q] [-u] -b BACKING [-F FMT] FILE",
    help: """
      Gives an image another backing file, or with -b "" none, and copies what differs.
      With -u only the name changes.
      """,
    options: [
      format, cache, sourceCache, progressOption, quiet, .init("u", ""),
      .init("b", "", value: true),
      .init("F", "", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    let name = try operand(arguments, "rebase")
    guard let backing = arguments["b"] else {
      throw ToolError("must specify backing file (-b) or use simple mode (-b \"\")")
    }
    let format = arguments["F"]
    if !backing.isEmpty, format == nil {
      throw ToolError("rebase needs the backing file's format: give -F")
    }
    var options = OpenOptions(writable: true)
    options.cache = try cacheMode(arguments["cache"], default: .writeback)
    options.withoutBacking = arguments.has("u")
    options.objects = try objects(arguments)
    let image = try open(name, arguments, format: arguments["format"], options)
    guard let qcow2 = image.qcow2 else {
      throw ToolError("images of the format '\(image.format)' cannot be rebased")
    }
    if !arguments.has("u") {
      var next: OpenedImage?
      if !backing.isEmpty {
        // The old chain is open for reading, too: no locks are needed twice.
        var reading = OpenOptions()
        reading.objects = options.objects
        reading.cache = try cacheMode(arguments["source-cache"], default: .writeback)
        next = try tool { () throws(StorageError) in
          try ImageGraph(reading).open(FileNames.resolve(backing, from: name), format: format)
        }
      }
      let meter = ProgressMeter(isForced: arguments.has("progress"))
      if next != nil { qcow2.expectBacking() }
      try request("rebase of '\(name)'") { () throws(BlockError) in try copyDifferences(image, next, meter) }
      meter.finish()
    }
    try request { () throws(BlockError) in
      try qcow2.flush()
      try qcow2.setBackingFile(backing.isEmpty ? nil : backing, format: format)
      try qcow2.close()
    }
    return 0
  }

  /// Stores in `image` what it read from its old backing file and would read otherwise from `next`.
  private static func copyDifferences(_ image: OpenedImage, _ next: OpenedImage?, _ meter: ProgressMeter)
    throws(BlockError)
  {
    let size = image.node.byteCount
    let unit = max(image.node.clusterByteCount, 65536)
    let old = HostBuffer(byteCount: Int(unit))
    let new = HostBuffer(byteCount: Int(unit))
    var position: UInt64 = 0
    while position < size {
      let status = try image.node.status(at: position, byteCount: size - position)
      guard !status.isAllocated else {
        position += status.byteCount
        continue
      }
      let end = position + status.byteCount
      while position < end {
        let count = min(end - position, unit - position % unit)
        let inOld = try image.chainStatus(at: position, byteCount: count)
        let isOldZero = inOld.status.isZero && inOld.status.byteCount >= count
        var isNewZero = true
        if let next, position < next.node.byteCount {
          let inNew = try next.chainStatus(at: position, byteCount: count)
          isNewZero = inNew.status.isZero && inNew.status.byteCount >= count
        }
        if !(isOldZero && isNewZero) {
          try image.node.read(at: position, into: [old.io(0, Int(count))])
          try readOrZero(next, position, new.io(0, Int(count)))
          if !HostBytes.areEqual(old.base, new.base, Int(count)) {
            if HostBytes.isZero(old.base, Int(count)) {
              try image.node.writeZeroes(at: position, byteCount: count, mayUnmap: true)
            } else {
              try image.node.write(at: position, from: [old.io(0, Int(count))])
            }
          }
        }
        position += count
      }
      meter.update(Double(position) / Double(size))
    }
  }

  private static func readOrZero(_ image: OpenedImage?, _ offset: UInt64, _ buffer: IOBuffer)
    throws(BlockError)
  {
    let size = image?.node.byteCount ?? 0
    let inside = offset < size ? min(UInt64(buffer.byteCount), size - offset) : 0
    if let image, inside > 0 { try image.node.read(at: offset, into: [IOBuffer(buffer.base, Int(inside))]) }
    IOBuffer(buffer.base + Int(inside), buffer.byteCount - Int(inside)).clear()
  }

  // MARK: amend

  static let amend = Command(
    name: "amend", usage: "[-q] [-f FMT] [-t CACHE] [-p] [--force] -o OPTIONS FILE",
    help: """
      Changes an image's format options: compat, lazy_refcounts, refcount_bits, backing_file, backing_fmt, size.
      Key slots of LUKS (of qcow2 with encrypt. before each name): state=active with new-secret=ID adds a passphrase,
      into keyslot=N, in iter-time=MS; state=inactive with old-secret=ID or keyslot=N erases slots.
        --force  overwrite slots in use, erase the last one
      """,
    options: [format, quiet, cache, progressOption, .init("o", "", value: true), .init("", "force")]
  ) { (arguments) throws(ToolError) in
    guard arguments.has("o") else { throw ToolError("must specify options (-o)") }
    let known = ["compat", "lazy_refcounts", "refcount_bits", "backing_file", "backing_fmt", "size"]
    let slotKeys = ["state", "new-secret", "old-secret", "keyslot", "iter-time"]
    if arguments.all("o").contains(where: { $0 == "help" || $0 == "?" }) {
      let names = known + slotKeys.map { "encrypt.\($0)" }
      printLine("Amend options for 'qcow2':\n" + names.map { "  \($0)" }.joined(separator: "\n"))
      printLine("Amend options for 'luks':\n" + slotKeys.map { "  \($0)" }.joined(separator: "\n"))
      return 0
    }
    let name = try operand(arguments, "amend")
    let list = try optionList(arguments)
    var options = OpenOptions(writable: true)
    options.cache = try cacheMode(arguments["cache"], default: .writeback)
    let image = try open(name, arguments, format: arguments["format"], options)
    let prefix = image.qcow2 == nil ? "" : "encrypt."
    let slots = list.entries.filter {
      $0.key.hasPrefix(prefix) && slotKeys.contains(String($0.key.dropFirst(prefix.count)))
    }
    if !slots.isEmpty {
      guard slots.count == list.entries.count else {
        throw ToolError("key slots and other options cannot be changed at once")
      }
      try changeSlots(
        image, OptionList(slots.map { .init(String($0.key.dropFirst(prefix.count)), $0.value) }), arguments)
      return 0
    }
    if arguments.has("force") { throw ToolError("--force is for key slots") }
    guard let qcow2 = image.qcow2 else {
      throw ToolError("Format driver '\(image.format)' does not support option amendment")
    }
    let (lazy, bits) = try parsed { () throws(ConfigurationError) in
      try list.check(known: known, of: "amend")
      return (
        try list.bool("lazy_refcounts", of: "amend"),
        try list.number("refcount_bits", of: "amend", in: 1...64)
      )
    }
    let meter = ProgressMeter(isForced: arguments.has("progress") && !arguments.has("quiet"))
    meter.update(0)
    try request("amend '\(name)'") { () throws(BlockError) in
      try change(qcow2, list, lazy, bits.map { Int($0) })
    }
    meter.finish()
    return 0
  }

  private static func changeSlots(_ image: OpenedImage, _ list: OptionList, _ arguments: Arguments)
    throws(ToolError)
  {
    let (number, time) = try parsed { () throws(ConfigurationError) in
      (
        try list.number("keyslot", of: "amend", in: 0...7),
        try list.number("iter-time", of: "amend", in: 1...600_000)
      )
    }
    let objects = try objects(arguments)
    func secret(_ key: String) throws(ToolError) -> [UInt8]? {
      guard let id = list[key] else { return nil }
      return try tool { () throws(StorageError) in try objects.passphrase(id) }
    }
    let (new, old) = (try secret("new-secret"), try secret("old-secret"))
    let force = arguments.has("force")
    let slot = number.map { Int($0) }
    try request("amend '\(image.filename)'") { () throws(BlockError) in
      var slots: LUKSKeySlots
      if let qcow2 = image.qcow2 {
        slots = try qcow2.keySlots()
      } else if let luks = image.node as? LUKSNode {
        slots = try luks.keySlots()
      } else {
        throw BlockError(.unsupported, "images of the format '\(image.format)' have no key slots")
      }
      switch (list["state"], new, old) {
      case ("active", let new?, nil):
        try slots.add(new, slot: slot, iterationMilliseconds: Int(time ?? 2000), force: force)
      case ("inactive", nil, let old?) where slot == nil && time == nil:
        try slots.erase(openedBy: old, force: force)
      case ("inactive", nil, nil) where slot != nil && time == nil:
        try slots.erase(slot: slot ?? 0, force: force)
      default:
        throw BlockError(
          .invalid,
          "state=active needs new-secret=, state=inactive either old-secret= or keyslot= and nothing else")
      }
      try image.node.close()
    }
  }

  private static func change(_ image: Qcow2Image, _ list: OptionList, _ lazy: Bool?, _ bits: Int?)
    throws(BlockError)
  {
    let isVersion2 = list["compat"] == "0.10" || list["compat"] == "v2"
    if isVersion2, (bits ?? image.information.refcountBits) != 16 {
      throw BlockError(.unsupported, "compat=0.10 has refcount_bits=16 only")
    }
    switch list["compat"] {
    case nil: break
    case "1.1", "v3": try image.setVersion(3)
    case "0.10", "v2":
      if image.information.hasLazyRefcounts { try image.setLazyRefcounts(false) }
    case let text?: throw BlockError(.invalid, "compat is '\(text)'; it must be 0.10 or 1.1")
    }
    // With version 3, which knows snapshots of other sizes.
    if let size = list["size"] {
      guard let size = parseSize(size) else { throw BlockError(.invalid, "size is '\(size)'") }
      try image.truncate(size, preallocation: .off)
    }
    if let bits { try image.setRefcountBits(bits) }
    if let lazy { try image.setLazyRefcounts(lazy) }
    if isVersion2 { try image.setVersion(2) }
    if list["backing_file"] != nil || list["backing_fmt"] != nil {
      let name = list["backing_file"] ?? image.backingFileName
      try image.setBackingFile(name == "" ? nil : name, format: list["backing_fmt"] ?? image.backingFormat)
    }
    try image.close()
  }
}
