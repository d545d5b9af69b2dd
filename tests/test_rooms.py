"""Heavy libraries are imported only in the room that owns them, and not before they are needed."""

import ast
import subprocess
import sys
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
}
LATE = {"torch", "ray", "timm", "transformers", "zarr", "matplotlib", "numba"}
LIGHT_MODULES = ["semrsm_dist"] + [
    f"semrsm_dist.{name}" for name in ("cli", "config", "errors") if (PACKAGE / f"{name}.py").exists()
]


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
