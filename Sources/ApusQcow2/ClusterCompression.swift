import ApusBlock
import ApusHost
import CDeflate
import CZlib
import CZstd
import Synchronization

/// Compression of single clusters. Any thread; the libraries' contexts are kept and used again (`CodecPool`).
public enum ClusterCompression: UInt8, Sendable, CaseIterable {
  case zlib = 0
  case zstd = 1

  public var name: String { self == .zlib ? "zlib" : "zstd" }
  public init?(name: String) {
    guard let found = Self.allCases.first(where: { $0.name == name }) else { return nil }
    self = found
  }

  /// Fills `output` from a compressed cluster. `input` may have bytes behind the stream's end.
  func decompress(_ input: IOBuffer, into output: IOBuffer) throws(BlockError) {
    let isDone = self == .zlib ? inflateCluster(input, output) : zstdDecompress(input, output)
    guard isDone else { throw BlockError(.io, "qcow2 image: a compressed cluster is damaged") }
  }

  private func inflateCluster(_ input: IOBuffer, _ output: IOBuffer) -> Bool {
    let codec = CodecPool.take()
    defer { CodecPool.give(codec) }
    var used = 0
    var made = 0
    let result = libdeflate_deflate_decompress_ex(
      codec.inflater, input.base, input.byteCount, output.base, output.byteCount, &used, &made)
    if result == LIBDEFLATE_SUCCESS { return made == output.byteCount }
    return result == LIBDEFLATE_INSUFFICIENT_SPACE && inflateStart(input, output)
  }

  /// As much of a longer stream as fits: such clusters count as good.
  private func inflateStart(_ input: IOBuffer, _ output: IOBuffer) -> Bool {
    var stream = z_stream()
    guard inflateInit2_(&stream, -15, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
      return false
    }
    defer { inflateEnd(&stream) }
    stream.next_in = input.base.assumingMemoryBound(to: UInt8.self)
    stream.avail_in = UInt32(input.byteCount)
    stream.next_out = output.base.assumingMemoryBound(to: UInt8.self)
    stream.avail_out = UInt32(output.byteCount)
    let result = inflate(&stream, Z_FINISH)
    return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0
  }

  private func zstdDecompress(_ input: IOBuffer, _ output: IOBuffer) -> Bool {
    let codec = CodecPool.take()
    defer { CodecPool.give(codec) }
    let context = codec.zstdDecompressor
    ZSTD_DCtx_reset(context, ZSTD_reset_session_only)
    var source = ZSTD_inBuffer(src: input.base, size: input.byteCount, pos: 0)
    var target = ZSTD_outBuffer(dst: output.base, size: output.byteCount, pos: 0)
    while target.pos < target.size {
      let before = (source.pos, target.pos)
      let result = ZSTD_decompressStream(context, &target, &source)
      if ZSTD_isError(result) != 0 || (source.pos, target.pos) == before { return false }
    }
    return true
  }

  /// The compressed form of a whole cluster; `nil` if it is no shorter than the cluster.
  func compress(_ input: IOBuffer) -> [UInt8]? {
    // One byte less than the cluster: what does not fit is not worth it.
    let limit = input.byteCount - 1
    let result = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
      count = self == .zlib ? deflateCluster(input, buffer) : zstdCompress(input, buffer)
    }
    return result.isEmpty ? nil : result
  }

  private func deflateCluster(_ input: IOBuffer, _ output: UnsafeMutableBufferPointer<UInt8>) -> Int {
    let codec = CodecPool.take()
    defer { CodecPool.give(codec) }
    return libdeflate_deflate_compress(
      codec.deflater, input.base, input.byteCount, output.baseAddress, output.count)
  }

  private func zstdCompress(_ input: IOBuffer, _ output: UnsafeMutableBufferPointer<UInt8>) -> Int {
    let codec = CodecPool.take()
    defer { CodecPool.give(codec) }
    let count = ZSTD_compress2(
      codec.zstdCompressor, output.baseAddress, output.count, input.base, input.byteCount)
    return ZSTD_isError(count) != 0 ? 0 : count
  }
}

/// One set of the libraries' contexts; used by one thread at a time.
private final class Codec: @unchecked Sendable {
  // SAFETY: the pool hands it to one thread at a time; the contexts live as long as the object.
  // The levels are those that make images as small as qemu-img's in the least time (docs/performance.md).
  lazy var deflater: OpaquePointer? = libdeflate_alloc_compressor(3)
  lazy var inflater: OpaquePointer? = libdeflate_alloc_decompressor()
  lazy var zstdCompressor: OpaquePointer? = {
    let context = ZSTD_createCCtx()
    // Level 3 with the fast search: a hash table of 65536 places sees all of a cluster.
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, 3)
    ZSTD_CCtx_setParameter(context, ZSTD_c_strategy, 1)
    ZSTD_CCtx_setParameter(context, ZSTD_c_hashLog, 16)
    ZSTD_CCtx_setParameter(context, ZSTD_c_minMatch, 5)
    return context
  }()
  lazy var zstdDecompressor: OpaquePointer? = ZSTD_createDCtx()
}

/// Contexts that nobody uses now. There are as many as threads were at work at once.
private enum CodecPool {
  private static let free = Mutex<[Codec]>([])
  static func take() -> Codec { free.withLock { $0.popLast() } ?? Codec() }
  static func give(_ codec: Codec) { free.withLock { $0.append(codec) } }
}
