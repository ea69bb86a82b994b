import ApusBlock
import ApusConfig
import ApusHost
import ApusStorage

/// `apus-img`: disk images on the command line.
enum ImgTool {
  /// A subcommand: its name, its arguments as help shows them, and what it does.
  struct Command: Sendable {
    var name: String
    var usage: String
    var help: String
    var options: [Arguments.Option]
    var run: @Sendable (Arguments) throws(ToolError) -> Int32
  }

  static let commands: [Command] = [
    amend, bench, bitmap, check, commit, compare, convert, create, dd, info, map, measure, rebase, resize,
    snapshot,
  ]

  static func run(_ arguments: [String]) -> Int32 {
    var arguments = arguments
    guard let name = arguments.first else {
      writeStandardError(
        "\(StorageTools.name): not enough arguments\nTry 'apus-img --help' for more information\n")
      return 1
    }
    arguments.removeFirst()
    if name == "-V" || name == "--version" {
      printLine("apus-img version \(StorageTools.version)")
      return 0
    }
    if name == "-h" || name == "--help" || name == "help" {
      printLine(helpText)
      return 0
    }
    if name == "--completion" {
      printLine(
        Completion.script("apus-img", commands: commands.map { ($0.name, $0.options + [objectOption]) }))
      return 0
    }
    guard let command = commands.first(where: { $0.name == name }) else {
      let known = commands.map(\.name)
      writeStandardError(
        "\(StorageTools.name): \(ConfigurationError.unknown("command", name, among: known).description)\n")
      return 1
    }
    if arguments.contains("-h") || arguments.contains("--help") {
      printLine("usage: apus-img \(command.name) \(command.usage)\n\n\(command.help)")
      return 0
    }
    do throws(ToolError) {
      let shared = [
        Arguments.Option("", "image-opts"), objectOption,
        .init("T", "trace", value: true),
      ].filter { option in !command.options.contains { $0.short == option.short && !option.short.isEmpty } }
      let parsed = try Arguments(
        arguments, command.options + shared, of: command.name, lastIsOperand: command.name == "resize")
      if parsed.has("trace") { throw ToolError("\(command.name): --trace is not implemented") }
      if parsed.has("image-opts"), name == "create" {
        throw ToolError("\(name): --image-opts is not implemented")
      }
      return try command.run(parsed)
    } catch {
      if !error.message.isEmpty { writeStandardError("\(StorageTools.name): \(error.message)\n") }
      return error.code
    }
  }

  private static var helpText: String {
    let lines = commands.map { "  \($0.name) \($0.usage)" }.joined(separator: "\n")
    let formats = ImageFormat.all.map(\.name).joined(separator: " ")
    return """
      usage: apus-img COMMAND [OPTIONS]
      Works on disk images. 'apus-img COMMAND --help' explains a command.

      \(lines)

      Sizes take the suffixes K, M, G, T, P, E (powers of 1024). A FILE is a path, json:{...}, or nbd://HOST/EXPORT;
      with --image-opts it is a list like driver=qcow2,file.filename=PATH. --object secret,id=ID,data=TEXT or file=PATH
      makes a passphrase that encrypt.key-secret=ID refers to; tls-creds-x509 and tls-creds-psk make TLS credentials.
      Formats: \(formats)
      'apus-img --completion' prints a completion script for bash.
      """
  }

  // MARK: What commands share

  static let objectOption = Arguments.Option("", "object", value: true)
  static let format = Arguments.Option("f", "format", value: true)
  static let quiet = Arguments.Option("q", "quiet")
  static let progressOption = Arguments.Option("p", "progress")
  static let cache = Arguments.Option("t", "cache", value: true)
  static let sourceCache = Arguments.Option("T", "source-cache", value: true)
  static let forceShare = Arguments.Option("U", "force-share")
  static let output = Arguments.Option("", "output", value: true)

  static func cacheMode(_ text: String?, default mode: BlockCacheMode) throws(ToolError) -> BlockCacheMode {
    guard let text else { return mode }
    guard let mode = BlockCacheMode(rawValue: text) else {
      throw ToolError(
        "invalid cache option: \(ConfigurationError.unknown("cache mode", text, among: BlockCacheMode.allCases.map(\.rawValue)).description)"
      )
    }
    return mode
  }

  /// Opens the image that an operand names.
  static func open(
    _ name: String, _ arguments: Arguments, format: String?, _ options: OpenOptions, code: Int32 = 1
  )
    throws(ToolError) -> OpenedImage
  {
    var options = options
    options.objects = try objects(arguments)
    if arguments.has("force-share") {
      guard options.isReadOnly else { throw ToolError("-U works only with images that are opened read-only") }
      options.sharesAll = true
    }
    let isOptions = arguments.has("image-opts")
    if isOptions, format != nil { throw ToolError("--image-opts and -f exclude each other") }
    return try tool(code: code) { () throws(StorageError) in
      let graph = ImageGraph(options)
      guard isOptions else { return try graph.open(name, format: format) }
      let list: OptionList
      do throws(ConfigurationError) { list = try OptionList(parsing: name) } catch {
        throw StorageError(error)
      }
      return try graph.open(list)
    }
  }

  /// What `--object` made.
  static func objects(_ arguments: Arguments) throws(ToolError) -> StorageObjects {
    var objects = StorageObjects()
    for text in arguments.all("object") { try tool { () throws(StorageError) in try objects.add(text) } }
    return objects
  }

  static func operand(_ arguments: Arguments, _ what: String) throws(ToolError) -> String {
    guard arguments.operands.count == 1, let name = arguments.operands.first else {
      throw ToolError("\(what): expecting one image file name")
    }
    return name
  }

  static func isJSON(_ arguments: Arguments) throws(ToolError) -> Bool {
    switch arguments["output"] {
    case nil, "human": return false
    case "json": return true
    case let text?: throw ToolError("--output must be used with human or json as argument, not '\(text)'")
    }
  }

  /// `--aio`: how requests reach files.
  static func requestMode(_ text: String?) throws(ToolError) -> FileRequestMode {
    guard let mode = FileRequestMode(rawValue: text ?? "threads") else {
      throw ToolError("invalid aio mode '\(text ?? "")': it must be threads, native or io_uring")
    }
    return mode
  }

  /// Runs what reads option values.
  static func parsed<R>(_ body: () throws(ConfigurationError) -> R) throws(ToolError) -> R {
    do throws(ConfigurationError) { return try body() } catch { throw ToolError(error.description) }
  }

  /// Options given with `-o`, several lists in one.
  static func optionList(_ arguments: Arguments, _ name: String = "o") throws(ToolError) -> OptionList {
    var list = OptionList()
    do throws(ConfigurationError) {
      for text in arguments.all(name) { list.entries += try OptionList(parsing: text).entries }
    } catch { throw ToolError(error.description) }
    return list
  }

  /// `-o help`.
  static func showOptions(_ format: String) throws(ToolError) -> Int32 {
    guard let driver = ImageFormat.named(format) else {
      throw ToolError(
        ConfigurationError.unknown("image format", format, among: ImageFormat.all.map(\.name)).description)
    }
    printLine("Supported options:")
    for option in driver.options.sorted(by: { $0.name < $1.name }) {
      printLine("  \(Format.padded(option.name, 22)) - \(option.help)")
    }
    return 0
  }
}
