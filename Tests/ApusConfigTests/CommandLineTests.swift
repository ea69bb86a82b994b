import ApusConfig
import ApusTestKit
import Testing

@Suite struct CommandLineTests {
  func run(_ line: String) throws -> MachineConfiguration {
    try run(line.split(separator: " ").map(String.init))
  }
  func run(_ arguments: [String]) throws -> MachineConfiguration {
    guard case .run(let configuration) = try SystemCommandLine.parse(arguments).get() else {
      throw ConfigurationError("not a machine")
    }
    return configuration
  }

  @Test func aUsualLine() throws {
    let result = try run(
      "-M virt -smp 4 -m 2G -cpu rv64,zbb=off,svpbmt=on -kernel Image -initrd i.cpio -append quiet -nographic "
        + "-bios fw.bin -accel tcg,verify=on -no-reboot -d guest_errors,int -drive if=virtio,file=a,,b.img")
    #expect(result.cpuCount == 4 && result.memoryByteCount == 2 << 30)
    #expect(!result.cpu.extensions.contains("zbb") && result.cpu.extensions.contains("svpbmt"))
    #expect(result.firmware == .file("fw.bin") && result.commandLine == "quiet" && result.noReboot)
    #expect(result.accelerators == [.init("jit", .init([.init("verify", "on")]))])
    #expect(result.logItems == ["guest_errors", "int"])
    #expect(result.drives[0]["file"] == "a,b.img")
    #expect(result.serials == ["serial0"])
    #expect(result.charDevs == [.init(id: "serial0", kind: .stdio(signals: false), isMultiplexed: true)])
  }

  @Test(arguments: [
    ("512", 512 << 20), ("1.5G", 3 << 29), ("64M", 64 << 20), ("65536k", 64 << 20), ("size=1g", 1 << 30),
  ]) func sizes(_ text: String, _ bytes: UInt64) throws {
    #expect(try run(["-m", text]).memoryByteCount == bytes)
  }

  @Test(arguments: [
    ("-smp 4", 4), ("-smp cpus=2,maxcpus=4", 2), ("-smp cores=2,threads=2", 4),
    ("-smp 8,sockets=2,cores=4", 8),
  ]) func cpuCounts(_ line: String, _ count: Int) throws { #expect(try run(line).cpuCount == count) }

  @Test(arguments: [
    ("-M virr", "unknown machine 'virr'; did you mean 'virt'?"),
    ("-kernal x", "unknown option '-kernal'; did you mean '-kernel'?"),
    ("-smp 9", "-smp 9: machines have at most 8 CPUs here"),
    ("-smp 0", "-smp: cpus is '0'; it must be a number from 1 to 1024"),
    ("-cpu rv64,zbbb=on", "unknown property of CPU rv64 'zbbb'; did you mean 'zbb'?"),
    ("-cpu rv46", "unknown CPU 'rv46'; did you mean 'rv64'?"),
    ("-m x", "-m 'x': it must be a size like 512, 512M or 2G"),
    ("-m 99999999999999999999G", "-m '99999999999999999999G': it must be a size like 512, 512M or 2G"),
    ("-global a.b=c", "option '-global' is not implemented yet"),
    ("-kernel", "option '-kernel' needs a value: -kernel FILE  the kernel: ELF or Image"),
    ("-M virt,aia=aplic", "-machine virt: aia is 'aplic'; only none (a PLIC) is implemented"),
    ("-M virt,dumpdbt=x", "unknown property of machine virt 'dumpdbt'; did you mean 'dumpdtb'?"),
    ("-serial stdoi", "unknown character device 'stdoi'; did you mean 'stdio'?"),
    ("-serial chardev:x", "unknown chardev 'x'; there are: "),
    ("-serial tcp:host", "character device 'tcp:host': the address must be host:port"),
    ("-chardev file,id=a", "-chardev file: path= is missing"),
    ("-initrd x", "-initrd needs -kernel"),
    ("-device {\"driver\":1", "JSON value '{\"driver\":1': no '}' at byte 11"),
    ("disk.img", "unexpected argument 'disk.img'; a disk is given as -drive file=disk.img"),
    ("-accel kvm", "-accel kvm: this host cannot run riscv64 guests natively; use jit"),
  ]) func refusals(_ line: String, _ message: String) {
    #expect(throws: ConfigurationError(message)) { try run(line) }
  }

  @Test func serialDevices() throws {
    func kind(_ text: String) throws -> CharDevConfiguration.Kind? {
      try run(["-serial", text]).charDevs.first?.kind
    }
    #expect(try kind("null") == .null)
    #expect(try kind("pty") == .pty)
    #expect(try kind("stdio") == .stdio(signals: true))
    #expect(try kind("file:/tmp/x") == .file(path: "/tmp/x", append: false))
    var socket = CharDevConfiguration.Socket(address: .tcp(host: "::1", port: 99))
    (socket.isServer, socket.waits) = (true, false)
    #expect(try kind("tcp:[::1]:99,server=on,wait=off") == .socket(socket))
    #expect(try kind("tcp:[::1]:99,server,nowait") == .socket(socket))
    #expect(try kind("unix:/s") == .socket(.init(address: .unix(path: "/s"))))
    #expect(try run("-serial none").serials == [nil])
    #expect(try run("-nodefaults").serials == [])
    #expect(try run("-display none").charDevs.map(\.kind) == [.null])
    #expect(try run("-chardev null,id=c -serial chardev:c").serials == ["c"])
  }

  @Test func jsonBecomesDottedKeys() throws {
    let text =
      #"{"driver":"raw","node-name":"d","read-only":true,"file":{"driver":"file","filename":"a,b\u00e9"}}"#
    let node = try run(["-blockdev", text]).blockDevices[0]
    #expect(node.name == "raw" && node.options["read-only"] == "on")
    #expect(node.options.nested("file")["filename"] == "a,bé")
  }

  @Test(arguments: [
    (["-M", "help"], "virt"), (["-cpu", "help"], "zba=on"), (["-accel", "help"], "jit"),
    (["-help"], "-kernel"),
  ]) func helps(_ arguments: [String], _ part: String) throws {
    guard case .show(let text) = try SystemCommandLine.parse(arguments).get() else {
      Issue.record("no help")
      return
    }
    #expect(text.contains(part))
  }

  @Test func otherInvocations() throws {
    #expect(try SystemCommandLine.parse(["-device", "help"]).get() == .listDevices)
    #expect(try SystemCommandLine.parse(["-device", "x,help"]).get() == .describeDevice("x"))
    #expect(try SystemCommandLine.parse(["--version"]).get() == .showVersion)
  }

  @Test func dates() throws {
    #expect(try run("-rtc base=2000-03-01T00:00:01").rtcBase == .date(951_868_801))
    #expect(try run("-rtc base=1970-01-01").rtcBase == .date(0))
  }

  /// Anything at all gives a configuration or a message, and a message is one line.
  @Test(arguments: 1...6 as ClosedRange<UInt64>) func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let words = [
      "-M", "virt", "-m", "-smp", "cpus=", "-cpu", "rv64", ",", ",,", "=", "on", "off", "{", "}", "\"a\":",
      "[", "1",
      "-device", "-drive", "file=", "-serial", "tcp:", ":", "mon:", "stdio", "unix:", "-chardev", "socket",
      "id=a",
      "port=1", "-blockdev", "driver", "0x", "9999999999", "-rtc", "base=", "2000-01-01", "T", "1.5G", "é",
      "\0", "-",
      "-uuid", "-netdev", "-fw_cfg", "name=", "string=", "\\u", "-accel", "server", "nowait", "-name", "help",
    ]
    for _ in 0..<fuzzRounds(3000) {
      var arguments: [String] = []
      for _ in 0..<random.below(6) {
        arguments.append((0...random.below(4)).map { _ in random.pick(words) }.joined())
        if random.below(3) == 0 { arguments.append(random.pick(words)) }
      }
      if random.below(8) == 0 {
        arguments.append(String(decoding: random.bytes(random.below(20)), as: UTF8.self))
      }
      if case .failure(let error) = SystemCommandLine.parse(arguments) { #expect(!error.description.isEmpty) }
    }
  }
}
