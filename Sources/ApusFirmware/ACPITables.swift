/// ACPI tables as QEMU hands them to firmware: two files whose pointers and checksums the firmware fills in by the commands of
/// a third one, since it decides where they lie [QEMU docs, `etc/table-loader`; ACPI 6.5 §5.2].
public struct ACPITables {
  public static let tablesFile = "etc/acpi/tables"
  public static let rootFile = "etc/acpi/rsdp"
  public static let loaderFile = "etc/table-loader"

  /// A table's body, behind the common header of 36 bytes.
  public struct Body {
    var bytes: [UInt8] = []
    /// Offsets in the whole table of 8-byte pointers, and the tables that they point to.
    var pointers: [(offset: Int, table: String)] = []
    public init() {}
    public mutating func append(_ value: UInt64, _ byteCount: Int) { bytes += AML.bytes(value, byteCount) }
    public mutating func append(_ more: [UInt8]) { bytes += more }
    public mutating func append(pointerTo table: String) {
      pointers.append((36 + bytes.count, table))
      append(0, 8)
    }
    /// Zeros up to an offset in the whole table.
    public mutating func pad(to offset: Int) {
      bytes += Array(repeating: 0, count: max(0, offset - 36 - bytes.count))
    }
    /// An address in memory, for registers of `bitCount` [§5.2.3.2].
    public mutating func append(registerAt address: UInt64, bitCount: UInt64, accessSize: UInt64) {
      for value in [0, bitCount, 0, accessSize] { append(value, 1) }
      append(address, 8)
    }
  }

  private var tables: [UInt8] = []
  private var offsets: [(signature: String, offset: Int)] = []
  private var commands: [UInt8] = []

  public init() {
    commands += Self.allocation(Self.rootFile, alignment: 16, isLow: true)
    commands += Self.allocation(Self.tablesFile, alignment: 64, isLow: false)
  }

  /// Adds a table; those that it points to come before it.
  public mutating func add(_ signature: String, revision: UInt8, _ body: Body) {
    let start = tables.count
    offsets.append((signature, start))
    let length = 36 + body.bytes.count
    tables += Array(signature.utf8) + AML.bytes(UInt64(length), 4) + [revision, 0]
    tables += Array("APUS  VIRT    ".utf8) + AML.bytes(1, 4) + Array("APUS".utf8) + AML.bytes(1, 4)
    tables += body.bytes
    for pointer in body.pointers {
      guard let target = offsets.first(where: { $0.signature == pointer.table })?.offset else {
        preconditionFailure("table \(signature) points to \(pointer.table), which comes later")
      }
      commands += Self.point(&tables, Self.tablesFile, start + pointer.offset, to: target)
    }
    commands += Self.checksum(Self.tablesFile, offset: start + 9, start: start, length: length)
  }

  /// Appends the root tables, and gives the three files.
  public consuming func files() -> [(name: String, bytes: [UInt8])] {
    var root = Body()
    for (signature, _) in offsets where signature != "DSDT" { root.append(pointerTo: signature) }
    add("XSDT", revision: 1, root)
    var pointer: [UInt8] = Array("RSD PTR ".utf8) + [0] + Array("APUS  ".utf8) + [2] + AML.bytes(0, 4)
    pointer += AML.bytes(36, 4) + AML.bytes(0, 8) + [0, 0, 0, 0]
    commands += Self.point(&pointer, Self.rootFile, 24, to: offsets.last?.offset ?? 0)
    commands += Self.checksum(Self.rootFile, offset: 8, start: 0, length: 20)
    commands += Self.checksum(Self.rootFile, offset: 32, start: 0, length: 36)
    return [(Self.rootFile, pointer), (Self.tablesFile, tables), (Self.loaderFile, commands)]
  }

  /// A pointer of 8 bytes holds the offset in the tables' file; firmware adds where that is, by the command that is given.
  private static func point(_ bytes: inout [UInt8], _ file: String, _ offset: Int, to target: Int) -> [UInt8]
  {
    bytes.replaceSubrange(offset..<offset + 8, with: AML.bytes(UInt64(target), 8))
    return command(2, field(file) + field(tablesFile) + AML.bytes(UInt64(offset), 4) + [8])
  }

  // MARK: Loader commands, 128 bytes each

  private static func command(_ kind: UInt64, _ content: [UInt8]) -> [UInt8] {
    AML.bytes(kind, 4) + content + Array(repeating: 0, count: 124 - content.count)
  }
  private static func field(_ name: String) -> [UInt8] {
    Array(name.utf8) + Array(repeating: 0, count: 56 - name.utf8.count)
  }
  private static func allocation(_ file: String, alignment: UInt64, isLow: Bool) -> [UInt8] {
    command(1, field(file) + AML.bytes(alignment, 4) + [isLow ? 2 : 1])
  }
  private static func checksum(_ file: String, offset: Int, start: Int, length: Int) -> [UInt8] {
    command(3, field(file) + [offset, start, length].flatMap { AML.bytes(UInt64($0), 4) })
  }
}
