import CGnuTLS

/// A cryptographic operation that failed: a sentence for the user.
public struct CryptoError: Error, CustomStringConvertible, Equatable {
  public var description: String
  public init(_ description: String) { self.description = description }

  /// The failure of a call of the library's.
  init(_ what: String, code: Int32) {
    description = "\(what): \(String(cString: apus_gnutls_strerror(code)))"
  }
}

/// Whether the library could be started; asked before its first use.
let libraryIsReady = apus_gnutls_is_available() && apus_gnutls_global_init() == 0

/// Hash functions by the names that LUKS headers have for them.
public enum Digest: String, Sendable, CaseIterable {
  case sha1, sha224, sha256, sha384, sha512, ripemd160

  var identifier: gnutls_digest_algorithm_t {
    switch self {
    case .sha1: GNUTLS_DIG_SHA1
    case .sha224: GNUTLS_DIG_SHA224
    case .sha256: GNUTLS_DIG_SHA256
    case .sha384: GNUTLS_DIG_SHA384
    case .sha512: GNUTLS_DIG_SHA512
    case .ripemd160: GNUTLS_DIG_RMD160
    }
  }
  private var macIdentifier: gnutls_mac_algorithm_t {
    gnutls_mac_algorithm_t(rawValue: identifier.rawValue)
  }
  public var byteCount: Int {
    switch self {
    case .sha1, .ripemd160: 20
    case .sha224: 28
    case .sha256: 32
    case .sha384: 48
    case .sha512: 64
    }
  }

  public func hash(_ bytes: [UInt8]) throws(CryptoError) -> [UInt8] {
    guard libraryIsReady else { throw CryptoError("GnuTLS (libgnutls.so.30) is missing or does not start") }
    var result = [UInt8](repeating: 0, count: byteCount)
    let code = apus_gnutls_hash_fast(identifier, bytes, bytes.count, &result)
    guard code == 0 else { throw CryptoError("cannot compute \(rawValue)", code: code) }
    return result
  }

  /// PBKDF2 with this hash's HMAC [RFC 8018 §5.2].
  public func derive(_ password: [UInt8], salt: [UInt8], iterations: UInt32, byteCount: Int)
    throws(CryptoError)
    -> [UInt8]
  {
    guard libraryIsReady else { throw CryptoError("GnuTLS (libgnutls.so.30) is missing or does not start") }
    var result = [UInt8](repeating: 0, count: byteCount)
    let code = Self.withDatum(password) { key in
      Self.withDatum(salt) { salt in
        apus_gnutls_pbkdf2(macIdentifier, key, salt, iterations, &result, byteCount)
      }
    }
    guard code == 0 else { throw CryptoError("cannot derive a key with \(rawValue)", code: code) }
    return result
  }

  static func withDatum<R>(_ bytes: [UInt8], _ body: (UnsafePointer<gnutls_datum_t>) -> R) -> R {
    var copy = bytes
    let count = UInt32(copy.count)
    return copy.withUnsafeMutableBufferPointer { buffer in
      var datum = gnutls_datum_t(data: buffer.baseAddress, size: count)
      return body(&datum)
    }
  }
}

/// Bytes that nobody can guess, for keys and salts.
public func cryptographicRandomBytes(_ count: Int) throws(CryptoError) -> [UInt8] {
  guard libraryIsReady else { throw CryptoError("GnuTLS (libgnutls.so.30) is missing or does not start") }
  var result = [UInt8](repeating: 0, count: count)
  let code = apus_gnutls_rnd(GNUTLS_RND_KEY, &result, count)
  guard code == 0 else { throw CryptoError("no random bytes", code: code) }
  return result
}
