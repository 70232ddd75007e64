"""The code in a saved folder, with which it loads where this package is not installed, or not imported."""

import functools
import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

# The file that transformers runs with `trust_remote_code=True`. There is only one, because the files of a local folder
# are imported anew for each file that `auto_map` names, and config and model would be of different modules.
ENTRY = "modeling_sensedict"
# For each Auto class the file and the class that a folder needs, by `model_type`.
CLASSES = {
    "sense_embedding": {
        "AutoConfig": ("configuration_sense_embedding", "SenseEmbeddingConfig"),
        "AutoModel": ("modeling_sense_embedding", "SenseEmbeddingModel"),
    },
    "skd_student": {
        "AutoConfig": ("configuration_skd_student", "SKDStudentConfig"),
        "AutoModel": ("modeling_skd_student", "SKDStudentModel"),
        "AutoModelForCausalLM": ("modeling_skd_causal_lm", "SKDStudentForCausalLM"),
        "AutoModelForSequenceClassification": ("modeling_skd_heads", "SKDStudentForSequenceClassification"),
        "AutoModelForTokenClassification": ("modeling_skd_heads", "SKDStudentForTokenClassification"),
    },
}
TEMPLATE = '''\
"""Classes of sensedict_hf: those of the installed package, or else {fallback}.

transformers and sentence-transformers use them with `trust_remote_code=True`, or after `import sensedict_hf`.
"""

try:
    from sensedict_hf import (
        {names},
    )
except ImportError{caught}:
{otherwise}
'''
REFUSAL = (
    'raise ImportError("this model needs the package sensedict_hf, which is not installed, or is too old: '
    'pip install sensedict_hf") from error'
)


def auto_map(model_type: str) -> dict[str, str]:
    """Return the `auto_map` of a config: which class of the folder each Auto class loads.

    Args:
        model_type: `sense_embedding` or `skd_student`.

    Example:
        >>> auto_map("sense_embedding")["AutoModel"]
        'modeling_sensedict.SenseEmbeddingModel'
    """
    return {auto_class: f"{ENTRY}.{name}" for auto_class, (_, name) in CLASSES[model_type].items()}


def write_code(folder: str | os.PathLike[str], model_type: str, with_code: bool = True) -> None:
    """Write the file that `auto_map` names.

    Its classes are those of this package, if it is installed.

    Args:
        folder: The folder of a saved model.
        model_type: `sense_embedding` or `skd_student`.
        with_code: Whether to copy the files of this package that define the classes, too. If not, the package must be
            installed where the folder is loaded.

    Example:
        >>> write_code(".", "skd_student", with_code=False)
        >>> os.listdir(".")
        ['modeling_sensedict.py']
    """
    classes = CLASSES[model_type].values()
    if with_code:
        fallback, caught = "the files next to this one", ""
        lines = [f"from .{module} import {name}" for module, name in sorted(classes)]
        modules = _copy_files(folder, sorted({module for module, _ in classes}))
        # Earlier versions of transformers copy from a local folder only the files that this one names.
        lines += ["if False:  # names the other files", *(f"    from .{module} import *" for module in modules)]
    else:
        fallback, caught, lines = "an error that says how to install it", " as error", [REFUSAL]
    names = ",\n        ".join(sorted(name for _, name in classes))
    otherwise = "\n".join(f"    {line}" for line in lines)
    text = TEMPLATE.format(fallback=fallback, names=names, caught=caught, otherwise=otherwise)
    Path(folder, f"{ENTRY}.py").write_text(text, encoding="utf-8")


def has_code(folder: str | os.PathLike[str]) -> bool:
    """Return whether the code of a model was saved with it."""
    return any(path.stem != ENTRY for path in Path(folder).glob("*.py"))


def _copy_files(folder: str | os.PathLike[str], modules: list[str]) -> list[str]:
    """Copy modules of this package, and the siblings that they import, into a folder; return the names of all."""
    files = set().union(*map(_with_siblings, modules))
    for file in files:
        shutil.copyfile(file, Path(folder, file.name))
    return sorted(file.stem for file in files)


@functools.cache
def _with_siblings(module: str) -> frozenset[Path]:
    """Return the files of a module and of all siblings that it imports. It takes 0.1 s to find them."""
    file = Path(__file__).with_name(f"{module}.py")
    return frozenset({file, *map(Path, get_relative_import_files(file))})
