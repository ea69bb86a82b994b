import ApusBlock
import ApusHost
import ApusQcow2
import ApusTestKit
import Testing

@Suite struct MalformedImageTests {
  static func image(_ change: (MemoryNode) throws -> Void) throws -> MemoryNode {
    let file = MemoryNode()
    let image = try Qcow2Image.create(.init(byteCount: 1 << 20), on: file)
    try image.write([UInt8](repeating: 7, count: 200_000), at: 100)
    try image.createSnapshot("s", dateSeconds: 0)
    try image.addBitmap("b")
    try image.close()
    try change(file)
    return file
  }
  static func big(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * (count - 1 - $0))) }
  }

  /// A field of the header with a value that must be refused, and a word of the reason.
  struct Field: Sendable {
    var offset: UInt64
    var length: Int
    var value: UInt64
    var word: String
  }
  static let fields: [Field] = [
    Field(offset: 0, length: 4, value: 0, word: "QFI"),
    Field(offset: 4, length: 4, value: 9, word: "version"),
    Field(offset: 20, length: 4, value: 8, word: "cluster bits"),
    Field(offset: 20, length: 4, value: 40, word: "cluster bits"),
    Field(offset: 24, length: 8, value: 1 << 61, word: "too small"),
    Field(offset: 32, length: 4, value: 1, word: "AES"),
    Field(offset: 32, length: 4, value: 2, word: "LUKS"),
    Field(offset: 36, length: 4, value: 1 << 30, word: "entries"),
    Field(offset: 40, length: 8, value: 77, word: "misplaced"),
    Field(offset: 48, length: 8, value: 77, word: "misplaced"),
    Field(offset: 56, length: 4, value: 1 << 20, word: "refcount table"),
    Field(offset: 56, length: 4, value: 0, word: "refcount table"),
    Field(offset: 60, length: 4, value: 1 << 20, word: "snapshots"),
    Field(offset: 72, length: 8, value: 1 << 20, word: "bit 20"),
    Field(offset: 96, length: 4, value: 7, word: "refcount order"),
    Field(offset: 100, length: 4, value: 50, word: "length"),
    Field(offset: 8, length: 8, value: 1 << 40, word: "backing"),
  ]

  @Test(arguments: fields.indices) func refusedHeaders(number: Int) throws {
    let (offset, length, value, word) =
      (
        Self.fields[number].offset, Self.fields[number].length, Self.fields[number].value,
        Self.fields[number].word
      )
    let file = try Self.image { try $0.write(Self.big(value, length), at: offset) }
    #expect {
      try Qcow2Image(file)
    } throws: {
      ($0 as? BlockError)?.description.contains(word) == true
    }
  }

  @Test func writesNeverHitMetadata() throws {
    // An L2 entry that leads to the header: the write is refused, and the image marked.
    let file = try Self.image { _ in }
    let probe = try Qcow2Image(file)
    try probe.deleteSnapshot("s")
    try probe.close()
    let l1 = try file.bytes(at: 40, count: 8).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    let l2 =
      try file.bytes(at: l1, count: 8).reduce(UInt64(0)) { $0 << 8 | UInt64($1) } & 0x00ff_ffff_ffff_fe00
    try file.write(Self.big(1 << 63 | l2, 8), at: l2)
    let image = try Qcow2Image(file)
    #expect(throws: BlockError.self) { try image.write([1], at: 0) }
    #expect(throws: BlockError.self) { try image.write([1], at: 500_000) }
    try image.close()
    #expect(throws: BlockError.self) { try Qcow2Image(file) }
    var options = Qcow2Image.Options()
    options.isReadOnly = true
    _ = try Qcow2Image(file, options: options)
  }

  /// Random damage to the metadata: an error or wrong data, but no crash, no endless work.
  @Test(arguments: 0..<24) func damage(seed: Int) throws {
    var generator = SeededGenerator(seed: UInt64(seed) + 500)
    let pristine = try Self.image { _ in }
    let bytes = try pristine.bytes(at: 0, count: Int(pristine.byteCount))
    for _ in 0..<12 {
      var copy = bytes
      for _ in 0..<Int.random(in: 1...6, using: &generator) {
        // Half of the hits go to the header, the others to the tables behind it.
        let limit = Bool.random(using: &generator) ? 112 : copy.count
        let position = Int.random(in: 0..<limit, using: &generator)
        copy[position] = UInt8.random(in: 0...255, using: &generator)
      }
      let file = try MemoryNode(copy)
      do {
        var options = Qcow2Image.Options()
        options.isForCheck = true
        let image = try Qcow2Image(file, options: options)
        let size = min(image.byteCount, 1 << 20)
        if size > 0 { _ = try? image.bytes(at: 0, count: Int(size)) }
        _ = try? image.write([1, 2, 3], at: 70_000)
        _ = try? image.check(repair: .all)
        _ = try? image.close()
      } catch let error { _ = error }
    }
  }
}
