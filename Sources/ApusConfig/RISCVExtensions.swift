/// The RISC-V extensions of a vCPU, as its options select them and its device tree names them.
public struct RISCVExtensions: Equatable, Sendable {
  /// One extension.
  public struct Extension: Sendable {
    /// In QEMU's `-cpu` properties and, in lower case, in the ISA string.
    public let name: String
    /// On in `rv64` without further options.
    public let isDefault: Bool
  }

  /// All extensions, in the ISA string's order [RISC-V ISA manual, naming conventions].
  public static let all: [Extension] = [
    .init(name: "i", isDefault: true), .init(name: "m", isDefault: true), .init(name: "a", isDefault: true),
    .init(name: "f", isDefault: true), .init(name: "d", isDefault: true), .init(name: "c", isDefault: true),
    .init(name: "v", isDefault: false), .init(name: "h", isDefault: false),
    .init(name: "zicbom", isDefault: false), .init(name: "zicboz", isDefault: false),
    .init(name: "zicond", isDefault: false),
    .init(name: "Zicsr", isDefault: true), .init(name: "Zifencei", isDefault: true),
    .init(name: "Zihintpause", isDefault: true), .init(name: "zawrs", isDefault: false),
    .init(name: "zacas", isDefault: false), .init(name: "Zfh", isDefault: false),
    .init(name: "Zfhmin", isDefault: false),
    .init(name: "zba", isDefault: true), .init(name: "zbb", isDefault: true),
    .init(name: "zbc", isDefault: true),
    .init(name: "zbkb", isDefault: false), .init(name: "zbkc", isDefault: false),
    .init(name: "zbkx", isDefault: false), .init(name: "zbs", isDefault: true),
    .init(name: "zknd", isDefault: false), .init(name: "zkne", isDefault: false),
    .init(name: "zknh", isDefault: false), .init(name: "zkr", isDefault: false),
    .init(name: "sstc", isDefault: true), .init(name: "svadu", isDefault: false),
    .init(name: "svinval", isDefault: false), .init(name: "svnapot", isDefault: false),
    .init(name: "svpbmt", isDefault: false),
  ]

  /// Lower-case names of the extensions that are on.
  public var enabled: Set<String>
  public init(enabled: Set<String>) { self.enabled = enabled }
  public static let rv64 = RISCVExtensions(enabled: Set(all.filter(\.isDefault).map { $0.name.lowercased() }))

  public func contains(_ name: String) -> Bool { enabled.contains(name) }

  /// For the device tree's `riscv,isa`: `rv64imafdc_zicsr_…`.
  public var isaString: String {
    let names = Self.all.map { $0.name.lowercased() }.filter { enabled.contains($0) }
    let letters = names.filter { $0.count == 1 }.joined()
    return (["rv64" + letters] + names.filter { $0.count > 1 }).joined(separator: "_")
  }

  /// For the device tree's `riscv,isa-extensions`.
  public var names: [String] { Self.all.map { $0.name.lowercased() }.filter { enabled.contains($0) } }
}

/// A vCPU's kind and properties.
public struct CPUConfiguration: Equatable, Sendable {
  /// Deepest address translation: the device tree's `mmu-type`.
  public enum TranslationMode: String, Sendable, CaseIterable {
    case bare, sv39, sv48, sv57
  }
  public var model = "rv64"
  public var extensions = RISCVExtensions.rv64
  public var translation = TranslationMode.sv48
  public var physicalMemoryProtection = true

  static let otherProperties = ["mmu", "pmp", "sv39", "sv48", "sv57", "s", "u", "Counters", "priv_spec"]
  static let models = ["rv64", "max"]

  public init() {}

  /// Reads the value of `-cpu`.
  public init(parsing text: String) throws(ConfigurationError) {
    let list = try OptionList(parsing: text, impliedKey: "model")
    for entry in list.entries {
      if entry.key == "model" {
        guard Self.models.contains(entry.value) else {
          throw .unknown("CPU", entry.value, among: Self.models)
        }
        model = entry.value
      } else if let known = RISCVExtensions.all.first(where: {
        $0.name.lowercased() == entry.key.lowercased()
      }) {
        let name = known.name.lowercased()
        if try list.bool(entry.key, of: "-cpu \(model)") == true {
          extensions.enabled.insert(name)
        } else if ["i", "zicsr"].contains(name) {
          throw ConfigurationError(
            "-cpu \(model): \(entry.key)=off is impossible; every RV64 hart here has it")
        } else {
          extensions.enabled.remove(name)
        }
      } else {
        try setOther(entry, list)
      }
    }
    if extensions.contains("d") && !extensions.contains("f") {
      throw ConfigurationError("-cpu \(model): d=on needs f=on")
    }
  }

  private mutating func setOther(_ entry: OptionList.Entry, _ list: OptionList) throws(ConfigurationError) {
    guard Self.otherProperties.contains(entry.key) else {
      throw .unknown(
        "property of CPU \(model)", entry.key,
        among: RISCVExtensions.all.map(\.name) + Self.otherProperties)
    }
    if entry.key == "priv_spec" {
      guard entry.value == "v1.12.0" else {
        throw ConfigurationError("-cpu \(model): priv_spec is '\(entry.value)'; only v1.12.0 is implemented")
      }
      return
    }
    let on = try list.bool(entry.key, of: "-cpu \(model)") ?? true
    switch entry.key {
    case "pmp": physicalMemoryProtection = on
    case "mmu": translation = on ? translation : .bare
    case "sv39": if on { translation = .sv39 }
    case "sv48": translation = on ? .sv48 : .sv39
    case "sv57": translation = on ? .sv57 : .sv48
    default:
      guard on else {
        throw ConfigurationError("-cpu \(model): \(entry.key)=off is not implemented; every hart here has it")
      }
    }
  }

  /// What `-cpu help` prints.
  static var help: String {
    let names = RISCVExtensions.all.map { "\($0.name)=\($0.isDefault ? "on" : "off")" }
    return "Available CPUs:\n  rv64\n  max\nProperties and their defaults:\n  "
      + (names + otherProperties).joined(separator: ", ") + "\n"
  }
}
