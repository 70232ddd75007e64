"""The subcommand `index`: build a sense index of texts, search it, copy it into an engine, and merge several."""

import argparse
import json
from pathlib import Path

import numpy as np

from sensedict_cli.index_options import COLLECTION, EMBEDDED

from ..data import iterate_texts, read_dataset
from ..models.arguments import check_device
from ..models.loading import load_senses
from ..processes import process_state
from ..retrieval.encoding import load_encoder
from ..retrieval.engine import SenseCollection
from ..retrieval.index import SenseIndex
from ..retrieval.index_files import check_target


def index(options: argparse.Namespace) -> None:
    """Build an index, search one, copy it into an engine, or merge several."""
    {"build": build, "search": search, "fill": fill, "merge": merge}[options.action](options)


def build(options: argparse.Namespace) -> None:
    """Build an index, in one process or in all those that a launcher started, and print its size.

    Raises:
        ValueError: The output folder holds something already, or a column is missing.
    """
    check_target(Path(options.output), new=True)
    texts = read_dataset(options.texts)
    for column in (options.text_column, options.id_column):
        if column and column not in texts.column_names:
            raise ValueError(f"there is no column {column!r}, only {', '.join(texts.column_names)}: name one of these")
    state = process_state()
    device = state.device if state.num_processes > 1 else check_device("device", options.device)
    model = load_encoder(options.model, device, options.trust_remote_code)
    made = SenseIndex.build(
        model,
        load_senses(options.senses).to(model.device),  # type: ignore[arg-type]  # it takes `self` for an argument
        texts,
        texts[options.id_column] if options.id_column else None,
        output_dir=options.output,
        text_column=options.text_column,
        batch_size=options.batch_size,
    )
    if not state.is_main_process:
        return
    print_size(made, options.output)
    if made.num_own_rows:
        print(f"{made.num_own_rows:,} tokens have no senses in the dictionary, and got a row of their own")


def fill(options: argparse.Namespace) -> None:
    """Copy the documents of an index into a search engine, and print how many there are."""
    collection = open_collection(SenseIndex.load(options.index), options)
    collection.fill()
    print(f"{len(collection):,} texts in the collection {options.collection!r}")


def open_collection(index: SenseIndex, options: argparse.Namespace) -> SenseCollection:
    """Return the collection that `--engine` and `--collection` name.

    Raises:
        ValueError: Milvus is not installed, does not answer, or has other documents under this name.
    """
    try:
        from pymilvus import MilvusClient, MilvusException
    except ImportError as error:
        raise ValueError('--engine needs Milvus: pip install "sensedict_hf[engine]"') from error
    place = str(Path(options.index) / "milvus.db") if options.engine == EMBEDDED else options.engine
    try:
        return SenseCollection(index, MilvusClient(place), options.collection)
    except MilvusException as error:
        raise ValueError(f"--engine {place}: {error}") from error


def merge(options: argparse.Namespace) -> None:
    """Merge indexes, save the result and print its size.

    Raises:
        ValueError: The output folder holds something already, or the indexes do not fit.
    """
    check_target(Path(options.output), new=True)
    merged = SenseIndex.merge([SenseIndex.load(folder) for folder in options.indexes])
    merged.save(options.output)
    print_size(merged, options.output)


def print_size(made: SenseIndex, output: str) -> None:
    """Print the size of an index, and where it was saved."""
    print(
        f"{len(made):,} texts in {made.nbytes / 1e6:.1f} MB, and a table of {made.num_rows:,} rows: saved in {output}"
    )


def search(options: argparse.Namespace) -> None:
    """Search an index for a question or for the texts of a file, and print what was found.

    Raises:
        ValueError: Neither or both are given, or `--explain` comes with `--json`.
    """
    if (options.question is None) == (not options.queries):
        raise ValueError("give either a question or --queries")
    if options.json and options.explain:
        raise ValueError("--explain prints no JSON: leave out --json")
    if options.collection != COLLECTION and options.engine is None:
        raise ValueError(f"--collection {options.collection} is in a search engine: name the engine with --engine")
    if options.text_column != "text" and not options.queries:
        raise ValueError("--text-column is for --queries: leave it out")
    device, trust = check_device("device", options.device), options.trust_remote_code
    model = load_encoder(options.model, device, trust) if options.model else None
    loaded = SenseIndex.load(options.index, model, trust_remote_code=trust)
    if options.queries:
        queries = list(iterate_texts(read_dataset(options.queries), options.text_column))
    else:
        queries = [options.question]
    if options.engine is None:
        found, scores = loaded.search(queries, options.top_k, batch_size=options.batch_size)
    else:
        collection = open_collection(loaded, options)
        found, scores = collection.search(queries, options.top_k, batch_size=options.batch_size)
    for query, ids, values in zip(queries, found, map(np.ndarray.tolist, scores)):
        if options.json:
            rounded = [round(value, 5) for value in values]
            print(json.dumps({"query": query, "ids": ids, "scores": rounded}, ensure_ascii=False))
            continue
        if options.queries:
            print(f"# {query}")
        for name, value in zip(ids, values):
            print(f"{value:.4f}\t{name}")
        if options.explain and ids:  # a search engine may find nothing
            for match in loaded.explain(query, ids[0]):
                print(f"    {match.query_token} -> {match.document_token} (sense {match.sense_id}) {match.cosine:.3f}")
