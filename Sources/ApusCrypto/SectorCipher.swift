import CGnuTLS
import Synchronization

/// Encrypts storage in sectors of 512 bytes, each with an initialization vector made from its number.
///
/// Any thread: the library's contexts are handed to one thread at a time.
public final class SectorCipher: Sendable {
  public static let sectorByteCount = 512

  /// How a sector's number becomes its initialization vector.
  public enum VectorKind: Sendable, Equatable {
    /// The number's low 32 bits.
    case plain
    case plain64
    /// The number encrypted with the key's hash.
    case essiv(Digest)
  }

  /// AES in a mode, by the names of LUKS.
  public struct Algorithm: Sendable, Equatable {
    public enum Mode: String, Sendable { case xts, cbc }
    public var mode: Mode
    /// Bytes of the key: twice AES's own for XTS.
    public var keyByteCount: Int
    public var vector: VectorKind
    public init(_ mode: Mode, keyByteCount: Int, vector: VectorKind) {
      (self.mode, self.keyByteCount, self.vector) = (mode, keyByteCount, vector)
    }

    /// Bits of AES's key.
    public var aesBits: Int { keyByteCount * 8 / (mode == .xts ? 2 : 1) }

    var identifier: gnutls_cipher_algorithm_t? {
      switch (mode, keyByteCount) {
      case (.xts, 32): GNUTLS_CIPHER_AES_128_XTS
      case (.xts, 64): GNUTLS_CIPHER_AES_256_XTS
      case (.cbc, 16): GNUTLS_CIPHER_AES_128_CBC
      case (.cbc, 24): GNUTLS_CIPHER_AES_192_CBC
      case (.cbc, 32): GNUTLS_CIPHER_AES_256_CBC
      default: nil
      }
    }
  }

  /// The library's contexts of one thread: the cipher, and what makes ESSIV vectors.
  private final class Context: @unchecked Sendable {
    // SAFETY: one thread at a time has it.
    var cipher: gnutls_cipher_hd_t?
    var essiv: gnutls_cipher_hd_t?
    deinit {
      if let cipher { apus_gnutls_cipher_deinit(cipher) }
      if let essiv { apus_gnutls_cipher_deinit(essiv) }
    }
  }

  public let algorithm: Algorithm
  let key: [UInt8]
  private let essivKey: [UInt8]
  private let free = Mutex<[Context]>([])

  public init(_ algorithm: Algorithm, key: [UInt8]) throws(CryptoError) {
    guard libraryIsReady else { throw CryptoError("GnuTLS (libgnutls.so.30) is missing or does not start") }
    guard algorithm.identifier != nil, key.count == algorithm.keyByteCount else {
      throw CryptoError("AES-\(algorithm.mode.rawValue) with a key of \(key.count) bytes is not possible")
    }
    (self.algorithm, self.key) = (algorithm, key)
    if case .essiv(let digest) = algorithm.vector {
      essivKey = try digest.hash(key)
      guard [16, 24, 32].contains(essivKey.count) else {
        throw CryptoError("ESSIV with \(digest.rawValue) makes no key for AES; sha256 does")
      }
    } else {
      essivKey = []
    }
    // The first context now, so that a refusal of the library's comes here.
    let context = try makeContext()
    free.withLock { $0.append(context) }
  }

  private func makeContext() throws(CryptoError) -> Context {
    let context = Context()
    context.cipher = try Self.handle(algorithm.identifier ?? GNUTLS_CIPHER_UNKNOWN, key)
    if !essivKey.isEmpty {
      let identifiers = [16: GNUTLS_CIPHER_AES_128_CBC, 24: GNUTLS_CIPHER_AES_192_CBC]
      context.essiv = try Self.handle(identifiers[essivKey.count] ?? GNUTLS_CIPHER_AES_256_CBC, essivKey)
    }
    return context
  }

  private static func handle(_ identifier: gnutls_cipher_algorithm_t, _ key: [UInt8]) throws(CryptoError)
    -> gnutls_cipher_hd_t?
  {
    var handle: gnutls_cipher_hd_t?
    let code = Digest.withDatum(key) { key in
      Digest.withDatum([UInt8](repeating: 0, count: 16)) {
        apus_gnutls_cipher_init(&handle, identifier, key, $0)
      }
    }
    guard code == 0 else { throw CryptoError("the cipher is not available", code: code) }
    return handle
  }

  /// Encrypts `byteCount` bytes in place, the first of them at the start of sector `sector`.
  public func encrypt(_ base: UnsafeMutableRawPointer, _ byteCount: Int, sector: UInt64) throws(CryptoError) {
    try run(base, byteCount, sector) { apus_gnutls_cipher_encrypt2($0, $1, $2, $1, $2) }
  }
  public func decrypt(_ base: UnsafeMutableRawPointer, _ byteCount: Int, sector: UInt64) throws(CryptoError) {
    try run(base, byteCount, sector) { apus_gnutls_cipher_decrypt2($0, $1, $2, $1, $2) }
  }

  private func run(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ sector: UInt64,
    _ body: (gnutls_cipher_hd_t?, UnsafeMutableRawPointer, Int) -> Int32
  ) throws(CryptoError) {
    let context: Context
    if let known = free.withLock({ $0.popLast() }) { context = known } else { context = try makeContext() }
    defer { free.withLock { $0.append(context) } }
    var position = 0
    var number = sector
    while position < byteCount {
      var vector: InlineArray<2, UInt64> = [number.littleEndian, 0]
      if algorithm.vector == .plain { vector[0] = UInt64(UInt32(truncatingIfNeeded: number)).littleEndian }
      let count = min(Self.sectorByteCount, byteCount - position)
      var code: Int32 = 0
      withUnsafeMutableBytes(of: &vector) { vector in
        if context.essiv != nil {
          var zero: InlineArray<2, UInt64> = [0, 0]
          withUnsafeMutableBytes(of: &zero) { apus_gnutls_cipher_set_iv(context.essiv, $0.baseAddress, 16) }
          code = apus_gnutls_cipher_encrypt2(context.essiv, vector.baseAddress, 16, vector.baseAddress, 16)
        }
        apus_gnutls_cipher_set_iv(context.cipher, vector.baseAddress, 16)
        if code == 0 { code = body(context.cipher, base + position, count) }
      }
      guard code == 0 else { throw CryptoError("a sector could not be encrypted or decrypted", code: code) }
      position += count
      number += 1
    }
  }
}
