import CApusHost
import Glibc

/// A device of the kernel's network block device driver (`/dev/nbdX`), whose requests come over a socket.
///
/// Any thread. The kernel speaks the protocol's transmission phase with simple replies [linux/nbd.h].
public final class HostNBDDevice: Sendable {
  private enum Request: UInt {
    case setSocket = 0xab00
    case setBlockByteCount, setByteCount, run, clearSocket, clearQueue, printDebug, setBlockCount, disconnect,
      setTimeout, setFlags
  }
  private let descriptor: Int32
  private let path: String

  public init(_ path: String) throws(HostError) {
    let opened = apus_open(path, O_RDWR | O_CLOEXEC, 0)
    guard opened >= 0 else { throw .last("open the network block device", path) }
    var information = stat()
    guard fstat(opened, &information) == 0, information.st_mode & S_IFMT == S_IFBLK,
      HostDescriptor.exists(Self.systemFolder(path))
    else {
      Glibc.close(opened)
      throw HostError("use as a network block device", path, errno: ENOTBLK)
    }
    (descriptor, self.path) = (opened, path)
  }
  deinit { Glibc.close(descriptor) }

  /// Where the kernel describes the device.
  private static func systemFolder(_ path: String) -> String {
    "/sys/block/" + (path.split(separator: "/").last.map(String.init) ?? "")
  }

  private func request(_ request: Request, _ argument: UInt64 = 0) throws(HostError) {
    guard apus_ioctl(descriptor, request.rawValue, argument) >= 0 else {
      throw .last("set up the network block device", path)
    }
  }

  /// Gives the device a size, the export's flags and the socket that its requests go to. Fails if it is in use.
  ///
  /// - Returns: the server's end of the connection.
  public func attach(byteCount: UInt64, flags: UInt16) throws(HostError) -> HostStream {
    var ends: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0
    else {
      throw .last("create a pair of sockets")
    }
    let server = HostStream(ends[0])
    // The kernel keeps the socket itself.
    defer { Glibc.close(ends[1]) }
    try request(.setSocket, UInt64(ends[1]))
    do throws(HostError) {
      try request(.setBlockByteCount, 512)
      try request(.setBlockCount, byteCount / 512)
      try request(.setFlags, UInt64(flags))
    } catch {
      detach()
      throw error
    }
    return server
  }

  /// Passes requests to the socket until `disconnect`, or until the server is gone; blocks.
  ///
  /// The thread must be a `HostThread`, which takes no signals: one would cut the connection before the kernel's cache is
  /// written.
  public func run() throws(HostError) {
    guard apus_ioctl(descriptor, Request.run.rawValue, 0) < 0 else { return }
    // ETIMEDOUT, EBADR and the like: how a connection that was cut ends.
    if errno == EBUSY || errno == EINVAL { throw .last("start the network block device", path) }
  }

  /// Lets go of what `attach` set up.
  public func detach() {
    _ = apus_ioctl(descriptor, Request.clearQueue.rawValue, 0)
    _ = apus_ioctl(descriptor, Request.clearSocket.rawValue, 0)
  }

  /// Writes out what the kernel still holds and ends the connection, whoever serves it.
  public func disconnect() throws(HostError) {
    fsync(descriptor)
    try request(.disconnect)
  }

  /// The thread that serves the device; `nil` if nobody does.
  public var server: Int32? {
    do throws(HostError) {
      let text = try HostDescriptor.contents(Self.systemFolder(path) + "/pid", limit: 1 << 16)
      return Int32(String(decoding: text.filter { (0x30...0x39).contains($0) }, as: UTF8.self))
    } catch { return nil }
  }

  /// Has the kernel look for partitions.
  public func findPartitions() {
    let descriptor = apus_open(path, O_RDONLY | O_CLOEXEC, 0)
    if descriptor >= 0 { Glibc.close(descriptor) }
  }

  /// Waits until a thread has ended, or the time is over.
  public static func waitForEnd(of thread: Int32, milliseconds: Int) -> Bool {
    for _ in 0..<max(1, milliseconds / 5) {
      if !HostDescriptor.exists("/proc/\(thread)") { return true }
      usleep(5000)
    }
    return false
  }
}
