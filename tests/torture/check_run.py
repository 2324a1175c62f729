"""What must hold of a folder at any moment: checkpoints load, JSON is whole, a CSV has whole rows, each once.
usage: check_run.py PROGRAM FOLDER [--ended]     (--ended: nothing half-written is left either)"""
import json, os, subprocess, sys

KEYS = {"metrics.csv": 3, "routing.csv": 4, "coactivation.csv": 4, "specialisation.csv": 4, "alarms.csv": 4}


def faults(program, folder, ended):
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if name.endswith(".tmp") and ended:
                yield f"{path} was left"
            elif name.endswith(".h5"):
                run = subprocess.run([program, "inspect", path], capture_output=True, text=True)
                if run.returncode != 0:
                    yield f"{path}: {run.stderr.strip()}"
            elif name.endswith(".json"):
                try:
                    json.load(open(path))
                except ValueError as error:
                    yield f"{path}: {error}"
            elif name.endswith(".csv"):
                yield from csv_faults(path, name)


def csv_faults(path, name):
    text = open(path).read()
    rows = text.split("\n")
    if text and rows[-1] != "":
        yield f"{path}: the last row has no end"
    rows = [row for row in rows[1:] if row]
    keys = [",".join(row.split(",")[:3] if name == "metrics.csv" else row.split(",")[:KEYS.get(name, 6)]) for row in rows]
    twice = {key for key in keys if keys.count(key) > 1} if len(keys) < 2000 else set()
    if twice and name in ("metrics.csv", "routing.csv"):
        yield f"{path}: rows that are there twice: {sorted(twice)[:3]}"


found = list(faults(sys.argv[1], sys.argv[2], "--ended" in sys.argv))
print("\n".join(found))
sys.exit(1 if found else 0)
