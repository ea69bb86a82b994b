import ApusHost

/// `apus-img`, `apus-io` and `apus-nbd`: one program, whose name says which of them it is.
@main
struct Main {
  static func main() { StorageTools.run() }
}

enum StorageTools {
  static let version = "0.1.0"

  static func run() {
    HostProcess.ignoreBrokenPipes()
    var arguments = Array(CommandLine.arguments.dropFirst())
    var name = HostPath.lastComponent(CommandLine.arguments.first ?? "")
    if name == "apus-storage", let first = arguments.first {
      name = "apus-\(first)"
      arguments.removeFirst()
    }
    let code: Int32
    switch name {
    case "apus-img": code = ImgTool.run(arguments)
    case "apus-io": code = IOTool.run(arguments)
    case "apus-nbd": code = NBDTool.run(arguments)
    default:
      writeStandardError("apus-storage: call it as apus-img, apus-io or apus-nbd\n")
      code = 1
    }
    HostProcess.exit(code)
  }
}
