import ApusBlock
import ApusConfig
import ApusHost
import ApusNBD
import ApusQcow2

/// How images are opened.
public struct OpenOptions: Sendable {
  public var isReadOnly = true
  public var cache = BlockCacheMode.writeback
  public var requestMode = FileRequestMode.threads
  /// Leave the backing chain closed.
  public var withoutBacking = false
  /// Do not lock, nor mind other users (`-U`).
  public var sharesAll = false
  /// Others may write to the image as well (`share-rw=on`).
  public var sharesWrites = false
  /// Open damaged images without repairing them.
  public var isForCheck = false
  /// Give host blocks of discarded ranges back.
  public var unmaps = true
  /// Fall back to read-only where the host does not allow writing.
  public var isAutoReadOnly = false
  /// Passphrases and credentials that options refer to.
  public var objects = StorageObjects()
  /// Backing images are opened for writing, too.
  public var writesBacking = false
  public init() {}
  public init(writable: Bool) { isReadOnly = !writable }
}

/// Opens images with what they stand on.
public struct ImageGraph {
  public var options: OpenOptions
  /// Nodes that other options refer to by their name.
  public var named: (String) -> OpenedImage?
  private var depth = 0
  private var identities: [[UInt64]] = []

  public init(
    _ options: OpenOptions = OpenOptions(), named: @escaping (String) -> OpenedImage? = { _ in nil }
  ) {
    (self.options, self.named) = (options, named)
  }

  /// Opens the image that a name leads to; without a format, its first bytes tell.
  public func open(_ filename: String, format: String? = nil) throws(StorageError) -> OpenedImage {
    if filename.hasPrefix("file:") {
      // Shown, and followed to backing files, as the path that it is.
      let path = String(filename.dropFirst(5))
      let needsFolder = path.firstIndex(of: ":").map { !path[..<$0].contains("/") } ?? false
      return try openFormat(
        try openFile(path, OptionList()), needsFolder ? "./" + path : path, format, OptionList())
    }
    if let list = try FileNames.options(filename) {
      var list = list
      if filename.hasPrefix("blkdebug:") {
        let below = try open(list, name: filename)
        return try openFormat(below.node, filename, format, OptionList())
      }
      if let driver = list["driver"], ImageFormat.named(driver) != nil || ImageFilter.names.contains(driver) {
        return try open(list, name: filename)
      }
      // A protocol's name: the format goes on top.
      let file = try openProtocol(&list, filename)
      return try openFormat(file, filename, format, OptionList())
    }
    if filename.isEmpty { throw StorageError("the image's file name is empty") }
    return try openFormat(try openFile(filename, OptionList()), filename, format, OptionList())
  }

  /// Opens a graph of options: `driver=qcow2,file.filename=a.qcow2,backing.driver=...`.
  public func open(_ list: OptionList, name: String? = nil) throws(StorageError) -> OpenedImage {
    var list = list
    let shown = name ?? list["file.filename"] ?? list["filename"] ?? list["driver"] ?? ""
    let driver = list.take("driver")
    var graph = self
    do throws(ConfigurationError) {
      if let flag = try list.bool("read-only", of: shown) { graph.options.isReadOnly = flag }
      if let flag = try list.bool("auto-read-only", of: shown) { graph.options.isAutoReadOnly = flag }
      if let flag = try list.bool("force-share", of: shown) { graph.options.sharesAll = flag }
      if let flag = try list.bool("cache.direct", of: shown) {
        graph.options.cache = flag ? .none : graph.options.cache == .none ? .writeback : graph.options.cache
      }
      if try list.bool("cache.no-flush", of: shown) == true { graph.options.cache = .unsafe }
    } catch { throw StorageError(error) }
    switch list["discard"] {
    case nil: break
    case "unmap", "on": graph.options.unmaps = true
    case "ignore", "off": graph.options.unmaps = false
    case let value?: throw StorageError("\(shown): discard is '\(value)'; it must be ignore or unmap")
    }
    let detection = list["detect-zeroes"]
    guard [nil, "off", "on", "unmap"].contains(detection) else {
      throw StorageError("\(shown): detect-zeroes is '\(detection ?? "")'; it must be off, on or unmap")
    }
    if detection == "unmap", !graph.options.unmaps {
      throw StorageError("\(shown): detect-zeroes=unmap needs discard=unmap")
    }
    for key in [
      "read-only", "auto-read-only", "force-share", "cache.direct", "cache.no-flush", "discard",
      "detect-zeroes", "node-name",
    ] {
      _ = list.take(key)
    }
    return try graph.openNode(driver, list, shown).detectingZeroes(detection)
  }

  private func openNode(_ driver: String?, _ list: OptionList, _ shown: String) throws(StorageError)
    -> OpenedImage
  {
    var list = list
    if let driver, Self.protocols.contains(driver) {
      list.entries.insert(.init("driver", driver), at: 0)
      let node = try openProtocol(&list, shown)
      return OpenedImage(node, filename: shown, format: driver)
    }
    if let driver, ImageFilter.names.contains(driver) {
      return try ImageFilter.open(driver, &list, self, shown)
    }
    if let driver, ImageFormat.named(driver) == nil {
      let known = Self.protocols + ImageFilter.names + ImageFormat.all.map(\.name)
      throw StorageError(
        "\(shown): \(ConfigurationError.unknown("block driver", driver, among: known).description)")
    }
    let file = try openChild("file", &list, shown)
    return try openFormat(file.node, file.filename, driver, list)
  }

  /// The node that `role=NAME` refers to or `role.driver=...` describes.
  func openChild(_ role: String, _ list: inout OptionList, _ shown: String) throws(StorageError)
    -> OpenedImage
  {
    if let name = list.take(role) {
      guard let node = named(name) else {
        // `file=PATH` is how tools write what is below.
        if role == "file", HostDescriptor.exists(name) {
          return OpenedImage(try openFile(name, OptionList()), filename: name, format: "file")
        }
        throw StorageError("\(shown): there is no block node '\(name)'")
      }
      return node
    }
    var nested = list.nested(role)
    guard !nested.entries.isEmpty else { throw StorageError("\(shown): \(role)= is missing") }
    list.entries.removeAll { $0.key.hasPrefix(role + ".") }
    if nested["driver"] == nil, role == "file" || nested["filename"] != nil {
      if let filename = nested["filename"], let options = try FileNames.options(filename) {
        _ = nested.take("filename")
        nested.entries = options.entries + nested.entries
      } else {
        nested.entries.insert(.init("driver", "file"), at: 0)
      }
    }
    return try open(nested)
  }

  // MARK: Protocols

  static let protocols = ["file", "host_device", "null-co", "null-aio", "memory", "nbd"]

  private func openProtocol(_ list: inout OptionList, _ shown: String) throws(StorageError) -> any ImageNode {
    let driver = list.take("driver") ?? "file"
    do throws(ConfigurationError) {
      switch driver {
      case "file", "host_device":
        guard let path = list.take("filename") else {
          throw ConfigurationError("\(shown): filename= is missing")
        }
        return try openFileChecked(path, list)
      case "null-co", "null-aio":
        try list.check(known: ["size", "read-zeroes", "latency-ns"], of: driver)
        guard list["latency-ns"] == nil else {
          throw ConfigurationError("\(driver): latency-ns is not implemented")
        }
        let size = try list["size"].map { (text: String) throws(ConfigurationError) in
          guard let size = parseSize(text) else { throw ConfigurationError("\(driver): size is '\(text)'") }
          return size
        }
        return NullNode(
          byteCount: size ?? 1 << 30, readsZeroes: try list.bool("read-zeroes", of: driver) ?? false,
          isReadOnly: options.isReadOnly)
      case "memory":
        try list.check(known: ["size"], of: driver)
        guard let size = parseSize(list["size"] ?? "0") else {
          throw ConfigurationError("memory: size is no number")
        }
        guard !options.isReadOnly else {
          throw ConfigurationError("memory: read-only=on would show zeroes only")
        }
        return MemoryNode(byteCount: size)
      case "nbd": return try openNBD(list)
      default: throw .unknown("protocol", driver, among: Self.protocols)
      }
    } catch { throw StorageError(error) }
  }

  private func openNBD(_ list: OptionList) throws(ConfigurationError) -> any ImageNode {
    try list.check(
      known: [
        "host", "port", "path", "export", "server.type", "server.host", "server.port", "server.path",
        "tls-creds", "tls-hostname", "reconnect-delay", "open-timeout", "multi-conn", "x-dirty-bitmap",
      ], of: "nbd")
    let address: HostSocketAddress
    let type = list["server.type"]
    let isPath = list["path"] != nil || list["server.path"] != nil
    let isHost = ["host", "port", "server.host", "server.port"].contains { list[$0] != nil }
    guard type == nil || type == (isPath ? "unix" : "inet"), !(isPath && isHost) else {
      throw ConfigurationError(
        "nbd: server.type=unix has server.path, server.type=inet has server.host and server.port")
    }
    if let path = list["path"] ?? list["server.path"] {
      address = .unix(path: path)
    } else {
      guard let host = list["host"] ?? list["server.host"] else {
        throw ConfigurationError(
          "nbd: the server is missing; give server.host and server.port, or server.path")
      }
      guard let port = UInt16(list["port"] ?? list["server.port"] ?? "10809") else {
        throw ConfigurationError("nbd: the port is no number from 0 to 65535")
      }
      address = .inet(host: host, port: port)
    }
    var configuration = NBDNode.Configuration(address)
    configuration.export = list["export"] ?? ""
    configuration.isReadOnly = options.isReadOnly
    configuration.hostName = list["tls-hostname"]
    configuration.statusContext = list["x-dirty-bitmap"]
    configuration.reconnectSeconds = try list.number("reconnect-delay", of: "nbd", in: 0...1_000_000) ?? 0
    configuration.openSeconds = try list.number("open-timeout", of: "nbd", in: 0...1_000_000) ?? 0
    configuration.connectionCount = Int(try list.number("multi-conn", of: "nbd", in: 1...16) ?? 1)
    if let id = list["tls-creds"] {
      do throws(StorageError) { configuration.tls = try options.objects.tlsCredentials(id) } catch {
        throw ConfigurationError(error.description)
      }
    }
    do throws(BlockError) { return try NBDNode(configuration) } catch {
      throw ConfigurationError(error.description)
    }
  }

  private func openFileChecked(_ path: String, _ list: OptionList) throws(ConfigurationError) -> any ImageNode
  {
    do throws(StorageError) { return try openFile(path, list) } catch {
      throw ConfigurationError(error.description)
    }
  }

  private func openFile(_ path: String, _ list: OptionList) throws(StorageError) -> FileNode {
    var configuration = FileNode.Configuration(path: path)
    configuration.isReadOnly = options.isReadOnly
    configuration.isAutoReadOnly = options.isAutoReadOnly
    configuration.cache = options.cache
    configuration.unmapsDiscards = options.unmaps
    configuration.isLocked = !options.sharesAll
    configuration.sharesWrites = options.sharesWrites
    do throws(ConfigurationError) {
      try list.check(known: ["locking", "aio"], of: "the file '\(path)'")
      switch list["locking"] {
      case nil, "auto", "on": break
      case "off": configuration.isLocked = false
      case let value?:
        throw ConfigurationError("the file '\(path)': locking is '\(value)'; it must be on, off or auto")
      }
      configuration.requestMode = options.requestMode
      if let aio = list["aio"] {
        guard let mode = FileRequestMode(rawValue: aio) else {
          throw .unknown("request mode", aio, among: FileRequestMode.allCases.map(\.rawValue))
        }
        configuration.requestMode = mode
      }
    } catch { throw StorageError(error) }
    do throws(BlockError) { return try FileNode(configuration) } catch { throw StorageError(error) }
  }

  /// A file that a descriptor names, seen from the descriptor.
  func openExtent(_ name: String, of descriptor: String) throws(BlockError) -> any ImageNode {
    try checked { () throws(StorageError) in
      // A name of its own protocol in a descriptor could lead anywhere.
      if name.contains(":"), try FileNames.options(name) != nil {
        throw StorageError("the extent '\(name)' is no file")
      }
      return try openFile(FileNames.resolve(name, from: descriptor), OptionList())
    }
  }

  // MARK: Formats

  /// Opens the format on top of `file`: the one named, or the one that the first bytes tell.
  private func openFormat(
    _ file: any ImageNode, _ filename: String, _ format: String?, _ list: OptionList
  ) throws(StorageError) -> OpenedImage {
    do throws(BlockError) {
      if let format, Self.protocols.contains(format) {
        return OpenedImage(file, filename: filename, format: format)
      }
      if let format, ImageFormat.named(format) == nil {
        throw BlockError(
          .unsupported,
          ConfigurationError.unknown("image format", format, among: ImageFormat.all.map(\.name)).description)
      }
      let driver: ImageFormat
      if let named = ImageFormat.named(format ?? "") {
        driver = named
      } else {
        driver = try ImageFormat.probe(file, filename)
      }
      if driver.name == "qcow2" { return try openQcow2(file, filename, list) }
      var rest = list
      let node = try driver.open(file, &rest, self, filename)
      let backed = node as? any BackedImage
      let given = rest.nested("backing")
      // `"backing": null`: none, whatever the image says.
      let hasNoBacking = rest["backing"] == ""
      if hasNoBacking { rest.entries.removeAll { $0.key == "backing" } }
      if backed?.backingFile != nil { rest.entries.removeAll { $0.key.hasPrefix("backing.") } }
      try refuse(rest, driver.name)
      let backingName = backed?.backingFile?.name
      let backing = try openBacking(
        hasNoBacking ? nil : backingName, backed?.backingFile?.format, Self.origin(filename, file), given)
      backed?.attachBacking(backing?.node)
      return OpenedImage(
        node, filename: filename, format: driver.name, backing: backing, backingFilename: backingName)
    } catch {
      throw StorageError("'\(filename)': \(error.description)")
    }
  }

  func refuse(_ rest: OptionList, _ driver: String) throws(BlockError) {
    if let entry = rest.entries.first {
      throw BlockError(.unsupported, "the driver '\(driver)' has no option '\(entry.key)' here")
    }
  }

  private func openQcow2(_ file: any ImageNode, _ filename: String, _ list: OptionList) throws(BlockError)
    -> OpenedImage
  {
    var list = list
    var settings = Qcow2Image.Options()
    settings.isReadOnly = options.isReadOnly
    settings.isForCheck = options.isForCheck
    settings.isWriteThrough = options.cache.isWriteThrough
    if let size = try Self.cacheByteCount(&list, Qcow2Image.clusterByteCount(of: file)) {
      settings.l2CacheByteCount = size
    }
    if let text = list.take("lazy-refcounts") {
      guard ["on", "off", "true", "false", "yes", "no"].contains(text) else {
        throw BlockError(.invalid, "lazy-refcounts is '\(text)'; it must be on or off")
      }
      settings.hasLazyRefcounts = ["on", "true", "yes"].contains(text)
    }
    settings.passphrase = try passphrase(&list, prefix: "encrypt.")
    let external = try Qcow2Image.externalDataFile(of: file)
    var dataFile: (any ImageNode)?
    if external.isNeeded {
      dataFile = try checked { () throws(StorageError) in
        if list["data-file"] != nil || !list.nested("data-file").entries.isEmpty {
          return try openChild("data-file", &list, filename).node
        }
        guard let name = external.name else {
          throw StorageError("its external data file is not named; give data-file.filename=")
        }
        return try openFile(FileNames.resolve(name, from: Self.origin(filename, file)), OptionList())
      }
    }
    let image = try Qcow2Image(file, dataFile: dataFile, options: settings)
    let name = image.backingFileName
    let given = list.nested("backing")
    let reference = list.take("backing")
    list.entries.removeAll { $0.key.hasPrefix("backing.") }
    try refuse(list, "qcow2")
    var backing: OpenedImage?
    if reference == "" {
      // `"backing": null`: none, whatever the image says.
    } else if let reference {
      guard let node = named(reference) else {
        throw BlockError(.invalid, "there is no block node '\(reference)'")
      }
      backing = node
    } else {
      backing = try openBacking(name, image.backingFormat, Self.origin(filename, file), given)
    }
    image.attachBacking(backing?.node)
    return OpenedImage(image, filename: filename, format: "qcow2", backing: backing, backingFilename: name)
  }

  /// qcow2's cache options, as far as one cache of L2 tables has a use for them. Counts have no limit of their own, and
  /// tables are kept whole; what is asked for is checked all the same.
  private static func cacheByteCount(_ list: inout OptionList, _ clusterByteCount: UInt64) throws(BlockError)
    -> Int?
  {
    func size(_ key: String) throws(BlockError) -> UInt64? {
      guard let text = list.take(key) else { return nil }
      guard let size = parseSize(text), size <= 1 << 40 else {
        throw BlockError(.invalid, "\(key) is '\(text)'; it must be a size")
      }
      return size
    }
    let total = try size("cache-size")
    let l2 = try size("l2-cache-size")
    let counts = try size("refcount-cache-size")
    if let total {
      guard l2 == nil || counts == nil else {
        throw BlockError(
          .invalid,
          "cache-size, l2-cache-size and refcount-cache-size cannot all be given: one follows from the others"
        )
      }
      guard (l2 ?? 0) <= total, (counts ?? 0) <= total else {
        throw BlockError(.invalid, "l2-cache-size and refcount-cache-size cannot be larger than cache-size")
      }
    }
    if let entry = try size("l2-cache-entry-size") {
      guard entry.nonzeroBitCount == 1, entry >= 512, entry <= clusterByteCount else {
        throw BlockError(
          .invalid, "l2-cache-entry-size is \(entry); it must be a power of two from 512 to the cluster size")
      }
    }
    return (l2 ?? total.map { $0 - (counts ?? 0) }).map { Int($0) }
  }

  private func checked<R>(_ body: () throws(StorageError) -> R) throws(BlockError) -> R {
    do throws(StorageError) { return try body() } catch { throw BlockError(.invalid, error.description) }
  }

  /// The passphrase of `key-secret=`.
  func passphrase(_ list: inout OptionList, prefix: String = "") throws(BlockError) -> [UInt8]? {
    if let format = list.take(prefix + "format"), format != "luks" {
      throw BlockError(.unsupported, "\(prefix)format=\(format) is not implemented; luks is")
    }
    guard let id = list.take(prefix + "key-secret") else { return nil }
    // Looking at an image needs no passphrase.
    if options.isForCheck, !options.objects.hasSecret(id) { return nil }
    return try checked { () throws(StorageError) in try options.objects.secret(id) }
  }

  /// Whom names in an image are relative to: the image's own name, or the file's that a `json:` name leads to.
  private static func origin(_ filename: String, _ file: any ImageNode) -> String {
    guard filename.hasPrefix("json:") else { return filename }
    var node = file
    while let next = node.child("file") { node = next }
    return (node as? FileNode)?.path ?? filename
  }

  private func openBacking(
    _ name: String?, _ format: String?, _ filename: String, _ given: OptionList
  ) throws(BlockError) -> OpenedImage? {
    if options.withoutBacking { return nil }
    guard name != nil || !given.entries.isEmpty else { return nil }
    guard depth < 200 else {
      throw BlockError(.invalid, "the backing chain has more than 200 images; does it go in a circle?")
    }
    var graph = self
    graph.depth += 1
    graph.options.isReadOnly = !options.writesBacking
    do throws(StorageError) {
      if !given.entries.isEmpty {
        var list = given
        if list["driver"] == nil, let format { list.entries.insert(.init("driver", format), at: 0) }
        if list["file.filename"] == nil, let name, list["file"] == nil {
          list.entries.append(.init("file.filename", FileNames.resolve(name, from: filename)))
        }
        return try graph.open(list)
      }
      guard let name else { return nil }
      let path = FileNames.resolve(name, from: filename)
      graph.identities.append(Self.identity(filename))
      let identity = Self.identity(path)
      if !identity.isEmpty, graph.identities.contains(identity) {
        throw StorageError("the backing chain goes in a circle at '\(path)'")
      }
      return try graph.open(path, format: format)
    } catch {
      throw BlockError(.invalid, "cannot open its backing file: \(error.description)")
    }
  }

  /// Whether two paths lead to one file.
  public static func isSameFile(_ first: String, _ second: String) -> Bool {
    let identity = identity(first)
    return !identity.isEmpty && identity == self.identity(second)
  }
  private static func identity(_ path: String) -> [UInt64] {
    do throws(HostError) { return try HostFile(path: path, []).identity } catch { return [] }
  }
}
