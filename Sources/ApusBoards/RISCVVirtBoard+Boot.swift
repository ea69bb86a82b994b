import ApusConfig
import ApusFirmware
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPlatformDevices

/// Fills memory for a start of the `virt` machine.
struct RISCVVirtBoot: BoardBoot {
  /// Where distributions put OpenSBI's generic firmware.
  static let standardFirmware = [
    "/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin",
    "/usr/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin",
  ]

  var configuration: MachineConfiguration
  var space: AddressSpace
  var ram: GuestRAM
  /// Flash bank 0 holds an image.
  var hasFlash: Bool
  var fwCfg: FirmwareConfiguration

  private typealias Map = RISCVVirtMap

  private func firmwarePath() throws(LoaderError) -> String? {
    switch configuration.firmware {
    case .none: return nil
    case .file(let path): return path
    case .standard:
      guard let path = Self.standardFirmware.first(where: { HostDescriptor.exists($0) }) else {
        throw .format(
          path: Self.standardFirmware[0],
          reason: "there is no firmware; install Debian's package opensbi, or give -bios FILE or -bios none")
      }
      return path
    }
  }

  func place() throws(LoaderError) -> BootResult {
    let loader = GuestLoader(space: space, ram: ram)
    var start = hasFlash ? Map.flash.base : Map.ram
    var kernelAddress = Map.ram
    let firmware = try firmwarePath()
    if let firmware {
      let image = try loader.loadFirmware(try KernelFiles.read(firmware), path: firmware, at: Map.ram)
      start = image.entry
      kernelAddress = (image.high + GuestLoader.alignment - 1) & ~(GuestLoader.alignment - 1)
    }
    var tree = try KernelFiles.tree(configuration) {
      RISCVVirtDeviceTree(
        cpuCount: configuration.cpuCount, cpu: configuration.cpu, ramByteCount: ram.byteCount
      ).make()
    }
    var next: UInt64 = hasFlash && firmware != nil ? Map.flash.base : 0
    if let path = configuration.kernel {
      let commandLine = configuration.commandLine ?? ""
      tree.root.updateChild("chosen") { if !commandLine.isEmpty { $0.set("bootargs", commandLine) } }
      if hasFlash {
        try KernelFiles.offer(path, configuration, to: fwCfg)
      } else {
        let kernel = try loader.loadKernel(try KernelFiles.read(path), path: path, at: kernelAddress)
        next = kernel.entry
        if firmware == nil { start = kernel.entry }
        if let path = configuration.initrd {
          let range = try loader.loadInitrd(try KernelFiles.read(path), path: path, kernel: kernel)
          tree.root.updateChild("chosen") {
            $0.set("linux,initrd-start", wide: range.lowerBound)
            $0.set("linux,initrd-end", wide: range.upperBound)
          }
        }
      }
    }
    tree.root.updateChild("chosen") { $0.set("rng-seed", bytes: KernelFiles.random(32)) }
    let blob = tree.encode()
    let address = try loader.deviceTreeAddress(byteCount: blob.count)
    try loader.place(blob, at: address, path: "device tree")
    let vector = RISCVReset.vector(start: start, deviceTree: address, info: .init(nextAddress: next))
    try loader.place(vector, at: Map.bootROM.base, path: "reset vector")
    return BootResult(deviceTree: blob, deviceTreeAddress: address, start: start)
  }
}
