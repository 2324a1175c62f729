"""The program's random streams, so that what it draws can be repeated: Philox 4x32-10 (Salmon et al., SC 2011), with the
key of a seed and a counter that begins at (0, purpose, index)."""

import math

MASK = 0xFFFFFFFF
SHUFFLE, ROUTER_NOISE = 2, 5  # purposes, core/random.h


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & MASK, (first >> 32) ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


class Stream:
    def __init__(self, seed, purpose, index):
        self.key = (seed & MASK, seed >> 32)
        self.counter = [0, purpose, index & MASK, index >> 32]
        self.block = []

    def bits(self):
        if not self.block:
            self.block = philox(self.counter, self.key)
            self.counter[0] += 1
        return self.block.pop(0)

    def uniform(self):
        return (self.bits() >> 8) * 2.0**-24

    def normal(self):
        """Box-Muller."""
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())

    def below(self, bound):
        biased = (1 << 32) % bound
        bits = self.bits()
        while bits < biased:
            bits = self.bits()
        return bits % bound

    def shuffled(self, count):
        """Fisher-Yates, from the end."""
        items = list(range(count))
        for i in range(count, 1, -1):
            j = self.below(i)
            items[i - 1], items[j] = items[j], items[i - 1]
        return items
