"""Multi-sense embeddings and sense-based knowledge distillation for transformers; importing it registers the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from .attaching import AttachedSenses, attach_senses
from .building import build_sense_dictionary
from .configuration_sense_embedding import SenseEmbeddingConfig
from .configuration_skd_student import SKDStudentConfig
from .evaluation import evaluate_classification, evaluate_retrieval, evaluate_similarity, evaluate_token_classification
from .labeling import encode_senses
from .merging import merge_sense_dictionaries
from .modeling_sense_embedding import SenseEmbeddingModel
from .modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from .modeling_skd_student import SKDStudentModel
from .prompts import Prompt
from .teachers import Teacher, load_teacher
from .trainer import SKDTrainer
from .training_args import SKDTrainingArguments

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
