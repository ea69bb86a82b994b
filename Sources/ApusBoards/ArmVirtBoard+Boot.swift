import ApusConfig
import ApusFirmware
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPlatformDevices

/// Fills memory for a start of the AArch64 `virt` machine.
///
/// A kernel is entered as its boot protocol says: the device tree's address in x0, MMU off, at EL1 or EL2
/// [Linux Documentation/arch/arm64/booting.rst]. Firmware begins at address 0, in flash, and finds the device tree at the
/// start of RAM. With a secure state it begins at EL3; a kernel then without firmware in the non-secure state.
struct ArmVirtBoot: BoardBoot {
  var configuration: MachineConfiguration
  var space: AddressSpace
  var ram: GuestRAM
  var gicVersion: GIC.Version
  var hasTranslationService: Bool
  /// Flash bank 0 holds an image.
  var hasFlash: Bool
  /// Nobody but us answers PSCI's calls.
  var hasPSCI: Bool
  var fwCfg: FirmwareConfiguration

  private typealias Map = ArmVirtMap

  func place() throws(LoaderError) -> BootResult {
    let loader = GuestLoader(space: space, ram: ram, machine: ELFImage.machineAArch64)
    var tree = try KernelFiles.tree(configuration) {
      ArmVirtDeviceTree(
        cpuCount: configuration.cpuCount, cpu: configuration.arm.cpuCompatible, ramByteCount: ram.byteCount,
        gicVersion: gicVersion, hasVirtualization: configuration.arm.hasVirtualization,
        hasHypervisorVirtualTimer: configuration.arm.hasHypervisorVirtualTimer,
        hasTranslationService: hasTranslationService, hasSecurity: configuration.arm.hasSecurity,
        hasPSCI: hasPSCI
      ).make()
    }
    var firmware: String?
    if case .file(let path) = configuration.firmware { firmware = path }
    if let firmware {
      let base = configuration.arm.hasSecurity ? Map.secure(Map.flash.base) : Map.flash.base
      let image = try loader.loadFirmware(try KernelFiles.read(firmware), path: firmware, at: base)
      guard image.high <= base + Map.flash.bankByteCount else {
        throw .format(path: firmware, reason: "it is larger than the flash bank of 64 MiB")
      }
    }
    let hasFirmware = firmware != nil || hasFlash
    var start = hasFirmware ? Map.flash.base : Map.ram
    // Firmware looks for the device tree at the start of RAM.
    var treeAddress: UInt64? = hasFirmware ? Map.ram : nil
    if let path = configuration.kernel {
      let commandLine = configuration.commandLine ?? ""
      tree.root.updateChild("chosen") { if !commandLine.isEmpty { $0.set("bootargs", commandLine) } }
      if hasFirmware {
        try KernelFiles.offer(path, configuration, to: fwCfg)
      } else {
        let bytes = try LinuxImage.unpack(try KernelFiles.read(path), path: path)
        let offset = LinuxImage.Header(bytes)?.textOffset ?? 0x8_0000
        let kernel = try loader.loadKernel(bytes, path: path, at: Map.ram + offset)
        start = kernel.entry
        // A program that lies at the start of RAM finds the device tree in x0 alone.
        if kernel.low - Map.ram >= 2 << 20, treeAddress == nil { treeAddress = Map.ram }
        if let path = configuration.initrd {
          let range = try loader.loadInitrd(try KernelFiles.read(path), path: path, kernel: kernel)
          tree.root.updateChild("chosen") {
            $0.set("linux,initrd-start", wide: range.lowerBound)
            $0.set("linux,initrd-end", wide: range.upperBound)
          }
        }
      }
    }
    for node in configuration.arm.hasSecurity ? ["chosen", "secure-chosen"] : ["chosen"] {
      tree.root.updateChild(node) {
        $0.set("rng-seed", bytes: KernelFiles.random(32))
        $0.set("kaslr-seed", bytes: KernelFiles.random(8))
      }
    }
    let blob = tree.encode()
    let address: UInt64
    if let treeAddress {
      address = treeAddress
    } else {
      address = try loader.deviceTreeAddress(byteCount: blob.count)
    }
    try loader.place(blob, at: address, path: "device tree")
    return BootResult(deviceTree: blob, deviceTreeAddress: address, start: start)
  }
}
