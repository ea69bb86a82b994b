import ApusCPU
import ApusDevice
import ApusMemory
import ApusPlatformDevices
import ApusTestKit
import Testing

/// The virtual interfaces that EL2 gives virtual machines, of one CPU.
@Suite struct GICVirtualTests {
  let irq = Probe()
  let virtualIRQ = Probe()
  let virtualFIQ = Probe()

  func gic(_ version: GIC.Version) -> GIC {
    GIC(
      version: version, sharedCount: 96,
      outputs: [
        .init(irq: irq.line, fiq: Probe().line, virtualIRQ: virtualIRQ.line, virtualFIQ: virtualFIQ.line)
      ],
      maintenanceInterrupt: 25)
  }
  func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16) -> UInt16 { 3 << 14 | n << 7 | m << 3 | op2 }
  /// ICH_*.
  func hypervisor(_ m: UInt16, _ op2: UInt16) -> UInt16 { key(12, m, op2) | 4 << 11 }

  /// A list register of version 3.
  func list(_ number: UInt64, priority: UInt64 = 0x80, group: UInt64 = 1, state: UInt64 = 1) -> UInt64 {
    number | priority << 48 | group << 60 | state << 62
  }

  @Test func version3SignalsAndEnds() {
    let gic = gic(.v3)
    func write(_ register: UInt16, _ value: UInt64) {
      #expect(gic.writeRegister(0, register, value, .virtual))
    }
    func read(_ register: UInt16) -> UInt64? { gic.readRegister(0, register, .virtual) }
    #expect(read(hypervisor(11, 1)).map { $0 & 31 } == 3)
    write(hypervisor(11, 7), 0xf8 << 24 | 2)
    write(hypervisor(12, 0), list(40))
    #expect(!virtualIRQ.level)
    write(hypervisor(11, 0), 1)
    #expect(virtualIRQ.level && !virtualFIQ.level)
    #expect(read(key(12, 12, 2)) == 40)
    // A more urgent one; group 0 is FIQ, once it is enabled.
    write(hypervisor(12, 1), list(41, priority: 0x40, group: 0))
    #expect(virtualIRQ.level)
    write(key(12, 12, 6), 1)
    #expect(virtualFIQ.level && !virtualIRQ.level)
    #expect(read(key(12, 12, 0)) == 1023)
    #expect(read(key(12, 8, 0)) == 41)
    #expect(read(key(12, 11, 3)) == 0x40)
    #expect(!virtualFIQ.level && !virtualIRQ.level)
    write(key(12, 8, 1), 41)
    #expect(read(key(12, 12, 0)) == 40)
    #expect(read(hypervisor(12, 0)).map { $0 >> 62 } == 2)
    #expect(read(hypervisor(9, 0)) == 1 << 16)
    write(key(12, 12, 1), 40)
    #expect(read(hypervisor(12, 0)).map { $0 >> 62 } == 0)
    #expect(read(hypervisor(11, 5)) == 15)
    // A message has no active state.
    write(hypervisor(12, 0), list(8200))
    #expect(read(key(12, 12, 0)) == 8200)
    #expect(read(hypervisor(12, 0)).map { $0 >> 62 } == 0)
    write(key(12, 12, 1), 8200)
    #expect(read(key(12, 11, 3)) == 0xff)
  }

  @Test func hardwareInterruptsEndWithTheVirtualOnes() {
    let gic = gic(.v3)
    let distributor = GICv3Distributor(gic)
    let redistributors = GICv3Redistributors(gic)
    distributor.writeMMIO(offset: 0, byteCount: 4, value: 0x53)
    redistributors.writeMMIO(offset: 0x10080, byteCount: 4, value: 0xffff_ffff)
    redistributors.writeMMIO(offset: 0x10100, byteCount: 4, value: 0xffff_ffff)
    #expect(gic.writeRegister(0, key(4, 6, 0), 0xf0))
    #expect(gic.writeRegister(0, key(12, 12, 7), 1))
    #expect(gic.writeRegister(0, key(12, 12, 4), 2))
    gic.setPrivate(0, 27, true)
    #expect(irq.level && gic.readRegister(0, key(12, 12, 0)) == 27)
    #expect(gic.writeRegister(0, key(12, 12, 1), 27))
    // Active still: EL2 gives it to the virtual machine.
    #expect(!irq.level)
    #expect(gic.writeRegister(0, hypervisor(11, 7), 0xf8 << 24 | 2))
    #expect(gic.writeRegister(0, hypervisor(11, 0), 1))
    #expect(gic.writeRegister(0, hypervisor(12, 0), list(27) | 1 << 61 | 27 << 32))
    #expect(gic.readRegister(0, key(12, 12, 0), .virtual) == 27)
    #expect(gic.writeRegister(0, key(12, 12, 1), 27, .virtual))
    #expect(irq.level)
  }

  @Test func maintenance() {
    let gic = gic(.v3)
    let distributor = GICv3Distributor(gic)
    let redistributors = GICv3Redistributors(gic)
    distributor.writeMMIO(offset: 0, byteCount: 4, value: 0x53)
    redistributors.writeMMIO(offset: 0x10080, byteCount: 4, value: 1 << 25)
    redistributors.writeMMIO(offset: 0x10100, byteCount: 4, value: 1 << 25)
    #expect(gic.writeRegister(0, key(4, 6, 0), 0xf0))
    #expect(gic.writeRegister(0, key(12, 12, 7), 1))
    func status() -> UInt64? { gic.readRegister(0, hypervisor(11, 2)) }
    // Underflow: at most one list register is in use.
    #expect(gic.writeRegister(0, hypervisor(11, 0), 3))
    #expect(status() == 2 && irq.level)
    for index in 0..<2 as Range<UInt16> {
      #expect(gic.writeRegister(0, hypervisor(12, index), list(50 + UInt64(index)) | 1 << 41))
    }
    #expect(status() == 0 && !irq.level)
    // The end of an interrupt whose end is to be told; and one that is in no list register.
    #expect(gic.writeRegister(0, hypervisor(11, 7), 0xf8 << 24 | 2))
    #expect(gic.writeRegister(0, hypervisor(11, 0), 1 | 1 << 2))
    #expect(gic.readRegister(0, key(12, 12, 0), .virtual) == 50)
    #expect(gic.writeRegister(0, key(12, 12, 1), 50, .virtual))
    #expect(status() == 1 && irq.level && gic.readRegister(0, hypervisor(11, 3)) == 1)
    #expect(gic.writeRegister(0, hypervisor(12, 0), 0))
    #expect(status() == 0)
    #expect(gic.writeRegister(0, hypervisor(9, 0), 1 << 16))
    #expect(gic.writeRegister(0, key(12, 12, 1), 60, .virtual))
    #expect(status() == 4 && gic.readRegister(0, hypervisor(11, 0)).map { $0 >> 27 } == 1)
  }

  @Test func version2HasFrames() {
    let gic = gic(.v2)
    let control = GICv2HypervisorInterface(gic)
    let machine = GICv2VirtualInterface(gic)
    #expect(control.readMMIO(offset: 4, byteCount: 4) & 63 == 3)
    machine.writeMMIO(offset: 4, byteCount: 4, value: 0xf8)
    machine.writeMMIO(offset: 0, byteCount: 4, value: 1)
    #expect(control.readMMIO(offset: 8, byteCount: 4) >> 27 == 31)
    control.writeMMIO(offset: 0, byteCount: 4, value: 1)
    // Software-generated interrupt 5 of CPU 2.
    let word: UInt64 = 1 << 28 | 16 << 23 | 2 << 10 | 5
    control.writeMMIO(offset: 0x104, byteCount: 4, value: word)
    #expect(virtualIRQ.level && !virtualFIQ.level)
    #expect(control.readMMIO(offset: 0x30, byteCount: 4) == 13)
    #expect(machine.readMMIO(offset: 0x0c, byteCount: 4) == 2 << 10 | 5)
    #expect(control.readMMIO(offset: 0x104, byteCount: 4) >> 28 & 3 == 2)
    #expect(control.readMMIO(offset: 0xf0, byteCount: 4) == 1 << 16)
    #expect(machine.readMMIO(offset: 0x0c, byteCount: 4) == 1023)
    machine.writeMMIO(offset: 0x10, byteCount: 4, value: 2 << 10 | 5)
    #expect(control.readMMIO(offset: 0x30, byteCount: 4) == 15)
    // Split: the end drops the priority alone.
    machine.writeMMIO(offset: 0, byteCount: 4, value: 0x201)
    control.writeMMIO(offset: 0x100, byteCount: 4, value: word)
    #expect(machine.readMMIO(offset: 0x0c, byteCount: 4) == 2 << 10 | 5)
    machine.writeMMIO(offset: 0x10, byteCount: 4, value: 5)
    #expect(control.readMMIO(offset: 0x100, byteCount: 4) >> 28 & 3 == 2)
    machine.writeMMIO(offset: 0x1000, byteCount: 4, value: 5)
    #expect(control.readMMIO(offset: 0x100, byteCount: 4) >> 28 & 3 == 0)
  }

  /// Random accesses: nothing breaks, and an output is up exactly if something can be acknowledged.
  @Test(arguments: [2, 3]) func fuzz(version: Int) {
    let gic = gic(GIC.Version(rawValue: version)!)
    let control = GICv2HypervisorInterface(gic)
    let machine = GICv2VirtualInterface(gic)
    var random = SeededGenerator(seed: UInt64(version))
    for _ in 0..<fuzzRounds(20000) {
      let value = random.next() & random.pick([.max, 0xffff_ffff, 0xf000_00ff_0000_ffff, 0x201f, 3])
      if version == 2 {
        let offset: UInt64 = random.pick([
          0, 4, 8, 0xc, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0xd0, 0xf0, 0x100, 0x104, 0x1000,
        ])
        let device: any MMIODevice = random.below(2) == 0 ? control : machine
        if random.below(2) == 0 {
          _ = device.readMMIO(offset: offset, byteCount: 4)
        } else {
          device.writeMMIO(offset: offset, byteCount: 4, value: value & 0xffff_ffff)
        }
        let pending = machine.readMMIO(offset: 0x18, byteCount: 4)
        #expect((virtualIRQ.level || virtualFIQ.level) == (pending != 1023))
      } else {
        let register =
          random.below(2) == 0
          ? hypervisor(UInt16(random.below(16)), UInt16(random.below(8)))
          : key(random.below(8) == 0 ? 4 : 12, UInt16(6 + random.below(8)), UInt16(random.below(8)))
        if random.below(2) == 0 {
          _ = gic.readRegister(0, register, .virtual)
        } else {
          _ = gic.writeRegister(0, register, value, .virtual)
        }
        #expect(virtualFIQ.level == (gic.readRegister(0, key(12, 8, 2), .virtual) != 1023))
        #expect(virtualIRQ.level == (gic.readRegister(0, key(12, 12, 2), .virtual) != 1023))
      }
    }
  }
}
