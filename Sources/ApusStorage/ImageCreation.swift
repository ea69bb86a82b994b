import ApusBlock
import ApusConfig
import ApusCrypto
import ApusHost
import ApusImages
import ApusQcow2

/// Makes images (`create`, `convert`).
public struct ImageCreation {
  public var filename: String
  public var format: String
  /// `-o`.
  public var options: OptionList
  public var byteCount: UInt64?
  /// Make an overlay without looking at its backing file.
  public var isUnsafe = false

  public init(
    _ filename: String, format: String, options: OptionList = OptionList(), byteCount: UInt64? = nil
  ) {
    (self.filename, self.format, self.options, self.byteCount) = (filename, format, options, byteCount)
  }

  /// Where the file lies: a name may say that it is one.
  private var path: String { filename.hasPrefix("file:") ? String(filename.dropFirst(5)) : filename }
  private var extentHint: UInt32? {
    options["extent_size_hint"].flatMap { parseSize($0) }.flatMap { UInt32(exactly: $0) }
  }
  /// Gets what will be made, as tools show it: the options with their defaults. Before anything is done.
  public var announce: (String) -> Void = { _ in }

  /// Reads options that are there, and refuses what is left.
  private struct Reader {
    var list: OptionList
    let what: String
    func checked<R>(_ body: () throws(ConfigurationError) -> R) throws(StorageError) -> R {
      do throws(ConfigurationError) { return try body() } catch { throw StorageError(error) }
    }
    mutating func text(_ key: String) -> String? { list.take(key) }
    mutating func bool(_ key: String) throws(StorageError) -> Bool? {
      let value = try checked { () throws(ConfigurationError) in try list.bool(key, of: what) }
      _ = list.take(key)
      return value
    }
    mutating func size(_ key: String) throws(StorageError) -> UInt64? {
      guard let text = list.take(key) else { return nil }
      guard let value = parseSize(text) else {
        throw StorageError("\(what): \(key) is '\(text)'; it must be a size like 64K or 10G")
      }
      return value
    }
  }

  /// Makes the image and opens it for writing. `backingFile` and `backingFormat` stand in `options`.
  public func create(opening: OpenOptions = OpenOptions(writable: true)) throws(StorageError) -> OpenedImage {
    guard let driver = ImageFormat.named(format) else {
      throw StorageError(
        ConfigurationError.unknown("image format", format, among: ImageFormat.all.map(\.name)).description)
    }
    guard driver.isWritable else {
      throw StorageError("images of the format '\(format)' cannot be created; it is read-only here")
    }
    do throws(ConfigurationError) {
      try options.check(
        known: driver.options.map(\.name) + ["extent_size_hint"], of: "the format '\(format)'")
    } catch { throw StorageError(error) }
    var reader = Reader(list: options, what: "-o")
    let given = try reader.size("size")
    if let hint = try reader.size("extent_size_hint"), hint > UInt64(UInt32.max) {
      throw StorageError("-o: extent_size_hint is \(hint); it must be less than 4 GiB")
    }
    var size = byteCount ?? given
    if let backing = options["backing_file"], !isUnsafe {
      var open = OpenOptions()
      open.sharesAll = opening.sharesAll
      open.objects = opening.objects
      open.isForCheck = true
      let image = try ImageGraph(open).open(
        FileNames.resolve(backing, from: filename), format: options["backing_fmt"])
      if options["backing_fmt"] == nil {
        throw StorageError(
          "backing file specified without backing format; detected format of \(image.format): give -F \(image.format)"
        )
      }
      if size == nil { size = image.node.byteCount }
    }
    guard let size else { throw StorageError("the image's size is missing") }
    guard size < 1 << 63 - 511 else { throw StorageError("a size of \(size) bytes is too large") }
    do throws(BlockError) {
      let created = try make(size, &reader, opening)
      return created
    } catch { throw StorageError("\(filename): \(error.description)") }
  }

  private func make(_ size: UInt64, _ reader: inout Reader, _ opening: OpenOptions) throws(BlockError)
    -> OpenedImage
  {
    switch format {
    case "raw": return try makeRaw(size, &reader, opening)
    case "luks": return try makeLUKS(size, &reader, opening)
    case "vdi", "vpc", "vmdk", "vhdx": return try makeForeign(size, &reader, opening)
    default: return try makeQcow2(size, &reader, opening)
    }
  }

  private func checked<R>(_ body: () throws(StorageError) -> R) throws(BlockError) -> R {
    do throws(StorageError) { return try body() } catch { throw BlockError(.invalid, error.description) }
  }

  private func openFile(_ path: String, _ opening: OpenOptions) throws(BlockError) -> FileNode {
    var configuration = FileNode.Configuration(path: path)
    configuration.cache = opening.cache
    configuration.unmapsDiscards = true
    return try FileNode(configuration)
  }

  private func preallocation(_ reader: inout Reader, _ allowed: [Preallocation]) throws(BlockError)
    -> Preallocation
  {
    guard let text = reader.text("preallocation") else { return .off }
    guard let mode = Preallocation(rawValue: text), allowed.contains(mode) else {
      throw BlockError(
        .invalid,
        "preallocation is '\(text)'; it must be one of \(allowed.map(\.rawValue).joined(separator: ", "))")
    }
    return mode
  }

  private func makeRaw(_ size: UInt64, _ reader: inout Reader, _ opening: OpenOptions) throws(BlockError)
    -> OpenedImage
  {
    let mode = try preallocation(&reader, [.off, .falloc, .full])
    announce("size=\(size)" + (options["preallocation"] == nil ? "" : " preallocation=\(mode.rawValue)"))
    try FileNode.create(path, extentHint: extentHint)
    let file = try openFile(path, opening)
    try file.truncate(size, preallocation: mode)
    return OpenedImage(try RawNode(file), filename: filename, format: "raw")
  }

  private func makeLUKS(_ size: UInt64, _ reader: inout Reader, _ opening: OpenOptions) throws(BlockError)
    -> OpenedImage
  {
    let size = (size + 511) & ~511
    let encryption = try encryption(&reader, "", opening)
    announce("size=\(size)" + encryption.summary)
    try FileNode.create(path, extentHint: extentHint)
    let file = try openFile(path, opening)
    try LUKSNode.create(size, encryption.parameters, on: file)
    let node = try LUKSNode(file, passphrase: encryption.parameters.passphrase)
    return OpenedImage(node, filename: filename, format: "luks")
  }

  /// LUKS's options, and how they are shown.
  private func encryption(_ reader: inout Reader, _ prefix: String, _ opening: OpenOptions) throws(BlockError)
    -> (parameters: LUKSHeader.Parameters, summary: String)
  {
    guard let id = reader.text(prefix + "key-secret") else {
      throw BlockError(
        .invalid, "\(prefix)key-secret= is missing; it names a secret made with --object secret,...")
    }
    let passphrase = try checked { () throws(StorageError) in try opening.objects.secret(id) }
    var parameters = LUKSHeader.Parameters(passphrase: passphrase)
    var summary = " \(prefix)key-secret=\(id)"
    func choice<T>(_ key: String, _ known: [(String, T)]) throws(BlockError) -> T? {
      guard let text = reader.text(prefix + key) else { return nil }
      guard let found = known.first(where: { $0.0 == text }) else {
        throw BlockError(
          .unsupported,
          "\(prefix)\(key) is '\(text)'; here are: \(known.map(\.0).joined(separator: ", "))")
      }
      summary += " \(prefix)\(key)=\(text)"
      return found.1
    }
    let digests = Digest.allCases.map { ($0.rawValue, $0) }
    let bits = try choice("cipher-alg", [("aes-128", 128), ("aes-192", 192), ("aes-256", 256)]) ?? 256
    let mode = try choice("cipher-mode", [("xts", SectorCipher.Algorithm.Mode.xts), ("cbc", .cbc)]) ?? .xts
    let vector = try choice("ivgen-alg", ["plain64", "plain", "essiv"].map { ($0, $0) }) ?? "plain64"
    let vectorDigest = try choice("ivgen-hash-alg", digests)
    parameters.digest = try choice("hash-alg", digests) ?? .sha256
    guard mode == .cbc || bits != 192 else { throw BlockError(.unsupported, "aes-192 has no mode xts here") }
    parameters.algorithm = SectorCipher.Algorithm(
      mode, keyByteCount: mode == .xts ? bits / 4 : bits / 8,
      vector: vector == "plain" ? .plain : vector == "essiv" ? .essiv(vectorDigest ?? .sha256) : .plain64)
    if let text = reader.text(prefix + "iter-time") {
      guard let time = Int(text), (1...600_000).contains(time) else {
        throw BlockError(
          .invalid, "\(prefix)iter-time is '\(text)'; it must be milliseconds from 1 to 600000")
      }
      parameters.iterationMilliseconds = time
      summary += " \(prefix)iter-time=\(time)"
    }
    return (parameters, summary)
  }

  /// Images of other programs' formats.
  private func makeForeign(_ size: UInt64, _ reader: inout Reader, _ opening: OpenOptions) throws(BlockError)
    -> OpenedImage
  {
    let size = (size + 511) & ~511
    let isStatic = try checked { () throws(StorageError) in try reader.bool("static") } ?? false
    let kind = reader.text("subformat")
    let known =
      ["vpc": ["dynamic", "fixed"], "vmdk": ["monolithicSparse", "streamOptimized"]][format] ?? []
    if let kind, !known.contains(kind) {
      throw BlockError(.invalid, "subformat is '\(kind)'; here are: \(known.joined(separator: ", "))")
    }
    announce(
      "size=\(size)" + (isStatic ? " static=on" : "") + (kind.map { " subformat=\($0)" } ?? ""))
    try FileNode.create(path, extentHint: extentHint)
    let file = try openFile(path, opening)
    let node: any ImageNode
    switch format {
    case "vdi":
      try VDI.create(size, on: file, isStatic: isStatic)
      node = try VDI.open(file)
    case "vhdx":
      try VHDX.create(size, on: file)
      node = try VHDX.open(file)
    case "vpc":
      try VPC.create(size, on: file, isFixed: kind == "fixed")
      node = try VPC.open(file)
    default:
      try VMDK.create(size, on: file, isStreamOptimized: kind == "streamOptimized")
      node = try VMDK.open(file) { (name) throws(BlockError) in
        throw BlockError(.invalid, "a new image has no extent '\(name)'")
      }
    }
    return OpenedImage(node, filename: filename, format: format)
  }

  private func makeQcow2(_ size: UInt64, _ reader: inout Reader, _ opening: OpenOptions) throws(BlockError)
    -> OpenedImage
  {
    var settings = Qcow2Image.CreateOptions(byteCount: size)
    switch reader.text("compat") {
    case nil, "1.1", "v3": break
    case "0.10", "v2": settings.version = 2
    case let text?: throw BlockError(.invalid, "compat is '\(text)'; it must be 0.10 or 1.1")
    }
    let flags = try checked { () throws(StorageError) in
      (
        try reader.size("cluster_size"), try reader.bool("lazy_refcounts"), try reader.size("refcount_bits"),
        try reader.bool("extended_l2"), try reader.bool("data_file_raw")
      )
    }
    settings.clusterByteCount = flags.0 ?? 65536
    settings.lazyRefcounts = flags.1 ?? false
    settings.refcountBits = Int(clamping: flags.2 ?? 16)
    settings.extendedL2 = flags.3 ?? false
    settings.isDataFileRaw = flags.4 ?? false
    settings.backingFile = reader.text("backing_file")
    settings.backingFormat = reader.text("backing_fmt")
    settings.dataFile = reader.text("data_file")
    if let text = reader.text("compression_type") {
      guard let type = ClusterCompression(name: text) else {
        throw BlockError(.invalid, "compression_type is '\(text)'; it must be zlib or zstd")
      }
      settings.compression = type
    }
    settings.preallocation = try preallocation(&reader, [.off, .metadata, .falloc, .full])
    var encryptionSummary = ""
    if let old = reader.text("encryption"), !["off", "no", "false"].contains(old) {
      throw BlockError(.unsupported, "the legacy AES encryption is broken; use encrypt.format=luks")
    }
    switch reader.text("encrypt.format") {
    case nil:
      if let entry = options.entries.first(where: { $0.key.hasPrefix("encrypt.") }) {
        throw BlockError(.invalid, "\(entry.key) needs encrypt.format=luks")
      }
    case "luks":
      let encryption = try encryption(&reader, "encrypt.", opening)
      settings.encryption = encryption.parameters
      encryptionSummary = " encrypt.format=luks" + encryption.summary
    case let format?:
      throw BlockError(.unsupported, "encrypt.format is '\(format)'; luks is implemented")
    }
    announce(summary(settings) + encryptionSummary)
    var dataFile: FileNode?
    if let name = settings.dataFile {
      let dataPath = FileNames.resolve(name, from: filename)
      try FileNode.create(dataPath)
      dataFile = try openFile(dataPath, opening)
    }
    try FileNode.create(path, extentHint: extentHint)
    let image = try Qcow2Image.create(settings, on: try openFile(path, opening), dataFile: dataFile)
    var backing: OpenedImage?
    if let name = settings.backingFile, !isUnsafe, !opening.withoutBacking {
      backing = try checked { () throws(StorageError) in
        try ImageGraph(backingOptions(opening)).open(
          FileNames.resolve(name, from: filename), format: settings.backingFormat)
      }
      image.attachBacking(backing?.node)
    }
    return OpenedImage(
      image, filename: filename, format: "qcow2", backing: backing, backingFilename: settings.backingFile)
  }

  /// An overlay that nobody else sees: writes go there, and it is gone when it is closed.
  public static func temporaryOverlay(of image: OpenedImage) throws(StorageError) -> OpenedImage {
    do throws(HostError) {
      let path = try HostPath.temporaryFile(in: HostPath.environment("TMPDIR") ?? "/var/tmp")
      do throws(BlockError) {
        var configuration = FileNode.Configuration(path: path)
        configuration.cache = .unsafe
        configuration.isLocked = false
        let file = try FileNode(configuration)
        HostPath.remove(path)
        let overlay = try Qcow2Image.create(.init(byteCount: image.node.byteCount), on: file)
        overlay.attachBacking(image.node)
        return OpenedImage(
          overlay, filename: image.filename, format: "qcow2", backing: image, backingFilename: image.filename)
      } catch { throw HostError("make a temporary overlay: \(error.description)", path, errno: 5) }
    } catch { throw StorageError(error.description) }
  }

  private func backingOptions(_ opening: OpenOptions) -> OpenOptions {
    var options = OpenOptions()
    options.objects = opening.objects
    options.isForCheck = true
    return options
  }

  private func summary(_ settings: Qcow2Image.CreateOptions) -> String {
    var parts = [
      "cluster_size=\(settings.clusterByteCount)", "extended_l2=\(settings.extendedL2 ? "on" : "off")",
    ]
    if options["preallocation"] != nil { parts.append("preallocation=\(settings.preallocation.rawValue)") }
    if settings.version == 2 { parts.append("compat=0.10") }
    parts += ["compression_type=\(settings.compression.name)", "size=\(settings.byteCount)"]
    // As an option list would have it, in which a comma is written twice.
    func doubled(_ name: String) -> String {
      name.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
    }
    if let name = settings.backingFile { parts.append("backing_file=\(doubled(name))") }
    if let format = settings.backingFormat { parts.append("backing_fmt=\(format)") }
    if let name = settings.dataFile { parts.append("data_file=\(doubled(name))") }
    if settings.isDataFileRaw { parts.append("data_file_raw=on") }
    parts += [
      "lazy_refcounts=\(settings.lazyRefcounts ? "on" : "off")", "refcount_bits=\(settings.refcountBits)",
    ]
    return parts.joined(separator: " ")
  }
}
