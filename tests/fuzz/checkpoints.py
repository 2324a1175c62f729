#!/usr/bin/env python3
"""Damages a checkpoint behind its seal, as a stranger could, and counts what becomes of the program that opens it.

usage: checkpoints.py PROGRAM CHECKPOINT EXECUTIONS [SEED] [--keep FOLDER]

Each execution changes one to eight bytes (set, flipped, counted up or down, filled with 0 or 255, copied from elsewhere), of
which most lie in HDF5's structures and not in the numbers, seals the file anew, and runs `inspect` on it with 20 seconds to end. Prints
how many ended well, were refused (exit code 1 or 2), killed the program by a signal, or did not end.
"""
import collections
import os
import random
import struct
import subprocess
import sys
import tempfile

SEAL, SECONDS = 24, 20
MARKS = (b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"FHIB", b"BTHD", b"BTLF", b"BTIN", b"FAHD", b"FADB", b"SNOD", b"TREE", b"HEAP")


def fnv(data):
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return digest


def sealed(data):
    return bytes(data) + b"espalier" + struct.pack("<QQ", len(data), fnv(data))


def lookup3(data):
    """The checksum of HDF5's structures (Bob Jenkins' lookup3, little-endian)."""
    mask = 0xFFFFFFFF
    rot = lambda x, k: (x << k | x >> (32 - k)) & mask
    a = b = c = (0xDEADBEEF + len(data)) & mask
    at = 0
    while len(data) - at > 12:
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        a = (a - c) & mask ^ rot(c, 4); c = (c + b) & mask
        b = (b - a) & mask ^ rot(a, 6); a = (a + c) & mask
        c = (c - b) & mask ^ rot(b, 8); b = (b + a) & mask
        a = (a - c) & mask ^ rot(c, 16); c = (c + b) & mask
        b = (b - a) & mask ^ rot(a, 19); a = (a + c) & mask
        c = (c - b) & mask ^ rot(b, 4); b = (b + a) & mask
        at += 12
    tail = data[at:]
    if not tail:
        return c
    x, y, z = struct.unpack("<III", tail + bytes(12 - len(tail)))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    c = ((c ^ b) - rot(b, 14)) & mask
    a = ((a ^ c) - rot(c, 11)) & mask
    b = ((b ^ a) - rot(a, 25)) & mask
    c = ((c ^ b) - rot(b, 16)) & mask
    a = ((a ^ c) - rot(c, 4)) & mask
    b = ((b ^ a) - rot(a, 14)) & mask
    c = ((c ^ b) - rot(b, 24)) & mask
    return c


def structures(data):
    """Where each structure begins and where its checksum lies."""
    found = []
    starts = sorted(i for mark in MARKS for i in occurrences(data, mark))
    for n, start in enumerate(starts):
        end = starts[n + 1] if n + 1 < len(starts) else len(data) - 4
        for at in range(start + 4, min(end, start + 4096) + 1):
            if struct.unpack_from("<I", data, at)[0] == lookup3(data[start:at]):
                found.append((start, at))
                break
    return found


def occurrences(data, mark):
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + 1)


def mutate(data, parts, dice):
    """Changed bytes, with the checksums of the structures right again nine times out of ten."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 8) if dice.random() < 0.5 else 1):
        if parts and dice.random() < 0.9:
            start, end = dice.choice(parts)
            at = dice.randrange(start, end)
        else:
            at = dice.randrange(len(out))
        kind = dice.randrange(6)
        if kind == 0: out[at] = dice.randrange(256)
        elif kind == 1: out[at] ^= 1 << dice.randrange(8)
        elif kind == 2: out[at] = (out[at] + dice.choice((-1, 1))) % 256
        elif kind == 3: out[at] = dice.choice((0, 255))
        elif kind == 4:
            size = dice.choice((2, 4, 8))
            out[at:at + size] = dice.choice((bytes(size), b"\xff" * size))[:len(out) - at]
        else:
            source, size = dice.randrange(len(out)), dice.choice((1, 4, 8, 16))
            size = min(size, len(out) - at, len(out) - source)
            out[at:at + size] = out[source:source + size]
    if dice.random() < 0.9:
        for start, end in parts:
            if out[start:end] != data[start:end]:
                struct.pack_into("<I", out, end, lookup3(bytes(out[start:end])))
    return out


def run(program, path):
    try:
        done = subprocess.run([program, "inspect", path, "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "hung", b""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}", done.stderr
    return ("opened", "refused", "refused")[done.returncode] if done.returncode < 3 else "other", done.stderr


def main():
    words = [w for w in sys.argv[1:] if not w.startswith("--")]
    keep = words.pop() if "--keep" in sys.argv else None
    program, checkpoint, executions = words[0], words[1], int(words[2])
    dice = random.Random(int(words[3]) if len(words) > 3 else 1)
    data = open(checkpoint, "rb").read()[:-SEAL]
    parts = structures(data)
    print(f"{len(data)} bytes, {len(parts)} structures with checksums", flush=True)
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "c.h5")
        for n in range(executions):
            made = sealed(mutate(data, parts, dice))
            open(path, "wb").write(made)
            outcome, said = run(program, path)
            if outcome == "refused" and (b"ended the process" in said or b"took more than" in said):
                outcome = "refused after its trial died"
            counts[outcome] += 1
            if keep and (outcome.startswith("killed") or outcome == "hung"):
                os.makedirs(keep, exist_ok=True)
                open(os.path.join(keep, f"{n:06d}.h5"), "wb").write(made)
    for outcome, count in sorted(counts.items()):
        print(f"{count} of {executions}: {outcome}")
    return any(outcome.startswith("killed") or outcome in ("hung", "other") for outcome in counts)


if __name__ == "__main__":
    sys.exit(main())
