"""The options of `sensedict index`."""

import argparse

from .common import FILES, add, add_device, add_flag, add_quiet, add_texts, add_trust
from .parsing import AnyOrder

EMBEDDED, COLLECTION = "embedded", "senses"


def add_index(sub: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = sub.add_subparsers(
        dest="action", required=True, metavar="ACTION", title="actions", parser_class=AnyOrder
    )
    about = "build an index of texts, which are kept as senses"
    usage = "%(prog)s --model MODEL --senses DIR --texts FILE... --output DIR [options]"
    build = actions.add_parser("build", help=about, description=f"{about[0].upper()}{about[1:]}.", usage=usage)
    add(build, "--model", "MODEL", "what encodes the texts: the dictionary's teacher or a student", required=True)
    add(build, "--senses", "DIR", "folder of a dictionary or a student", required=True)
    add_texts(build, "texts to search: " + FILES, required=True)
    add(build, "--id-column", "NAME", "column of the ids of the texts (default: ids are 0, 1, 2 ...)")
    about = "new folder for the index; the same command continues an interrupted build there"
    add(build, "--output", "DIR", about, required=True)
    _add_running(build)
    about = "find the texts that answer a question best"
    usage = "%(prog)s DIR [QUESTION] [options]"
    search = actions.add_parser("search", help=about, description=f"{about[0].upper()}{about[1:]}.", usage=usage)
    add(search, "index", "DIR", "folder of the index")
    add(search, "question", "QUESTION", "what to search for", nargs="?")
    add(search, "--queries", "FILE", "search for these texts instead: " + FILES, nargs="+")
    add(search, "--text-column", "NAME", "column of the texts in a dataset", default="text")
    add(search, "--model", "MODEL", "what encodes the queries (default: the model that the index was built with)")
    add(search, "--top-k", "K", "texts to find for each query", default=10)
    about = "search in Milvus, into which 'sensedict index fill' has copied the documents"
    _add_engine(search, about, None)
    add_flag(search, "--json", "print one line of JSON for each query: 'query', 'ids' and 'scores'")
    add_flag(search, "--explain", "also show what each token of the query matched in the best text")
    _add_running(search)
    about = "copy the documents of an index into a search engine, for a cluster where one machine is not enough"
    fill = actions.add_parser("fill", help=about, description=f"{about[0].upper()}{about[1:]}.")
    add(fill, "index", "DIR", "folder of the index")
    _add_engine(fill, "where Milvus is", EMBEDDED)
    about = "join indexes of different texts, with different ids, that have the same dictionary"
    merge = actions.add_parser("merge", help=about, description=f"{about[0].upper()}{about[1:]}.")
    add(merge, "indexes", "DIR", "folders of the indexes", nargs="+")
    add(merge, "--output", "DIR", "new folder for the index", required=True)
    for action in actions.choices.values():
        add_quiet(action)


def _add_engine(action: argparse.ArgumentParser, about: str, default: str | None) -> None:
    """Add the options that name a collection of Milvus."""
    about += (
        f": the URL of a server or cluster, a file for one in this process, or '{EMBEDDED}' for a file in the index"
    )
    add(action, "--engine", "URL|FILE", about, default=default)
    add(action, "--collection", "NAME", "name of the collection in the engine", default=COLLECTION)


def _add_running(action: argparse.ArgumentParser) -> None:
    group = action.add_argument_group("running the model")
    add_device(group)
    add_trust(group)
