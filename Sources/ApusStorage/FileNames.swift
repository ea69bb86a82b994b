import ApusConfig
import ApusHost

/// Names of images: paths, `json:{...}`, and the addresses of protocols.
public enum FileNames {
  /// The options that a name stands for; `nil` for a plain path.
  static func options(_ name: String) throws(StorageError) -> OptionList? {
    do throws(ConfigurationError) {
      if name.hasPrefix("json:") { return try OptionList(parsing: String(name.dropFirst(5))) }
    } catch { throw StorageError(error) }
    if name.hasPrefix("nbd:") || name.hasPrefix("nbd+unix:") || name.hasPrefix("nbds:") {
      return try nbd(name)
    }
    if name.hasPrefix("null-co://") || name.hasPrefix("null-aio://") {
      return OptionList([.init("driver", "null-co"), .init("read-zeroes", "on")])
    }
    if name.hasPrefix("file:") {
      return OptionList([.init("driver", "file"), .init("filename", String(name.dropFirst(5)))])
    }
    if name.hasPrefix("blkdebug:") {
      let parts = name.dropFirst(9).split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2 else {
        throw StorageError("'\(name)': it must be like blkdebug:CONFIG:IMAGE or blkdebug::IMAGE")
      }
      return OptionList(
        [.init("driver", "blkdebug"), .init("image.filename", String(parts[1]))]
          + (parts[0].isEmpty ? [] : [.init("config", String(parts[0]))]))
    }
    // Letters before a colon name a protocol, unless a slash comes first.
    if let colon = name.firstIndex(of: ":"), !name[..<colon].contains("/"), !HostDescriptor.exists(name) {
      throw StorageError(
        "'\(name)': unknown protocol '\(name[..<colon])'; for a file with a colon in its name write './\(name)'"
      )
    }
    return nil
  }

  /// Options together with the name of what they are about: the name goes where the options' driver looks for it.
  public static func options(_ list: OptionList, of name: String) throws(StorageError) -> OptionList {
    let driver = list["driver"]
    var named = try options(name) ?? OptionList([.init("filename", name)])
    if name.hasPrefix("json:") {
      // They are about the same node.
    } else if driver == "blkdebug", named["driver"] == "blkdebug" {
      named.entries.removeAll { $0.key == "driver" }
      // A format lies between the filter and the file.
      if let format = list["image.driver"], ImageFormat.named(format) != nil {
        named.entries = named.entries.map {
          $0.key.hasPrefix("image.") ? .init("image.file." + $0.key.dropFirst(6), $0.value) : $0
        }
      }
    } else {
      // Below all formats and filters that the options name.
      var prefix = driver == nil ? "file." : ""
      while let upper = list[prefix + "driver"] {
        guard ImageFormat.named(upper) != nil || ImageFilter.names.contains(upper) else { break }
        prefix += upper == "blkdebug" ? "image." : "file."
      }
      named.entries = named.entries.map { .init(prefix + $0.key, $0.value) }
    }
    // What the options say comes first.
    return OptionList(list.entries + named.entries.filter { list[$0.key] == nil })
  }

  /// `nbd://host[:port]/export`, `nbd+unix:///export?socket=path`, `nbd:host:port[:exportname=name]`,
  /// `nbd:unix:path[:exportname=name]`.
  static func nbd(_ name: String) throws(StorageError) -> OptionList {
    var list = OptionList([.init("driver", "nbd")])
    func add(_ key: String, _ value: some StringProtocol) {
      if !value.isEmpty { list.entries.append(.init(key, String(value))) }
    }
    if name.hasPrefix("nbds:") { throw StorageError("'\(name)': TLS is not implemented; use nbd:") }
    if name.hasPrefix("nbd+unix://") {
      let parts = name.dropFirst(11).split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2, parts[1].hasPrefix("socket=") else {
        throw StorageError("'\(name)': it must be like nbd+unix:///EXPORT?socket=PATH")
      }
      add("path", decoded(parts[1].dropFirst(7)))
      add("export", decoded(parts[0].dropFirst(parts[0].hasPrefix("/") ? 1 : 0)))
      return list
    }
    if name.hasPrefix("nbd://") {
      let parts = name.dropFirst(6).split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
      let (host, port) = hostAndPort(parts[0])
      add("host", host.isEmpty ? "localhost" : host)
      add("port", port ?? "10809")
      if parts.count == 2 { add("export", decoded(parts[1])) }
      return list
    }
    var rest = name.dropFirst(4)
    if let range = rest.firstRange(of: ":exportname=") {
      add("export", rest[range.upperBound...])
      rest = rest[..<range.lowerBound]
    }
    if rest.hasPrefix("unix:") {
      add("path", rest.dropFirst(5))
      return list
    }
    let (host, port) = hostAndPort(rest)
    guard let port else { throw StorageError("'\(name)': it must be like nbd:HOST:PORT or nbd:unix:PATH") }
    add("host", host)
    add("port", port)
    return list
  }

  private static func hostAndPort(_ text: Substring) -> (host: String, port: String?) {
    if text.hasPrefix("["), let bracket = text.firstIndex(of: "]") {
      let rest = text[text.index(after: bracket)...]
      return (
        String(text[text.index(after: text.startIndex)..<bracket]),
        rest.hasPrefix(":") ? String(rest.dropFirst()) : nil
      )
    }
    guard let colon = text.lastIndex(of: ":") else { return (String(text), nil) }
    return (String(text[..<colon]), String(text[text.index(after: colon)...]))
  }

  /// Undoes `%xx`.
  private static func decoded(_ text: Substring) -> String {
    var bytes: [UInt8] = []
    var rest = Array(text.utf8)[...]
    while let byte = rest.popFirst() {
      if byte == UInt8(ascii: "%"), rest.count >= 2,
        let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16)
      {
        bytes.append(value)
        rest = rest.dropFirst(2)
      } else {
        bytes.append(byte)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// Where a backing file's name leads, seen from the image that has it.
  public static func resolve(_ name: String, from image: String) -> String {
    if name.hasPrefix("/") || name.isEmpty { return name }
    if let colon = name.firstIndex(of: ":"), !name[..<colon].contains("/") { return name }
    if image.hasPrefix("json:") || image.contains("://") { return name }
    return HostPath.directory(image.hasPrefix("file:") ? String(image.dropFirst(5)) : image) + name
  }
}
