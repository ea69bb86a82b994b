import ApusHost
import ApusMemory

/// Puts firmware, kernel, initial RAM disk and device tree into guest RAM, where QEMU's machines put them.
///
/// Before the machine starts, or while its vCPUs are stopped. Reads files anew at each call, so a reset gets what is
/// there then.
public struct GuestLoader {
  /// Firmware and kernels are followed at 2 MiB boundaries.
  public static let alignment: UInt64 = 2 << 20
  /// Device trees and RAM disks stay below this, where 32-bit consumers reach them.
  static let lowLimit: UInt64 = 3 << 30

  public let space: AddressSpace
  /// The RAM that everything goes into.
  public let ram: GuestRAM
  public let machine: UInt16

  public init(space: AddressSpace, ram: GuestRAM, machine: UInt16 = ELFImage.machineRISCV) {
    (self.space, self.ram, self.machine) = (space, ram, machine)
  }

  /// Copies `bytes` to `address`, in RAM or ROM.
  public func place(_ bytes: [UInt8], at address: UInt64, path: String) throws(LoaderError) {
    guard !bytes.isEmpty else { return }
    let address = GuestPhysicalAddress(address)
    guard let target = space.ramPointer(address, UInt64(bytes.count), forCPU: true) else {
      throw .noRoom(
        path: path, byteCount: UInt64(bytes.count), address: address.rawValue,
        reason: "RAM ends at 0x\(String(ram.end.rawValue, radix: 16)); give the machine more with -m")
    }
    bytes.withUnsafeBytes { target.copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
    space.noteDMAWrite(address, UInt64(bytes.count))
  }

  /// Firmware: an ELF file goes where it says, anything else to `address` as it is.
  public func loadFirmware(_ bytes: [UInt8], path: String, at address: UInt64) throws(LoaderError)
    -> LoadedImage
  {
    if ELFImage.hasMagic(bytes) {
      return try ELFImage(parsing: bytes, machine: machine, path: path).load(bytes, into: space, path: path)
    }
    guard !bytes.isEmpty else { throw .format(path: path, reason: "the file is empty") }
    try place(bytes, at: address, path: path)
    return LoadedImage(entry: address, low: address, high: address + UInt64(bytes.count))
  }

  /// A kernel: ELF, flat Image, gzip or EFI zboot of one, or raw code, which go to `address`.
  public func loadKernel(_ file: [UInt8], path: String, at address: UInt64) throws(LoaderError) -> LoadedImage
  {
    let bytes = try LinuxImage.unpack(file, path: path)
    var image = try loadFirmware(bytes, path: path, at: address)
    if let header = LinuxImage.Header(bytes) {
      if let needed = LinuxImage.fileByteCount(bytes), needed > bytes.count {
        throw .format(
          path: path, reason: "it is cut off: its sections need \(needed) bytes, it has \(bytes.count)")
      }
      let high = address.addingReportingOverflow(max(header.imageByteCount, UInt64(bytes.count)))
      guard !high.overflow, high.partialValue <= ram.end.rawValue else {
        throw .noRoom(
          path: path, byteCount: header.imageByteCount, address: address,
          reason: "the kernel needs more RAM than there is; give the machine more with -m")
      }
      image.high = high.partialValue
    }
    return image
  }

  /// An initial RAM disk: half the RAM but at most 512 MiB past the kernel's start, so that the kernel may grow.
  public func loadInitrd(_ bytes: [UInt8], path: String, kernel: LoadedImage) throws(LoaderError) -> Range<
    UInt64
  > {
    let gap = min(ram.byteCount / 2, 512 << 20)
    var start = kernel.low &+ gap
    // Where RAM is short, behind the kernel will do.
    if start &+ UInt64(bytes.count) > ram.end.rawValue { start = kernel.high }
    start = (max(start, kernel.high) + 4095) & ~4095
    try place(bytes, at: start, path: path)
    return start..<start + UInt64(bytes.count)
  }

  /// Where a device tree of `byteCount` bytes goes: the last 2 MiB boundary in RAM (or below 3 GiB) with room
  /// behind it for the firmware's additions.
  public func deviceTreeAddress(byteCount: Int) throws(LoaderError) -> UInt64 {
    let end = min(ram.end.rawValue, max(Self.lowLimit, ram.base.rawValue))
    let room = UInt64(byteCount) + (64 << 10)
    guard end > ram.base.rawValue, end - ram.base.rawValue >= room else {
      throw .noRoom(
        path: "device tree", byteCount: UInt64(byteCount), address: ram.base.rawValue,
        reason: "RAM is too small")
    }
    let address = (end - room) & ~(Self.alignment - 1)
    return max(address, ram.base.rawValue)
  }
}
