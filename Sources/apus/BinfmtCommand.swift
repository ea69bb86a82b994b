import ApusHost

/// `apus binfmt install|remove|status|file`: the user-mode emulators in the kernel's binfmt_misc.
struct BinfmtCommand {
  private struct Failure: Error { var message: String }

  static let help = """
    usage: apus binfmt install|remove|status|file [OPTIONS]

      install   register the emulator, for this boot
      remove    take the registration back
      status    say what handles the guest's programs; exit code 0 if it is ours
      file      print the line that systemd registers at every boot (systemd-binfmt)

      --isa NAME         riscv64 (without it) or aarch64
      --emulator FILE    the emulator, a static program (apus-NAME beside this command)
      --credentials      programs with set-user-id bits get their owner's rights (the kernel's C flag): only for an
                         emulator that those owners trust
      --no-argv0         leave the P flag out: programs see their path as their own name, whatever they were called by
      --systemd          install and remove: the file in /etc/binfmt.d (APUS_BINFMT_D), too
      --force            register although another handler takes these programs; ours comes first then

    The F flag makes the kernel keep the emulator open, so that it works in chroots and containers. An instance in a
    user namespace of one's own works without root (Linux 6.7); APUS_BINFMT names its directory.

    """

  static func run(_ arguments: [String]) -> Int32 {
    if let first = arguments.first, ["--help", "-help", "-h", "help"].contains(first) {
      writeStandardOutput(help)
      return 0
    }
    do throws(Failure) {
      var command = try BinfmtCommand(arguments)
      return try command.run()
    } catch {
      writeStandardError("apus binfmt: \(error.message)\n")
      return 1
    }
  }

  private let verb: String
  private var guest = BinfmtGuest.all[0]
  private var emulator: String?
  private var keepsArgumentZero = true
  private var usesCredentials = false
  private var writesFile = false
  private var isForced = false
  private let directory = HostProcess.environment("APUS_BINFMT") ?? "/proc/sys/fs/binfmt_misc"
  private let files = HostProcess.environment("APUS_BINFMT_D") ?? "/etc/binfmt.d"

  private init(_ arguments: [String]) throws(Failure) {
    var rest = arguments[...]
    guard let verb = rest.popFirst(), ["install", "remove", "status", "file"].contains(verb) else {
      throw Failure(message: "say install, remove, status or file; --help tells more")
    }
    self.verb = verb
    while let word = rest.popFirst() {
      switch word {
      case "--isa":
        guard let name = rest.popFirst() else { throw Failure(message: "--isa needs a name") }
        guard let known = BinfmtGuest.all.first(where: { $0.name == name }) else {
          let names = BinfmtGuest.all.map(\.name).joined(separator: " and ")
          throw Failure(message: "there is no guest '\(name)'; there are \(names)")
        }
        guest = known
      case "--emulator":
        guard let file = rest.popFirst() else { throw Failure(message: "--emulator needs a file") }
        emulator = file
      case "--credentials": usesCredentials = true
      case "--no-argv0": keepsArgumentZero = false
      case "--systemd" where verb == "install" || verb == "remove": writesFile = true
      case "--force" where verb == "install": isForced = true
      default: throw Failure(message: "\(verb) has no option '\(word)'; --help lists them")
      }
    }
  }

  private var name: String { "apus-\(guest.name)" }
  private var entryPath: String { "\(directory)/\(name)" }
  private var filePath: String { "\(files)/\(name).conf" }

  private mutating func run() throws(Failure) -> Int32 {
    switch verb {
    case "install": try install()
    case "remove": try remove()
    case "file": writeStandardOutput(try registration().line + "\n")
    default: return status()
    }
    return 0
  }

  // MARK: Verbs

  private func install() throws(Failure) {
    let registration = try registration()
    if !HostDescriptor.exists("\(directory)/register") {
      do throws(HostError) { try HostFileSystem.mount("binfmt_misc", on: directory) } catch {
        throw Failure(message: "\(error.description); it needs root, or a user namespace of one's own")
      }
    }
    let others = others()
    if !others.isEmpty, !isForced {
      let names = others.joined(separator: ", ")
      throw Failure(
        message: "\(guest.name) programs are handled by \(names) already; --force puts ours in front")
    }
    do throws(HostError) {
      if HostDescriptor.exists(entryPath) { try HostDescriptor.replace(entryPath, with: Array("-1".utf8)) }
      try HostDescriptor.replace("\(directory)/register", with: Array(registration.line.utf8))
      guard writesFile else { return }
      try HostFileSystem.makeDirectory(files)
      try HostDescriptor.replace(filePath, with: Array((registration.line + "\n").utf8))
    } catch { throw Failure(message: error.description) }
  }

  private func remove() throws(Failure) {
    if writesFile { HostDescriptor.remove(filePath) }
    guard HostDescriptor.exists(entryPath) else { throw Failure(message: "'\(name)' is not registered") }
    do throws(HostError) {
      try HostDescriptor.replace(entryPath, with: Array("-1".utf8))
    } catch { throw Failure(message: error.description) }
  }

  private func status() -> Int32 {
    let others = others()
    if !others.isEmpty { writeStandardOutput("other handlers: \(others.joined(separator: ", "))\n") }
    guard let bytes = try? HostDescriptor.contents(entryPath) else {
      writeStandardOutput("\(name): not registered\n")
      return 1
    }
    for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
      writeStandardOutput("\(name): \(line)\n")
    }
    return 0
  }

  /// The names of the handlers that take the guest's programs, ours left out.
  private func others() -> [String] {
    let names = (try? HostFileSystem.names(directory)) ?? []
    return names.filter { other in
      guard other != "register", other != "status", other != name,
        let bytes = try? HostDescriptor.contents("\(directory)/\(other)")
      else { return false }
      let entry = BinfmtEntry(other, String(decoding: bytes, as: UTF8.self))
      return guest.samples.contains { entry.takes($0) }
    }
  }

  // MARK: The emulator

  private func registration() throws(Failure) -> BinfmtRegistration {
    // Its name says which guest's it is: links are not followed.
    let path = HostFileSystem.absolutePath(keepingLinks: emulator ?? "\(ownDirectory)/\(name)")
    guard HostProcess.isExecutable(path), let bytes = try? HostDescriptor.contents(path) else {
      throw Failure(message: "there is no emulator '\(path)'; --emulator names another")
    }
    // A dynamic one would not find its libraries in a chroot.
    guard let isStatic = Self.isStatic(bytes) else {
      throw Failure(message: "'\(path)' is not an ELF program")
    }
    guard isStatic else { throw Failure(message: "'\(path)' is not static") }
    guard !path.contains(":") else {
      throw Failure(message: "the path '\(path)' contains a colon, which separates the registration's fields")
    }
    // The kernel's limit of interpreter paths, and of the line.
    guard path.utf8.count <= 127 else {
      throw Failure(message: "the path '\(path)' is longer than the 127 bytes that the kernel takes")
    }
    return BinfmtRegistration(
      guest: guest, emulator: path, keepsArgumentZero: keepsArgumentZero, usesCredentials: usesCredentials)
  }

  /// Where this command was called: emulators are beside it, perhaps as links.
  private var ownDirectory: String {
    let called = CommandLine.arguments.first ?? ""
    guard let slash = called.lastIndex(of: "/") else {
      let places = (HostProcess.environment("PATH") ?? "").split(separator: ":").map(String.init)
      return places.first { HostProcess.isExecutable("\($0)/\(called)") } ?? HostProcess.programDirectory
    }
    return String(called[..<slash])
  }

  /// Whether a 64-bit little-endian ELF file asks for no interpreter; `nil` if it is no such file.
  private static func isStatic(_ file: [UInt8]) -> Bool? {
    guard file.count >= 64, Array(file[..<6]) == [0x7f, 0x45, 0x4c, 0x46, 2, 1] else { return nil }
    func number(_ offset: Int, _ count: Int) -> Int {
      (0..<count).reduce(0) { $0 | Int(file[offset + $1]) << (8 * $1) }
    }
    let (start, size, count) = (number(32, 4), number(54, 2), number(56, 2))
    guard size >= 56, start + size * count <= file.count else { return nil }
    return !(0..<count).contains { number(start + $0 * size, 4) == 3 }  // PT_INTERP
  }
}
