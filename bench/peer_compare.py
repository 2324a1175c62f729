#!/usr/bin/env python3
"""Runs Espalier and the PyTorch peer in turns and prints the ratios; bench/peer.sh calls it. Standard library only."""
import argparse
import json
import os
import statistics
import subprocess
import sys

TEACHING = {"width": 64, "depth": 2, "heads": 2, "dense": 176, "hidden": 128, "experts": 4, "batch": 32}
# What is compared: a name, the suite of `espalier bench`, the peer's options, and how many steps one thread count gets.
CONTESTS = [
    ("training, reference model", "step-reference", {}, 11),
    ("training, reference, bf16", "step-reference-bf16", {"bf16": True}, 11),
    ("training, teaching model", "step-teaching", TEACHING, 51),
    ("inference, batch 128", "images-reference", {"infer": True}, 11),
    ("inference, single image", "image-reference", {"infer": True, "batch": 1}, 401),
]
THREADS = (1, 2)


def run_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}")
    return json.loads(done.stdout)


def run_espalier(options, suite, _, steps, threads):
    return run_json([options.espalier, "bench", suite, "--rounds", str(steps), "--threads", str(threads), "--json"])


def run_peer(options, _, settings, steps, threads):
    peer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer.py")
    command = [options.python, peer, "--steps", str(steps), "--threads", str(threads)]
    for name, value in settings.items():
        command += ["--" + name] if value is True else ["--" + name, str(value)]
    return run_json(command)


SIDES = {"espalier": run_espalier, "torch": run_peer}


def measure(options, suite, settings, steps):
    """Results by side and threads: the median images per second of the repeats, the least peak memory."""
    found = {(side, threads): [] for side in SIDES for threads in THREADS}
    for _ in range(options.repeats):
        for side, threads in found:
            found[side, threads].append(SIDES[side](options, suite, settings, steps, threads))
    return found


def rate(results):
    return statistics.median(result["images_per_second"] for result in results)


def memory(results):
    return statistics.median(result["peak_memory_bytes"] for result in results)


def summarise(name, found):
    row = {"name": name}
    for side in SIDES:
        for threads in THREADS:
            row[f"{side}_{threads}"] = rate(found[side, threads])
        row[f"{side}_memory_bytes"] = memory(found[side, 2])
    best = max(row[f"torch_{threads}"] for threads in THREADS)
    row["ratio"] = row["espalier_2"] / best
    row["ratio_of_best"] = max(row[f"espalier_{threads}"] for threads in THREADS) / best
    row["memory_ratio"] = row["espalier_memory_bytes"] / row["torch_memory_bytes"]
    return row


def print_row(row):
    print(f"{row['name']:28} {row['torch_1']:9.1f} {row['torch_2']:9.1f} {row['espalier_1']:11.1f} {row['espalier_2']:11.1f}"
          f" {row['ratio']:7.2f} {row['ratio_of_best']:8.2f} {row['torch_memory_bytes'] / 1e6:9.0f}"
          f" {row['espalier_memory_bytes'] / 1e6:11.0f} {row['memory_ratio']:7.2f}", flush=True)


def print_head(about):
    print(f"torch {about['torch']} ({about['blas']}, {about['capability']}); "
          f"espalier {about['espalier']} (own kernels {about['product_kernel']}, BLAS kernel {about['blas_kernel']}); "
          f"{about['core_distance_nanoseconds']:.0f} ns from one core to the other")
    print(f"environment: {about['environment']}")
    print(f"{'images per second, threads:':28} {'torch 1':>9} {'torch 2':>9} {'espalier 1':>11} {'espalier 2':>11}"
          f" {'ratio':>7} {'of best':>8} {'MB torch':>9} {'MB espalier':>11} {'ratio':>7}", flush=True)


def describe(found):
    ours, theirs = found["espalier", 2][0], found["torch", 2][0]
    names = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    return {"torch": theirs["torch"], "blas": theirs["blas"], "capability": theirs["capability"],
            "espalier": ours["version"], "blas_kernel": ours["blas_kernel"], "product_kernel": ours["product_kernel"],
            "core_distance_nanoseconds": statistics.median(
                result["core_distance_nanoseconds"] for result in found["espalier", 2]),
            "environment": ", ".join(f"{name}={os.environ.get(name, '(unset)')}" for name in names)}


def has_bf16():
    """Whether the processor multiplies bf16, without which Espalier refuses to."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return "avx512_bf16" in file.read()


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--espalier", default="espalier")
    parser.add_argument("--python", default=sys.executable, help="that has PyTorch")
    parser.add_argument("--repeats", type=int, default=3, help="of every run, in turns")
    parser.add_argument("--quick", action="store_true", help="a step each: to see that it works")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main():
    options = parse()
    rows, about = [], None
    for name, suite, settings, steps in CONTESTS:
        if "bf16" in settings and not has_bf16():
            continue
        found = measure(options, suite, settings, 1 if options.quick else steps)
        rows.append(summarise(name, found))
        if about is None:
            about = describe(found)
            if not options.json:
                print_head(about)
        if not options.json:
            print_row(rows[-1])
    if options.json:
        print(json.dumps({**about, "rows": rows}))
    else:
        print("ratio: espalier with 2 threads over PyTorch's best of 1 and 2; of best: espalier's best over it; "
              "memory: the most that a process of 2 threads had")


if __name__ == "__main__":
    main()
