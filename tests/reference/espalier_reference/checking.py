"""Comparisons of numbers, and the smallest possible test runner."""

import sys
import time
import traceback

import numpy as np

from .program import ProgramFailed


def close(actual, expected, relative=1e-5, what="", scale=None):
    """|actual - expected| <= relative times the largest magnitude expected of the row of numbers compared."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shapes {actual.shape} and {expected.shape}")
    if not actual.size:
        raise AssertionError(f"{what}: nothing to compare")
    size = np.abs(expected).max() if scale is None else scale
    difference = np.abs(actual - expected).max()
    if not difference <= relative * size:
        at = np.unravel_index(np.argmax(np.abs(actual - expected)), actual.shape)
        raise AssertionError(f"{what}: {actual[at]:.9g} where the reference has {expected[at]:.9g} (at {at}; "
                             f"difference {difference / size:.2g} of the largest, allowed {relative:g})")


def same(actual, expected, what=""):
    if not np.array_equal(np.asarray(actual), np.asarray(expected)):
        raise AssertionError(f"{what}: {actual} where the reference has {expected}")


def run_tests(module):
    """Runs each function called test_... that is named on the command line, or all. Exit code 1 if any fails."""
    tests = {name: f for name, f in vars(module).items() if name.startswith("test_") and callable(f)}
    wanted = sys.argv[1:] or list(tests)
    failed = 0
    for name in wanted:
        start = time.monotonic()
        try:
            tests[name]()
            print(f"ok      {name} ({time.monotonic() - start:.2f} s)", flush=True)
        except Exception as error:  # all are reported, then the next one runs
            failed += 1
            print(f"FAILED  {name}: {error}", flush=True)
            if not isinstance(error, (AssertionError, ProgramFailed)):
                traceback.print_exc()
    print(f"{len(wanted) - failed} of {len(wanted)} passed")
    sys.exit(1 if failed else 0)
