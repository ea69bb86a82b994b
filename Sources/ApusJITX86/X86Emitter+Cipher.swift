import ApusAsmX86
import ApusBits
import ApusIR

// AES on AES-NI; SHA-1 and SHA-256 on the host's SHA instructions, which keep their words in another order.

extension X86Emitter {
  func emitCRC32(_ i: IRInstruction) {
    precondition(
      features.hasCipher && features.hasCarrylessMultiply, "the translation cache has switched this off")
    let scale = Int(i.immediate & 3)
    let data = use(i.b)
    let sum = use(i.a)
    let register = takeTemporary()
    asm.move(register, sum, wide: false)
    if i.immediate & 4 != 0 {
      asm.crc32c(register, data, scale: scale)
      return finishIn(register)
    }
    // Sum and data at the top of 64 bits, times the quotient's factor, times the divisor.
    let (value, factors) = (takeVectorTemporary(), takeVectorTemporary())
    let other = takeTemporary()
    asm.move(other, immediate: CyclicRedundancy.ieee.quotientFactor)
    asm.move(factors, other, wide: true)
    asm.arithmetic(.xor, register, data)
    if scale < 3 { asm.shift(.left, register, by: UInt8(64 - (8 << scale))) }
    asm.move(value, register, wide: true)
    asm.carrylessMultiply(value, value, factors)
    asm.move(other, immediate: CyclicRedundancy.ieee.divisor)
    asm.move(factors, other, wide: true)
    asm.carrylessMultiply(value, value, factors)
    asm.vectorShift(0x73, 3, value, value, by: 8)
    if scale < 2 {
      // The upper bits of the old sum are not used up.
      asm.move(other, sum, wide: false)
      asm.shift(.right, other, by: UInt8(8 << scale))
      asm.move(register, value, wide: true)
      asm.arithmetic(.xor, register, other)
    } else {
      asm.move(register, value, wide: true)
    }
    finishIn(register)
  }

  /// d = a step of AES. Changes a and b; b is zero where only columns are mixed.
  func cipher(
    _ operation: IRVectorOperation, _ a: X86Vector, _ b: X86Vector, _ d: X86Vector
  ) {
    precondition(features.hasCipher, "the translation cache has switched this off")
    let (encrypt, encryptLast, decrypt, decryptLast) = (UInt8(0xdc), UInt8(0xdd), UInt8(0xde), UInt8(0xdf))
    switch operation {
    case .aesMix:
      // Undoes what the round does before it mixes columns.
      asm.vector(decryptLast, a, a, b, map: 2)
      asm.vector(encrypt, d, a, b, map: 2)
    case .aesInverseMix: asm.vector(0xdb, d, a, map: 2)  // aesimc
    default:
      asm.vector(0xef, a, a, b)
      asm.vector(0xef, b, b, b)
      let opcode =
        switch operation {
        case .aesEncrypt: encryptLast
        case .aesDecrypt: decryptLast
        case .aesEncryptMix: encrypt
        default: decrypt
        }
      asm.vector(opcode, d, a, b, map: 2)
    }
  }

  /// SHA operations work in all temporaries: the rounds of SHA-256 name xmm0.
  func emitHash(_ operand: IRVectorOperand) {
    precondition(features.hasSHA, "the translation cache has switched this off")
    let halves: Halves = operand.isFull ? .both : .low
    giveUp(operand.slots.destination, halves)
    lockedVectors = 0
    for _ in 0..<4 { _ = takeVectorTemporary() }
    let (d, n, m): (X86Vector, X86Vector, X86Vector) = (.xmm1, .xmm2, .xmm3)
    if operand.operation.readsDestination { loadRegister(d, operand.slots.destination, isFull: true) }
    loadRegister(n, operand.slots.a, isFull: true)
    if let b = operand.slots.b { loadRegister(m, b, isFull: true) }
    switch operand.operation {
    case .sha1Choose: sha1Rounds(0, constant: 0x5a82_7999)
    case .sha1Parity: sha1Rounds(1, constant: 0x6ed9_eba1)
    case .sha1Majority: sha1Rounds(2, constant: 0x8f1b_bcdc)
    case .sha1Rotate:
      asm.vectorShift(0x72, 6, d, n, by: 30)
      asm.vectorShift(0x72, 2, n, n, by: 2)
      asm.vector(0xeb, d, d, n)
      asm.vectorShift(0x73, 7, d, d, by: 12)
      asm.vectorShift(0x73, 3, d, d, by: 12)
    case .sha1ScheduleFirst:
      asm.vector(0x0f, n, n, d, immediate: 8, map: 3)
      asm.vector(0xef, d, d, n)
      asm.vector(0xef, d, d, m)
    case .sha1ScheduleSecond:
      asm.vectorShift(0x73, 3, n, n, by: 4)
      asm.vector(0xef, d, d, n)
      rotateLeftByOne(d, d, n, m)
      // The lowest word is needed once more for the highest.
      asm.vectorShift(0x73, 7, .xmm0, d, by: 12)
      rotateLeftByOne(.xmm0, .xmm0, n, m)
      asm.vector(0xef, d, d, .xmm0)
    case .sha256First: sha256Rounds(isFirst: true)
    case .sha256Second: sha256Rounds(isFirst: false)
    case .sha256ScheduleFirst: asm.sha(0xcc, d, n)
    default:
      asm.vector(0x0f, n, m, n, immediate: 4, map: 3)
      asm.vector(0xfe, d, d, n)
      asm.sha(0xcd, d, m)
    }
    storeRegister(operand.slots.destination, d, halves)
    lockedVectors = 0
  }

  /// Words of 32 bits: to = a, left by one. Changes b and c.
  private func rotateLeftByOne(_ to: X86Vector, _ a: X86Vector, _ b: X86Vector, _ c: X86Vector) {
    asm.vectorShift(0x72, 6, b, a, by: 1)
    asm.vectorShift(0x72, 2, c, a, by: 31)
    asm.vector(0xeb, to, b, c)
  }

  /// xmm1: d to a from the top here; xmm2 has e; xmm3 the words, with a constant that the host adds, too.
  private func sha1Rounds(_ function: UInt8, constant: UInt64) {
    func reverse(_ register: X86Vector) {
      asm.vector(0x70, register, register, immediate: 0x1b)
    }
    let general = takeTemporary()
    asm.move(general, immediate: constant)
    asm.move(.xmm0, general, wide: false)
    asm.vector(0x70, .xmm0, .xmm0, immediate: 0)
    asm.vector(0xfa, .xmm3, .xmm3, .xmm0)
    reverse(.xmm3)
    // e: only the lowest word of the register counts, and it belongs to the first round, which is on top.
    asm.vectorShift(0x73, 7, .xmm2, .xmm2, by: 12)
    asm.vector(0xfe, .xmm3, .xmm3, .xmm2)
    reverse(.xmm1)
    asm.sha1Rounds(.xmm1, .xmm3, function)
    reverse(.xmm1)
  }

  /// The host's order is f e b a and h g d c, from the lowest lane up.
  private func sha256Rounds(isFirst: Bool) {
    let (x, y): (X86Vector, X86Vector) = isFirst ? (.xmm1, .xmm2) : (.xmm2, .xmm1)
    asm.move(.xmm0, .xmm3)
    func shuffle(_ to: X86Vector, _ low: X86Vector, _ high: X86Vector, _ order: UInt8) {
      asm.vector(0xc6, to, low, high, immediate: order, prefix: 0)
    }
    shuffle(.xmm3, y, x, 0x11)
    shuffle(.xmm1, y, x, 0xbb)
    asm.sha(0xcb, .xmm1, .xmm3)
    asm.vector(0x70, .xmm0, .xmm0, immediate: 0x0e)
    asm.sha(0xcb, .xmm3, .xmm1)
    shuffle(.xmm1, .xmm3, .xmm1, isFirst ? 0xbb : 0x11)
  }
}
