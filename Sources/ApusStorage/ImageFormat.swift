import ApusBlock
import ApusConfig
import ApusCrypto
import ApusImages
import ApusQcow2

/// A format driver: how an image is recognised, opened and made.
public struct ImageFormat: Sendable {
  /// An option of `create -o`.
  public struct Option: Sendable {
    public var name: String
    public var help: String
    init(_ name: String, _ help: String) { (self.name, self.help) = (name, help) }
  }

  public var name: String
  public var options: [Option]
  /// Whether images can be created.
  public var isWritable: Bool
  /// How sure the first bytes make it, 0 to 100.
  var score: @Sendable (_ start: [UInt8], _ filename: String) -> Int
  var open:
    @Sendable (_ file: any ImageNode, _ list: inout OptionList, _ graph: ImageGraph, _ filename: String)
      throws(BlockError)
      -> any ImageNode

  public static func named(_ name: String) -> ImageFormat? { all.first { $0.name == name } }

  /// The format that the first bytes tell; raw if none does.
  static func probe(_ file: any ImageNode, _ filename: String) throws(BlockError) -> ImageFormat {
    let start = try file.bytes(at: 0, count: RawNode.recognisedByteCount)
    if let name = unsupported(start) {
      throw BlockError(
        .unsupported,
        "it looks like \(name), which cannot be read here; say format=raw to use its bytes as they are")
    }
    return recognised(start, filename) ?? raw.guarded(filename)
  }

  /// The format other than raw that an image which begins with these bytes has.
  private static func recognised(_ start: [UInt8], _ filename: String) -> ImageFormat? {
    var best: (score: Int, format: ImageFormat)?
    for format in all where format.name != raw.name {
      let score = format.score(start, filename)
      if score > best?.score ?? 0 { best = (score, format) }
    }
    return best?.format
  }

  /// Formats that are known by their first bytes and not implemented.
  private static func unsupported(_ start: [UInt8]) -> String? {
    let magics = [
      ("QFI\u{fb}\0\0\0\u{1}", "qcow"), ("Bochs Virtual HD Image", "bochs"),
    ]
    return magics.first { start.starts(with: $0.0.unicodeScalars.map { UInt8($0.value) }) }?.1
  }

  /// Raw for a probed image: a write that would make it look like another format is refused, since the next one who
  /// opens it without a format would take the guest's word for it, backing files included.
  private func guarded(_ filename: String) -> ImageFormat {
    var format = self
    format.open = { (file, _, _, _) throws(BlockError) in
      try RawNode(file) { start in
        ImageFormat.recognised(start, filename)?.name ?? ImageFormat.unsupported(start)
      }
    }
    return format
  }

  static let sizeOption = Option("size", "Virtual disk size")

  public static let all: [ImageFormat] = [
    raw, qcow2, vdi, vpc, vmdk, vhdx, luks, parallels, qed, dmg,
  ]

  static let raw = ImageFormat(
    name: "raw",
    options: [sizeOption, Option("preallocation", "Preallocation mode (allowed values: off, falloc, full)")],
    isWritable: true, score: { _, _ in 1 },
    open: { (file, list, _, _) throws(BlockError) in
      func size(_ key: String) throws(BlockError) -> UInt64? {
        guard let text = list.take(key) else { return nil }
        guard let value = parseSize(text) else {
          throw BlockError(.invalid, "\(key) is '\(text)'; it must be a size")
        }
        return value
      }
      return try RawNode(file, offset: try size("offset") ?? 0, byteCount: try size("size"))
    })

  static let vdi = ImageFormat(
    name: "vdi",
    options: [sizeOption, Option("static", "VDI static (pre-allocated) image")], isWritable: true,
    score: { start, _ in VDI.matches(start) ? 100 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try VDI.open(file) })

  static let vpc = ImageFormat(
    name: "vpc",
    options: [
      sizeOption, Option("subformat", "Type of virtual hard disk format: dynamic (default) or fixed"),
    ],
    isWritable: true,
    score: { start, _ in VPC.matches(start) ? 100 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try VPC.open(file) })

  static let vmdk = ImageFormat(
    name: "vmdk",
    options: [
      sizeOption,
      Option("subformat", "VMDK flat extent format: monolithicSparse (default) or streamOptimized"),
    ],
    isWritable: true,
    score: { start, _ in VMDK.matches(start) ? 100 : 0 },
    open: { (file, _, graph, filename) throws(BlockError) in
      try VMDK.open(file) { (name) throws(BlockError) in try graph.openExtent(name, of: filename) }
    })

  static let vhdx = ImageFormat(
    name: "vhdx", options: [sizeOption], isWritable: true,
    score: { start, _ in VHDX.matches(start) ? 100 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try VHDX.open(file) })

  static let parallels = ImageFormat(
    name: "parallels", options: [], isWritable: false,
    score: { start, _ in Parallels.matches(start) ? 100 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try Parallels.open(file) })

  static let qed = ImageFormat(
    name: "qed", options: [], isWritable: false,
    score: { start, _ in QED.matches(start) ? 100 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try QED.open(file) })

  /// Known by its end, and by its name.
  static let dmg = ImageFormat(
    name: "dmg", options: [], isWritable: false,
    score: { _, filename in filename.hasSuffix(".dmg") ? 2 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try DMGNode(file) })

  static let luks = ImageFormat(
    name: "luks", options: [sizeOption] + encryptionOptions(""), isWritable: true,
    score: { start, _ in LUKSHeader.matches(start) ? 100 : 0 },
    open: { (file, list, graph, _) throws(BlockError) in
      let passphrase = try graph.passphrase(&list)
      guard passphrase != nil || graph.options.isForCheck else {
        throw BlockError(
          .invalid, "it is encrypted; give its passphrase with --object secret,... and key-secret=")
      }
      return try LUKSNode(file, passphrase: passphrase)
    })

  /// What `create` takes for LUKS, with the format's prefix.
  static func encryptionOptions(_ prefix: String) -> [Option] {
    [
      Option(prefix + "key-secret", "ID of the secret with the passphrase"),
      Option(prefix + "cipher-alg", "Encryption cipher: aes-256 (default), aes-192, aes-128"),
      Option(prefix + "cipher-mode", "Cipher mode: xts (default), cbc"),
      Option(prefix + "ivgen-alg", "Initialization vectors: plain64 (default), plain, essiv"),
      Option(prefix + "ivgen-hash-alg", "Hash of essiv"),
      Option(prefix + "hash-alg", "Hash of passphrases: sha256 (default), sha1, sha224, sha384, sha512"),
      Option(prefix + "iter-time", "Milliseconds that trying a passphrase takes (2000)"),
    ]
  }

  static let qcow2 = ImageFormat(
    name: "qcow2",
    options: [
      sizeOption,
      Option("compat", "Compatibility level (v2 [0.10] or v3 [1.1])"),
      Option("backing_file", "File name of a base image"),
      Option("backing_fmt", "Image format of the base image"),
      Option("data_file", "File name of an external data file"),
      Option("data_file_raw", "The external data file must stay valid as a raw image"),
      Option("cluster_size", "qcow2 cluster size"),
      Option("preallocation", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
      Option("lazy_refcounts", "Postpone refcount updates"),
      Option("refcount_bits", "Width of a reference count entry in bits"),
      Option("extended_l2", "Extended L2 tables"),
      Option("compression_type", "Compression method used for image cluster compression (zlib, zstd)"),
      Option("encrypt.format", "Encryption of the image's data: luks"),
      Option("encryption", "Legacy encryption; only off"),
    ] + encryptionOptions("encrypt."), isWritable: true,
    score: { start, _ in Qcow2Image.matches(start) ? 100 : 0 },
    open: { (file, _, _, _) throws(BlockError) in try Qcow2Image(file) })
}
