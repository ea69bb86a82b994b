import ApusBlock
import ApusConfig
import ApusHost

/// Filter drivers: nodes that change how requests reach another node.
enum ImageFilter {
  static let names = ["throttle", "copy-on-read", "blkdebug"]

  static func open(_ driver: String, _ list: inout OptionList, _ graph: ImageGraph, _ shown: String)
    throws(StorageError) -> OpenedImage
  {
    let usesImage = driver == "blkdebug" && list.keys.contains { $0 == "image" || $0.hasPrefix("image.") }
    let child = try graph.openChild(usesImage ? "image" : "file", &list, shown)
    let node: any ImageNode
    do throws(ConfigurationError) {
      switch driver {
      case "throttle":
        try list.check(known: ["limits.bps-total", "limits.iops-total"], of: "throttle")
        var limits = ThrottleNode.Limits()
        limits.bytes = try list.number("limits.bps-total", of: "throttle") ?? 0
        limits.requests = try list.number("limits.iops-total", of: "throttle") ?? 0
        node = ThrottleNode(child.node, limits)
      case "copy-on-read":
        try list.check(known: [], of: "copy-on-read")
        guard !graph.options.isReadOnly else {
          throw ConfigurationError("'\(shown)': copy-on-read writes, and the image is opened read-only")
        }
        node = CopyOnReadNode(child.node)
      default: node = try faults(list, child.node)
      }
    } catch { throw StorageError(error) }
    return OpenedImage(
      node, filename: child.filename, format: driver, backing: child.backing,
      backingFilename: child.backingFilename)
  }

  private static func faults(_ list: OptionList, _ child: any ImageNode) throws(ConfigurationError)
    -> FaultNode
  {
    var rest = list
    if let path = rest.take("config") {
      let bytes: [UInt8]
      do throws(HostError) { bytes = try HostDescriptor.contents(path, limit: 1 << 20) } catch {
        throw ConfigurationError("blkdebug: \(error.description)")
      }
      rest.entries += try configuration(String(decoding: bytes, as: UTF8.self), path)
    }
    var rules: [FaultNode.Rule] = []
    for entries in groups("inject-error", &rest) { rules.append(try rule(entries)) }
    var transitions: [FaultNode.Transition] = []
    for entries in groups("set-state", &rest) {
      try entries.check(known: ["event", "state", "new_state"], of: "blkdebug's set-state")
      guard let event = try event(entries),
        let new = try entries.number("new_state", of: "blkdebug's set-state", in: 1...UInt64(Int32.max))
      else { throw ConfigurationError("blkdebug's set-state: event= and new_state= are needed") }
      let state = try entries.number("state", of: "blkdebug's set-state", in: 0...UInt64(Int32.max)) ?? 0
      transitions.append(.init(event: event, state: Int(state), newState: Int(new)))
    }
    let limits = try limits(&rest)
    try rest.check(known: [], of: "blkdebug")
    return FaultNode(child, rules, transitions: transitions, limits: limits)
  }

  /// Takes `NAME.0.`, `NAME.1.` and so on.
  private static func groups(_ name: String, _ list: inout OptionList) -> [OptionList] {
    var result: [OptionList] = []
    while case let entries = list.nested("\(name).\(result.count)"), !entries.entries.isEmpty {
      list.entries.removeAll { $0.key.hasPrefix("\(name).\(result.count).") }
      result.append(entries)
    }
    return result
  }

  private static func event(_ entries: OptionList) throws(ConfigurationError) -> String? {
    guard let event = entries["event"] else { return nil }
    guard FaultNode.events.contains(event) else {
      throw .unknown("blkdebug event", event, among: FaultNode.events)
    }
    return event
  }

  private static func rule(_ entries: OptionList) throws(ConfigurationError) -> FaultNode.Rule {
    // Errors always come at once here: `immediately` has one meaning only.
    try entries.check(
      known: ["event", "state", "iotype", "sector", "after", "once", "errno", "immediately"],
      of: "blkdebug's inject-error")
    var rule = FaultNode.Rule()
    rule.event = try event(entries)
    rule.state = Int(try entries.number("state", of: "blkdebug", in: 0...UInt64(Int32.max)) ?? 0)
    if let text = entries["iotype"] {
      guard let operation = FaultNode.Operation(rawValue: text) else {
        throw .unknown("I/O type", text, among: FaultNode.Operation.allCases.map(\.rawValue))
      }
      rule.operation = operation
    }
    _ = try entries.bool("immediately", of: "blkdebug")
    if entries["sector"] != "-1" {
      rule.sector = try entries.number("sector", of: "blkdebug", in: 0...(1 << 50))
    }
    rule.after = Int(try entries.number("after", of: "blkdebug", in: 0...UInt64(Int32.max)) ?? 0)
    rule.isOnce = try entries.bool("once", of: "blkdebug") ?? false
    rule.errno = Int32(try entries.number("errno", of: "blkdebug", in: 1...133) ?? 5)
    return rule
  }

  private static func limits(_ list: inout OptionList) throws(ConfigurationError) -> FaultNode.Limits {
    func size(_ key: String) throws(ConfigurationError) -> UInt64 {
      guard let text = list.take(key) else { return 0 }
      guard let size = parseSize(text), size <= 1 << 40 else {
        throw ConfigurationError("blkdebug: \(key) is '\(text)'; it must be a size")
      }
      return size
    }
    var limits = FaultNode.Limits()
    limits.alignment = try size("align")
    guard limits.alignment == 0 || limits.alignment.nonzeroBitCount == 1 else {
      throw ConfigurationError("blkdebug: align is \(limits.alignment); it must be a power of two")
    }
    let unit = max(1, limits.alignment)
    limits.maximumTransfer = try size("max-transfer")
    limits.bestZeroing = try size("opt-write-zero")
    limits.maximumZeroing = try size("max-write-zero")
    limits.bestDiscard = try size("opt-discard")
    limits.maximumDiscard = try size("max-discard")
    for value in [
      limits.maximumTransfer, limits.bestZeroing, limits.maximumZeroing, limits.bestDiscard,
      limits.maximumDiscard,
    ] where value % unit != 0 {
      throw ConfigurationError("blkdebug: \(value) is no multiple of the alignment \(unit)")
    }
    return limits
  }

  /// A configuration file: `[inject-error]` and `[set-state]` with `key = "value"` lines.
  private static func configuration(_ text: String, _ path: String) throws(ConfigurationError) -> [OptionList
    .Entry]
  {
    var entries: [OptionList.Entry] = []
    var counts = ["inject-error": 0, "set-state": 0]
    var section: String?
    for (number, whole) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
      let line = whole.filter { $0 != " " && $0 != "\t" && $0 != "\r" }
      if line.isEmpty || line.hasPrefix("#") { continue }
      if line.hasPrefix("["), line.hasSuffix("]"), let count = counts[String(line.dropFirst().dropLast())] {
        let name = String(line.dropFirst().dropLast())
        section = "\(name).\(count)"
        counts[name] = count + 1
        continue
      }
      let parts = line.split(separator: "=", maxSplits: 1)
      guard let section, parts.count == 2, parts[1].count >= 2, parts[1].hasPrefix("\""),
        parts[1].hasSuffix("\"")
      else {
        throw ConfigurationError(
          "\(path):\(number + 1): expected [inject-error], [set-state] or key = \"value\"")
      }
      entries.append(.init("\(section).\(parts[0])", String(parts[1].dropFirst().dropLast())))
    }
    return entries
  }
}
