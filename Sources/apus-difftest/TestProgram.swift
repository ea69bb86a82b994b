/// An ELF program that runs blocks one after the other and writes each one's area to standard output.
struct TestProgram {
  static let codeBase: UInt64 = 0x100_0000
  static let dataBase: UInt64 = 0x800_0000
  private let isa: any TestISA
  private(set) var code: [UInt8] = []
  private var data: [UInt8] = []
  /// Address of each block's first instruction.
  private(set) var blockAddresses: [UInt64] = []

  static func areaAddress(_ index: Int, _ isa: any TestISA) -> UInt64 {
    dataBase + UInt64(index * isa.areaByteCount)
  }

  /// - Parameter count: how many of each block's instructions are kept; the others become nops.
  init(_ isa: any TestISA, _ blocks: [GeneratedBlock], keeping count: Int = .max) {
    self.isa = isa
    for (index, block) in blocks.enumerated() {
      for word in isa.prologue(Self.areaAddress(index, isa)) { emit(word) }
      blockAddresses.append(Self.codeBase + UInt64(code.count))
      for (position, instruction) in block.instructions.enumerated() {
        emit(position < count ? instruction.bits : instruction.nop, instruction.byteCount)
      }
      for word in isa.epilogue { emit(word) }
      data += block.area
    }
    for word in isa.end { emit(word) }
  }

  private mutating func emit(_ word: UInt32, _ byteCount: Int = 4) {
    for k in 0..<byteCount { code.append(UInt8(truncatingIfNeeded: word >> UInt32(8 * k))) }
  }

  /// The ELF file.
  var image: [UInt8] {
    var file: [UInt8] = []
    func put(_ value: UInt64, _ byteCount: Int) {
      for k in 0..<byteCount { file.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * k))) }
    }
    let codeOffset: UInt64 = 4096
    let dataOffset = (codeOffset + UInt64(code.count) + 4095) & ~4095
    file += [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    put(2, 2)
    put(isa.machine, 2)
    put(1, 4)
    put(Self.codeBase, 8)
    put(64, 8)
    put(0, 8)
    put(isa.elfFlags, 4)
    for value in [64, 56, 2, 64, 0, 0] as [UInt64] { put(value, 2) }
    for (flags, offset, address, size) in [
      (5, codeOffset, Self.codeBase, UInt64(code.count)), (6, dataOffset, Self.dataBase, UInt64(data.count)),
    ] as [(UInt64, UInt64, UInt64, UInt64)] {
      put(1, 4)
      put(flags, 4)
      put(offset, 8)
      put(address, 8)
      put(address, 8)
      put(size, 8)
      put(size, 8)
      put(4096, 8)
    }
    file += [UInt8](repeating: 0, count: Int(codeOffset) - file.count)
    file += code
    file += [UInt8](repeating: 0, count: Int(dataOffset) - file.count)
    return file + data
  }
}
