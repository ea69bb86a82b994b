import Glibc

/// Directories and mounts. Any thread.
public enum HostFileSystem {
  /// The names in a directory without `.` and `..`, in ascending order.
  public static func names(_ path: String) throws(HostError) -> [String] {
    guard let directory = opendir(path) else { throw .last("list", path) }
    defer { closedir(directory) }
    var result: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != ".", name != ".." { result.append(name) }
    }
    return result.sorted()
  }

  /// Makes a directory; its parent must be there. It may be there already.
  public static func makeDirectory(_ path: String) throws(HostError) {
    guard mkdir(path, 0o755) == 0 || errno == EEXIST else { throw .last("make the directory", path) }
  }

  /// Mounts a file system of the kernel's own (proc, binfmt_misc, ...).
  public static func mount(_ type: String, on path: String) throws(HostError) {
    guard Glibc.mount(type, path, type, 0, nil) == 0 else { throw .last("mount \(type) on", path) }
  }

  /// The path made absolute, `.` and `..` resolved, with symbolic links left as they are.
  public static func absolutePath(keepingLinks path: String) -> String {
    var whole = path
    if !path.hasPrefix("/"), let directory = getcwd(nil, 0) {
      defer { free(directory) }
      whole = String(cString: directory) + "/" + path
    }
    var parts: [Substring] = []
    for part in whole.split(separator: "/") where part != "." {
      if part == ".." { _ = parts.popLast() } else { parts.append(part) }
    }
    return "/" + parts.joined(separator: "/")
  }
}
