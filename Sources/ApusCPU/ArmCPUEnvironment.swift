/// What an AArch64 CPU has around it: its interrupt controller's CPU interface, the lines of its timers, its power switch.
public struct ArmCPUEnvironment: Sendable {
  public enum Timer: Int, Sendable, CaseIterable {
    case physical, virtual
    /// EL2's.
    case hypervisorPhysical, hypervisorVirtual
    /// EL3's, which the secure EL1 may have.
    case secure
  }
  /// A CPU's view of its interrupt controller: the interface itself, or the one that EL2 gives virtual machines.
  public struct Interface: Equatable, Sendable {
    public var isVirtual = false
    /// The access is EL3's.
    public var isMonitor = false
    /// Banked registers are those of the secure state (SCR_EL3.NS is clear).
    public var isSecure = false
    /// SCR_EL3.FIQ: EL3 has group 0, and the non-secure state sees the lower half of the priorities.
    public var keepsGroup0 = false
    public static let physical = Interface()
    public static let virtual = Interface(isVirtual: true)
    public init(
      isVirtual: Bool = false, isMonitor: Bool = false, isSecure: Bool = false, keepsGroup0: Bool = false
    ) {
      (self.isVirtual, self.isMonitor) = (isVirtual, isMonitor)
      (self.isSecure, self.keepsGroup0) = (isSecure, keepsGroup0)
    }
  }
  /// What EL3 needs to know of the machine.
  public struct Security: Sendable {
    /// The bit that secure accesses to `ranges` have in the address space: there, with it, lies what the non-secure state
    /// cannot reach, or sees differently. Above all physical addresses.
    public static let addressBit: UInt64 = 1 << 55
    /// Physical addresses, whole pages.
    public var ranges: [Range<UInt64>]
    public init(ranges: [Range<UInt64>]) { self.ranges = ranges }

    /// Where an access finds `address` in the address space.
    public func place(_ address: UInt64, isSecure: Bool) -> UInt64 {
      isSecure && ranges.contains { $0.contains(address) } ? address | Self.addressBit : address
    }
  }
  /// A system register of the interrupt controller by its encoding (op0 to op2, 16 bits); `nil`: undefined. The CPU's thread.
  public var readRegister: @Sendable (_ cpu: Int, _ register: UInt16, Interface) -> UInt64?
  public var writeRegister: @Sendable (_ cpu: Int, _ register: UInt16, _ value: UInt64, Interface) -> Bool
  /// GICv3's registers are there (ID_AA64PFR0_EL1.GIC).
  public var hasRegisters: Bool
  /// EL2 is there; PSCI is called by `smc`.
  public var hasHypervisor: Bool
  /// EL3 is there. CPUs begin at it unless firmware is emulated (`hasPSCI`): then in the non-secure state below.
  public var security: Security?
  /// The CPU model's name.
  public var model: String
  public var setTimer: @Sendable (_ cpu: Int, Timer, _ level: Bool) -> Void
  /// The performance monitor's interrupt.
  public var setPerformanceLine: @Sendable (_ cpu: Int, _ level: Bool) -> Void
  /// PSCI's SYSTEM_OFF (`false`) and SYSTEM_RESET.
  public var switchPower: @Sendable (_ isReset: Bool) -> Void
  /// Firmware answers PSCI's calls, and CPUs but the first wait for CPU_ON. Else all begin at the start address, and the
  /// instructions are undefined, or EL3's.
  public var hasPSCI: Bool

  public init(
    model: String, hasRegisters: Bool, hasHypervisor: Bool,
    readRegister: @escaping @Sendable (Int, UInt16, Interface) -> UInt64?,
    writeRegister: @escaping @Sendable (Int, UInt16, UInt64, Interface) -> Bool,
    setTimer: @escaping @Sendable (Int, Timer, Bool) -> Void,
    setPerformanceLine: @escaping @Sendable (Int, Bool) -> Void,
    switchPower: @escaping @Sendable (Bool) -> Void, hasPSCI: Bool = true, security: Security? = nil
  ) {
    (self.hasPSCI, self.security) = (hasPSCI, security)
    (self.model, self.hasRegisters, self.hasHypervisor) = (model, hasRegisters, hasHypervisor)
    (self.readRegister, self.writeRegister) = (readRegister, writeRegister)
    (self.setTimer, self.setPerformanceLine, self.switchPower) = (setTimer, setPerformanceLine, switchPower)
  }
}
