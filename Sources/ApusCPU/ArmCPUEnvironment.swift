/// What an AArch64 CPU has around it: its interrupt controller's CPU interface, the lines of its timers, its power switch.
public struct ArmCPUEnvironment: Sendable {
  public enum Timer: Int, Sendable, CaseIterable {
    case physical, virtual
    /// EL2's.
    case hypervisorPhysical, hypervisorVirtual
  }
  /// A CPU's view of its interrupt controller: the interface itself, or the one that EL2 gives virtual machines.
  public enum Interface: Sendable { case physical, virtual }
  /// A system register of the interrupt controller by its encoding (op0 to op2, 16 bits); `nil`: undefined. The CPU's thread.
  public var readRegister: @Sendable (_ cpu: Int, _ register: UInt16, Interface) -> UInt64?
  public var writeRegister: @Sendable (_ cpu: Int, _ register: UInt16, _ value: UInt64, Interface) -> Bool
  /// GICv3's registers are there (ID_AA64PFR0_EL1.GIC).
  public var hasRegisters: Bool
  /// EL2 is there; PSCI is called by `smc`.
  public var hasHypervisor: Bool
  /// The CPU model's name.
  public var model: String
  public var setTimer: @Sendable (_ cpu: Int, Timer, _ level: Bool) -> Void
  /// The performance monitor's interrupt.
  public var setPerformanceLine: @Sendable (_ cpu: Int, _ level: Bool) -> Void
  /// PSCI's SYSTEM_OFF (`false`) and SYSTEM_RESET.
  public var switchPower: @Sendable (_ isReset: Bool) -> Void
  /// Firmware answers PSCI's calls, and CPUs but the first wait for CPU_ON. Else all begin at the start address, and the
  /// instructions are undefined.
  public var hasPSCI: Bool

  public init(
    model: String, hasRegisters: Bool, hasHypervisor: Bool,
    readRegister: @escaping @Sendable (Int, UInt16, Interface) -> UInt64?,
    writeRegister: @escaping @Sendable (Int, UInt16, UInt64, Interface) -> Bool,
    setTimer: @escaping @Sendable (Int, Timer, Bool) -> Void,
    setPerformanceLine: @escaping @Sendable (Int, Bool) -> Void,
    switchPower: @escaping @Sendable (Bool) -> Void, hasPSCI: Bool = true
  ) {
    self.hasPSCI = hasPSCI
    (self.model, self.hasRegisters, self.hasHypervisor) = (model, hasRegisters, hasHypervisor)
    (self.readRegister, self.writeRegister) = (readRegister, writeRegister)
    (self.setTimer, self.setPerformanceLine, self.switchPower) = (setTimer, setPerformanceLine, switchPower)
  }
}
