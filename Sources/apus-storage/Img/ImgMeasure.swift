import ApusBlock
import ApusConfig
import ApusHost
import ApusQcow2
import ApusStorage
import Synchronization

extension ImgTool {
  static let measure = Command(
    name: "measure",
    usage: "[--output=human|json] [-O FMT] [-o OPTIONS] [--size N | [-f FMT] [-l SNAPSHOT] [-U] FILE]",
    help: "Tells how large a new image would get.",
    options: [
      format, output, forceShare, .init("O", "", value: true), .init("o", "", value: true),
      .init("", "size", value: true),
      .init("l", "snapshot", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    let target = arguments["O"] ?? "raw"
    var size: UInt64 = 0
    var used: UInt64 = 0
    var bitmaps: UInt64?
    let list = try optionList(arguments)
    guard let cluster = parseSize(list["cluster_size"] ?? "65536"), cluster >= 512,
      cluster.nonzeroBitCount == 1
    else {
      throw ToolError("measure: cluster_size is '\(list["cluster_size"] ?? "")'")
    }
    if let given = try arguments.size("size") {
      guard arguments.operands.isEmpty else {
        throw ToolError("--size N cannot be used together with a filename")
      }
      size = given
    } else {
      var image = try open(
        try operand(arguments, "measure"), arguments, format: arguments["format"], OpenOptions())
      if let key = arguments["snapshot"], let qcow2 = image.qcow2 {
        let node = try request { () throws(BlockError) in try qcow2.snapshotNode(key) }
        image = OpenedImage(node, filename: image.filename, format: image.format, backing: image.backing)
      }
      size = image.node.byteCount
      if let qcow2 = image.qcow2, qcow2.information.version == 3 {
        bitmaps = bitmapBytes(qcow2.bitmapList, size, cluster)
      }
      used = try request { () throws(BlockError) in try usedBytes(image, target == "raw" ? 512 : cluster) }
    }
    let required: UInt64
    let full: UInt64
    switch target {
    case "raw":
      try refuseOptions(list, ["size", "preallocation"])
      full = (size + 511) & ~511
      (required, bitmaps) = (full, nil)
    case "qcow2":
      let known = ImageFormat.named("qcow2")?.options.map(\.name) ?? []
      try refuseOptions(list, known)
      let order = (UInt64(list["refcount_bits"] ?? "16") ?? 16).trailingZeroBitCount
      if list["compat"] == "0.10" || list["compat"] == "v2" { bitmaps = nil }
      let header = list["encrypt.format"] == nil ? 0 : try encryptionHeaderBytes(list, "encrypt.")
      let metadata = try qcow2Metadata(size, cluster, UInt64(order), list["extended_l2"] == "on", header)
      let rounded = (size + cluster - 1) / cluster * cluster
      full = metadata + rounded
      let isPreallocated = ["metadata", "falloc", "full"].contains(list["preallocation"] ?? "off")
      // What an overlay can leave to its backing file is not known here.
      required = isPreallocated || list["backing_file"] != nil ? full : metadata + used
    case "luks":
      try refuseOptions(list, ImageFormat.named("luks")?.options.map(\.name) ?? [])
      full = try encryptionHeaderBytes(list, "") + (size + 511) & ~511
      (required, bitmaps) = (full, nil)
    default: throw ToolError("Format driver '\(target)' does not support measuring")
    }
    if try isJSON(arguments) {
      printLine(
        JSONValue.object(
          (bitmaps.map { [.init("bitmaps", JSONValue($0))] } ?? []) + [
            .init("required", JSONValue(required)), .init("fully-allocated", JSONValue(full)),
          ]
        ).prettyText())
    } else {
      printLine("required size: \(required)\nfully allocated size: \(full)")
      if let bitmaps { printLine("bitmaps size: \(bitmaps)") }
    }
    return 0
  }

  private static func refuseOptions(_ list: OptionList, _ known: [String]) throws(ToolError) {
    do throws(ConfigurationError) { try list.check(known: known, of: "measure") } catch {
      throw ToolError(error.description)
    }
  }

  /// Bytes in clusters that have data.
  private static func usedBytes(_ image: OpenedImage, _ cluster: UInt64) throws(BlockError) -> UInt64 {
    var position: UInt64 = 0
    var used: UInt64 = 0
    let size = image.node.byteCount
    var counted: UInt64 = 0
    while position < size {
      let status = try image.chainStatus(at: position, byteCount: size - position).status
      if !status.isZero {
        let first = max(counted, position / cluster * cluster)
        let end = (position + status.byteCount + cluster - 1) / cluster * cluster
        if end > first { used += end - first }
        counted = max(counted, end)
      }
      position += status.byteCount
    }
    return used
  }

  /// What copies of the bitmaps take.
  private static func bitmapBytes(_ list: [PersistentBitmap], _ size: UInt64, _ cluster: UInt64) -> UInt64 {
    func up(_ value: UInt64, _ unit: UInt64) -> UInt64 { (value + unit - 1) / unit }
    var clusters: UInt64 = 0
    var directory: UInt64 = 0
    for bitmap in list {
      let data = up(up(up(size, bitmap.granularity), 8), cluster)
      clusters += data + up(data * 8, cluster)
      directory += up(24 + UInt64(bitmap.name.utf8.count), 8) * 8
    }
    return (clusters + up(directory, cluster)) * cluster
  }

  /// The room of a LUKS header: eight key slots behind its first 4 KiB.
  private static func encryptionHeaderBytes(_ list: OptionList, _ prefix: String) throws(ToolError) -> UInt64
  {
    guard list[prefix + "key-secret"] != nil else {
      throw ToolError("measure: \(prefix)key-secret= is missing")
    }
    let bits: UInt64 = ["aes-128": 128, "aes-192": 192][list[prefix + "cipher-alg"] ?? ""] ?? 256
    let key = bits / 8 * (list[prefix + "cipher-mode"] == "cbc" ? 1 : 2)
    return 4096 + 8 * ((key * 4000 + 4095) & ~4095)
  }

  /// Header, L1 and L2 tables, and the counts for all of it.
  private static func qcow2Metadata(
    _ size: UInt64, _ cluster: UInt64, _ order: UInt64, _ isExtended: Bool, _ encryptionHeader: UInt64
  ) throws(ToolError) -> UInt64 {
    func up(_ value: UInt64, _ unit: UInt64) -> UInt64 { (value + unit - 1) / unit }
    let entry: UInt64 = isExtended ? 16 : 8
    let clusters = up(size, cluster)
    let l2Tables = up(clusters * entry, cluster)
    guard l2Tables <= 32 << 20 / 8 else {
      throw ToolError("measure: \(size) bytes are too many for clusters of \(cluster) bytes")
    }
    let l1 = up(l2Tables * 8, cluster)
    let base = 1 + l2Tables + l1 + clusters + up(encryptionHeader, cluster)
    let perBlock = (cluster * 8) >> order
    var total = base
    while true {
      let blocks = up(total, perBlock)
      let table = up(blocks * 8, cluster)
      if base + blocks + table == total { return (total - clusters) * cluster }
      total = base + blocks + table
    }
  }

  // MARK: bench

  static let bench = Command(
    name: "bench",
    usage:
      "[-c COUNT] [-d DEPTH] [-f FMT] [--flush-interval=N] [-i AIO] [-n] [--no-drain] [-o OFFSET] [--pattern=N] [-q] "
      + "[-s SIZE] [-S STEP] [-t CACHE] [-w] [-U] FILE",
    help: "Times COUNT (75000) reads, with -w writes, of SIZE (4096) bytes, DEPTH (64) at a time.",
    options: [
      .init("c", "count", value: true), .init("d", "depth", value: true), format,
      .init("", "flush-interval", value: true),
      .init("i", "aio", value: true), .init("n", "native"), .init("", "no-drain"),
      .init("o", "offset", value: true),
      .init("", "pattern", value: true), quiet, .init("s", "buffer-size", value: true),
      .init("S", "step-size", value: true), cache,
      .init("w", ""), forceShare,
    ]
  ) { (arguments) throws(ToolError) in
    let name = try operand(arguments, "bench")
    let isWrite = arguments.has("w")
    var options = OpenOptions(writable: isWrite)
    options.cache = try cacheMode(arguments["cache"], default: .writeback)
    options.requestMode = try requestMode(arguments["aio"] ?? (arguments.has("native") ? "native" : nil))
    let image = try open(name, arguments, format: arguments["format"], options)
    let count = try arguments.number("count", in: 1...Int(Int32.max)) ?? 75000
    let depth = try arguments.number("depth", in: 1...4096) ?? 64
    let size = try arguments.size("buffer-size") ?? 4096
    let step = try arguments.size("step-size") ?? 0
    let offset = try arguments.size("offset") ?? 0
    let flushInterval = try arguments.number("flush-interval", in: 0...Int(Int32.max)) ?? 0
    if flushInterval > 0, !isWrite { throw ToolError("--flush-interval is only available in write tests") }
    if flushInterval > 0, flushInterval < depth {
      throw ToolError("flush interval can't be smaller than depth")
    }
    let pattern = try arguments.number("pattern", in: 0...255) ?? 0
    guard size > 0, size < 1 << 30, size <= image.node.byteCount else {
      throw ToolError("bench: invalid buffer size specified")
    }
    if !arguments.has("quiet") {
      printLine(
        "Sending \(count) \(isWrite ? "write" : "read") requests, \(size) bytes each, \(depth) in parallel "
          + "(starting at offset \(offset), step size \(step == 0 ? size : step))")
      if flushInterval > 0 {
        printLine(
          "Sending flush every \(flushInterval) \(arguments.has("no-drain") ? "" : "drained ")requests")
      }
    }
    let load = BenchmarkLoad(
      image.node, count: count, size: Int(size), step: step == 0 ? size : step, offset: offset,
      isWrite: isWrite)
    load.flushInterval = flushInterval
    load.pattern = UInt8(pattern)
    let start = HostClock.monotonicNanoseconds()
    try request { () throws(BlockError) in
      try load.run(depth: depth)
      try image.node.close()
    }
    let seconds = Double(HostClock.monotonicNanoseconds() - start) / 1e9
    printLine("Run completed in \(Format.fixed(seconds, 3)) seconds.")
    return 0
  }
}

/// The requests of `bench`, from as many threads as make sense.
private final class BenchmarkLoad: @unchecked Sendable {
  // SAFETY: set before `run`, then only read; `next` and `failure` are guarded.
  private let node: any ImageNode
  private let count: Int
  private let size: Int
  private let step: UInt64
  private let offset: UInt64
  private let isWrite: Bool
  var flushInterval = 0
  var pattern: UInt8 = 0
  private let next = Atomic<Int>(0)
  private let failure = Mutex<BlockError?>(nil)

  init(_ node: any ImageNode, count: Int, size: Int, step: UInt64, offset: UInt64, isWrite: Bool) {
    (self.node, self.count, self.size, self.step, self.offset, self.isWrite) = (
      node, count, size, step, offset, isWrite
    )
  }

  func run(depth: Int) throws(BlockError) {
    if node.transferStart != .unsupported, flushInterval == 0 { return try runStarted(depth) }
    // A request occupies its thread. On this host's files more threads than this only wait for each other; on a network
    // each has a request under way.
    let limit = ImageCopier.isLocal(node) ? HostProcess.processorCount * 2 : 64
    let threads = (1..<max(1, min(depth, limit))).map { number in
      HostThread.spawn("bench-\(number)") { [self] in work() }
    }
    work()
    for thread in threads { thread.join() }
    if let failure = failure.withLock({ $0 }) { throw failure }
  }

  /// Requests that have ended: their buffers are free again.
  private final class Ended: @unchecked Sendable {
    // SAFETY: touched with `monitor` held.
    let monitor = Monitor()
    var slots: [Int]
    var count = 0
    var failure: BlockError?
    init(_ depth: Int) { slots = Array(0..<depth) }
  }

  /// All requests from this thread, as many at once as are asked for.
  private func runStarted(_ depth: Int) throws(BlockError) {
    let buffers = (0..<depth).map { _ in HostBuffer(byteCount: size) }
    for buffer in buffers { HostBytes.fill(buffer.base, size, pattern) }
    let ended = Ended(depth)
    let room = (node.byteCount - UInt64(size)) + 1
    var number = 0
    while true {
      let (slots, failure) = ended.monitor.withLock {
        // What can be taken: free buffers, or at the end the last completion.
        while ended.slots.isEmpty || ((number == count || ended.failure != nil) && ended.count < number) {
          ended.monitor.wait()
        }
        defer { ended.slots = [] }
        return (ended.slots, ended.failure)
      }
      if let failure { throw failure }
      if number == count { return }
      for (index, slot) in slots.enumerated() {
        guard number < count else {
          ended.monitor.withLock { ended.slots += slots[index...] }
          break
        }
        let position = (offset &+ UInt64(number) &* step) % room
        number += 1
        let transfer = NodeTransfer(isWrite: isWrite, offset: position, [buffers[slot].io]) { failure in
          ended.monitor.withLock {
            ended.slots.append(slot)
            ended.count += 1
            if ended.failure == nil { ended.failure = failure }
            ended.monitor.signal()
          }
        }
        if !node.startTransfer(transfer) { transfer.completion(carryOut(transfer)) }
      }
      node.submitTransfers()
    }
  }

  private func carryOut(_ transfer: NodeTransfer) -> BlockError? {
    do throws(BlockError) {
      if isWrite {
        try node.write(at: transfer.offset, from: transfer.buffers)
      } else {
        try node.read(at: transfer.offset, into: transfer.buffers)
      }
      return nil
    } catch { return error }
  }

  private func work() {
    let buffer = HostBuffer(byteCount: size)
    HostBytes.fill(buffer.base, size, pattern)
    let room = (node.byteCount - UInt64(size)) + 1
    while true {
      let number = next.add(1, ordering: .relaxed).oldValue
      guard number < count else { return }
      let position = (offset &+ UInt64(number) &* step) % room
      do throws(BlockError) {
        if isWrite {
          try node.write(at: position, from: [buffer.io])
        } else {
          try node.read(at: position, into: [buffer.io])
        }
        if flushInterval > 0, (number + 1) % flushInterval == 0 { try node.flush() }
      } catch {
        failure.withLock { $0 = error }
        next.store(count, ordering: .relaxed)
        return
      }
    }
  }
}
