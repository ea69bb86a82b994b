import ApusBlock
import ApusConfig
import ApusHost
import ApusImages
import ApusQcow2
import ApusStorage

extension ImgTool {
  static let check = Command(
    name: "check", usage: "[-q] [-f FMT] [--output=human|json] [-r leaks|all] [-T CACHE] [-U] FILE",
    help: """
      Looks for contradictions in an image; -r repairs leaked clusters, or everything.
      Exit code: 0 no errors, 2 corruption, 3 leaked clusters only, 1 the check failed, 63 the format has no check.
      """,
    options: [format, quiet, output, sourceCache, forceShare, .init("r", "repair", value: true)]
  ) { (arguments) throws(ToolError) in
    let name = try operand(arguments, "check")
    let json = try isJSON(arguments)
    let repair: Qcow2Image.Repair
    switch arguments["repair"] {
    case nil: repair = .none
    case "leaks": repair = .leaks
    case "all": repair = .all
    case let text?: throw ToolError("-r expects 'leaks' or 'all' (not '\(text)')")
    }
    var options = OpenOptions(writable: repair != .none)
    options.isForCheck = true
    options.withoutBacking = true
    options.cache = try cacheMode(arguments["source-cache"], default: .writeback)
    let image = try open(name, arguments, format: arguments["format"], options)
    guard let qcow2 = image.qcow2 else {
      if repair == .none, let found = try checkTable(image) {
        for message in found.messages where !arguments.has("quiet") {
          if json { writeStandardError(message + "\n") } else { printLine(message) }
        }
        return try report(name, image.format, found, arguments, json)
      }
      throw ToolError("This image format does not support checks", code: 63)
    }
    var result = try request("Check failed") { () throws(BlockError) in try qcow2.check(repair: repair) }
    for message in result.messages where !arguments.has("quiet") {
      if json { writeStandardError(message + "\n") } else { printLine(message) }
    }
    if result.corruptionsFixed + result.leaksFixed > 0 {
      let (leaks, corruptions) = (result.leaksFixed, result.corruptionsFixed)
      if !json, !arguments.has("quiet") {
        printLine(
          "The following inconsistencies were found and repaired:\n\n    \(leaks) leaked clusters\n    \(corruptions) corruptions\n\nDouble checking the fixed image now..."
        )
      }
      result = try request("Check failed") { () throws(BlockError) in try qcow2.check() }
      (result.leaksFixed, result.corruptionsFixed) = (leaks, corruptions)
    }
    try request { () throws(BlockError) in try qcow2.close() }
    return try report(name, image.format, result, arguments, json)
  }

  /// The check of a format other than qcow2; `nil` if there is none.
  private static func checkTable(_ image: OpenedImage) throws(ToolError) -> Qcow2Image.CheckResult? {
    guard let checked = image.node as? any CheckedImage,
      let found = try request("Check failed", { () throws(BlockError) in try checked.check() })
    else { return nil }
    var result = Qcow2Image.CheckResult()
    (result.corruptions, result.messages) = (found.corruptions, found.messages)
    // The others' tables say nothing of how full they are, to qemu-img either.
    if ["parallels", "qed"].contains(image.format) {
      (result.totalClusters, result.allocatedClusters) = (found.totalBlocks, found.allocatedBlocks)
      result.fragmentedClusters = found.fragmentedBlocks
      if image.format == "parallels" { result.imageEndOffset = found.imageEndOffset }
    }
    return result
  }

  private static func report(
    _ name: String, _ format: String, _ result: Qcow2Image.CheckResult, _ arguments: Arguments, _ json: Bool
  ) throws(ToolError) -> Int32 {
    if json {
      var members: [JSONValue.Member] = []
      func add(_ key: String, _ value: UInt64) {
        if value > 0 { members.append(.init(key, JSONValue(value))) }
      }
      add("image-end-offset", result.imageEndOffset)
      add("total-clusters", result.totalClusters)
      members.append(.init("check-errors", JSONValue(result.checkErrors)))
      add("corruptions", UInt64(result.corruptions))
      add("leaks", UInt64(result.leaks))
      add("corruptions-fixed", UInt64(result.corruptionsFixed))
      add("leaks-fixed", UInt64(result.leaksFixed))
      add("allocated-clusters", result.allocatedClusters)
      add("fragmented-clusters", result.fragmentedClusters)
      add("compressed-clusters", result.compressedClusters)
      members += [.init("filename", .string(name)), .init("format", .string(format))]
      printLine(JSONValue.object(members).prettyText())
    } else if !arguments.has("quiet") {
      writeStandardOutput(humanReport(result))
    }
    if result.checkErrors > 0 { return 1 }
    return result.corruptions > 0 ? 2 : result.leaks > 0 ? 3 : 0
  }

  private static func humanReport(_ result: Qcow2Image.CheckResult) -> String {
    var text = ""
    if result.corruptions + result.leaks + result.checkErrors == 0 {
      text += "No errors were found on the image.\n"
    } else {
      if result.corruptions > 0 {
        text += "\n\(result.corruptions) errors were found on the image.\n"
        text += "Data may be corrupted, or further writes to the image may corrupt it.\n"
      }
      if result.leaks > 0 {
        text += "\n\(result.leaks) leaked clusters were found on the image.\n"
        text += "This means waste of disk space, but no harm to data.\n"
      }
      if result.checkErrors > 0 {
        text += "\n\(result.checkErrors) internal errors have occurred during the check.\n"
      }
    }
    if result.totalClusters > 0, result.allocatedClusters > 0 {
      func percent(_ part: UInt64, _ whole: UInt64) -> String {
        Format.fixed(Double(part) * 100 / Double(max(1, whole)), 2)
      }
      text +=
        "\(result.allocatedClusters)/\(result.totalClusters) = \(percent(result.allocatedClusters, result.totalClusters))% allocated, "
        + "\(percent(result.fragmentedClusters, result.allocatedClusters))% fragmented, "
        + "\(percent(result.compressedClusters, result.allocatedClusters))% compressed clusters\n"
    }
    if result.imageEndOffset > 0 { text += "Image end offset: \(result.imageEndOffset)\n" }
    return text
  }

  // MARK: map

  static let map = Command(
    name: "map",
    usage: "[-f FMT] [--start-offset=OFFSET] [--max-length=LENGTH] [--output=human|json] [-U] FILE",
    help: "Shows where the ranges of an image are stored.",
    options: [
      format, output, forceShare, .init("s", "start-offset", value: true),
      .init("l", "max-length", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    let name = try operand(arguments, "map")
    let json = try isJSON(arguments)
    let image = try open(name, arguments, format: arguments["format"], OpenOptions())
    let size = image.node.byteCount
    var position = min(size, try arguments.size("start-offset") ?? 0)
    let end = try arguments.size("max-length").map { min(size, position + $0) } ?? size
    let chain = image.chain
    if !json { printLine("Offset          Length          Mapped to       File") }
    var text = json ? "[" : ""
    var pending: MapEntry?
    var isFirst = true
    func flushEntry() {
      guard let entry = pending else { return }
      if json {
        text += (isFirst ? "" : ",\n") + entry.json
        isFirst = false
      } else if entry.isData, !entry.isZero {
        text += entry.human(chain)
      }
      if text.utf8.count > 60000 {
        writeStandardOutput(text)
        text = ""
      }
    }
    while position < end {
      let found = try request { () throws(BlockError) in
        try image.chainStatus(at: position, byteCount: end - position)
      }
      if !json, found.status.isData, !found.status.isZero, found.status.hostOffset == nil {
        throw ToolError("File contains external, encrypted or compressed clusters.")
      }
      let entry = MapEntry(position, found)
      if let last = pending, last.continues(with: entry) {
        pending?.byteCount += entry.byteCount
      } else {
        flushEntry()
        pending = entry
      }
      position += entry.byteCount
    }
    flushEntry()
    writeStandardOutput(text + (json ? "]\n" : ""))
    return 0
  }

  private struct MapEntry {
    var start: UInt64
    var byteCount: UInt64
    var depth: Int
    var isPresent: Bool
    var isZero: Bool
    var isData: Bool
    var offset: UInt64?

    init(_ start: UInt64, _ found: OpenedImage.ChainStatus) {
      self.start = start
      byteCount = found.status.byteCount
      (depth, isPresent) = (found.depth, found.isPresent)
      (isZero, isData, offset) = (found.status.isZero, found.status.isData, found.status.hostOffset)
    }

    func continues(with next: MapEntry) -> Bool {
      guard (depth, isPresent, isZero, isData) == (next.depth, next.isPresent, next.isZero, next.isData)
      else { return false }
      guard let offset else { return next.offset == nil }
      return next.offset == offset + byteCount
    }

    var json: String {
      "{ \"start\": \(start), \"length\": \(byteCount), \"depth\": \(depth), \"present\": \(isPresent), "
        + "\"zero\": \(isZero), \"data\": \(isData)" + (offset.map { ", \"offset\": \($0)" } ?? "") + "}"
    }
    func human(_ chain: [OpenedImage]) -> String {
      Format.padded(Format.hex(start), 16) + Format.padded(Format.hex(byteCount), 16)
        + Format.padded(Format.hex(offset ?? 0), 16) + chain[depth].filename + "\n"
    }
  }

  // MARK: compare

  static let compare = Command(
    name: "compare", usage: "[-f FMT] [-F FMT] [-T CACHE] [-p] [-q] [-s] [-U] FILE1 FILE2",
    help: """
      Compares what two images read as; -s also their size and what is allocated.
      Exit code: 0 equal, 1 different, 2 and more: an error.
      """,
    options: [
      format, .init("F", "", value: true), sourceCache, progressOption, quiet, .init("s", ""), forceShare,
    ]
  ) { (arguments) throws(ToolError) in
    guard arguments.operands.count == 2 else {
      throw ToolError("compare: expecting two image file names", code: 2)
    }
    var options = OpenOptions()
    options.cache = try cacheMode(arguments["source-cache"], default: .writeback)
    let first = try open(arguments.operands[0], arguments, format: arguments["format"], options, code: 2)
    let second = try open(arguments.operands[1], arguments, format: arguments["F"], options, code: 2)
    func say(_ text: String) { if !arguments.has("quiet") { printLine(text) } }
    var comparison = ImageComparison(first, second)
    comparison.isStrict = arguments.has("s")
    let meter = ProgressMeter(isForced: arguments.has("progress"))
    comparison.progress = { meter.update($0) }
    let result = try request(code: 4) { () throws(BlockError) in try comparison.run() }
    meter.finish()
    switch result {
    case .sizesDiffer:
      say("Strict mode: Image size mismatch!")
      return 1
    case .statusDiffers(let offset):
      say("Strict mode: Offset \(offset) block status mismatch!")
      return 1
    case .contentDiffers(let offset):
      if offset >= min(first.node.byteCount, second.node.byteCount) { say("Warning: Image size mismatch!") }
      say("Content mismatch at offset \(offset)!")
      return 1
    case .equal:
      if first.node.byteCount != second.node.byteCount { say("Warning: Image size mismatch!") }
      say("Images are identical.")
      return 0
    }
  }
}
