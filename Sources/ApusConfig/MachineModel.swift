/// A kind of machine, as far as the command line depends on it.
public struct MachineModel: Equatable, Sendable {
  public var name: String
  public var target: MachineConfiguration.Target
  /// One line for `-machine help`.
  public var summary: String
  /// How many CPUs it may have; without `-smp` it has the fewest.
  public var cpuCounts: ClosedRange<Int>
  /// The memory without `-m`, in bytes.
  public var memoryByteCount: UInt64
  /// It has that much memory and no other.
  public var hasFixedMemory = false
  /// Its one CPU model; `nil`: `-cpu` chooses.
  public var cpuModel: String?
  public var serialCount = 1
  /// What a `-drive` without `if=` is plugged into.
  public var driveInterface = "virtio"
  /// The machine properties that it takes; `nil`: all of its target's.
  public var properties: [String]?

  public static let all: [MachineModel] = [
    .init(
      name: "virt", target: .riscv64, summary: "RISC-V VirtIO board (default)", cpuCounts: 1...8,
      memoryByteCount: 128 << 20),
    .init(
      name: "virt", target: .aarch64, summary: "AArch64 VirtIO board (default)", cpuCounts: 1...8,
      memoryByteCount: 128 << 20),
    .init(
      name: "raspi3b", target: .aarch64, summary: "Raspberry Pi 3B (revision 1.2)", cpuCounts: 4...4,
      memoryByteCount: 1 << 30, hasFixedMemory: true, cpuModel: "cortex-a53", serialCount: 2,
      driveInterface: "sd",
      properties: [
        "type", "accel", "dumpdtb", "kernel", "initrd", "append", "dtb", "firmware", "mem-merge",
        "dump-guest-core",
      ]),
  ]

  static func all(of target: MachineConfiguration.Target) -> [MachineModel] {
    all.filter { $0.target == target }
  }

  /// What `-machine help` prints.
  static func help(_ target: MachineConfiguration.Target) -> String {
    "Supported machines are:\n"
      + all(of: target).map { model in
        model.name + String(repeating: " ", count: max(1, 21 - model.name.count)) + model.summary + "\n"
      }.joined()
  }
}

extension MachineConfiguration {
  public var model: MachineModel {
    MachineModel.all.first { $0.target == target && $0.name == machine } ?? MachineModel.all[0]
  }
}

extension CommandLineState {
  /// Fills in what the machine has by itself, and refuses what it does not have.
  mutating func applyModel() throws(ConfigurationError) {
    let model = configuration.model
    let what = "machine \(model.name)"
    if let known = model.properties,
      let other = givenProperties.first(where: { !known.contains($0) })
    {
      throw .unknown("property of \(what)", other, among: known)
    }
    if let count = givenCPUCount {
      guard model.cpuCounts.contains(count) else {
        let range = model.cpuCounts
        throw ConfigurationError(
          "-smp \(count): \(what) has \(range.count == 1 ? "always \(range.lowerBound)" : "\(range.lowerBound) to \(range.upperBound)") CPUs"
        )
      }
      configuration.cpuCount = count
    } else {
      configuration.cpuCount = model.cpuCounts.lowerBound
    }
    if let size = givenMemory {
      guard !model.hasFixedMemory || size == model.memoryByteCount else {
        throw ConfigurationError("-m: \(what) has always \(model.memoryByteCount >> 20)M of memory")
      }
      configuration.memoryByteCount = size
    } else {
      configuration.memoryByteCount = model.memoryByteCount
    }
    guard let cpu = model.cpuModel else { return }
    guard !hasCPU || configuration.arm.cpuModel == cpu else {
      throw ConfigurationError("-cpu \(configuration.arm.cpuModel): \(what) has \(cpu) only")
    }
    configuration.arm.cpuModel = cpu
  }
}
