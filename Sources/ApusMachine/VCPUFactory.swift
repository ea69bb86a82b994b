import ApusCPU
import ApusConfig
import ApusHost
import ApusMemory

/// What an engine needs to make a machine's vCPUs.
public struct VCPUEnvironment: Sendable {
  public var count: Int
  public var space: AddressSpace
  public var clock: GuestClock
  public var loop: EventLoop
  public var cpu: CPUConfiguration
  public var accelerator: MachineConfiguration.Accelerator
  /// For AArch64 CPUs.
  public var arm: ArmCPUEnvironment?
  /// What answers programs' semihosting calls (`-semihosting`).
  public var semihosting: (any SemihostingHandler)?

  public init(
    count: Int, space: AddressSpace, clock: GuestClock, loop: EventLoop, cpu: CPUConfiguration,
    accelerator: MachineConfiguration.Accelerator, arm: ArmCPUEnvironment? = nil,
    semihosting: (any SemihostingHandler)? = nil
  ) {
    (self.arm, self.semihosting) = (arm, semihosting)
    (self.count, self.space, self.clock, self.loop) = (count, space, clock, loop)
    (self.cpu, self.accelerator) = (cpu, accelerator)
  }
}

/// Makes vCPUs: the one thing that boards know of an engine.
public protocol VCPUFactory: Sendable {
  /// Lower-case names of the ISA extensions that the engine implements. What a CPU model has by default but the engine
  /// lacks is left out of the guest's view; what the user asked for by name is refused.
  var supportedExtensions: Set<String> { get }

  /// All vCPUs of a machine, in the order of their indices, at rest. `environment.cpu` holds only supported extensions.
  func makeVCPUs(_ environment: VCPUEnvironment) throws(MachineError) -> [any VCPU]
}

/// Why a machine cannot be built or go on: one sentence for the user.
public struct MachineError: Error, Equatable, CustomStringConvertible {
  public var description: String
  public init(_ description: String) { self.description = description }
}
