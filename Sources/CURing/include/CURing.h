#ifndef CURING_H
#define CURING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

// What ApusRing needs of liburing, whose own header is no module: it sets feature macros and is mostly inline functions.

typedef struct apus_ring apus_ring;

/// A ring that queues `depth` requests; NULL with a negative errno in `error`.
apus_ring *apus_ring_create(unsigned depth, int *error);
void apus_ring_destroy(apus_ring *ring);

/// Queues a transfer; false if the queue is full. The vectors stay valid until it has ended.
bool apus_ring_transfer(apus_ring *ring, bool is_write, int descriptor, const struct iovec *vectors, unsigned count,
                        uint64_t offset, void *data);

/// Queues a request that does nothing; false if the queue is full.
bool apus_ring_nothing(apus_ring *ring);

/// Hands what is queued to the kernel: how many requests went, or a negative errno.
int apus_ring_submit(apus_ring *ring);

/// Waits for the next request that has ended; 0, or a negative errno.
int apus_ring_wait(apus_ring *ring, void **data, int *result);

#endif
