import ApusConfig
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory
import ApusPlatformDevices

/// One pflash bank's part of the command line: `-drive if=pflash,unit=N` or `-machine pflashN=NODE`.
struct FlashBankConfiguration: Equatable {
  var path: String
  var isReadOnly: Bool
  /// Boards have two banks.
  static let bankCount = 2

  /// The banks that `configuration` asks for, by number.
  static func all(_ configuration: MachineConfiguration) throws(MachineError) -> [Int: FlashBankConfiguration]
  {
    var banks: [Int: FlashBankConfiguration] = [:]
    do throws(ConfigurationError) {
      for drive in configuration.drives where drive["if"] == "pflash" {
        try drive.check(
          known: ["if", "file", "format", "unit", "index", "readonly", "id"], of: "-drive if=pflash")
        let limit = UInt64(bankCount - 1)
        guard drive["unit"] == nil || drive["index"] == nil else {
          throw ConfigurationError("-drive if=pflash: unit= and index= are the same; give one")
        }
        let key = drive["unit"] != nil ? "unit" : "index"
        let given = try drive.number(key, of: "-drive if=pflash", in: 0...limit)
        let unit = given.map { Int($0) } ?? (banks[0] == nil ? 0 : 1)
        guard unit < bankCount, banks[unit] == nil else {
          throw ConfigurationError("-drive if=pflash: flash bank \(unit) is taken; the machine has two")
        }
        guard let path = drive["file"] else { throw ConfigurationError("-drive if=pflash: file= is missing") }
        if let format = drive["format"], format != "raw" {
          throw ConfigurationError("-drive if=pflash: format is '\(format)'; a flash bank takes only raw")
        }
        banks[unit] = .init(
          path: path, isReadOnly: try drive.bool("readonly", of: "-drive if=pflash") ?? false)
      }
      for unit in 0..<bankCount {
        guard let node = configuration.machineOptions["pflash\(unit)"] else { continue }
        guard banks[unit] == nil else {
          throw ConfigurationError("-machine pflash\(unit)=\(node): flash bank \(unit) is given twice")
        }
        banks[unit] = try resolve(node, configuration)
      }
    } catch { throw MachineError(error.description) }
    return banks
  }

  /// The file below a raw block node.
  private static func resolve(_ name: String, _ configuration: MachineConfiguration)
    throws(ConfigurationError)
    -> FlashBankConfiguration
  {
    guard let node = configuration.blockDevices.first(where: { $0.options["node-name"] == name }) else {
      throw .unknown(
        "block node", name, among: configuration.blockDevices.compactMap { $0.options["node-name"] })
    }
    let what = "-blockdev \(name)"
    let isReadOnly = try node.options.bool("read-only", of: what) ?? false
    if node.name == "file", let path = node.options["filename"] {
      return .init(path: path, isReadOnly: isReadOnly)
    }
    if node.name == "raw" {
      for key in ["offset", "size"] where node.options[key] != nil {
        throw ConfigurationError("\(what): a flash bank takes the whole file; leave \(key)= out")
      }
      let file = node.options.nested("file")
      if file["driver"] ?? "file" == "file", let path = file["filename"] {
        return .init(path: path, isReadOnly: isReadOnly)
      }
      if let below = node.options["file"] {
        var bank = try resolve(below, configuration)
        if isReadOnly { bank.isReadOnly = true }
        return bank
      }
    }
    throw ConfigurationError("\(what): a flash bank takes a raw node over a file")
  }

  /// Opens the image, which must be as large as the bank, and reads it into `array`.
  func open(into array: GuestRAM) throws(MachineError) -> CFIFlash.Backing {
    do throws(HostError) {
      let backing = try CFIFlash.Backing(path: path, isReadOnly: isReadOnly)
      let byteCount = try backing.byteCount()
      guard byteCount == array.byteCount else {
        throw HostError(
          "use a flash image of \(byteCount) bytes (the bank has \(array.byteCount)),", path, errno: 22)
      }
      let bytes = try HostDescriptor.contents(path)
      bytes.withUnsafeBytes {
        array.host.copyMemory(from: $0.baseAddress!, byteCount: min($0.count, Int(byteCount)))
      }
      return backing
    } catch { throw MachineError(error.description) }
  }
}
