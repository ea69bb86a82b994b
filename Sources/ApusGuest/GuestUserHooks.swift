/// What a CPU of user-mode emulation does where a real one would enter its kernel.
///
/// Plain function pointers on one context: a system call costs no reference counting. All are called on the CPU's
/// thread, outside generated code or from a helper, with the state complete.
public struct GuestUserHooks {
  /// Handed to each function.
  public let context: UnsafeMutableRawPointer
  /// A system call; the PC is behind it. Changes the state.
  public let systemCall: @convention(c) (_ context: UnsafeMutableRawPointer) -> Void
  /// An exit was requested: looks for signals.
  public let interrupt: @convention(c) (_ context: UnsafeMutableRawPointer) -> Void
  /// The instruction at the PC caused an exception: a `GuestUserException`, and an address where it has one.
  public let exception: @convention(c) (_ context: UnsafeMutableRawPointer, UInt8, _ address: UInt64) -> Void

  public init(
    context: UnsafeMutableRawPointer,
    systemCall: @escaping @convention(c) (UnsafeMutableRawPointer) -> Void,
    interrupt: @escaping @convention(c) (UnsafeMutableRawPointer) -> Void,
    exception: @escaping @convention(c) (UnsafeMutableRawPointer, UInt8, UInt64) -> Void
  ) {
    (self.context, self.systemCall) = (context, systemCall)
    (self.interrupt, self.exception) = (interrupt, exception)
  }
}

/// Exceptions that become signals.
public enum GuestUserException: UInt8, Sendable {
  case illegalInstruction
  case breakpoint
  /// An access or a jump to an address that the architecture does not take.
  case misaligned
  /// Nothing that may be executed is at the address.
  case fetch
  /// A load or store faulted; what the host said of it is known to the engine's owner.
  case access
  /// An integer was divided by zero, or the quotient did not fit.
  case division
}
