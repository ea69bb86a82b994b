import ApusMachine

/// A machine's board, as the program that runs it sees it.
public protocol Board {
  var machine: Machine { get }
  /// Close them when the machine has ended.
  var backends: MachineBackends { get }
  /// The device tree blob as a start would hand it to the firmware (`-machine dumpdtb=`).
  func deviceTreeBlob() throws(MachineError) -> [UInt8]
  /// Presses and lets go of the power key, where there is one. The event loop's thread.
  var pressPowerKey: (@Sendable () -> Void)? { get }
}

extension Board {
  public var pressPowerKey: (@Sendable () -> Void)? { nil }
}
