import ApusConfig
import ApusFirmware
import ApusPlatformDevices

/// The AArch64 `virt` machine's description of itself: the nodes and properties that QEMU's has.
struct ArmVirtDeviceTree {
  var cpuCount: Int
  /// The CPU's `compatible`.
  var cpu: String
  var ramByteCount: UInt64
  var gicVersion: GIC.Version
  var hasVirtualization = false
  var hasHypervisorVirtualTimer = false
  var hasTranslationService: Bool
  /// What only the secure state has is there.
  var hasSecurity = false
  var hasPSCI = true

  private typealias Map = ArmVirtMap
  private static let clockHandle: UInt32 = 0x8000
  private func cpuHandle(_ index: Int) -> UInt32 { 0x8100 + UInt32(index) }
  private static let gicHandle: UInt32 = 0x8003
  private static let messageHandle: UInt32 = 0x8004
  private static let gpioHandle: UInt32 = 0x8005
  private static let secureGPIOHandle: UInt32 = 0x8006
  /// Interrupt specifiers: shared 0 or private 1, the number, 4 level high or 1 edge.
  private static let levelHigh: UInt32 = 4
  private static let edge: UInt32 = 1

  func make() -> DeviceTree {
    var tree = DeviceTree()
    tree.root.set("interrupt-parent", Self.gicHandle)
    tree.root.set("model", "linux,dummy-virt")
    tree.root.set("#size-cells", 2)
    tree.root.set("#address-cells", 2)
    tree.root.set("compatible", "linux,dummy-virt")
    if hasPSCI {
      tree.root.add(
        .init("psci") {
          $0.set("migrate", 0xc400_0005)
          $0.set("cpu_on", 0xc400_0003)
          $0.set("cpu_off", 0x8400_0002)
          $0.set("cpu_suspend", 0xc400_0001)
          $0.set("method", hasVirtualization ? "smc" : "hvc")
          $0.set("compatible", ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"])
        })
    }
    tree.root.add(
      .init("memory@\(hex(Map.ram))") {
        $0.set("reg", wide: Map.ram, ramByteCount)
        $0.set("device_type", "memory")
      })
    tree.root.add(
      .init("fw-cfg@\(hex(Map.fwCfg))") {
        $0.set("dma-coherent")
        $0.set("reg", wide: Map.fwCfg, FirmwareConfiguration.byteCount)
        $0.set("compatible", "qemu,fw-cfg-mmio")
      })
    for slot in 0..<Map.virtio.count {
      tree.root.add(
        device(
          "virtio_mmio", Map.virtio.base + UInt64(slot) * Map.virtio.stride, Map.virtio.stride,
          ["virtio,mmio"],
          Map.virtioInterrupt + slot, Self.edge
        ) { $0.set("dma-coherent") })
    }
    tree.root.add(
      .init("gpio-keys") {
        $0.set("compatible", "gpio-keys")
        $0.add(
          .init("poweroff") {
            $0.set("gpios", Self.gpioHandle, UInt32(Map.powerKeyPin), 0)
            $0.set("linux,code", 0x74)
            $0.set("label", "GPIO Key Poweroff")
          })
      })
    tree.root.add(
      peripheral("pl061", Map.gpio, PL061.byteCount, Map.gpioInterrupt) {
        $0.set("phandle", Self.gpioHandle)
        $0.set("gpio-controller")
        $0.set("#gpio-cells", 2)
      })
    tree.root.add(pci)
    tree.root.add(peripheral("pl031", Map.rtc, PL031.byteCount, Map.rtcInterrupt))
    tree.root.add(
      peripheral("pl011", Map.uart, PL011.byteCount, Map.uartInterrupt) {
        $0.set("clock-names", ["uartclk", "apb_pclk"])
        $0.set("clocks", Self.clockHandle, Self.clockHandle)
      })
    tree.root.add(gic)
    addFlash(to: &tree.root)
    if hasSecurity { addSecurePeripherals(to: &tree.root) }
    tree.root.add(cpus)
    tree.root.add(
      .init("timer") { node in
        // GICv2 has the CPUs as bits 15 to 8.
        let mask: UInt32 = gicVersion == .v2 ? (1 << UInt32(cpuCount) - 1) << 8 : 0
        // Secure and normal physical, virtual, EL2's physical and virtual timer.
        let timers: [UInt32] = [13, 14, 11, 10] + (hasHypervisorVirtualTimer ? [12] : [])
        node.set("interrupts", cells: timers.flatMap { [1, $0, Self.levelHigh | mask] })
        node.set("always-on")
        node.set("compatible", ["arm,armv8-timer", "arm,armv7-timer"])
      })
    tree.root.add(
      .init("pmu") { node in
        let mask: UInt32 = gicVersion == .v2 ? (1 << UInt32(cpuCount) - 1) << 8 : 0
        node.set("interrupts", cells: [1, UInt32(Map.performanceInterrupt - 16), Self.levelHigh | mask])
        node.set("compatible", "arm,armv8-pmuv3")
      })
    tree.root.add(
      .init("apb-pclk") {
        $0.set("phandle", Self.clockHandle)
        $0.set("clock-output-names", "clk24mhz")
        $0.set("clock-frequency", 24_000_000)
        $0.set("#clock-cells", 0)
        $0.set("compatible", "fixed-clock")
      })
    tree.root.add(.init("chosen") { $0.set("stdout-path", "/pl011@\(hex(Map.uart))") })
    return tree
  }

  private func addFlash(to root: inout DeviceTree.Node) {
    let bank = Map.flash.bankByteCount
    func add(_ name: String, _ banks: [UInt64], isSecure: Bool = false) {
      root.add(
        .init("\(name)@\(hex(banks[0]))") {
          $0.set("bank-width", 4)
          $0.set("reg", cells: banks.flatMap { split($0) + split(bank) })
          $0.set("compatible", "cfi-flash")
          if isSecure { setSecure(&$0) }
        })
    }
    guard hasSecurity else { return add("flash", [Map.flash.base, Map.flash.base + bank]) }
    add("secflash", [Map.flash.base], isSecure: true)
    add("flash", [Map.flash.base + bank])
  }

  /// A node for the secure state alone [devicetree/bindings/arm/secure.txt].
  private func setSecure(_ node: inout DeviceTree.Node) {
    node.set("secure-status", "okay")
    node.set("status", "disabled")
  }

  private func addSecurePeripherals(to root: inout DeviceTree.Node) {
    root.add(
      .init("secram@\(hex(Map.secureRAM.base))") {
        $0.set("device_type", "memory")
        $0.set("reg", wide: Map.secureRAM.base, Map.secureRAM.byteCount)
        setSecure(&$0)
      })
    root.add(
      peripheral("pl011", Map.secureUART, PL011.byteCount, Map.secureUARTInterrupt) {
        $0.set("clock-names", ["uartclk", "apb_pclk"])
        $0.set("clocks", Self.clockHandle, Self.clockHandle)
        setSecure(&$0)
      })
    root.add(.init("secure-chosen") { $0.set("stdout-path", "/pl011@\(hex(Map.secureUART))") })
    root.add(
      .init("pl061@\(hex(Map.secureGPIO))") {
        $0.set("phandle", Self.secureGPIOHandle)
        $0.set("clock-names", "apb_pclk")
        $0.set("clocks", Self.clockHandle)
        $0.set("gpio-controller")
        $0.set("#gpio-cells", 2)
        $0.set("reg", wide: Map.secureGPIO, PL061.byteCount)
        $0.set("compatible", ["arm,pl061", "arm,primecell"])
        setSecure(&$0)
      })
    for (name, pin) in [("gpio-poweroff", Map.powerOffPin), ("gpio-restart", Map.resetPin)] {
      root.add(
        .init(name) {
          $0.set("compatible", name)
          $0.set("gpios", Self.secureGPIOHandle, UInt32(pin), 0)
          setSecure(&$0)
        })
    }
  }

  private func device(
    _ name: String, _ base: UInt64, _ byteCount: UInt64, _ compatible: [String], _ interrupt: Int,
    _ trigger: UInt32,
    _ more: (inout DeviceTree.Node) -> Void = { _ in }
  ) -> DeviceTree.Node {
    .init("\(name)@\(hex(base))") {
      $0.set("interrupts", 0, UInt32(interrupt), trigger)
      $0.set("reg", wide: base, byteCount)
      $0.set("compatible", compatible)
      more(&$0)
    }
  }
  /// A PrimeCell on the 24 MHz clock.
  private func peripheral(
    _ name: String, _ base: UInt64, _ byteCount: UInt64, _ interrupt: Int,
    _ more: (inout DeviceTree.Node) -> Void = { _ in }
  ) -> DeviceTree.Node {
    device(name, base, byteCount, ["arm,\(name)", "arm,primecell"], interrupt, Self.levelHigh) {
      $0.set("clock-names", "apb_pclk")
      $0.set("clocks", Self.clockHandle)
      more(&$0)
    }
  }

  private var cpus: DeviceTree.Node {
    .init("cpus") { node in
      node.set("#size-cells", 0)
      node.set("#address-cells", 1)
      node.add(
        .init("cpu-map") {
          $0.add(
            .init("socket0") {
              $0.add(
                .init("cluster0") { cluster in
                  for index in 0..<cpuCount {
                    cluster.add(.init("core\(index)") { $0.set("cpu", cpuHandle(index)) })
                  }
                })
            })
        })
      for index in 0..<cpuCount {
        node.add(
          .init("cpu@\(hex(UInt64(index)))") {
            $0.set("phandle", cpuHandle(index))
            $0.set("reg", UInt32(index))
            if cpuCount > 1, hasPSCI { $0.set("enable-method", "psci") }
            $0.set("compatible", cpu)
            $0.set("device_type", "cpu")
          })
      }
    }
  }

  private var gic: DeviceTree.Node {
    .init("intc@\(hex(Map.gicDistributor))") {
      $0.set("phandle", Self.gicHandle)
      $0.set("ranges")
      $0.set("#size-cells", 2)
      $0.set("#address-cells", 2)
      $0.set("interrupt-controller")
      $0.set("#interrupt-cells", 3)
      if hasVirtualization {
        $0.set("interrupts", 1, UInt32(Map.maintenanceInterrupt - 16), Self.levelHigh)
      }
      if gicVersion == .v2 {
        if hasVirtualization {
          $0.set(
            "reg", wide: Map.gicDistributor, 0x10000, Map.gicInterface, 0x10000, Map.gicHypervisor, 0x10000,
            Map.gicVirtual, 0x10000)
        } else {
          $0.set("reg", wide: Map.gicDistributor, 0x10000, Map.gicInterface, 0x10000)
        }
        $0.set("compatible", "arm,cortex-a15-gic")
        $0.add(
          .init("v2m@\(hex(Map.gicMessages))") {
            $0.set("phandle", Self.messageHandle)
            $0.set("reg", wide: Map.gicMessages, GICv2MessageFrame.byteCount)
            $0.set("msi-controller")
            $0.set("compatible", "arm,gic-v2m-frame")
          })
      } else {
        $0.set(
          "reg", wide: Map.gicDistributor, 0x10000, Map.gicRedistributors.base,
          Map.gicRedistributors.byteCount)
        $0.set("#redistributor-regions", 1)
        $0.set("compatible", "arm,gic-v3")
        guard hasTranslationService else { return }
        $0.add(
          .init("its@\(hex(Map.gicTranslation))") {
            $0.set("phandle", Self.messageHandle)
            $0.set("reg", wide: Map.gicTranslation, GICTranslationService.byteCount)
            $0.set("#msi-cells", 1)
            $0.set("msi-controller")
            $0.set("compatible", "arm,gic-v3-its")
          })
      }
    }
  }

  private var pci: DeviceTree.Node {
    .init("pcie@\(hex(Map.pciMemory.base))") {
      // Interrupts: a child's 3 address cells and pin; the GIC, 2 address cells, specifier. Rotated over four slots.
      var map: [UInt32] = []
      for slot in 0..<4 as Range<UInt32> {
        for pin in 0..<4 as Range<UInt32> {
          map += [slot << 11, 0, 0, pin + 1, Self.gicHandle, 0, 0]
          map += [0, UInt32(Map.pciInterrupt) + (slot + pin) % 4, Self.levelHigh]
        }
      }
      $0.set("interrupt-map-mask", 0x1800, 0, 0, 7)
      $0.set("interrupt-map", cells: map)
      $0.set("#interrupt-cells", 1)
      let windows: [(UInt32, UInt64, UInt64, UInt64)] = [
        (0x0100_0000, 0, Map.pciPorts.base, Map.pciPorts.byteCount),
        (0x0200_0000, Map.pciMemory.base, Map.pciMemory.base, Map.pciMemory.byteCount),
        (0x0300_0000, Map.pciMemory64.base, Map.pciMemory64.base, Map.pciMemory64.byteCount),
      ]
      $0.set("ranges", cells: windows.flatMap { [$0.0] + split($0.1) + split($0.2) + split($0.3) })
      $0.set("reg", wide: Map.pciConfiguration.base, Map.pciConfiguration.byteCount)
      if gicVersion == .v2 || hasTranslationService { $0.set("msi-map", 0, Self.messageHandle, 0, 0x10000) }
      $0.set("dma-coherent")
      $0.set("bus-range", 0, 0xff)
      $0.set("linux,pci-domain", 0)
      $0.set("#size-cells", 2)
      $0.set("#address-cells", 3)
      $0.set("device_type", "pci")
      $0.set("compatible", "pci-host-ecam-generic")
    }
  }

  private func split(_ number: UInt64) -> [UInt32] {
    [UInt32(truncatingIfNeeded: number >> 32), UInt32(truncatingIfNeeded: number)]
  }
  private func hex(_ number: UInt64) -> String { String(number, radix: 16) }
}
