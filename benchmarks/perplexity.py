"""How well does a decoder predict the next token if its states are replaced by their senses?

    python -m benchmarks.perplexity --teacher MODEL --train FILE --test FILES

- Dictionaries are built from the states of training texts. With `input` a state belongs to the token that it has read,
  with `next` to the token that it predicts.
- The decoder runs once over all texts. Its last hidden states are kept in half precision.
- The decoder's own head reads the senses of test texts: the best one (`hard`), their mean (`soft`), or the mean of
  this and the state itself (`half`).

What the table can show: how much of what a decoder knows about the next token is in its senses.

What it cannot show: text that is generated from senses. With `next` the senses of a state are those of the true next
token. So the head is told a part of the answer, and the perplexity may lie below that of the decoder itself.
"""

from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from sensedict_hf import SenseEmbeddingModel, build_sense_dictionary, load_teacher, read_dataset
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from .retrieval.vectors import DICTIONARIES, TokenVectors, fit_dictionary
from .studies import Study, results_file, study_parser

KEYS = ("input", "next")
# Assignment, and weight of the states themselves.
OUTPUTS = {"hard": ("hard", 0.0), "soft": ("soft", 0.0), "half": ("soft", 0.5)}
BATCH = 1 << 10  # states that the head reads at a time


def read_texts(file: Path) -> list[str]:
    """Read the column `text` of a file of rows, or a plain file as one text."""
    if file.suffix == ".txt":
        return [file.read_text(encoding="utf-8")]
    return list(read_dataset([file])["text"])


def set_name(file: Path) -> str:
    """Return the name of a set of texts: that of the folder of its file."""
    return file.resolve().parent.name


@torch.inference_mode()
def score(
    states: TokenVectors, head: nn.Module, senses: SenseEmbeddingModel | None, key: str, output: str
) -> dict[str, float]:
    """Score the next tokens of texts.

    Args:
        states: The last hidden states of all tokens.
        head: The language-model head.
        senses: Replaces the states. None: they stay as they are.
        key: A key of `KEYS`.
        output: A key of `OUTPUTS`.

    Returns:
        `perplexity`, and `token_accuracy`, the share of tokens with the largest logit.
    """
    read, predicted = states.preceding(), states.predicting()
    tokens = torch.from_numpy((read if key == "input" else predicted).tokens)
    true, vectors = torch.from_numpy(predicted.tokens), torch.from_numpy(read.vectors)
    cross_entropy, right = torch.zeros((), dtype=torch.float64), 0
    assignment, residual = OUTPUTS[output]
    for begin in range(0, len(true), BATCH):
        part = slice(begin, begin + BATCH)
        shown = vectors[part].float()
        if senses is not None:
            shown = senses(tokens[part][None], shown[None], None, assignment, residual).hidden_states[0]
        logits = head(shown.to(head.weight.dtype)).float()
        cross_entropy += F.cross_entropy(logits, true[part], reduction="sum").double()
        right += int((logits.argmax(-1) == true[part]).sum())
    return {"perplexity": float((cross_entropy / len(true)).exp()), "token_accuracy": right / len(true)}


def main() -> None:
    parser = study_parser("perplexity", __doc__)
    parser.add_argument("--teacher", required=True, help="name or folder of a decoder with its head")
    parser.add_argument("--train", type=Path, required=True, help="JSON Lines of the texts that have the senses")
    parser.add_argument("--test", type=Path, required=True, nargs="+", help="files of texts to score on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the decoder")
    parser.add_argument("--length", type=int, default=256, help="tokens in a window")
    parser.add_argument("--train-texts", type=int, default=200, help="texts that have the senses")
    parser.add_argument("--output", type=Path, default=Path("runs/perplexity"), help="folder for the states")
    options = parser.parse_args()
    name = Path(options.teacher).name
    command = "python -m benchmarks.perplexity --teacher MODEL --train FILE --test FILES"
    study = Study(results_file(options.results, "perplexity"), command=command)

    # Run the decoder once.
    teacher = load_teacher(options.teacher, bidirectional=False, dtype=options.dtype)
    like = build_sense_dictionary(teacher, ["This text sets the length of windows."], max_length=options.length)
    encoder = TokenEncoder(teacher, like)
    train = read_texts(options.train)[: options.train_texts]
    states = TokenVectors.of(encoder, train, options.output / "train.npz")
    tests = {
        set_name(file): TokenVectors.of(encoder, read_texts(file), options.output / f"test-{set_name(file)}.npz")
        for file in options.test
    }
    head = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=options.dtype).eval().get_output_embeddings()

    # Score its own states, and each dictionary.
    for test, own in tests.items():
        study.record(f"{name}, {test}", {"states": score(own, head, None, "input", "hard")})
    for key in KEYS:
        for dictionary, settings in DICTIONARIES.items():
            senses = fit_dictionary(states.predicting() if key == "next" else states, like, **settings)
            for test, own in tests.items():
                found = {output: score(own, head, senses, key, output) for output in OUTPUTS}
                entry = {"senses": senses.config.num_senses, **found}
                study.record(f"{name}, {test}", {f"{key}, {dictionary}": entry})
                print(test, key, dictionary, entry, flush=True)

    def cell(scores: dict[str, float]) -> str:
        return f"{scores['perplexity']:.1f} ({scores['token_accuracy']:.3f})"

    for test in tests:
        scores = study.read(f"{name}, {test}")
        print(f"\n{name}, {test}: perplexity (accuracy of the next token)\n")
        print(f"| key | dictionary | senses | {' | '.join(OUTPUTS)} |\n|---|---|---|{'---|' * len(OUTPUTS)}")
        print(f"| - | the states themselves | - | {' | '.join([cell(scores['states'])] * len(OUTPUTS))} |")
        for key, dictionary in product(KEYS, DICTIONARIES):
            found = scores[f"{key}, {dictionary}"]
            cells = " | ".join(cell(found[output]) for output in OUTPUTS)
            print(f"| {key} | {dictionary} | {found['senses']:,} | {cells} |")


if __name__ == "__main__":
    main()
