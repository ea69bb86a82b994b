import ApusBlock
import ApusCrypto
import ApusHost

/// A qcow2 image [qcow2]: clusters found through two levels of tables, counted references, snapshots, compression.
///
/// Any thread. `monitor` guards tables and caches; guest data moves without it. Metadata is written back in an order
/// that keeps the file consistent whenever the writer dies (docs/block.md): refcount blocks before the L2 tables that
/// use the clusters, L2 tables before the L1 table, and references are dropped only after nothing on disk leads there.
public final class Qcow2Image: ImageNode, @unchecked Sendable {
  // SAFETY: mutable state is touched with `monitor` held, or before the object is shared.
  let monitor = Monitor()
  let file: any ImageNode
  /// The file of guest clusters if it is not `file`.
  let dataFile: (any ImageNode)?
  public let isReadOnly: Bool
  var header: Qcow2Header
  var backingNode: (any ImageNode)?
  /// Zeros are entered even where nothing shines through yet: a backing file is about to come.
  var expectsBacking = false
  var readsHolesAsZeros: Bool { backingNode == nil && !expectsBacking }

  /// What encrypts guest data and how; no store without the passphrase.
  public let encryption: LUKSHeader?
  var encryptedStore: EncryptedStore?

  /// L1 entries in host byte order.
  var l1: [UInt64]
  var dirtyL1Sectors: Set<Int> = []
  var l2Cache: [UInt64: L2Table] = [:]
  var l2CacheLimit: Int
  var useCounter: UInt64 = 0
  var refcountTable: [UInt64]
  var refcountBlocks: [Int: RefcountBlock] = [:]
  /// No cluster before this one is free.
  var freeHint: UInt64 = 0
  /// Where the next compressed cluster may go, in bytes; 0: into a new cluster.
  var freeByteOffset: UInt64 = 0
  /// References to drop once the tables on disk do not have them any more.
  var pendingFrees: [Range<UInt64>] = []
  /// Guest cluster ranges with allocations under way.
  var allocations: [Range<UInt64>] = []
  /// Requests that move data without the lock; clusters are not given to others meanwhile.
  var transfersInFlight = 0
  var snapshots: [Snapshot] = []
  /// As it is in the file.
  var snapshotTableByteCount = 0
  var snapshotTableIsCut = false
  var bitmaps: [PersistentBitmap] = []
  /// Whether bitmaps on disk are marked as in use by us.
  var bitmapsAreInUse = false
  /// Clusters that hold tables: a guest's data never goes there.
  var metadataClusters: Set<UInt64> = []
  var isBroken = false
  var isClosed = false
  // Set while the dirty bit is ours: refcounts on disk may be behind.
  var refcountsAreLazy = false
  let lazyRefcountsGiven: Bool?
  let recursesIntoFile: Bool
  let isWriteThrough: Bool

  /// A second-level table as it is on disk (big endian).
  final class L2Table {
    let offset: UInt64
    let buffer: HostBuffer
    var isDirty = false
    var lastUse: UInt64 = 0
    init(_ offset: UInt64, _ buffer: HostBuffer) { (self.offset, self.buffer) = (offset, buffer) }
  }
  final class RefcountBlock {
    let offset: UInt64
    let buffer: HostBuffer
    var isDirty = false
    init(_ offset: UInt64, _ buffer: HostBuffer) { (self.offset, self.buffer) = (offset, buffer) }
  }

  enum Entry {
    static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
    static let copied: UInt64 = 1 << 63
    static let compressed: UInt64 = 1 << 62
    static let zero: UInt64 = 1
  }

  public struct Options: Sendable {
    public var isReadOnly = false
    /// For check: do not repair a dirty image, open a corrupt one.
    public var isForCheck = false
    /// Bytes of L2 tables that stay in memory.
    public var l2CacheByteCount = 32 << 20
    /// Each write is durable, with the tables that lead to it, before it completes.
    public var isWriteThrough = false
    /// Whether counts wait until the image is closed; `nil`: as the image says.
    public var hasLazyRefcounts: Bool?
    /// Opens an image's LUKS encryption.
    public var passphrase: [UInt8]?
    public init() {}
  }

  // MARK: Geometry

  let clusterBits: UInt64
  let l2Bits: UInt64
  let entryByteCount: Int
  /// The unit that has a mapping of its own: a subcluster with extended L2 entries, else a cluster.
  let unitBits: UInt64
  var clusterSize: UInt64 { 1 << clusterBits }
  var hasExtendedL2: Bool { entryByteCount == 16 }
  var unitsPerCluster: UInt64 { 1 << (clusterBits - unitBits) }
  var isVersion3: Bool { header.version == 3 }

  public var driverName: String { "qcow2" }
  public var byteCount: UInt64 { monitor.withLock { header.byteCount } }
  public var supportsBacking: Bool { true }
  public var clusterByteCount: UInt64 { clusterSize }
  public var isZeroInitialized: Bool { dataFile == nil || header.isDataFileRaw == false }
  public var hasWriteCache: Bool { !isWriteThrough && file.hasWriteCache }
  public var children: [(role: String, node: any ImageNode)] {
    var result: [(role: String, node: any ImageNode)] = [("file", file)]
    if let dataFile { result.append(("data-file", dataFile)) }
    if let backingNode { result.append(("backing", backingNode)) }
    return result
  }
  /// Without the external data file's, as it is a file of its own.
  public var allocatedByteCount: UInt64 { file.allocatedByteCount }

  /// What the header says about the backing file: its name and format as they are stored.
  public var backingFileName: String? { monitor.withLock { header.backingFile } }
  public var backingFormat: String? { monitor.withLock { header.backingFormat } }

  /// Whether the file's first bytes are those of a qcow2 image.
  public static func matches(_ bytes: [UInt8]) -> Bool { Qcow2Header.matches(bytes) }
  /// The name of the external data file, if the image needs one (the name may be missing).
  public static func externalDataFile(of file: any ImageNode) throws(BlockError) -> (
    isNeeded: Bool, name: String?
  ) {
    let header = try Qcow2Header(reading: file)
    return (header.usesDataFile, header.dataFileName)
  }

  public static func clusterByteCount(of file: any ImageNode) throws(BlockError) -> UInt64 {
    try Qcow2Header(reading: file).clusterByteCount
  }

  // MARK: Opening

  /// - Parameters:
  ///   - dataFile: needed for images with an external data file.
  ///   - backing: may be attached later.
  public init(
    _ file: any ImageNode, dataFile: (any ImageNode)? = nil, backing: (any ImageNode)? = nil,
    options: Options = Options()
  ) throws(BlockError) {
    header = try Qcow2Header(reading: file)
    self.file = file
    guard header.usesDataFile == (dataFile != nil) else {
      throw BlockError(
        .invalid,
        header.usesDataFile
          ? "qcow2 image: it needs its external data file (data-file=)"
          : "qcow2 image: it has no external data file, but one was given")
    }
    self.dataFile = dataFile
    backingNode = backing
    isReadOnly = options.isReadOnly || file.isReadOnly
    isWriteThrough = options.isWriteThrough
    lazyRefcountsGiven = options.hasLazyRefcounts
    if lazyRefcountsGiven == true, header.version < 3 {
      throw BlockError(.unsupported, "qcow2 image: lazy-refcounts=on needs one of version 3 (compat=1.1)")
    }
    clusterBits = UInt64(header.clusterBits)
    entryByteCount = header.hasExtendedL2 ? 16 : 8
    l2Bits = clusterBits - (header.hasExtendedL2 ? 4 : 3)
    unitBits = header.hasExtendedL2 ? clusterBits - 5 : clusterBits
    l2CacheLimit = max(8, options.l2CacheByteCount >> header.clusterBits)
    let fileSize = file.byteCount
    // An encrypted hole does not read as zeros.
    recursesIntoFile = file.allocatedByteCount < fileSize / 10 * 9 && header.encryption == 0
    if header.encryption != 0, let place = header.encryptionHeader {
      let luks = try LUKSHeader.read(file, at: place.offset)
      encryption = luks
      if let passphrase = options.passphrase {
        encryptedStore = EncryptedStore(dataFile ?? file, try luks.unlock(passphrase, file, at: place.offset))
      } else if !options.isForCheck {
        throw BlockError(
          .invalid,
          "qcow2 image: it is encrypted; give its passphrase with --object secret,... and encrypt.key-secret="
        )
      }
    } else {
      encryption = nil
      if options.passphrase != nil {
        throw BlockError(.invalid, "qcow2 image: a passphrase was given, but it is not encrypted")
      }
    }
    l1 = try Self.readTable(file, header.l1Offset, header.l1Size)
    refcountTable = try Self.readTable(
      file, header.refcountTableOffset, header.refcountTableClusters << (header.clusterBits - 3))
    if header.incompatible & Qcow2Header.Incompatible.corrupt != 0, !isReadOnly, !options.isForCheck {
      throw BlockError(
        .invalid,
        "qcow2 image: it is marked as corrupt and can be opened read-only; repair it with check -r all")
    }
    rememberMetadata()
    do throws(BlockError) {
      snapshots = try readSnapshots()
      try checkSnapshotTable()
      bitmaps = try readBitmapDirectory()
    } catch {
      if !options.isForCheck { throw error }
    }
    guard !isReadOnly, !options.isForCheck else { return }
    try prepareForWriting()
  }

  private static func readTable(_ file: any ImageNode, _ offset: UInt64, _ count: Int) throws(BlockError)
    -> [UInt64]
  {
    if count == 0 { return [] }
    let buffer = HostBuffer(byteCount: count * 8, isZeroed: false)
    try file.read(at: offset, into: buffer.io)
    return (0..<count).map { buffer.big64($0 * 8) }
  }

  private func prepareForWriting() throws(BlockError) {
    let unknown = header.autoclear & ~Qcow2Header.Autoclear.known
    if unknown != 0 {
      header.autoclear &= Qcow2Header.Autoclear.known
      try writeHeader()
    }
    if header.incompatible & Qcow2Header.Incompatible.dirty != 0 {
      // The last writer died with refcounts behind: count anew before anything is allocated.
      var result = CheckResult()
      try checkLocked(repair: .all, &result)
      guard result.corruptions == 0, result.checkErrors == 0 else {
        throw BlockError(
          .invalid, "qcow2 image: its reference counts could not be repaired; run check -r all")
      }
      header.incompatible &= ~Qcow2Header.Incompatible.dirty
      try file.flush()
      try writeHeader()
    }
  }

  /// Tables whose place is known without a search: data is never written there.
  func rememberMetadata() {
    metadataClusters = [0]
    func add(_ offset: UInt64, _ byteCount: UInt64) {
      guard offset != 0, byteCount > 0 else { return }
      let first = offset >> clusterBits
      for cluster in first...((offset + byteCount - 1) >> clusterBits) { metadataClusters.insert(cluster) }
    }
    add(header.l1Offset, UInt64(l1.count) * 8)
    add(header.refcountTableOffset, UInt64(header.refcountTableClusters) << clusterBits)
    for entry in l1 where entry & Entry.offsetMask != 0 { add(entry & Entry.offsetMask, 1) }
    for entry in refcountTable where entry & Entry.offsetMask != 0 { add(entry & Entry.offsetMask, 1) }
    if header.snapshotCount > 0 { add(header.snapshotsOffset, 1) }
    if header.encryption != 0, let place = header.encryptionHeader { add(place.offset, place.byteCount) }
  }

  /// The backing file, opened by someone else; before the first request.
  public func attachBacking(_ node: (any ImageNode)?) { monitor.withLock { backingNode = node } }

  /// For a change of the backing file: from now on zeros that are written stay zeros whatever comes behind them.
  public func expectBacking() { monitor.withLock { expectsBacking = true } }

  // MARK: Guest data

  func readData(at hostOffset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    file.note("read_aio")
    if header.encryption == 0 { return try (dataFile ?? file).read(at: hostOffset, into: buffers) }
    try store().read(at: hostOffset, into: buffers)
  }
  func writeData(at hostOffset: UInt64, from buffers: [IOBuffer]) throws(BlockError) {
    file.note("write_aio")
    if header.encryption == 0 { return try (dataFile ?? file).write(at: hostOffset, from: buffers) }
    try store().write(at: hostOffset, from: buffers)
  }
  private func store() throws(BlockError) -> EncryptedStore {
    guard let encryptedStore else {
      throw invalid("it is encrypted, and was opened without its passphrase")
    }
    return encryptedStore
  }

  // MARK: Failure

  func invalid(_ what: String) -> BlockError { BlockError(.invalid, "qcow2 image: \(what)") }

  /// Notes that the image contradicts itself; it takes no more writes, and other programs are told.
  func corrupted(_ what: String) -> BlockError {
    if !isReadOnly, !isBroken {
      isBroken = true
      // Whoever asked gets an error; who runs the program should know, too, and once.
      writeStandardError("qcow2 image is corrupt, and is marked so: \(what)\n")
      if isVersion3, header.incompatible & Qcow2Header.Incompatible.corrupt == 0 {
        header.incompatible |= Qcow2Header.Incompatible.corrupt
        do throws(BlockError) { try writeHeader() } catch { return error }
      }
    }
    return BlockError(.io, "qcow2 image is corrupt: \(what); no more changes are made to it")
  }

  func checkUsable() throws(BlockError) {
    if isBroken {
      throw BlockError(.io, "qcow2 image: it was found to be corrupt; no more changes are made to it")
    }
    if isReadOnly { throw BlockError(.readOnly, "the image is open read-only") }
  }

  /// Runs `body` with the lock held.
  func locked<R>(_ body: () throws(BlockError) -> R) throws(BlockError) -> R {
    monitor.lock()
    defer { monitor.unlock() }
    return try body()
  }

  // MARK: Header and closing

  func writeHeader() throws(BlockError) {
    let bytes = try header.encoded()
    // Fields and extensions fit into the first sectors: a small write is all or nothing on most media.
    let used = (bytes.lastIndex { $0 != 0 } ?? 0) + 1
    let count = min(bytes.count, max(512, (used + 511) & ~511))
    if count == bytes.count {
      try file.write(bytes, at: 0)
    } else {
      // What an older, longer header left behind goes, too.
      let old = try file.bytes(at: 0, count: bytes.count)
      let end = max(count, ((old.lastIndex { $0 != 0 } ?? 0) + 512) & ~511)
      try file.write(Array(bytes[..<min(end, bytes.count)]), at: 0)
    }
  }

  public func flush() throws(BlockError) {
    if isReadOnly { return }
    try dataFile?.flush()
    try locked { () throws(BlockError) in
      if isBroken { return }
      try flushMetadata()
    }
    try file.flush()
  }

  public func close() throws(BlockError) {
    let isFirst = monitor.withLock {
      defer { isClosed = true }
      return !isClosed
    }
    guard isFirst else { return }
    if !isReadOnly {
      try locked { () throws(BlockError) in
        while transfersInFlight > 0 { monitor.wait() }
        guard !isBroken else { return }
        try flushMetadata(isFinal: true)
        try storeBitmaps()
        try flushMetadata(isFinal: true)
        if refcountsAreLazy {
          try file.flush()
          header.incompatible &= ~Qcow2Header.Incompatible.dirty
          refcountsAreLazy = false
          try writeHeader()
        }
      }
    }
    try dataFile?.close()
    try file.close()
    try backingNode?.close()
  }
}
