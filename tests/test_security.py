"""What docs/security.md promises, tried: hostile inputs, configurations and run directories."""

import io
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
import zarr
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.cli.commands import main
from semrsm_dist.config.schema import load_config, parse_config
from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import ConfigError, InputError, SemrsmError, hide_secrets
from semrsm_dist.store.feature_source import open_array
from tests.distributions import install

TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What must not reach a terminal raw."""


class Code:
    """Runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def write_features(folder: Path, n: int = 6) -> Path:
    path = folder / "z.npy"
    np.save(path, np.random.default_rng(0).normal(size=(n, 4, 3)).astype(np.float32))
    return path


def document(folder: Path, **changes) -> dict:
    data = {"source": "features", "layers": {"last": str(write_features(folder))}}
    return {"run": str(folder / "run"), "data": data} | changes


# --- nothing is unpickled ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"filters": [{"id": "pickle"}]},
        {"filters": [{"id": "delta", "dtype": "<f4"}, {"id": "pickle"}]},
        {"filters": [{"id": "pickle"}, {"id": "delta", "dtype": "<f4"}]},
        {"compressor": {"id": "pickle"}},
        {"dtype": "|O", "filters": [{"id": "pickle"}], "fill_value": None},
    ],
)
def test_features_in_an_older_zarr_that_names_pickle_as_codec_run_nothing(tmp_path, change):
    store = tmp_path / "z.zarr"
    zarr.create_array(store, shape=(4, 3, 2), chunks=(4, 3, 2), dtype="f4", zarr_format=2, compressors=None)
    described = json.loads((store / ".zarray").read_text())
    (store / ".zarray").write_text(json.dumps(described | change))
    (store / "0.0.0").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(InputError):
        open_array(store).read(0, 4)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pickle", "numcodecs.pickle"])
def test_a_run_whose_arrays_name_pickle_as_codec_runs_nothing(tmp_path, name):
    run = srs.run(parse_config(document(tmp_path)))
    tile = next((run.directory.path / "tiles.zarr").rglob("c/0/0/0"))
    described = json.loads((tile.parents[3] / "zarr.json").read_text())
    for at in (0, len(described["codecs"])):
        codecs = [*described["codecs"][:at], {"name": name, "configuration": {}}, *described["codecs"][at:]]
        (tile.parents[3] / "zarr.json").write_text(json.dumps(described | {"codecs": codecs}))
        tile.write_bytes(pickle.dumps(Code(tmp_path / "ran")))
        with pytest.raises(SemrsmError):
            np.asarray(srs.open_run(run.directory.path).similarity("last"))
    assert not (tmp_path / "ran").exists()


def test_a_table_in_parquet_with_a_pickled_type_runs_nothing(tmp_path):
    hidden = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Code(tmp_path / "ran")),
    }
    names = ("image_id", "uri", "labels")
    schema = pa.schema([pa.field(name, pa.string(), metadata=hidden) for name in names])
    pyarrow.parquet.write_table(pa.table({name: ["a.png"] for name in names}, schema), tmp_path / "t.parquet")
    assert [entry.image_id for entry in TableImages(path=tmp_path / "t.parquet").entries()] == ["a.png"]
    assert not (tmp_path / "ran").exists()


def test_entry_points_in_a_run_directory_are_not_found(tmp_path):
    """The command looks for plugins among what is installed, not where it is called (`python -m` does, by its own)."""
    run = srs.run(parse_config(document(tmp_path))).directory.path
    module = f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n"
    install(run, "evil", "[semrsm_dist.experiments]\nevil = evil:it\n", module)
    command = [sys.executable, "-P", "-m", "semrsm_dist", "evaluate", "evil"]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "unknown experiment 'evil'" in done.stderr
    assert not (tmp_path / "ran").exists()


# --- images --------------------------------------------------------------------------------------------


def test_no_other_program_reads_an_image(tmp_path, monkeypatch):
    """Pillow would hand EPS to Ghostscript, whatever the file is called."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("a.png", "noending"):
        (tmp_path / name).write_bytes(eps)
    images = FolderImages(path=tmp_path)
    [entry] = images.entries()
    with pytest.raises(UnreadableImageError, match="not in a known image format"):
        images.read(entry)
    assert not (tmp_path / "ran").exists()


def png_with(kind: bytes, body: bytes) -> bytes:
    """Return a PNG with a chunk before its pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return file.getvalue()[:33] + chunk + file.getvalue()[33:]


def frames(kind: str, n: int = 100, size: int = 700) -> bytes:
    pages = [Image.new("L", (size, size), page) for page in range(n)]
    file = io.BytesIO()
    pages[0].save(file, kind, save_all=True, append_images=pages[1:])
    return file.getvalue()


def jpeg_with_exif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    content = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\xff" * 65000
    return (
        file.getvalue()[:2]
        + 50 * (b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content)
        + file.getvalue()[2:]
    )


def tiff_of_a_large_tag() -> bytes:
    """Return a TIFF with a tag that claims two thousand million fractions."""
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    body += struct.pack("<HHII", 700, 5, 2**31, 8)
    return (
        b"II*\0" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(entries) + 1) + body + bytes(4)
    )


BOMBS = {
    "text of a PNG": lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))),
    "international text of a PNG": lambda: png_with(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**27))),
    "profile of a PNG": lambda: png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27))),
    "frames of a GIF": lambda: frames("GIF"),
    "pages of a TIFF": lambda: frames("TIFF"),
    "frames of a PNG": lambda: frames("PNG"),
    "frames of a WebP": lambda: frames("WEBP", 40),
    "EXIF of a JPEG": jpeg_with_exif,
    "a tag of a TIFF": tiff_of_a_large_tag,
}
DECODE = """
import os, sys
from pathlib import Path
from semrsm_dist.data.decode import decode

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

small, *bombs = map(Path, sys.argv[1:])
decode(small.read_bytes(), "small")
for bomb in bombs:
    child = os.fork()
    if child == 0:
        data = bomb.read_bytes()
        before = peak()
        decode(data, "large")
        bomb.with_suffix(".peak").write_text(str(peak() - before))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, bomb
"""
"""Decode an image to load what that takes, then each other in a process of its own that writes its peak of memory."""


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """The bytes of each bomb, and by how much decoding it raises the peak of memory."""
    folder = tmp_path_factory.mktemp("bombs")
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    files = [folder / f"{number}.bomb" for number in range(len(BOMBS))]
    for file, make in zip(files, BOMBS.values(), strict=True):
        file.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", DECODE, folder / "small.png", *files],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        bomb: (file.stat().st_size, int(file.with_suffix(".peak").read_text()))
        for bomb, file in zip(BOMBS, files, strict=True)
    }


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_an_image_has_beside_its_first_frame_takes_no_memory(bombs, bomb):
    size, taken = bombs[bomb]
    assert taken < 20 * 2**20 + 4 * size


def test_files_larger_than_any_image_within_the_limit_are_not_read_to_their_end(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.truncate(2**36)  # of holes
    images = FolderImages(path=tmp_path, max_image_bytes=2**20)
    with pytest.raises(
        UnreadableImageError, match="more than 4194304 bytes, 4 times the limit max_image_bytes"
    ):
        images.load(images.entries()[0])


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_never_ends_is_no_image(tmp_path, kind):
    place = "/dev/zero"
    if kind == "pipe":
        os.mkfifo(tmp_path / "a.png")
        place = "a.png"
    (tmp_path / "t.csv").write_text(f"image_id,uri,labels\na,{place},\n")
    images = TableImages(path=tmp_path / "t.csv", allow_outside=True)
    with pytest.raises(UnreadableImageError, match=f"it is a {kind}, not a file"):
        images.load(images.entries()[0])


# --- configurations ------------------------------------------------------------------------------------


def test_no_object_is_made_from_yaml(tmp_path):
    (tmp_path / "c.yaml").write_text(f"run: !!python/object/apply:os.mkdir [{tmp_path}/ran]\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "c.yaml")
    assert not (tmp_path / "ran").exists()


def test_aliases_of_aliases_end(tmp_path):
    lines = ["run: x", "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"c\.yaml: more than 100000 keys and values with its aliases"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="more than 100000"):
        load_config(FILE, ["data=[" + ", ".join(["&a [1]"] + ["*a"] * 100_000) + "]"])


FILE = Path(__file__).parents[1] / "jobs" / "digits.yaml"


def test_a_file_that_is_no_configuration_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_config(tmp_path / "c.yaml")


# --- secrets -------------------------------------------------------------------------------------------

TELLING = [
    "s3://AKIA:sesame/x+y@bucket/images",
    "s3://bucket/images?secret_key=sesame&region=eu",
    "abfs://:sesame@account.blob.core.windows.net/images",
    "https://host/x.csv?X-Amz-Signature=sesame",
]


@pytest.mark.parametrize("uri", TELLING)
def test_a_uri_with_a_secret_is_refused_and_not_repeated(tmp_path, uri, capsys):
    config = tmp_path / "c.yaml"
    model = {"name": "digits", "weights": "digits", "layers": ["layer1"]}
    config.write_text(yaml.safe_dump({"run": "r", "data": {"source": "folder", "path": uri}, "model": model}))
    assert main(["validate", str(config)]) == 2
    assert main(["run", str(FILE), "--set", f"data={{source: folder, path: '{uri}'}}"]) == 2
    (tmp_path / "t.csv").write_text(f"image_id,uri,labels\na,{uri},\n")
    table = {"source": "table", "path": str(tmp_path / "t.csv")}
    config.write_text(yaml.safe_dump({"run": str(tmp_path / "r"), "data": table, "model": model}))
    assert main(["validate", str(config)]) == 2
    shown = capsys.readouterr()
    assert (
        shown.err.count("put it into the environment") + shown.err.count("put them into the environment") == 3
    )
    assert "sesame" not in shown.err + shown.out
    assert not (tmp_path / "r").exists() or "sesame" not in contents(tmp_path / "r")


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a@b:c.png", "hdfs://host:8020/a@b", "gs://anonymous@bucket/x", "http://[::1]:80/a@b"]
)
def test_a_uri_without_a_secret_is_shown_as_it_is(uri):
    assert hide_secrets(f"{uri}?region=eu: not there") == f"{uri}?region=eu: not there"


def contents(folder: Path) -> str:
    return "\n".join(
        [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
        + [str(path) for path in folder.rglob("*")]
    )


def test_no_variable_of_the_environment_gets_into_a_run(tmp_path, monkeypatch, capfd):
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "SEMRSM_MINE"):
        monkeypatch.setenv(name, "sesame")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document(tmp_path)))
    assert main(["run", str(tmp_path / "c.yaml")]) == 0
    shown = capfd.readouterr()
    assert "sesame" not in contents(tmp_path / "run") + shown.out + shown.err


# --- what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "forbidden"), [(0o022, 0o133), (0o077, 0o177)])
def test_files_are_readable_as_the_user_has_it_and_never_programs(tmp_path, mask, forbidden):
    before = os.umask(mask)
    try:
        run = srs.run(parse_config(document(tmp_path, output={"matrices": "stored"})))
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode for path in run.directory.path.rglob("*")}
    assert [path for path, mode in modes.items() if stat.S_ISREG(mode) and mode & forbidden] == []
    assert [path for path, mode in modes.items() if stat.S_ISDIR(mode) and mode & mask] == []


def test_a_layer_that_leads_out_of_the_run_is_no_layer(tmp_path, capsys):
    run = srs.run(parse_config(document(tmp_path))).directory.path
    for name in ("run.json", "run.copy.json"):
        (run / name).write_text((run / name).read_text().replace('"last"', '"../../last"'))
    assert main(["export", str(run), "--out", str(tmp_path / "out" / "deep")]) == 1
    assert main(["status", str(run)]) == 1
    assert "expected the name of a layer" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*last*.npy"))


# --- what is shown -------------------------------------------------------------------------------------

HOSTILE = "a\x1b[2J\u202e\x9b31m\x07\nsemrsm: forged"


def test_names_cannot_drive_the_terminal_or_forge_a_line(tmp_path, capsys):
    rows = [
        {"image_id": f"{HOSTILE} {row}", "labels": [f"{HOSTILE} {row % 2}"], "group": HOSTILE}
        for row in range(6)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = document(tmp_path)
    config["data"]["table"] = str(tmp_path / "t.jsonl")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", str(tmp_path / "c.yaml")]) == 0
    srs.open_run(tmp_path / "run").directory.append_event(
        "failed", stage=HOSTILE, unit=HOSTILE, error=HOSTILE
    )
    for command in (
        ["validate", str(tmp_path / "c.yaml")],
        ["status", str(tmp_path / "run")],
        ["export", str(tmp_path / "run")],
        ["status", str(tmp_path / HOSTILE)],
        ["run", str(tmp_path / HOSTILE)],
        ["models", HOSTILE],
        ["run", str(tmp_path / "c.yaml"), "--set", f"data.layers={{'{HOSTILE}': z.npy}}"],
    ):
        main(command)
    with pytest.raises(SystemExit):
        main(["status", "run", HOSTILE])
    shown = capsys.readouterr()
    assert TERMINAL.findall(shown.out + shown.err) == []
