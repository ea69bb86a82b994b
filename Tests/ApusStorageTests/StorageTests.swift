import ApusBlock
import ApusConfig
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
    let created = try ImageCreation(path, format: "qcow2", byteCount: 1 << 20).create().image
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
    try ImageCreation(path, format: "raw", byteCount: 1 << 20).create().image.node.close()
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
    #expect(try NBDNode.list(.unix(path: socket)).map(\.name) == ["disk"])
    #expect(throws: BlockError.self) { try NBDNode(.unix(path: socket), export: "other") }
    let node = try NBDNode(.unix(path: socket), export: "disk")
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
    let node = try NBDNode(.unix(path: socket))
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
        default: node = try VMDK.open(file)
        }
      } catch { continue }
      let count = Int(min(node.byteCount, 1 << 18))
      _ = try? node.bytes(at: 0, count: count)
      if node.byteCount > 4096 { _ = try? node.write([1, 2, 3], at: node.byteCount - 4096) }
      _ = try? node.status(at: 0, byteCount: node.byteCount)
      _ = try? node.close()
    }
  }
}
