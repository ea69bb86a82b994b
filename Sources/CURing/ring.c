#include <liburing.h>
#include <stdlib.h>

#include "CURing.h"

struct apus_ring {
  struct io_uring ring;
};

apus_ring *apus_ring_create(unsigned depth, int *error) {
  apus_ring *ring = malloc(sizeof(apus_ring));
  if (ring == NULL) abort();
  *error = io_uring_queue_init(depth, &ring->ring, 0);
  if (*error == 0) return ring;
  free(ring);
  return NULL;
}

void apus_ring_destroy(apus_ring *ring) {
  io_uring_queue_exit(&ring->ring);
  free(ring);
}

bool apus_ring_transfer(apus_ring *ring, bool is_write, int descriptor, const struct iovec *vectors, unsigned count,
                        uint64_t offset, void *data) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
  if (entry == NULL) return false;
  if (is_write) {
    io_uring_prep_writev(entry, descriptor, vectors, count, offset);
  } else {
    io_uring_prep_readv(entry, descriptor, vectors, count, offset);
  }
  io_uring_sqe_set_data(entry, data);
  return true;
}

bool apus_ring_nothing(apus_ring *ring) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
  if (entry == NULL) return false;
  io_uring_prep_nop(entry);
  io_uring_sqe_set_data(entry, NULL);
  return true;
}

int apus_ring_submit(apus_ring *ring) { return io_uring_submit(&ring->ring); }

int apus_ring_wait(apus_ring *ring, void **data, int *result) {
  struct io_uring_cqe *entry;
  int code = io_uring_wait_cqe(&ring->ring, &entry);
  if (code < 0) return code;
  *data = io_uring_cqe_get_data(entry);
  *result = entry->res;
  io_uring_cqe_seen(&ring->ring, entry);
  return 0;
}
