#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

// Plain functions for what liburing has as macros and inline functions of many flavours.

static inline int apus_ring_start(struct io_uring *ring, unsigned depth) {
  return io_uring_queue_init(depth, ring, 0);
}

/// Queues a transfer; false if the queue is full.
static inline bool apus_ring_transfer(struct io_uring *ring, bool is_write, int descriptor, const struct iovec *vectors,
                                      unsigned count, uint64_t offset, void *data) {
  struct io_uring_sqe *entry = io_uring_get_sqe(ring);
  if (entry == NULL) return false;
  if (is_write) {
    io_uring_prep_writev(entry, descriptor, vectors, count, offset);
  } else {
    io_uring_prep_readv(entry, descriptor, vectors, count, offset);
  }
  io_uring_sqe_set_data(entry, data);
  return true;
}

/// Queues a request that does nothing; false if the queue is full.
static inline bool apus_ring_nothing(struct io_uring *ring) {
  struct io_uring_sqe *entry = io_uring_get_sqe(ring);
  if (entry == NULL) return false;
  io_uring_prep_nop(entry);
  io_uring_sqe_set_data(entry, NULL);
  return true;
}

/// Waits for the next request that has ended; 0, or a negative errno.
static inline int apus_ring_wait(struct io_uring *ring, void **data, int *result) {
  struct io_uring_cqe *entry;
  int code = io_uring_wait_cqe(ring, &entry);
  if (code < 0) return code;
  *data = io_uring_cqe_get_data(entry);
  *result = entry->res;
  io_uring_cqe_seen(ring, entry);
  return 0;
}
