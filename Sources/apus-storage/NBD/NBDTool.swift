import ApusBlock
import ApusConfig
import ApusHost
import ApusNBD
import ApusQcow2
import ApusStorage
import Synchronization

/// `apus-nbd`: an image for network block device clients.
enum NBDTool {
  private static let options: [Arguments.Option] = [
    .init("p", "port", value: true), .init("b", "bind", value: true), .init("k", "socket", value: true),
    .init("e", "shared", value: true), .init("t", "persistent"),
    .init("x", "export-name", value: true),
    .init("D", "description", value: true), .init("f", "format", value: true), .init("r", "read-only"),
    .init("n", "nocache"), .init("", "cache", value: true), .init("", "discard", value: true),
    .init("", "image-opts"),
    .init("", "fork"), .init("", "pid-file", value: true), .init("L", "list"),
    .init("B", "bitmap", value: true),
    .init("A", "allocation-depth"), .init("l", "load-snapshot", value: true), .init("h", "help"),
    .init("V", "version"),
    .init("s", "snapshot"), .init("c", "connect", value: true), .init("d", "disconnect"),
    .init("", "aio", value: true), .init("v", "verbose"),
    .init("", "detect-zeroes", value: true), .init("", "tls-creds", value: true),
    .init("", "object", value: true),
    .init("", "tls-hostname", value: true), .init("", "tls-authz", value: true),
  ]

  private static let help = """
    usage: apus-nbd [OPTIONS] FILE
           apus-nbd -c /dev/nbdX [OPTIONS] FILE
           apus-nbd -d /dev/nbdX
           apus-nbd -L [OPTIONS]
    Serves an image to network block device clients or as a device of this host, or lists what a server offers.

      -p, --port PORT          TCP port (10809)           -b, --bind ADDRESS     interface to bind to (all)
      -k, --socket PATH        Unix socket instead        -x, --export-name NAME the export's name (empty)
      -D, --description TEXT   description of the export  -e, --shared N         clients at once (1; 0: any)
      -t, --persistent         go on without clients      -r, --read-only        refuse writes
      -f, --format FMT         the image's format         --image-opts           FILE is a list of options
      -B, --bitmap NAME        offer a dirty bitmap       -A, --allocation-depth offer depths in the chain
      -l, --load-snapshot NAME an internal snapshot       -n, --nocache          past the host's page cache
      --cache MODE             cache mode                 --discard MODE         ignore or unmap
      --fork                   go to the background       --pid-file FILE        write the process id
      -v, --verbose            tell what is served (not with --fork)
      -L, --list               list a server's exports    -s, --snapshot         write to a temporary overlay
      --object OBJECT          a secret or TLS credentials
      --tls-creds ID           use TLS                    --tls-hostname NAME    whom the server's certificate names
      --tls-authz ID           which clients' certificates are let in: an authz-simple or authz-list object
      --detect-zeroes MODE     off, on or unmap           --aio MODE            threads, native or io_uring
      -c, --connect DEVICE     serve as /dev/nbdX         -d, --disconnect      end the serving of such a device
                               (in the background, but with -v)
    """

  static func run(_ arguments: [String]) -> Int32 {
    do throws(ToolError) {
      if arguments == ["--completion"] {
        printLine(Completion.script("apus-nbd", options: options))
        return 0
      }
      let parsed = try Arguments(arguments, options, of: "apus-nbd")
      if parsed.has("help") {
        printLine(help)
        return 0
      }
      if parsed.has("version") {
        printLine("apus-nbd version \(StorageTools.version)")
        return 0
      }
      if parsed.has("list") { return try list(parsed) }
      if parsed.has("disconnect") { return try disconnect(parsed) }
      if parsed.has("connect") { return try connect(parsed) }
      return try serve(parsed)
    } catch {
      writeStandardError("\(StorageTools.name): \(error.message)\n")
      return error.code
    }
  }

  private static func address(_ arguments: Arguments, isServer: Bool) throws(ToolError) -> HostSocketAddress {
    if let path = arguments["socket"] {
      guard !arguments.has("port"), !arguments.has("bind") else {
        throw ToolError("--socket excludes --port and --bind")
      }
      return .unix(path: path)
    }
    let port = try arguments.number("port", in: 0...65535) ?? 10809
    return .inet(host: arguments["bind"] ?? (isServer ? "" : "localhost"), port: UInt16(port))
  }

  private static func credentials(_ arguments: Arguments) throws(ToolError) -> TLSCredentials? {
    guard let id = arguments["tls-creds"] else {
      if arguments.has("tls-authz") { throw ToolError("--tls-authz needs --tls-creds") }
      return nil
    }
    let objects = try ImgTool.objects(arguments)
    var found = try tool { () throws(StorageError) in try objects.tlsCredentials(id) }
    if let rules = arguments["tls-authz"] {
      guard found.kind == .x509, found.verifiesPeer, found.isServer else {
        throw ToolError("--tls-authz needs a server's credentials with certificates, and verify-peer=on")
      }
      found.authorization = try tool { () throws(StorageError) in try objects.authorization(rules) }
    }
    guard found.isServer != arguments.has("list") else {
      throw ToolError(
        "the TLS credentials '\(id)' are a \(found.isServer ? "server" : "client")'s; "
          + "give endpoint=\(found.isServer ? "client" : "server")")
    }
    return found
  }

  // MARK: Listing

  private static func list(_ arguments: Arguments) throws(ToolError) -> Int32 {
    guard arguments.operands.isEmpty else { throw ToolError("list mode is incompatible with a file name") }
    let address = try address(arguments, isServer: false)
    var configuration = NBDNode.Configuration(address)
    configuration.tls = try credentials(arguments)
    configuration.hostName = arguments["tls-hostname"]
    let exports = try request { () throws(BlockError) in try NBDNode.list(configuration) }
    printLine("exports available: \(exports.count)")
    let flagNames: [(UInt16, String)] = [
      (1, "readonly"), (2, "flush"), (3, "fua"), (4, "rotational"), (5, "trim"), (6, "zeroes"), (7, "df"),
      (8, "multi"),
      (9, "resize"), (10, "cache"), (11, "fast-zero"),
    ]
    for export in exports {
      printLine(" export: '\(export.name)'")
      if !export.description.isEmpty { printLine("  description: \(export.description)") }
      printLine("  size:  \(export.byteCount)")
      let names = flagNames.filter { export.flags >> $0.0 & 1 != 0 }.map(\.1)
      printLine("  flags: 0x\(String(export.flags, radix: 16)) ( \(names.joined(separator: " ")) )")
      if let minimum = export.minimumBlock { printLine("  min block: \(minimum)") }
      if let preferred = export.preferredBlock { printLine("  opt block: \(preferred)") }
      if let maximum = export.maximumBlock { printLine("  max block: \(maximum)") }
      if !export.contexts.isEmpty {
        printLine("  available meta contexts: \(export.contexts.count)")
        for context in export.contexts { printLine("   \(context)") }
      }
    }
    return 0
  }

  // MARK: Serving

  private static func serve(_ arguments: Arguments) throws(ToolError) -> Int32 {
    guard arguments.operands.count == 1 else { throw ToolError("expecting one image file name; see --help") }
    let shared = try arguments.number("shared", in: 0...Int(Int32.max)) ?? 1
    var daemon: Int32?
    if arguments.has("fork") {
      do throws(HostError) { daemon = try HostProcess.beginDaemon() } catch {
        throw ToolError(error.description)
      }
    }
    let (image, export) = try openExport(arguments, shared)
    let listener: HostListener
    let loop: EventLoop
    let address = try address(arguments, isServer: true)
    do throws(HostError) {
      listener = try HostListener(address)
      loop = try EventLoop()
      if let path = arguments["pid-file"] {
        try HostDescriptor.replace(path, with: Array("\(HostProcess.identifier)\n".utf8))
      }
    } catch { throw ToolError(error.description) }
    let server = NBDServer(
      [export], listener: listener, connectionLimit: shared, isPersistent: arguments.has("persistent"),
      tls: try credentials(arguments))
    do throws(HostError) { try HostProcess.onTermination(loop) { _ in server.stop() } } catch {
      throw ToolError(error.description)
    }
    if arguments.has("verbose"), daemon == nil {
      writeStandardError("\(StorageTools.name): serving '\(image.filename)' on \(address)\n")
    }
    let thread = HostThread.spawn("nbd-signals") { loop.run() }
    if let daemon { HostProcess.finishDaemon(daemon) }
    server.run()
    loop.stop()
    thread.join()
    try request { () throws(BlockError) in try image.node.close() }
    if let path = arguments["socket"] { removeFile(path) }
    return 0
  }

  // MARK: The kernel's devices

  private static func deviceError(_ error: HostError) -> ToolError {
    // ENOENT, ENXIO, ENODEV, ENOTBLK
    let isMissing = [2, 6, 19, 15].contains(error.errno)
    return ToolError(
      error.description
        + (isMissing
          ? "; load the kernel's driver with 'modprobe nbd' and give one of its devices, /dev/nbdX" : ""))
  }

  private static func connect(_ arguments: Arguments) throws(ToolError) -> Int32 {
    let path = arguments["connect"] ?? ""
    guard arguments.operands.count == 1 else { throw ToolError("expecting one image file name; see --help") }
    for name in [
      "port", "bind", "socket", "tls-creds", "tls-hostname", "tls-authz", "bitmap", "allocation-depth",
      "export-name",
    ]
    where arguments.has(name) {
      throw ToolError("--connect excludes --\(name): a device has no other clients")
    }
    var daemon: Int32?
    if arguments.has("fork") || !arguments.has("verbose") {
      do throws(HostError) { daemon = try HostProcess.beginDaemon() } catch {
        throw ToolError(error.description)
      }
    }
    let (image, export) = try openExport(arguments, 1)
    let loop: EventLoop
    let device: NBDDevice
    do throws(HostError) {
      device = try NBDDevice(path, export)
      loop = try EventLoop()
      try HostProcess.onTermination(loop) { _ in device.stop() }
      if let file = arguments["pid-file"] {
        try HostDescriptor.replace(file, with: Array("\(HostProcess.identifier)\n".utf8))
      }
    } catch { throw deviceError(error) }
    // The device's thread is the one that `disconnect` waits for: it ends when the image is closed. Signals come to this one.
    let failure = Mutex<ToolError?>(nil)
    let thread = HostThread.spawn("nbd-device") { [daemon] in
      do throws(ToolError) {
        do throws(HostError) {
          try device.run { isReady in
            guard isReady else {
              failure.withLock {
                if $0 == nil { $0 = ToolError("the kernel did not take '\(path)' up within ten seconds") }
              }
              return device.stop()
            }
            if let daemon { return HostProcess.finishDaemon(daemon) }
            writeStandardError("\(StorageTools.name): serving '\(image.filename)' as \(path)\n")
          }
        } catch { throw deviceError(error) }
        try request { () throws(BlockError) in try image.node.close() }
      } catch { failure.withLock { $0 = error } }
      loop.stop()
    }
    loop.run()
    thread.join()
    if let failure = failure.withLock({ $0 }) { throw failure }
    return 0
  }

  private static func disconnect(_ arguments: Arguments) throws(ToolError) -> Int32 {
    guard arguments.operands.count == 1 else { throw ToolError("--disconnect expects one device: /dev/nbdX") }
    let path = arguments.operands[0]
    let hasEnded: Bool
    do throws(HostError) { hasEnded = try NBDDevice.disconnect(path) } catch { throw deviceError(error) }
    guard hasEnded else { throw ToolError("'\(path)' is not served, or its server does not end") }
    printLine("\(path) disconnected")
    return 0
  }

  private static func openExport(_ arguments: Arguments, _ shared: Int) throws(ToolError) -> (
    OpenedImage, NBDExport
  ) {
    let isReadOnly = arguments.has("read-only") || arguments.has("load-snapshot")
    var options = OpenOptions(writable: !isReadOnly && !arguments.has("snapshot"))
    options.cache = try ImgTool.cacheMode(
      arguments.has("nocache") ? "none" : arguments["cache"], default: .writeback)
    options.requestMode = try ImgTool.requestMode(arguments["aio"])
    switch arguments["discard"] {
    case nil, "unmap", "on": options.unmaps = true
    case "ignore", "off": options.unmaps = false
    case let text?: throw ToolError("invalid discard mode '\(text)'")
    }
    var image = try ImgTool.open(arguments.operands[0], arguments, format: arguments["format"], options)
    if arguments.has("snapshot") {
      let opened = image
      image = try tool { () throws(StorageError) in try ImageCreation.temporaryOverlay(of: opened) }
    }
    if var key = arguments["load-snapshot"] {
      if key.hasPrefix("snapshot.") {
        let given = key
        let list = try ImgTool.parsed { () throws(ConfigurationError) in try OptionList(parsing: given) }
        key = list["snapshot.id"] ?? list["snapshot.name"] ?? key
      }
      guard let qcow2 = image.qcow2 else { throw ToolError("'\(image.filename)' has no internal snapshots") }
      let node = try request { () throws(BlockError) in try qcow2.snapshotNode(key) }
      image = OpenedImage(node, filename: image.filename, format: image.format, backing: image.backing)
    }
    let detection = arguments["detect-zeroes"]
    guard [nil, "off", "on", "unmap"].contains(detection), detection != "unmap" || options.unmaps else {
      throw ToolError(
        "invalid detect-zeroes mode '\(detection ?? "")': it must be off, on or unmap, and unmap needs --discard=unmap"
      )
    }
    image = image.detectingZeroes(detection)
    let opened = image
    var bitmaps: [NBDExport.Bitmap] = []
    for name in arguments.all("bitmap") {
      guard
        let owner = opened.chain.first(where: { $0.qcow2?.bitmapList.contains { $0.name == name } == true })?
          .qcow2
      else {
        throw ToolError("there is no bitmap '\(name)'")
      }
      if !isReadOnly, owner.bitmapList.contains(where: { $0.name == name && $0.isEnabled }) {
        throw ToolError("the bitmap '\(name)' is enabled and would change; export it read-only or disable it")
      }
      bitmaps.append(
        .init(name: name, ranges: try request { () throws(BlockError) in try owner.dirtyRanges(name) }))
    }
    let export = NBDExport(
      opened.node, name: arguments["export-name"] ?? "", description: arguments["description"] ?? "",
      isReadOnly: isReadOnly,
      allowsMultipleConnections: shared != 1, bitmaps: bitmaps,
      showsAllocationDepth: arguments.has("allocation-depth")
    ) { (offset, byteCount) throws(BlockError) in
      let found = try opened.chainStatus(at: offset, byteCount: byteCount)
      return (found.status, found.isPresent ? UInt32(found.depth + 1) : 0)
    }
    return (opened, export)
  }
}
