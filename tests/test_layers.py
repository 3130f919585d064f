"""Imports point down only, parts on one storey are blind to each other, and `import weightclass` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "weightclass"
STOREYS = (
    {"__main__"},
    {"cli"},
    {"options"},
    {"report"},
    {"search"},
    {"study", "edge"},
    {"workers"},
    {"run"},
    {"pace"},
    {"session", "judge", "ask"},
    {"teachers"},
    {"modelfile", "results"},
    {"recipe"},
    {"training", "evaluation", "data", "augment", "model", "runtimes", "trackers"},
    {"champions"},
    {"device", "runlog"},  # the ground: these two may stand on those below
    {"config", "seeding", "files", "stopping", "batching", "ranks"},
    {"errors"},
)
HEAVY = {"matplotlib", "sklearn", "scipy", "pooch", "rich", "PIL", "jinja2", "pandas", "onnx", "onnxruntime"}
HEAVY |= {
    "tensorboard",
    "mlflow",
    "onnxscript",
    "openvino",
    "nncf",
    "executorch",
    "torchao",
    "ai_edge_litert",
    "optuna",
    "ray",
}
DEPTH = {part: depth for depth, parts in enumerate(STOREYS) for part in parts}


def imported_parts(source: str) -> Iterator[str]:
    """The parts of weightclass that `source` imports, at any depth of nesting: `train` of weightclass.train.loss."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, *rest = name.split(".")
            if package == "weightclass" and rest and rest[0] != "__version__":
                yield rest[0]


def climbs(part: str, source: str) -> list[str]:
    """What `part` must not import: parts beside or above it, and what is on no storey."""
    return [other for other in imported_parts(source) if other != part and DEPTH.get(other, 0) <= DEPTH[part]]


FILES = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sorted(PACKAGE.rglob("*.py"))}
del FILES[PACKAGE / "__init__.py"]  # the façade names functions of any storey and imports none before its use


def test_every_part_has_a_storey() -> None:
    assert set(FILES.values()) <= set(DEPTH)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    assert climbs(FILES[path], path.read_text(encoding="utf-8")) == []


def test_the_guard_sees_a_climb() -> None:
    assert climbs("training", "from weightclass.model.resnet import ResNet") == ["model"]
    assert climbs("config", "def late():\n    import weightclass.run") == ["run"]
    assert climbs("recipe", "from weightclass import __version__, run, training") == ["run"]
    assert climbs("run", "from weightclass.recipe import Recipe\nfrom weightclass.run import go") == []


def heavy_after(code: str) -> set[str]:
    """Which heavy libraries are loaded after `code` ran in a fresh interpreter."""
    report = f"; import sys; print(*{HEAVY | {'torch', 'numpy'}} & set(sys.modules))"
    command = [sys.executable, "-c", code + report]
    return set(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split())


def test_importing_the_package_is_light() -> None:
    assert heavy_after("import weightclass") == set()


def test_the_door_is_light() -> None:
    assert heavy_after("import weightclass.cli") == set()


def test_no_module_imports_anything_heavy_but_torch() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if "__" not in path.stem]
    assert heavy_after("import " + ", ".join(names)) <= {"torch", "numpy"}
