/// What a TLS session is made with: a folder of files as other NBD programs have it.
///
/// x509: `ca-cert.pem`, `ca-crl.pem` (may be missing), `server-cert.pem` and `server-key.pem` or `client-cert.pem` and
/// `client-key.pem` (a client may have none). Shared keys: `keys.psk`, lines of `NAME:HEX`.
public struct TLSCredentials: Sendable {
  public enum Kind: Sendable, Equatable {
    case x509
    /// The name is the client's.
    case sharedKey(username: String)
  }
  public var kind: Kind
  public var folder: String
  public var isServer: Bool
  /// Whether the other side has to show a certificate of the same authority.
  public var verifiesPeer: Bool
  /// The library's priority string, if it is not the default.
  public var priority: String?
  /// For servers: which clients with good certificates may come in; `nil`: all.
  public var authorization: TLSAuthorization?

  public init(kind: Kind, folder: String, isServer: Bool, verifiesPeer: Bool = true, priority: String? = nil)
  {
    (self.kind, self.folder, self.isServer) = (kind, folder, isServer)
    (self.verifiesPeer, self.priority) = (verifiesPeer, priority)
  }
}

/// Which clients are let in, by the distinguished names of their certificates: `CN=laptop,O=Example,C=GB`.
public struct TLSAuthorization: Sendable, Equatable {
  public struct Rule: Sendable, Equatable {
    public var match: String
    /// `*` and `?` stand for any text and any character.
    public var isGlob: Bool
    public var allows: Bool
    public init(match: String, isGlob: Bool = false, allows: Bool) {
      (self.match, self.isGlob, self.allows) = (match, isGlob, allows)
    }
  }
  /// The first that matches counts.
  public var rules: [Rule]
  /// What holds where none matches.
  public var allowsOthers: Bool
  public init(rules: [Rule], allowsOthers: Bool = false) {
    (self.rules, self.allowsOthers) = (rules, allowsOthers)
  }

  public func allows(_ name: String) -> Bool {
    rules.first { $0.isGlob ? Self.glob($0.match, name) : $0.match == name }?.allows ?? allowsOthers
  }

  /// Time: at most the product of the lengths.
  static func glob(_ pattern: String, _ text: String) -> Bool {
    let (pattern, text) = (Array(pattern.utf8), Array(text.utf8))
    var (place, position) = (0, 0)
    // Where the last star was, and what it has taken so far.
    var star: (place: Int, position: Int)?
    while position < text.count {
      if place < pattern.count, pattern[place] == UInt8(ascii: "*") {
        star = (place, position)
        place += 1
      } else if place < pattern.count, pattern[place] == UInt8(ascii: "?") || pattern[place] == text[position]
      {
        place += 1
        position += 1
      } else if let last = star {
        star = (last.place, last.position + 1)
        (place, position) = (last.place + 1, last.position + 1)
      } else {
        return false
      }
    }
    return pattern[place...].allSatisfy { $0 == UInt8(ascii: "*") }
  }
}
