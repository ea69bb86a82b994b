import CApusHost
import Glibc

/// The controlling terminal and pseudo-terminals.
public enum HostTerminal {
  public static func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }

  /// Puts standard input's terminal in raw mode until `restore`, the process's normal end, or a fatal signal.
  ///
  /// Output keeps its newline translation, as the log shares the terminal.
  /// - Parameter keepsSignals: whether Ctrl-C and its like still raise signals.
  public static func makeRaw(keepsSignals: Bool) {
    guard isTerminal(0) else { return }
    _ = apus_terminal_raw(0, keepsSignals ? 1 : 0)
  }

  /// Gives the terminal back as `makeRaw` found it. Harmless if it was never changed.
  public static func restore() { apus_terminal_restore() }

  /// A new pseudo-terminal in raw mode: the master's descriptor and the slave's path.
  public static func openPseudoTerminal() throws(HostError) -> (master: Int32, slavePath: String) {
    var name = [CChar](repeating: 0, count: 128)
    let master = apus_open_pty(&name, name.count)
    guard master >= 0 else { throw HostError("open a pseudo-terminal", errno: -master) }
    let bytes = name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
    return (master, String(decoding: bytes, as: UTF8.self))
  }
}
