import ApusBits
import ApusConfig
import ApusFirmware
import ApusHost
import ApusLoader
import ApusMachine
import ApusMemory

/// Fills memory for a start of the Raspberry Pi, as its firmware would.
///
/// A kernel is entered on core 0 with the device tree of `-dtb` in x0; the others wait in a stub at address 0 for their
/// words of the spin table [Linux Documentation/arch/arm64/booting.rst]. ELF programs and firmware begin on all cores.
struct RaspberryPiBoot: BoardBoot {
  var configuration: MachineConfiguration
  var space: AddressSpace
  var ram: GuestRAM

  private typealias Map = RaspberryPiMap

  func place() throws(LoaderError) -> BootResult {
    let loader = GuestLoader(space: space, ram: ram, machine: ELFImage.machineAArch64)
    var result = BootResult(deviceTree: [], deviceTreeAddress: 0, start: 0)
    if case .file(let path) = configuration.firmware {
      result.start = try loader.loadFirmware(try KernelFiles.read(path), path: path, at: Map.plainKernel)
        .entry
      return result
    }
    guard let path = configuration.kernel else {
      throw .format(path: "machine raspi3b", reason: "there is nothing to start; give it -kernel or -bios")
    }
    let bytes = try LinuxImage.unpack(try KernelFiles.read(path), path: path)
    let header = LinuxImage.Header(bytes)
    // An image that wants to lie at the start of memory goes behind the stub, to the next 2 MiB.
    var address = Map.plainKernel
    if let header { address = header.textOffset < 4096 ? Map.kernel + header.textOffset : header.textOffset }
    let kernel = try loader.loadKernel(bytes, path: path, at: address)
    guard !ELFImage.hasMagic(bytes) else {
      result.start = kernel.entry
      return result
    }
    var initrd: Range<UInt64>?
    if let path = configuration.initrd {
      initrd = try loader.loadInitrd(try KernelFiles.read(path), path: path, kernel: kernel)
    }
    if let path = configuration.deviceTree {
      result.deviceTree = try deviceTree(path, initrd).encode()
      result.deviceTreeAddress = try loader.deviceTreeAddress(byteCount: result.deviceTree.count)
      try loader.place(result.deviceTree, at: result.deviceTreeAddress, path: path)
    }
    let stub = Self.stub(kernel: kernel.entry, tree: result.deviceTreeAddress)
    try loader.place(stub, at: 0, path: "start stub")
    return result
  }

  /// The tree of `-dtb` with what the firmware adds: command line, RAM disk, the cores' memory, seeds.
  private func deviceTree(_ path: String, _ initrd: Range<UInt64>?) throws(LoaderError) -> DeviceTree {
    var tree = try KernelFiles.tree(configuration) { DeviceTree() }
    guard tree.root.cells("#address-cells") == [1], tree.root.cells("#size-cells") == [1] else {
      throw .format(path: path, reason: "it is not for this board: its addresses do not have one cell each")
    }
    let commandLine = configuration.commandLine ?? ""
    tree.root.updateChild("chosen") { chosen in
      if !commandLine.isEmpty { chosen.set("bootargs", commandLine) }
      if let initrd {
        chosen.set("linux,initrd-start", UInt32(initrd.lowerBound))
        chosen.set("linux,initrd-end", UInt32(initrd.upperBound))
      }
      chosen.set("rng-seed", bytes: KernelFiles.random(32))
      chosen.set("kaslr-seed", bytes: KernelFiles.random(8))
    }
    tree.root.children.removeAll { $0.string("device_type") == "memory" }
    tree.root.add(
      .init("memory@0") {
        $0.set("device_type", "memory")
        $0.set("reg", 0, UInt32(Map.ramByteCount))
      })
    return tree
  }

  /// What all cores begin with, at address 0. Core 0 goes to the kernel. The others look at their words each millisecond,
  /// asleep in between until their virtual timer ends the `wfi`: it is routed to them, and masked.
  static func stub(kernel: UInt64, tree: UInt64) -> [UInt8] {
    let code: [UInt32] = [
      0xd538_00a5,  // mrs x5, mpidr_el1
      0x9240_04a5,  // and x5, x5, #3
      0xb400_02e5,  // cbz x5, boot
      0x5800_03a6,  // ldr x6, timer control
      0x8b05_08c6,  // add x6, x6, x5, lsl #2
      0x5280_0107,  // mov w7, #8
      0xb900_00c7,  // str w7, [x6]
      0xd53b_e008,  // mrs x8, cntfrq_el0
      0xd34a_fd08,  // lsr x8, x8, #10
      0xd280_0009 | UInt32(Map.spinTable) << 5,  // mov x9, spin table
      0x8b05_0d29,  // add x9, x9, x5, lsl #3
      0xd280_0027,  // mov x7, #1
      0xf940_012a,  // wait: ldr x10, [x9]
      0xb500_00aa,  // cbnz x10, go
      0xd51b_e308,  // msr cntv_tval_el0, x8
      0xd51b_e327,  // msr cntv_ctl_el0, x7
      0xd503_207f,  // wfi
      0x17ff_fffb,  // b wait
      0xd51b_e33f,  // go: msr cntv_ctl_el0, xzr
      0xb900_00df,  // str wzr, [x6]
      0xaa1f_03e0,  // mov x0, xzr
      0xaa1f_03e1,  // mov x1, xzr
      0xaa1f_03e2,  // mov x2, xzr
      0xaa1f_03e3,  // mov x3, xzr
      0xd61f_0140,  // br x10
      0x5800_0124,  // boot: ldr x4, kernel
      0x5800_0140,  // ldr x0, tree
      0xaa1f_03e1,  // mov x1, xzr
      0xaa1f_03e2,  // mov x2, xzr
      0xaa1f_03e3,  // mov x3, xzr
      0xd61f_0080,  // br x4
      0xd503_201f,  // nop
    ]
    var bytes: [UInt8] = []
    for word in code { bytes.appendLittleEndian(word) }
    for value in [Map.localInterrupts + 0x40, kernel, tree] { bytes.appendLittleEndian(value) }
    precondition(bytes.count <= Int(Map.spinTable), "the stub ends before the spin table")
    // The table itself: nobody is released yet.
    bytes += [UInt8](repeating: 0, count: Int(Map.spinTable) + 32 - bytes.count)
    return bytes
  }
}
