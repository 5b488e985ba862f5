"""Files: interchangeable with real MLX in both directions, and harmless whatever is in them."""

import io
import json
import pickle
import re
import struct
import sys
import zipfile

import mlx.core as real
import numpy as np
import processes
import pytest
from oracle import assert_same

import mlxir

DTYPES = ["bool_", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
          "float32", "float64", "complex64"]  # fmt: skip
SHAPES = [(), (0,), (3,), (2, 3), (1, 4, 1), (2, 0, 3)]
GGUF_DTYPES = ["int8", "int16", "int32", "float16", "float32"]
BOTH = [(mlxir, real), (real, mlxir), (mlxir, mlxir)]
WAYS = ["to-mlx", "from-mlx", "own"]


def sample(m, dtype, shape):
    size = int(np.prod(shape))
    return (m.arange(size, dtype=m.float32).reshape(shape) - 2).astype(getattr(m, dtype))


def agree(a, b):
    """Arrays of either library are the same."""
    mine, theirs = (a, b) if isinstance(b, real.array) else (b, a)
    if isinstance(theirs, mlxir.array):
        assert (mine.dtype, mine.shape, mine.tolist()) == (theirs.dtype, theirs.shape, theirs.tolist())
    else:
        assert_same(mine, theirs)


@pytest.mark.parametrize("writer, reader", BOTH, ids=WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_and_npz_both_ways(tmp_path, dtype, writer, reader):
    with real.stream(real.cpu):
        for shape in SHAPES:
            x = sample(writer, dtype, shape)
            writer.save(str(tmp_path / "x"), x)
            agree(reader.load(str(tmp_path / "x.npy")), x)
            for save in ("savez", "savez_compressed"):
                getattr(writer, save)(str(tmp_path / "z"), x, named=x)
                found = reader.load(str(tmp_path / "z.npz"))
                assert set(found) == {"arr_0", "named"}
                agree(found["arr_0"], x)
                agree(found["named"], x)


VIEWS = {
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1],
    "strided": lambda x: x[:, ::2],
    "offset": lambda x: x[1:, 1:],
    "column": lambda x: x[:, 1],
    "lazy": lambda x: x.swapaxes(0, 1) + x.T,
}


@pytest.mark.parametrize("writer, reader", BOTH, ids=WAYS)
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_written_by_their_values(tmp_path, view, writer, reader):
    path = f"{tmp_path}/x"
    with real.stream(real.cpu):
        for dtype in ("float32", "int8", "float16"):
            x = VIEWS[view](sample(writer, dtype, (3, 4)))
            writer.save(path, x)
            writer.savez(path, x=x)
            writer.save_safetensors(path, {"x": x})
            writer.save_gguf(path, {"x": writer.contiguous(x)}, {})  # MLX: row-major arrays alone
            agree(reader.load(f"{path}.npy"), x)
            for kind in ("npz", "safetensors", "gguf"):
                agree(reader.load(f"{path}.{kind}")["x"], x)


@pytest.mark.parametrize("writer, reader", BOTH, ids=WAYS)
@pytest.mark.parametrize("metadata", [None, {}, {"format": "mlx", "ü": "ß"}], ids=["none", "empty", "strings"])
def test_safetensors_both_ways(tmp_path, metadata, writer, reader):
    path = str(tmp_path / "x.safetensors")
    for shape in SHAPES:
        arrays = {f"layer.{d}": sample(writer, d, shape) for d in DTYPES if d != "float64"}
        writer.save_safetensors(path, arrays, metadata)
        found, read = reader.load(path, return_metadata=True)
        assert read == (metadata or {})
        assert set(found) == set(arrays)
        for name, x in arrays.items():
            agree(found[name], x)


@pytest.mark.parametrize("writer, reader", BOTH, ids=WAYS)
def test_gguf_both_ways(tmp_path, writer, reader):
    path = str(tmp_path / "x.gguf")
    for shape in SHAPES:
        arrays = {f"layer.{d}.weight": sample(writer, d, shape) for d in GGUF_DTYPES}
        kinds = [d for d in DTYPES if d not in ("float16", "bfloat16", "float64", "complex64")]
        numbers = {f"n.{d}": writer.array(3).astype(getattr(writer, d)) for d in kinds}
        metadata = {"s": "text ü", "l": ["a", "", "ccc"], "a": writer.array([1, 2]), **numbers}
        writer.save_gguf(path, arrays, metadata)
        found, read = reader.load(path, return_metadata=True)
        assert set(found) == set(arrays) and set(read) == set(metadata)
        for name, x in arrays.items():
            agree(found[name], x)
        for name, value in metadata.items():
            if isinstance(value, writer.array):
                agree(read[name], value)
            else:
                assert read[name] == value


def gguf_bytes(tensors):
    """A gguf file with tensors of any type: name -> (type, dimensions last axis first, data)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0)
    data = b""
    for name, (kind, dims, raw) in tensors.items():
        data += bytes(-len(data) % 32)
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    return head + bytes(-len(head) % 32) + data


def test_quantised_gguf_tensors_become_affine_form(tmp_path):
    rng = np.random.default_rng(0)

    def blocks(count, nbytes, numbers):
        raw = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
        raw[:, : 2 * numbers] = rng.standard_normal((count, numbers)).astype("<f2").view(np.uint8)
        return raw.tobytes()

    tensors = {"a.weight": (2, (64, 3), blocks(6, 18, 1)), "b.weight": (3, (64, 3), blocks(6, 20, 2)),
               "c.weight": (8, (64, 3), blocks(6, 34, 1)), "d": (8, (32, 2, 2), blocks(4, 34, 1)),
               "e": (30, (4,), np.arange(8, dtype=np.uint8).tobytes())}  # fmt: skip
    path = tmp_path / "q.gguf"
    path.write_bytes(gguf_bytes(tensors))
    mine, theirs = mlxir.load(str(path)), real.load(str(path))
    assert set(mine) == set(theirs) and len(mine) == 13
    for name, x in theirs.items():
        assert_same(mine[name], x)


def test_other_gguf_formats_are_expanded_by_the_gguf_package(tmp_path):
    pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (2, 210), dtype=np.uint8)
    raw[:, -2:] = np.array([[0.5], [-0.25]], "<f2").view(np.uint8)  # the scale of a block of Q6_K
    path = tmp_path / "q.gguf"
    path.write_bytes(gguf_bytes({"a.weight": (14, (256, 2), raw.tobytes())}))
    assert_same(mlxir.load(str(path))["a.weight"], real.load(str(path))["a.weight"])


@pytest.mark.parametrize("writer, reader", BOTH, ids=WAYS)
def test_file_objects_and_paths(tmp_path, writer, reader):
    x = sample(writer, "float32", (2, 3))
    for format, save in {
        "npy": lambda f: writer.save(f, x),
        "npz": lambda f: writer.savez(f, a=x),
        "safetensors": lambda f: writer.save_safetensors(f, {"a": x}),
    }.items():
        memory = io.BytesIO()
        save(memory)
        memory.seek(0)
        path = tmp_path / f"x.{format}"
        save(path)
        with open(tmp_path / f"y.{format}", "wb") as file:
            save(file)
        with open(tmp_path / f"y.{format}", "rb") as file:
            results = [reader.load(memory, format=format), reader.load(path), reader.load(file)]
        for found in results:
            agree(found if format == "npy" else found["a"], x)


def test_what_numpy_writes_is_read(tmp_path):
    data = np.arange(6.0).reshape(2, 3)
    for array in [np.asfortranarray(data), data.astype(">f4"), data.astype(">i2"), data[:, ::2], data.T.astype(">f8")]:
        np.save(tmp_path / "x.npy", array)
        assert_same(mlxir.load(tmp_path / "x.npy"), real.load(str(tmp_path / "x.npy")))


def test_arrays_are_read_when_they_are_used(tmp_path):
    path = tmp_path / "x.safetensors"
    mlxir.save_safetensors(path, {"a": mlxir.ones(4), "b": mlxir.zeros(4)})
    found = mlxir.load(path)
    assert (found["a"] + 1).tolist() == [2.0] * 4
    path.write_bytes(b"")  # what is read after this finds the file cut short, and says so
    assert found["a"].tolist() == [1.0] * 4
    with pytest.raises(RuntimeError, match="truncated"):
        found["b"].tolist()


def test_a_file_may_be_written_from_its_own_arrays(tmp_path):
    path = tmp_path / "x.safetensors"
    mlxir.save_safetensors(path, {"a": mlxir.ones(4)})
    mlxir.save_safetensors(path, {"a": mlxir.load(path)["a"] + 1})
    assert mlxir.load(path)["a"].tolist() == [2.0] * 4


ERRORS = {
    "no extension": lambda m, d: m.load(f"{d}/x"),
    "unknown extension": lambda m, d: m.load(f"{d}/x.bin"),
    "unknown format": lambda m, d: m.load(f"{d}/x.npy", format="foo"),
    "no npy": lambda m, d: m.load(f"{d}/none.npy"),
    "no npz": lambda m, d: m.load(f"{d}/none.npz"),
    "no safetensors": lambda m, d: m.load(f"{d}/none.safetensors"),
    "no gguf": lambda m, d: m.load(f"{d}/none.gguf"),
    "npy has no metadata": lambda m, d: m.load(f"{d}/x.npy", return_metadata=True),
    "npz has no metadata": lambda m, d: m.load(f"{d}/x.npz", return_metadata=True),
    "load a number": lambda m, d: m.load(3),
    "save to a number": lambda m, d: m.save(3, m.ones(2)),
    "save a list": lambda m, d: m.save(f"{d}/y", [1, 2]),
    "save numpy": lambda m, d: m.save(f"{d}/y", np.ones(2)),
    "save nowhere": lambda m, d: m.save(f"{d}/none/y", m.ones(2)),
    "savez nowhere": lambda m, d: m.savez(f"{d}/none/y", m.ones(2)),
    "save_safetensors nowhere": lambda m, d: m.save_safetensors(f"{d}/none/y", {"a": m.ones(2)}),
    "save_gguf nowhere": lambda m, d: m.save_gguf(f"{d}/none/y", {"a": m.ones(2)}, {}),
    "savez conflict": lambda m, d: m.savez(f"{d}/y", m.ones(2), arr_0=m.ones(2)),
    "safetensors of a list": lambda m, d: m.save_safetensors(f"{d}/y", [m.ones(2)]),
    "safetensors metadata": lambda m, d: m.save_safetensors(f"{d}/y", {"a": m.ones(2)}, {"k": 1}),
    "safetensors float64": lambda m, d: m.save_safetensors(f"{d}/y", {"a": m.ones(2).astype(m.float64)}),
    "gguf dtype": lambda m, d: m.save_gguf(f"{d}/y", {"a": m.ones(2).astype(m.uint8)}, {}),
    "gguf to a file object": lambda m, d: m.save_gguf(io.BytesIO(), {"a": m.ones(2)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_those_of_mlx(tmp_path, case):
    with real.stream(real.cpu), pytest.raises(Exception) as theirs:
        ERRORS[case](real, tmp_path)
    name = re.match(r"\[\w+\]|", str(theirs.value))[0]
    with pytest.raises(type(theirs.value), match=f"^{re.escape(name)}"):
        ERRORS[case](mlxir, tmp_path)


# -- damaged and hostile files -----------------------------------------------------------------------------------------
def safetensors_bytes(header, data=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def npy_bytes(header, data=b""):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zipped(name, raw):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, raw)
    return out.getvalue()


HOSTILE = {
    "npy object": ("npy", npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps(1))),
    "npy huge": ("npy", npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1048576)}")),
    "npy negative": ("npy", npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}", bytes(64))),
    "npy code": ("npy", npy_bytes("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': ()}")),
    "npy deep": ("npy", npy_bytes("(" * 5000)),
    "npy structured": ("npy", npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", bytes(4))),
    "npy no shape": ("npy", npy_bytes("{'descr': '<f4'}")),
    "npy string": ("npy", npy_bytes("{'descr': '<U3', 'fortran_order': False, 'shape': (1,)}", bytes(12))),
    "npz pickle": ("npz", zipped("a.npy", pickle.dumps([1]))),
    "npz no zip": ("npz", b"PK\x03\x04" + bytes(100)),
    "npz no npy": ("npz", zipped("a.npy", b"text")),
    "st json": ("safetensors", safetensors_bytes(b"{abc}")),
    "st deep": ("safetensors", safetensors_bytes(b"[" * 100_000)),
    "st length": ("safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
    "st list": ("safetensors", safetensors_bytes([1])),
    "st entry": ("safetensors", safetensors_bytes({"a": 3})),
    "st past the end": ("safetensors", safetensors_bytes(tensor(shape=[1000], data_offsets=[0, 4000]))),
    "st negative": ("safetensors", safetensors_bytes(tensor(data_offsets=[-8, 0]))),
    "st backwards": ("safetensors", safetensors_bytes(tensor(data_offsets=[8, 0]))),
    "st sizes": ("safetensors", safetensors_bytes(tensor(shape=[4]))),
    "st two negatives": ("safetensors", safetensors_bytes(tensor(shape=[-2, -1]))),
    "st huge and none": ("safetensors", safetensors_bytes(tensor(shape=[0, 1 << 62, 4], data_offsets=[0, 0]))),
    "st float shape": ("safetensors", safetensors_bytes(tensor(shape=[2.0]))),
    "st dtype": ("safetensors", safetensors_bytes(tensor(dtype="X9"))),
    "st unhashable dtype": ("safetensors", safetensors_bytes(tensor(dtype=["F32"]))),
    "st metadata": ("safetensors", safetensors_bytes({"__metadata__": {"a": 1}})),
    "gguf magic": ("gguf", b"GGML" + bytes(60)),
    "gguf version": ("gguf", b"GGUF" + struct.pack("<IQQ", 9, 0, 0)),
    "gguf counts": ("gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)),
    "gguf string": ("gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50) + b"abc"),
    "gguf list": ("gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 60)),
    "gguf nested": ("gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1)),
    "gguf rank": ("gguf", gguf_bytes({"a": (0, (1,) * 60, bytes(4))})),
    "gguf size": ("gguf", gguf_bytes({"a": (0, (1 << 40, 1 << 40), bytes(4))})),
    "gguf overflow": ("gguf", gguf_bytes({"a": (0, (1 << 63, 2), bytes(4))})),
    "gguf block": ("gguf", gguf_bytes({"a": (2, (33,), bytes(64))})),
    "gguf type": ("gguf", gguf_bytes({"a": (999, (32,), bytes(64))})),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_raises(case):
    format, data = HOSTILE[case]
    with pytest.raises((ValueError, RuntimeError), match=r"\["):
        mlxir.load(io.BytesIO(data), format=format)


class Executes:
    def __reduce__(self):
        return print, ("executed",)


def pickled_by_numpy():
    out = io.BytesIO()
    np.save(out, np.array([Executes()], dtype=object), allow_pickle=True)
    return out.getvalue()


def test_nothing_in_a_file_is_executed(tmp_path):
    (tmp_path / "x.npy").write_bytes(pickled_by_numpy())
    (tmp_path / "y.npz").write_bytes(zipped("a.npy", pickled_by_numpy()))
    script = (
        "import sys, mlxir\nfor f in sys.argv[1:]:\n    try: mlxir.load(f)\n    except RuntimeError: print('refused')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
    assert processes.run(command, check=True).stdout == "refused\nrefused\n"


def good_files():
    x, y = mlxir.arange(6).reshape(2, 3).astype(mlxir.float32), mlxir.array([True, False])
    files = {}
    for format, save in {
        "npy": lambda f: mlxir.save(f, x),
        "npz": lambda f: mlxir.savez_compressed(f, x, y=y),
        "safetensors": lambda f: mlxir.save_safetensors(f, {"x": x, "y": y}, {"k": "v"}),
    }.items():
        memory = io.BytesIO()
        save(memory)
        files[format] = memory.getvalue()
    q = np.arange(68, dtype=np.uint8).tobytes()
    files["gguf"] = gguf_bytes({"x": (0, (3, 2), bytes(24)), "q.weight": (8, (32, 2), q)})
    return files


@pytest.mark.parametrize("format", ["npy", "npz", "safetensors", "gguf"])
def test_truncated_and_flipped_files_load_or_raise(format, tmp_path):
    """Every truncation, and every byte replaced: the file loads (other values) or raises a clear error. Seeded."""
    good = good_files()[format]
    rng = np.random.default_rng(1)
    damaged = [good[:n] for n in range(len(good))]
    for at in range(len(good)):
        for new in (good[at] ^ (1 << rng.integers(8)), int(rng.integers(256)), 0xFF):
            damaged.append(good[:at] + bytes([new]) + good[at + 1 :])
    path = tmp_path / f"x.{format}"
    raised = 0
    for i, data in enumerate(damaged):
        try:
            if i % 2:
                path.write_bytes(data)
                found = mlxir.load(path)
            else:
                found = mlxir.load(io.BytesIO(data), format=format)
            for x in found.values() if isinstance(found, dict) else [found]:
                assert x.nbytes <= len(data) * 1100
                x.tolist()
        except (ValueError, RuntimeError) as error:
            raised += 1
            assert str(error).startswith("["), error
    assert raised >= len(good) // 2
