"""Multi-sense embeddings and sense-based knowledge distillation for transformers; importing it registers the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from .building.build import build_sense_dictionary
from .building.merging import merge_sense_dictionaries
from .distillation.labels import encode_senses
from .distillation.trainer import SKDTrainer
from .distillation.training_args import SKDTrainingArguments
from .evaluation import evaluate_classification, evaluate_retrieval, evaluate_similarity, evaluate_token_classification
from .models.attaching import AttachedSenses, attach_senses
from .models.configuration_sense_embedding import SenseEmbeddingConfig
from .models.configuration_skd_student import SKDStudentConfig
from .models.modeling_sense_embedding import SenseEmbeddingModel
from .models.modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from .models.modeling_skd_student import SKDStudentModel
from .models.prompts import Prompt
from .models.teachers import Teacher, load_teacher

AutoConfig.register(SenseEmbeddingConfig.model_type, SenseEmbeddingConfig, exist_ok=True)
AutoConfig.register(SKDStudentConfig.model_type, SKDStudentConfig, exist_ok=True)
AutoModel.register(SenseEmbeddingConfig, SenseEmbeddingModel, exist_ok=True)
AutoModel.register(SKDStudentConfig, SKDStudentModel, exist_ok=True)
AutoModelForSequenceClassification.register(SKDStudentConfig, SKDStudentForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(SKDStudentConfig, SKDStudentForTokenClassification, exist_ok=True)

__all__ = [
    "AttachedSenses",
    "Prompt",
    "SKDStudentConfig",
    "SKDStudentForSequenceClassification",
    "SKDStudentForTokenClassification",
    "SKDStudentModel",
    "SKDTrainer",
    "SKDTrainingArguments",
    "SenseEmbeddingConfig",
    "SenseEmbeddingModel",
    "Teacher",
    "attach_senses",
    "build_sense_dictionary",
    "encode_senses",
    "evaluate_classification",
    "evaluate_retrieval",
    "evaluate_similarity",
    "evaluate_token_classification",
    "load_teacher",
    "merge_sense_dictionaries",
]
