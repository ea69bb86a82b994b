import ApusConfig
import ApusFirmware
import ApusPlatformDevices

/// The `virt` machine's description of itself: the nodes and properties that QEMU's has.
struct RISCVVirtDeviceTree {
  var cpuCount: Int
  var cpu: CPUConfiguration
  var ramByteCount: UInt64

  private typealias Map = RISCVVirtMap

  // Phandles: 1, 2 for CPU 0 and its interrupt controller, 3, 4 for CPU 1, ...; then these.
  private func cpuHandle(_ index: Int) -> UInt32 { UInt32(2 * index + 1) }
  private func intcHandle(_ index: Int) -> UInt32 { UInt32(2 * index + 2) }
  private var plicHandle: UInt32 { UInt32(2 * cpuCount + 1) }
  private var testHandle: UInt32 { UInt32(2 * cpuCount + 2) }

  func make() -> DeviceTree {
    var tree = DeviceTree()
    tree.root.set("#address-cells", 2)
    tree.root.set("#size-cells", 2)
    tree.root.set("compatible", "riscv-virtio")
    tree.root.set("model", "riscv-virtio,qemu")
    tree.root.add(
      .init("memory@\(hex(Map.ram))") {
        $0.set("device_type", "memory")
        $0.set("reg", wide: Map.ram, ramByteCount)
      })
    tree.root.add(cpus)
    tree.root.add(
      .init("fw-cfg@\(hex(Map.fwCfg))") {
        $0.set("compatible", "qemu,fw-cfg-mmio")
        $0.set("reg", wide: Map.fwCfg, FirmwareConfiguration.byteCount)
        $0.set("dma-coherent")
      })
    tree.root.add(
      .init("flash@\(hex(Map.flash.base))") {
        $0.set("compatible", "cfi-flash")
        let bank = Map.flash.bankByteCount
        $0.set("reg", wide: Map.flash.base, bank, Map.flash.base + bank, bank)
        $0.set("bank-width", 4)
      })
    tree.root.add(powerNode("poweroff", value: 0x5555))
    tree.root.add(powerNode("reboot", value: 0x7777))
    tree.root.add(soc)
    tree.root.add(.init("chosen") { $0.set("stdout-path", "/soc/serial@\(hex(Map.uart))") })
    return tree
  }

  private func powerNode(_ name: String, value: UInt32) -> DeviceTree.Node {
    .init(name) {
      $0.set("compatible", "syscon-\(name)")
      $0.set("regmap", testHandle)
      $0.set("offset", 0)
      $0.set("value", value)
    }
  }

  private var cpus: DeviceTree.Node {
    .init("cpus") { node in
      node.set("#address-cells", 1)
      node.set("#size-cells", 0)
      node.set("timebase-frequency", UInt32(ACLINT.frequency))
      for index in 0..<cpuCount {
        node.add(
          .init("cpu@\(hex(UInt64(index)))") {
            $0.set("device_type", "cpu")
            $0.set("reg", UInt32(index))
            $0.set("status", "okay")
            $0.set("compatible", "riscv")
            $0.set("riscv,isa-base", "rv64i")
            $0.set("riscv,isa-extensions", cpu.extensions.names)
            $0.set("riscv,isa", cpu.extensions.isaString)
            $0.set("mmu-type", cpu.translation == .bare ? "riscv,none" : "riscv,\(cpu.translation.rawValue)")
            if cpu.extensions.contains("zicbom") { $0.set("riscv,cbom-block-size", 64) }
            if cpu.extensions.contains("zicboz") { $0.set("riscv,cboz-block-size", 64) }
            $0.set("phandle", cpuHandle(index))
            $0.add(
              .init("interrupt-controller") {
                $0.set("#interrupt-cells", 1)
                $0.set("interrupt-controller")
                $0.set("compatible", "riscv,cpu-intc")
                $0.set("phandle", intcHandle(index))
              })
          })
      }
      node.add(
        .init("cpu-map") {
          $0.add(
            .init("cluster0") { cluster in
              for index in 0..<cpuCount {
                cluster.add(.init("core\(index)") { $0.set("cpu", cpuHandle(index)) })
              }
            })
        })
    }
  }

  private var soc: DeviceTree.Node {
    .init("soc") { node in
      node.set("#address-cells", 2)
      node.set("#size-cells", 2)
      node.set("compatible", "simple-bus")
      node.set("ranges")
      node.add(
        device("serial", Map.uart, UART16550.byteCount, "ns16550a", interrupt: Map.uartInterrupt) {
          $0.set("clock-frequency", UInt32(UART16550.clockFrequency))
        })
      node.add(
        device("rtc", Map.rtc, GoldfishRTC.byteCount, "google,goldfish-rtc", interrupt: Map.rtcInterrupt))
      node.add(
        .init("test@\(hex(Map.testFinisher))") {
          $0.set("compatible", ["sifive,test1", "sifive,test0", "syscon"])
          $0.set("reg", wide: Map.testFinisher, SiFiveTest.byteCount)
          $0.set("phandle", testHandle)
        })
      for slot in 0..<Map.virtio.count {
        node.add(
          device(
            "virtio_mmio", Map.virtio.base + UInt64(slot) * Map.virtio.stride, Map.virtio.stride,
            "virtio,mmio",
            interrupt: Map.virtioInterrupt + slot))
      }
      node.add(pci)
      node.add(plic)
      node.add(clint)
    }
  }

  private func device(
    _ name: String, _ base: UInt64, _ byteCount: UInt64, _ compatible: String, interrupt: Int,
    _ more: (inout DeviceTree.Node) -> Void = { _ in }
  ) -> DeviceTree.Node {
    .init("\(name)@\(hex(base))") {
      $0.set("compatible", compatible)
      $0.set("reg", wide: base, byteCount)
      $0.set("interrupt-parent", plicHandle)
      $0.set("interrupts", UInt32(interrupt))
      more(&$0)
    }
  }

  private var plic: DeviceTree.Node {
    .init("plic@\(hex(Map.plic))") {
      $0.set("compatible", ["sifive,plic-1.0.0", "riscv,plic0"])
      $0.set("reg", wide: Map.plic, PLIC.byteCount)
      $0.set("#address-cells", 0)
      $0.set("#interrupt-cells", 1)
      $0.set("interrupt-controller")
      $0.set(
        "interrupts-extended", cells: (0..<cpuCount).flatMap { [intcHandle($0), 11, intcHandle($0), 9] })
      $0.set("riscv,ndev", UInt32(Map.interruptSourceCount))
      $0.set("phandle", plicHandle)
    }
  }

  private var clint: DeviceTree.Node {
    .init("clint@\(hex(Map.aclint))") {
      $0.set("compatible", ["sifive,clint0", "riscv,clint0"])
      $0.set("reg", wide: Map.aclint, ACLINT.byteCount)
      $0.set("interrupts-extended", cells: (0..<cpuCount).flatMap { [intcHandle($0), 3, intcHandle($0), 7] })
    }
  }

  private var pci: DeviceTree.Node {
    .init("pci@\(hex(Map.pciConfiguration.base))") {
      $0.set("compatible", "pci-host-ecam-generic")
      $0.set("device_type", "pci")
      $0.set("#address-cells", 3)
      $0.set("#size-cells", 2)
      $0.set("#interrupt-cells", 1)
      $0.set("linux,pci-domain", 0)
      $0.set("bus-range", 0, 0xff)
      $0.set("dma-coherent")
      $0.set("reg", wide: Map.pciConfiguration.base, Map.pciConfiguration.byteCount)
      // Each: space (1 ports, 2 memory, 3 64-bit memory), PCI address, CPU address, size.
      let high = Map.pciMemory64Base(ramByteCount: ramByteCount)
      let windows: [(UInt32, UInt64, UInt64, UInt64)] = [
        (0x0100_0000, 0, Map.pciPorts.base, Map.pciPorts.byteCount),
        (0x0200_0000, Map.pciMemory.base, Map.pciMemory.base, Map.pciMemory.byteCount),
        (0x0300_0000, high, high, Map.pciMemory64ByteCount),
      ]
      $0.set("ranges", cells: windows.flatMap { [$0.0] + split($0.1) + split($0.2) + split($0.3) })
      // The pins of four neighbouring slots are rotated over the four interrupts.
      var map: [UInt32] = []
      for slot in 0..<4 as Range<UInt32> {
        for pin in 0..<4 as Range<UInt32> {
          map += [slot << 11, 0, 0, pin + 1, plicHandle, UInt32(Map.pciInterrupt) + (slot + pin) % 4]
        }
      }
      $0.set("interrupt-map", cells: map)
      $0.set("interrupt-map-mask", 0x1800, 0, 0, 7)
    }
  }

  private func split(_ number: UInt64) -> [UInt32] {
    [UInt32(truncatingIfNeeded: number >> 32), UInt32(truncatingIfNeeded: number)]
  }
  private func hex(_ number: UInt64) -> String { String(number, radix: 16) }
}
