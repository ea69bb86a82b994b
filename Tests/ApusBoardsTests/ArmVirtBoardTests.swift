import ApusBoards
import ApusConfig
import ApusDevice
import ApusFirmware
import ApusHost
import ApusMachine
import Testing

@Suite struct ArmVirtBoardTests {
  func board(_ arguments: [String]) throws -> ArmVirtBoard {
    guard case .run(let configuration) = try SystemCommandLine.parse(arguments, target: .aarch64).get() else {
      throw MachineError("not a machine")
    }
    return try ArmVirtBoard(
      configuration, loop: try EventLoop(), vcpus: FakeFactory(), devices: .virtio,
      characterBackends: ["serial0": NullCharacterBackend()], report: { _ in })
  }

  @Test func deviceTreeNamesEveryDevice() throws {
    let board = try board(["-smp", "2", "-m", "256", "-cpu", "cortex-a57"])
    let tree = try DeviceTree(parsing: try board.deviceTreeBlob())
    #expect(tree.root["memory@40000000"]?.cells("reg") == [0, 0x4000_0000, 0, 0x1000_0000])
    #expect(tree.root["cpus/cpu@1"]?.string("compatible") == "arm,cortex-a57")
    #expect(tree.root["psci"]?.string("method") == "hvc")
    #expect(tree.root["intc@8000000"]?.string("compatible") == "arm,cortex-a15-gic")
    #expect(tree.root["intc@8000000/v2m@8020000"]?.cells("reg") == [0, 0x802_0000, 0, 0x1000])
    #expect(
      tree.root["timer"]?.cells("interrupts") == [1, 13, 0x304, 1, 14, 0x304, 1, 11, 0x304, 1, 10, 0x304])
    #expect(tree.root["virtio_mmio@a003e00"]?.cells("interrupts") == [0, 47, 1])
    #expect(tree.root["chosen"]?.string("stdout-path") == "/pl011@9000000")
    // Every node with a unit address and a MMIO window answers loads.
    for address in [
      0x800_0000, 0x801_0000, 0x802_0000, 0x900_0000, 0x901_0000, 0x903_0000, 0xa00_0000, 0xa00_3e00,
    ]
      as [UInt64]
    {
      #expect(board.space.load(.init(address), 4) != nil, "nothing at 0x\(String(address, radix: 16))")
    }
  }

  @Test func version3HasRedistributors() throws {
    let tree = try DeviceTree(parsing: try board(["-M", "virt,gic-version=max"]).deviceTreeBlob())
    #expect(tree.root["intc@8000000"]?.string("compatible") == "arm,gic-v3")
    #expect(
      tree.root["intc@8000000"]?.cells("reg") == [0, 0x800_0000, 0, 0x10000, 0, 0x80a_0000, 0, 0xf6_0000])
  }

  /// What QEMU's machine has with EL2: smc, EL2's timers, and the interfaces for virtual machines.
  @Test func virtualization() throws {
    let machine = try board(["-M", "virt,virtualization=on"])
    let tree = try DeviceTree(parsing: try machine.deviceTreeBlob())
    #expect(tree.root["psci"]?.string("method") == "smc")
    #expect(tree.root["intc@8000000"]?.cells("interrupts") == [1, 9, 4])
    #expect(tree.root["intc@8000000"]?.cells("reg")?.count == 16)
    #expect(tree.root["timer"]?.cells("interrupts")?.count == 15)
    for address in [0x803_0004, 0x804_0004] as [UInt64] {
      #expect(machine.space.load(.init(address), 4) != nil, "nothing at 0x\(String(address, radix: 16))")
    }
    // The virtual timer of EL2 came with virtual host extensions.
    let first = try board(["-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57"])
    let firstTree = try DeviceTree(parsing: try first.deviceTreeBlob())
    #expect(firstTree.root["timer"]?.cells("interrupts")?.count == 12)
    #expect(firstTree.root["intc@8000000"]?.cells("reg")?.count == 8)
  }

  /// What QEMU's machine has with EL3; without firmware PSCI is the machine's.
  @Test func security() throws {
    let machine = try board(["-M", "virt,secure=on"])
    let tree = try DeviceTree(parsing: try machine.deviceTreeBlob())
    #expect(tree.root["psci"]?.string("method") == "hvc")
    #expect(tree.root["flash@4000000"]?.cells("reg") == [0, 0x400_0000, 0, 0x400_0000])
    #expect(tree.root["secure-chosen"]?.string("stdout-path") == "/pl011@9040000")
    for node in ["secflash@0", "secram@e000000", "pl011@9040000", "pl061@90b0000", "gpio-poweroff"] {
      #expect(tree.root[node]?.string("secure-status") == "okay", "\(node)")
      #expect(tree.root[node]?.string("status") == "disabled")
    }
    // At their addresses nobody finds them but CPUs in the secure state, whose accesses have a bit more.
    for address in [0, 0x904_0018, 0x90b_0fe0, 0xe00_0000] as [UInt64] {
      #expect(machine.space.load(.init(address), 4) == nil, "0x\(String(address, radix: 16))")
      #expect(machine.space.load(.init(ArmVirtMap.secure(address)), 4) != nil)
    }
    #expect(machine.space.ramPointer(.init(ArmVirtMap.secure(0xe00_0000)), 4096) == nil)
  }

  @Test(arguments: [
    (["-M", "virt,gic-version=4"], "gic-version"), (["-M", "virt,virtualization=maybe"], "virtualization"),
    (["-M", "virt,secure=maybe"], "secure"), (["-M", "virt,aia=none"], "aia"), (["-cpu", "rv64"], "rv64"),
    (["-cpu", "max,sve=on"], "sve"), (["-M", "virt,highmem=off"], "highmem"),
  ]) func refuses(arguments: [String], says: String) {
    guard case .failure(let error) = SystemCommandLine.parse(arguments, target: .aarch64) else {
      Issue.record("\(arguments) is taken")
      return
    }
    #expect(error.description.contains(says))
  }
}
