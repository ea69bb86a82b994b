import ApusBlock
import ApusConfig
import ApusHost
import ApusQcow2
import ApusStorage

extension ImgTool {
  static let convert = Command(
    name: "convert",
    usage:
      "[-f FMT] [-O FMT] [-o OPTIONS] [-c] [-B BACKING [-F FMT]] [-l SNAPSHOT] [-n] [--target-is-zero] [-S SIZE] "
      + "[-m N] [-W] [-C] [-t CACHE] [-T CACHE] [-r RATE] [--bitmaps] [--salvage] [--target-image-opts] [-U] [-p] [-q] FILE... OUTPUT",
    help: """
      Copies images, one behind the other, into a new one.
        -c  compress           -n  the output exists        -S SIZE  store runs of zeros shorter than SIZE (4k; 0: all)
        -m N  workers          -W  write out of order       -C  let the host copy     -l  from an internal snapshot
        -B  an overlay of BACKING: what the input's own backing file has is left out
      """,
    options: [
      format, .init("O", "", value: true), .init("o", "", value: true), .init("c", ""),
      .init("B", "", value: true),
      .init("F", "", value: true), .init("l", "snapshot", value: true), .init("n", ""),
      .init("", "target-is-zero"),
      .init("S", "", value: true), .init("m", "", value: true), .init("W", ""), .init("C", ""), cache,
      sourceCache,
      .init("r", "rate-limit", value: true), .init("", "bitmaps"), .init("", "skip-broken-bitmaps"),
      .init("", "salvage"),
      .init("", "target-image-opts"), forceShare, progressOption, quiet, .init("b", "", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    let outputFormat = arguments["O"] ?? "raw"
    if arguments.all("o").contains(where: { $0 == "help" || $0 == "?" }) {
      return try showOptions(outputFormat)
    }
    return try Conversion(arguments, outputFormat).run()
  }

  /// One run of `convert`.
  private struct Conversion {
    let arguments: Arguments
    let outputFormat: String
    var inputs: [String]
    let output: String

    init(_ arguments: Arguments, _ outputFormat: String) throws(ToolError) {
      (self.arguments, self.outputFormat) = (arguments, outputFormat)
      inputs = arguments.operands
      guard inputs.count >= 2, let last = inputs.popLast() else {
        throw ToolError("convert: must specify image file name and an output file name")
      }
      output = last
      if arguments.has("target-is-zero"), !arguments.has("n") {
        throw ToolError("--target-is-zero requires use of -n flag")
      }
      if arguments.has("b") { throw ToolError("convert has no option -b; use -B") }
      if arguments.has("C"), arguments.has("S") {
        throw ToolError("cannot enable copy offloading when -S is used")
      }
      if arguments.has("C"), arguments.has("c") {
        throw ToolError("cannot enable copy offloading when -c is used")
      }
      if arguments.has("target-image-opts"), !arguments.has("n") {
        throw ToolError("--target-image-opts requires use of -n flag")
      }
      if arguments.has("bitmaps"), inputs.count > 1 {
        throw ToolError("copying bitmaps only possible with single source")
      }
      if arguments.has("skip-broken-bitmaps"), !arguments.has("bitmaps") {
        throw ToolError("use of --skip-broken-bitmaps requires --bitmaps")
      }
    }

    func run() throws(ToolError) -> Int32 {
      let sources = try openSources()
      let size = sources.reduce(0) { $0 + $1.node.byteCount }
      let options = try copyOptions()
      let (target, isNew) = try openTarget(size, sources)
      var settings = options
      settings.isTargetNew = isNew
      if isNew { settings.targetIsZero = target.node.isZeroInitialized && target.backingFilename == nil }
      if arguments.has("target-is-zero") { settings.targetIsZero = true }
      if settings.isCompressed, target.node.clusterByteCount == 0 {
        throw ToolError("compression not supported for the file format '\(target.format)'")
      }
      let meter = ProgressMeter(isForced: arguments.has("progress") && !arguments.has("quiet"))
      let copier = ImageCopier(from: sources, to: target.node, settings) {
        meter.update($0)
      } complain: {
        writeStandardError("\(StorageTools.name): \($0)\n")
      }
      try request("error while converting to '\(output)'") { () throws(BlockError) in
        try copier.run()
        if arguments.has("bitmaps") { try copyBitmaps(sources[0], target) }
        try target.node.close()
        for source in sources { try source.node.close() }
      }
      meter.finish()
      return 0
    }

    private func openSources() throws(ToolError) -> [OpenedImage] {
      var options = OpenOptions()
      options.cache = try cacheMode(arguments["source-cache"], default: .writeback)
      var sources: [OpenedImage] = []
      for name in inputs {
        var image = try open(name, arguments, format: arguments["format"], options)
        if let key = arguments["snapshot"] { image = try snapshot(key, of: image) }
        sources.append(image)
      }
      return sources
    }

    /// `-l NAME` or `-l snapshot.id=ID,snapshot.name=NAME`.
    private func snapshot(_ key: String, of image: OpenedImage) throws(ToolError) -> OpenedImage {
      guard let qcow2 = image.qcow2 else { throw ToolError("'\(image.filename)' has no internal snapshots") }
      var name = key
      if key.hasPrefix("snapshot.") {
        let list: OptionList
        do throws(ConfigurationError) { list = try OptionList(parsing: key) } catch {
          throw ToolError(error.description)
        }
        name = list["snapshot.id"] ?? list["snapshot.name"] ?? ""
      }
      let node = try request("failed to load snapshot") { () throws(BlockError) in
        try qcow2.snapshotNode(name)
      }
      return OpenedImage(
        node, filename: image.filename, format: image.format, backing: image.backing,
        backingFilename: image.backingFilename)
    }

    private func copyOptions() throws(ToolError) -> ImageCopier.Options {
      var options = ImageCopier.Options()
      options.isCompressed = arguments.has("c")
      if let size = try arguments.size("S") {
        guard size & 511 == 0, size < 1 << 31 else {
          throw ToolError("invalid buffer size for sparse output specified: \(size) is no multiple of 512")
        }
        options.sparseByteCount = size
      }
      options.workerCount = try arguments.number("m", in: 1...16)
      options.isUnordered = arguments.has("W")
      options.offloadsCopies = arguments.has("C")
      options.salvages = arguments.has("salvage")
      let hasBacking = try optionList(arguments)["backing_file"] != nil
      options.keepsBackingRanges = arguments.has("B") || hasBacking
      options.rateLimit = try arguments.size("rate-limit") ?? 0
      return options
    }

    private func openTarget(_ size: UInt64, _ sources: [OpenedImage]) throws(ToolError) -> (
      OpenedImage, isNew: Bool
    ) {
      var opening = OpenOptions(writable: true)
      opening.cache = try cacheMode(arguments["cache"], default: .unsafe)
      opening.objects = try objects(arguments)
      if arguments.has("n") {
        guard !arguments.has("o") else { throw ToolError("-o has no effect when skipping image creation") }
        let target: OpenedImage
        if arguments.has("target-image-opts") {
          let list = try parsed { () throws(ConfigurationError) in try OptionList(parsing: output) }
          target = try tool { () throws(StorageError) in try ImageGraph(opening).open(list) }
        } else {
          target = try tool { () throws(StorageError) in
            try ImageGraph(opening).open(output, format: outputFormat)
          }
        }
        guard target.node.byteCount >= size else {
          throw ToolError("output file is smaller than input file: \(target.node.byteCount) of \(size) bytes")
        }
        return (target, false)
      }
      var list = try optionList(arguments)
      if let backing = arguments["B"] { list.entries.append(.init("backing_file", backing)) }
      if let format = arguments["F"] { list.entries.append(.init("backing_fmt", format)) }
      if arguments.has("c"), list["data_file"] != nil {
        throw ToolError("compressed images cannot have an external data file")
      }
      for source in sources where source.filename == output {
        throw ToolError("input and output are the same file '\(output)'")
      }
      let creation = ImageCreation(output, format: outputFormat, options: list, byteCount: size)
      let created = try tool { () throws(StorageError) in try creation.create(opening: opening) }
      return (created, true)
    }

    private func copyBitmaps(_ source: OpenedImage, _ target: OpenedImage) throws(BlockError) {
      guard let from = source.qcow2, let to = target.qcow2 else {
        throw BlockError(.unsupported, "bitmaps can be copied only between qcow2 images")
      }
      for bitmap in from.bitmapList {
        if bitmap.wasInUse {
          if arguments.has("skip-broken-bitmaps") {
            writeStandardError(
              "\(StorageTools.name): warning: skipping inconsistent bitmap '\(bitmap.name)'\n")
            continue
          }
          throw BlockError(
            .invalid,
            "cannot copy the inconsistent bitmap '\(bitmap.name)'; use --skip-broken-bitmaps or remove it")
        }
        try to.addBitmap(bitmap.name, granularity: bitmap.granularity, isEnabled: bitmap.isEnabled)
        try to.mergeBitmap(bitmap.name, from: try from.dirtyRanges(bitmap.name))
      }
    }
  }

  // MARK: dd

  static let dd = Command(
    name: "dd", usage: "[-f FMT] [-O FMT] [-U] [bs=BYTES] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    help: "Copies blocks of an image into a new one.",
    options: [format, forceShare, .init("O", "", value: true)]
  ) { (arguments) throws(ToolError) in
    var values: [String: String] = [:]
    for operand in arguments.operands {
      let parts = operand.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(
        String.init)
      guard parts.count == 2, ["bs", "count", "skip", "if", "of"].contains(parts[0]) else {
        throw ToolError("unrecognized operand '\(operand)'")
      }
      values[parts[0]] = parts[1]
    }
    func size(_ key: String) throws(ToolError) -> UInt64? {
      guard let text = values[key] else { return nil }
      guard let value = parseSize(text) else { throw ToolError("invalid number: '\(text)'") }
      return value
    }
    guard let input = values["if"], let output = values["of"] else {
      throw ToolError("must specify both input and output files")
    }
    let block = try size("bs") ?? 512
    guard block > 0, block < 1 << 40 else { throw ToolError("invalid number: '\(values["bs"] ?? "")'") }
    let source = try open(input, arguments, format: arguments["format"], OpenOptions())
    let start = min(source.node.byteCount, (try size("skip") ?? 0).multipliedClamping(by: block))
    let end =
      try size("count").map { min(source.node.byteCount, start + $0.multipliedClamping(by: block)) }
      ?? source.node.byteCount
    let length = max(end, start) - start
    let creation = ImageCreation(output, format: arguments["O"] ?? "raw", byteCount: length)
    var opening = OpenOptions(writable: true)
    opening.objects = try objects(arguments)
    let target = try tool { () throws(StorageError) in try creation.create(opening: opening) }
    try request { () throws(BlockError) in
      let window = OpenedImage(
        try WindowNode(source.node, start, length), filename: input, format: source.format)
      var options = ImageCopier.Options()
      options.targetIsZero = target.node.isZeroInitialized
      try ImageCopier(from: [window], to: target.node, options).run()
      try target.node.close()
    }
    return 0
  }
}

extension UInt64 {
  /// The product, or the largest value.
  func multipliedClamping(by other: UInt64) -> UInt64 {
    let (product, overflow) = multipliedReportingOverflow(by: other)
    return overflow ? .max >> 1 : product
  }
}

/// Part of an image, read-only, at any offset.
private final class WindowNode: ImageNode {
  private let image: any ImageNode
  private let start: UInt64
  let byteCount: UInt64
  var driverName: String { image.driverName }
  var isReadOnly: Bool { true }
  init(_ image: any ImageNode, _ start: UInt64, _ byteCount: UInt64) throws(BlockError) {
    (self.image, self.start, self.byteCount) = (image, start, byteCount)
  }
  func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    try image.read(at: start + offset, into: buffers)
  }
  func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    throw BlockError(.readOnly, "a window is read-only")
  }
  func flush() {}
  func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) {
    throw BlockError(.readOnly, "a window is read-only")
  }
  func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    throw BlockError(.readOnly, "a window is read-only")
  }
  func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    var status = try image.status(at: start + offset, byteCount: byteCount)
    // What lies behind the image is not asked: let the bytes tell.
    if !status.isAllocated, image.backing != nil {
      (status.isAllocated, status.isData, status.isZero) = (true, true, false)
    }
    return status
  }
  func close() throws(BlockError) { try image.close() }
}
