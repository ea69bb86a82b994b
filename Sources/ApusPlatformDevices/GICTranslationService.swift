import ApusDevice
import ApusMemory
import Synchronization

/// GICv3's Interrupt Translation Service: what a device writes becomes an interrupt of type LPI, by tables in the guest's
/// memory [IHI 0069H §5, §12.18].
///
/// Any thread. Table entries, which software must not look at, are a word each:
/// ```
///              63     62                    16 15            0
/// device     | valid | its interrupts' table  | bits of events |      the table's address is a multiple of 256: bits 8 up in 62 to 16
/// collection | valid | 0                      | CPU            |
/// interrupt  | valid | 0 (47 to 32: number)   | collection     |
/// ```
public final class GICTranslationService: MMIODevice {
  public static let byteCount: UInt64 = 0x20000
  /// GITS_TRANSLATER: where messages go.
  public static let translaterOffset: UInt64 = 0x10040

  private struct Registers {
    var isEnabled = false
    /// GITS_CBASER, GITS_CWRITER, GITS_CREADR.
    var queue: UInt64 = 0
    var writer: UInt64 = 0
    var reader: UInt64 = 0
    /// GITS_BASER0, devices, and GITS_BASER1, collections; pages of 64 KiB unless software says otherwise.
    var tables: [UInt64] = [2 << 8, 2 << 8]
  }
  private enum Table: Int {
    case devices = 0
    case collections = 1
    /// GITS_BASER.Type.
    var type: UInt64 { self == .devices ? 1 : 4 }
  }

  private let gic: GIC
  private let memory: GuestRAMTable
  private let registers = Mutex(Registers())
  /// Bits of device numbers, event numbers and collections' numbers.
  private static let identifierBits: UInt64 = 16
  private static let valid: UInt64 = 1 << 63

  /// - Parameter memory: outlives the device.
  public init(_ gic: GIC, memory: GuestRAMTable) { (self.gic, self.memory) = (gic, memory) }

  public func reset() { registers.withLock { $0 = Registers() } }

  /// A device's message.
  /// - Parameters:
  ///   - device: who wrote: a PCI function's requester ID.
  ///   - event: what was written.
  public func send(device: UInt64, event: UInt64) {
    registers.withLock { registers in
      guard registers.isEnabled, let found = translate(device, event, registers) else { return }
      gic.setLPI(found.cpu, found.number, isPending: true)
    }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    if byteCount == 8 { return register(offset & ~7) }
    return register(offset & ~7) >> (8 * (offset & 4)) & 0xffff_ffff
  }

  private func register(_ offset: UInt64) -> UInt64 {
    registers.withLock { registers in
      switch offset {
      // GITS_CTLR, always quiescent, and GITS_IIDR above it.
      case 0: return 1 << 31 | (registers.isEnabled ? 1 : 0) | 0x43b << 32
      case 8:
        let bits = Self.identifierBits - 1
        // Physical LPIs; entries of 8 bytes; collections, too, have a size of their own; processor numbers are the targets.
        return 1 | 7 << 4 | bits << 8 | bits << 13 | bits << 32 | 1 << 36
      case 0x80: return registers.queue
      case 0x88: return registers.writer
      case 0x90: return registers.reader
      case 0x100, 0x108:
        let table: Table = offset == 0x100 ? .devices : .collections
        return registers.tables[table.rawValue] | table.type << 56 | 7 << 48
      case 0x110..<0x140: return 0
      case 0xffe8: return 0x3b
      case 0xffd0..<0x10000: return 0
      default:
        GIC.misuse("translation service", "read", offset, 8)
        return 0
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    // A CPU's own write has no device number that would mean anything.
    if offset == Self.translaterOffset { return }
    registers.withLock { registers in
      func merged(_ old: UInt64) -> UInt64 {
        if byteCount == 8 { return value }
        let shift = 8 * (offset & 4)
        return old & ~(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift
      }
      switch offset & ~7 {
      case 0:
        guard offset == 0 else { break }
        registers.isEnabled = value & 1 != 0
        work(&registers)
      case 0x80:
        guard !registers.isEnabled else { break }
        registers.queue = merged(registers.queue)
        registers.reader = 0
      case 0x88:
        registers.writer = merged(registers.writer) & 0xf_ffe0
        work(&registers)
      case 0x90: break
      case 0x100, 0x108:
        guard !registers.isEnabled else { break }
        let table: Table = offset & ~7 == 0x100 ? .devices : .collections
        // Type and size of entries are fixed; tables of tables are not there.
        registers.tables[table.rawValue] = merged(registers.tables[table.rawValue]) & ~(1 << 62 | 0x71f << 48)
      case 0x110..<0x140: break
      default: GIC.misuse("translation service", "write", offset, byteCount)
      }
    }
  }

  // MARK: Tables

  /// Where an entry is; `nil` outside its table.
  private func entry(_ table: Table, _ index: UInt64, _ registers: Registers) -> UInt64? {
    let base = registers.tables[table.rawValue]
    guard base & Self.valid != 0 else { return nil }
    let pageBits: UInt64 = [12, 14, 16, 16][Int(base >> 8 & 3)]
    guard index < ((base & 0xff) + 1) << (pageBits - 3) else { return nil }
    return (base & 0xffff_ffff_f000) + index * 8
  }

  /// Where the entry of a device's event is.
  private func interruptEntry(_ device: UInt64, _ event: UInt64, _ registers: Registers) -> UInt64? {
    guard let address = entry(.devices, device, registers), let found = memory.load(address),
      found & Self.valid != 0,
      event < 1 << (found & 0xffff)
    else { return nil }
    return (found >> 16 & 0x7fff_ffff_ffff) << 8 + event * 8
  }

  private func target(_ collection: UInt64, _ registers: Registers) -> Int? {
    guard let address = entry(.collections, collection, registers), let found = memory.load(address),
      found & Self.valid != 0, found & 0xffff < UInt64(gic.cpuCount)
    else { return nil }
    return Int(found & 0xffff)
  }

  private func translate(_ device: UInt64, _ event: UInt64, _ registers: Registers) -> (
    cpu: Int, number: Int
  )? {
    guard let address = interruptEntry(device, event, registers), let found = memory.load(address),
      found & Self.valid != 0, let cpu = target(found & 0xffff, registers)
    else { return nil }
    return (cpu, Int(found >> 32 & 0xffff))
  }

  // MARK: Commands

  private typealias Command = (UInt64, UInt64, UInt64, UInt64)

  /// Carries out the commands between GITS_CREADR and GITS_CWRITER: 32768 of 32 bytes at most.
  private func work(_ registers: inout Registers) {
    guard registers.isEnabled, registers.queue & Self.valid != 0 else { return }
    let base = registers.queue & 0xf_ffff_ffff_f000
    let byteCount = ((registers.queue & 0xff) + 1) << 12
    guard registers.writer < byteCount else { return }
    while registers.reader != registers.writer {
      let address = base + registers.reader
      let words = (0..<4 as Range<UInt64>).map { memory.load(address + 8 * $0) }
      if let a = words[0], let b = words[1], let c = words[2], let d = words[3] {
        if !carryOut((a, b, c, d), registers) {
          GuestErrorTrace.report(
            "gic",
            "translation service: the command 0x\(String(a, radix: 16)) means nothing, or maps what is not there"
          )
        }
      }
      registers.reader = (registers.reader + 32) % byteCount
    }
  }

  private func carryOut(_ command: Command, _ registers: Registers) -> Bool {
    let device = command.0 >> 32
    let event = command.1 & 0xffff_ffff
    let collection = command.2 & 0xffff
    func withInterrupt(_ body: (Int, Int) -> Void) -> Bool {
      guard let (cpu, number) = translate(device, event, registers) else { return false }
      body(cpu, number)
      return true
    }
    switch command.0 & 0xff {
    case 0x01:  // MOVI
      guard let address = interruptEntry(device, event, registers), let found = memory.load(address),
        found & Self.valid != 0, let old = target(found & 0xffff, registers),
        let new = target(collection, registers)
      else { return false }
      memory.store(address, found & ~0xffff | collection)
      gic.moveLPI(Int(found >> 32 & 0xffff), from: old, to: new)
    case 0x03: return withInterrupt { gic.setLPI($0, $1, isPending: true) }  // INT
    case 0x04: return withInterrupt { gic.setLPI($0, $1, isPending: false) }  // CLEAR
    case 0x05: break  // SYNC: everything is done at once
    case 0x08:  // MAPD
      guard let address = entry(.devices, device, registers) else { return false }
      let bits = (command.1 & 31) + 1
      guard bits <= Self.identifierBits else { return false }
      let table = command.2 >> 8 & ((1 << 44) - 1)
      memory.store(address, command.2 & Self.valid == 0 ? 0 : Self.valid | table << 16 | bits)
    case 0x09:  // MAPC
      guard let address = entry(.collections, collection, registers) else { return false }
      let cpu = command.2 >> 16 & 0xffff_ffff
      guard command.2 & Self.valid == 0 || cpu < UInt64(gic.cpuCount) else { return false }
      memory.store(address, command.2 & Self.valid == 0 ? 0 : Self.valid | cpu)
    case 0x0a, 0x0b:  // MAPTI, MAPI
      guard let address = interruptEntry(device, event, registers) else { return false }
      let number = command.0 & 0xff == 0x0b ? event : command.1 >> 32
      guard (8192..<65536).contains(number) else { return false }
      memory.store(address, Self.valid | number << 32 | collection)
    case 0x0c: return withInterrupt { gic.reloadLPI($0, $1) }  // INV
    case 0x0d:  // INVALL
      guard let cpu = target(collection, registers) else { return false }
      gic.reloadLPI(cpu, nil)
    case 0x0e:  // MOVALL
      let (from, to) = (command.2 >> 16 & 0xffff_ffff, command.3 >> 16 & 0xffff_ffff)
      guard from < UInt64(gic.cpuCount), to < UInt64(gic.cpuCount) else { return false }
      gic.moveLPI(nil, from: Int(from), to: Int(to))
    case 0x0f:  // DISCARD
      guard let address = interruptEntry(device, event, registers) else { return false }
      if let (cpu, number) = translate(device, event, registers) { gic.setLPI(cpu, number, isPending: false) }
      memory.store(address, 0)
    default: return false
    }
    return true
  }
}
