import ApusAccelTranslate
import ApusCPU
import ApusConfig
import ApusGuestAArch64
import ApusGuestRISCV
import ApusHost
import ApusIR
import ApusISARISCV
import ApusMachine
import Synchronization

/// Makes vCPUs that run on the translator or the evaluator: the one place where engines are plugged in.
final class TranslatingVCPUFactory: VCPUFactory {
  private let options: TranslateOptions
  private let target: MachineConfiguration.Target
  private let cache = Mutex<TranslationCache?>(nil)

  init(options: TranslateOptions, _ target: MachineConfiguration.Target) {
    (self.options, self.target) = (options, target)
  }

  /// What the engine counted, if `stats=on` asked for it.
  var statistics: String? { options.countsTime ? cache.withLock { $0?.statistics() } : nil }

  var supportedExtensions: Set<String> { Set(RISCVExtension.allCases.filter { $0 != .v }.map { "\($0)" }) }

  func makeVCPUs(_ environment: VCPUEnvironment) throws(MachineError) -> [any VCPU] {
    guard !options.verifies || environment.count == 1 else {
      throw MachineError("-accel jit,verify=on runs one vCPU only; -smp \(environment.count) was asked for")
    }
    do {
      let cache = try TranslationCache(memory: environment.space, options: options)
      self.cache.withLock { $0 = cache }
      switch target {
      case .riscv64: return try makeRISCV(environment, cache)
      case .aarch64: return try makeAArch64(environment, cache)
      }
    } catch let error as MachineError {
      throw error
    } catch { throw MachineError("cannot set up the translator: \(error)") }
  }

  private func makeAArch64(_ environment: VCPUEnvironment, _ cache: TranslationCache) throws -> [any VCPU] {
    guard let arm = environment.arm, let model = AArch64Model.named(arm.model) else {
      throw MachineError("the engine knows no AArch64 CPU of this machine")
    }
    let system = AArch64CPU.System(
      environment: arm, cluster: AArch64Cluster(), eventLoop: environment.loop,
      physicalMemory: environment.space.ramTable)
    var vcpus: [any VCPU] = []
    for index in 0..<environment.count {
      let vcpu = try TranslatedVCPU(index: index, cache: cache) { state, engine in
        AArch64CPU(
          state: state, index: index, model: model, clock: environment.clock,
          engine: engine, system: system)
      }
      guard let cpu = vcpu.guest as? AArch64CPU else { throw MachineError("the engine made no AArch64 CPU") }
      cpu.connect(wake: { [unowned vcpu] in vcpu.kick() })
      cpu.semihosting = environment.semihosting
      if options.log.items.contains(.interrupts) { cpu.onException = exceptionLog(index) }
      vcpus.append(vcpu)
    }
    return vcpus
  }

  private func exceptionLog(_ index: Int) -> (UInt64, UInt64, UInt64, UInt64) -> Void {
    let write = options.log.write
    func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
    return { vector, syndrome, address, pc in
      let kind =
        [0: "exception, syndrome \(hex(syndrome)), address \(hex(address))", 0x80: "irq"][vector] ?? "fiq"
      write("cpu \(index): \(kind) at \(hex(pc))\n")
    }
  }

  private func makeRISCV(_ environment: VCPUEnvironment, _ cache: TranslationCache) throws -> [any VCPU] {
    let cpu = environment.cpu
    var extensions = RISCVExtensionSet(RISCVExtension.allCases.filter { cpu.extensions.contains("\($0)") })
    for implied in [RISCVExtension.s, .u, .zicsr, .zicntr, .zihpm] { extensions.set(implied, true) }
    if extensions.contains(.zfh) { extensions.set(.zfhmin, true) }
    let levels: Int
    switch cpu.translation {
    case .bare: levels = 0
    case .sv39: levels = 3
    case .sv48: levels = 4
    case .sv57: levels = 5
    }
    var vcpus: [any VCPU] = []
    for index in 0..<environment.count {
      let vcpu = try TranslatedVCPU(index: index, cache: cache) { state, engine in
        RISCVCPU(
          state: state, hartID: index, extensions: extensions, clock: environment.clock,
          eventLoop: environment.loop, engine: engine, physicalMemory: environment.space.ramTable,
          translationLevels: levels)
      }
      guard let cpu = vcpu.guest as? RISCVCPU else { throw MachineError("the engine made no RISC-V CPU") }
      cpu.hasPMP = environment.cpu.physicalMemoryProtection
      cpu.semihosting = environment.semihosting
      cpu.wake = { [unowned vcpu] in vcpu.kick() }
      if options.log.items.contains(.interrupts) { cpu.onTrap = trapLog(index) }
      vcpus.append(vcpu)
    }
    return vcpus
  }

  private func trapLog(_ index: Int) -> (UInt64, UInt64, UInt64, Bool) -> Void {
    let write = options.log.write
    func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
    return { cause, value, pc, toSupervisor in
      let kind = cause >> 63 != 0 ? "interrupt \(cause & 0xff)" : "exception \(cause)"
      write("cpu \(index): \(kind) at \(hex(pc)), value \(hex(value)), to \(toSupervisor ? "S" : "M")-mode\n")
    }
  }
}

/// The factory for the accelerator that the command line asks for.
func makeVCPUFactory(
  _ accelerator: MachineConfiguration.Accelerator, _ target: MachineConfiguration.Target, logItems: [String]
) throws(MachineError) -> TranslatingVCPUFactory {
  var options = TranslateOptions()
  switch accelerator.name {
  case "jit": options.engine = .jit
  case "interpreter": options.engine = .interpreter
  default:
    throw MachineError(
      "-accel \(accelerator.name) is not available in this build; there are: jit (tcg), interpreter")
  }
  for entry in accelerator.options.entries {
    try apply(entry.key, entry.value, to: &options, accelerator.name)
  }
  for item in logItems {
    if let known = TranslateLog.Items.names.first(where: { $0.0 == item }) {
      options.log.items.insert(known.1)
    }
  }
  if logItems.contains("nochain") { options.optimisations.remove(.chain) }
  if let warning = options.adaptToHost() { Messages.write(warning) }
  options.log.write = { HostLog.write($0) }
  return TranslatingVCPUFactory(options: options, target)
}

private func apply(_ key: String, _ value: String, to options: inout TranslateOptions, _ name: String)
  throws(MachineError)
{
  func flag() throws(MachineError) -> Bool {
    switch value {
    case "on", "yes", "true": return true
    case "off", "no", "false": return false
    default: throw MachineError("-accel \(name): \(key) is 'on' or 'off', not '\(value)'")
    }
  }
  switch key {
  case "verify": options.verifies = try flag()
  case "stats": options.countsTime = try flag()
  case "perf-map": options.writesPerfMap = try flag()
  case "thread":
    guard value == "multi" else {
      throw MachineError(
        "-accel \(name): thread=\(value) is not supported; every vCPU has a thread of its own (multi)")
    }
  case "tb-size":
    guard let size = Int(value), size >= 4, size <= 1024 else {
      throw MachineError("-accel \(name): tb-size is a number of MiB from 4 to 1024, not '\(value)'")
    }
    options.codeBufferByteCount = size << 20
  case "host-level":
    do throws(HostLevelError) { try options.limitHostLevel(value) } catch {
      throw MachineError("-accel \(name): \(error.description)")
    }
  case "block-limit":
    guard let count = Int(value), count >= 1, count <= 64 else {
      throw MachineError(
        "-accel \(name): block-limit is a number of instructions from 1 to 64, not '\(value)'")
    }
    options.blockInstructionLimit = count
  default:
    guard let one = IROptimisations.names.first(where: { $0.0 == key }) else {
      let known =
        ["verify", "stats", "perf-map", "thread", "tb-size", "block-limit", "host-level"]
        + IROptimisations.names.map(\.0)
      throw MachineError("-accel \(name): \(ConfigurationError.unknown("option", key, among: known))")
    }
    if try flag() { options.optimisations.insert(one.1) } else { options.optimisations.remove(one.1) }
  }
}
