#include <espalier/random.h>

#include <math.h>

static void multiply(uint32_t a, uint32_t b, uint32_t *high, uint32_t *low) {
  const uint64_t product = (uint64_t)a * b;
  *high = (uint32_t)(product >> 32);
  *low = (uint32_t)product;
}

/* Ten Philox rounds: block = bijection_key(counter). */
static void make_block(esp_random *stream) {
  uint32_t c[4] = {stream->counter[0], stream->counter[1], stream->counter[2], stream->counter[3]};
  uint32_t k0 = stream->key[0], k1 = stream->key[1];
  for (int round = 0; round < 10; round++) {
    uint32_t high0, low0, high1, low1;
    multiply(0xD2511F53u, c[0], &high0, &low0);
    multiply(0xCD9E8D57u, c[2], &high1, &low1);
    const uint32_t next[4] = {high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0};
    for (int i = 0; i < 4; i++) c[i] = next[i];
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < 4; i++) stream->block[i] = c[i];
  stream->counter[0]++;
  stream->left = 4;
}

esp_random esp_random_stream(uint64_t seed, esp_purpose purpose, uint64_t index) {
  return (esp_random){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)},
                      .counter = {0, (uint32_t)purpose, (uint32_t)index, (uint32_t)(index >> 32)}};
}

uint32_t esp_random_bits(esp_random *stream) {
  if (stream->left == 0) make_block(stream);
  return stream->block[4 - stream->left--];
}

double esp_random_uniform(esp_random *stream) { return (esp_random_bits(stream) >> 8) * 0x1p-24; }

uint32_t esp_random_below(esp_random *stream, uint32_t bound) {
  const uint32_t biased = (uint32_t)(-bound) % bound; /* 2^32 mod bound values are dealt again */
  uint32_t bits = esp_random_bits(stream);
  while (bits < biased) bits = esp_random_bits(stream);
  return bits % bound;
}

double esp_random_normal(esp_random *stream) {
  const double radius = sqrt(-2.0 * log(1.0 - esp_random_uniform(stream)));
  return radius * cos(2.0 * 3.14159265358979323846 * esp_random_uniform(stream));
}

void esp_random_shuffle(esp_random *stream, uint32_t *items, uint32_t count) {
  for (uint32_t i = count; i > 1; i--) {
    const uint32_t j = esp_random_below(stream, i);
    const uint32_t kept = items[i - 1];
    items[i - 1] = items[j];
    items[j] = kept;
  }
}

uint64_t esp_hash_text(const char *text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
  return hash;
}
