import ApusAccelTranslate
import ApusHost
import ApusIR
import ApusISARISCV
import ApusUser

/// From the command line to a running guest program.
enum UserTool {
  static let version = "0.1.0"

  static func run() {
    let arguments = HostProcess.argumentBytes
    do throws(ProgramError) {
      var line = UserCommandLine(arguments)
      let options = try line.parse()
      if let file = line.logFile {
        do throws(HostError) { try HostLog.open(file, appending: line.appendsLog) } catch {
          throw ProgramError(error.description, code: 1)
        }
      }
      try UserProcess(options).run()
    } catch {
      writeStandardError("apus-riscv64: \(error.description)\n")
      HostProcess.exit(error.code)
    }
  }
}
