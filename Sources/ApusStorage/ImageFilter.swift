import ApusBlock
import ApusConfig

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
        node = CopyOnReadNode(child.node)
      default: node = FaultNode(child.node, try rules(list))
      }
    } catch { throw StorageError(error) }
    return OpenedImage(
      node, filename: child.filename, format: driver, backing: child.backing,
      backingFilename: child.backingFilename)
  }

  /// `inject-error.N.iotype=`, `.sector=`, `.after=`, `.once=`, `.errno=`.
  private static func rules(_ list: OptionList) throws(ConfigurationError) -> [FaultNode.Rule] {
    var rules: [FaultNode.Rule] = []
    var rest = list
    while case let entries = rest.nested("inject-error.\(rules.count)"), !entries.entries.isEmpty {
      try entries.check(known: ["iotype", "sector", "after", "once", "errno"], of: "blkdebug's inject-error")
      var rule = FaultNode.Rule()
      if let text = entries["iotype"] {
        guard let operation = FaultNode.Operation(rawValue: text) else {
          throw .unknown("I/O type", text, among: FaultNode.Operation.allCases.map(\.rawValue))
        }
        rule.operation = operation
      }
      rule.sector = try entries.number("sector", of: "blkdebug", in: 0...(1 << 50))
      rule.after = Int(try entries.number("after", of: "blkdebug", in: 0...UInt64(Int32.max)) ?? 0)
      rule.isOnce = try entries.bool("once", of: "blkdebug") ?? false
      rule.errno = Int32(try entries.number("errno", of: "blkdebug", in: 1...133) ?? 5)
      rest.entries.removeAll { $0.key.hasPrefix("inject-error.\(rules.count).") }
      rules.append(rule)
    }
    try rest.check(known: [], of: "blkdebug")
    return rules
  }
}
