import ApusHost
import CGnuTLS

/// TLS on a socket. One thread may send while another receives: the library is entered by one at a time, and waiting for
/// the socket happens outside of it.
final class TLSSession: @unchecked Sendable {
  // SAFETY: the library's objects are touched with `monitor` held.
  private let socket: HostStream
  private let monitor = Monitor()
  private var session: gnutls_session_t?
  private var certificates: gnutls_certificate_credentials_t?
  private var clientKey: gnutls_psk_client_credentials_t?
  private var serverKey: gnutls_psk_server_credentials_t?

  /// Shakes hands and checks the other side's certificate.
  ///
  /// - Parameter hostName: whom the server's certificate must name; a client with certificates needs it.
  init(_ socket: HostStream, _ credentials: TLSCredentials, hostName: String?) throws(HostError) {
    self.socket = socket
    guard apus_gnutls_is_available() else {
      throw HostError("start TLS: GnuTLS (libgnutls.so.30) is missing", errno: 2)
    }
    try Self.check(apus_gnutls_global_init(), "start GnuTLS")
    socket.setNonBlocking()
    let kind: UInt32 = (credentials.isServer ? 1 : 2) | 8  // GNUTLS_SERVER or GNUTLS_CLIENT, GNUTLS_NONBLOCK
    try Self.check(apus_gnutls_init(&session, kind), "start TLS")
    let isShared = credentials.kind != .x509
    let priority = credentials.priority ?? (isShared ? "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK" : "NORMAL")
    try Self.check(
      apus_gnutls_priority_set_direct(session, priority, nil), "use the TLS priority '\(priority)'")
    switch credentials.kind {
    case .x509: try useCertificates(credentials, hostName)
    case .sharedKey(let name): try useSharedKey(credentials, name)
    }
    apus_gnutls_transport_set_int2(session, socket.rawDescriptor, socket.rawDescriptor)
    try shakeHands()
    if credentials.kind == .x509, credentials.isServer ? credentials.verifiesPeer : true {
      try verify(credentials.isServer ? nil : hostName)
    }
    if let authorization = credentials.authorization {
      let name = try peerName()
      guard authorization.allows(name) else { throw HostError("let in the client '\(name)'", errno: 1) }
    }
  }

  deinit {
    if let session { apus_gnutls_deinit(session) }
    if let certificates { apus_gnutls_certificate_free_credentials(certificates) }
    if let clientKey { apus_gnutls_psk_free_client_credentials(clientKey) }
    if let serverKey { apus_gnutls_psk_free_server_credentials(serverKey) }
  }

  private static func check(_ code: Int32, _ what: String) throws(HostError) {
    guard code < 0 else { return }
    throw HostError("\(what): \(String(cString: apus_gnutls_strerror(code)))", errno: 71)
  }

  private func useCertificates(_ credentials: TLSCredentials, _ hostName: String?) throws(HostError) {
    let folder = credentials.folder
    try Self.check(apus_gnutls_certificate_allocate_credentials(&certificates), "use certificates")
    let authority = "\(folder)/ca-cert.pem"
    try Self.check(
      apus_gnutls_certificate_set_x509_trust_file(certificates, authority, GNUTLS_X509_FMT_PEM),
      "read '\(authority)'")
    let revoked = "\(folder)/ca-crl.pem"
    if HostDescriptor.exists(revoked) {
      try Self.check(
        apus_gnutls_certificate_set_x509_crl_file(certificates, revoked, GNUTLS_X509_FMT_PEM),
        "read '\(revoked)'")
    }
    let name = credentials.isServer ? "server" : "client"
    let (certificate, key) = ("\(folder)/\(name)-cert.pem", "\(folder)/\(name)-key.pem")
    if credentials.isServer || HostDescriptor.exists(certificate) {
      try Self.check(
        apus_gnutls_certificate_set_x509_key_file(certificates, certificate, key, GNUTLS_X509_FMT_PEM),
        "read '\(certificate)' and '\(key)'")
    }
    try Self.check(
      apus_gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, UnsafeMutableRawPointer(certificates)),
      "use certificates")
    if credentials.isServer {
      apus_gnutls_certificate_server_set_request(
        session, credentials.verifiesPeer ? GNUTLS_CERT_REQUIRE : GNUTLS_CERT_IGNORE)
    } else if let hostName, !hostName.isEmpty {
      try Self.check(
        apus_gnutls_server_name_set(session, GNUTLS_NAME_DNS, hostName, hostName.utf8.count),
        "name the server")
    } else {
      throw HostError(
        "check the server's certificate without the host's name; give tls-hostname=", errno: 22)
    }
  }

  private func useSharedKey(_ credentials: TLSCredentials, _ name: String) throws(HostError) {
    let path = "\(credentials.folder)/keys.psk"
    if credentials.isServer {
      try Self.check(apus_gnutls_psk_allocate_server_credentials(&serverKey), "use shared keys")
      try Self.check(apus_gnutls_psk_set_server_credentials_file(serverKey, path), "read '\(path)'")
      return try Self.check(
        apus_gnutls_credentials_set(session, GNUTLS_CRD_PSK, UnsafeMutableRawPointer(serverKey)),
        "use shared keys"
      )
    }
    let text = String(decoding: try HostDescriptor.contents(path, limit: 1 << 20), as: UTF8.self)
    guard let line = text.split(whereSeparator: \.isNewline).first(where: { $0.hasPrefix(name + ":") }) else {
      throw HostError("find the key of '\(name)' in", path, errno: 2)
    }
    var digits = Array(line.dropFirst(name.count + 1).utf8)
    try Self.check(apus_gnutls_psk_allocate_client_credentials(&clientKey), "use a shared key")
    let count = UInt32(digits.count)
    let code = digits.withUnsafeMutableBufferPointer { buffer in
      var datum = gnutls_datum_t(data: buffer.baseAddress, size: count)
      return apus_gnutls_psk_set_client_credentials(clientKey, name, &datum, GNUTLS_PSK_KEY_HEX)
    }
    try Self.check(code, "use the key of '\(name)' in '\(path)'")
    try Self.check(
      apus_gnutls_credentials_set(session, GNUTLS_CRD_PSK, UnsafeMutableRawPointer(clientKey)),
      "use a shared key")
  }

  private func shakeHands() throws(HostError) {
    // A peer that never answers is not waited for without end.
    let deadline = HostClock.monotonicNanoseconds() + 60_000_000_000
    while true {
      let code = apus_gnutls_handshake(session)
      if code == 0 { return }
      if code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED {
        guard HostClock.monotonicNanoseconds() < deadline else {
          throw HostError("shake hands with TLS: the other side does not answer", errno: 110)
        }
        _ = socket.waitUntilReady(writing: apus_gnutls_record_get_direction(session) == 1, milliseconds: 1000)
        continue
      }
      if apus_gnutls_error_is_fatal(code) != 0 { try Self.check(code, "shake hands with TLS") }
    }
  }

  private func verify(_ hostName: String?) throws(HostError) {
    var status: UInt32 = 0
    let code =
      hostName.map { apus_gnutls_certificate_verify_peers3(session, $0, &status) }
      ?? apus_gnutls_certificate_verify_peers2(session, &status)
    try Self.check(code, "check the other side's certificate")
    guard status == 0 else {
      var text = gnutls_datum_t()
      apus_gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0)
      defer { apus_gnutls_free(text.data) }
      let reason =
        text.data.map { String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self)) } ?? ""
      throw HostError("trust the other side's certificate: \(reason)", errno: 13)
    }
  }

  /// The distinguished name of the other side's certificate.
  private func peerName() throws(HostError) -> String {
    var count: UInt32 = 0
    guard let list = apus_gnutls_certificate_get_peers(session, &count), count > 0 else {
      throw HostError("find the client's certificate: it has shown none", errno: 13)
    }
    var certificate: gnutls_x509_crt_t?
    try Self.check(apus_gnutls_x509_crt_init(&certificate), "read the client's certificate")
    defer { apus_gnutls_x509_crt_deinit(certificate) }
    try Self.check(
      apus_gnutls_x509_crt_import(certificate, list, GNUTLS_X509_FMT_DER), "read the client's certificate")
    var name = [CChar](repeating: 0, count: 8192)
    var size = name.count
    try Self.check(apus_gnutls_x509_crt_get_dn(certificate, &name, &size), "read the client's name")
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  // MARK: Data

  /// Runs a call of the library's until it has done something; waits for the socket meanwhile.
  private func transfer(_ isWriting: Bool, _ what: String, _ body: () -> Int) throws(HostError) -> Int {
    while true {
      let count = monitor.withLock(body)
      if count >= 0 { return count }
      let code = Int32(clamping: count)
      guard code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED || code == GNUTLS_E_REHANDSHAKE else {
        // A peer that just closes the socket ends the stream, too.
        if code == GNUTLS_E_PREMATURE_TERMINATION, !isWriting { return 0 }
        throw HostError("\(what): \(String(cString: apus_gnutls_strerror(code)))", errno: 104)
      }
      _ = socket.waitUntilReady(writing: isWriting, milliseconds: -1)
    }
  }

  func receive(_ buffer: IOBuffer) throws(HostError) -> Bool {
    var done = 0
    while done < buffer.byteCount {
      let count = try transfer(false, "receive with TLS") {
        apus_gnutls_record_recv(session, buffer.base + done, buffer.byteCount - done)
      }
      if count == 0 {
        if done == 0 { return false }
        throw HostError("receive with TLS: it ended early", errno: 104)
      }
      done += count
    }
    return true
  }

  func send(_ buffers: [IOBuffer]) throws(HostError) {
    for buffer in buffers {
      var done = 0
      while done < buffer.byteCount {
        done += try transfer(true, "send with TLS") {
          apus_gnutls_record_send(session, buffer.base + done, buffer.byteCount - done)
        }
      }
    }
  }
}
