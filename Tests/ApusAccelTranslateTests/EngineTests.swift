import ApusAccelTranslate
import ApusCPU
import ApusGuest
import ApusGuestRISCV
import ApusIR
import ApusISARISCV
import ApusMemory
import Synchronization
import Testing

/// Small programs on a bare hart, on the translator (with all optimisations and with each one off) and the evaluator.
struct EngineTests {
  /// A device whose write ends the program.
  private final class Finisher: MMIODevice {
    let value = Atomic<UInt64>(.max)
    let stop = Mutex<(@Sendable () -> Void)?>(nil)
    func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 { 0x42 }
    func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
      self.value.store(value, ordering: .releasing)
      stop.withLock { $0 }?()
    }
  }

  /// Those that the host has, below AVX-512.
  private static let hostLevels: [TranslateOptions] = ["sse4", "avx", "avx2"].compactMap { name in
    var options = TranslateOptions()
    do throws(HostLevelError) { try options.limitHostLevel(name) } catch { return nil }
    return options
  }

  static let engines: [TranslateOptions] = {
    var all = [TranslateOptions()]
    for (_, one) in IROptimisations.names {
      var options = TranslateOptions()
      options.optimisations.remove(one)
      all.append(options)
    }
    var plain = TranslateOptions()
    plain.optimisations = []
    var verified = TranslateOptions()
    verified.verifies = true
    var interpreter = TranslateOptions()
    interpreter.engine = .interpreter
    var tiny = TranslateOptions()
    tiny.codeBufferByteCount = 4 << 20
    tiny.blockInstructionLimit = 1
    return all + [plain, verified, interpreter, tiny] + hostLevels
  }()

  /// Runs 32-bit words from 0x8000_0000 in M-mode until they write to 0x10_0000; returns what they wrote.
  /// x10 = 0x8000_0000 at the start, x5 = 0x10_0000.
  private func run(_ words: [UInt32], at offset: Int = 0, _ options: TranslateOptions) throws -> UInt64 {
    let ram = try GuestRAM(name: "ram", base: .init(0x8000_0000), byteCount: 1 << 20)
    for (index, word) in words.enumerated() {
      (ram.host + offset + index * 4).storeBytes(of: word, as: UInt32.self)
    }
    let space = AddressSpace(ram: [ram])
    let finisher = Finisher()
    space.map(MMIORegion(name: "finisher", base: .init(0x10_0000), byteCount: 4096, device: finisher))
    let cache = try TranslationCache(memory: space, options: options)
    let vcpu = try TranslatedVCPU(index: 0, cache: cache) { state, engine in
      RISCVCPU(
        state: state, hartID: 0, extensions: .default, clock: GuestClock(), eventLoop: nil, engine: engine,
        physicalMemory: space.ramTable)
    }
    finisher.stop.withLock { $0 = { [unowned vcpu] in vcpu.requestExit() } }
    vcpu.reset(entry: 0x8000_0000 + UInt64(offset), arguments: [0x8000_0000])
    RISCVState(vcpu.state)[x: 5] = 0x10_0000
    #expect(vcpu.run() == .requested)
    return finisher.value.load(ordering: .acquiring)
  }

  private static let selfLoop: UInt32 = 0x0000_006f  // j .
  // sd register, 0(t0)
  private static func finish(_ register: UInt32) -> UInt32 { 0x0002_b023 | register << 20 }

  @Test(arguments: engines) func sumOfALoop(_ options: TranslateOptions) throws {
    // a1 = 1000; do { a2 += a1; a1 -= 1 } while (a1)
    let sum = try run(
      [0x3e80_0593, 0x00b6_0633, 0xfff5_8593, 0xfe05_9ce3, Self.finish(12), Self.selfLoop], options)
    #expect(sum == 500_500)
  }

  @Test(arguments: engines) func storesToCodeAreSeen(_ options: TranslateOptions) throws {
    // Runs `addi a2, a2, 1` twice, stores `addi a2, a2, 5` over it, and runs it again.
    let words: [UInt32] = [
      0x0016_0613,  //  0: addi a2, a2, 1
      0x0015_8593,  //  4: addi a1, a1, 1
      0x0020_0693,  //  8: li a3, 2
      0xfed5_cae3,  //  c: blt a1, a3, 0
      0x00d5_9a63,  // 10: bne a1, a3, 24
      0x0000_100f,  // 14: fence.i
      0x02c5_2703,  // 18: lw a4, 44(a0)
      0x00e5_2023,  // 1c: sw a4, 0(a0)
      0xfe1f_f06f,  // 20: j 0
      Self.finish(12),  // 24
      Self.selfLoop,  // 28
      0x0056_0613,  // 2c: addi a2, a2, 5
    ]
    #expect(try run(words, options) == 7)
  }

  @Test(arguments: engines) func instructionsAndDataCrossPages(_ options: TranslateOptions) throws {
    // At 0x3000: a1 = 0x1122; sd a1, 0xffc(a0) (crosses into the second page); ld a2 back; finish.
    let words: [UInt32] = [
      0x0000_15b7,  // lui a1, 1
      0x1225_8593,  // addi a1, a1, 0x122
      0x0000_1737,  // lui a4, 1
      0x00e5_0733,  // add a4, a0, a4
      0xfeb7_3e23,  // sd a1, -4(a4)
      0xffc7_3603,  // ld a2, -4(a4)
      Self.finish(12), Self.selfLoop,
    ]
    #expect(try run(words, at: 0x3000, options) == 0x1122)
    // The same words two bytes before a page's end: every other instruction straddles.
    #expect(try run(words, at: 0x4ffe, options) == 0x1122)
  }

  /// Loads and stores of all widths off a base that walks over a page's end, three bytes at a time.
  @Test(arguments: engines) func accessesOffOneBaseShareALookUp(_ options: TranslateOptions) throws {
    // a1 = page end - 64; 43 times: sd 0, sw 9, ld 3, sh 24, lbu 11, lwu 22, sb -5, ld -8 (a1), a hash of what was
    // loaded in a4, a1 += 3.
    let words: [UInt32] = [
      0x0000_25b7, 0x00b5_05b3, 0xfc05_8593, 0x02b0_0613, 0x1230_0693, 0x0000_0713, 0x00c6_86b3,
      0x0076_9793, 0x00f6_c6b3, 0x00d5_b023, 0x00c5_a4a3, 0x0035_b783, 0x00d5_9c23, 0x00b5_c803,
      0x0165_e883, 0xff05_8da3, 0xff85_b303, 0x00f7_0733, 0x0057_1393, 0x0077_4733, 0x0107_0733,
      0x0117_0733, 0x0067_4733, 0x0035_8593, 0xfff6_0613, 0xfa06_1ae3, 0x00e2_b023, 0x0000_006f,
    ]
    #expect(try run(words, options) == 0xce70_acb8_0f71_db7c)
    #expect(try run(words, at: 0x4000, options) == 0xce70_acb8_0f71_db7c)
    // Off a device: ld 8, lw 16, and a store of their sum.
    let device: [UInt32] = [0x0082_b583, 0x0102_a603, 0x00c5_86b3, 0x00d2_b023, 0x0000_006f]
    #expect(try run(device, options) == 0x84)
  }

  @Test(arguments: engines) func jumpsIntoNothingAreExceptions(_ options: TranslateOptions) throws {
    // mtvec = handler; jump to 0x1000_0000; the handler writes mcause.
    let words: [UInt32] = [
      0x0000_0597,  //  0: auipc a1, 0
      0x0205_8593,  //  4: addi a1, a1, 32
      0x3055_9073,  //  8: csrw mtvec, a1
      0x1000_0637,  //  c: lui a2, 0x10000
      0x0006_0067,  // 10: jr a2
      0x0000_0013, 0x0000_0013, 0x0000_0013,
      0x3420_2673,  // 20: csrr a2, mcause
      Self.finish(12), Self.selfLoop,
    ]
    #expect(try run(words, options) == 1)
  }

  @Test(arguments: engines) func atomicsWork(_ options: TranslateOptions) throws {
    let words: [UInt32] = [
      0x0000_1737,  // lui a4, 1
      0x00e5_0733,  // add a4, a0, a4
      0x0070_0593,  // li a1, 7
      0x00b7_302f,  // amoadd.d zero, a1, (a4)
      0x1007_362f,  // lr.d a2, (a4)
      0x0036_0613,  // addi a2, a2, 3
      0x18c7_36af,  // sc.d a3, a2, (a4)
      0x0007_3603,  // ld a2, 0(a4)
      0x00d6_0633,  // add a2, a2, a3
      Self.finish(12), Self.selfLoop,
    ]
    #expect(try run(words, options) == 10)
  }
}
