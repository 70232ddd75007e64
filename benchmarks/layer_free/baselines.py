"""Baselines without layers that are trained to the teacher's vectors of texts.

Both begin with model2vec's distilled vectors in the teacher's width. The learning rate of each is searched on a tenth
of the rows, with a training on the others; then it is trained on all rows.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sensedict_hf import TeacherVectors

from ..distillation.tasks import best_learning_rate
from ..studies import write_json

if TYPE_CHECKING:
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer

EPOCHS = 3
BATCH_SIZE = 256
RATES = {"model2vec": (2.5e-3, 5e-3, 1e-2), "StaticEmbedding": (1e-2, 2e-2, 4e-2)}
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


def train_static_embedding(
    start: "StaticModel", texts: Texts, vectors: Tensor, rate: float, folder: Path
) -> "SentenceTransformer":
    """Train sentence-transformers' StaticEmbedding to the vectors, with mean squared error."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MSELoss
    from sentence_transformers.models import StaticEmbedding

    module = StaticEmbedding(start.tokenizer, embedding_weights=np.asarray(start.embedding, dtype=np.float32))
    model = SentenceTransformer(modules=[module], device="cpu")
    args = SentenceTransformerTrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=rate,
        warmup_steps=50,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=0,
    )
    data = Dataset.from_dict({"sentence": texts, "label": vectors.numpy()})
    SentenceTransformerTrainer(model, args, train_dataset=data, loss=MSELoss(model)).train()
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
