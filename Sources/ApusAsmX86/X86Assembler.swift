/// A general-purpose register of x86-64, by its encoding.
public enum X86Register: UInt8, Sendable {
  case rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
}

/// A vector register, by its encoding.
public enum X86Vector: UInt8, Sendable {
  case xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15
}

/// A memory operand: base + index * scale + displacement.
public struct X86Memory: Sendable {
  public var base: X86Register
  public var index: X86Register?
  /// 0 to 3: times 1, 2, 4, 8.
  public var scale: UInt8
  public var displacement: Int32
  @inlinable
  public init(_ base: X86Register, _ displacement: Int32 = 0, index: X86Register? = nil, scale: UInt8 = 0) {
    (self.base, self.displacement, self.index, self.scale) = (base, displacement, index, scale)
  }
}

/// Conditions, by their encoding in jcc, setcc and cmovcc.
public enum X86Condition: UInt8, Sendable {
  case overflow, notOverflow, below, aboveOrEqual, equal, notEqual, belowOrEqual, above
  case sign, notSign, parity, notParity, less, greaterOrEqual, lessOrEqual, greater
  @inlinable public var inverted: X86Condition { X86Condition(rawValue: rawValue ^ 1).unsafelyUnwrapped }
}

/// Two-operand integer operations, by the /digit of their immediate form [SDM 2A].
public enum X86Arithmetic: UInt8, Sendable { case add, or, adc, sbb, and, sub, xor, cmp }
/// Shifts, by their /digit.
public enum X86Shift: UInt8, Sendable {
  case rotateLeft = 0
  case rotateRight = 1
  case left = 4
  case right = 5
  case rightSigned = 7
}

/// Writes x86-64 machine code into memory. The caller sees to it that there is room.
///
/// Owned by one thread; offsets count from the start of the code buffer.
public struct X86Assembler: @unchecked Sendable {
  // SAFETY: writes go to start + offset, which the owner of the code buffer keeps inside its mapping.
  public let start: UnsafeMutablePointer<UInt8>
  public var offset: Int
  let vectorEncoding: X86VectorEncoding

  public init(start: UnsafeMutablePointer<UInt8>, offset: Int, vectorEncoding: X86VectorEncoding) {
    (self.start, self.offset, self.vectorEncoding) = (start, offset, vectorEncoding)
  }

  // MARK: Bytes

  @inlinable @inline(__always)
  public mutating func byte(_ value: UInt8) {
    start[offset] = value
    offset &+= 1
  }
  @inlinable @inline(__always)
  public mutating func word32(_ value: UInt32) {
    UnsafeMutableRawPointer(start + offset).storeBytes(of: value, as: UInt32.self)
    offset &+= 4
  }
  @inlinable @inline(__always)
  public mutating func word64(_ value: UInt64) {
    UnsafeMutableRawPointer(start + offset).storeBytes(of: value, as: UInt64.self)
    offset &+= 8
  }
  public mutating func align(_ alignment: Int) {
    while offset & (alignment - 1) != 0 { byte(0x90) }
  }
  /// Padding that is executed: one long no-op instead of many short ones.
  public mutating func pad(_ count: Int) {
    switch count {
    case 0: break
    case 1: byte(0x90)
    case 2:
      byte(0x66)
      byte(0x90)
    case 3:
      byte(0x0f)
      byte(0x1f)
      byte(0x00)
    default:
      byte(0x0f)
      byte(0x1f)
      byte(0x40)
      byte(0x00)
      pad(count - 4)
    }
  }

  /// Bytes of one instruction, collected in a word and stored at once: a store a byte would make each wait for the
  /// one before. Room for 8 more bytes than are used is the caller's.
  @usableFromInline
  struct Bytes {
    @usableFromInline var word: UInt64 = 0
    @usableFromInline var bits: UInt64 = 0
    @inlinable init() {}
    @inlinable @inline(__always)
    mutating func append(_ value: UInt8) {
      word |= UInt64(value) &<< bits
      bits &+= 8
    }
  }
  @inlinable @inline(__always)
  mutating func flush(_ bytes: Bytes) {
    UnsafeMutableRawPointer(start + offset).storeBytes(of: bytes.word, as: UInt64.self)
    offset &+= Int(truncatingIfNeeded: bytes.bits &>> 3)
  }

  /// REX, opcode bytes and a ModRM with a memory operand. `reg` is a register number or a /digit.
  @inlinable @inline(__always)
  public mutating func memoryForm(
    _ reg: UInt8, _ memory: X86Memory, wide: Bool, prefix: UInt8 = 0, escape: Bool = false, _ opcode: UInt8,
    byteRegister: Bool = false
  ) {
    // At most prefix, REX, escape, opcode, ModRM, SIB: six bytes; the displacement follows.
    var bytes = Bytes()
    if prefix != 0 { bytes.append(prefix) }
    let indexNumber = memory.index?.rawValue ?? 0
    let rex: UInt8 =
      0x40 | (wide ? 8 : 0) | (reg &>> 3) << 2 | (indexNumber &>> 3) << 1 | memory.base.rawValue &>> 3
    if rex != 0x40 || (byteRegister && reg >= 4) { bytes.append(rex) }
    if escape { bytes.append(0x0f) }
    bytes.append(opcode)
    appendMemory(&bytes, reg, memory)
  }

  /// ModRM, SIB and displacement; stores the bytes.
  @inlinable @inline(__always)
  mutating func appendMemory(_ bytes: inout Bytes, _ reg: UInt8, _ memory: X86Memory) {
    let base = memory.base.rawValue & 7
    let displacement = memory.displacement
    let isSmall = displacement >= -128 && displacement <= 127
    let mode: UInt8 = displacement == 0 && base != 5 ? 0 : isSmall ? 0x40 : 0x80
    if let index = memory.index {
      bytes.append(mode | (reg & 7) << 3 | 4)
      bytes.append(memory.scale << 6 | (index.rawValue & 7) << 3 | base)
    } else {
      bytes.append(mode | (reg & 7) << 3 | base)
      if base == 4 { bytes.append(0x24) }
    }
    if mode == 0x40 { bytes.append(UInt8(truncatingIfNeeded: displacement)) }
    flush(bytes)
    if mode == 0x80 { word32(UInt32(bitPattern: displacement)) }
  }

  /// The same with a register operand.
  @inlinable @inline(__always)
  public mutating func registerForm(
    _ reg: UInt8, _ rm: UInt8, wide: Bool, prefix: UInt8 = 0, escape: Bool = false, _ opcode: UInt8,
    byteRegister: Bool = false
  ) {
    var bytes = Bytes()
    if prefix != 0 { bytes.append(prefix) }
    let rex: UInt8 = 0x40 | (wide ? 8 : 0) | (reg &>> 3) << 2 | rm &>> 3
    if rex != 0x40 || (byteRegister && (reg >= 4 || rm >= 4)) { bytes.append(rex) }
    if escape { bytes.append(0x0f) }
    bytes.append(opcode)
    bytes.append(0xc0 | (reg & 7) << 3 | rm & 7)
    flush(bytes)
  }

  // MARK: Moves

  public mutating func move(_ to: X86Register, _ from: X86Register, wide: Bool = true) {
    registerForm(from.rawValue, to.rawValue, wide: wide, 0x89)
  }
  public mutating func load(_ to: X86Register, _ memory: X86Memory, wide: Bool = true) {
    memoryForm(to.rawValue, memory, wide: wide, 0x8b)
  }
  public mutating func store(_ memory: X86Memory, _ from: X86Register, wide: Bool = true) {
    memoryForm(from.rawValue, memory, wide: wide, 0x89)
  }
  public mutating func store8(_ memory: X86Memory, _ from: X86Register) {
    memoryForm(from.rawValue, memory, wide: false, 0x88, byteRegister: true)
  }
  public mutating func store16(_ memory: X86Memory, _ from: X86Register) {
    memoryForm(from.rawValue, memory, wide: false, prefix: 0x66, 0x89)
  }
  /// Stores a constant; 64-bit stores sign-extend it.
  public mutating func store(_ memory: X86Memory, immediate: Int32, byteCount: Int) {
    switch byteCount {
    case 1:
      memoryForm(0, memory, wide: false, 0xc6)
      byte(UInt8(truncatingIfNeeded: immediate))
    case 2:
      memoryForm(0, memory, wide: false, prefix: 0x66, 0xc7)
      byte(UInt8(truncatingIfNeeded: immediate))
      byte(UInt8(truncatingIfNeeded: immediate >> 8))
    default:
      memoryForm(0, memory, wide: byteCount == 8, 0xc7)
      word32(UInt32(bitPattern: immediate))
    }
  }
  public mutating func move(_ to: X86Register, immediate: UInt64) {
    if immediate == 0 {
      registerForm(to.rawValue, to.rawValue, wide: false, 0x31)
    } else {
      moveKeepingFlags(to, immediate: immediate)
    }
  }
  /// As `move`, without touching the flags for zero.
  public mutating func moveKeepingFlags(_ to: X86Register, immediate: UInt64) {
    if immediate <= 0xffff_ffff {
      if to.rawValue >= 8 { byte(0x41) }
      byte(0xb8 | to.rawValue & 7)
      word32(UInt32(truncatingIfNeeded: immediate))
    } else if Int64(bitPattern: immediate) == Int64(Int32(truncatingIfNeeded: immediate)) {
      registerForm(0, to.rawValue, wide: true, 0xc7)
      word32(UInt32(truncatingIfNeeded: immediate))
    } else {
      byte(0x48 | to.rawValue >> 3)
      byte(0xb8 | to.rawValue & 7)
      word64(immediate)
    }
  }
  /// movzx and movsx from 8 or 16 bits, movsxd from 32.
  public mutating func extend(_ to: X86Register, _ from: X86Register, bits: Int, signed: Bool) {
    switch (bits, signed) {
    case (8, true): registerForm(to.rawValue, from.rawValue, wide: true, escape: true, 0xbe)
    case (8, false):
      registerForm(to.rawValue, from.rawValue, wide: false, escape: true, 0xb6, byteRegister: true)
    case (16, true): registerForm(to.rawValue, from.rawValue, wide: true, escape: true, 0xbf)
    case (16, false): registerForm(to.rawValue, from.rawValue, wide: false, escape: true, 0xb7)
    case (_, true): registerForm(to.rawValue, from.rawValue, wide: true, 0x63)
    default: registerForm(from.rawValue, to.rawValue, wide: false, 0x89)
    }
  }
  public mutating func loadExtended(_ to: X86Register, _ memory: X86Memory, bits: Int, signed: Bool) {
    switch (bits, signed) {
    case (8, true): memoryForm(to.rawValue, memory, wide: true, escape: true, 0xbe)
    case (8, false): memoryForm(to.rawValue, memory, wide: false, escape: true, 0xb6)
    case (16, true): memoryForm(to.rawValue, memory, wide: true, escape: true, 0xbf)
    case (16, false): memoryForm(to.rawValue, memory, wide: false, escape: true, 0xb7)
    case (32, true): memoryForm(to.rawValue, memory, wide: true, 0x63)
    case (32, false): memoryForm(to.rawValue, memory, wide: false, 0x8b)
    default: memoryForm(to.rawValue, memory, wide: true, 0x8b)
    }
  }
  public mutating func loadAddress(_ to: X86Register, _ memory: X86Memory, wide: Bool = true) {
    memoryForm(to.rawValue, memory, wide: wide, 0x8d)
  }

  // MARK: Arithmetic

  public mutating func arithmetic(
    _ op: X86Arithmetic, _ to: X86Register, _ from: X86Register, wide: Bool = true
  ) {
    registerForm(from.rawValue, to.rawValue, wide: wide, op.rawValue << 3 | 1)
  }
  public mutating func arithmetic(
    _ op: X86Arithmetic, _ to: X86Register, _ memory: X86Memory, wide: Bool = true
  ) {
    memoryForm(to.rawValue, memory, wide: wide, op.rawValue << 3 | 3)
  }
  public mutating func arithmetic(
    _ op: X86Arithmetic, _ memory: X86Memory, from: X86Register, wide: Bool = true
  ) {
    memoryForm(from.rawValue, memory, wide: wide, op.rawValue << 3 | 1)
  }
  public mutating func arithmetic(_ op: X86Arithmetic, _ to: X86Register, immediate: Int32, wide: Bool = true)
  {
    if immediate >= -128 && immediate <= 127 {
      registerForm(op.rawValue, to.rawValue, wide: wide, 0x83)
      byte(UInt8(truncatingIfNeeded: immediate))
    } else {
      registerForm(op.rawValue, to.rawValue, wide: wide, 0x81)
      word32(UInt32(bitPattern: immediate))
    }
  }
  public mutating func arithmetic(
    _ op: X86Arithmetic, _ memory: X86Memory, immediate: Int32, wide: Bool = true
  ) {
    if immediate >= -128 && immediate <= 127 {
      memoryForm(op.rawValue, memory, wide: wide, 0x83)
      byte(UInt8(truncatingIfNeeded: immediate))
    } else {
      memoryForm(op.rawValue, memory, wide: wide, 0x81)
      word32(UInt32(bitPattern: immediate))
    }
  }
  public mutating func test(_ a: X86Register, _ b: X86Register, wide: Bool = true) {
    registerForm(b.rawValue, a.rawValue, wide: wide, 0x85)
  }
  /// test with a mask, of which a byte is enough where it fits.
  public mutating func test(_ a: X86Register, immediate: UInt32) {
    if immediate <= 0xff {
      registerForm(0, a.rawValue, wide: false, 0xf6, byteRegister: true)
      byte(UInt8(immediate))
    } else {
      registerForm(0, a.rawValue, wide: false, 0xf7)
      word32(immediate)
    }
  }
  public mutating func not(_ a: X86Register, wide: Bool = true) {
    registerForm(2, a.rawValue, wide: wide, 0xf7)
  }
  public mutating func negate(_ a: X86Register, wide: Bool = true) {
    registerForm(3, a.rawValue, wide: wide, 0xf7)
  }
  /// to *= from.
  public mutating func multiply(_ to: X86Register, _ from: X86Register, wide: Bool = true) {
    registerForm(to.rawValue, from.rawValue, wide: wide, escape: true, 0xaf)
  }
  public mutating func multiply(_ to: X86Register, _ from: X86Register, immediate: Int32, wide: Bool = true) {
    registerForm(to.rawValue, from.rawValue, wide: wide, 0x69)
    word32(UInt32(bitPattern: immediate))
  }
  /// rdx:rax = rax * from.
  public mutating func multiplyFull(_ from: X86Register, signed: Bool, wide: Bool = true) {
    registerForm(signed ? 5 : 4, from.rawValue, wide: wide, 0xf7)
  }
  /// rax, rdx = rdx:rax / from, remainder.
  public mutating func divide(_ from: X86Register, signed: Bool, wide: Bool = true) {
    registerForm(signed ? 7 : 6, from.rawValue, wide: wide, 0xf7)
  }
  /// cqo or cdq: rdx = sign of rax.
  public mutating func signToRDX(wide: Bool = true) {
    if wide { byte(0x48) }
    byte(0x99)
  }
  public mutating func shift(_ op: X86Shift, _ to: X86Register, by count: UInt8, wide: Bool = true) {
    registerForm(op.rawValue, to.rawValue, wide: wide, 0xc1)
    byte(count)
  }
  /// Shifts by CL.
  public mutating func shiftByCL(_ op: X86Shift, _ to: X86Register, wide: Bool = true) {
    registerForm(op.rawValue, to.rawValue, wide: wide, 0xd3)
  }
  /// shlx, shrx, sarx (BMI2): to = from shifted by count.
  public mutating func shiftX(
    _ op: X86Shift, _ to: X86Register, _ from: X86Register, _ count: X86Register, wide: Bool
  ) {
    let prefix: UInt8 = op == .left ? 1 : op == .right ? 3 : 2
    vex(
      to.rawValue, vvvv: count.rawValue, rm: from.rawValue, map: 2, prefix: prefix, wide: wide, 0xf7)
  }
  /// rorx (BMI2): to = from rotated right, flags untouched.
  public mutating func rotateRightX(_ to: X86Register, _ from: X86Register, by count: UInt8, wide: Bool) {
    vex(to.rawValue, vvvv: 0, rm: from.rawValue, map: 3, prefix: 3, wide: wide, 0xf0)
    byte(count)
  }
  /// andn (BMI1): to = ~a & b.
  public mutating func andNot(_ to: X86Register, _ a: X86Register, _ b: X86Register, wide: Bool = true) {
    vex(to.rawValue, vvvv: a.rawValue, rm: b.rawValue, map: 2, prefix: 0, wide: wide, 0xf2)
  }
  /// lzcnt, tzcnt, popcnt by opcode bd, bc, b8.
  public mutating func count(_ opcode: UInt8, _ to: X86Register, _ from: X86Register, wide: Bool) {
    registerForm(to.rawValue, from.rawValue, wide: wide, prefix: 0xf3, escape: true, opcode)
  }
  /// bsr and bsf by opcode bd, bc: the number of the highest or lowest bit set. Of 0: ZF, and `to` is undefined.
  public mutating func bitScan(_ opcode: UInt8, _ to: X86Register, _ from: X86Register, wide: Bool) {
    registerForm(to.rawValue, from.rawValue, wide: wide, escape: true, opcode)
  }
  /// Copies a bit of `a` to the carry flag.
  public mutating func bitTest(_ a: X86Register, bit: UInt8) {
    registerForm(4, a.rawValue, wide: true, escape: true, 0xba)
    byte(bit)
  }
  public mutating func bitTest(_ a: X86Register, _ bit: X86Register) {
    registerForm(bit.rawValue, a.rawValue, wide: false, escape: true, 0xa3)
  }
  public mutating func complementCarry() { byte(0xf5) }
  /// SF 7, ZF 6, AF 4, PF 2, CF 0 go to ah.
  public mutating func loadFlagsToAH() { byte(0x9f) }
  public mutating func byteSwap(_ to: X86Register, wide: Bool = true) {
    byte(0x40 | (wide ? 8 : 0) | to.rawValue >> 3)
    byte(0x0f)
    byte(0xc8 | to.rawValue & 7)
  }
  public mutating func set(_ condition: X86Condition, _ to: X86Register) {
    registerForm(0, to.rawValue, wide: false, escape: true, 0x90 | condition.rawValue, byteRegister: true)
  }
  public mutating func conditionalMove(
    _ condition: X86Condition, _ to: X86Register, _ from: X86Register, wide: Bool = true
  ) {
    registerForm(to.rawValue, from.rawValue, wide: wide, escape: true, 0x40 | condition.rawValue)
  }

  // MARK: Atomics

  public mutating func exchange(_ memory: X86Memory, _ with: X86Register, wide: Bool) {
    memoryForm(with.rawValue, memory, wide: wide, 0x87)
  }
  /// lock xadd: memory += with, with = old.
  public mutating func lockedExchangeAdd(_ memory: X86Memory, _ with: X86Register, wide: Bool) {
    byte(0xf0)
    memoryForm(with.rawValue, memory, wide: wide, escape: true, 0xc1)
  }
  /// lock cmpxchg: if rax == memory then memory = with; rax = old.
  public mutating func lockedCompareExchange(_ memory: X86Memory, _ with: X86Register, wide: Bool) {
    byte(0xf0)
    memoryForm(with.rawValue, memory, wide: wide, escape: true, 0xb1)
  }
  public mutating func memoryFence() {
    byte(0xf0)  // lock or dword [rsp], 0: cheaper than mfence
    memoryForm(1, X86Memory(.rsp), wide: false, 0x83)
    byte(0)
  }

  // MARK: Control flow

  /// jmp rel32; returns the offset of the displacement.
  public mutating func jump() -> Int {
    byte(0xe9)
    word32(0)
    return offset - 4
  }
  public mutating func jump(_ condition: X86Condition) -> Int {
    byte(0x0f)
    byte(0x80 | condition.rawValue)
    word32(0)
    return offset - 4
  }
  /// Short forward jump; returns the offset of the displacement byte.
  public mutating func jumpShort(_ condition: X86Condition) -> Int {
    byte(0x70 | condition.rawValue)
    byte(0)
    return offset - 1
  }
  public mutating func jumpShort() -> Int {
    byte(0xeb)
    byte(0)
    return offset - 1
  }
  /// Lets the short jump at `site` land here.
  public mutating func bindShort(_ site: Int) {
    let distance = offset - site - 1
    precondition(distance <= 127, "short jump out of range")
    start[site] = UInt8(distance)
  }
  /// Lets the jump whose displacement is at `site` land at `target` (default: here).
  public mutating func bind(_ site: Int, to target: Int? = nil) {
    let distance = Int32((target ?? offset) - site - 4)
    UnsafeMutableRawPointer(start + site).storeBytes(of: distance, as: Int32.self)
  }
  public mutating func jump(to target: Int) {
    let site = jump()
    bind(site, to: target)
  }
  public mutating func call(to target: Int) {
    byte(0xe8)
    word32(0)
    bind(offset - 4, to: target)
  }
  public mutating func jump(_ memory: X86Memory) { memoryForm(4, memory, wide: false, 0xff) }
  public mutating func jump(_ register: X86Register) { registerForm(4, register.rawValue, wide: false, 0xff) }
  public mutating func call(_ register: X86Register) { registerForm(2, register.rawValue, wide: false, 0xff) }
  public mutating func ret() { byte(0xc3) }
  /// Returns and takes so many bytes of arguments off the stack.
  public mutating func ret(popping byteCount: UInt16) {
    byte(0xc2)
    byte(UInt8(truncatingIfNeeded: byteCount))
    byte(UInt8(truncatingIfNeeded: byteCount >> 8))
  }
  /// Pushes a sign-extended immediate; always 5 bytes, the immediate last.
  public mutating func push(immediate: Int32) {
    byte(0x68)
    word32(UInt32(bitPattern: immediate))
  }
  public mutating func push(_ register: X86Register) {
    if register.rawValue >= 8 { byte(0x41) }
    byte(0x50 | register.rawValue & 7)
  }
  public mutating func pop(_ register: X86Register) {
    if register.rawValue >= 8 { byte(0x41) }
    byte(0x58 | register.rawValue & 7)
  }

  /// A three-byte VEX prefix, the opcode and a register ModRM. prefix: 0 none, 1 0x66, 2 0xf3, 3 0xf2.
  mutating func vex(
    _ reg: UInt8, vvvv: UInt8, rm: UInt8, map: UInt8, prefix: UInt8, wide: Bool, _ opcode: UInt8
  ) {
    var bytes = Bytes()
    bytes.append(0xc4)
    bytes.append((reg & 8 == 0 ? 0x80 : 0) | 0x40 | (rm & 8 == 0 ? 0x20 : 0) | map)
    bytes.append((wide ? 0x80 : 0) | (~vvvv & 15) << 3 | prefix)
    bytes.append(opcode)
    bytes.append(0xc0 | (reg & 7) << 3 | rm & 7)
    flush(bytes)
  }
}
