/// What only AArch64 machines have.
public struct ArmConfiguration: Equatable, Sendable {
  /// CPU models by name, with what device trees call them.
  public static let cpuModels = [
    (name: "max", compatible: "arm,armv8"), (name: "cortex-a53", compatible: "arm,cortex-a53"),
    (name: "cortex-a57", compatible: "arm,cortex-a57"), (name: "cortex-a72", compatible: "arm,cortex-a72"),
    (name: "cortex-a76", compatible: "arm,cortex-a76"), (name: "neoverse-n1", compatible: "arm,neoverse-n1"),
  ]
  public var cpuModel = "max"
  /// `max` signs pointers, with a fast algorithm of its own rather than the architecture's.
  public var hasPointerAuthentication = true
  public var isAuthenticationImplementationDefined = true
  /// The model with its properties, as the engine reads it.
  public var cpuDescription: String {
    guard cpuModel == "max" else { return cpuModel }
    return "max,pauth=\(hasPointerAuthentication ? "on" : "off")"
      + ",pauth-impdef=\(isAuthenticationImplementationDefined ? "on" : "off")"
  }
  /// 2 or 3.
  public var gicVersion = 2
  var wantsTranslationService = true
  /// CPUs have EL2 (virtualization=on).
  public var hasVirtualization = false
  /// CPUs have EL3, and the machine a secure state (secure=on).
  public var hasSecurity = false
  /// Its virtual timer is there, which came with Armv8.1.
  public var hasHypervisorVirtualTimer: Bool {
    hasVirtualization && !["cortex-a53", "cortex-a57", "cortex-a72"].contains(cpuModel)
  }
  /// Firmware gets ACPI tables.
  public var hasACPI = true
  /// Messages of PCI devices come to a GICv3's translation service.
  public var hasTranslationService: Bool { gicVersion == 3 && wantsTranslationService }

  public init() {}

  public var cpuCompatible: String { Self.cpuModels.first { $0.name == cpuModel }?.compatible ?? "arm,armv8" }

  static let machineProperties = [
    "gic-version", "virtualization", "secure", "highmem", "its", "mte", "ras", "iommu",
  ]
  static let cpuHelp =
    "Available CPUs:\n" + cpuModels.map { "  \($0.name)\n" }.joined()
    + "Properties of max: pauth=on|off, pauth-impdef=on|off (off: QARMA)\n"

  /// Reads the value of `-cpu`.
  mutating func setCPU(_ text: String) throws(ConfigurationError) {
    let list = try OptionList(parsing: text, impliedKey: "model")
    let model = list["model"] ?? ""
    guard Self.cpuModels.contains(where: { $0.name == model }) else {
      throw .unknown("CPU", model, among: Self.cpuModels.map(\.name))
    }
    for entry in list.entries where entry.key != "model" {
      guard model == "max", entry.key == "pauth" || entry.key == "pauth-impdef" else {
        throw ConfigurationError(
          "-cpu \(model): property '\(entry.key)' is not implemented\(model == "max" ? "; there are pauth and pauth-impdef" : "; leave it out")"
        )
      }
      let isOn = try list.bool(entry.key, of: "-cpu max") ?? true
      if entry.key == "pauth" {
        hasPointerAuthentication = isOn
      } else {
        isAuthenticationImplementationDefined = isOn
      }
    }
    cpuModel = model
  }

  /// Takes a machine property. False: it is none of these.
  mutating func setMachineProperty(_ entry: OptionList.Entry, _ list: OptionList, _ what: String)
    throws(ConfigurationError) -> Bool
  {
    switch entry.key {
    case "gic-version":
      guard let version = ["2": 2, "3": 3, "max": 3][entry.value] else {
        throw ConfigurationError("\(what): gic-version is '\(entry.value)'; it must be 2, 3 or max")
      }
      gicVersion = version
    case "its": wantsTranslationService = try list.bool(entry.key, of: what) ?? true
    case "acpi": hasACPI = entry.value == "auto" ? true : try list.bool(entry.key, of: what) ?? true
    case "virtualization": hasVirtualization = try list.bool(entry.key, of: what) ?? false
    case "secure": hasSecurity = try list.bool(entry.key, of: what) ?? false
    case "mte", "ras":
      if try list.bool(entry.key, of: what) == true {
        throw ConfigurationError("\(what): \(entry.key)=on is not implemented; leave it off")
      }
    case "highmem":
      if try list.bool(entry.key, of: what) == false {
        throw ConfigurationError("\(what): highmem=off is not implemented; leave it on")
      }
    case "iommu":
      guard entry.value == "none" else {
        throw ConfigurationError("\(what): iommu is '\(entry.value)'; only none is implemented")
      }
    default: return false
    }
    return true
  }
}
