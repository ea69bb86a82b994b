import ApusIR
import Testing

struct IRBlockTests {
  private func block(_ optimisations: IROptimisations = .all, _ build: (IRBlock) -> Void) -> IRBlock {
    let block = IRBlock()
    block.optimisations = optimisations
    block.reset(startPC: 0x1000)
    block.instruction(pc: 0x1000, length: 4)
    build(block)
    block.finish(.direct(target: 0x1004))
    return block
  }

  @Test func constantsFold() {
    let block = block { $0.set64(8, $0.binary(.add64, $0.const64(2), $0.const64(3))) }
    #expect(
      block.text() == """
         ---- 0x1000
          %1: i64 = const64 0x2
          %2: i64 = const64 0x3
          %3: i64 = const64 0x5
          set64 %3 [8]
          -> 0x1004

        """)
  }

  @Test(arguments: 0..<4) func triplesComeApartAndTogether(scale: Int) {
    /// 48 bytes by the three orders of each of three registers.
    func reordered(_ bytes: [Int], isGather: Bool) -> [Int] {
      (0..<3).flatMap { target in
        (0..<16).map { byte in
          let sources = (0..<3).compactMap { source in
            let (element, part) = isGather ? (target, source) : (source, target)
            return IRTripleOrder(isGather: isGather, element: element, part: part)
              .source(of: byte, scale: scale).map { bytes[16 * source + $0] }
          }
          #expect(sources.count == 1)
          return sources.first ?? -1
        }
      }
    }
    let memory = Array(0..<48)
    let registers = reordered(memory, isGather: true)
    // The second register begins with the second element of the first structure.
    #expect(registers[16] == 1 << scale)
    #expect(reordered(registers, isGather: false) == memory)
  }

  @Test func textWithoutUnusedValues() {
    let block = block { $0.set64(8, $0.binary(.add64, $0.const64(2), $0.const64(3))) }
    #expect(
      block.text(omitsUnused: true) == """
         ---- 0x1000
          %3: i64 = const64 0x5
          set64 %3 [8]
          -> 0x1004

        """)
    // Shorter than its instruction is long.
    let short = self.block { _ in }
    #expect(short.text(omitsUnused: true) == " ---- 0x1000\n  -> 0x1004\n")
  }

  @Test func readsForwardTheLastWrite() {
    let block = block {
      $0.set64(8, $0.get64(16))
      $0.set64(24, $0.get64(8))
    }
    #expect(block.text().components(of: "get64") == 1)
  }

  @Test func readsAfterAHelperThatWritesAreReadAnew() {
    let helper = IRHelper("writer", .writesState) { _, _, _, _ in 0 }
    let block = block {
      $0.set64(24, $0.get64(8))
      $0.call(0, helper)
      $0.set64(32, $0.get64(8))
    }
    #expect(block.text().components(of: "get64") == 2)
  }

  @Test func switchedOffOptimisationsDoNothing() {
    let block = block([]) {
      $0.set64(8, $0.binary(.add64, $0.const64(2), $0.const64(3)))
      $0.set64(16, $0.get64(8))
    }
    #expect(block.text().components(of: "add64") == 1)
    #expect(block.text().components(of: "get64") == 1)
  }

  @Test func theVerifierFindsTypeErrors() {
    let good = block { $0.set64(8, $0.get64(16)) }
    #expect(IRVerifier.check(good) == nil)
    let bad = block { $0.set64(8, $0.getF64(1024)) }
    #expect(IRVerifier.check(bad) == "%2 (set64), operand 0: %1 is f64, not i64")
    let missing = block { $0.set64(8, .none) }
    #expect(IRVerifier.check(missing) == "%1 (set64), operand 0: missing")
    let late = block { $0.set64(8, IRValue(index: 9)) }
    #expect(IRVerifier.check(late) == "%1 (set64), operand 0: %9 is not defined yet")
  }

  @Test func theVerifierFindsVectorsThatNoBackEndHas() {
    func problem(
      _ operation: IRVectorOperation, scale: Int = 2, isFull: Bool = true, clearsUpper: Bool = false,
      accumulation: IRVectorAccumulation = .none, element: Int? = nil
    ) -> String? {
      IRVerifier.check(
        block(.all.subtracting(.hostWideLanes)) {
          $0.vector(
            IRVectorOperand(
              operation, scale: scale, isFull: isFull, clearsUpper: clearsUpper, accumulation: accumulation,
              element: element, destination: 1024, a: 1040, b: 1056))
        })
    }
    #expect(problem(.multiplyLowSigned, accumulation: .subtract, element: 3) == nil)
    #expect(problem(.add, isFull: true, clearsUpper: true) == nil)
    #expect(problem(.multiply, scale: 3) == "%1: multiply has no lanes of 64 bits")
    #expect(problem(.xorBoth) == "%1: xorBoth has no lanes of 32 bits")
    #expect(problem(.add, accumulation: .add) == "%1: add does not accumulate")
    #expect(problem(.add, element: 0) == "%1: add takes no element")
    #expect(problem(.add, isFull: false, clearsUpper: true) == "%1: add clears what it does not write")
  }
}

extension String {
  /// How many times `part` occurs.
  fileprivate func components(of part: String) -> Int {
    var count = 0
    var rest = self[...]
    while let range = rest.firstRange(of: part) {
      count += 1
      rest = rest[range.upperBound...]
    }
    return count
  }
}
