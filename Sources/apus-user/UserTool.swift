import ApusAccelTranslate
import ApusHost
import ApusIR
import ApusUser

/// From the command line to a running guest program.
enum UserTool {
  static let version = "0.1.0"

  static func run() {
    let arguments = HostProcess.argumentBytes
    // The program's own name says which guest's it is: apus-riscv64.
    let name = arguments.first?.lastComponent.text ?? ""
    let isa = UserISAs.named(String(name.drop { $0 != "-" }.dropFirst())) ?? RISCVUserISA()
    do throws(ProgramError) {
      var line = UserCommandLine(arguments, isa)
      let options = try line.parse()
      if let file = line.logFile {
        do throws(HostError) { try HostLog.open(file, appending: line.appendsLog) } catch {
          throw ProgramError(error.description, code: 1)
        }
      }
      try UserProcess(options).run()
    } catch {
      writeStandardError("apus-\(isa.name): \(error.description)\n")
      HostProcess.exit(error.code)
    }
  }
}
