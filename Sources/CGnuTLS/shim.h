#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>
// The library's own is a variable.
static inline void apus_gnutls_free(void *memory) { gnutls_free(memory); }
