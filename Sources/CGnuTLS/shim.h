// GnuTLS, loaded when it is first needed: its start takes longer than that of everything else in apus-img together
// (docs/performance.md), and most images need no cryptography. Each function here is the library's of that name.
#include <dlfcn.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stddef.h>
#include <stdlib.h>

static inline void *apus_gnutls_library(void) { return dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL); }

/// Whether the library is there; asked before anything else is called.
static inline _Bool apus_gnutls_is_available(void) { return apus_gnutls_library() != NULL; }

static inline void *apus_gnutls_symbol(const char *name) {
  void *library = apus_gnutls_library();
  void *symbol = library == NULL ? NULL : dlsym(library, name);
  if (symbol == NULL) abort();
  return symbol;
}

#define APUS_GNUTLS(result, name, parameters, arguments)              \
  static inline result apus_##name parameters {                       \
    static void *known;                                               \
    void *function = __atomic_load_n(&known, __ATOMIC_RELAXED);       \
    if (function == NULL) {                                           \
      function = apus_gnutls_symbol(#name);                           \
      __atomic_store_n(&known, function, __ATOMIC_RELAXED);           \
    }                                                                 \
    return ((__typeof__(&name))function)arguments;                    \
  }

APUS_GNUTLS(int, gnutls_global_init, (void), ())
APUS_GNUTLS(const char *, gnutls_strerror, (int code), (code))
APUS_GNUTLS(int, gnutls_hash_fast,
            (gnutls_digest_algorithm_t kind, const void *data, size_t size, void *digest),
            (kind, data, size, digest))
APUS_GNUTLS(int, gnutls_pbkdf2,
            (gnutls_mac_algorithm_t kind, const gnutls_datum_t *key, const gnutls_datum_t *salt, unsigned count,
             void *output, size_t size),
            (kind, key, salt, count, output, size))
APUS_GNUTLS(int, gnutls_rnd, (gnutls_rnd_level_t level, void *data, size_t size), (level, data, size))
APUS_GNUTLS(int, gnutls_cipher_init,
            (gnutls_cipher_hd_t *handle, gnutls_cipher_algorithm_t kind, const gnutls_datum_t *key,
             const gnutls_datum_t *vector),
            (handle, kind, key, vector))
APUS_GNUTLS(void, gnutls_cipher_deinit, (gnutls_cipher_hd_t handle), (handle))
APUS_GNUTLS(void, gnutls_cipher_set_iv,
            (gnutls_cipher_hd_t handle, void *vector, size_t size),
            (handle, vector, size))
APUS_GNUTLS(int, gnutls_cipher_encrypt2,
            (gnutls_cipher_hd_t handle, const void *input, size_t size, void *output, size_t room),
            (handle, input, size, output, room))
APUS_GNUTLS(int, gnutls_cipher_decrypt2,
            (gnutls_cipher_hd_t handle, const void *input, size_t size, void *output, size_t room),
            (handle, input, size, output, room))
APUS_GNUTLS(int, gnutls_init, (gnutls_session_t *session, unsigned flags), (session, flags))
APUS_GNUTLS(void, gnutls_deinit, (gnutls_session_t session), (session))
APUS_GNUTLS(int, gnutls_priority_set_direct,
            (gnutls_session_t session, const char *text, const char **error),
            (session, text, error))
APUS_GNUTLS(void, gnutls_transport_set_int2,
            (gnutls_session_t session, int receiver, int sender),
            (session, receiver, sender))
APUS_GNUTLS(int, gnutls_handshake, (gnutls_session_t session), (session))
APUS_GNUTLS(int, gnutls_record_get_direction, (gnutls_session_t session), (session))
APUS_GNUTLS(int, gnutls_error_is_fatal, (int code), (code))
APUS_GNUTLS(ssize_t, gnutls_record_recv, (gnutls_session_t session, void *data, size_t size), (session, data, size))
APUS_GNUTLS(ssize_t, gnutls_record_send,
            (gnutls_session_t session, const void *data, size_t size),
            (session, data, size))
APUS_GNUTLS(int, gnutls_credentials_set,
            (gnutls_session_t session, gnutls_credentials_type_t type, void *credentials),
            (session, type, credentials))
APUS_GNUTLS(int, gnutls_server_name_set,
            (gnutls_session_t session, gnutls_server_name_type_t type, const void *name, size_t size),
            (session, type, name, size))
APUS_GNUTLS(int, gnutls_certificate_allocate_credentials,
            (gnutls_certificate_credentials_t *credentials),
            (credentials))
APUS_GNUTLS(void, gnutls_certificate_free_credentials,
            (gnutls_certificate_credentials_t credentials),
            (credentials))
APUS_GNUTLS(int, gnutls_certificate_set_x509_trust_file,
            (gnutls_certificate_credentials_t credentials, const char *path, gnutls_x509_crt_fmt_t format),
            (credentials, path, format))
APUS_GNUTLS(int, gnutls_certificate_set_x509_crl_file,
            (gnutls_certificate_credentials_t credentials, const char *path, gnutls_x509_crt_fmt_t format),
            (credentials, path, format))
APUS_GNUTLS(int, gnutls_certificate_set_x509_key_file,
            (gnutls_certificate_credentials_t credentials, const char *certificate, const char *key,
             gnutls_x509_crt_fmt_t format),
            (credentials, certificate, key, format))
APUS_GNUTLS(void, gnutls_certificate_server_set_request,
            (gnutls_session_t session, gnutls_certificate_request_t request),
            (session, request))
APUS_GNUTLS(int, gnutls_certificate_verify_peers2, (gnutls_session_t session, unsigned *status), (session, status))
APUS_GNUTLS(int, gnutls_certificate_verify_peers3,
            (gnutls_session_t session, const char *name, unsigned *status),
            (session, name, status))
APUS_GNUTLS(int, gnutls_certificate_verification_status_print,
            (unsigned status, gnutls_certificate_type_t type, gnutls_datum_t *text, unsigned flags),
            (status, type, text, flags))
APUS_GNUTLS(const gnutls_datum_t *, gnutls_certificate_get_peers,
            (gnutls_session_t session, unsigned *count),
            (session, count))
APUS_GNUTLS(int, gnutls_x509_crt_init, (gnutls_x509_crt_t *certificate), (certificate))
APUS_GNUTLS(void, gnutls_x509_crt_deinit, (gnutls_x509_crt_t certificate), (certificate))
APUS_GNUTLS(int, gnutls_x509_crt_import,
            (gnutls_x509_crt_t certificate, const gnutls_datum_t *data, gnutls_x509_crt_fmt_t format),
            (certificate, data, format))
APUS_GNUTLS(int, gnutls_x509_crt_get_dn,
            (gnutls_x509_crt_t certificate, char *name, size_t *size),
            (certificate, name, size))
APUS_GNUTLS(int, gnutls_psk_allocate_client_credentials,
            (gnutls_psk_client_credentials_t *credentials),
            (credentials))
APUS_GNUTLS(void, gnutls_psk_free_client_credentials, (gnutls_psk_client_credentials_t credentials), (credentials))
APUS_GNUTLS(int, gnutls_psk_set_client_credentials,
            (gnutls_psk_client_credentials_t credentials, const char *name, const gnutls_datum_t *key,
             gnutls_psk_key_flags format),
            (credentials, name, key, format))
APUS_GNUTLS(int, gnutls_psk_allocate_server_credentials,
            (gnutls_psk_server_credentials_t *credentials),
            (credentials))
APUS_GNUTLS(void, gnutls_psk_free_server_credentials, (gnutls_psk_server_credentials_t credentials), (credentials))
APUS_GNUTLS(int, gnutls_psk_set_server_credentials_file,
            (gnutls_psk_server_credentials_t credentials, const char *path),
            (credentials, path))

// The library's own is a variable.
static inline void apus_gnutls_free(void *memory) {
  (*(gnutls_free_function *)apus_gnutls_symbol("gnutls_free"))(memory);
}
