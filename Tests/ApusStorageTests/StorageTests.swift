import ApusBlock
import ApusConfig
import ApusCrypto
import ApusHost
import ApusImages
import ApusNBD
import ApusQcow2
import ApusStorage
import ApusTestKit
import Testing

/// A directory's worth of file names that go with the test.
final class TemporaryNames {
  private let prefix = "/tmp/apus-storage-\(HostProcess.identifier)-\(HostClock.monotonicNanoseconds())-"
  private var names: [String] = []
  func callAsFunction(_ name: String) -> String {
    names.append(prefix + name)
    return prefix + name
  }
  deinit { for name in names { removeFile(name) } }
}

@Suite struct StorageTests {
  @Test func graphOfOptions() throws {
    let names = TemporaryNames()
    let path = names("a.qcow2")
    let created = try ImageCreation(path, format: "qcow2", byteCount: 1 << 20).create()
    try created.node.write([1, 2, 3], at: 5)
    try created.node.close()
    let probed = try ImageGraph().open(path)
    #expect(probed.format == "qcow2" && probed.node.isReadOnly)
    #expect(try probed.node.bytes(at: 4, count: 5) == [0, 1, 2, 3, 0])
    let list = try OptionList(
      parsing: "driver=raw,offset=512,size=1024,file.driver=qcow2,file.file.filename=\(path)")
    #expect(try ImageGraph().open(list).node.byteCount == 1024)
    let json = "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"\(path)\"}}"
    #expect(try ImageGraph().open(json).format == "qcow2")
    #expect(throws: StorageError.self) { try ImageGraph().open("json:{\"driver\":\"qcow2\",\"nosuch\":1}") }
    #expect(throws: StorageError.self) { try ImageGraph().open("nosuch:thing") }
    let named = ImageGraph(named: { $0 == "below" ? probed : nil })
    #expect(try named.open(try OptionList(parsing: "driver=raw,file=below")).node.byteCount == 1 << 20)
  }

  @Test func names() {
    #expect(FileNames.resolve("b.raw", from: "/d/a.qcow2") == "/d/b.raw")
    #expect(FileNames.resolve("/b.raw", from: "/d/a.qcow2") == "/b.raw")
    #expect(FileNames.resolve("nbd://h/e", from: "/d/a.qcow2") == "nbd://h/e")
    #expect(FileNames.resolve("json:{}", from: "/d/a.qcow2") == "json:{}")
  }

  @Test func probedRawStaysRaw() throws {
    let names = TemporaryNames()
    let path = names("a.img")
    try ImageCreation(path, format: "raw", byteCount: 1 << 20).create().node.close()
    var options = OpenOptions()
    options.isReadOnly = false
    let probed = try ImageGraph(options).open(path)
    #expect(probed.format == "raw")
    let magic: [UInt8] = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]
    try probed.node.write([0xeb, 0x58], at: 0)
    #expect(throws: BlockError.self) { try probed.node.write(magic, at: 0) }
    #expect(throws: BlockError.self) { try probed.node.write(Array("LUKS".utf8) + [0xba, 0xbe], at: 0) }
    // In two steps, neither of which looks like it alone.
    try probed.node.write(Array(magic[2...]), at: 2)
    #expect(throws: BlockError.self) { try probed.node.write(Array(magic[..<2]), at: 0) }
    try probed.node.write(magic, at: 512)
    #expect(try probed.node.bytes(at: 0, count: 2) == [0xeb, 0x58])
    try probed.node.close()
    let named = try ImageGraph(options).open(path, format: "raw")
    try named.node.write(Array("QED\0".utf8), at: 0)
    try named.node.close()
    #expect(throws: StorageError.self) { try ImageGraph().open(path) }
  }

  @Test func copyLeavesHoles() throws {
    let source = MemoryNode(byteCount: 8 << 20)
    try source.write([UInt8](repeating: 5, count: 100_000), at: 3 << 20)
    try source.write([UInt8](repeating: 0, count: 100_000), at: 6 << 20)
    let target = MemoryNode(byteCount: 8 << 20)
    var options = ImageCopier.Options()
    options.targetIsZero = true
    try ImageCopier(from: [OpenedImage(source, filename: "", format: "raw")], to: target, options).run()
    #expect(try target.bytes(at: 0, count: 8 << 20) == source.bytes(at: 0, count: 8 << 20))
    #expect(target.allocatedByteCount <= 192 << 10)
  }

  @Test func networkBlockDevice() throws {
    let names = TemporaryNames()
    let socket = names("socket")
    let image = MemoryNode(byteCount: 4 << 20)
    let export = NBDExport(image, name: "disk") { (offset, count) throws(BlockError) in
      (image.status(at: offset, byteCount: count), 1)
    }
    let listener = try HostListener(.unix(path: socket))
    let server = NBDServer([export], listener: listener, connectionLimit: 0, isPersistent: true)
    let thread = HostThread.spawn("server") { server.run() }
    var configuration = NBDNode.Configuration(.unix(path: socket))
    let exports = try NBDNode.list(configuration).map(\.name)
    #expect(exports == ["disk"])
    configuration.export = "other"
    let other = configuration
    #expect(throws: BlockError.self) { try NBDNode(other) }
    configuration.export = "disk"
    configuration.connectionCount = 3
    let node = try NBDNode(configuration)
    #expect(node.byteCount == 4 << 20)
    // Several threads share the connection.
    let threads = (0..<4).map { number in
      HostThread.spawn("client") {
        do {
          for block in stride(from: number, to: 64, by: 4) {
            try node.write([UInt8](repeating: UInt8(block + 1), count: 5000), at: UInt64(block) * 65536)
            #expect(
              try node.bytes(at: UInt64(block) * 65536 + 4000, count: 1000).allSatisfy {
                $0 == UInt8(block + 1)
              })
          }
        } catch { Issue.record("\(error)") }
      }
    }
    for thread in threads { thread.join() }
    #expect(throws: BlockError.self) { try node.write([1], at: 4 << 20) }
    try node.writeZeroes(at: 0, byteCount: 65536, mayUnmap: true)
    #expect(try node.status(at: 0, byteCount: 65536).isZero)
    #expect(try node.status(at: 65536, byteCount: 5000).isData)
    try node.close()
    server.stop()
    thread.join()
  }

  /// A peer that sends nonsense is let go, and others are served.
  @Test func nonsenseClients() throws {
    var generator = SeededGenerator(seed: 11)
    let names = TemporaryNames()
    let socket = names("socket")
    let image = MemoryNode(byteCount: 1 << 20)
    let export = NBDExport(image, name: "") { (offset, count) throws(BlockError) in
      (image.status(at: offset, byteCount: count), 1)
    }
    let server = NBDServer(
      [export], listener: try HostListener(.unix(path: socket)), connectionLimit: 0, isPersistent: true)
    let thread = HostThread.spawn("server") { server.run() }
    for round in 0..<60 {
      let stream = try HostStream(connectingTo: .unix(path: socket))
      var bytes = generator.bytes(200)
      if round % 2 == 0 {
        // A right start, so that the options are reached.
        bytes =
          [0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [
            0, 0, 0, UInt8(generator.below(12)), 0, 0, 0, UInt8(generator.below(40)),
          ] + bytes
      }
      do { try stream.send([HostBuffer(bytes).io]) } catch { continue }
      stream.shutDown()
    }
    let node = try NBDNode(NBDNode.Configuration(.unix(path: socket)))
    #expect(try node.bytes(at: 0, count: 10) == [UInt8](repeating: 0, count: 10))
    try node.close()
    server.stop()
    thread.join()
  }

  /// Headers of the foreign formats with random damage are errors or other images, never crashes.
  @Test(arguments: ["vdi", "vpc", "vmdk", "vhdx"]) func damagedHeaders(format: String) throws {
    var generator = SeededGenerator(seed: 21)
    let pristine = MemoryNode()
    switch format {
    case "vdi": try VDI.create(3 << 20, on: pristine)
    case "vpc": try VPC.create(3 << 20, on: pristine)
    case "vhdx": try VHDX.create(3 << 20, on: pristine)
    default: try VMDK.create(3 << 20, on: pristine)
    }
    let bytes = try pristine.bytes(at: 0, count: Int(pristine.byteCount))
    for _ in 0..<120 {
      var copy = bytes
      for _ in 0..<generator.below(4) + 1 {
        // VHDX has its tables further behind, and checksums in front of most.
        let base = format == "vhdx" ? [2 << 20, 2 << 20 + 65536, 3 << 20, 65536][generator.below(4)] : 0
        copy[base + generator.below(min(copy.count - base, 2048))] = UInt8(
          truncatingIfNeeded: generator.next())
      }
      let file = try MemoryNode(copy)
      let node: any ImageNode
      do {
        switch format {
        case "vdi": node = try VDI.open(file)
        case "vpc": node = try VPC.open(file)
        case "vhdx": node = try VHDX.open(file)
        default: node = try VMDK.open(file) { (_) throws(BlockError) in MemoryNode(byteCount: 1 << 20) }
        }
      } catch { continue }
      let count = Int(min(node.byteCount, 1 << 18))
      _ = try? node.bytes(at: 0, count: count)
      if node.byteCount > 4096 { _ = try? node.write([1, 2, 3], at: node.byteCount - 4096) }
      _ = try? node.status(at: 0, byteCount: node.byteCount)
      _ = try? node.close()
    }
  }

  // MARK: Fuzzing

  /// Images of formats that are only read: a small one of each, made by hand.
  static func parallels() -> [UInt8] {
    let buffer = HostBuffer(byteCount: 3 * 65536)
    for (index, byte) in "WithoutFreeSpace".utf8.enumerated() { buffer.bytes[index] = byte }
    buffer.setLittle(16, UInt32(2))
    buffer.setLittle(28, UInt32(128))
    buffer.setLittle(32, UInt32(4))
    buffer.setLittle(36, UInt64(512))
    buffer.setLittle(64, UInt32(128))
    buffer.setLittle(72, UInt32(256))
    return buffer.array()
  }
  static func qed() -> [UInt8] {
    let buffer = HostBuffer(byteCount: 5 * 65536)
    for (index, byte) in [0x51, 0x45, 0x44, 0].enumerated() { buffer.bytes[index] = UInt8(byte) }
    buffer.setLittle(4, UInt32(65536))
    buffer.setLittle(8, UInt32(1))
    buffer.setLittle(12, UInt32(1))
    buffer.setLittle(40, UInt64(65536))
    buffer.setLittle(48, UInt64(4 << 20))
    buffer.setLittle(65536, UInt64(131_072))
    buffer.setLittle(131_072, UInt64(196_608))
    buffer.setLittle(131_080, UInt64(1))
    return buffer.array()
  }
  static func descriptor() -> [UInt8] {
    Array(
      """
      # Disk DescriptorFile
      version=1
      CID=12345678
      parentCID=ffffffff
      createType="twoGbMaxExtentSparse"
      RW 1024 FLAT "a.vmdk" 0
      RW 512 ZERO
      RW 1024 FLAT "b.vmdk" 16
      """.utf8)
  }

  /// Damage of any kind to what parsers read: an error or another image, never a crash, and never much memory or time.
  @Test(arguments: ["parallels", "qed", "dmg", "descriptor", "luks", "log"]) func fuzz(format: String) throws
  {
    var generator = SeededGenerator(seed: UInt64(format.utf8.reduce(0) { $0 &* 31 &+ Int($1) }))
    let rounds = 150 * (Int(HostPath.environment("APUS_FUZZ_FACTOR") ?? "") ?? 1)
    var pristine: [UInt8]
    switch format {
    case "parallels": pristine = Self.parallels()
    case "qed": pristine = Self.qed()
    case "descriptor": pristine = Self.descriptor()
    case "luks":
      var parameters = LUKSHeader.Parameters(passphrase: [1, 2, 3])
      parameters.iterationMilliseconds = 1
      pristine = try LUKSHeader.make(parameters).bytes
    case "dmg":
      pristine = [UInt8](repeating: 0, count: 2048)
      let table = HostBuffer(byteCount: 204 + 80)
      for (index, byte) in "mish".utf8.enumerated() { table.bytes[index] = byte }
      table.setBig(200, UInt32(2))
      table.setBig(204, UInt32(1))
      table.setBig(220, UInt64(2))
      table.setBig(236, UInt64(1024))
      table.setBig(244, UInt32(0xffff_ffff))
      let letters = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
      let bytes = table.array() + [0]
      var text: [UInt8] = []
      for start in stride(from: 0, to: bytes.count - 2, by: 3) {
        let value = UInt32(bytes[start]) << 16 | UInt32(bytes[start + 1]) << 8 | UInt32(bytes[start + 2])
        text += [18, 12, 6, 0].map { letters[Int(value >> UInt32($0) & 63)] }
      }
      let list =
        Array("<key>blkx</key><array><dict><data>".utf8) + text + Array("</data></dict></array>".utf8)
      let trailer = HostBuffer(byteCount: 512)
      for (index, byte) in "koly".utf8.enumerated() { trailer.bytes[index] = byte }
      trailer.setBig(8, UInt32(512))
      trailer.setBig(0xd8, UInt64(2048))
      trailer.setBig(0xe0, UInt64(list.count))
      trailer.setBig(492, UInt64(2))
      let padding = [UInt8](repeating: 32, count: (512 - list.count % 512) % 512)
      pristine += list + padding + trailer.array()
    default:
      let file = MemoryNode()
      try VHDX.create(3 << 20, on: file)
      pristine = try file.bytes(at: 0, count: Int(file.byteCount))
      // A log that is named, with an entry's signature and random bytes.
      for header in [65536, 131_072] {
        pristine.replaceSubrange(header + 48..<header + 64, with: Array(1...16))
      }
      pristine.replaceSubrange(1 << 20..<1 << 20 + 4, with: Array("loge".utf8))
    }
    for round in 0..<rounds {
      var copy = pristine
      if round > 0 {
        for _ in 0..<generator.below(5) + 1 {
          let limit = format == "log" ? 8192 : min(copy.count, format == "luks" ? 592 : 70_000)
          let base = format == "log" ? 1 << 20 : Bool.random(using: &generator) ? 0 : copy.count - limit
          copy[base + generator.below(min(limit, 600))] = UInt8(truncatingIfNeeded: generator.next())
          if format == "luks" {
            // Iterations cost time, as they are meant to.
            for place in [164] + (0..<8).map({ 212 + 48 * $0 }) { (copy[place], copy[place + 1]) = (0, 0) }
          }
        }
        if generator.below(6) == 0 { copy.removeLast(generator.below(copy.count)) }
      }
      let file = try MemoryNode(copy)
      let node: any ImageNode
      do {
        switch format {
        case "parallels": node = try Parallels.open(file)
        case "qed": node = try QED.open(file)
        case "dmg": node = try DMGNode(file)
        case "luks": node = try LUKSNode(file, passphrase: [1, 2, 3])
        case "descriptor":
          node = try VMDK.open(file) { (_) throws(BlockError) in MemoryNode(byteCount: 1 << 20) }
        default: node = try VHDX.open(file)
        }
      } catch {
        if round == 0, format != "log" { Issue.record("\(format): \(error)") }
        continue
      }
      let size = node.byteCount
      if size > 0 {
        _ = try? node.bytes(at: 0, count: Int(min(size, 1 << 18)))
        _ = try? node.bytes(at: size - min(size, 4096), count: Int(min(size, 4096)))
        _ = try? node.status(at: size / 2, byteCount: size - size / 2)
      }
      _ = try? node.close()
    }
  }
}

@Suite struct FileNameOptionTests {
  private static func options(_ text: String, of name: String) throws -> [String: String] {
    let list = try FileNames.options(try OptionList(parsing: text), of: name)
    return Dictionary(list.entries.map { ($0.key, $0.value) }) { _, last in last }
  }

  @Test func nameGoesBelowFormatsAndFilters() throws {
    #expect(try Self.options("driver=qcow2", of: "a")["file.filename"] == "a")
    #expect(try Self.options("cache.direct=on", of: "a")["file.filename"] == "a")
    #expect(try Self.options("driver=file", of: "a")["filename"] == "a")
    #expect(try Self.options("driver=copy-on-read,file.driver=qcow2", of: "a")["file.file.filename"] == "a")
    #expect(
      try Self.options("driver=copy-on-read,file.driver=blkdebug,file.image.driver=qcow2", of: "a")[
        "file.image.file.filename"] == "a")
    #expect(
      try Self.options("driver=blkdebug,image.driver=qcow2", of: "blkdebug::a")["image.file.filename"] == "a")
  }

  @Test func jsonNamesAreMerged() throws {
    let merged = try Self.options("driver=qcow2", of: #"json:{"driver": "raw", "file.filename": "a"}"#)
    #expect(merged == ["driver": "qcow2", "file.filename": "a"])
    let none = try OptionList(parsing: #"{"backing": null, "file": {"filename": "a", "x": null}}"#)
    #expect(none["backing"] == "" && none["file.x"] == nil)
  }
}
