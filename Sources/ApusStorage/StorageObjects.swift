import ApusConfig
import ApusHost
import ApusNBD

/// What `--object` makes and options of images refer to: passphrases and TLS credentials.
public struct StorageObjects: Sendable {
  private var secrets: [String: [UInt8]] = [:]
  private var credentials: [String: TLSCredentials] = [:]
  private var authorizations: [String: TLSAuthorization] = [:]

  public init() {}

  /// Adds an object from its options: `secret,id=sec0,data=...`.
  public mutating func add(_ text: String) throws(StorageError) {
    var list: OptionList
    do throws(ConfigurationError) { list = try OptionList(parsing: text, impliedKey: "qom-type") } catch {
      throw StorageError(error)
    }
    let type = list.take("qom-type") ?? ""
    try add(type, list)
  }

  /// The types of `add`.
  public static let types = ["secret", "tls-creds-x509", "tls-creds-psk", "authz-simple", "authz-list"]

  /// Adds an object of a type from its other options, the id among them.
  public mutating func add(_ type: String, _ options: OptionList) throws(StorageError) {
    var list = options
    guard let id = list.take("id"), !id.isEmpty else {
      throw StorageError("--object \(type): id= is missing")
    }
    guard secrets[id] == nil, credentials[id] == nil, authorizations[id] == nil else {
      throw StorageError("--object: there are two objects '\(id)'")
    }
    switch type {
    case "secret": secrets[id] = try secret(id, &list)
    case "tls-creds-x509", "tls-creds-psk", "tls-creds-anon":
      do throws(ConfigurationError) {
        if type == "tls-creds-anon" {
          throw ConfigurationError("TLS without certificates is not implemented")
        }
        try list.check(
          known: ["dir", "endpoint", "username", "verify-peer", "priority", "passwordid"], of: type)
        if list["passwordid"] != nil { throw ConfigurationError("\(type): passwordid is not implemented") }
        guard let folder = list["dir"] else { throw ConfigurationError("\(type): dir= is missing") }
        let isServer: Bool
        switch list["endpoint"] {
        case "server": isServer = true
        case nil, "client": isServer = false
        case let other?:
          throw ConfigurationError("\(type): endpoint is '\(other)'; it must be client or server")
        }
        credentials[id] = TLSCredentials(
          kind: type == "tls-creds-psk" ? .sharedKey(username: list["username"] ?? "qemu") : .x509,
          folder: folder,
          isServer: isServer, verifiesPeer: try list.bool("verify-peer", of: type) ?? true,
          priority: list["priority"])
      } catch { throw StorageError(error) }
    case "authz-simple", "authz-list":
      do throws(ConfigurationError) { authorizations[id] = try authorization(type, list) } catch {
        throw StorageError(error)
      }
    default:
      throw StorageError(
        ConfigurationError.unknown("object type", type, among: Self.types)
          .description)
    }
  }

  private func authorization(_ type: String, _ list: OptionList) throws(ConfigurationError)
    -> TLSAuthorization
  {
    if type == "authz-simple" {
      try list.check(known: ["identity"], of: type)
      guard let identity = list["identity"] else { throw ConfigurationError("\(type): identity= is missing") }
      return TLSAuthorization(rules: [.init(match: identity, allows: true)])
    }
    func policy(_ list: OptionList) throws(ConfigurationError) -> Bool {
      switch list["policy"] {
      case nil, "deny": return false
      case "allow": return true
      case let other?: throw ConfigurationError("\(type): policy is '\(other)'; it must be allow or deny")
      }
    }
    var result = TLSAuthorization(rules: [], allowsOthers: try policy(list))
    var rest = list
    rest.entries.removeAll { $0.key == "policy" }
    while case let rule = rest.nested("rules.\(result.rules.count)"), !rule.entries.isEmpty {
      rest.entries.removeAll { $0.key.hasPrefix("rules.\(result.rules.count).") }
      try rule.check(known: ["match", "policy", "format"], of: type)
      guard let match = rule["match"] else { throw ConfigurationError("\(type): a rule has no match=") }
      guard ["exact", "glob"].contains(rule["format"] ?? "exact") else {
        throw ConfigurationError("\(type): format is '\(rule["format"] ?? "")'; it must be exact or glob")
      }
      result.rules.append(.init(match: match, isGlob: rule["format"] == "glob", allows: try policy(rule)))
    }
    try rest.check(known: [], of: type)
    return result
  }

  public func authorization(_ id: String) throws(StorageError) -> TLSAuthorization {
    guard let found = authorizations[id] else {
      throw StorageError(
        "there is no authorization '\(id)'; make it with --object authz-simple,id=\(id),identity=NAME")
    }
    return found
  }

  private func secret(_ id: String, _ list: inout OptionList) throws(StorageError) -> [UInt8] {
    do throws(ConfigurationError) {
      try list.check(known: ["data", "file", "format", "keyid", "iv"], of: "the secret '\(id)'")
    } catch { throw StorageError(error) }
    if list["keyid"] != nil || list["iv"] != nil {
      throw StorageError("secret '\(id)': encrypted secrets (keyid=, iv=) are not implemented; use file=")
    }
    var bytes: [UInt8]
    switch (list["data"], list["file"]) {
    case (let data?, nil): bytes = Array(data.utf8)
    case (nil, let path?):
      do throws(HostError) { bytes = try HostDescriptor.contents(path, limit: 1 << 20) } catch {
        throw StorageError("secret '\(id)': \(error.description)")
      }
    default: throw StorageError("secret '\(id)': it needs data= or file=, one of them")
    }
    switch list["format"] {
    case nil, "raw": break
    case "base64":
      guard let plain = Self.base64(bytes) else { throw StorageError("secret '\(id)': it is no base64 text") }
      bytes = plain
    case let other?: throw StorageError("secret '\(id)': format is '\(other)'; it must be raw or base64")
    }
    return bytes
  }

  static func base64(_ text: [UInt8]) -> [UInt8]? {
    let letters = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    let digits = text.filter { ![10, 13, 32, 9].contains($0) }
    guard digits.count % 4 == 0 else { return nil }
    var result: [UInt8] = []
    var value: UInt32 = 0
    var bits = 0
    var padding = 0
    for byte in digits {
      if byte == UInt8(ascii: "=") {
        padding += 1
        continue
      }
      guard padding == 0, let digit = letters.firstIndex(of: byte) else { return nil }
      value = value << 6 | UInt32(digit)
      bits += 6
      if bits >= 8 {
        bits -= 8
        result.append(UInt8(truncatingIfNeeded: value >> UInt32(bits)))
      }
    }
    return padding <= 2 ? result : nil
  }

  func hasSecret(_ id: String) -> Bool { secrets[id] != nil }
  /// The passphrase that `key-secret=` names.
  func secret(_ id: String) throws(StorageError) -> [UInt8] {
    guard let secret = secrets[id] else {
      throw StorageError("there is no secret '\(id)'; make it with --object secret,id=\(id),...")
    }
    return secret
  }
  public func passphrase(_ id: String) throws(StorageError) -> [UInt8] { try secret(id) }
  public func tlsCredentials(_ id: String) throws(StorageError) -> TLSCredentials {
    guard let found = credentials[id] else {
      throw StorageError(
        "there are no TLS credentials '\(id)'; make them with --object tls-creds-x509,id=\(id),...")
    }
    return found
  }
}
