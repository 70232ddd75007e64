"""What installation brings is what the library imports, and the source distribution holds what its tests need."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import sensedict_hf

ROOT = Path(__file__).parents[1]
# Imported when a picture is drawn, the demo runs, a router is saved, or a search engine is used: extras bring them.
OPTIONAL = {
    "models/onnx_export.py": "onnx",
    "demo/run.py": "demo",
    "building/inspection.py": "demo",
    "retrieval/router.py": "retrieval",
    "retrieval/engine.py": "engine",
    "cli/index.py": "engine",
}


def imported(path):
    """Modules of other packages that a file imports when it runs, wherever in it."""
    modules = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"sensedict_hf", "sensedict_cli"}


def required(text):
    return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in text.split() if line[0].isalpha()}


def test_installation_brings_what_is_imported():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    core = required(config["options"]["install_requires"])
    distributions = packages_distributions()
    package = ROOT / "sensedict_hf"
    for path in [*package.rglob("*.py"), *(ROOT / "sensedict_cli").glob("*.py")]:
        # A module of an extra that is not installed has the name of its distribution.
        wanted = {distributions.get(module, [module])[0].lower().replace("_", "-") for module in imported(path)}
        name = path.relative_to(package).as_posix() if path.is_relative_to(package) else path.name
        extra = required(config["options.extras_require"][OPTIONAL[name]]) if name in OPTIONAL else set()
        assert wanted <= core | extra, name


def test_the_source_distribution_is_complete(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout: there is no list of its files")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    script = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "source", check=True, capture_output=True)
    archive = tmp_path / f"sensedict_hf-{sensedict_hf.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    left_out = {name for name in files if not name.startswith((".ci/", ".gitignore"))} - names
    assert left_out == set()
