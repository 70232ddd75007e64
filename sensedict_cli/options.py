"""The options of the `sensedict` command and of its subcommands."""

import argparse
from collections.abc import Callable

import shtab

from .common import (
    ASSIGNMENTS,
    FILES,
    HEADS,
    KEYS,
    METHODS,
    RETURNED,
    SAMPLE_DTYPES,
    SENSES_DTYPES,
    SIMILARITIES,
    TASKS,
    add,
    add_device,
    add_dry_run,
    add_flag,
    add_push,
    add_quiet,
    add_teacher,
    add_texts,
    add_trust,
)
from .index_options import add_index
from .parsing import HelpAll, Version


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `sensedict` and all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="sensedict",
        usage="%(prog)s COMMAND [options]",
        description="Build a sense dictionary, which holds a few vectors (senses) for every token of an encoder or "
        "decoder, and use it to distil the model into a small, fast student.",
        epilog="'sensedict COMMAND --help' explains the options of a command.",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    shtab.add_argument_to(parser, help="print a script that completes commands and options in this shell, and exit")
    commands = parser.add_subparsers(
        prog="sensedict", dest="command", required=True, metavar="COMMAND", title="commands"
    )
    for name, (add_options, usage, about) in SUBCOMMANDS.items():
        sub = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            usage=f"%(prog)s {usage}",
            allow_abbrev=name != "distill",  # an option added later must not change what an argument file means
        )
        add_options(sub)
        if name in ("build", "distill"):
            add_dry_run(sub)
        if name != "index":  # its actions have the option
            add_quiet(sub)
    return parser


def _add_build(sub: argparse.ArgumentParser) -> None:
    add(sub, "--teacher", "MODEL", "encoder or decoder: a name on the Hub or a folder", required=True)
    add_texts(sub, "texts to find senses in: " + FILES, required=True)
    about = "folder for the dictionary; the same command continues an interrupted build"
    add(sub, "--output", "DIR", about, required=True)
    add_flag(sub, "--overwrite", "replace another dictionary, or an unfinished build, in the output folder")
    add_flag(sub, "--streaming", "read the texts as they are needed, instead of copying them into the cache first")
    about = "build for the tokens of this model's tokenizer, for students that use it (default: the teacher's)"
    add(sub, "--tokenizer", "MODEL", about)
    add(sub, "--seed", "N", "seed of the random sample of token occurrences", default=0)

    size = sub.add_argument_group("size of the dictionary")
    number = size.add_mutually_exclusive_group()
    about = "senses in total, given to the tokens that need them most (default: grows with the texts)"
    add(number, "--budget", "N", about, type=int)
    add(number, "--senses-per-token", "K", "the same number of senses for every token", type=int)
    about = (
        "how senses are shared out; 'mcl' is the paper's rule, and slow (default: by the options above, else budget)"
    )
    add(size, "--method", "", about, choices=METHODS)
    add(size, "--dtype", "", "dtype of the stored senses", choices=SENSES_DTYPES, default="float16")

    vectors = sub.add_argument_group("vectors that senses are made from")
    about = "the nearest sense of a vector has the smallest distance (l2), largest cosine or largest dot product"
    add(vectors, "--similarity", "", about, choices=SIMILARITIES, default="l2")
    add(vectors, "--layer", "N", "layer of the hidden states; 0: token embeddings, -1: last layer", default=-1)
    about = "token that a hidden state belongs to: its own (input) or the one it predicts (next; causal teachers)"
    add(vectors, "--key", "", about, choices=KEYS, default="input")
    about = "occurrences of a token to look at, drawn at random; fewer need less disk and time"
    add(vectors, "--max-samples-per-token", "N", about, default=1000)
    about = "dtype of the sampled vectors on disk during the build"
    add(vectors, "--sample-dtype", "", about, choices=SAMPLE_DTYPES, default="float16")
    add_flag(vectors, "--prompt-senses", "also build senses for the tokens of --instruction and --template")
    about = "longest input in tokens; longer texts are split into windows (default: the teacher's limit, at most 512)"
    add(vectors, "--max-length", "N", about, type=int)
    add_flag(vectors, "--truncation", "cut off texts at --max-length instead of splitting them")

    add_push(sub, "the dictionary")
    later = sub.add_argument_group("adding texts later")
    add_flag(later, "--keep-samples", "keep the sampled vectors in the output folder, so that --update can use them")
    about = "add the texts to this dictionary, which was built with --keep-samples; the result goes to --output"
    add(later, "--update", "DIR", about)
    add_device(add_teacher(sub))


def _add_convert(sub: argparse.ArgumentParser) -> None:
    add(sub, "senses", "DIR", "folder of a dictionary or a student")
    add(
        sub,
        "--dtype",
        "",
        "new dtype of senses; of a student without layers also of its tables",
        choices=SENSES_DTYPES,
        default="float16",
    )
    add(sub, "--output", "DIR", "new folder for the result", required=True)
    add_trust(sub)


def _add_merge(sub: argparse.ArgumentParser) -> None:
    about = "folders of dictionaries of the same teacher; or one dictionary, or one student, to make it smaller"
    add(sub, "senses", "DIR", about, nargs="+")
    about = "senses in total, given to the tokens that need them most; default for one folder: one for each token"
    add(sub, "--budget", "N", about, type=int)
    add(sub, "--output", "DIR", "new folder for the result", required=True)
    add_trust(sub)


def _add_info(sub: argparse.ArgumentParser) -> None:
    add(sub, "folder", "DIR", "folder of a dictionary or a student, or its name on the Hub")
    add_flag(sub, "--json", "print the facts as JSON")
    add_trust(sub)


def _add_card(sub: argparse.ArgumentParser) -> None:
    add(sub, "folder", "DIR", "folder of a dictionary or a student, or its name on the Hub")
    add_trust(sub)


def _add_export(sub: argparse.ArgumentParser) -> None:
    add(sub, "student", "STUDENT", "folder of a student, or its name on the Hub")
    about = "new folder: the student with onnx/model.onnx, for any batch size and length; needs the extra 'onnx'"
    add(sub, "--output", "DIR", about, required=True)
    add_flag(sub, "--int8", "also write onnx/model_quantized.onnx, whose matrices and activations are int8")
    about = (
        "largest distance of a vector from PyTorch's, as a share of its length (default: 0.001, and 0.25 with --int8)"
    )
    add(sub, "--tolerance", "SHARE", about, type=float)
    add_trust(sub)


def _add_verify(sub: argparse.ArgumentParser) -> None:
    add(sub, "folder", "DIR", "folder of a dictionary, a student or an index")
    add_trust(sub)


def _add_distill(sub: argparse.ArgumentParser) -> None:
    # transformers parses all other options when the command runs, see sensedict_hf/cli/distill.py.
    sub.epilog = (
        "All other options of transformers' TrainingArguments are accepted, such as --max-steps, --seed, --bf16 and "
        "--use-cpu; --help-all lists them. FILE.yaml (or .json) holds options as 'name: value'; options after it win. "
        "The same command continues an interrupted run from its last checkpoint."
    )
    about = "show this help message and all options of TrainingArguments, and exit"
    sub.add_argument("--help-all", action=HelpAll, nargs=0, help=about)
    add(sub, "--teacher", "MODEL", "model to learn from: a name on the Hub or a folder", required=True)
    about = "the teacher's dictionary, made by 'sensedict build'; optional without layers and with --head causal_lm"
    add(sub, "--senses", "DIR", about)
    add_texts(sub, "texts to learn from: " + FILES, required=True)
    add(sub, "--output", "DIR", "folder for the student", required=True, dest="output_dir")
    add_flag(sub, "--overwrite", "replace another student, or an unfinished run, in the output folder")
    add_flag(sub, "--streaming", "read the texts as they are needed, without a copy on disk; needs --max-steps")
    add_push(sub, "the finished student", nargs="?", const="true")  # alone as in transformers, with --hub-model-id
    about = "texts to evaluate on during training; needs --eval-strategy"
    add(sub, "--eval-texts", "FILE", about, nargs="+")

    student = sub.add_argument_group("the student")
    about = "start from N layers of the teacher, the first ones and the last; 0: a student without layers (default: 2)"
    add(student, "--num-hidden-layers", "N", about, type=int)
    about = "start from these layers of the teacher instead, counted from 0"
    add(student, "--layers", "N", about, type=int, nargs="+")
    add(student, "--backbone", "MODEL", "start from this model instead; it needs the tokenizer of the dictionary")
    add_flag(student, "--adopt-tokenizer", "give the backbone the tokenizer of the dictionary")
    about = "what the student returns for a token: " + RETURNED + " (default: depends on --objective)"
    add(student, "--assignment", "", about, choices=ASSIGNMENTS)
    about = "share of its own hidden states that is mixed with the senses, 0 to 1 (default: depends on --objective)"
    add(student, "--residual", "SHARE", about, type=float)
    about = "also copy this head of the teacher to the student: frozen, or trained (causal_lm, to generate text)"
    add(student, "--head", "", about, choices=HEADS)

    training = sub.add_argument_group("training")
    about = (
        "loss, or several joined by '+': 'sense' (cross-entropy of the senses that the teacher picks), 'mse' (squared "
        "error of the hidden states), 'sentence' (squared error of the sentence vectors); with --head causal_lm also "
        "'lm' (cross-entropy of the next token) and 'kl' (divergence from the teacher's distribution) (default: "
        "sense+mse+sentence; without layers mse+sentence; with --head causal_lm lm+kl+sense)"
    )
    add(training, "--objective", "LOSS", about)
    about = "passes over the texts (default: 2.0; without layers 3.0, or up to 10.0 for few texts)"
    add(training, "--epochs", "N", about, type=float, dest="num_train_epochs")
    about = "texts per device and step (default: 32; without layers 256; with --head causal_lm 8)"
    add(training, "--batch-size", "N", about, type=int, dest="per_device_train_batch_size")
    about = (
        "texts of a batch: of similar length (group_by_length), any (random) or in their order (sequential) (default: "
        "group_by_length; without layers random)"
    )
    add(training, "--train-sampling-strategy", "WAY", about)
    about = "texts per device in a forward pass without training: for labels, and in evaluation"
    add(training, "--per-device-eval-batch-size", "N", about, default=32)
    about = "highest learning rate (default: 0.001; without layers 0.003)"
    add(training, "--learning-rate", "RATE", about, type=float)
    about = "highest learning rate of the vectors of tokens, without layers"
    add(training, "--table-learning-rate", "RATE", about, default=2e-2)
    about = "steps until the learning rate is at its highest; below 1: share of all steps"
    add(training, "--warmup-steps", "N", about, default=0.1)
    about = "largest norm of the gradient; 0: it is not clipped (default: 1; without layers 0)"
    add(training, "--max-grad-norm", "N", about, type=float)
    about = "divides the scores of the student's senses; its unit is the distortion of the dictionary"
    add(training, "--temperature", "T", about, default=0.15)
    about = "label a token with its K most probable senses by the teacher; 1: with the best one alone"
    add(training, "--label-top-k", "K", about, default=1)
    add(training, "--label-temperature", "T", "like --temperature, for the teacher's probabilities", default=0.15)
    about = "weight of 'mse' when it is added to other losses (default: 3.0; without layers or with causal_lm 1.0)"
    add(training, "--mse-weight", "W", about, type=float)
    about = "weight of 'sentence' when it is added to other losses (default: 9.0; without layers 3.0)"
    add(training, "--sentence-weight", "W", about, type=float)
    add(training, "--sense-weight", "W", "weight of 'sense' when it is added to other losses", default=1.0)
    add(training, "--lm-weight", "W", "weight of 'lm' when it is added to other losses", default=1.0)
    add(training, "--kl-weight", "W", "weight of 'kl' when it is added to other losses", default=1.0)
    about = (
        "longest input in tokens; longer texts are split into windows (default: what teacher and student take, at "
        "most 512)"
    )
    add(training, "--max-length", "N", about, type=int)
    about = "run the teacher once, before training, and keep its vectors on disk, two bytes a number"
    add_flag(training, "--cache-vectors", about)
    add_teacher(sub)


def _add_evaluate(sub: argparse.ArgumentParser) -> None:
    add(sub, "--model", "MODEL", "a student, or any encoder or decoder: a name on the Hub or a folder")
    about = (
        "'classification', 'similarity' and 'retrieval' follow MTEB; 'tokens' finds entities, scored as in CoNLL; "
        "'language_modeling' predicts the next token"
    )
    add(sub, "--task", "", about, choices=TASKS, default="classification")
    about = "for retrieval: a student of the model, which encodes the queries; the model encodes the documents"
    add(sub, "--query-model", "MODEL", about)
    about = "for retrieval: a sense index to search, instead of --model and --corpus"
    add(sub, "--index", "DIR", about)
    add(sub, "--senses", "DIR", "replace the hidden states of the model by the senses of this dictionary")
    stored = " (default: as stored in the student or dictionary)"
    add(sub, "--assignment", "", "vector of a token: " + RETURNED + stored, choices=ASSIGNMENTS)
    about = "share of the model's hidden states that is mixed with the senses, 0 to 1" + stored
    add(sub, "--residual", "SHARE", about, type=float)
    add(sub, "--output", "FILE", "also write the scores to this file, as JSON")
    add_flag(sub, "--card", "also write the scores to the card of the model, in its folder or on the Hub")

    data = sub.add_argument_group("data", f"Each is given as {FILES}.")
    about = "for classification: columns 'text' and 'label'; for tokens: columns 'tokens' (words) and 'tags' (BIO)"
    add(data, "--train", "FILE", about, nargs="+")
    about = (
        "the same; for similarity: columns 'sentence1', 'sentence2' and 'score'; for language_modeling: column 'text'"
    )
    add(data, "--test", "FILE", about, nargs="+")
    add(data, "--corpus", "FILE", "for retrieval: documents, columns 'id', 'text' and optionally 'title'", nargs="+")
    add(data, "--queries", "FILE", "for retrieval: columns 'text' and 'relevant' (a list of ids)", nargs="+")
    add(data, "--text-column", "NAME", "for classification, language_modeling: column of the texts", default="text")
    add(data, "--label-column", "NAME", "for classification: column of the labels", default="label")
    add_device(add_teacher(sub))


def _add_inspect(sub: argparse.ArgumentParser) -> None:
    add(sub, "senses", "DIR", "folder of a dictionary or a student")
    add(sub, "token", "TOKEN", "a token in the vocabulary of the dictionary")
    add_texts(sub, "show contexts of each sense from these texts: " + FILES)
    about = "the teacher, which has to read the texts again (default: the model named in the dictionary)"
    add(sub, "--teacher", "MODEL", about)
    add(sub, "--max-contexts", "N", "contexts to show for each sense", default=3)
    add_flag(sub, "--json", "print the senses as JSON")
    about = "with --texts: also draw hidden states and senses into this file, such as senses.png"
    add(sub, "--plot", "FILE", about)
    add_device(add_teacher(sub))


def _add_demo(sub: argparse.ArgumentParser) -> None:
    add(sub, "--output", "DIR", "folder for the results, dictionary, student and picture", default="demo")
    add(sub, "--seed", "N", "seed of all random numbers", default=0)


# For each subcommand: the function that adds its options, its usage and its help.
SUBCOMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "build": (
        _add_build,
        "--teacher MODEL --texts FILE... --output DIR [options]",
        "build a sense dictionary: run a teacher over texts, and keep a few vectors for every token",
    ),
    "convert": (
        _add_convert,
        "DIR [--dtype DTYPE] --output DIR",
        "store a dictionary, a student's dictionary, or a student without layers in another dtype",
    ),
    "merge": (
        _add_merge,
        "DIR... [--budget N] --output DIR",
        "merge dictionaries of the same teacher, or make one dictionary or student smaller",
    ),
    "info": (
        _add_info,
        "DIR [--json]",
        "say what a folder holds, without loading it",
    ),
    "card": (
        _add_card,
        "DIR",
        "write the card of a model if it has none, or add to that of another library how the model loads",
    ),
    "export": (
        _add_export,
        "STUDENT --output DIR [--int8] [options]",
        "save a student with an ONNX file, and check that it returns the same vectors",
    ),
    "verify": (
        _add_verify,
        "DIR",
        "check everything in the folder of a dictionary, a student or an index",
    ),
    "inspect": (
        _add_inspect,
        "DIR TOKEN [--texts FILE...] [options]",
        "show the senses of a token, and contexts in which they occur",
    ),
    "distill": (
        _add_distill,
        "[FILE.yaml] --teacher MODEL [--senses DIR] --texts FILE... --output DIR [options]",
        "distil a teacher into a small student, with the help of a sense dictionary",
    ),
    "evaluate": (
        _add_evaluate,
        "--model MODEL [--task TASK] --train FILE... --test FILE... [options]",
        "score the embeddings of a model on a task, without fine-tuning it",
    ),
    "index": (
        add_index,
        "ACTION [options]",
        "search texts that are kept as senses: build, search, fill and merge indexes",
    ),
    "demo": (
        _add_demo,
        "[--output DIR] [--seed N]",
        "build, distil and evaluate on texts inside the package, in about five minutes on two CPU cores",
    ),
}
