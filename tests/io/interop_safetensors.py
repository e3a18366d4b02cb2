#!/usr/bin/env python3
"""Files written by PyPI's safetensors load in Weft, and the other way round; a trainer's checkpoint too.

usage: interop_safetensors.py VENV_FOLDER SAFETENSORS_COPY [FIT_CUSTOM]

Makes a virtual environment in VENV_FOLDER (once) and runs itself there. Ends with 77, which ctest shows as skipped, where
the packages cannot be had.
"""
import json
import os
import subprocess
import sys
import tempfile

PACKAGES = ["safetensors==0.4.5", "numpy==1.26.4", "xxhash==3.5.0"]
SKIPPED = 77


def enter_environment(folder):
    python = os.path.join(folder, "bin", "python")
    stamp = os.path.join(folder, "installed")
    if not os.path.exists(stamp):
        steps = [
            [sys.executable, "-m", "venv", folder],
            [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--timeout", "15", "--retries", "1"]
            + PACKAGES,
        ]
        for step in steps:
            try:
                done = subprocess.run(step, capture_output=True, text=True, timeout=90)
            except (OSError, subprocess.TimeoutExpired) as error:
                print(f"skipped: {error}")
                sys.exit(SKIPPED)
            if done.returncode != 0:
                print(f"skipped: {' '.join(step)} failed: {done.stderr.strip()[-300:]}")
                sys.exit(SKIPPED)
        open(stamp, "w").close()
    os.execv(python, [python] + sys.argv + ["--inside"])


def copy(tool, source, target):
    return subprocess.run([tool, source, target], capture_output=True, text=True)


def header_of(path):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length)
        return raw, json.loads(raw), file.read()


def check_checksum(path):
    """The recipe of weft.checksum, followed with another implementation of XXH64."""
    import xxhash

    raw, header, data = header_of(path)
    value = header["__metadata__"]["weft.checksum"]
    sums = value.removeprefix("xxh64:").split(",")
    zeroed = "xxh64:" + ",".join("0" * 16 for _ in sums)
    assert xxhash.xxh64_hexdigest(raw.replace(value.encode(), zeroed.encode())) == sums[0], "header checksum"
    entries = sorted(((tuple(e["data_offsets"]), n) for n, e in header.items() if n != "__metadata__"))
    assert len(entries) == len(sums) - 1
    for ((begin, end), name), expected in zip(entries, sums[1:]):
        assert xxhash.xxh64_hexdigest(data[begin:end]) == expected, f"checksum of {name}"


def check_training(sample):
    """Python opens the checkpoint of a training run, and the run goes on from what Python has written in its place."""
    import numpy
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        first, whole = (os.path.join(folder, n) for n in ("first", "whole"))

        def train(path, epochs, *more):
            subprocess.run([sample, "--quiet", "--epochs", str(epochs), "--checkpoint", path, *more], check=True,
                           stdout=subprocess.DEVNULL)

        train(whole, 2)
        train(first, 1)
        check_checksum(first)
        arrays = load_file(first)
        assert all(numpy.isfinite(a).all() for a in arrays.values()) and any(a.any() for a in arrays.values())
        with safe_open(first, "numpy") as file:
            metadata = {k: v for k, v in file.metadata().items() if k != "weft.checksum"}
        assert metadata["weft.value.weft.step"].startswith("i64 "), metadata
        save_file(arrays, first, metadata)
        train(first, 2, "--resume")
        assert open(first, "rb").read() == open(whole, "rb").read(), "a run that Python's file went between ends elsewhere"


def main(tool, sample=None):
    import numpy
    from safetensors import deserialize, safe_open, serialize_file
    from safetensors.numpy import load_file, save_file

    random = numpy.random.default_rng(1)
    arrays = {
        "f32": random.standard_normal((3, 5)).astype(numpy.float32),
        "f64": random.standard_normal((2, 3, 4)),
        "f16": random.standard_normal(7).astype(numpy.float16),
        "i64": random.integers(-(2**62), 2**62, (4, 1)),
        "i32": random.integers(-(2**31), 2**31, 9, dtype=numpy.int32),
        "u8": random.integers(0, 256, 1001, dtype=numpy.uint8),
        "bool": random.integers(0, 2, (3, 3)).astype(bool),
        "scalar": numpy.array(3.25, dtype=numpy.float32),
        "empty": numpy.zeros((0, 4), dtype=numpy.float32),
        "weird \" \\ \u00e9 \U0001f9f5 \n/": numpy.arange(3, dtype=numpy.float32),
        "large": random.standard_normal((513, 1027)).astype(numpy.float32),
    }
    metadata = {"format": "pt", "quote": "\"\\\t\u00e9\U0001f9f5", "empty": ""}
    with tempfile.TemporaryDirectory() as folder:
        source, target, again = (os.path.join(folder, n) for n in ("python", "weft", "again"))
        save_file(arrays, source, metadata)
        done = copy(tool, source, target)
        assert done.returncode == 0, done.stderr
        loaded = load_file(target)
        assert loaded.keys() == arrays.keys()
        for name, array in arrays.items():
            assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape, name
            assert loaded[name].tobytes() == array.tobytes(), name
        with safe_open(target, "numpy") as file:
            kept = dict(file.metadata())
        assert kept.pop("weft.checksum").startswith("xxh64:")
        assert kept == metadata, kept
        check_checksum(target)

        # What Weft wrote is read by Weft again, to the same bytes.
        assert copy(tool, target, again).returncode == 0
        assert open(target, "rb").read() == open(again, "rb").read()

        # bf16, which numpy has not.
        serialize_file({"b": {"dtype": "bfloat16", "shape": [2], "data": b"\x80\x3f\x00\xc0"}}, source, None)
        assert copy(tool, source, target).returncode == 0
        ((name, entry),) = deserialize(open(target, "rb").read())
        assert (name, entry["dtype"], entry["shape"], bytes(entry["data"])) == ("b", "BF16", [2], b"\x80\x3f\x00\xc0")

        # No arrays at all.
        save_file({}, source)
        assert copy(tool, source, target).returncode == 0 and load_file(target) == {}

        # A type that Weft has not is refused by name when it is written.
        save_file({"short": numpy.arange(3, dtype=numpy.int16)}, source)
        done = copy(tool, source, target)
        assert done.returncode == 1 and "short" in done.stderr, done.stderr

        # Both refuse the same damage.
        good = open(again, "rb").read()
        for length in (0, 7, 8, 100, len(good) - 1):
            open(source, "wb").write(good[:length])
            assert copy(tool, source, target).returncode == 1
            try:
                load_file(source)
            except Exception:
                continue
            raise AssertionError(f"safetensors loads {length} bytes of {len(good)}")
    if sample:
        check_training(sample)
    print("safetensors: both ways, all dtypes, metadata and checksums" + (", and a run's checkpoint" if sample else ""))


if __name__ == "__main__":
    if sys.argv[-1] != "--inside":
        enter_environment(sys.argv[1])
    main(*sys.argv[2:-1])
