"""Rooms import only from rooms below; heavy libraries only their owners, and not before they are needed."""

import ast
import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "semrsm_dist"
OWNERS = {
    "ray": "engine",
    "zarr": "store",
    "obstore": "store",
    "torch": "features",
    "timm": "features",
    "transformers": "features",
    "cuda": "matching/device",
}
LATE = {"torch", "ray", "timm", "transformers", "zarr", "matplotlib", "numba"}
LIGHT_MODULES = [
    "semrsm_dist",
    *(f"semrsm_dist.{name}" for name in ("cli.commands", "config.schema", "errors", "fields", "plugins")),
]
ROOMS = (
    ("errors",),
    ("fields", "machine", "plugins", "progress"),
    ("matching",),
    ("data", "engine", "evaluation", "plan"),
    ("config", "features"),
    ("store",),
    ("results",),
    ("plot",),
    ("pipeline",),
    ("experiments", "report"),
    ("cli",),
    ("__init__", "__main__"),
)
"""The entries of the package from the lowest on: each imports from those in lines above its own."""


@functools.cache
def imported_libraries(path):
    """Return the top-level names of all libraries that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {a.value.split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return names


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_in_its_room(library):
    room = PACKAGE / OWNERS[library]
    strangers = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if library in imported_libraries(path) and not path.is_relative_to(room)
    ]
    assert strangers == []


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert LATE.isdisjoint(loaded.split())


def test_the_search_sees_every_kind_of_import(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import torch.nn as nn\nfrom ray.util import metrics\nfrom . import zarr\n"
        "def f():\n    import timm\n    importlib.import_module('obstore.store')\n"
    )
    assert imported_libraries(file) == {"torch", "ray", "timm", "obstore"}


def module_name(path):
    return ".".join(("semrsm_dist", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def own_imports(path, modules):
    """Return the modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "semrsm_dist"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "semrsm_dist":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found


@pytest.fixture(scope="module")
def imports():
    paths = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: own_imports(path, paths.keys()) for name, path in paths.items()}


def test_a_room_imports_only_from_rooms_below_it(imports):
    level = {room: index for index, rooms in enumerate(ROOMS) for room in rooms}
    assert {room_of(module) for module in imports} - level.keys() == set()
    upward = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if room_of(other) != room_of(module) and level[room_of(other)] >= level[room_of(module)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle(imports):
    graph = {module: others - {module} for module, others in imports.items() if room_of(module) != "__init__"}
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def test_the_package_opens_with_about_a_dozen_rooms():
    entries = [path for path in PACKAGE.iterdir() if path.name[0] not in "_." and path.suffix in ("", ".py")]
    assert sum(path.is_dir() for path in entries) >= len(entries) / 2
    assert len(entries) <= 19


OPENS = re.compile(r"\.read_(bytes|text)\(|open_input_(file|stream)\(|\.open\((\"r|\))")
LOOK_BEFORE = re.compile(r"require_file|require_input|locate_file|read_file\(")
OF_THE_PACKAGE = {"machine.py", "report/bundle.py", "matching/compiled/cache.py"}
OF_THE_PACKAGE |= {f"matching/device/{name}.py" for name in ("compiling", "forms", "source")}
"""What opens files of the package, of the system, or its own caches."""


def test_no_file_of_users_or_runs_is_opened_without_looking_whether_it_is_one():
    careless = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if OPENS.search(text := path.read_text()) and not LOOK_BEFORE.search(text)
    ]
    assert set(careless) - OF_THE_PACKAGE == set()
