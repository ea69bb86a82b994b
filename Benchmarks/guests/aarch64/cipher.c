// Ciphers, hash functions and sums on AArch64's own instructions: cipher aes|sha1|sha256|pmull|crc32|crc32c [ROUNDS].
#include <arm_acle.h>
#include <arm_neon.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t data[65536] __attribute__((aligned(64)));

static uint64_t aes(int rounds) {
  uint8x16_t keys[11];
  for (int i = 0; i < 11; i++) keys[i] = vld1q_u8(data + 16 * i);
  for (int r = 0; r < rounds; r++) {
    for (size_t at = 0; at < sizeof data; at += 64) {
      uint8x16_t a = vld1q_u8(data + at), b = vld1q_u8(data + at + 16), c = vld1q_u8(data + at + 32),
                 d = vld1q_u8(data + at + 48);
#pragma GCC unroll 9
      for (int i = 0; i < 9; i++) {
        a = vaesmcq_u8(vaeseq_u8(a, keys[i]));
        b = vaesmcq_u8(vaeseq_u8(b, keys[i]));
        c = vaesmcq_u8(vaeseq_u8(c, keys[i]));
        d = vaesmcq_u8(vaeseq_u8(d, keys[i]));
      }
      vst1q_u8(data + at, veorq_u8(vaeseq_u8(a, keys[9]), keys[10]));
      vst1q_u8(data + at + 16, veorq_u8(vaeseq_u8(b, keys[9]), keys[10]));
      vst1q_u8(data + at + 32, veorq_u8(vaeseq_u8(c, keys[9]), keys[10]));
      vst1q_u8(data + at + 48, veorq_u8(vaeseq_u8(d, keys[9]), keys[10]));
    }
  }
  return *(uint64_t *)(data + 4096);
}

static uint64_t sha256(int rounds) {
  uint32x4_t x = vdupq_n_u32(0x6a09e667), y = vdupq_n_u32(0x510e527f);
  const uint32x4_t k = vdupq_n_u32(0x428a2f98);
  for (int r = 0; r < rounds; r++) {
    for (size_t at = 0; at < sizeof data; at += 64) {
      uint32x4_t w[4], x0 = x, y0 = y;
      for (int i = 0; i < 4; i++) w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + at + 16 * i)));
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        uint32x4_t t = vaddq_u32(w[i & 3], k), old = x;
        if (i < 12) w[i & 3] = vsha256su1q_u32(vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]), w[(i + 2) & 3], w[(i + 3) & 3]);
        x = vsha256hq_u32(x, y, t);
        y = vsha256h2q_u32(y, old, t);
      }
      x = vaddq_u32(x, x0);
      y = vaddq_u32(y, y0);
    }
  }
  return vgetq_lane_u64(vreinterpretq_u64_u32(veorq_u32(x, y)), 0);
}

static uint64_t sha1(int rounds) {
  uint32x4_t x = vdupq_n_u32(0x67452301);
  uint32_t e = 0xc3d2e1f0;
  for (int r = 0; r < rounds; r++) {
    for (size_t at = 0; at < sizeof data; at += 64) {
      uint32x4_t w[4], x0 = x;
      uint32_t e0 = e;
      for (int i = 0; i < 4; i++) w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + at + 16 * i)));
#pragma GCC unroll 20
      for (int i = 0; i < 20; i++) {
        uint32x4_t t = vaddq_u32(w[i & 3], vdupq_n_u32(0x5a827999));
        uint32_t next = vsha1h_u32(vgetq_lane_u32(x, 0));
        if (i < 16) w[i & 3] = vsha1su1q_u32(vsha1su0q_u32(w[i & 3], w[(i + 1) & 3], w[(i + 2) & 3]), w[(i + 3) & 3]);
        x = i < 5 ? vsha1cq_u32(x, e, t) : i >= 10 && i < 15 ? vsha1mq_u32(x, e, t) : vsha1pq_u32(x, e, t);
        e = next;
      }
      x = vaddq_u32(x, x0);
      e += e0;
    }
  }
  return vgetq_lane_u64(vreinterpretq_u64_u32(x), 0) ^ e;
}

static uint64_t pmull(int rounds) {
  uint64x2_t sum = vdupq_n_u64(1);
  const poly64_t h = 0xe100000000000087, f = 0xc200000000000000;
  for (int r = 0; r < rounds; r++) {
    for (size_t at = 0; at < sizeof data; at += 16) {
      sum = veorq_u64(sum, vld1q_u64((uint64_t *)(data + at)));
      uint64x2_t low = vreinterpretq_u64_p128(vmull_p64(vgetq_lane_u64(sum, 0), h));
      uint64x2_t high = vreinterpretq_u64_p128(vmull_high_p64(vreinterpretq_p64_u64(sum), vdupq_n_p64(h)));
      uint64x2_t fold = vreinterpretq_u64_p128(vmull_p64(vgetq_lane_u64(low, 0), f));
      sum = veorq_u64(veorq_u64(high, fold), vextq_u64(low, low, 1));
    }
  }
  return vgetq_lane_u64(sum, 0) ^ vgetq_lane_u64(sum, 1);
}

static uint64_t crc(int rounds, int castagnoli) {
  uint32_t sum = ~0u;
  for (int r = 0; r < rounds; r++)
    for (size_t at = 0; at < sizeof data; at += 8)
      sum = castagnoli ? __crc32cd(sum, *(uint64_t *)(data + at)) : __crc32d(sum, *(uint64_t *)(data + at));
  return sum;
}

int main(int count, char **words) {
  const char *kernel = count > 1 ? words[1] : "aes";
  int rounds = count > 2 ? atoi(words[2]) : 0;
  for (size_t i = 0; i < sizeof data; i++) data[i] = i * 131 + (i >> 8);
  uint64_t result;
  if (!strcmp(kernel, "aes")) result = aes(rounds ? rounds : 400);
  else if (!strcmp(kernel, "sha1")) result = sha1(rounds ? rounds : 500);
  else if (!strcmp(kernel, "sha256")) result = sha256(rounds ? rounds : 300);
  else if (!strcmp(kernel, "pmull")) result = pmull(rounds ? rounds : 1000);
  else if (!strcmp(kernel, "crc32")) result = crc(rounds ? rounds : 3000, 0);
  else if (!strcmp(kernel, "crc32c")) result = crc(rounds ? rounds : 3000, 1);
  else return fprintf(stderr, "there is no kernel '%s'\n", kernel), 1;
  printf("%s %016llx\n", kernel, (unsigned long long)result);
}
