import ApusBlock
import ApusBroadcomDevices
import ApusCPU
import ApusDevice
import ApusHost
import ApusMachine
import ApusMemory
import ApusPlatformDevices

/// Gathers the Raspberry Pi's peripherals and their resets while the board is built.
final class RaspberryPiParts {
  private typealias Map = RaspberryPiMap
  private let space: AddressSpace
  private let loop: EventLoop
  private let clock: GuestClock
  private let machine: Machine
  /// The wire into an input of the interrupt controller.
  private let input: (Int) -> InterruptLine
  private(set) var resets: [@Sendable () -> Void] = []
  private let dma: BCM2835DMA
  private let gpio: BCM2835GPIO

  init(
    space: AddressSpace, loop: EventLoop, clock: GuestClock, input: @escaping (Int) -> InterruptLine,
    machine: Machine
  ) {
    (self.space, self.loop, self.clock) = (space, loop, clock)
    (self.input, self.machine) = (input, machine)
    let shared = InterruptSum(input(Map.sharedDMAInterrupt))
    let lines = (0..<BCM2835DMA.channelCount).map { channel in
      let own = Map.dmaInterrupt + channel
      return own < Map.sharedDMAInterrupt ? input(own) : shared.input(channel)
    }
    dma = BCM2835DMA(lines, space, loop, base: Map.dma)
    gpio = BCM2835GPIO((0..<4).map { input(Map.gpioInterrupt + $0) })
  }

  func onReset(_ body: @escaping @Sendable () -> Void) { resets.append(body) }

  func map(
    _ name: String, _ base: UInt64, _ byteCount: UInt64, _ device: any MMIODevice,
    reset: (@Sendable () -> Void)? = nil
  ) {
    let fits = space.map(.init(name: name, base: .init(base), byteCount: byteCount, device: device))
    precondition(fits, "the board's own map overlaps at \(name)")
    if let reset { resets.append(reset) }
  }

  /// - Parameter serials: behind the PL011 and the mini UART.
  func addPeripherals(serials: [any CharacterBackend], commandLine: String) {
    let timer = BCM2835SystemTimer(
      (0..<4).map { input(Map.systemTimerInterrupt + $0) }, clock: clock, loop: loop)
    map("system-timer", Map.systemTimer, BCM2835SystemTimer.byteCount, timer) { timer.reset() }
    let dma = dma
    map("dma", Map.dma, BCM2835DMA.byteCount, dma) { dma.reset() }
    let firmware = VideoCoreFirmware(
      .init(
        revision: Map.revision, macAddress: Map.macAddress, armByteCount: UInt32(Map.ramByteCount),
        videoCoreByteCount: UInt32(Map.videoCoreByteCount),
        visibleVideoCoreByteCount: UInt32(Map.videoCoreMemory.byteCount), commandLine: commandLine), space)
    let mailbox = VideoCoreMailbox(input(Map.mailboxInterrupt), firmware)
    map("mailbox", Map.mailbox, VideoCoreMailbox.byteCount, mailbox) { mailbox.reset() }
    addPower()
    let random = BCM2835RandomNumbers()
    map("rng", Map.random, BCM2835RandomNumbers.byteCount, random) { random.reset() }
    let thermometer = BCM2835Thermometer()
    map("thermal", Map.thermometer, BCM2835Thermometer.byteCount, thermometer) { thermometer.reset() }
    let gpio = gpio
    map("gpio", Map.gpio, BCM2835GPIO.byteCount, gpio) { gpio.reset() }
    let uart = PL011(input(Map.uartInterrupt), serials[0])
    map("pl011", Map.uart, PL011.byteCount, uart) { uart.reset() }
    let auxiliary = BCM2835AuxiliaryUART(input(Map.auxiliaryInterrupt), serials[1])
    map("auxiliary", Map.auxiliary, BCM2835AuxiliaryUART.byteCount, auxiliary) { auxiliary.reset() }
  }

  private func addPower() {
    let power = BCM2835PowerManager(clock: clock, loop: loop) { [weak machine] request in
      machine?.request(request == .reset ? .reset : .powerOff)
    }
    map("power", Map.power, BCM2835PowerManager.byteCount, power) { power.reset() }
    let bridge = BCM2835AXIBridge()
    map("bridge", Map.bridge, BCM2835AXIBridge.byteCount, bridge) { bridge.reset() }
    let clocks = BCM2835ClockManager()
    map("clocks", Map.clocks, BCM2835ClockManager.byteCount, clocks) { clocks.reset() }
  }

  /// The SD host with the card in its slot, if there is one.
  func addCard(_ node: (any BlockNode)?) throws(MachineError) {
    var card: SDCard?
    if let node {
      card = SDCard(node)
      guard card != nil else {
        throw MachineError(
          "the memory card has \(node.byteCount) bytes; a card's size must be a power of two from 1M to 2T: enlarge the "
            + "image with apus-img resize")
      }
    }
    let dma = dma
    let host = BCM2835SDHost(input(Map.sdHostInterrupt), card: card) { dma.wake() }
    dma.connect(Map.sdHostRequest) { [weak host] in host?.readyByteCount ?? 0 }
    map("sdhost", Map.sdHost, BCM2835SDHost.byteCount, host) { host.reset() }
    // The other controller has the card's pins (48 to 53) unless they are SDHOST's, or its own are the wireless module's.
    let gpio = gpio
    let other = ArasanSDHost(input(Map.emmcInterrupt), card: card) {
      gpio.function(of: 48) != 4 && gpio.function(of: 34) != 7
    }
    map("emmc", Map.emmc, ArasanSDHost.byteCount, other) { other.reset() }
  }

  /// Puts a device that does nothing wherever the window has none.
  func fillGaps(_ base: UInt64, _ byteCount: UInt64) {
    var next = base
    func fill(to end: UInt64) {
      guard next < end else { return }
      map("peripherals", next, end - next, UnimplementedPeripheral(base: next))
    }
    for region in space.mmioRegions
    where region.base.rawValue >= base && region.base.rawValue < base + byteCount {
      fill(to: region.base.rawValue)
      next = region.end.rawValue
    }
    fill(to: base + byteCount)
  }
}
