/// The header of LUKS version 1 [LUKS 1.2.3]: how data is encrypted, and the key, encrypted with passphrases. Big endian.
///
/// ```
///   0 "LUKS\xba\xbe"  6 version   8 cipher name   40 cipher mode   72 hash    104 payload's sector  108 bytes of the key
/// 112 key's digest  132 its salt 164 its iterations 168 uuid     208 eight key slots of 48 bytes:
///   0 state   4 iterations   8 salt   40 sector of the key's material   44 stripes
/// ```
public struct LUKSHeader: Sendable, Equatable {
  public static let byteCount = 592
  static let magic: [UInt8] = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]
  static let stripes = 4000
  static let enabled: UInt32 = 0x00ac_71f3
  static let disabled: UInt32 = 0x0000_dead

  public struct Slot: Sendable, Equatable {
    public var isActive = false
    public var iterations: UInt32 = 0
    public var salt = [UInt8](repeating: 0, count: 32)
    /// Where the key's material begins, in bytes from the header's start.
    public var offset: UInt64 = 0
    public var stripes = LUKSHeader.stripes
  }

  /// How a new header is made.
  public struct Parameters: Sendable {
    public var passphrase: [UInt8]
    public var algorithm = SectorCipher.Algorithm(.xts, keyByteCount: 64, vector: .plain64)
    public var digest = Digest.sha256
    /// How long trying one passphrase takes on this machine.
    public var iterationMilliseconds = 2000
    public init(passphrase: [UInt8]) { self.passphrase = passphrase }
  }

  public var algorithm: SectorCipher.Algorithm
  public var digest: Digest
  /// Where encrypted data begins, in bytes from the header's start.
  public var payloadOffset: UInt64
  var keyDigest: [UInt8]
  var keySalt: [UInt8]
  public var keyIterations: UInt32
  public var uuid: String
  public var slots: [Slot]

  public static func matches(_ start: [UInt8]) -> Bool { start.starts(with: magic) }

  // MARK: Reading

  public init(_ bytes: [UInt8]) throws(CryptoError) {
    guard bytes.count >= Self.byteCount, Self.matches(bytes) else {
      throw CryptoError("the LUKS header does not begin with LUKS\\xba\\xbe")
    }
    func big32(_ offset: Int) -> UInt32 { (0..<4).reduce(0) { $0 << 8 | UInt32(bytes[offset + $1]) } }
    func text(_ range: Range<Int>) -> String {
      String(decoding: bytes[range].prefix { $0 != 0 }, as: UTF8.self)
    }
    let version = UInt16(bytes[6]) << 8 | UInt16(bytes[7])
    guard version == 1 else { throw CryptoError("LUKS version \(version) is not implemented; version 1 is") }
    guard let digest = Digest(rawValue: text(72..<104)) else {
      throw CryptoError("the LUKS hash '\(text(72..<104))' is not implemented")
    }
    let keyByteCount = Int(big32(108))
    algorithm = try Self.algorithm(text(8..<40), text(40..<72), keyByteCount)
    self.digest = digest
    payloadOffset = UInt64(big32(104)) * 512
    keyDigest = Array(bytes[112..<132])
    keySalt = Array(bytes[132..<164])
    keyIterations = big32(164)
    uuid = text(168..<208)
    slots = (0..<8).map { number in
      let base = 208 + 48 * number
      return Slot(
        isActive: big32(base) == Self.enabled, iterations: big32(base + 4),
        salt: Array(bytes[base + 8..<base + 40]),
        offset: UInt64(big32(base + 40)) * 512, stripes: Int(big32(base + 44)))
    }
    for slot in slots where slot.isActive {
      guard (1...65536).contains(slot.stripes), slot.iterations > 0, slot.iterations < 1 << 30 else {
        throw CryptoError("a LUKS key slot has \(slot.stripes) stripes and \(slot.iterations) iterations")
      }
    }
    guard keyIterations > 0, keyIterations < 1 << 30 else {
      throw CryptoError("the LUKS header has \(keyIterations) iterations")
    }
  }

  /// What "aes" and "xts-plain64" or "cbc-essiv:sha256" mean.
  static func algorithm(_ cipher: String, _ mode: String, _ keyByteCount: Int) throws(CryptoError)
    -> SectorCipher.Algorithm
  {
    let parts = mode.split(separator: "-", maxSplits: 1).map(String.init)
    guard cipher == "aes" else { throw CryptoError("the LUKS cipher '\(cipher)' is not implemented; aes is") }
    guard parts.count == 2, let chaining = SectorCipher.Algorithm.Mode(rawValue: parts[0]) else {
      throw CryptoError("the LUKS cipher mode '\(mode)' is not implemented; xts and cbc are")
    }
    let algorithm = SectorCipher.Algorithm(
      chaining, keyByteCount: keyByteCount, vector: try vector(parts[1], mode))
    guard algorithm.identifier != nil else {
      throw CryptoError("the LUKS cipher aes-\(mode) with a key of \(keyByteCount) bytes is not implemented")
    }
    return algorithm
  }

  static func vector(_ name: String, _ mode: String) throws(CryptoError) -> SectorCipher.VectorKind {
    switch name {
    case "plain": return .plain
    case "plain64": return .plain64
    default:
      if name.hasPrefix("essiv:"), let digest = Digest(rawValue: String(name.dropFirst(6))) {
        return .essiv(digest)
      }
      throw CryptoError("the initialization vectors of the LUKS cipher mode '\(mode)' are not implemented")
    }
  }

  /// The mode's name as headers have it.
  public var modeName: String {
    switch algorithm.vector {
    case .plain: "\(algorithm.mode.rawValue)-plain"
    case .plain64: "\(algorithm.mode.rawValue)-plain64"
    case .essiv(let digest): "\(algorithm.mode.rawValue)-essiv:\(digest.rawValue)"
    }
  }

  /// The cipher that a passphrase opens. `read` gets bytes of the header's area.
  public func unlock<E: Error>(
    _ passphrase: [UInt8], read: (UInt64, Int) throws(E) -> [UInt8]
  ) throws(E) -> Result<SectorCipher, CryptoError> {
    for slot in slots where slot.isActive {
      let material = try read(slot.offset, algorithm.keyByteCount * slot.stripes)
      do throws(CryptoError) {
        if let key = try key(slot, passphrase, material) {
          return .success(try SectorCipher(algorithm, key: key))
        }
      } catch { return .failure(error) }
    }
    return .failure(CryptoError("the passphrase opens none of the image's key slots"))
  }

  /// The image's key, if a passphrase opens the slot that has this material.
  func key(_ slot: Slot, _ passphrase: [UInt8], _ material: [UInt8]) throws(CryptoError) -> [UInt8]? {
    let derived = try digest.derive(
      passphrase, salt: slot.salt, iterations: slot.iterations, byteCount: algorithm.keyByteCount)
    var split = material
    let cipher = try SectorCipher(algorithm, key: derived)
    try cipher.decrypt(&split, split.count, sector: 0)
    let key = try merged(split, slot.stripes)
    let found = try digest.derive(key, salt: keySalt, iterations: keyIterations, byteCount: 20)
    return found == keyDigest ? key : nil
  }

  // MARK: Making

  private static func iterations(_ milliseconds: Int, _ perSecond: Double) -> UInt32 {
    UInt32(clamping: max(1000, min(Int(perSecond) * milliseconds / 1000, 1 << 29)))
  }

  /// Puts the key into a slot, for a passphrase; returns the slot's material.
  mutating func fill(_ number: Int, _ key: [UInt8], _ passphrase: [UInt8], milliseconds: Int)
    throws(CryptoError)
    -> [UInt8]
  {
    let perSecond = try Self.iterationsPerSecond(digest, algorithm.keyByteCount)
    slots[number].isActive = true
    slots[number].iterations = Self.iterations(milliseconds, perSecond)
    slots[number].stripes = Self.stripes
    slots[number].salt = try cryptographicRandomBytes(32)
    let derived = try digest.derive(
      passphrase, salt: slots[number].salt, iterations: slots[number].iterations,
      byteCount: algorithm.keyByteCount)
    var material = try split(key)
    try SectorCipher(algorithm, key: derived).encrypt(&material, material.count, sector: 0)
    return material
  }

  /// A new header with its key's material in the first slot: all bytes before the payload.
  public static func make(_ parameters: Parameters) throws(CryptoError) -> (
    header: LUKSHeader, bytes: [UInt8], cipher: SectorCipher
  ) {
    let algorithm = parameters.algorithm
    let digest = parameters.digest
    let key = try cryptographicRandomBytes(algorithm.keyByteCount)
    let perSecond = try iterationsPerSecond(digest, algorithm.keyByteCount)
    let salt = try cryptographicRandomBytes(32)
    let keyIterations = iterations(parameters.iterationMilliseconds / 8, perSecond)
    var header = LUKSHeader(
      algorithm: algorithm, digest: digest, payloadOffset: 0,
      keyDigest: try digest.derive(key, salt: salt, iterations: keyIterations, byteCount: 20), keySalt: salt,
      keyIterations: keyIterations, uuid: try newUUID())
    // Each slot's material begins at a multiple of 4 KiB.
    let room = (algorithm.keyByteCount * stripes + 4095) & ~4095
    for number in 0..<8 { header.slots[number].offset = UInt64(4096 + room * number) }
    header.payloadOffset = UInt64(4096 + room * 8)
    let material = try header.fill(
      0, key, parameters.passphrase, milliseconds: parameters.iterationMilliseconds)
    var bytes = header.encoded() + [UInt8](repeating: 0, count: Int(header.payloadOffset) - byteCount)
    bytes.replaceSubrange(4096..<4096 + material.count, with: material)
    return (header, bytes, try SectorCipher(algorithm, key: key))
  }

  private init(
    algorithm: SectorCipher.Algorithm, digest: Digest, payloadOffset: UInt64, keyDigest: [UInt8],
    keySalt: [UInt8],
    keyIterations: UInt32, uuid: String
  ) {
    (self.algorithm, self.digest, self.payloadOffset) = (algorithm, digest, payloadOffset)
    (self.keyDigest, self.keySalt, self.keyIterations, self.uuid) = (keyDigest, keySalt, keyIterations, uuid)
    slots = [Slot](repeating: Slot(), count: 8)
  }

  private static func newUUID() throws(CryptoError) -> String {
    var bytes = try cryptographicRandomBytes(16)
    bytes[6] = bytes[6] & 0x0f | 0x40
    bytes[8] = bytes[8] & 0x3f | 0x80
    var text = ""
    for (index, byte) in bytes.enumerated() {
      if [4, 6, 8, 10].contains(index) { text += "-" }
      text += (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }
    return text
  }

  /// PBKDF2's speed here.
  private static func iterationsPerSecond(_ digest: Digest, _ byteCount: Int) throws(CryptoError) -> Double {
    let salt = [UInt8](repeating: 0x5a, count: 32)
    var count: UInt32 = 10_000
    let clock = ContinuousClock()
    while true {
      var failure: CryptoError?
      let time = clock.measure {
        do throws(CryptoError) {
          _ = try digest.derive(salt, salt: salt, iterations: count, byteCount: byteCount)
        } catch { failure = error }
      }
      if let failure { throw failure }
      let seconds = Double(time.components.attoseconds) / 1e18 + Double(time.components.seconds)
      if seconds > 0.02 || count > 100_000_000 { return Double(count) / max(seconds, 1e-9) }
      count *= 4
    }
  }

  func encoded() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.byteCount)
    func put(_ offset: Int, _ data: some Collection<UInt8>) {
      for (index, byte) in data.enumerated() { bytes[offset + index] = byte }
    }
    func put32(_ offset: Int, _ value: UInt32) {
      for index in 0..<4 {
        bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * index))
      }
    }
    put(0, Self.magic)
    bytes[7] = 1
    put(8, "aes".utf8)
    put(40, modeName.utf8)
    put(72, digest.rawValue.utf8)
    put32(104, UInt32(payloadOffset / 512))
    put32(108, UInt32(algorithm.keyByteCount))
    put(112, keyDigest)
    put(132, keySalt)
    put32(164, keyIterations)
    put(168, uuid.utf8)
    for (number, slot) in slots.enumerated() {
      let base = 208 + 48 * number
      put32(base, slot.isActive ? Self.enabled : Self.disabled)
      put32(base + 4, slot.iterations)
      put(base + 8, slot.salt)
      put32(base + 40, UInt32(slot.offset / 512))
      put32(base + 44, UInt32(slot.stripes))
    }
    return bytes
  }

  // MARK: Anti-forensic splitting [LUKS 1.2.3 §2.4]

  /// Spreads a block by hashing its pieces with their numbers.
  private func diffused(_ block: [UInt8]) throws(CryptoError) -> [UInt8] {
    var result: [UInt8] = []
    let size = digest.byteCount
    var number: UInt32 = 0
    for start in stride(from: 0, to: block.count, by: size) {
      let piece = block[start..<min(start + size, block.count)]
      let prefix = (0..<4).map { UInt8(truncatingIfNeeded: number >> UInt32(24 - 8 * $0)) }
      result += try digest.hash(prefix + piece).prefix(piece.count)
      number += 1
    }
    return result
  }

  private func split(_ key: [UInt8]) throws(CryptoError) -> [UInt8] {
    var result = try cryptographicRandomBytes(key.count * (Self.stripes - 1))
    var sum = [UInt8](repeating: 0, count: key.count)
    for stripe in 0..<Self.stripes - 1 {
      for index in key.indices { sum[index] ^= result[stripe * key.count + index] }
      sum = try diffused(sum)
    }
    result += key.indices.map { sum[$0] ^ key[$0] }
    return result
  }

  private func merged(_ split: [UInt8], _ stripes: Int) throws(CryptoError) -> [UInt8] {
    let count = algorithm.keyByteCount
    var sum = [UInt8](repeating: 0, count: count)
    for stripe in 0..<stripes - 1 {
      for index in 0..<count { sum[index] ^= split[stripe * count + index] }
      sum = try diffused(sum)
    }
    return (0..<count).map { sum[$0] ^ split[(stripes - 1) * count + $0] }
  }
}
