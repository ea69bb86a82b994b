import ApusCPU
import ApusDevice
import ApusPlatformDevices
import ApusTestKit
import Testing

/// A controller with two security states, and one CPU.
@Suite(.serialized) struct GICSecurityTests {
  typealias Access = ArmCPUEnvironment.Interface
  let irq = Probe()
  let fiq = Probe()
  let secureIRQ = Probe()

  func gic(_ version: GIC.Version, _ security: GIC.Security = .secure) -> GIC {
    GIC(
      version: version, sharedCount: 96,
      outputs: [.init(irq: irq.line, fiq: fiq.line, secureIRQ: secureIRQ.line)], security: security)
  }
  func key(_ n: UInt16, _ m: UInt16, _ op2: UInt16, op1: UInt16 = 0) -> UInt16 {
    3 << 14 | op1 << 11 | n << 7 | m << 3 | op2
  }
  let monitor = Access(isMonitor: true, isSecure: true, keepsGroup0: true)
  let secure = Access(isSecure: true, keepsGroup0: true)
  let normal = Access(keepsGroup0: true)

  @Test func version2ShowsEachStateItsOwn() {
    let gic = gic(.v2)
    let (distributor, interface) = (
      GICv2Distributor(gic, isSecure: true), GICv2Interface(gic, isSecure: true)
    )
    let (other, otherInterface) = (GICv2Distributor(gic), GICv2Interface(gic))
    distributor.writeMMIO(offset: 0, byteCount: 4, value: 3)
    // Of the shared interrupts 32 is the secure state's, 33 the other's.
    distributor.writeMMIO(offset: 0x84, byteCount: 4, value: 2)
    distributor.writeMMIO(offset: 0x104, byteCount: 4, value: 3)
    distributor.writeMMIO(offset: 0x420, byteCount: 4, value: 0xa020)
    #expect(other.readMMIO(offset: 0x84, byteCount: 4) == 0)
    #expect(other.readMMIO(offset: 0x104, byteCount: 4) == 2)
    #expect(other.readMMIO(offset: 0x420, byteCount: 4) == 0x4000)
    other.writeMMIO(offset: 0x420, byteCount: 4, value: 0x6060)
    #expect(distributor.readMMIO(offset: 0x420, byteCount: 4) == 0xb020)
    other.writeMMIO(offset: 0x184, byteCount: 4, value: 1)
    #expect(distributor.readMMIO(offset: 0x104, byteCount: 4) == 3)
    #expect(other.readMMIO(offset: 0, byteCount: 4) == 1)
    // The mask.
    interface.writeMMIO(offset: 4, byteCount: 4, value: 0xf0)
    #expect(otherInterface.readMMIO(offset: 4, byteCount: 4) == 0xe0)
    interface.writeMMIO(offset: 0, byteCount: 4, value: 0xb)
    #expect(otherInterface.readMMIO(offset: 0, byteCount: 4) == 1)
    gic.input(1).set(true)
    #expect(irq.level && !fiq.level)
    #expect(interface.readMMIO(offset: 0x0c, byteCount: 4) == 1022)
    gic.input(0).set(true)
    #expect(fiq.level)
    #expect(otherInterface.readMMIO(offset: 0x0c, byteCount: 4) == 1023)
    #expect(interface.readMMIO(offset: 0x0c, byteCount: 4) == 32)
    #expect(otherInterface.readMMIO(offset: 0x14, byteCount: 4) == 0)
    otherInterface.writeMMIO(offset: 0x10, byteCount: 4, value: 32)
    #expect(interface.readMMIO(offset: 0x14, byteCount: 4) == 0x20)
    gic.input(0).set(false)
    interface.writeMMIO(offset: 0x10, byteCount: 4, value: 32)
    #expect(otherInterface.readMMIO(offset: 0x0c, byteCount: 4) == 33)
  }

  @Test func version3HasThreeGroups() {
    let gic = gic(.v3)
    let (distributor, other) = (GICv3Distributor(gic, isSecure: true), GICv3Distributor(gic))
    distributor.writeMMIO(offset: 0, byteCount: 4, value: 7)
    #expect(distributor.readMMIO(offset: 0, byteCount: 4) == 0x37)
    #expect(other.readMMIO(offset: 0, byteCount: 4) == 0x12)
    // 32: group 0; 33: the other state's; 34: the secure group 1.
    distributor.writeMMIO(offset: 0x84, byteCount: 4, value: 2)
    distributor.writeMMIO(offset: 0xd04, byteCount: 4, value: 4)
    distributor.writeMMIO(offset: 0x104, byteCount: 4, value: 7)
    #expect(
      other.readMMIO(offset: 0xd04, byteCount: 4) == 0 && other.readMMIO(offset: 0x104, byteCount: 4) == 2)
    #expect(gic.writeRegister(0, key(4, 6, 0), 0xf8, monitor))
    #expect(gic.writeRegister(0, key(12, 12, 6), 1, monitor))
    #expect(gic.writeRegister(0, key(12, 12, 7, op1: 6), 3, monitor))
    #expect(gic.readRegister(0, key(4, 6, 0), normal) == 0xf0)
    gic.input(2).set(true)
    #expect(secureIRQ.level && !irq.level && !fiq.level)
    // EL3 is told whose it is.
    #expect(gic.readRegister(0, key(12, 8, 0), monitor) == 1020)
    #expect(gic.readRegister(0, key(12, 12, 0), normal) == 1023)
    #expect(gic.readRegister(0, key(12, 12, 0), secure) == 34)
    gic.input(2).set(false)
    #expect(gic.writeRegister(0, key(12, 12, 1), 34, normal))
    #expect(gic.readRegister(0, key(12, 11, 3), secure) == 0)
    #expect(gic.writeRegister(0, key(12, 12, 1), 34, secure))
    #expect(gic.readRegister(0, key(12, 11, 3), secure) == 0xff)
    gic.input(1).set(true)
    #expect(irq.level && !secureIRQ.level)
    #expect(gic.readRegister(0, key(12, 8, 2), monitor) == 1021)
    #expect(gic.readRegister(0, key(12, 12, 0), normal) == 33)
    gic.input(1).set(false)
    #expect(gic.writeRegister(0, key(12, 12, 1), 33, normal))
    // Without EL3's FIQ the non-secure state sees the priorities as they are.
    #expect(gic.readRegister(0, key(4, 6, 0), Access()) == 0xf8)
  }

  @Test func softwareInterruptsKeepToTheirState() {
    let gic = gic(.v3)
    let redistributors = GICv3Redistributors(gic, isSecure: true)
    redistributors.writeMMIO(offset: 0x10080, byteCount: 4, value: 1 << 8)
    redistributors.writeMMIO(offset: 0x10d00, byteCount: 4, value: 1 << 1)
    func pending() -> UInt64 { redistributors.readMMIO(offset: 0x10200, byteCount: 4) }
    // The other state sends its own group 1 alone.
    for register in 5...7 as ClosedRange<UInt16> {
      for number in [0, 1, 8] as [UInt64] {
        #expect(gic.writeRegister(0, key(12, 11, register), number << 24 | 1, normal))
      }
    }
    #expect(pending() == 1 << 8)
    // Unless the secure state lets it.
    redistributors.writeMMIO(offset: 0x10e00, byteCount: 4, value: 1 | 2 << 2)
    #expect(gic.writeRegister(0, key(12, 11, 7), 1, normal))
    #expect(gic.writeRegister(0, key(12, 11, 6), 1 << 24 | 1, normal))
    #expect(pending() == 1 << 8 | 3)
  }

  @Test func emulatedFirmwareGivesInterruptsAway() {
    let gic = gic(.v2, .nonSecure)
    let (distributor, interface) = (GICv2Distributor(gic), GICv2Interface(gic))
    distributor.writeMMIO(offset: 0, byteCount: 4, value: 1)
    distributor.writeMMIO(offset: 0x104, byteCount: 4, value: 1)
    interface.writeMMIO(offset: 4, byteCount: 4, value: 0xf0)
    interface.writeMMIO(offset: 0, byteCount: 4, value: 1)
    gic.input(0).set(true)
    #expect(irq.level && !fiq.level)
    #expect(interface.readMMIO(offset: 0x0c, byteCount: 4) == 32)
    gic.reset()
    #expect(GICv2Distributor(gic, isSecure: true).readMMIO(offset: 0x84, byteCount: 4) == 0xffff_ffff)
  }
}
