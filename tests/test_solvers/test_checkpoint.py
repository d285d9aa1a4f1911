"""Checkpoints: what is saved comes back or is known to be damaged, whatever happens to writers, files and the disk."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from solvers.sde import checkpoint
from solvers.sde.checkpoint import Store

IDENTITY = {"model": "3f2a", "dt": 0.01, "paths": 1000, "observe": {"p": {"edges": [0.0, 1.0], "every": 5}}}
GOLDEN = Path(__file__).parent / "data" / "checkpoint_v1"
ROOT = Path(__file__).parents[2]

# A child that starts in 0.2 s: the package `solvers.sde` without its `__init__`, which imports JAX.
_light = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
import solvers
package = types.ModuleType("solvers.sde")
package.__path__ = [{str(ROOT / "solvers" / "sde")!r}]
sys.modules["solvers.sde"] = package
import numpy as np
from solvers.sde.checkpoint import Store
directory, arguments = sys.argv[1], sys.argv[2:]
"""


def _child(code, *arguments, **options):
    command = [sys.executable, "-c", _light + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def _state(step):
    """What the step says it is: wrong data cannot pass for another step's."""
    rng = np.random.default_rng(step)
    return {"x": rng.normal(size=(50, 3)), "observed/p/0": rng.integers(0, 2**40, (2, 20)), "step": np.array(step)}


def _assert_state(loaded, step):
    assert loaded is not None
    assert loaded[0] == step
    _assert_same(loaded[1], _state(step))


def _assert_same(arrays, expected):
    assert list(arrays) == list(expected)
    for name, a in arrays.items():
        b = expected[name]
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def _files(directory):
    return sorted(path for path in (Path(directory) / "parts").rglob("*") if path.is_file())


def _packed(manifest, arrays):
    return b"".join(checkpoint._pack(manifest, arrays))


def _sealed(manifest, payload=b"", version=1, **header):
    """A file with a right checksum around any contents, written from the description of the format."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    length = header.get("length", 64 + len(text) + len(payload))
    start = b"\x89SDE\r\n\x1a\n" + struct.pack("<QQQ", version, length, header.get("text_length", len(text)))
    return start + hashlib.sha256(start + text + payload).digest() + text + payload


# What is saved comes back


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">i2", ">u8", ">f4", ">f8"]
)
def test_every_dtype_and_shape_comes_back(tmp_path, dtype):
    rng = np.random.default_rng(0)
    full = np.frombuffer(rng.bytes(8 * 30), f"{'>' if dtype[0] == '>' else ''}{dtype.lstrip('>')}")[:30]
    full = full.astype(dtype) if dtype != "?" else rng.integers(0, 2, 30).astype(bool)
    arrays = {
        "flat": full,
        "deep/er": full.reshape(2, 3, 5),
        "fortran": np.asfortranarray(full.reshape(5, 6)),
        "strided": full[::-3],
        "point": full[:1].reshape(()),
        "empty": full[:0],
        "empty/wide": full[:0].reshape(4, 0, 2),
    }
    Store(tmp_path / "run", IDENTITY).save(3, 7, arrays, {"note": ["α", None, 1.5]})
    step, loaded, meta = Store(tmp_path / "run", IDENTITY).load(3)
    native = np.dtype(dtype).newbyteorder("=")
    _assert_same(loaded, {name: a.astype(native) for name, a in arrays.items()})
    assert (step, meta) == (7, {"note": ["α", None, 1.5]})
    assert all(a.flags.writeable and a.flags.owndata and a.flags.aligned for a in loaded.values())


_names = st.lists(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\:."), min_size=1)).filter(
    len
)
_arrays = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        hnp.floating_dtypes(sizes=(16, 32, 64)),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(_names.map("/".join), _arrays, max_size=5),
    st.dictionaries(st.text(), _json_values, max_size=4),
    st.integers(0, 2**40),
    st.integers(0, 2**63),
)
def test_anything_permitted_comes_back(arrays, meta, part, step):
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory, IDENTITY)
        store.save(part, step, arrays, meta)
        assert store.steps() == {part: step}
        loaded_step, loaded, loaded_meta = store.load(part)
    _assert_same(loaded, {name: a.astype(a.dtype.newbyteorder("=")) for name, a in arrays.items()})
    assert (loaded_step, json.dumps(loaded_meta, sort_keys=True)) == (step, json.dumps(meta, sort_keys=True))


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a"], object),
        np.array(["a"]),
        np.array([b"a"]),
        np.array([1j]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, [("a", "f8")]),
        np.zeros(2, np.clongdouble),
    ],
    ids=lambda array: array.dtype.str,
)
def test_other_dtypes_are_refused(tmp_path, array):
    store = Store(tmp_path / "run", IDENTITY)
    with pytest.raises(TypeError, match=re.escape("`arrays['x']` must hold booleans, integers or floats")):
        store.save(0, 1, {"x": array})
    assert store.load(0) is None


def test_values_that_are_not_json_are_refused(tmp_path):
    store = Store(tmp_path / "run", IDENTITY)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(0, 1, {}, {"x": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(0, 1, {}, {"x": np.arange(2)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path / "other", {"x": float("inf")})
    assert (store.load(0), (tmp_path / "other").exists()) == (None, False)


@pytest.mark.parametrize(("part", "step"), [(-1, 0), (0, -1)])
def test_parts_and_steps_are_counted_from_zero(tmp_path, part, step):
    with pytest.raises(ValueError, match="`part` and `step` must not be negative"):
        Store(tmp_path, IDENTITY).save(part, step, {})


def test_nothing_saved_is_none(tmp_path):
    store = Store(tmp_path / "a" / "b" / "run", IDENTITY)
    assert store.load(0) is None
    assert store.steps() == {}


def test_parts_are_apart_and_the_two_newest_of_each_are_kept(tmp_path):
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20, 30, 40):
        store.save(0, step, _state(step))
    for part in (1, 63, 64, 10**8, 2**40):
        store.save(part, part + 5, _state(part + 5))
    again = Store(tmp_path, IDENTITY)
    _assert_state(again.load(0), 40)
    for part in (1, 63, 64, 10**8, 2**40):
        _assert_state(again.load(part), part + 5)
    assert again.steps() == {0: 40} | {part: part + 5 for part in (1, 63, 64, 10**8, 2**40)}
    assert [path.name for path in _files(tmp_path)][:3] == [
        "00000000-000000000030.ckpt",
        "00000000-000000000040.ckpt",
        "00000001-000000000006.ckpt",
    ]
    assert len(_files(tmp_path)) == 2 + 5


def test_a_slow_worker_does_no_harm_to_one_that_is_ahead(tmp_path):
    slow, fast = Store(tmp_path, IDENTITY), Store(tmp_path, IDENTITY)
    slow.save(0, 10, _state(10))
    _assert_state(fast.load(0), 10)
    for step in (20, 30, 40):
        fast.save(0, step, _state(step))
    slow.save(0, 15, _state(15))
    slow.save(0, 30, _state(30))
    _assert_state(Store(tmp_path, IDENTITY).load(0), 40)
    fast.save(0, 50, _state(50))
    assert fast.steps() == {0: 50}
    assert [int(path.stem[9:]) for path in _files(tmp_path)] == [40, 50]


def test_a_file_removed_while_it_is_read_is_looked_for_again(tmp_path, monkeypatch):
    """Between the listing and the reading another process saves two newer ones."""
    store, other = Store(tmp_path, IDENTITY), Store(tmp_path, IDENTITY)
    other.save(0, 10, _state(10))
    read = checkpoint._read

    def slow(path):
        monkeypatch.setattr(checkpoint, "_read", read)
        for step in (20, 30):
            other.save(0, step, _state(step))
        return read(path)

    monkeypatch.setattr(checkpoint, "_read", slow)
    _assert_state(store.load(0), 30)


def test_a_part_is_found_without_listing_all(tmp_path, monkeypatch):
    store = Store(tmp_path, IDENTITY)
    for part in range(2000):
        path = store._path(part, 1)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = []
    listdir = os.listdir

    def counted(path):
        names = listdir(path)
        listed.extend(names)
        return names

    monkeypatch.setattr(os, "listdir", counted)
    store.save(1000, 2, _state(2))
    _assert_state(store.load(1000), 2)
    assert 0 < len(listed) < 200


# Damage


@pytest.fixture(scope="module")
def small():
    arrays = {"x": np.arange(12.0).reshape(3, 4), "n": np.array([1, 2**40]), "on": np.array(True)}
    return _packed({"identity": "i", "part": 0, "step": 5, "meta": {"a": 1}}, arrays), arrays


def _refused(data):
    with pytest.raises(checkpoint._Damaged):
        checkpoint._unpack(data, Path("file"))


def test_every_truncation_and_extension_is_noticed(small):
    data, arrays = small
    _assert_same(checkpoint._unpack(data, Path("file"))[1], arrays)
    for length in range(len(data)):
        _refused(data[:length])
    _refused(data + b"\0")
    _refused(data + data)


def test_every_flipped_bit_is_noticed(small):
    data, _ = small
    for k, bit in itertools.product(range(len(data)), range(8)):
        _refused(data[:k] + bytes([data[k] ^ 1 << bit]) + data[k + 1 :])


def test_other_files_are_no_checkpoints(small):
    data, _ = small
    text = json.dumps({"arrays": []}).encode()
    start = b"\x89PNG\r\n\x1a\n" + struct.pack("<QQQ", 1, 64 + len(text), len(text))
    for other in (b"{}" * 100, b"\x89PNG" + data[4:], start + hashlib.sha256(start + text).digest() + text):
        with pytest.raises(checkpoint._Damaged, match="does not begin as a checkpoint"):
            checkpoint._unpack(other, Path("file"))


def test_random_damage_is_noticed(small):
    data, _ = small
    rng = random.Random(0)
    for _ in range(10_000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            a, b, c = (rng.randrange(len(data) + 1) for _ in range(3))
            a, b = min(a, b), max(a, b)
            kind = rng.randrange(4)
            if kind == 0:
                damaged[a:b] = rng.randbytes(b - a)
            elif kind == 1:
                damaged[a:b] = bytes(b - a)
            elif kind == 2:
                damaged[c:c] = damaged[a:b]
            else:
                del damaged[a:b]
        if damaged != data:
            _refused(bytes(damaged))


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty", "other part", "other step", "noise"])
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path, kind):
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20):
        store.save(0, step, _state(step))
    store.save(1, 30, _state(99))
    store.save(0, 30, _state(30))
    _, newest, other = _files(tmp_path)
    data = newest.read_bytes()
    rng = random.Random(1)
    cuts = [rng.randrange(len(data)) for _ in range(10)]
    flips = [data[:k] + bytes([data[k] ^ 16]) + data[k + 1 :] for k in cuts]
    versions = {
        "cut": [data[:k] for k in cuts],
        "flipped": flips,
        "empty": [b""],
        "other part": [other.read_bytes()],
        "other step": [_files(tmp_path)[0].read_bytes()],
        "noise": [rng.randbytes(len(data))],
    }
    for damaged in versions[kind]:
        newest.write_bytes(damaged)
        with pytest.warns(RuntimeWarning, match=r"`checkpoint`: damaged file .*000030\.ckpt .*: part 0 resumes"):
            _assert_state(Store(tmp_path, IDENTITY).load(0), 20)


def test_a_disk_that_cannot_read_is_damage(tmp_path, monkeypatch):
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20):
        store.save(0, step, _state(step))
    unpack = checkpoint._unpack

    def failing(data, path):
        if path.name.endswith("020.ckpt"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return unpack(data, path)

    monkeypatch.setattr(checkpoint, "_unpack", failing)
    with pytest.warns(RuntimeWarning, match="the disk cannot read it"):
        _assert_state(store.load(0), 10)


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(tmp_path):
    """Resumed from 10 over a damaged 20, the run saves 15 and 30: 10 goes only when two newer good ones are there."""
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20):
        store.save(0, step, _state(step))
    _files(tmp_path)[1].write_bytes(b"")
    store = Store(tmp_path, IDENTITY)
    with pytest.warns(RuntimeWarning, match="resumes from step 10"):
        store.load(0)
    store.save(0, 30, _state(30))
    assert [int(path.stem[9:]) for path in _files(tmp_path)] == [10, 30]
    _files(tmp_path)[1].write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="resumes from step 10"):
        store.load(0)
    store.save(0, 20, _state(20))
    assert [int(path.stem[9:]) for path in _files(tmp_path)] == [10, 20, 30]
    store.save(0, 40, _state(40))
    assert [int(path.stem[9:]) for path in _files(tmp_path)] == [20, 40]


def test_when_all_is_damaged_nothing_starts_anew(tmp_path):
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20):
        store.save(0, step, _state(step))
    for path in _files(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="every file of part 0 is damaged: ") as caught:
        Store(tmp_path, IDENTITY).load(0)
    assert all(str(path) in str(caught.value) for path in _files(tmp_path))
    assert "Delete these files" in str(caught.value)
    assert Store(tmp_path, IDENTITY).load(1) is None


# Contents with a right checksum that nobody should have written


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../x", "a//x", "./x", "..", ".", "", "a\\..\\x", "C:x", "a\0", "a\n", "a\ud800", 5, None, ["x"]],
)
def test_names_that_lead_elsewhere_are_refused(name):
    manifest = {"identity": "i", "part": 0, "step": 0, "meta": {}, "arrays": [["fine", "|u1", [1]], [name, "|u1", [1]]]}
    assert "fine" in checkpoint._unpack(_sealed(manifest | {"arrays": manifest["arrays"][:1]}, b"a"), Path("file"))[1]
    with pytest.raises(checkpoint._Damaged, match="not permitted"):
        checkpoint._unpack(_sealed(manifest, b"ab"), Path("file"))
    if isinstance(name, str):
        with pytest.raises(ValueError, match="must have names as in"):
            _packed(manifest, {name: np.zeros(1)})


@pytest.mark.parametrize(
    "arrays",
    [
        [["x", "<f8", [2**60]]],
        [["x", "<f8", [2**63, 2]]],
        [["x", "<f8", [2**60, 0]]] * 2,
        [["x", "|u1", [2**4000, 0]]],
        [["x", "|u1", [0] * 100]],
        [["x", "|u1", [-8]]],
        [["x", "|u1", [-1]], ["y", "|u1", [9]]],
        [["x", "|u1", [True]], ["y", "|u1", [7]]],
        [["x", "|u1", [8.0]]],
        [["x", "|u1", "8"]],
        [["x", "|u1", 8]],
        [["x", "|u1", [7]]],
        [["x", "|u1", [9]]],
        [["x", "|u1", [4]], ["x", "|u1", [4]]],
        [["x", "|O", [1]]],
        [["x", "O", [1]]],
        [["x", "<M8[s]", [1]]],
        [["x", "|V8", [1]]],
        [["x", [["a", "<f8"]], [1]]],
        [["x", "<f8"]],
        ["x"],
        [None],
        None,
        5,
        {"x": 1},
    ],
    ids=repr,
)
def test_manifests_out_of_order_are_damage(arrays):
    _refused(_sealed({"identity": "i", "part": 0, "step": 0, "meta": {}, "arrays": arrays}, bytes(8)))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"5", b'"arrays"', b"null", b"{}", b"\xff", b"{", b"[" * 100_000, b'{"arrays": [], "part": 1'],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_manifests_that_are_none_are_damage(text):
    _refused(_sealed(text))


@pytest.mark.parametrize(
    "header", [{"length": 2**60}, {"text_length": 2**60}, {"length": 0}, {"text_length": 2**64 - 1}]
)
def test_sizes_are_checked_before_memory_is_taken(tmp_path, header):
    path = tmp_path / "file"
    path.write_bytes(_sealed({"arrays": []}, **header))
    with pytest.raises(checkpoint._Damaged, match=r"should have|longer than the file|not in order"):
        checkpoint._read(path)


def test_a_file_that_does_not_say_its_length_is_not_read(tmp_path):
    """A terabyte, of which nothing is on the disk."""
    path = tmp_path / "file"
    path.write_bytes(_sealed({"arrays": []}))
    try:
        os.truncate(path, 2**40)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    with pytest.raises(checkpoint._Damaged, match="should have 78"):
        checkpoint._read(path)


# Versions


def _golden_arrays():
    return {
        "x": np.linspace(-1.0, 1.0, 6).reshape(3, 2),
        "first_bad": np.array([4294967295, 7, 4294967295], np.uint32),
        "observed/p/counters/0": np.arange(4),
        "flags": np.array([True, False]),
        "half": np.array(0.5, np.float16),
        "none": np.zeros((0, 3), np.float32),
    }


def _write_golden(directory):
    store = Store(directory, IDENTITY)
    for part in (5, 1000):
        store.save(part, 400, _golden_arrays(), {"note": "version 1", "seconds": 1.25})


def test_files_of_version_1_are_read(tmp_path):
    """Files in `data` stay as they are. A new version of the format gets files of its own, by `_write_golden`."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    store = Store(tmp_path / "run", IDENTITY)
    assert store.steps() == {5: 400, 1000: 400}
    for part in (5, 1000):
        step, arrays, meta = store.load(part)
        _assert_same(arrays, _golden_arrays())
        assert (step, meta) == (400, {"note": "version 1", "seconds": 1.25})
        store.save(part, 500, arrays)
        assert store.load(part)[0] == 500


def test_the_layout_does_not_change_without_its_version(tmp_path):
    _write_golden(tmp_path)
    assert checkpoint.FORMAT == 1
    golden = [path.relative_to(GOLDEN) for path in GOLDEN.rglob("*") if path.is_file()]
    assert len(golden) == 3
    for path in golden:
        assert (tmp_path / path).read_bytes() == (GOLDEN / path).read_bytes()


def test_newer_versions_are_refused(tmp_path):
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20):
        store.save(0, step, _state(step))
    newest = _files(tmp_path)[-1]
    newest.write_bytes(_sealed({"surprising": True}, b"compressed", version=2))
    message = re.escape("has version 2 of the format, and this library reads up to 1. Update the library")
    with pytest.raises(ValueError, match=f"`checkpoint`: {re.escape(str(newest))} {message}"):
        store.load(0)
    (tmp_path / "identity").write_bytes(_sealed({"surprising": True}, version=2))
    with pytest.raises(ValueError, match=message):
        Store(tmp_path, IDENTITY)


# Whose directory it is


def test_a_foreign_directory_is_refused_with_all_that_differs(tmp_path):
    Store(tmp_path, IDENTITY).save(0, 10, _state(10))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = IDENTITY | {"dt": 0.02, "observe": {"p": {"edges": [0.0, 2.0], "every": 5}}, "seed": 1, "model": "3f2a"}
    del other["paths"]
    with pytest.raises(ValueError, match="different run") as caught:
        Store(tmp_path, other)
    assert str(caught.value) == (
        f"`checkpoint`: {tmp_path} belongs to a different run: dt: checkpoint 0.01, this run 0.02; "
        "observe.p.edges[1]: checkpoint 1.0, this run 2.0; paths: checkpoint 1000, this run nothing; "
        "seed: checkpoint nothing, this run 1. Choose another directory, or delete this one to start anew."
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1.0), (1, True), (0.0, -0.0), (None, False), ("1", 1), ([1], [1, 1]), ({}, []), ({"a": {}}, {})]
)
def test_values_that_only_look_the_same_differ(tmp_path, a, b):
    Store(tmp_path, {"v": a})
    with pytest.raises(ValueError, match="different run: v"):
        Store(tmp_path, {"v": b})


def test_the_order_of_names_and_the_kind_of_sequence_do_not_matter(tmp_path):
    Store(tmp_path, {"a": 1, "b": {"c": [1, 2], "d": 0.1}})
    Store(tmp_path, {"b": {"d": 0.1, "c": (1, 2)}, "a": 1})


def test_a_file_of_another_run_in_the_directory_is_refused(tmp_path):
    for name, identity in (("a", {"dt": 1}), ("b", {"dt": 2})):
        Store(tmp_path / name, identity).save(0, 10, _state(10))
    shutil.copy(_files(tmp_path / "a")[0], _files(tmp_path / "b")[0])
    with pytest.raises(ValueError, match=r"`checkpoint`: .*0010\.ckpt belongs to a different run"):
        Store(tmp_path / "b", {"dt": 2}).load(0)


def test_without_its_identity_a_directory_is_known_by_its_parts(tmp_path):
    Store(tmp_path, IDENTITY).save(0, 10, _state(10))
    identity = tmp_path / "identity"
    identity.write_bytes(identity.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"identity is damaged .*Delete this one file") as caught:
        Store(tmp_path, IDENTITY)
    assert str(caught.value).startswith("`checkpoint`: ")
    identity.unlink()
    with pytest.raises(ValueError, match="belongs to a different run"):
        Store(tmp_path, IDENTITY | {"dt": 0.02})
    assert not identity.exists()
    _assert_state(Store(tmp_path, IDENTITY).load(0), 10)


def test_of_two_runs_that_begin_at_once_one_has_the_directory(tmp_path, monkeypatch):
    place = checkpoint._place_first

    def late(source, target):
        monkeypatch.setattr(checkpoint, "_place_first", place)
        Store(tmp_path, {"dt": 1})
        place(source, target)

    monkeypatch.setattr(checkpoint, "_place_first", late)
    with pytest.raises(ValueError, match="dt: checkpoint 1, this run 2"):
        Store(tmp_path, {"dt": 2})
    Store(tmp_path, {"dt": 1})


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    Store(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match="different run"):
        Store(tmp_path, {})


def test_a_directory_of_other_things_is_left_alone(tmp_path):
    for name in ("notes.txt", ".hidden"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"`checkpoint` must be a new or empty dir.* holds other files \(notes.txt\)"):
        Store(tmp_path, IDENTITY)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "notes.txt"]
    (tmp_path / "notes.txt").unlink()
    Store(tmp_path, IDENTITY)
    (tmp_path / "notes.txt").touch()
    Store(tmp_path, IDENTITY)


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`checkpoint` must be a directory, but .*file is a file"):
        Store(tmp_path / "file", IDENTITY)
    with pytest.raises(ValueError, match="`checkpoint` must be a directory in which files can be made"):
        Store(tmp_path / "file" / "run", IDENTITY)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_path_is_refused():
    with pytest.raises(TypeError, match="`checkpoint` must be the path of a directory, got True"):
        Store(True, IDENTITY)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_directory_without_permission_is_refused_at_once():
    with tempfile.TemporaryDirectory() as directory:
        Store(Path(directory) / "run", IDENTITY)
        os.chmod(directory, 0o555)
        for path in (Path(directory) / "run").rglob("*"):
            path.chmod(0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            for name in ("run", "new"):
                with pytest.raises(ValueError, match=r"`checkpoint` must be .*Permission denied.*another directory"):
                    Store(Path(directory) / name, IDENTITY)
        finally:
            if was_root:
                os.seteuid(0)
            for path in (Path(directory), *(Path(directory) / "run").rglob("*")):
                path.chmod(0o755)


# Kills, and disks that are full

_writer = """
import os
store = Store(directory, {})
found = store.load(0)
step = found[0] if found else 0
while True:
    step += 1
    store.save(0, step, {"x": np.full(60_000, step, np.int64)}, {"step": step})
    os.write(1, b"%d\\n" % step)
"""


def test_kills_at_any_moment_lose_nothing(tmp_path):
    rng = random.Random(0)
    announced, interrupted = 0, 0
    for _ in range(20):
        child = _child(_writer, tmp_path)
        first = child.stdout.readline()
        assert first, child.stderr.read()
        time.sleep(rng.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=30)
        last = int((first + rest).split("\n")[-2])
        assert last > announced
        interrupted += any((tmp_path / "tmp").iterdir())
        step, arrays, meta = Store(tmp_path, {}).load(0)
        # The last one announced, or one that was finished but not announced.
        assert step in (last, last + 1)
        assert meta == {"step": step}
        _assert_same(arrays, {"x": np.full(60_000, step)})
        announced = last
        assert len(_files(tmp_path)) <= 3
        for path in (tmp_path / "tmp").iterdir():
            path.unlink()
    # Most of a writer's time is between making a file and giving it its name.
    assert interrupted >= 3


def test_durable_before_named_and_named_before_the_older_goes(tmp_path, monkeypatch):
    store = Store(tmp_path, IDENTITY)
    for step in (10, 20):
        store.save(0, step, _state(step))
    events = []

    def recorded(module, name, describe):
        function = getattr(module, name)

        def record(*arguments, **options):
            events.append(describe(*arguments))
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, record)

    def what(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return ("sync", path.parent.name if path.is_file() else path.name, path.is_file() and path.stat().st_size)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file is synced")
    recorded(os, "fsync", what)
    recorded(os, "replace", lambda source, target: ("name", Path(target).name))
    recorded(Path, "unlink", lambda path: ("remove", path.name) if path.suffix else ("clean",))
    store.save(0, 30, _state(30))
    size = _files(tmp_path)[-1].stat().st_size
    assert events == [
        ("sync", "tmp", size),
        ("name", "00000000-000000000030.ckpt"),
        ("sync", "000000", False),
        ("clean",),
        ("remove", "00000000-000000000010.ckpt"),
    ]


_filler = """
import resource
limit = int(arguments[0])
store = Store(directory, {})
store.save(0, 1, {"x": np.full(1000, 1)})
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store.save(0, 2, {"x": np.full(100_000, 2)})
except OSError as error:
    print(error)
"""


def _assert_survived_a_full_disk(directory, limit, reason):
    out, err = _child(_filler, directory, limit).communicate(timeout=60)
    assert reason in out, out + err
    assert "`checkpoint`: step 2 of part 0 could not be saved" in out
    assert re.search(r"This takes 800,\d\d\d bytes, and [\d,]+ are free", out), out
    assert list((Path(directory) / "tmp").iterdir()) == []
    step, arrays, _ = Store(directory, {}).load(0)
    assert step == 1
    _assert_same(arrays, {"x": np.full(1000, 1)})
    return int(re.search(r"and ([\d,]+) are free", out)[1].replace(",", ""))


def test_a_full_disk_leaves_what_was_saved(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path]
    with contextlib.ExitStack() as stack:
        try:
            subprocess.run(mount, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        stack.callback(subprocess.run, ["umount", tmp_path], check=True, timeout=30)
        assert _assert_survived_a_full_disk(tmp_path / "run", 0, "No space left on device") < 256 * 1024
        (tmp_path / "filler").write_bytes(bytes(shutil.disk_usage(tmp_path).free))
        with pytest.raises(ValueError, match=r"`checkpoint` must be .*No space left on device"):
            Store(tmp_path / "new", IDENTITY)


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_limit_on_the_length_of_files_leaves_what_was_saved(tmp_path):
    _assert_survived_a_full_disk(tmp_path, 100_000, "File too large")


def test_an_interrupted_save_leaves_no_file(tmp_path, monkeypatch):
    store = Store(tmp_path, IDENTITY)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(0, 1, _state(1))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.load(0) is None


def test_leftovers_of_killed_writers_go_when_they_are_old(tmp_path):
    Store(tmp_path, IDENTITY)
    old, fresh = tmp_path / "tmp" / "host-1-ab", tmp_path / "tmp" / "host-2-cd"
    for path in (old, fresh):
        path.write_bytes(b"half a file")
    hours_ago = fresh.stat().st_mtime - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    Store(tmp_path, IDENTITY)
    assert list((tmp_path / "tmp").iterdir()) == [fresh]


def test_several_threads_save_at_once(tmp_path):
    store = Store(tmp_path, IDENTITY)
    failures = []

    def save(part):
        try:
            for step in range(1, 8):
                store.save(part % 2, step, _state(step))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(part,)) for part in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for part in (0, 1):
        with warnings.catch_warnings(action="error"):
            _assert_state(store.load(part), 7)
