import ApusConfig
import ApusFirmware
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPlatformDevices

/// Fills memory for a start of the `virt` machine.
struct RISCVVirtBoot: Sendable {
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

  /// What was put where, for a start or a dump.
  struct Result {
    var deviceTree: [UInt8]
    var deviceTreeAddress: UInt64
    /// Where the reset vector jumps to.
    var start: UInt64
  }

  func load() throws(MachineError) -> Result {
    do throws(LoaderError) { return try place() } catch { throw MachineError(error.description) }
  }

  private func read(_ path: String) throws(LoaderError) -> [UInt8] {
    do throws(HostError) { return try HostDescriptor.contents(path) } catch {
      throw .format(path: path, reason: error.reason)
    }
  }

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

  private func place() throws(LoaderError) -> Result {
    let loader = GuestLoader(space: space, ram: ram)
    var start = hasFlash ? Map.flash.base : Map.ram
    var kernelAddress = Map.ram
    let firmware = try firmwarePath()
    if let firmware {
      let image = try loader.loadFirmware(try read(firmware), path: firmware, at: Map.ram)
      start = image.entry
      kernelAddress = (image.high + GuestLoader.alignment - 1) & ~(GuestLoader.alignment - 1)
    }
    var tree = try baseTree()
    var next: UInt64 = hasFlash && firmware != nil ? Map.flash.base : 0
    if let path = configuration.kernel {
      let commandLine = configuration.commandLine ?? ""
      tree.root.updateChild("chosen") { if !commandLine.isEmpty { $0.set("bootargs", commandLine) } }
      if hasFlash {
        try offerKernel(path, commandLine)
      } else {
        let kernel = try loader.loadKernel(try read(path), path: path, at: kernelAddress)
        next = kernel.entry
        if firmware == nil { start = kernel.entry }
        if let path = configuration.initrd {
          let range = try loader.loadInitrd(try read(path), path: path, kernel: kernel)
          tree.root.updateChild("chosen") {
            $0.set("linux,initrd-start", wide: range.lowerBound)
            $0.set("linux,initrd-end", wide: range.upperBound)
          }
        }
      }
    }
    tree.root.updateChild("chosen") { $0.set("rng-seed", bytes: randomBytes(32)) }
    let blob = tree.encode()
    let address = try loader.deviceTreeAddress(byteCount: blob.count)
    try loader.place(blob, at: address, path: "device tree")
    let vector = RISCVReset.vector(start: start, deviceTree: address, info: .init(nextAddress: next))
    try loader.place(vector, at: Map.bootROM.base, path: "reset vector")
    return Result(deviceTree: blob, deviceTreeAddress: address, start: start)
  }

  private func randomBytes(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    bytes.withUnsafeMutableBytes { HostRandom.fill($0) }
    return bytes
  }

  private func baseTree() throws(LoaderError) -> DeviceTree {
    guard let path = configuration.deviceTree else {
      return RISCVVirtDeviceTree(
        cpuCount: configuration.cpuCount, cpu: configuration.cpu, ramByteCount: ram.byteCount
      ).make()
    }
    let bytes = try read(path)
    do throws(DeviceTreeError) { return try DeviceTree(parsing: bytes) } catch {
      throw .format(path: path, reason: error.description)
    }
  }

  /// Firmware in flash (EDK II) fetches the kernel itself.
  private func offerKernel(_ path: String, _ commandLine: String) throws(LoaderError) {
    typealias Key = FirmwareConfiguration.Key
    let kernel = try LinuxImage.unpack(try read(path), path: path)
    fwCfg.set(Key.kernelSize, integer: UInt32(truncatingIfNeeded: kernel.count))
    fwCfg.set(Key.kernelData, kernel)
    if let path = configuration.initrd {
      let initrd = try read(path)
      fwCfg.set(Key.initrdSize, integer: UInt32(truncatingIfNeeded: initrd.count))
      fwCfg.set(Key.initrdData, initrd)
    }
    fwCfg.set(Key.commandLineSize, integer: UInt32(commandLine.utf8.count + 1))
    fwCfg.set(Key.commandLineData, Array(commandLine.utf8) + [0])
  }
}
