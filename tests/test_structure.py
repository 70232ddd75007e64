"""The layout of the package: which wing may import which, and what an import costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sensedict_hf

PACKAGE = Path(sensedict_hf.__file__).parent
# What each part of the package may import as well as its siblings. The command line and the demo may import all.
BELOW = {
    "models": set(),
    "data": {"models", "data_files"},
    "data_files": set(),
    "processes": set(),
    "evaluation": {"models", "data"},
    "building": {"models", "data", "processes"},
    "distillation": {"models", "data", "processes", "building"},
    "retrieval": {"models", "data", "processes"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
COMMAND = sorted((PACKAGE.parent / "sensedict_cli").glob("*.py"))
PAGES = sorted(
    [
        *PACKAGE.parent.glob("*.md"),
        *(PACKAGE.parent / "docs").rglob("*.md"),
        *(PACKAGE.parent / "benchmarks").glob("*.md"),
    ]
)


def imported_parts(path):
    """The parts of the package that a file imports, and the relative imports themselves as (level, module)."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = inside[: len(inside) - node.level + 1]
            target = (*above, *(node.module or "").split("."))
            found.append((node.level, node.module, target[0] or None))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sensedict_hf":
            found.append((0, node.module, (node.module.split(".") + [None])[1]))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [(0, ".".join(name), (name + [None])[1]) for name in names if name[0] == "sensedict_hf"]
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_file_imports_only_what_is_below_it(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in BELOW:
        outside = {target for _, _, target in imported_parts(path)} - {part}
        assert outside <= BELOW[part]


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_import_their_siblings_alone(path):
    """For remote code, transformers follows only `from .sibling import name`, and copies the files to one folder."""
    for level, module, _ in imported_parts(path):
        assert level == 1 and module and "." not in module
        assert (path.parent / f"{module}.py").is_file()


@pytest.mark.parametrize("path", FILES + COMMAND, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_lines_of_pages_are_as_short_as_lines_of_code(path):
    """Rows of tables cannot be broken."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 119 and not line.startswith("|")] == []


def test_the_package_has_few_parts():
    parts = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert len(parts) <= 14


def test_public_names_are_there():
    assert sorted(sensedict_hf.__all__, key=str.lower) == sorted(set(sensedict_hf.__all__), key=str.lower)
    for name in sensedict_hf.__all__:
        assert getattr(sensedict_hf, name) is not None
    assert set(sensedict_hf.__all__) <= set(dir(sensedict_hf))
    with pytest.raises(AttributeError, match="no_such_name"):
        sensedict_hf.no_such_name  # noqa: B018


@pytest.mark.slow
def test_the_package_is_light_until_it_builds():
    script = """
import json, sys, sensedict_hf
wings = ["sensedict_hf.building", "sensedict_hf.distillation", "sensedict_hf.evaluation", "sensedict_hf.retrieval"]
heavy = ["datasets", "sklearn", "peft", *wings]
before = [name for name in heavy if name in sys.modules]
sensedict_hf.build_sense_dictionary
print(json.dumps([before, "sensedict_hf.building" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], True]
