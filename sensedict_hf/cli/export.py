"""The subcommand `export`: save a student with an ONNX file."""

import argparse
from pathlib import Path

from ..models.modeling_skd_base import SKDStudentPreTrainedModel
from ..models.onnx_export import export_onnx
from .dictionaries import check_is_new, load_whole


def export(options: argparse.Namespace) -> None:
    """Export a student, and print the size of each file and how far its vectors are from PyTorch's.

    Raises:
        ValueError: The output folder is not empty, the folder holds a dictionary, or the vectors of a file differ too
            much.
    """
    check_is_new(options.output)
    student = load_whole(options.student, options.trust_remote_code)
    if not isinstance(student, SKDStudentPreTrainedModel):
        raise ValueError(f"{options.student} holds a dictionary: give a student, which uses one")
    found = export_onnx(student, options.output, int8=options.int8, tolerance=options.tolerance)
    for name, difference in found.items():
        file = Path(options.output, name)
        print(
            f"{file}: {file.stat().st_size / 1e6:.1f} MB, at most {difference:.2g} of a vector's length from PyTorch"
        )
