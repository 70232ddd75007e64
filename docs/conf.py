"""Settings of the pages: `sphinx-build -W --keep-going -b html docs docs/_build/html`. No step needs a network."""

import argparse
import os
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import sensedict_hf
from sensedict_cli.options import make_parser

project = "sensedict_hf"
author = "The sensedict_hf authors"
copyright = author
version = release = sensedict_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
toc_object_entries_show_parents = "hide"
myst_heading_anchors = 3

# Docstrings are in Google style. What transformers documents is left to its own pages.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
default_role = "code"  # a name in single backticks, as in Markdown
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Help texts are wrapped to the width of a page, whatever the width of the terminal is.
os.environ["COLUMNS"] = "90"


class CommandHelp(Directive):
    """`{command-help} NAME [ACTION]`: what `sensedict NAME ACTION --help` prints, read from the parser itself."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser = make_parser()
        for name in self.arguments:
            actions = parser._actions
            commands = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
            parser = commands[name]
        text = parser.format_help()
        return [nodes.literal_block(text, text, language="text")]


def skip_foreign(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Skip the methods that a class inherits from torch and transformers: there are hundreds."""
    function = getattr(member, "fget", member)
    module = getattr(function, "__module__", None) or "sensedict_hf"
    return None if module.startswith("sensedict_hf") else True


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive and the filter to Sphinx."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
