import ApusBoards
import ApusConfig
import ApusDevice
import ApusHost
import ApusMachine
import Testing

@Suite struct RaspberryPiBoardTests {
  func configuration(_ arguments: [String]) throws -> MachineConfiguration {
    let line = ["-M", "raspi3b"] + arguments
    guard case .run(let configuration) = try SystemCommandLine.parse(line, target: .aarch64).get() else {
      throw MachineError("not a machine")
    }
    return configuration
  }
  func board(_ arguments: [String]) throws -> RaspberryPiBoard {
    try RaspberryPiBoard(
      configuration(arguments), loop: try EventLoop(), vcpus: FakeFactory(), devices: .virtio,
      characterBackends: ["serial0": NullCharacterBackend()], report: { _ in })
  }

  @Test func whatItAlwaysHas() throws {
    let result = try configuration(["-serial", "null", "-serial", "null", "-smp", "4", "-m", "1G"])
    #expect(result.cpuCount == 4 && result.memoryByteCount == 1 << 30 && result.arm.cpuModel == "cortex-a53")
    #expect(result.serials == ["serial0", "serial1"] && result.model.driveInterface == "sd")
    #expect(try configuration([]).memoryByteCount == 1 << 30)
  }

  @Test func everythingInThePeripheralsWindowAnswers() throws {
    let space = try board([]).space
    for address in stride(from: 0x3f00_0000 as UInt64, to: 0x4000_1000, by: 0x400) {
      #expect(space.load(.init(address), 4) != nil, "nothing at 0x\(String(address, radix: 16))")
    }
    #expect(space.ramRegion(.init(0x3eff_fffc), 4) != nil && space.ramRegion(.init(0x3f00_0000), 4) == nil)
    #expect(space.load(.init(0x3f00_a020), 4) == 0x6272_6467)
    #expect(space.load(.init(0x4000_1000), 4) == nil)
    // UART, mailbox, SD host.
    #expect(space.load(.init(0x3f20_1018), 4) == 0x90 && space.load(.init(0x3f00_b898), 4) == 1 << 30)
    #expect(space.load(.init(0x3f20_2034), 4) == 1)
  }

  @Test(arguments: [
    (["-m", "2G"], "1024M"), (["-smp", "1"], "always 4"), (["-cpu", "max"], "cortex-a53"),
    (["-machine", "virtualization=off"], "virtualization"),
  ]) func refuses(arguments: [String], says: String) {
    guard case .failure(let error) = SystemCommandLine.parse(["-M", "raspi3b"] + arguments, target: .aarch64)
    else {
      Issue.record("\(arguments) is taken")
      return
    }
    #expect(error.description.contains(says))
  }

  @Test(arguments: [
    (["-device", "virtio-rng-pci"], "no bus"), (["-nic", "user"], "no bus"),
    (["-fw_cfg", "name=opt/x,string=y"], "firmware configuration"),
  ]) func refusesOnTheBoard(arguments: [String], says: String) {
    #expect {
      _ = try board(arguments)
    } throws: { error in
      "\(error)".contains(says)
    }
  }
}
