import ApusHost

/// `apus-img`, `apus-io` and `apus-nbd`: one program, whose name says which of them it is.
@main
struct Main {
  static func main() { StorageTools.run() }
}

enum StorageTools {
  static let version = "0.1.0"
  /// The name that the program was called by, which messages begin with: `apus-img`, or `qemu-img` through a link.
  static let name =
    calledName.hasSuffix("-storage") && CommandLine.arguments.count > 1
    ? "apus-\(CommandLine.arguments[1])" : calledName
  private static let calledName = HostPath.lastComponent(CommandLine.arguments.first ?? "")

  static func run() {
    HostProcess.ignoreBrokenPipes()
    var arguments = Array(CommandLine.arguments.dropFirst())
    if calledName.hasSuffix("-storage"), !arguments.isEmpty { arguments.removeFirst() }
    let code: Int32
    switch name.split(separator: "-").last {
    case "img": code = ImgTool.run(arguments)
    case "io": code = IOTool.run(arguments)
    case "nbd": code = NBDTool.run(arguments)
    default:
      writeStandardError("\(name): call it as apus-img, apus-io or apus-nbd\n")
      code = 1
    }
    HostProcess.exit(code)
  }
}
