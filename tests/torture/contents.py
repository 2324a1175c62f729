"""Prints a digest of everything each HDF5 file below a folder holds: names, types, shapes, values, attributes. The files' bytes
differ, because HDF5 notes when an object was made. usage: contents.py FOLDER"""
import hashlib, os, sys
import h5py


def digest(path):
    total = hashlib.sha256()

    def visit(name, thing):
        total.update(name.encode())
        for key in sorted(thing.attrs):
            total.update(f"{key}={thing.attrs[key]!r}".encode())
        if isinstance(thing, h5py.Dataset):
            total.update(f"{thing.dtype} {thing.shape}".encode())
            value = thing[()]
            total.update(value.tobytes() if thing.dtype.kind in "fiuV" else repr(value).encode())

    with h5py.File(path, "r") as file:
        visit("", file)
        file.visititems(visit)
    return total.hexdigest()[:16]


paths = [os.path.join(place, name) for place, _, names in os.walk(sys.argv[1]) for name in names if name.endswith(".h5")]
for path in sorted(paths):
    print(os.path.relpath(path, sys.argv[1]), digest(path))
