"""Multi-sense embeddings and sense-based knowledge distillation for transformers.

Importing the package registers its classes with the Auto classes of transformers. Functions that build, distil and
evaluate are imported on first use, so loading a saved model stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .models.attaching import AttachedSenses, attach_senses
from .models.configuration_layer_free import LayerFreeConfig
from .models.configuration_sense_embedding import SenseEmbeddingConfig
from .models.configuration_skd_student import SKDStudentConfig
from .models.loading import load_senses
from .models.modeling_layer_free import LayerFreeModel
from .models.modeling_sense_embedding import SenseEmbeddingModel
from .models.modeling_skd_causal_lm import SKDStudentForCausalLM
from .models.modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from .models.modeling_skd_student import SKDStudentModel
from .models.prompts import Prompt
from .models.teachers import Teacher, load_teacher
from .models.vocabulary_transfer import adopt_tokenizer

if TYPE_CHECKING:
    from .building.build import build_sense_dictionary
    from .building.inspection import find_occurrences, plot_senses, report_senses
    from .building.merging import merge_sense_dictionaries
    from .data import read_dataset
    from .distillation.labels import encode_senses
    from .distillation.run import distill_student
    from .distillation.trainer import SKDTrainer
    from .distillation.training_args import SKDTrainingArguments
    from .distillation.vectors import TeacherVectors, encode_vectors
    from .evaluation.language import evaluate_language_modeling
    from .evaluation.scores import (
        evaluate_classification,
        evaluate_retrieval,
        evaluate_similarity,
        evaluate_token_classification,
    )
    from .models.onnx_export import export_onnx
    from .retrieval.engine import SenseCollection
    from .retrieval.index import SenseIndex
    from .retrieval.router import save_router
    from .retrieval.sparse import sparse_queries

__version__ = "0.1.0"

AutoConfig.register(SenseEmbeddingConfig.model_type, SenseEmbeddingConfig, exist_ok=True)
AutoConfig.register(SKDStudentConfig.model_type, SKDStudentConfig, exist_ok=True)
AutoConfig.register(LayerFreeConfig.model_type, LayerFreeConfig, exist_ok=True)
AutoModel.register(LayerFreeConfig, LayerFreeModel, exist_ok=True)
AutoModel.register(SenseEmbeddingConfig, SenseEmbeddingModel, exist_ok=True)
AutoModel.register(SKDStudentConfig, SKDStudentModel, exist_ok=True)
AutoModelForCausalLM.register(SKDStudentConfig, SKDStudentForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(SKDStudentConfig, SKDStudentForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(SKDStudentConfig, SKDStudentForTokenClassification, exist_ok=True)

# Names that are imported on first use, and the modules that hold them (PEP 562).
_LAZY = {
    "SKDTrainer": ".distillation.trainer",
    "SKDTrainingArguments": ".distillation.training_args",
    "SenseCollection": ".retrieval.engine",
    "SenseIndex": ".retrieval.index",
    "TeacherVectors": ".distillation.vectors",
    "build_sense_dictionary": ".building.build",
    "distill_student": ".distillation.run",
    "encode_senses": ".distillation.labels",
    "encode_vectors": ".distillation.vectors",
    "evaluate_classification": ".evaluation.scores",
    "evaluate_language_modeling": ".evaluation.language",
    "evaluate_retrieval": ".evaluation.scores",
    "evaluate_similarity": ".evaluation.scores",
    "evaluate_token_classification": ".evaluation.scores",
    "export_onnx": ".models.onnx_export",
    "find_occurrences": ".building.inspection",
    "merge_sense_dictionaries": ".building.merging",
    "plot_senses": ".building.inspection",
    "read_dataset": ".data",
    "report_senses": ".building.inspection",
    "save_router": ".retrieval.router",
    "sparse_queries": ".retrieval.sparse",
}

__all__ = [
    "AttachedSenses",
    "LayerFreeConfig",
    "LayerFreeModel",
    "Prompt",
    "SKDStudentConfig",
    "SKDStudentForCausalLM",
    "SKDStudentForSequenceClassification",
    "SKDStudentForTokenClassification",
    "SKDStudentModel",
    "SKDTrainer",
    "SKDTrainingArguments",
    "SenseEmbeddingConfig",
    "SenseEmbeddingModel",
    "SenseCollection",
    "SenseIndex",
    "Teacher",
    "TeacherVectors",
    "__version__",
    "adopt_tokenizer",
    "attach_senses",
    "build_sense_dictionary",
    "distill_student",
    "encode_senses",
    "encode_vectors",
    "evaluate_classification",
    "evaluate_language_modeling",
    "evaluate_retrieval",
    "evaluate_similarity",
    "evaluate_token_classification",
    "export_onnx",
    "find_occurrences",
    "load_senses",
    "load_teacher",
    "merge_sense_dictionaries",
    "plot_senses",
    "read_dataset",
    "report_senses",
    "save_router",
    "sparse_queries",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
