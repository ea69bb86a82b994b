import ApusConfig
import ApusFirmware
import ApusHost
import ApusLoader
import ApusMachine
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

/// Fills memory for a board's start.
protocol BoardBoot: Sendable {
  func place() throws(LoaderError) -> BootResult
}

/// What was put where, for a start or a dump.
struct BootResult {
  var deviceTree: [UInt8]
  var deviceTreeAddress: UInt64
  /// Where the first instruction of firmware or kernel is.
  var start: UInt64
}

extension BoardBoot {
  func load() throws(MachineError) -> BootResult {
    do throws(LoaderError) { return try place() } catch { throw MachineError(error.description) }
  }
}
