import Glibc

/// Files below /proc that the host would answer with the emulator's own affairs.
enum ProcessFile: Equatable {
  /// /proc/self/exe and its other names.
  case program
  case maps, detailedMaps, commandLine, auxiliaryVector, statistics
  /// /proc/cpuinfo.
  case processors

  private static let names: [(StaticString, ProcessFile)] = [
    ("exe", .program), ("maps", .maps), ("smaps", .detailedMaps), ("cmdline", .commandLine),
    ("auxv", .auxiliaryVector), ("stat", .statistics),
  ]

  init?(_ path: ByteString) {
    guard path.hasPrefix("/proc/") else { return nil }
    var parts = path.split(separator: UInt8(ascii: "/")).dropFirst()
    guard let first = parts.popFirst(), let last = parts.last else {
      if path.elementsEqual("/proc/cpuinfo".utf8) {
        self = .processors
        return
      }
      return nil
    }
    let own = Self.decimal(getpid())
    guard
      first.elementsEqual("self".utf8) || first.elementsEqual("thread-self".utf8) || first.elementsEqual(own)
    else { return nil }
    // Threads' files are the process's but for `stat`.
    if parts.count == 3, parts.first!.elementsEqual("task".utf8) {
      if last.elementsEqual("stat".utf8) { return nil }
    } else if parts.count != 1 {
      return nil
    }
    guard
      let match = Self.names.first(where: { name, _ in
        name.withUTF8Buffer { last.elementsEqual($0) }
      })
    else { return nil }
    self = match.1
  }

  private static func decimal(_ number: Int32) -> ByteString { ByteString(text: String(number)) }
}
