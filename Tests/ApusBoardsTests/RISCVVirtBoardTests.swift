import ApusBoards
import ApusConfig
import ApusDevice
import ApusFirmware
import ApusHost
import ApusMachine
import ApusMemory
import Synchronization
import Testing

/// A board of fake vCPUs for the given command line.
func makeBoard(
  _ arguments: [String], _ factory: FakeFactory = FakeFactory(), registry: DeviceRegistry = .virtio,
  backend: any CharacterBackend = NullCharacterBackend()
) throws -> RISCVVirtBoard {
  guard case .run(let configuration) = try SystemCommandLine.parse(arguments).get() else {
    throw MachineError("not a machine")
  }
  return try RISCVVirtBoard(
    configuration, loop: try EventLoop(), vcpus: factory, devices: registry,
    characterBackends: ["serial0": backend], report: { _ in })
}

@Suite struct RISCVVirtBoardTests {
  @Test func deviceTreeNamesEveryDevice() throws {
    let board = try makeBoard(["-bios", "none", "-smp", "2", "-m", "256", "-cpu", "rv64,zbc=off"])
    let blob = try board.deviceTreeBlob()
    if let path = HostProcess.environment("APUS_TEST_DTB") { try HostDescriptor.replace(path, with: blob) }
    let tree = try DeviceTree(parsing: blob)
    #expect(tree.root["memory@80000000"]?.cells("reg") == [0, 0x8000_0000, 0, 0x1000_0000])
    #expect(
      tree.root["cpus/cpu@1"]?.string("riscv,isa")
        == "rv64imafdc_zicsr_zifencei_zihintpause_zba_zbb_zbs_sstc")
    #expect(tree.root["soc/plic@c000000"]?.cells("riscv,ndev") == [95])
    #expect(tree.root["soc/plic@c000000"]?.cells("interrupts-extended") == [2, 11, 2, 9, 4, 11, 4, 9])
    #expect(tree.root["soc/virtio_mmio@10008000"]?.cells("interrupts") == [8])
    #expect(tree.root["chosen"]?.string("stdout-path") == "/soc/serial@10000000")
    #expect(tree.root["chosen"]?[property: "rng-seed"]?.count == 32)
    // Every node with a unit address and a MMIO window answers loads.
    for address in [0x10_0000, 0x10_1000, 0x200_0000, 0xc00_0000, 0x1000_0000, 0x1000_1000, 0x1000_8000]
      as [UInt64]
    {
      #expect(board.space.load(.init(address), 4) != nil, "nothing at 0x\(String(address, radix: 16))")
    }
    #expect(board.space.load(.init(0x1000_8000), 4) == 0x7472_6976)
  }

  @Test func guestPowersOffResetsAndFails() throws {
    let starts = Mutex(0)
    let factory = FakeFactory { vcpu, space in
      guard vcpu.index == 0 else { return }
      let start = starts.withLock { count in
        count += 1
        return count
      }
      _ = space.store(.init(0x10_0000), 4, start < 3 ? 0x7777 : 0x0003_3333 | 41 << 16)
    }
    let board = try makeBoard(["-bios", "none", "-smp", "3", "-m", "16"], factory)
    #expect(board.machine.run() == 43)
    #expect(starts.withLock { $0 } == 3)
    let state = factory.made.withLock { $0[2] }.state.withLock { ($0.entry, $0.arguments, $0.resetCount) }
    #expect(state.0 == 0x1000)
    #expect(state.1 == [2, 0x80e0_0000])
    #expect(state.2 == 3)
  }

  @Test func noRebootEndsAtReset() throws {
    let factory = FakeFactory { _, space in _ = space.store(.init(0x10_0000), 4, 0x7777) }
    let board = try makeBoard(["-bios", "none", "-no-reboot"], factory)
    #expect(board.machine.run() == 0)
    #expect(factory.made.withLock { $0[0] }.state.withLock { $0.resetCount } == 1)
  }

  @Test func pausesAndResumes() throws {
    let board = try makeBoard(["-bios", "none", "-S"])
    let machine = board.machine
    #expect(!machine.isRunning)
    let now = HostClock.monotonicNanoseconds()
    machine.loop.schedule(at: now + 10_000_000) {
      #expect(machine.clock.nowNanoseconds() < 5_000_000)
      machine.request(.resume)
    }
    machine.loop.schedule(at: now + 30_000_000) {
      #expect(machine.isRunning)
      machine.request(.pause)
    }
    machine.loop.schedule(at: now + 50_000_000) {
      #expect(!machine.isRunning)
      machine.request(.quit)
    }
    #expect(machine.run() == 0)
  }

  @Test func unknownDevicesAreRefusedByName() throws {
    let error = #expect(throws: MachineError.self) {
      try makeBoard(["-bios", "none", "-device", "virtio-rng-devise"])
    }
    #expect(
      error?.description == "-device: unknown device 'virtio-rng-devise'; did you mean 'virtio-rng-device'?")
  }

  @Test func virtioDevicesArePluggedIn() throws {
    let path = "/tmp/apus-disk-\(HostProcess.identifier).img"
    try HostDescriptor.replace(path, with: Array(repeating: 0, count: 1 << 20))
    defer { HostDescriptor.remove(path) }
    let board = try makeBoard([
      "-bios", "none", "-drive", "if=none,id=d,format=raw,file=\(path)", "-device",
      "virtio-blk-device,drive=d",
      "-device", "virtio-rng-pci", "-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n", "-device",
      "virtio-serial-device", "-device", "virtconsole",
    ])
    defer { board.backends.close() }
    func deviceID(_ slot: UInt64) -> UInt64? { board.space.load(.init(0x1000_1008 + slot * 0x1000), 4) }
    #expect((0..<8).map(deviceID) == [0, 0, 0, 0, 0, 3, 1, 2])
    #expect(board.space.load(.init(0x3000_0000), 4) == 0x0008_1b36)
    #expect(board.space.load(.init(0x3000_8000), 4) == 0x1044_1af4)
  }

  @Test(arguments: [
    ("-drive if=none,file=/nonexistent", "-drive /nonexistent: "),
    (
      "-device virtio-blk-device,drive=x", "-device: 'virtio-blk-device': there is no drive or block node 'x'"
    ),
    ("-device virtio-rng-device,foo=1", "-device: 'virtio-rng-device' has no option 'foo'"),
    ("-device virtconsole", "-device virtconsole: there is no virtio-serial bus"),
    ("-netdev usr,id=a", "-netdev: unknown network back end 'usr'; did you mean 'user'?"),
    ("-drive if=scsi,file=/dev/null", "-drive /dev/null: unknown interface 'scsi'"),
  ]) func refusals(_ line: String, _ message: String) {
    let arguments = ["-bios", "none"] + line.split(separator: " ").map(String.init)
    let error = #expect(throws: MachineError.self) { try makeBoard(arguments) }
    #expect(error?.description.hasPrefix(message) == true, "\(error?.description ?? "")")
  }

  @Test func flashIsProgrammedThroughTheAddressSpace() throws {
    let path = "/tmp/apus-flash-\(HostProcess.identifier).img"
    try HostDescriptor.replace(path, with: Array(repeating: 0xff, count: 32 << 20))
    defer { HostDescriptor.remove(path) }
    let board = try makeBoard(["-bios", "none", "-drive", "if=pflash,format=raw,file=\(path)"])
    let base = GuestPhysicalAddress(0x2000_0000)
    #expect(board.space.load(base, 4) == 0xffff_ffff)
    _ = board.space.store(base, 4, 0x0040_0040)
    #expect(board.space.load(base, 4) == 0x0080_0080)
    #expect(board.space.ramRegion(base) == nil)
    _ = board.space.store(base + 8, 4, 0x1234_5678)
    _ = board.space.store(base, 4, 0x00ff_00ff)
    #expect(board.space.load(base + 8, 4) == 0x1234_5678)
    #expect(board.space.ramRegion(base) != nil)
    let image = try HostDescriptor.contents(path)
    #expect(Array(image[8..<12]) == [0x78, 0x56, 0x34, 0x12])
  }
}
