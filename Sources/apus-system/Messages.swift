import ApusConfig
import ApusHost
import Synchronization

/// The emulator's messages to its user, on standard error. Any thread.
enum Messages {
  private struct State {
    var program = "apus-system-riscv64"
    var guestName: String?
    var hasTimestamp = false
  }
  private static let state = Mutex(State())

  /// - Parameter program: the name that stands in front of messages.
  static func setProgram(_ program: String) { state.withLock { $0.program = program } }

  /// Follows `-msg`.
  static func configure(_ configuration: MachineConfiguration) {
    state.withLock {
      $0.hasTimestamp = configuration.messages.hasTimestamp
      $0.guestName = configuration.messages.hasGuestName ? configuration.name : nil
    }
  }

  /// Writes a line: time and guest's name if asked for, the program's name, and `text`.
  static func write(_ text: String) {
    let state = state.withLock { $0 }
    let time = state.hasTimestamp ? HostProcess.timestamp() + " " : ""
    let name = state.guestName.map { $0 + " " } ?? ""
    writeStandardError("\(time)\(name)\(state.program): \(text)\n")
  }
}
