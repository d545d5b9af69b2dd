"""Ready-made features in .npy files and Zarr arrays."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.arrays import interpret
from semrsm_dist.store.feature_source import open_array

FORMATS = ["npy", "npy-fortran", "npy-big-endian", "zarr2", "zarr3", "zarr3-sharded", "zarr3-group"]


def write(folder, x: np.ndarray, kind: str):
    if kind.startswith("npy"):
        path = folder / "z.npy"
        order = {
            "npy": x,
            "npy-fortran": np.asfortranarray(x),
            "npy-big-endian": x.astype(x.dtype.newbyteorder(">")),
        }
        np.save(path, order[kind])
        return path
    chunks = (2, *x.shape[1:])
    options = {
        "shape": x.shape,
        "chunks": chunks,
        "dtype": x.dtype,
        "zarr_format": 2 if kind == "zarr2" else 3,
    }
    if kind == "zarr3-sharded":
        options["shards"] = (4, *x.shape[1:])
    if kind == "zarr3-group":
        options.pop("zarr_format")
        zarr.open_group(folder / "z.zarr", mode="w").create_array("layer3", **options)[:] = x
        return folder / "z.zarr" / "layer3"
    zarr.create_array(folder / "z.zarr", **options)[:] = x
    return folder / "z.zarr"


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_format_gives_the_panel_that_was_written(tmp_path, kind, dtype):
    x = numbers(7, 6, 4, dtype=dtype)
    source = open_array(write(tmp_path, x, kind))
    assert (source.n_images, source.n_tokens, source.n_channels, source.dtype) == (7, 6, 4, np.dtype(dtype))
    for start, stop in [(0, 7), (2, 5), (6, 7), (3, 3)]:
        z = source.read(start, stop)
        np.testing.assert_array_equal(z, x[start:stop])
        assert z.dtype == np.dtype(dtype)
        assert z.flags.c_contiguous
        assert z.flags.writeable


@pytest.mark.parametrize("kind", FORMATS)
def test_channels_first_becomes_positions_in_row_major_order(tmp_path, kind):
    x = numbers(5, 4, 2, 3)
    source = open_array(write(tmp_path, x, kind))
    assert (source.n_tokens, source.n_channels) == (6, 4)
    z = source.read(1, 4)
    for row in range(2):
        for column in range(3):
            np.testing.assert_array_equal(z[:, 3 * row + column], x[1:4, :, row, column])
    assert z.flags.c_contiguous


@pytest.mark.parametrize("kind", FORMATS)
def test_channels_last_becomes_positions_in_row_major_order(tmp_path, kind):
    x = numbers(5, 2, 3, 4)
    source = open_array(write(tmp_path, x, kind), "nhwc")
    assert (source.n_tokens, source.n_channels) == (6, 4)
    np.testing.assert_array_equal(source.read(1, 4), x[1:4].reshape(3, 6, 4))


@pytest.mark.parametrize("shape", [(5, 4, 4, 24), (5, 2, 3, 96), (5, 14, 14, 8)])
def test_four_axes_that_look_like_channels_last_need_a_layout(tmp_path, shape):
    path = write(tmp_path, numbers(*shape), "npy")
    with pytest.raises(InputError, match=r"looks like \(images, height, width, channels\): set layout: nhwc"):
        open_array(path)
    assert open_array(path, "nchw").n_channels == shape[1]
    assert open_array(path, "nhwc").n_channels == shape[3]


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_other_formats_are_named_with_how_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"features{suffix}"
    path.write_bytes(b"content")
    with pytest.raises(InputError, match=rf"not from \{suffix} files; convert it once with numpy\.save"):
        open_array(path)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8])
def test_a_tensor_is_found_by_its_own_or_the_layers_name(tmp_path, kind, dtype):
    x = torch.from_numpy(3 * numbers(7, 6, 4)).to(dtype)
    other = torch.zeros(2, 6, 4)
    save_tensors({"layer3": x, "blocks.1": other}, path := tmp_path / f"z.{kind}")
    held = {torch.float16: np.float16, torch.float64: np.float64}.get(dtype, np.float32)
    for source in (open_array(path, layer="layer3"), open_array(path / "layer3", layer="blocks.1")):
        restored = pickle.loads(pickle.dumps(source))  # it crosses process borders
        for z in (source.read(2, 5), restored.read(2, 5)):
            assert z.dtype == held
            np.testing.assert_array_equal(z, x[2:5].to(torch.float64).numpy())
    assert open_array(path / "blocks.1").n_images == 2
    with pytest.raises(
        InputError, match=r"2 tensors \(blocks\.1, layer3\), and none is named like the layer 'l'"
    ):
        open_array(path, layer="l")
    with pytest.raises(InputError, match=r"no tensor 'layer4' in this file.*did you mean 'layer3'"):
        open_array(path / "layer4")


@pytest.mark.parametrize("kind", ["pt", "pth", "safetensors"])
def test_a_tensor_that_is_alone_needs_no_name_and_has_the_digest_of_its_numbers(tmp_path, kind):
    x = torch.from_numpy(numbers(5, 4, 2, 3)).requires_grad_()
    save_tensors({"x": x}, tmp_path / f"z.{kind}")
    np.save(tmp_path / "z.npy", x.detach().numpy())
    source = open_array(tmp_path / f"z.{kind}", layer="layer1")
    assert source.digest() == open_array(tmp_path / "z.npy").digest()
    assert (source.n_tokens, source.n_channels) == (6, 4)
    before, digest = source.signature(), source.digest()
    save_tensors({"x": x[:3]}, tmp_path / f"z.{kind}")
    assert open_array(tmp_path / f"z.{kind}").signature() != before
    if kind != "safetensors":
        torch.save(x, tmp_path / f"z.{kind}")
        assert open_array(tmp_path / f"z.{kind}").digest() == digest


def save_tensors(tensors, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: tensor.detach() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.slow
def test_a_file_of_tensors_is_read_without_loading_it(tmp_path, kind):
    save_tensors({"x": torch.ones(2**12, 64, 256)}, path := tmp_path / f"z.{kind}")  # 256 MiB
    code = (
        "import pickle, resource, sys\n"
        "source = pickle.load(sys.stdin.buffer)\n"
        "before = source.read(0, 1).nbytes and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source.read(2000, 2002)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(open_array(path)), capture_output=True, check=True
    )
    assert int(done.stdout) < 32 * 2**10  # KiB


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("pt", lambda p: torch.save({"x": Malicious()}, p), "pickled objects may execute code"),
        (
            "pt",
            lambda p: p.write_bytes(pickle.dumps(Malicious())),
            "not complete, or not in the format of PyTorch",
        ),
        (
            "pt",
            lambda p: torch.save(torch.zeros(2, 2, 2), p, _use_new_zipfile_serialization=False),
            "since 1.6",
        ),
        ("pt", lambda p: torch.save([torch.zeros(2, 2, 2)], p), "holds no dense tensor"),
        ("pt", lambda p: torch.save(torch.zeros(2, 2, 2, dtype=torch.int64), p), "int64, which is not taken"),
        ("pt", lambda p: torch.save(torch.zeros(2, 2), p), r"shape \(2, 2\).*one vector per image"),
        ("pt", lambda p: torch.save(torch.tensor(2.0), p), r"shape \(\)"),
        ("pt", lambda p: None, "there is no such file"),
        ("safetensors", lambda p: p.write_bytes(b"content"), "cannot be read as tensors"),
        ("safetensors", lambda p: save_tensors({"x": torch.tensor(2.0)}, p), r"shape \(\)"),
        ("safetensors", lambda p: save_tensors({}, p), "holds no dense tensor"),
        (
            "safetensors",
            lambda p: save_tensors({"x": torch.zeros(2, 2, 2, dtype=torch.float8_e5m2)}, p),
            "F8_E5M2, which is not taken",
        ),
    ],
)
def test_files_without_tensors_of_features_are_refused(tmp_path, kind, content, message):
    content(path := tmp_path / f"z.{kind}")
    with pytest.raises(InputError, match=message):
        open_array(path)


@pytest.mark.parametrize("name", ["features.npy", "features.pt"])
def test_a_folder_of_thingsvision_is_read(tmp_path, name):
    x = numbers(5, 4, 3, 3)
    np.save(tmp_path / name, x) if name.endswith("npy") else torch.save(torch.from_numpy(x), tmp_path / name)
    (tmp_path / "file_names.txt").write_text("a.png\n")
    np.testing.assert_array_equal(open_array(tmp_path).read(0, 5), x.reshape(5, 4, 9).transpose(0, 2, 1))


def test_the_digest_is_of_the_content_not_of_the_format(tmp_path):
    x = numbers(7, 6, 4)
    digests = set()
    for kind in FORMATS:
        folder = tmp_path / kind
        folder.mkdir()
        digests.add(open_array(write(folder, x, kind)).digest())
    assert len(digests) == 1
    x[6, 5, 3] = np.nextafter(x[6, 5, 3], np.float32(9))
    folder = tmp_path / "changed"
    folder.mkdir()
    digests.add(open_array(write(folder, x, "npy")).digest())
    folder = tmp_path / "reshaped"
    folder.mkdir()
    digests.add(open_array(write(folder, x.reshape(7, 4, 6), "npy")).digest())
    assert len(digests) == 3


@pytest.mark.parametrize("kind", ["npy", "zarr3"])
def test_the_signature_changes_with_the_file_and_only_then(tmp_path, kind):
    x = numbers(4, 3, 2)
    path = write(tmp_path, x, kind)
    before = open_array(path).signature()
    open_array(path).read(0, 4)
    assert open_array(path).signature() == before
    file = path if kind == "npy" else next(f for f in sorted(path.rglob("*")) if f.is_file())
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert open_array(path).signature() != before


def test_the_digest_is_read_in_bounded_panels(tmp_path):
    x = numbers(2000, 64, 32)  # 16 MiB
    source = open_array(write(tmp_path, x, "npy"))
    tracemalloc.start()
    digest = source.digest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest == hashlib.sha256(b"2000 64 32 float32\n" + x.tobytes()).hexdigest()
    assert peak < 4 * 2**20


@pytest.mark.parametrize("kind", ["npy", "zarr3"])
def test_a_panel_costs_the_memory_of_a_panel(tmp_path, kind):
    x = np.ones((256, 64, 256), np.float32)  # 16 MiB, a panel of two images 128 KiB
    source = open_array(write(tmp_path, x, kind))
    source.read(0, 2)
    tracemalloc.start()
    source.read(100, 102)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


def test_a_file_larger_than_the_address_space_can_be_read(tmp_path):
    """Sparse 8 GiB file, 4 GiB of address space: a panel is mapped alone."""
    path = tmp_path / "big.npy"
    shape = (2**20, 8, 256)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        offset = file.tell()
        file.truncate(offset + math.prod(shape) * 4)
    source = open_array(path)
    code = (
        "import pickle, resource, sys\n"
        "source = pickle.load(sys.stdin.buffer)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "print(sum(source.read(start, start + 64).shape[0] for start in range(0, 1 << 20, 1 << 16)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, b"1024"), done.stderr.decode()


def test_integers_that_float32_holds_are_taken_and_others_refused(tmp_path):
    x = np.array([[[-32768, 32767], [0, 1]]], np.int16)
    np.save(tmp_path / "short.npy", x)
    source = open_array(tmp_path / "short.npy")
    assert source.dtype == np.float32
    np.testing.assert_array_equal(source.read(0, 1).astype(np.int16), x)
    for dtype in ("int32", "int64", "bool", "complex64"):
        np.save(tmp_path / "x.npy", x.astype(dtype))
        with pytest.raises(InputError, match=rf"x\.npy: .*{dtype}.*not taken for features.*float32"):
            open_array(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((5, 4), "auto", r"shape \(5, 4\).*one vector per image.*reshape to \(N, 1, C\)"),
        ((5,), "auto", r"shape \(5,\)"),
        (
            (5, 4, 3, 2, 2),
            "auto",
            r"needed is .*nsc or .*nchw or .*width, channels\) with layout: nhwc",
        ),
        ((5, 4, 3), "nchw", r"needed is \(images, channels, height, width\) with layout: nchw$"),
        ((5, 4, 3), "nhwc", r"needed is \(images, height, width, channels\) with layout: nhwc$"),
        ((5, 4, 3, 3), "nsc", r"needed is \(images, positions, channels\)"),
        ((0, 4, 3), "auto", "empty"),
        ((5, 0, 3), "auto", "empty"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "zarr3"])
def test_other_shapes_are_refused_with_what_was_found(tmp_path, kind, shape, layout, message):
    if kind == "npy":
        np.save(tmp_path / "z.npy", np.zeros(shape, np.float32))
    else:
        zarr.create_array(tmp_path / "z.npy.zarr", shape=shape, dtype="float32")
    path = tmp_path / ("z.npy" if kind == "npy" else "z.npy.zarr")
    with pytest.raises(InputError, match=message):
        open_array(path, layout)


def test_an_unknown_layout_is_a_mistake_of_the_configuration(tmp_path):
    np.save(tmp_path / "z.npy", numbers(2, 2, 2))
    with pytest.raises(ConfigError, match=r"'ncwh'; did you mean 'nchw'"):
        open_array(tmp_path / "z.npy", "ncwh")


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemError('code from an array file ran')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda p: np.save(p, np.array([Malicious()], object), allow_pickle=True),
            "not a .npy file of numbers",
        ),
        (lambda p: p.write_bytes(pickle.dumps(Malicious())), "Python objects are not loaded"),
        (lambda p: p.write_bytes(b""), "not a .npy file"),
        (lambda p: p.write_text("id,x\n"), "not a .npy file"),
        (lambda p: np.savez(p.open("wb"), numbers(2, 2, 2)), "archive of several arrays"),
    ],
    ids=["objects", "pickle", "empty", "text", "npz"],
)
def test_files_that_are_no_array_are_refused_and_not_executed(tmp_path, content, message):
    path = tmp_path / "z.npy"
    content(path)
    with pytest.raises(InputError, match=message):
        open_array(path)


def test_an_array_of_texts_is_refused(tmp_path):
    zarr.create_array(tmp_path / "words", shape=(3, 2, 2), dtype=str)
    with pytest.raises(InputError, match=r"words: .*is not taken for features"):
        open_array(tmp_path / "words")


def test_a_shortened_file_is_refused_on_opening_and_on_reading(tmp_path):
    path = write(tmp_path, numbers(64, 16, 16), "npy")
    source = open_array(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="not complete"):
        open_array(path)
    with pytest.raises(InputError, match="changed during the run"):
        source.read(60, 64)


def test_zarr_damage_groups_and_missing_arrays_are_explained(tmp_path):
    path = write(tmp_path, numbers(4, 3, 2), "zarr3-group")
    with pytest.raises(InputError, match=r"Zarr group, not an array.*layer3 \(4, 3, 2\)"):
        open_array(path.parent)
    with pytest.raises(InputError, match=r"nothing is there; did you mean 'layer3'"):
        open_array(path.parent / "layer33")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"neither a \.npy file, a file of tensors nor a Zarr array"):
        open_array(tmp_path / "folder")
    chunk = path / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    source = open_array(path)
    np.testing.assert_array_equal(source.read(0, 2), numbers(4, 3, 2)[:2])
    with pytest.raises(InputError, match="images 2 to 4 cannot be decoded"):
        source.read(2, 4)


@pytest.mark.parametrize("kind", ["npy", "zarr3"])
@pytest.mark.parametrize(("start", "stop"), [(0, 8), (-1, 2), (5, 4), (8, 9)])
def test_panels_outside_the_array_are_refused_not_shortened(tmp_path, kind, start, stop):
    source = open_array(write(tmp_path, numbers(7, 2, 2), kind))
    with pytest.raises(InputError, match="there are 7"):
        source.read(start, stop)


@pytest.mark.parametrize("kind", ["npy", "zarr2", "zarr3"])
def test_sources_travel_to_other_processes(tmp_path, kind):
    x = numbers(3, 2, 2)
    source = pickle.loads(pickle.dumps(open_array(write(tmp_path, x, kind))))
    np.testing.assert_array_equal(source.read(1, 3), x[1:])


@given(st.lists(st.integers(1, 5), min_size=4, max_size=4), st.sampled_from(["float16", "float32", "int8"]))
def test_arranging_keeps_every_number(shape, dtype):
    n, c, h, w = shape
    x = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    z = interpret("x", x.shape, x.dtype, "nchw").arrange(x)
    assert z.shape == (n, h * w, c)
    for index in np.ndindex(n, c, h, w):
        i, channel, row, column = index
        assert z[i, row * w + column, channel] == x[index]


def test_reading_arrays_needs_no_torch():
    code = "import sys, semrsm_dist.store.feature_source as s; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_large_chunks_are_warned_of_once_and_not_whenever_they_are_opened(tmp_path, caplog):
    path = tmp_path / "z.zarr"
    zarr.create_array(path, shape=(300_000, 64, 8), chunks=(300_000, 64, 8), dtype="float32")
    for _ in range(3):
        open_array(path)
    assert len(caplog.messages) == 1
    assert "its chunks (300000, 64, 8) hold 0.6 GB each" in caplog.text
