/// The shared object that the kernel maps into every process: where signal handlers return to, and functions that
/// libraries look up by name [Linux vdso(7)].
///
/// ```
///    0  ELF header  64       64  program headers  2 * 56      176  code  (16 bytes a function)
///  ...  hash table, symbols, strings, versions, dynamic section
/// ```
///
/// The functions are system calls, which the emulator answers without asking the host where it can.
public struct GuestVDSO: Sendable {
  public let bytes: [UInt8]
  /// Offset of the first function.
  public let signalReturn: Int

  /// A function: its name and its instructions' bytes.
  public struct Function {
    let name: String
    let code: [UInt8]
    public init(_ name: String, _ code: [UInt8]) { (self.name, self.code) = (name, code) }
    /// Instructions of 32 bits.
    public init(_ name: String, words: [UInt32]) {
      self.init(name, words.flatMap { word in withUnsafeBytes(of: word.littleEndian) { Array($0) } })
    }
  }

  private struct Writer {
    var bytes: [UInt8] = []
    mutating func put<T: FixedWidthInteger>(_ value: T) {
      withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
    mutating func align(_ count: Int) { while bytes.count % count != 0 { bytes.append(0) } }
    mutating func patch<T: FixedWidthInteger>(_ value: T, at offset: Int) {
      withUnsafeBytes(of: value.littleEndian) { bytes.replaceSubrange(offset..<offset + $0.count, with: $0) }
    }
  }

  /// The hash of symbol names [gABI ch. 5].
  private static func hash(_ name: String) -> UInt32 {
    var result: UInt32 = 0
    for byte in name.utf8 {
      result = (result << 4) &+ UInt32(byte)
      let high = result & 0xf000_0000
      result = (result ^ high >> 24) & ~high
    }
    return result
  }

  /// - Parameters:
  ///   - machine: the ELF header's e_machine; `flags`, its e_flags.
  ///   - version: of all symbols, such as LINUX_4.15.
  ///   - functions: the first one is what signal handlers return to.
  public init(machine: UInt16, flags: UInt32, version: String, functions: [Function]) {
    let soname = "linux-vdso.so.1"
    let count = functions.count
    var strings: [UInt8] = [0]
    func intern(_ text: String) -> UInt32 {
      let offset = UInt32(strings.count)
      strings += Array(text.utf8) + [0]
      return offset
    }
    let sonameOffset = intern(soname)
    let versionOffset = intern(version)
    let names = functions.map { intern($0.name) }

    var image = Writer()
    image.bytes = [UInt8](repeating: 0, count: 64 + 2 * 56)
    let code = image.bytes.count
    var addresses: [(start: Int, byteCount: Int)] = []
    for function in functions {
      image.align(16)
      addresses.append((image.bytes.count, function.code.count))
      image.bytes += function.code
    }
    image.align(8)
    // One bucket: a chain through all symbols.
    let hashTable = image.bytes.count
    for word in [1, UInt32(count + 1), 1, 0] + (1...count).map({ $0 == count ? 0 : UInt32($0 + 1) }) {
      image.put(word)
    }
    image.align(8)
    let symbols = image.bytes.count
    for _ in 0..<3 { image.put(0 as UInt64) }
    for (index, address) in addresses.enumerated() {
      image.put(names[index])
      image.put(0x12 as UInt8)  // global function
      image.put(0 as UInt8)
      image.put(1 as UInt16)  // defined: any section
      image.put(UInt64(address.start))
      image.put(UInt64(address.byteCount))
    }
    let stringTable = image.bytes.count
    image.bytes += strings
    image.align(8)
    let versions = image.bytes.count
    for index in 0...count { image.put(index == 0 ? 0 : 2 as UInt16) }
    image.align(8)
    // The object's own name, then the version of all functions.
    let definitions = image.bytes.count
    for (index, name) in [(sonameOffset, soname), (versionOffset, version)].enumerated() {
      image.put(1 as UInt16)
      image.put(index == 0 ? 1 : 0 as UInt16)  // base
      image.put(UInt16(index + 1))
      image.put(1 as UInt16)
      image.put(Self.hash(name.1))
      image.put(20 as UInt32)
      image.put(index == 0 ? 28 : 0 as UInt32)
      image.put(name.0)
      image.put(0 as UInt32)
    }
    image.align(8)
    let dynamic = image.bytes.count
    let entries: [(UInt64, UInt64)] = [
      (14, UInt64(sonameOffset)), (4, UInt64(hashTable)), (5, UInt64(stringTable)), (6, UInt64(symbols)),
      (10, UInt64(strings.count)), (11, 24), (0x6fff_fff0, UInt64(versions)),
      (0x6fff_fffc, UInt64(definitions)),
      (0x6fff_fffd, 2), (0, 0),
    ]
    for (tag, value) in entries {
      image.put(tag)
      image.put(value)
    }
    Self.writeHeaders(
      &image, machine: machine, flags: flags, dynamic: dynamic, dynamicByteCount: entries.count * 16,
      code: code)
    (bytes, signalReturn) = (image.bytes, addresses[0].start)
  }

  private static func writeHeaders(
    _ image: inout Writer, machine: UInt16, flags: UInt32, dynamic: Int, dynamicByteCount: Int, code: Int
  ) {
    let total = UInt64(image.bytes.count)
    var head = Writer()
    head.bytes = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    head.put(3 as UInt16)
    head.put(machine)
    head.put(1 as UInt32)
    head.put(UInt64(code))
    head.put(64 as UInt64)
    head.put(0 as UInt64)
    head.put(flags)
    for value: UInt16 in [64, 56, 2, 64, 0, 0] { head.put(value) }
    // PT_LOAD, readable and executable; PT_DYNAMIC, readable.
    let segments: [(UInt32, UInt32, UInt64, UInt64, UInt64)] = [
      (1, 5, 0, total, 4096), (2, 4, UInt64(dynamic), UInt64(dynamicByteCount), 8),
    ]
    for (type, flags, offset, byteCount, alignment) in segments {
      head.put(type)
      head.put(flags)
      for value in [offset, offset, offset, byteCount, byteCount, alignment] { head.put(value) }
    }
    image.bytes.replaceSubrange(0..<head.bytes.count, with: head.bytes)
  }
}
