"""What installation brings is what the library imports."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONAL = {"demo.py", "plotting.py"}  # imported by the demo alone


def imported(path):
    """Other packages' modules that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"sensedict_hf"}


def required(text):
    return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in text.split() if line[0].isalpha()}


def test_installation_brings_what_is_imported():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    core, demo = required(config["options"]["install_requires"]), required(config["options.extras_require"]["demo"])
    distributions = packages_distributions()
    for path in (ROOT / "sensedict_hf").glob("*.py"):
        wanted = {distributions[module][0].lower().replace("_", "-") for module in imported(path)}
        assert wanted <= (core | demo if path.name in OPTIONAL else core), path.name
