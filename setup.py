"""All metadata is in setup.cfg, but for the long description: the README, as a package index can show it."""

import re
from pathlib import Path

from setuptools import setup


def index_page(readme: str) -> str:
    """Drop pictures, and name files instead of linking to them: an index page has neither next to it."""
    readme = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n(?:[^\n]+\n)*\n*", "", readme)
    return re.sub(r"\[([^]]*)\]\((?!https?:)(\w[^)#]*)[^)]*\)", r"\1 (`\2`)", readme)


setup(long_description=index_page(Path(__file__).with_name("README.md").read_text(encoding="utf-8")))
