import ApusBlock
import ApusConfig
import ApusHost
import ApusMachine
import ApusStorage

/// Disks: what `-drive` and `-blockdev` name, opened as a graph of nodes.
extension MachineBackends {
  func addBlockNode(_ item: MachineConfiguration.Item) throws(MachineError) {
    guard let name = item.options["node-name"] else {
      throw MachineError("-blockdev \(item.name): node-name= is missing")
    }
    let what = "-blockdev \(name)"
    var list = item.options
    list.entries.insert(.init("driver", item.name), at: 0)
    let image = try opened(what) { () throws(StorageError) in
      var options = OpenOptions(writable: true)
      options.sharesWrites = isShared(name)
      return try graph(options).open(list, name: name)
    }
    remember(name, image)
    let discards = ["unmap", "on"].contains(list["discard"] ?? list["file.discard"] ?? "ignore")
    try register(name, ThreadedBlockNode(name: name, image.node, discards: discards), what)
  }

  private func graph(_ options: OpenOptions) -> ImageGraph {
    var options = options
    options.unmaps = false
    options.objects = storageObjects
    return ImageGraph(options, named: { [self] in image($0) })
  }

  private func opened(_ what: String, _ body: () throws(StorageError) -> OpenedImage) throws(MachineError)
    -> OpenedImage
  {
    do throws(StorageError) { return try body() } catch {
      throw MachineError("\(what): \(error.description)")
    }
  }

  private static let driveKeys = [
    "file", "if", "format", "id", "index", "media", "readonly", "read-only", "cache", "discard",
    "aio", "serial",
    "copy-on-read", "detect-zeroes", "rerror", "werror", "driver",
  ]

  /// Properties that go to the format's driver.
  private static let formatKeys = ["l2-cache-size", "lazy-refcounts", "key-secret"]

  /// Opens the disk of a `-drive`; returns its device for `if=virtio`.
  func addDrive(_ drive: OptionList, _ index: Int) throws(MachineError) -> MachineConfiguration.Item? {
    let what = "-drive \(drive["file"] ?? drive["file.filename"] ?? "")"
    for key in drive.keys
    where !key.hasPrefix("file.") && !key.hasPrefix("backing.") && !key.hasPrefix("encrypt.")
      && !Self.formatKeys.contains(key)
    {
      guard Self.driveKeys.contains(key) else {
        throw MachineError(
          ConfigurationError.unknown("property of -drive", key, among: Self.driveKeys).description)
      }
    }
    if let media = drive["media"], media != "disk" && media != "cdrom" {
      throw MachineError("\(what): media is '\(media)'; it must be disk or cdrom")
    }
    let interface = drive["if"] ?? model.driveInterface
    let interfaces = model.driveInterface == "sd" ? ["sd", "none"] : ["virtio", "none", "pflash"]
    guard interfaces.contains(interface) else {
      throw MachineError(
        "\(what): " + ConfigurationError.unknown("interface", interface, among: interfaces).description)
    }
    let number =
      try checked { () throws(ConfigurationError) in try drive.number("index", of: what, in: 0...255) }.map {
        Int($0)
      }
      ?? (interface == "sd" ? 0 : index)
    guard interface != "sd" || number == 0 else {
      throw MachineError("\(what): index is \(number); machine \(model.name) has one card slot, 0")
    }
    let id = drive["id"] ?? "\(interface)\(number)"
    let image = try openDrive(drive, what, isShared: isShared(id))
    remember(id, image)
    let discards = ["unmap", "on"].contains(drive["discard"] ?? "")
    try register(id, ThreadedBlockNode(name: id, image.node, discards: discards), what)
    let ofDevice = drive.entries.filter { ["serial", "rerror", "werror"].contains($0.key) }
    guard interface == "virtio" else {
      if interface == "sd" { try insertCard(id, what) }
      if let entry = ofDevice.first {
        let place = interface == "sd" ? "is not implemented for" : "goes to the -device, as the drive has"
        throw MachineError("\(what): \(entry.key)= \(place) if=\(interface)")
      }
      return nil
    }
    let options = OptionList([.init("drive", id)] + ofDevice)
    return .init("virtio-blk-pci", options)
  }

  private func openDrive(_ drive: OptionList, _ what: String, isShared: Bool) throws(MachineError)
    -> OpenedImage
  {
    var options = OpenOptions(writable: true)
    options.sharesWrites = isShared
    let isReadOnly =
      try checked { () throws(ConfigurationError) in
        let flag = try drive.bool("readonly", of: what)
        return try drive.bool("read-only", of: what) ?? flag
      } ?? false
    options.isReadOnly = isReadOnly || drive["media"] == "cdrom"
    guard let cache = BlockCacheMode(rawValue: drive["cache"] ?? "writeback") else {
      throw MachineError(
        "\(what): "
          + ConfigurationError.unknown(
            "cache mode", drive["cache"] ?? "", among: BlockCacheMode.allCases.map(\.rawValue)
          ).description)
    }
    options.cache = cache
    if let aio = drive["aio"] {
      guard let mode = FileRequestMode(rawValue: aio) else {
        throw MachineError(
          "\(what): "
            + ConfigurationError.unknown("request mode", aio, among: FileRequestMode.allCases.map(\.rawValue))
            .description)
      }
      options.requestMode = mode
    }
    var graph = graph(options)
    switch drive["discard"] {
    case nil, "ignore", "off": break
    case "unmap", "on": graph.options.unmaps = true
    case let value?: throw MachineError("\(what): discard is '\(value)'; it must be ignore or unmap")
    }
    let format = drive["format"] ?? drive["driver"]
    let path = drive["file"]
    let nested = drive.entries.filter {
      $0.key.contains(".") || Self.formatKeys.contains($0.key) || $0.key == "detect-zeroes"
    }
    let image = try opened(what) { () throws(StorageError) in
      guard !nested.isEmpty || path == nil else { return try graph.open(path ?? "", format: format) }
      var list = OptionList(nested)
      if let path { list.entries.append(.init("file.filename", path)) }
      guard list["file.filename"] != nil || list["file.driver"] != nil else {
        throw StorageError("file= is missing")
      }
      list.entries.insert(.init("driver", format ?? "raw"), at: 0)
      return try graph.open(list)
    }
    let copies =
      try checked { () throws(ConfigurationError) in try drive.bool("copy-on-read", of: what) } ?? false
    guard copies else { return image }
    if image.node.isReadOnly {
      throw MachineError("\(what): copy-on-read needs a drive that can be written to")
    }
    return OpenedImage(
      CopyOnReadNode(image.node), filename: image.filename, format: image.format, backing: image.backing,
      backingFilename: image.backingFilename)
  }
}
