import ApusBits
import ApusLoader
import ApusMemory
import ApusTestKit
import Testing

/// An ELF file with one segment.
func makeELF(
  physical: UInt64 = 0x8000_0000, virtual: UInt64 = 0xffff_8000_0000_0000, content: [UInt8] = [1, 2, 3, 4],
  memoryByteCount: UInt64 = 16, machine: UInt16 = 243, fileOffset: UInt64 = 120
) -> [UInt8] {
  var file: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
  file.appendLittleEndian(2 as UInt16)
  file.appendLittleEndian(machine)
  file.appendLittleEndian(1 as UInt32)
  file.appendLittleEndian(virtual + 2)
  file.appendLittleEndian(64 as UInt64)
  file.appendLittleEndian(0 as UInt64)
  file.appendLittleEndian(0 as UInt32)
  for half in [64, 56, 1, 0, 0, 0] as [UInt16] { file.appendLittleEndian(half) }
  file.appendLittleEndian(1 as UInt32)
  file.appendLittleEndian(5 as UInt32)
  for wide in [fileOffset, virtual, physical, UInt64(content.count), memoryByteCount, 4096] {
    file.appendLittleEndian(wide)
  }
  return file + content
}

@Suite struct LoaderTests {
  let ram: GuestRAM
  let space: AddressSpace
  let loader: GuestLoader

  init() throws {
    ram = try GuestRAM(name: "ram", base: .init(0x8000_0000), byteCount: 16 << 20)
    space = AddressSpace(ram: [ram])
    loader = GuestLoader(space: space, ram: ram)
  }

  @Test func loadsELFSegments() throws {
    _ = space.store(.init(0x8000_0008), 8, .max)
    let image = try loader.loadKernel(makeELF(), path: "k", at: 0)
    #expect(image == LoadedImage(entry: 0x8000_0002, low: 0x8000_0000, high: 0x8000_0010))
    #expect(space.load(.init(0x8000_0000), 8) == 0x0403_0201)
    #expect(space.load(.init(0x8000_0008), 8) == 0)
  }

  @Test(arguments: [
    makeELF(machine: 62), makeELF(physical: 0x1000), makeELF(memoryByteCount: 2),
    makeELF(memoryByteCount: .max),
    makeELF(fileOffset: 1 << 40), makeELF(physical: .max - 4), Array(makeELF().prefix(70)),
    Array(makeELF().prefix(20)), [],
  ]) func refuses(_ file: [UInt8]) {
    #expect(throws: LoaderError.self) { try loader.loadKernel(file, path: "k", at: 0x8020_0000 + (16 << 20)) }
  }

  @Test func placesAFlatImage() throws {
    var image = [UInt8](repeating: 0, count: 64)
    image.replaceSubrange(0x38..<0x3c, with: Array("RSC\u{5}".utf8))
    image[8 + 2] = 0x20
    image[16 + 2] = 0x10  // 1 MiB in memory
    let loaded = try loader.loadKernel(image, path: "Image", at: 0x8020_0000)
    #expect(loaded == LoadedImage(entry: 0x8020_0000, low: 0x8020_0000, high: 0x8030_0000))
    #expect(throws: LoaderError.self) { try loader.loadKernel(image, path: "Image", at: 0x80f8_0000) }
  }

  @Test func unpacksGzip() throws {
    // "hello" by gzip -n
    let packed: [UInt8] = [
      0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 7, 0, 0x86, 0xa6, 0x10, 0x36, 5, 0, 0,
      0,
    ]
    #expect(try LinuxImage.unpack(packed, path: "k") == Array("hello".utf8))
    #expect(throws: LoaderError.self) { try LinuxImage.unpack(Array(packed.prefix(15)), path: "k") }
  }

  @Test func initrdAndDeviceTreeKeepClear() throws {
    let kernel = LoadedImage(entry: 0x8020_0000, low: 0x8020_0000, high: 0x8030_0000)
    let small = try loader.loadInitrd([1, 2, 3], path: "i", kernel: kernel)
    #expect(small == 0x80a0_0000..<0x80a0_0003)
    #expect(throws: LoaderError.self) {
      try loader.loadInitrd([UInt8](repeating: 0, count: 16 << 20), path: "i", kernel: kernel)
    }
    #expect(try loader.deviceTreeAddress(byteCount: 5000) == 0x80e0_0000)
  }

  @Test func fuzz() {
    var random = SeededGenerator(seed: 7)
    for _ in 0..<fuzzRounds(5000) {
      var file = makeELF()
      for _ in 0...random.below(4) {
        file[random.below(file.count)] = UInt8(truncatingIfNeeded: random.next())
      }
      _ = try? loader.loadKernel(file, path: "fuzz", at: 0x8020_0000)
    }
  }
}
