import ApusFirmware
import ApusPlatformDevices

/// The AArch64 `virt` machine's ACPI tables [ACPI 6.5; Arm Base Boot Requirements].
struct ArmVirtACPI {
  var cpuCount: Int
  var gicVersion: GIC.Version
  var hasVirtualization = false
  var hasHypervisorVirtualTimer = false
  var hasTranslationService: Bool
  var hasPSCI = true

  private typealias Map = ArmVirtMap

  func files() -> [(name: String, bytes: [UInt8])] {
    var tables = ACPITables()
    tables.add("DSDT", revision: 2, description)
    tables.add("FACP", revision: 6, fixed)
    tables.add("APIC", revision: 4, interruptControllers)
    tables.add("GTDT", revision: hasHypervisorVirtualTimer ? 3 : 2, timers)
    tables.add("MCFG", revision: 1, pciConfiguration)
    tables.add("SPCR", revision: 2, console)
    if hasTranslationService { tables.add("IORT", revision: 3, messageRoutes) }
    return tables.files()
  }

  /// A shared interrupt's GSI.
  private func shared(_ number: Int) -> Int { 32 + number }

  // MARK: Static tables

  /// FADT [§5.2.9]: hardware-reduced; PSCI, by hvc or smc, unless firmware at EL3 answers it.
  private var fixed: ACPITables.Body {
    var body = ACPITables.Body()
    body.pad(to: 112)
    body.append(1 << 20, 4)
    body.pad(to: 129)
    body.append(!hasPSCI ? 0 : hasVirtualization ? 1 : 3, 2)
    body.pad(to: 140)
    body.append(pointerTo: "DSDT")
    body.pad(to: 276)
    return body
  }

  /// MADT [§5.2.12].
  private var interruptControllers: ACPITables.Body {
    var body = ACPITables.Body()
    body.append(0, 8)
    // Distributor.
    body.append([0x0c, 24, 0, 0, 0, 0, 0, 0])
    body.append(Map.gicDistributor, 8)
    body.append(0, 4)
    body.append(UInt64(gicVersion.rawValue), 4)
    for cpu in 0..<UInt64(cpuCount) {
      body.append([0x0b, 80, 0, 0])
      body.append(cpu, 4)
      body.append(cpu, 4)
      body.append(1, 4)  // enabled
      body.append(0, 4)
      body.append(UInt64(Map.performanceInterrupt), 4)
      body.append(0, 8)
      body.append(gicVersion == .v2 ? Map.gicInterface : 0, 8)
      // Version 2's virtual and EL2's interface; the maintenance interrupt; no redistributor of its own.
      let hasFrames = hasVirtualization && gicVersion == .v2
      body.append(hasFrames ? Map.gicVirtual : 0, 8)
      body.append(hasFrames ? Map.gicHypervisor : 0, 8)
      body.append(hasVirtualization ? UInt64(Map.maintenanceInterrupt) : 0, 4)
      body.append(0, 8)
      body.append(cpu, 8)  // MPIDR
      body.append(0, 4)
    }
    switch gicVersion {
    case .v2:
      body.append([0x0d, 24, 0, 0, 0, 0, 0, 0])
      body.append(Map.gicMessages, 8)
      body.append(1, 4)
      body.append(UInt64(Map.messageInterrupt.count), 2)
      body.append(UInt64(shared(Map.messageInterrupt.first)), 2)
    case .v3:
      body.append([0x0e, 16, 0, 0])
      body.append(Map.gicRedistributors.base, 8)
      body.append(Map.gicRedistributors.byteCount, 4)
      if hasTranslationService {
        body.append([0x0f, 20, 0, 0, 0, 0, 0, 0])
        body.append(Map.gicTranslation, 8)
        body.append(0, 4)
      }
    }
    return body
  }

  /// GTDT [§5.2.25]: the timers' interrupts, level-triggered, always on.
  private var timers: ACPITables.Body {
    var body = ACPITables.Body()
    body.append(.max, 8)
    body.append(0, 4)
    for interrupt in [
      Map.secureTimerInterrupt, Map.physicalTimerInterrupt, Map.virtualTimerInterrupt,
      Map.hypervisorTimerInterrupt,
    ] {
      body.append(UInt64(interrupt), 4)
      body.append(4, 4)
    }
    body.append(.max, 8)
    body.append(0, 8)
    // Revision 3: EL2's virtual timer.
    if hasHypervisorVirtualTimer {
      body.append(UInt64(Map.hypervisorVirtualTimerInterrupt), 4)
      body.append(4, 4)
    }
    return body
  }

  /// MCFG [PCI Firmware 3.3 §4.1.2].
  private var pciConfiguration: ACPITables.Body {
    var body = ACPITables.Body()
    body.append(0, 8)
    body.append(Map.pciConfiguration.base, 8)
    body.append([0, 0, 0, 255, 0, 0, 0, 0])
    return body
  }

  /// SPCR: the PL011.
  private var console: ACPITables.Body {
    var body = ACPITables.Body()
    body.append(3, 4)
    body.append(registerAt: Map.uart, bitCount: 32, accessSize: 3)
    body.append([8, 0])
    body.append(UInt64(shared(Map.uartInterrupt)), 4)
    body.append([3, 0, 1, 0, 0, 0])
    body.append([0xff, 0xff, 0xff, 0xff])
    body.pad(to: 80)
    return body
  }

  /// IORT [Arm DEN 0049]: PCI's requester IDs are the translation service's device numbers.
  private var messageRoutes: ACPITables.Body {
    var body = ACPITables.Body()
    let (group, groupByteCount, rootByteCount) = (48 as UInt64, 24 as UInt64, 36 + 20 as UInt64)
    body.append(2, 4)
    body.append(group, 4)
    body.append(0, 4)
    // The group of the one service, its number 0.
    body.append([0])
    body.append(groupByteCount, 2)
    body.append([0] + [0, 0, 0, 0])
    body.append(0, 8)
    body.append(1, 4)
    body.append(0, 4)
    // PCI's root complex: coherent, with one mapping of all IDs.
    body.append([2])
    body.append(rootByteCount, 2)
    body.append([1] + [1, 0, 0, 0])
    body.append(1, 4)
    body.append(36, 4)
    body.append(1, 4)
    body.append([0, 0, 0, 3])
    body.append(0, 8)
    body.append([64, 0, 0, 0])
    for value in [0, 0xffff, 0, group, 0] { body.append(value, 4) }
    return body
  }

  // MARK: DSDT

  private var description: ACPITables.Body {
    var devices: AML.Code = []
    for cpu in 0..<cpuCount {
      devices += AML.device(
        "C" + hex(UInt64(cpu), digits: 3), AML.name("_HID", AML.string("ACPI0007")),
        AML.name("_UID", AML.integer(UInt64(cpu))))
    }
    devices += AML.device(
      "COM0", AML.name("_HID", AML.string("ARMH0011")), AML.name("_UID", AML.integer(0)),
      AML.name(
        "_CRS", AML.resources(AML.memory32(Map.uart, 0x1000), AML.interrupt(shared(Map.uartInterrupt)))))
    devices += AML.device(
      "FWCF", AML.name("_HID", AML.string("QEMU0002")), AML.name("_STA", AML.integer(0x0b)),
      AML.name("_CCA", AML.integer(1)),
      AML.name("_CRS", AML.resources(AML.memory32(Map.fwCfg, FirmwareConfiguration.byteCount))))
    for slot in 0..<Map.virtio.count {
      devices += AML.device(
        "VR" + hex(UInt64(slot), digits: 2), AML.name("_HID", AML.string("LNRO0005")),
        AML.name("_UID", AML.integer(UInt64(slot))), AML.name("_CCA", AML.integer(1)),
        AML.name(
          "_CRS",
          AML.resources(
            AML.memory32(Map.virtio.base + UInt64(slot) * Map.virtio.stride, Map.virtio.stride),
            AML.interrupt(shared(Map.virtioInterrupt + slot)))))
    }
    devices += pci
    devices += powerKey
    var body = ACPITables.Body()
    body.append(AML.scope("\\_SB", devices))
    return body
  }

  private func hex(_ value: UInt64, digits: Int) -> String {
    let text = String(value, radix: 16, uppercase: true)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
  }

  /// The key is a pin of the PL061.
  private var powerKey: AML.Code {
    AML.device("PWRB", AML.name("_HID", AML.string("PNP0C0C")), AML.name("_UID", AML.integer(0)))
      + AML.device(
        "GPO0", AML.name("_HID", AML.string("ARMH0061")), AML.name("_UID", AML.integer(0)),
        AML.name(
          "_CRS", AML.resources(AML.memory32(Map.gpio, 0x1000), AML.interrupt(shared(Map.gpioInterrupt)))),
        AML.name("_AEI", AML.resources(AML.pinInterrupt(UInt64(Map.powerKeyPin), of: "GPO0"))),
        AML.method(
          "_E" + hex(UInt64(Map.powerKeyPin), digits: 2), argumentCount: 0, AML.notify("\\_SB.PWRB", 0x80)))
  }

  private var pci: AML.Code {
    var routes: [AML.Code] = []
    for slot in 0..<32 {
      for pin in 0..<4 {
        routes.append(
          AML.package([
            AML.integer(UInt64(slot) << 16 | 0xffff), AML.integer(UInt64(pin)), AML.integer(0),
            AML.integer(UInt64(shared(Map.pciInterrupt + (slot + pin) % 4))),
          ]))
      }
    }
    // _OSC [PCI Firmware 3.3 §4.5]: all that is asked for but hot plug's surprises.
    let control = AML.method(
      "_OSC", argumentCount: 4, isSerialized: true, AML.doubleWordField(AML.argument(3), at: 0, "CDW1"),
      AML.if(
        AML.equal(AML.argument(0), AML.uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
        then: AML.doubleWordField(AML.argument(3), at: 8, "CDW3"), AML.and("CDW3", 0x1d),
        AML.if(AML.not(AML.equal(AML.argument(1), AML.integer(1))), then: AML.or("CDW1", 8)),
        else: AML.or("CDW1", 4)), AML.return(AML.argument(3)))
    return AML.device(
      "PCI0", AML.name("_HID", AML.string("PNP0A08")), AML.name("_CID", AML.string("PNP0A03")),
      AML.name("_SEG", AML.integer(0)), AML.name("_BBN", AML.integer(0)), AML.name("_UID", AML.integer(0)),
      AML.name("_CCA", AML.integer(1)), AML.name("_PRT", AML.package(routes)),
      AML.name(
        "_CRS",
        AML.resources(
          AML.buses(last: 255), AML.memoryWindow(Map.pciMemory.base, Map.pciMemory.byteCount),
          AML.portWindow(Map.pciPorts.base, Map.pciPorts.byteCount),
          AML.memoryWindow(Map.pciMemory64.base, Map.pciMemory64.byteCount))), control,
      AML.device(
        "RES0", AML.name("_HID", AML.string("PNP0C02")),
        AML.name(
          "_CRS",
          AML.resources(AML.memoryWindow(Map.pciConfiguration.base, Map.pciConfiguration.byteCount)))))
  }
}
