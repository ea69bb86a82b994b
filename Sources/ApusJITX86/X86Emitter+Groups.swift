import ApusAsmX86
import ApusIR
import ApusJIT

// Groups: accesses of a block off the same base, close together, look their page up once. The first one, the lead,
// checks that all of them lie in one page and leaves the base's host address in a register for the others, which
// need no check of their own.
//
//     lea  t1, [base + low]            lead: as every look-up, for low ... high
//     ...
//     cmp  t1, 4096 - (high - low) ; ja stub
//     mov  h, [rbp + t2 + tlb + 16]
//     lea  h, [t1 + h - low]
//     mov  result, [h + displacement]
//     ...
//     mov  result, [h + displacement]  another member
//
// Where the lead's check fails, its stub fills the TLB and tries again. If that is no help (two pages, a device, a
// page with code), it goes on at the same instruction in a block without groups, through a link like any other.

/// Accesses that share a look-up.
struct AccessGroup {
  /// The base's IR value, and the translation context.
  var base: Int
  var context: Int
  /// Displacements: the lowest, and the end of the highest access.
  var low: Int
  var high: Int
  var needsStore: Bool
  var memberCount = 1
  /// IR instruction of the first and the last member.
  var first: Int
  var last: Int
  /// How many conditional exits come before the lead.
  var exitCount: Int

  /// A block has no more groups.
  static let limit = 64
  /// Bytes that a group spans at most: the more, the more often it lies in two pages. Below 512 (`packedSite`).
  static let spanLimit = 504
  /// Where the host address of group `number`'s base is kept: behind the block's values.
  static func value(_ number: Int) -> Int { IRBlock.capacity + number }
}

extension X86Emitter {
  /// Sorts the block's accesses into groups.
  func findGroups() {
    groups.removeAll(keepingCapacity: true)
    guard context.groupsAccesses else { return }
    // Groups below were made before a helper, which may change what addresses mean.
    var firstOpen = 0
    var exitCount = 0
    for number in 0..<irCount {
      let i = ir[number]
      switch i.opcode {
      case .call: firstOpen = groups.count
      case .exitIf32, .exitIf64: exitCount += 1
      case _ where i.opcode.isPlainLoad || i.opcode.isPlainStore: addToGroup(number, i, firstOpen, exitCount)
      default: break
      }
    }
    for number in groups.indices {
      let group = groups[number]
      values[AccessGroup.value(number)] = ValueInfo(
        lastUse: UInt16(group.last), root: UInt16(AccessGroup.value(number)))
    }
  }

  private func addToGroup(_ number: Int, _ i: IRInstruction, _ firstOpen: Int, _ exitCount: Int) {
    let operand = IRMemoryOperand(rawValue: i.immediate)
    let low = Int(operand.displacement)
    let high = low + byteCount(i.opcode)
    let isStore = i.opcode.isPlainStore
    var candidate = groups.count
    while candidate > firstOpen {
      candidate -= 1
      let group = groups[candidate]
      guard group.base == root(i.a), group.context == operand.context,
        max(group.high, high) - min(group.low, low) <= AccessGroup.spanLimit,
        // A load's look-up asks for a store's permission only where the store is sure to follow.
        !isStore || group.needsStore || group.exitCount == exitCount
      else { continue }
      groups[candidate].low = min(group.low, low)
      groups[candidate].high = max(group.high, high)
      groups[candidate].needsStore = group.needsStore || isStore
      groups[candidate].memberCount += 1
      groups[candidate].last = number
      values[number].group = UInt8(candidate + 1)
      return
    }
    guard groups.count < AccessGroup.limit else { return }
    groups.append(
      AccessGroup(
        base: root(i.a), context: operand.context, low: low, high: high, needsStore: isStore, first: number,
        last: number, exitCount: exitCount))
    values[number].group = UInt8(groups.count)
  }

  /// The register of an access's base, or, for a member behind the lead, of the base's host address.
  func baseRegister(_ i: IRInstruction) -> X86Register {
    let number = Int(values[index].group) - 1
    if number >= 0, groups[number].first < index { return use(UInt16(AccessGroup.value(number))) }
    return use(i.a)
  }

  /// The host address of a member; for the lead with the look-up.
  func translateInGroup(_ number: Int, _ address: X86Register, _ displacement: Int32) -> X86Memory {
    let group = groups[number]
    if group.first < index { return X86Memory(address, displacement) }
    let offset = takeTemporary()
    let host = takeTemporary()
    let retry = asm.offset
    let slow = emitLookUp(
      address, Int32(group.low), context: group.context, isStore: group.needsStore,
      span: group.high - group.low, offset, host)
    asm.loadAddress(host, X86Memory(offset, Int32(-group.low), index: host))
    let value = AccessGroup.value(number)
    values[value].place = .register
    values[value].register = host.rawValue
    content[Int(host.rawValue)] = UInt16(value)
    addStub(
      .group(site: groupSite(group, displacement), address: address, offset: offset, pc: currentPC), slow,
      resume: retry)
    return X86Memory(host, displacement)
  }

  /// A site that tells the lead's displacement, how far below it the group begins, and whether it needs to store.
  private func groupSite(_ group: AccessGroup, _ displacement: Int32) -> UInt32 {
    let operand = GroupOperand(
      displacement: displacement, context: group.context, byteCountBelow: Int(displacement) - group.low,
      needsStore: group.needsStore)
    return sites.append(
      SlowSite(pc: currentPC, memoryOperand: operand.rawValue, opcode: .load64), flatOffset: nil)
  }

  func emitGroupStub(
    _ site: UInt32, _ address: X86Register, _ offset: X86Register, _ pc: UInt64, retry: Int
  ) {
    // The page was found, but the group goes on in the next one.
    asm.arithmetic(.cmp, offset, immediate: 4096)
    let straddles = asm.jumpShort(.below)
    asm.push(address)
    asm.push(immediate: Int32(bitPattern: site))
    asm.call(to: thunks.prepareGroup)
    asm.jump(to: retry)
    keepDisplacementInLine(opcodeByteCount: 1)
    asm.bindShort(straddles)
    links.append(
      PendingLink(siteOffset: asm.jump(), stubOffset: 0, targetPC: pc, isUngrouped: true))
  }
}

/// What a group's site says, in the bits of a memory operand.
///
/// ```
///  46          41   40    39     32 31          0
/// | bytes below / 8 | st | context | displacement |
/// ```
public struct GroupOperand {
  public var rawValue: Int64
  public init(rawValue: Int64) { self.rawValue = rawValue }
  /// - byteCountBelow: 0 to 504; rounded up to 8.
  public init(displacement: Int32, context: Int, byteCountBelow: Int, needsStore: Bool) {
    rawValue =
      Int64(UInt32(bitPattern: displacement)) | Int64(context) << 32 | (needsStore ? 1 << 40 : 0)
      | Int64((byteCountBelow + 7) / 8) << 41
  }
  public var displacement: Int32 { Int32(truncatingIfNeeded: rawValue) }
  public var context: Int { Int(rawValue >> 32 & 0xff) }
  public var needsStore: Bool { rawValue >> 40 & 1 != 0 }
  public var byteCountBelow: UInt64 { UInt64(rawValue >> 41 & 63) * 8 }
}
