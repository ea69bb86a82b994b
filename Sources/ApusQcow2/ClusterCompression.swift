import ApusBlock
import ApusHost
import CZlib
import CZstd

/// Compression of single clusters. Any thread; contexts are kept per thread of work in `Compressor`.
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
    var stream = z_stream()
    // Raw deflate with a window of 4 KiB.
    guard inflateInit2_(&stream, -12, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
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
    guard let context = ZSTD_createDCtx() else { return false }
    defer { ZSTD_freeDCtx(context) }
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
    var stream = z_stream()
    guard
      deflateInit2_(
        &stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY, ZLIB_VERSION,
        Int32(MemoryLayout<z_stream>.size)) == Z_OK
    else { return 0 }
    defer { deflateEnd(&stream) }
    stream.next_in = input.base.assumingMemoryBound(to: UInt8.self)
    stream.avail_in = UInt32(input.byteCount)
    stream.next_out = output.baseAddress
    stream.avail_out = UInt32(output.count)
    return deflate(&stream, Z_FINISH) == Z_STREAM_END ? output.count - Int(stream.avail_out) : 0
  }

  private func zstdCompress(_ input: IOBuffer, _ output: UnsafeMutableBufferPointer<UInt8>) -> Int {
    let count = ZSTD_compress(output.baseAddress, output.count, input.base, input.byteCount, 3)
    return ZSTD_isError(count) != 0 ? 0 : count
  }
}
