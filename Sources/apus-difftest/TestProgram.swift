import ApusISARISCV

/// An ELF program that runs blocks one after the other and writes each one's area to standard output.
struct TestProgram {
  static let codeBase: UInt64 = 0x100_0000
  static let dataBase: UInt64 = 0x800_0000
  private(set) var code: [UInt8] = []
  private var data: [UInt8] = []
  /// Address of each block's first instruction.
  private(set) var blockAddresses: [UInt64] = []

  static func areaAddress(_ index: Int) -> UInt64 { dataBase + UInt64(index * Area.byteCount) }

  /// - Parameter count: how many of each block's instructions are kept; the others become nops.
  init(_ blocks: [GeneratedBlock], keeping count: Int = .max) {
    for (index, block) in blocks.enumerated() {
      emitPrologue(Self.areaAddress(index))
      blockAddresses.append(Self.codeBase + UInt64(code.count))
      for (position, instruction) in block.instructions.enumerated() {
        emit(position < count ? instruction.bits : instruction.nop, instruction.byteCount)
      }
      emitEpilogue()
      data += block.area
    }
    // exit_group(0)
    emit(addi(10, 0, 0))
    emit(addi(17, 0, 94))
    emit(0x73)
  }

  private mutating func emit(_ word: UInt32, _ byteCount: Int = 4) {
    for k in 0..<byteCount { code.append(UInt8(truncatingIfNeeded: word >> UInt32(8 * k))) }
  }
  private func addi(_ rd: UInt32, _ rs1: UInt32, _ value: Int32) -> UInt32 {
    UInt32(bitPattern: value) << 20 | rs1 << 15 | rd << 7 | 0x13
  }
  private func load(_ rd: UInt32, _ offset: Int, float: Bool) -> UInt32 {
    UInt32(offset) << 20 | 2 << 15 | 3 << 12 | rd << 7 | (float ? 0x07 : 0x03)
  }
  private func store(_ rs2: UInt32, _ offset: Int, float: Bool) -> UInt32 {
    (UInt32(offset) >> 5) << 25 | rs2 << 20 | 2 << 15 | 3 << 12 | (UInt32(offset) & 31) << 7
      | (float ? 0x27 : 0x23)
  }

  private mutating func emitPrologue(_ area: UInt64) {
    let stackPointer = UInt32(area) + UInt32(Area.stackPointer)
    let high = (stackPointer &+ 0x800) >> 12
    emit(high << 12 | 2 << 7 | 0x37)  // lui sp
    emit(addi(2, 2, Int32(bitPattern: stackPointer &- high << 12)))
    let bias = Area.stackPointer
    emit(load(1, Area.control - bias, float: false))
    emit(0x0030_9073)  // csrw fcsr, ra
    for number in 0..<32 { emit(load(UInt32(number), Area.floats + 8 * number - bias, float: true)) }
    for number in 1..<32 where number != 2 {
      emit(load(UInt32(number), Area.integers + 8 * number - bias, float: false))
    }
  }
  private mutating func emitEpilogue() {
    let bias = Area.stackPointer
    for number in 1..<32 { emit(store(UInt32(number), Area.integers + 8 * number - bias, float: false)) }
    for number in 0..<32 { emit(store(UInt32(number), Area.floats + 8 * number - bias, float: true)) }
    emit(0x0030_20f3)  // csrr ra, fcsr
    emit(store(1, Area.control - bias, float: false))
    // write(1, area, size)
    emit(addi(10, 0, 1))
    emit(addi(11, 2, Int32(-bias)))
    emit(0x0000_1637)  // lui a2, 1
    emit(addi(12, 12, Int32(Area.byteCount - 4096)))
    emit(addi(17, 0, 64))
    emit(0x73)
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
    put(243, 2)
    put(1, 4)
    put(Self.codeBase, 8)
    put(64, 8)
    put(0, 8)
    put(5, 4)  // RVC, double float
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
