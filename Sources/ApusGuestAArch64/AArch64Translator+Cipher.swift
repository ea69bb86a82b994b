import ApusIR
import ApusISAAArch64

// Ciphers, hash functions and sums [Arm ARM C4.1.96]: on the host's instructions where it has them, else a call.

extension AArch64Translator {
  /// - Parameters: `a` and `b`, offsets in the state; b `nil` is zero.
  private func vector(
    _ operation: IRVectorOperation, scale: Int = 0, amount: Int = 0, to: Int, _ a: Int, _ b: Int?
  ) {
    block.vector(
      IRVectorOperand(
        operation, scale: scale, amount: amount, isFull: true, destination: to, a: a, b: b))
  }

  mutating func cipher(_ opcode: AArch64Opcode) {
    if !sha512(opcode), !wholeCipher(opcode) { extensionVector(opcode) }
  }

  mutating func extensionVector(_ opcode: AArch64Opcode) {
    if block.optimisations.contains(.hostVector), dotProduct(opcode) { return }
    call(.extensionVector, constant(UInt64(word)), constant(UInt64(opcode.rawValue)))
  }

  /// Whether the IR has it and the host may do it.
  private func wholeCipher(_ opcode: AArch64Opcode) -> Bool {
    guard block.optimisations.contains(.hostVector) else { return false }
    let (d, n, m, a) = (
      AArch64State.v(rd), AArch64State.v(rn), AArch64State.v(rm), AArch64State.v(ra)
    )
    let temporary = AArch64State.scratch
    if block.optimisations.contains(.hostWideLanes), wideCipher(opcode, d, n, m, a) { return true }
    switch opcode {
    case .rax1:
      vector(.rotateRight, scale: 3, amount: 63, to: temporary, m, nil)
      vector(.xor, to: d, n, temporary)
      return true
    case .eor3:
      vector(.xor, to: temporary, n, m)
      vector(.xor, to: d, temporary, a)
      return true
    case .bcax:
      vector(.andNot, to: temporary, m, a)
      vector(.xor, to: d, n, temporary)
      return true
    case .xar:
      vector(.xor, to: d, n, m)
      vector(.rotateRight, scale: 3, amount: Int(bits(10, 6)), to: d, d, nil)
      return true
    default: break
    }
    if block.optimisations.contains(.hostCrypto) {
      switch opcode {
      case .aese: vector(.aesEncrypt, to: d, d, n)
      case .aesd: vector(.aesDecrypt, to: d, d, n)
      case .aesmc: mixColumns(.aesMix, after: .aesEncrypt, together: .aesEncryptMix)
      case .aesimc: mixColumns(.aesInverseMix, after: .aesDecrypt, together: .aesDecryptMix)
      case .pmull64: vector(bits(30, 1) == 1 ? .carrylessHigh : .carrylessLow, to: d, n, m)
      default: return wholeHash(opcode, d, n, m)
      }
      return true
    }
    return wholeHash(opcode, d, n, m)
  }

  /// With operations on three operands.
  private func wideCipher(_ opcode: AArch64Opcode, _ d: Int, _ n: Int, _ m: Int, _ a: Int) -> Bool {
    switch opcode {
    case .rax1 where d != n:
      vector(.rotateRight, scale: 3, amount: 63, to: d, m, nil)
      vector(.xor, to: d, n, d)
    case .eor3:
      // Onto whichever is the destination.
      let others = d == n ? (m, a) : d == m ? (n, a) : d == a ? (n, m) : nil
      if others == nil { vector(.move, to: d, n, nil) }
      vector(.xorBoth, to: d, others?.0 ?? m, others?.1 ?? a)
    case .bcax where d == n || d != m && d != a:
      if d != n { vector(.move, to: d, n, nil) }
      vector(.xorAndNot, to: d, m, a)
    default: return false
    }
    return true
  }

  private func wholeHash(_ opcode: AArch64Opcode, _ d: Int, _ n: Int, _ m: Int) -> Bool {
    guard block.optimisations.contains(.hostSHA) else { return false }
    switch opcode {
    case .sha1c: vector(.sha1Choose, to: d, n, m)
    case .sha1p: vector(.sha1Parity, to: d, n, m)
    case .sha1m: vector(.sha1Majority, to: d, n, m)
    case .sha1su0: vector(.sha1ScheduleFirst, to: d, n, m)
    case .sha1su1: vector(.sha1ScheduleSecond, to: d, n, nil)
    case .sha256h: vector(.sha256First, to: d, n, m)
    case .sha256h2: vector(.sha256Second, to: d, n, m)
    case .sha256su0: vector(.sha256ScheduleFirst, to: d, n, nil)
    case .sha256su1: vector(.sha256ScheduleSecond, to: d, n, m)
    case .sha1h:
      block.vector(
        IRVectorOperand(.sha1Rotate, isFull: false, destination: d, a: n, b: nil))
      setHigh(rd, nil)
    default: return false
    }
    return true
  }

  /// aesmc and aesimc: one operation with the aese or aesd of the same register before it.
  private func mixColumns(
    _ alone: IRVectorOperation, after first: IRVectorOperation, together: IRVectorOperation
  ) {
    let register = AArch64State.v(rd)
    if rd == rn,
      block.replaceVector({ operand in
        operand.operation == first && operand.slots.destination == register ? operand.with(together) : nil
      })
    {
      return
    }
    vector(alone, to: register, AArch64State.v(rn), nil)
  }

  mutating func crc32() {
    let kind = bits(10, 3)
    guard block.optimisations.contains(.hostCrypto) else {
      return setX(rd, call(.crc32, x(rn), x(rm), constant(UInt64(kind))))
    }
    setX(rd, block.binary(.crc32, x(rn), x(rm), immediate: Int64(kind)))
  }
}
