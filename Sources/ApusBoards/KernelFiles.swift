import ApusConfig
import ApusFirmware
import ApusHost
import ApusLoader
import ApusPlatformDevices

/// What every board does with `-kernel`, `-initrd` and `-dtb`.
enum KernelFiles {
  static func read(_ path: String) throws(LoaderError) -> [UInt8] {
    do throws(HostError) { return try HostDescriptor.contents(path) } catch {
      throw .format(path: path, reason: error.reason)
    }
  }

  static func random(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    bytes.withUnsafeMutableBytes { HostRandom.fill($0) }
    return bytes
  }

  /// The device tree of `-dtb`, or else the board's own.
  static func tree(_ configuration: MachineConfiguration, _ own: () -> DeviceTree) throws(LoaderError)
    -> DeviceTree
  {
    guard let path = configuration.deviceTree else { return own() }
    let bytes = try read(path)
    do throws(DeviceTreeError) { return try DeviceTree(parsing: bytes) } catch {
      throw .format(path: path, reason: error.description)
    }
  }

  /// Firmware in flash (EDK II) fetches the kernel itself.
  static func offer(_ path: String, _ configuration: MachineConfiguration, to fwCfg: FirmwareConfiguration)
    throws(LoaderError)
  {
    typealias Key = FirmwareConfiguration.Key
    let commandLine = configuration.commandLine ?? ""
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
