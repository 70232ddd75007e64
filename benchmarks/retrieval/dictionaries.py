"""Which dictionary keeps most of late interaction? Chosen on training texts that are no documents.

    python -m benchmarks.retrieval.dictionaries --data FOLDER

The documents are those of the sets of intents, and the queries are 400 other training texts. The senses are fitted and
picked by squared distance (`l2`) or by cosine, for budgets of 6, 12 and 24 senses a token on average. The table has
nDCG@10 and, in brackets, the number of senses.
"""

from itertools import product

import numpy as np

from sensedict_hf.evaluation.scores import score_ranking
from sensedict_hf.retrieval.searching import Searcher

from . import baselines
from .held_out import open_study
from .sets import load_set
from .vectors import TokenVectors, fit_dictionary, index_documents

SETS = ("banking77", "hwu64")
SIMILARITIES, BUDGETS = ("l2", "cosine"), (6, 12, 24)


def main() -> None:
    options, study, encoder, like = open_study("dictionaries", __doc__)
    folder = options.output / "teacher"
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
