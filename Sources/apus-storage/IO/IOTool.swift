import ApusBlock
import ApusConfig
import ApusHost
import ApusStorage

/// `apus-io`: single requests to images, for scripts that test them.
enum IOTool {
  private static let options: [Arguments.Option] = [
    .init("", "image-opts"), .init("c", "cmd", value: true), .init("f", "format", value: true),
    .init("r", "read-only"),
    .init("n", "nocache"), .init("t", "cache", value: true), .init("d", "discard", value: true),
    .init("U", "force-share"),
    .init("C", "copy-on-read"), .init("h", "help"), .init("V", "version"), .init("i", "aio", value: true),
    .init("", "object", value: true),
    .init("s", "snapshot"), .init("m", "misalign"), .init("k", "native-aio"),
    .init("T", "trace", value: true),
  ]

  private static let help = """
    usage: apus-io [OPTIONS] [-c COMMAND]... [FILE]
    Reads, writes and checks images, by commands given with -c or on standard input.

      -c, --cmd COMMAND   run a command (several times)     -f, --format FMT    the image's format
      -r, --read-only     open read-only                    -n, --nocache       past the host's page cache
      -t, --cache MODE    cache mode                        -d, --discard MODE  ignore or unmap
      -U, --force-share   ignore other users                -C, --copy-on-read  keep what is read from backing files
      -s, --snapshot      write to a temporary overlay      --object OBJECT       a secret or TLS credentials
      --image-opts        FILE is a list of options         -i, --aio MODE      threads, native or io_uring (-k: native)

    apus-io -c help lists the commands, apus-io --completion prints a completion script for bash. The exit code is 1 if one failed.
    """

  static func run(_ arguments: [String]) -> Int32 {
    do throws(ToolError) {
      if arguments == ["--completion"] {
        printLine(Completion.script("apus-io", options: options))
        return 0
      }
      let parsed = try Arguments(arguments, options, of: "apus-io")
      if parsed.has("help") {
        printLine(help)
        return 0
      }
      if parsed.has("version") {
        printLine("apus-io version \(StorageTools.version)")
        return 0
      }
      guard parsed.operands.count <= 1 else { throw ToolError("expecting one image file name") }
      let session = IOSession()
      var settings = IOSession.OpenSettings()
      settings.isReadOnly = parsed.has("read-only")
      settings.cache = try ImgTool.cacheMode(
        parsed.has("nocache") ? "none" : parsed["cache"], default: .writeback)
      settings.format = parsed["format"]
      settings.isOptionList = parsed.has("image-opts")
      settings.sharesAll = parsed.has("force-share")
      settings.objects = try ImgTool.objects(parsed)
      settings.isTemporary = parsed.has("snapshot")
      session.objects = settings.objects
      for name in ["misalign", "trace"] where parsed.has(name) {
        throw ToolError("--\(name) is not implemented")
      }
      settings.copiesOnRead = parsed.has("copy-on-read")
      if settings.copiesOnRead, settings.isReadOnly { throw ToolError("-C and -r exclude each other") }
      settings.requestMode = try ImgTool.requestMode(
        parsed["aio"] ?? (parsed.has("native-aio") ? "native" : nil))
      switch parsed["discard"] {
      case nil, "unmap", "on": settings.unmaps = true
      case "ignore", "off": settings.unmaps = false
      case let text?: throw ToolError("invalid discard option: '\(text)'")
      }
      if let name = parsed.operands.first { try session.open(name, settings) }
      let commands = parsed.all("cmd")
      if commands.isEmpty {
        session.runInteractively()
      } else {
        for command in commands where !session.hasQuit { session.run(command) }
      }
      try session.close()
      return session.hasFailed ? 1 : 0
    } catch {
      writeStandardError("\(StorageTools.name): \(error.message)\n")
      return error.code
    }
  }
}
