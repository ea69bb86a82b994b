import ApusBlock
import ApusConfig
import ApusCrypto
import ApusHost
import ApusQcow2
import ApusStorage

extension ImgTool {
  static let info = Command(
    name: "info", usage: "[-f FMT] [--output=human|json] [--backing-chain] [-U] FILE",
    help: "Shows what an image is. --backing-chain goes on with the images behind it.",
    options: [format, output, forceShare, .init("", "backing-chain")]
  ) { (arguments) throws(ToolError) in
    let name = try operand(arguments, "info")
    let json = try isJSON(arguments)
    var options = OpenOptions()
    options.withoutBacking = !arguments.has("backing-chain")
    options.isForCheck = true
    let image = try open(name, arguments, format: arguments["format"], options)
    let chain = arguments.has("backing-chain") ? image.chain : [image]
    for image in chain {
      try request("open '\(image.filename)'") { () throws(BlockError) in try image.qcow2?.checkSnapshotTable()
      }
    }
    if json {
      let values = chain.map(information)
      writeStandardOutput(
        (arguments.has("backing-chain") ? JSONValue.array(values) : values[0]).prettyText() + "\n")
    } else {
      writeStandardOutput(chain.map(humanInformation).joined(separator: "\n"))
    }
    return 0
  }

  private static func bitmapFlags(_ bitmap: PersistentBitmap) -> [String] {
    (bitmap.wasInUse ? ["in-use"] : []) + (bitmap.isEnabled ? ["auto"] : [])
  }

  private static func information(_ image: OpenedImage) -> JSONValue {
    var members: [JSONValue.Member] = []
    func add(_ key: String, _ value: JSONValue) { members.append(.init(key, value)) }
    if let qcow2 = image.qcow2, !qcow2.snapshotList.isEmpty {
      add("snapshots", .array(qcow2.snapshotList.map(snapshotValue)))
    }
    add("virtual-size", JSONValue(image.node.byteCount))
    add("filename", .string(image.filename))
    if image.node.clusterByteCount > 0 { add("cluster-size", JSONValue(image.node.clusterByteCount)) }
    add("format", .string(image.format))
    add("actual-size", JSONValue(image.node.allocatedByteCount))
    if let specific = formatSpecific(image) { add("format-specific", specific) }
    if encryption(image) != nil { add("encrypted", .bool(true)) }
    if let name = image.backingFilename {
      add("full-backing-filename", .string(FileNames.resolve(name, from: image.filename)))
      add("backing-filename", .string(name))
      if let format = image.qcow2?.backingFormat { add("backing-filename-format", .string(format)) }
    }
    add("dirty-flag", .bool(image.qcow2?.information.isDirty ?? false))
    return .object(members)
  }

  private static func snapshotValue(_ snapshot: Qcow2Image.Snapshot) -> JSONValue {
    var members: [JSONValue.Member] = []
    if snapshot.instructionCount != .max {
      members.append(.init("icount", JSONValue(snapshot.instructionCount)))
    }
    members += [
      .init("vm-clock-nsec", JSONValue(snapshot.vmClockNanoseconds % 1_000_000_000)),
      .init("name", .string(snapshot.name)), .init("date-sec", JSONValue(snapshot.dateSeconds)),
      .init("date-nsec", JSONValue(snapshot.dateNanoseconds)),
      .init("vm-clock-sec", JSONValue(snapshot.vmClockNanoseconds / 1_000_000_000)),
      .init("id", .string(snapshot.id)), .init("vm-state-size", JSONValue(snapshot.vmStateByteCount)),
    ]
    return .object(members)
  }

  private static func encryption(_ image: OpenedImage) -> LUKSHeader? {
    image.qcow2?.encryption ?? (image.node as? LUKSNode)?.header
  }

  private static func formatSpecific(_ image: OpenedImage) -> JSONValue? {
    if let qcow2 = image.qcow2 { return formatSpecific(qcow2) }
    guard let luks = image.node as? LUKSNode else { return nil }
    return .object([
      .init("type", .string("luks")), .init("data", .object(encryptionMembers(luks.header, isWhole: true))),
    ])
  }

  /// What `info` shows of LUKS; a disk that is encrypted as a whole has its payload's place, too.
  private static func encryptionMembers(_ header: LUKSHeader, isWhole: Bool) -> [JSONValue.Member] {
    var members: [JSONValue.Member] = []
    switch header.algorithm.vector {
    case .plain: members.append(.init("ivgen-alg", .string("plain")))
    case .plain64: members.append(.init("ivgen-alg", .string("plain64")))
    case .essiv(let digest):
      members.append(.init("ivgen-alg", .string("essiv")))
      members.append(.init("ivgen-hash-alg", .string(digest.rawValue)))
    }
    members.append(.init("hash-alg", .string(header.digest.rawValue)))
    members.append(.init("cipher-alg", .string("aes-\(header.algorithm.aesBits)")))
    members.append(.init("uuid", .string(header.uuid)))
    if !isWhole { members.append(.init("format", .string("luks"))) }
    members.append(.init("cipher-mode", .string(header.algorithm.mode.rawValue)))
    let slots = header.slots.map { slot in
      JSONValue.object(
        [.init("active", .bool(slot.isActive))]
          + (slot.isActive ? [.init("iters", JSONValue(slot.iterations))] : [])
          + [.init("key-offset", JSONValue(slot.offset))]
          + (slot.isActive ? [.init("stripes", JSONValue(slot.stripes))] : []))
    }
    members.append(.init("slots", .array(slots)))
    members.append(.init("payload-offset", JSONValue(header.payloadOffset)))
    members.append(.init("master-key-iters", JSONValue(header.keyIterations)))
    return members
  }

  private static func formatSpecific(_ image: Qcow2Image) -> JSONValue {
    let facts = image.information
    var data: [JSONValue.Member] = [.init("compat", .string(facts.version == 2 ? "0.10" : "1.1"))]
    data.append(.init("compression-type", .string(facts.compression.name)))
    if facts.version == 3 {
      if let name = facts.dataFile {
        data.append(.init("data-file", .string(name)))
        data.append(.init("data-file-raw", .bool(facts.isDataFileRaw)))
      }
      data.append(.init("lazy-refcounts", .bool(facts.hasLazyRefcounts)))
      let bitmaps = image.bitmapList
      if !bitmaps.isEmpty {
        data.append(
          .init(
            "bitmaps",
            .array(
              bitmaps.map {
                .object([
                  .init("flags", .array(bitmapFlags($0).map { .string($0) })),
                  .init("name", .string($0.name)),
                  .init("granularity", JSONValue($0.granularity)),
                ])
              })))
      }
    }
    data.append(.init("refcount-bits", JSONValue(facts.refcountBits)))
    if let header = image.encryption {
      data.append(.init("encrypt", .object(encryptionMembers(header, isWhole: false))))
    }
    if facts.version == 3 {
      data.append(.init("corrupt", .bool(facts.isCorrupt)))
      data.append(.init("extended-l2", .bool(facts.hasExtendedL2)))
    }
    return .object([.init("type", .string("qcow2")), .init("data", .object(data))])
  }

  private static func humanInformation(_ image: OpenedImage) -> String {
    var lines = ["image: \(image.filename)", "file format: \(image.format)"]
    lines.append("virtual size: \(Format.size(image.node.byteCount)) (\(image.node.byteCount) bytes)")
    lines.append("disk size: \(Format.size(image.node.allocatedByteCount))")
    if encryption(image) != nil { lines.append("encrypted: yes") }
    if image.node.clusterByteCount > 0 { lines.append("cluster_size: \(image.node.clusterByteCount)") }
    if image.qcow2?.information.isDirty == true { lines.append("cleanly shut down: no") }
    if let name = image.backingFilename {
      let path = FileNames.resolve(name, from: image.filename)
      lines.append("backing file: \(name)" + (path == name ? "" : " (actual path: \(path))"))
      if let format = image.qcow2?.backingFormat { lines.append("backing file format: \(format)") }
    }
    var text = lines.joined(separator: "\n") + "\n"
    if let qcow2 = image.qcow2, !qcow2.snapshotList.isEmpty { text += snapshotTable(qcow2) }
    guard let specific = formatSpecific(image) else { return text }
    text += "Format specific information:\n"
    if case .object(let members)? = specific["data"] { text += humanMembers(members, "    ") }
    return text
  }

  /// `key: value` lines, with words for the keys.
  private static func humanMembers(_ members: [JSONValue.Member], _ indentation: String) -> String {
    members.map { member in
      let key = member.key.split(separator: "-").joined(separator: " ")
      return "\(indentation)\(key):\(humanValue(member.value, indentation))\n"
    }.joined()
  }

  private static func humanValue(_ value: JSONValue, _ indentation: String) -> String {
    switch value {
    case .string(let text): return " " + text
    case .array(let elements):
      return elements.enumerated().map { index, element in
        "\n\(indentation)    [\(index)]:" + humanValue(element, indentation + "    ")
      }.joined()
    case .object(let members):
      return "\n" + String(humanMembers(members, indentation + "    ").dropLast())
    default: return " " + value.compactText
    }
  }
}
