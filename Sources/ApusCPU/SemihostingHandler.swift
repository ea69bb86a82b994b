/// What answers the semihosting calls of guest programs [Arm Semihosting 2.0; RISC-V Semihosting 0.4].
///
/// The calling vCPU's thread. Answers are those of the 64-bit variants: fields of eight bytes.
public protocol SemihostingHandler: AnyObject, Sendable {
  /// Calls from EL0 and U-mode are answered, too (`userspace=on`).
  var servesUserCode: Bool { get }

  /// Carries out an operation and returns what goes into the result register.
  ///
  /// - Parameter translate: gives the physical address of a virtual one, to load from or (true) to store to; `nil` if the
  ///   caller may not.
  func call(_ operation: UInt64, _ parameter: UInt64, translate: (UInt64, Bool) -> UInt64?) -> UInt64
}
