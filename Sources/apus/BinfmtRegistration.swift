/// A guest architecture as the kernel tells its programs apart, by the first bytes of their files.
struct BinfmtGuest {
  let name: String
  /// e_machine [gABI ch. 4].
  let machine: UInt16

  static let all = [BinfmtGuest(name: "riscv64", machine: 243), BinfmtGuest(name: "aarch64", machine: 183)]

  /// ELF, 64 bits, little endian, version 1; OS ABI and its version; type executable.
  var magic: [UInt8] {
    [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
      + [2, 0, UInt8(truncatingIfNeeded: machine), UInt8(truncatingIfNeeded: machine >> 8)]
  }
  /// The OS ABI may be any; the type executable (2) or shared object (3).
  static let mask: [UInt8] =
    [UInt8](repeating: 0xff, count: 7) + [0] + [UInt8](repeating: 0xff, count: 8) + [0xfe, 0xff, 0xff, 0xff]

  /// Heads of files that are to be run: System V's and Linux's OS ABI, both types.
  var samples: [[UInt8]] {
    let kinds: [(abi: UInt8, type: UInt8)] = [(0, 2), (0, 3), (3, 2), (3, 3)]
    return kinds.map { abi, type in
      var head = magic
      (head[7], head[16]) = (abi, type)
      return head
    }
  }
}

/// What is registered with the kernel's binfmt_misc [Documentation/admin-guide/binfmt-misc.rst].
struct BinfmtRegistration {
  var guest: BinfmtGuest
  var emulator: String
  /// P: programs see the name that they were called by.
  var keepsArgumentZero = true
  /// C: set-user-id programs get their owner's rights.
  var usesCredentials = false

  /// `:name:M:offset:magic:mask:interpreter:flags`; F keeps the emulator open, for chroots and containers.
  var line: String {
    let flags = "F" + (keepsArgumentZero ? "P" : "") + (usesCredentials ? "C" : "")
    return ":apus-\(guest.name):M::\(escaped(guest.magic)):\(escaped(BinfmtGuest.mask)):\(emulator):\(flags)"
  }
  private func escaped(_ bytes: [UInt8]) -> String {
    bytes.map { "\\x" + ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
  }
}

/// A handler as binfmt_misc shows it.
struct BinfmtEntry {
  let name: String
  let text: String
  private var isEnabled = false
  private var offset = 0
  private var magic: [UInt8] = []
  private var mask: [UInt8] = []

  /// Lines: `enabled`, `interpreter PATH`, `flags: FP`, `offset 0`, `magic 7f45...`, `mask ff...`.
  init(_ name: String, _ text: String) {
    (self.name, self.text) = (name, text)
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ")
      switch (words.first, words.count) {
      case ("enabled", 1): isEnabled = true
      case ("offset", 2): offset = Int(words[1]) ?? 0
      case ("magic", 2): magic = Self.bytes(words[1])
      case ("mask", 2): mask = Self.bytes(words[1])
      default: break
      }
    }
  }
  private static func bytes(_ digits: Substring) -> [UInt8] {
    let digits = Array(digits.utf8)
    return stride(from: 0, to: digits.count - 1, by: 2).map {
      UInt8(String(decoding: digits[$0...($0 + 1)], as: UTF8.self), radix: 16) ?? 0
    }
  }

  /// Whether the kernel gives the handler files that begin like this.
  func takes(_ head: [UInt8]) -> Bool {
    // What it looks at behind the head is not known: a handler of longer magic is no one's for all programs.
    guard isEnabled, !magic.isEmpty, offset >= 0, offset + magic.count <= head.count else { return false }
    return magic.indices.allSatisfy { index in
      let bits = mask.isEmpty ? 0xff : mask[index]
      return head[offset + index] & bits == magic[index] & bits
    }
  }
}
