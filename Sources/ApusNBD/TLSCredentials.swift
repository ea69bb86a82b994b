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

  public init(kind: Kind, folder: String, isServer: Bool, verifiesPeer: Bool = true, priority: String? = nil)
  {
    (self.kind, self.folder, self.isServer) = (kind, folder, isServer)
    (self.verifiesPeer, self.priority) = (verifiesPeer, priority)
  }
}
