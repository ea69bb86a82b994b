import ApusBits
import ApusFirmware
import ApusTestKit
import Testing

@Suite struct DeviceTreeTests {
  static let sample: DeviceTree = {
    var tree = DeviceTree()
    tree.root.set("compatible", ["apus,test", "generic"])
    tree.root.set("#address-cells", 2)
    tree.root.add(
      .init("soc") {
        $0.set("ranges")
        $0.add(.init("uart@10000000") { $0.set("reg", wide: 0x1000_0000, 0x100) })
      })
    tree.root.add(.init("chosen") { $0.set("bytes", bytes: [1, 2, 3]) })
    tree.reservations = [.init(address: 0x8000_0000, byteCount: 0x1000)]
    tree.bootCPU = 3
    return tree
  }()

  @Test func survivesARoundTrip() throws {
    #expect(try DeviceTree(parsing: Self.sample.encode()) == Self.sample)
  }

  @Test func headerIsVersion17() {
    let blob = Self.sample.encode()
    let words = (0..<10).compactMap { blob.bigEndian(at: $0 * 4) as UInt32? }
    #expect(words[0] == 0xd00d_feed)
    #expect(words[1] == UInt32(blob.count))
    #expect(words[5] == 17 && words[6] == 16 && words[7] == 3)
  }

  @Test func pathsAndUpdates() {
    var tree = Self.sample
    #expect(tree.root["/soc/uart@10000000"]?.cells("reg") == [0, 0x1000_0000, 0, 0x100])
    #expect(tree.root["soc/none"] == nil)
    tree.root.updateChild("chosen") { $0.set("bootargs", "quiet") }
    tree.root.updateChild("new") { $0.set("x", 1) }
    #expect(tree.root["chosen"]?.string("bootargs") == "quiet")
    #expect(tree.root["new"]?.cells("x") == [1])
  }

  @Test(arguments: [
    ([], DeviceTreeError.truncated(what: "header", offset: 0)),
    (Array(repeating: 0, count: 40), .badMagic(0)),
  ]) func refuses(_ blob: [UInt8], _ error: DeviceTreeError) {
    #expect(throws: error) { try DeviceTree(parsing: blob) }
  }

  @Test func refusesEveryTruncation() {
    let blob = Self.sample.encode()
    for count in 0..<blob.count {
      #expect(throws: DeviceTreeError.self) { try DeviceTree(parsing: Array(blob[..<count])) }
    }
  }

  @Test func refusesDeepNesting() {
    var node = DeviceTree.Node("x")
    for _ in 0..<40 {
      var parent = DeviceTree.Node("x")
      parent.add(node)
      node = parent
    }
    var tree = DeviceTree()
    tree.root.add(node)
    #expect(throws: DeviceTreeError.self) { try DeviceTree(parsing: tree.encode()) }
  }

  /// Damaged blobs are refused or parsed, never trapped on; what parses survives a round trip.
  @Test(arguments: 1...8 as ClosedRange<UInt64>) func fuzz(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let original = Self.sample.encode()
    for _ in 0..<fuzzRounds(2000) {
      var blob = original
      for _ in 0...random.below(6) {
        let index = random.below(blob.count)
        blob[index] = random.pick([0, 1, 2, 3, 9, 0x7f, 0xff, UInt8(truncatingIfNeeded: random.next())])
      }
      if random.below(4) == 0 { blob.removeLast(random.below(blob.count)) }
      if let tree = try? DeviceTree(parsing: blob) { #expect(try DeviceTree(parsing: tree.encode()) == tree) }
      _ = try? DeviceTree(parsing: random.bytes(random.below(100)))
    }
  }

  @Test func resetVectorHandsOverToOpenSBI() {
    let info = RISCVReset.DynamicInfo(nextAddress: 0x8020_0000)
    let bytes = RISCVReset.vector(start: 0x8000_0000, deviceTree: 0x87e0_0000, info: info)
    #expect(bytes.littleEndian(at: 0x20) == 0x8000_0000 as UInt64)
    #expect(bytes.littleEndian(at: 0x28) == 0x87e0_0000 as UInt64)
    let words = (0..<6).map { bytes.littleEndian(at: 0x30 + 8 * $0) as UInt64? }
    #expect(words == [0x4942_534f, 2, 0x8020_0000, 1, 0, 0])
  }
}
