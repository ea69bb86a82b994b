import ApusHost

/// `apus COMMAND`: what concerns the installation rather than one machine or program.
@main
struct Main {
  static func main() { HostProcess.exit(Commands.run(Array(CommandLine.arguments.dropFirst()))) }
}

enum Commands {
  private static let help = """
    usage: apus COMMAND [ARGUMENTS]

      binfmt    let the kernel start guest programs like the host's own
      help      show this text; apus COMMAND --help shows a command's
      version   show the version

    """

  static func run(_ arguments: [String]) -> Int32 {
    switch arguments.first {
    case "binfmt": return BinfmtCommand.run(Array(arguments.dropFirst()))
    case "help", "--help", "-help", "-h":
      writeStandardOutput(help)
      return 0
    case "version", "--version", "-version":
      writeStandardOutput("Apus version 0.1.0\n")
      return 0
    case let word?:
      writeStandardError("apus: there is no command '\(word)'; apus help lists them\n")
      return 1
    case nil:
      writeStandardError("apus: a command is missing; apus help lists them\n")
      return 1
    }
  }
}
