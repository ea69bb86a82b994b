import ApusFirmware
import Testing

@Suite struct ACPITests {
  private func number(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> Int {
    (0..<count).reduce(0) { $0 | Int(bytes[offset + $1]) << (8 * $1) }
  }
  private func name(_ bytes: [UInt8], _ offset: Int) -> String {
    String(decoding: bytes[offset..<offset + 56].prefix { $0 != 0 }, as: UTF8.self)
  }

  /// What firmware does: places the files, adds their addresses to pointers, computes checksums.
  @Test func loaderCommandsMakeTablesThatAreWhole() throws {
    var tables = ACPITables()
    var description = ACPITables.Body()
    description.append(AML.scope("\\_SB", AML.device("C000", AML.name("_HID", AML.string("ACPI0007")))))
    tables.add("DSDT", revision: 2, description)
    var fixed = ACPITables.Body()
    fixed.pad(to: 140)
    fixed.append(pointerTo: "DSDT")
    tables.add("FACP", revision: 6, fixed)
    var files = Dictionary(uniqueKeysWithValues: tables.files().map { ($0.name, $0.bytes) })
    let commands = try #require(files[ACPITables.loaderFile])
    #expect(commands.count % 128 == 0)
    var addresses: [String: Int] = [:]
    for at in stride(from: 0, to: commands.count, by: 128) {
      let file = name(commands, at + 4)
      switch number(commands, at, 4) {
      case 1:
        let alignment = number(commands, at + 60, 4)
        addresses[file] = (addresses.isEmpty ? 0xf_0010 : 0x4000_0000) / alignment * alignment
      case 2:
        let (offset, size) = (number(commands, at + 116, 4), number(commands, at + 120, 1))
        let target = try #require(addresses[name(commands, at + 60)])
        let sum = number(try #require(files[file]), offset, size) + target
        for k in 0..<size { files[file]![offset + k] = UInt8(truncatingIfNeeded: sum >> (8 * k)) }
      case 3:
        let (offset, start, count) = (
          number(commands, at + 60, 4), number(commands, at + 64, 4), number(commands, at + 68, 4)
        )
        let sum = try #require(files[file])[start..<start + count].reduce(UInt8(0), &+)
        files[file]![offset] = 0 &- sum
      default: Issue.record("unknown command")
      }
    }
    let root = try #require(files[ACPITables.rootFile])
    let all = try #require(files[ACPITables.tablesFile])
    let base = try #require(addresses[ACPITables.tablesFile])
    #expect(String(decoding: root.prefix(8), as: UTF8.self) == "RSD PTR ")
    #expect(root.prefix(20).reduce(0, &+) == 0 && root.reduce(0, &+) == 0)
    func table(_ address: Int) -> (signature: String, bytes: [UInt8]) {
      let start = address - base
      let bytes = Array(all[start..<start + number(all, start + 4, 4)])
      #expect(bytes.reduce(0, &+) == 0)
      return (String(decoding: bytes.prefix(4), as: UTF8.self), bytes)
    }
    let extended = table(number(root, 24, 8))
    #expect(extended.signature == "XSDT" && extended.bytes.count == 44)
    let found = table(number(extended.bytes, 36, 8))
    #expect(found.signature == "FACP" && found.bytes.count == 148)
    #expect(table(number(found.bytes, 140, 8)).signature == "DSDT")
  }

  @Test func lengthsCountThemselves() {
    // 63 bytes with the length fit one byte, more take two, 4095 are the last of those.
    for (count, expected) in [(60, 1), (61, 2), (4091, 2), (4092, 3)] {
      let code = AML.scope("\\", Array(repeating: 0xa3, count: count))
      let extra = Int(code[1] >> 6)
      #expect(extra + 1 == expected)
      let length =
        extra == 0
        ? Int(code[1]) : (1...extra).reduce(Int(code[1] & 15)) { $0 | Int(code[1 + $1]) << (8 * $1 - 4) }
      #expect(length == code.count - 1)
    }
    #expect(AML.path("\\_SB.PCI0") == Array("\\".utf8) + [0x2e] + Array("_SB_PCI0".utf8))
    #expect(AML.integer(0x1234) == [0x0b, 0x34, 0x12])
    #expect(
      AML.uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766").suffix(16).prefix(4) == [0x5b, 0x4d, 0xdb, 0x33])
  }
}
