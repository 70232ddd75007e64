"""Baselines without layers that are trained to the teacher's vectors of texts.

- model2vec and StaticEmbedding begin with model2vec's distilled vectors in the teacher's width.
- NIFE adds the words of the texts to the vocabulary, and begins with the teacher's vector of each token alone.

The learning rate of each is searched on a tenth of the rows, with a training on the others; then it is trained on all
rows.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sensedict_hf import Teacher, TeacherVectors

from ..distillation.tasks import best_learning_rate
from ..studies import write_json

if TYPE_CHECKING:
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

EPOCHS = 3
BATCH_SIZE = 256
RATES = {"model2vec": (2.5e-3, 5e-3, 1e-2), "StaticEmbedding": (1e-2, 2e-2, 4e-2), "NIFE": (5e-3, 1e-2, 2e-2)}
# What NIFE's author recommends, and how often a word must occur to become a token.
NIFE_SETTINGS = {
    "num_train_epochs": 5,
    "per_device_train_batch_size": 128,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,  # of all steps
    "lr_scheduler_type": "cosine_warmup_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
}
LEAST = 2
Texts = list[str]


def read_rows(vectors: TeacherVectors, tokenizer: PreTrainedTokenizerBase) -> tuple[Texts, Tensor]:
    """Return the texts that the teacher has read, and its vectors of them, `[rows, hidden]`."""
    rows = [vectors[number] for number in range(len(vectors))]
    texts = tokenizer.batch_decode([row["input_ids"].tolist() for row in rows])
    return texts, torch.stack([row["text_vector"] for row in rows])


def distill_wide(teacher: str) -> "StaticModel":
    """Return model2vec's static model in the teacher's width, without a reduction by PCA."""
    from model2vec.distill import distill

    return distill(teacher, pca_dims=None, quantize_to="float32")


def train_model2vec(start: "StaticModel", texts: Texts, vectors: Tensor, rate: float) -> "StaticModel":
    """Train a static model as model2vec does for similarity: cosine distance, a weight for each token."""
    from model2vec.train import StaticModelForSimilarity

    model = StaticModelForSimilarity.from_static_model(model=start, n_layers=0, out_dim=vectors.shape[1])
    settings = {"max_epochs": EPOCHS, "min_epochs": EPOCHS, "batch_size": BATCH_SIZE, "device": "cpu"}
    # The validation of its early stopping, which does not stop here, needs some rows.
    model.fit(texts, vectors, learning_rate=rate, X_val=texts[:256], y_val=vectors[:256], **settings)
    return model.to_static_model()


def static_embedding(start: "StaticModel") -> "StaticEmbedding":
    """Return sentence-transformers' module with the vectors of a static model."""
    from sentence_transformers.models import StaticEmbedding

    return StaticEmbedding(start.tokenizer, embedding_weights=np.array(start.embedding, dtype=np.float32))


def nife_embedding(teacher: Teacher, texts: Texts) -> "StaticEmbedding":
    """Return NIFE's module: the words of texts are tokens too, and each token has the teacher's vector of it alone."""
    from sentence_transformers.models import StaticEmbedding
    from skeletoken import TokenizerModel

    backend = teacher.tokenizer.backend_tokenizer
    cut = (backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)) for text in texts)
    counts = Counter(word for words in cut for word, _ in words)
    known = teacher.tokenizer.get_vocab()
    words = [word for word, count in counts.items() if count >= LEAST and word not in known and not word.isdigit()]
    share = sum(counts[word] for word in words) / counts.total()
    print(f"NIFE: {len(words):,} words become tokens, {share:.1%} of all words of the texts", flush=True)
    tokenizer = TokenizerModel.from_transformers_tokenizer(teacher.tokenizer).add_tokens_to_vocabulary(words)
    alone = [token.removeprefix("##") for token in tokenizer.sorted_vocabulary]
    return StaticEmbedding(tokenizer.to_tokenizer(), embedding_weights=teacher.encode(alone, batch_size=256).numpy())


def train_static_embedding(
    module: "StaticEmbedding", texts: Texts, vectors: Tensor, rate: float, folder: Path, metric: str, **settings: Any
) -> "SentenceTransformer":
    """Train sentence-transformers' StaticEmbedding to the vectors, by squared error (`mse`) or `cosine` distance."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import EmbedDistillLoss

    defaults = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH_SIZE, "warmup_steps": 50}
    model = SentenceTransformer(modules=[copy.deepcopy(module)], device="cpu")
    args = SentenceTransformerTrainingArguments(
        str(folder),
        learning_rate=rate,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=0,
        **{**defaults, **settings},
    )
    data = Dataset.from_dict({"sentence": texts, "label": vectors.numpy()})
    SentenceTransformerTrainer(model, args, train_dataset=data, loss=EmbedDistillLoss(model, metric)).train()
    return model


def search_and_train(
    name: str,
    texts: Texts,
    vectors: Tensor,
    train: Callable[[Texts, Tensor, float], "StaticModel | SentenceTransformer"],
    file: Path,
) -> "StaticModel | SentenceTransformer":
    """Search the learning rate by the mean cosine with the teacher on held-out rows, then train on all rows.

    The scores are kept in a JSON file.
    """
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(order) // 10], order[len(order) // 10 :]

    def held_out(rate: float) -> float:
        scores: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        if f"{rate:g}" not in scores:
            model = train([texts[row] for row in rest], vectors[rest], rate)
            found = torch.as_tensor(model.encode([texts[row] for row in held]))
            scores[f"{rate:g}"] = float(F.cosine_similarity(found, vectors[held]).mean())
            print(f"{name}, learning rate {rate:g}: cosine {scores[f'{rate:g}']:.4f}", flush=True)
            write_json(file, scores)
        return scores[f"{rate:g}"]

    return train(texts, vectors, best_learning_rate(RATES[name], held_out))


def sentence_transformer_encoders(
    model: "SentenceTransformer",
) -> tuple[Callable[..., np.ndarray], Callable[..., list[np.ndarray]]]:
    """Return functions that encode texts, and words one by one."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False)

    def encode_words(sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        words = [word for sentence in sentences for word in sentence]
        return np.split(encode(words), np.cumsum([len(sentence) for sentence in sentences])[:-1])

    return encode, encode_words
