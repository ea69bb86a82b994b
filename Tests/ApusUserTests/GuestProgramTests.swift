import ApusHost
import Testing

/// Programs under Tests/Guests/riscv64 on apus-user, on every engine, against qemu-riscv64-static where it is there.
@Suite(.serialized)
struct GuestProgramTests {
  static let compiler = "/usr/bin/riscv64-linux-gnu-gcc"
  static let reference = "/usr/bin/qemu-riscv64-static"
  static var canCompile: Bool { HostProcess.isExecutable(compiler) }

  /// Directory of this package and of the built products.
  static let sources = String(#filePath.dropLast("Tests/ApusUserTests/GuestProgramTests.swift".count))
  static let products: String = {
    // The test bundle lies beside the tools.
    for argument in CommandLine.arguments where argument.contains(".xctest") {
      let parts = argument.split(separator: "/", omittingEmptySubsequences: false)
      if let index = parts.firstIndex(where: { $0.hasSuffix(".xctest") }) {
        return parts[..<index].joined(separator: "/")
      }
    }
    return HostProcess.programDirectory
  }()
  static let emulator = products + "/apus-user"
  static let scratch: String = {
    let directory = "/tmp/apus-user-tests-\(HostProcess.identifier)"
    HostProcess.makeDirectory(directory)
    return directory
  }()

  private static func compile(_ name: String) -> String {
    let program = scratch + "/" + name
    let outcome = HostProcess.run(
      [
        compiler, "-static", "-O2", "-w", "-o", program, sources + "Tests/Guests/riscv64/\(name).c", "-lm",
        "-lpthread",
      ],
      into: program + ".log")
    #expect(outcome.code == 0, "\(String(decoding: outcome.errors, as: UTF8.self))")
    return program
  }

  static let programs = [
    "compute", "files", "signals", "processes", "threads", "selfmodify", "vfork", "delivery", "interfaces",
    "trace",
    "filters", "sharing", "limits",
  ]
  /// QEMU runs children only with binfmt_misc, copies memory for vfork, and lacks some interfaces.
  static let withoutReference: Set = [
    "processes", "vfork", "interfaces", "trace", "filters", "sharing", "limits",
  ]
  static let engines = ["jit", "interpreter", "jit,opt=none", "jit,host-level=sse4"]

  @Test(.enabled(if: canCompile), arguments: programs)
  func program(_ name: String) {
    let program = Self.compile(name)
    for engine in Self.engines {
      let outcome = HostProcess.run(
        [Self.emulator, "-accel", engine, program], into: Self.scratch + "/output")
      let text = String(decoding: outcome.output, as: UTF8.self)
      #expect(outcome.code == 0, "\(engine): \(String(decoding: outcome.errors, as: UTF8.self))")
      #expect(!text.contains(": FAILED") && !text.isEmpty, "\(engine):\n\(text)")
      if HostProcess.isExecutable(Self.reference), !Self.withoutReference.contains(name) {
        let expected = HostProcess.run([Self.reference, program], into: Self.scratch + "/expected")
        #expect(expected.output == outcome.output, "\(engine)")
      }
    }
  }

  @Test(.enabled(if: canCompile))
  func lockstep() {
    let program = Self.compile("compute")
    let outcome = HostProcess.run(
      [Self.emulator, "-accel", "jit,verify=on", program], into: Self.scratch + "/output")
    #expect(outcome.code == 0, "\(String(decoding: outcome.errors, as: UTF8.self))")
  }

  @Test(arguments: [
    ("/nonexistent", Int32(127), "No such file"), ("/etc/passwd", 126, "not an ELF file"),
    ("/tmp", 126, "not a regular file"), ("/bin/ls", 126, "machine is 62"),
  ])
  func refusals(_ path: String, _ code: Int32, _ message: String) {
    let outcome = HostProcess.run([Self.emulator, path], into: Self.scratch + "/refusal")
    let text = String(decoding: outcome.errors, as: UTF8.self)
    #expect(outcome.code == code)
    #expect(text.contains(message) && text.split(separator: "\n").count == 1, "\(text)")
  }

  @Test func options() {
    let version = HostProcess.run([Self.emulator, "-version"], into: Self.scratch + "/option")
    #expect(version.code == 0 && String(decoding: version.output, as: UTF8.self).contains("version"))
    let wrong = HostProcess.run([Self.emulator, "-nonsense"], into: Self.scratch + "/option")
    #expect(wrong.code == 1 && String(decoding: wrong.errors, as: UTF8.self).contains("'-nonsense'"))
  }

  /// A bounded run of the random-program test; `apus-difftest --blocks 100000` is the long one.
  @Test func randomBlocks() {
    let outcome = HostProcess.run(
      [Self.products + "/apus-difftest", "--blocks", "2000", "--emulator", Self.emulator],
      into: Self.scratch + "/difftest")
    #expect(outcome.code == 0, "\(String(decoding: outcome.output, as: UTF8.self))")
  }

  @Test(arguments: ["riscv64", "aarch64"]) func randomBlocksWithoutAVX(_ isa: String) {
    let outcome = HostProcess.run(
      [
        Self.products + "/apus-difftest", "--isa", isa, "--blocks", "1000", "--seed", "50", "--host-level",
        "sse4",
      ], into: Self.scratch + "/sse4")
    #expect(outcome.code == 0, "\(String(decoding: outcome.output, as: UTF8.self))")
  }

  @Test func randomBlocksOfAArch64() {
    let outcome = HostProcess.run(
      [Self.products + "/apus-difftest", "--isa", "aarch64", "--blocks", "2000"], into: Self.scratch + "/arm")
    #expect(outcome.code == 0, "\(String(decoding: outcome.output, as: UTF8.self))")
  }
}
