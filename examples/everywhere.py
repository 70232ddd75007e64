"""Take one student through ten libraries, as their users would, and print what worked.

    pip install ".[everywhere]"
    python examples/everywhere.py skd-minilm

Each library gets the folder, or the name on the Hub, and `trust_remote_code=True`. Where it returns vectors, they must
be those of `student.encode`. A library that is not installed is a row of the table.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

import numpy as np

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")  # of Chroma
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = [
    "They sat on the bank of the river.",
    "The bank raised its interest rates.",
    "The dog began to bark at the postman.",
    "The bark of a birch is white.",
]
TRUST = {"trust_remote_code": True}
# Vectors are compared after they were scaled to length 1, as some libraries do that.
TOLERANCE = 1e-4


def unit(vectors):
    """Scale vectors `[texts, hidden]` to length 1."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def with_transformers(student):
    from transformers import AutoModel

    return AutoModel.from_pretrained(student, **TRUST).encode(TEXTS)


def with_pipeline(student):
    from transformers import pipeline

    extract = pipeline("feature-extraction", model=student, tokenizer=student, **TRUST)
    return np.stack([np.asarray(extract(text)[0]).mean(0) for text in TEXTS])


def with_sentence_transformers(student):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(student, **TRUST).encode(TEXTS)


def with_mteb(student):
    import mteb
    from sentence_transformers import SentenceTransformer

    if not os.path.isdir(student):
        return mteb.get_model(student, **TRUST).model.encode(TEXTS)
    # get_model takes names on the Hub alone; a folder is loaded by sentence-transformers.
    return mteb.SentenceTransformerEncoderWrapper(SentenceTransformer(student, **TRUST)).model.encode(TEXTS)


def with_onnx(student):
    import onnxruntime
    from transformers import AutoModel, AutoTokenizer

    from sensedict_hf import export_onnx

    model, tokenizer = AutoModel.from_pretrained(student, **TRUST), AutoTokenizer.from_pretrained(student, **TRUST)
    batch = tokenizer(TEXTS, padding=True, return_tensors="np")
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, folder)
        session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = session.run(["last_hidden_state"], inputs)[0]
    mask = batch["attention_mask"][:, :, None]
    return (states * mask).sum(1) / mask.sum(1)


def with_langchain(student):
    from langchain_huggingface import HuggingFaceEmbeddings

    return HuggingFaceEmbeddings(model_name=student, model_kwargs=TRUST).embed_documents(TEXTS)


def with_llama_index(student):
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    return HuggingFaceEmbedding(model_name=student, **TRUST).get_text_embedding_batch(TEXTS)


def with_haystack(student):
    from haystack.dataclasses import Document

    try:
        from haystack.components.embedders import SentenceTransformersDocumentEmbedder
    except ImportError:  # since version 3 in a package of its own
        from haystack_integrations.components.embedders.sentence_transformers import (
            SentenceTransformersDocumentEmbedder,
        )

    embedder = SentenceTransformersDocumentEmbedder(model=student, progress_bar=False, **TRUST)
    embedder.warm_up()
    return [found.embedding for found in embedder.run([Document(content=text) for text in TEXTS])["documents"]]


def with_chroma(student):
    import chromadb
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    function = SentenceTransformerEmbeddingFunction(model_name=student, **TRUST)
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
    collection.add(ids=[str(number) for number in range(len(TEXTS))], documents=TEXTS)
    found = collection.query(query_texts=TEXTS, n_results=1)["ids"]
    assert [ids[0] for ids in found] == ["0", "1", "2", "3"], "a text is not the nearest to itself"
    return collection.get(include=["embeddings"])["embeddings"]


def with_setfit(student):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(student, **TRUST)
    data = Dataset.from_dict({"text": TEXTS, "label": [0, 0, 1, 1]})
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, num_epochs=1, batch_size=4, report_to="none", show_progress_bar=False
        )
        Trainer(model=model, args=args, train_dataset=data).train()
    assert list(model.predict(TEXTS)) == [0, 0, 1, 1], "it does not learn four texts"


def with_bertopic(student):
    from bertopic import BERTopic
    from sentence_transformers import SentenceTransformer
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    texts = [f"{text} {number}" for text in TEXTS for number in range(8)]
    model = SentenceTransformer(student, **TRUST)
    topics = BERTopic(
        embedding_model=model, umap_model=PCA(2), hdbscan_model=KMeans(2, n_init=10, random_state=0)
    ).fit_transform(texts)[0]
    assert len(set(topics)) == 2, "it does not find two topics"


# What is tried: the title of a row, the packages whose versions it shows, and the function.
ROWS = [
    ("transformers, AutoModel", ["transformers"], with_transformers),
    ("transformers, pipeline", ["transformers"], with_pipeline),
    ("sentence-transformers", ["sentence-transformers"], with_sentence_transformers),
    ("mteb", ["mteb"], with_mteb),
    ("ONNX", ["onnxruntime", "onnxscript"], with_onnx),
    ("LangChain", ["langchain-huggingface"], with_langchain),
    ("llama-index", ["llama-index-embeddings-huggingface"], with_llama_index),
    ("Haystack", ["haystack-ai"], with_haystack),
    ("Chroma", ["chromadb"], with_chroma),
    ("SetFit", ["setfit"], with_setfit),
    ("BERTopic", ["bertopic"], with_bertopic),
]


def attempt(function, packages, student, expected):
    """Run one row.

    Args:
        function: Takes the student, and returns its vectors of `TEXTS`, or None.
        packages: The packages that it needs.
        student: The folder or the name.
        expected: The vectors of length 1, or None.

    Returns:
        The versions, what came out, and whether it is no failure.
    """
    try:
        versions = ", ".join(version(package) for package in packages)
    except PackageNotFoundError as error:
        return "-", f"not installed ({error.name})", True
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries print is not part of the table
            vectors = function(student)
    except Exception as error:
        return versions, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}", False
    if vectors is None or expected is None:
        return versions, "works", True
    difference = float(np.abs(unit(vectors) - expected).max())
    if difference > TOLERANCE:
        return versions, f"other vectors, by up to {difference:.2g}", False
    return versions, "the same vectors", True


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder of a student that pools by the mean, or its name on the Hub")
    options = parser.parse_args(arguments)
    expected = unit(with_transformers(options.student))
    print("| library | version | result |\n|---|---|---|")
    worked = True
    for title, packages, function in ROWS:
        versions, result, is_good = attempt(function, packages, options.student, expected)
        worked &= is_good
        print(f"| {title} | {versions} | {result} |", flush=True)
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
