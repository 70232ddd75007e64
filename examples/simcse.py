"""Unsupervised contrastive training (SimCSE): turn a decoder after MNTP into a sentence encoder.

    python examples/simcse.py --model mistralai/Mistral-7B-v0.1 --adapters mistral-mntp --texts sentences.jsonl \\
        --output mistral-simcse

This is the second step of LLM2Vec (BehnamGhader et al., COLM 2024), after `examples/mntp.py`.

- Every sentence is read twice with different dropout (SimCSE, Gao et al., EMNLP 2021). Its two vectors, means of
  hidden states, must be closer to each other than to the vectors of the other sentences in the batch. The loss is
  CachedMultipleNegativesRankingLoss, whose memory is that of a small part of the batch.
- Only new adapters (LoRA) are trained. At the end they are merged into the model.
- The output is a folder of sentence-transformers, which runs bidirectionally. `load_teacher(output)` and
  `SentenceTransformer(output)` load it.
- An interrupted run continues from its last checkpoint in `OUTPUT.training`, which is removed at the end.

LLM2Vec trains for 1,000 steps of 128 sentences.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from sensedict_hf import load_teacher, read_dataset


def main(arguments: list[str] | None = None) -> None:
    """Train, merge and save the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of a decoder, or of its adapters")
    parser.add_argument("--adapters", nargs="+", default=[], help="adapters to merge into the model first")
    parser.add_argument("--texts", nargs="+", required=True, help="files with a text column, a sentence in a row")
    parser.add_argument("--output", default="simcse", help="folder for the model")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128, help="sentences in a step")
    parser.add_argument("--mini-batch-size", type=int, default=16, help="sentences that are in memory at once")
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--max-length", type=int, default=128, help="tokens in a sentence; longer ones are cut")
    parser.add_argument("--attention-dropout", type=float, default=0.3, help="the difference of the two readings")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--lora-alpha", type=int, help="default: twice the rank")
    parser.add_argument("--lora-dropout", type=float, default=0.05)
    parser.add_argument("--bf16", action="store_true", help="compute products in bfloat16; weights stay float32")
    parser.add_argument("--save-steps", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    training = Path(f"{options.output}.training")
    set_seed(options.seed)

    # 1. The decoder as it comes from MNTP, bidirectional and in one piece, so that new adapters have a base.
    teacher = load_teacher(options.model, adapters=options.adapters, bidirectional=True, dtype="float32", device="cpu")
    base = training / "base"
    if not (base / "config.json").is_file():
        teacher.model.save_pretrained(base)
        teacher.tokenizer.save_pretrained(base)
    transformer = Transformer(
        str(base),
        max_seq_length=min(options.max_length, teacher.max_seq_length),
        config_kwargs={"attention_dropout": options.attention_dropout},
    )
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
    set_seed(options.seed)
    model.add_adapter(
        LoraConfig(
            r=options.lora_r,
            lora_alpha=options.lora_alpha or 2 * options.lora_r,
            lora_dropout=options.lora_dropout,
            target_modules="all-linear",
        )
    )

    # 2. Each sentence is its own positive, and the others of a batch are its negatives: so each may occur once.
    sentences = list(dict.fromkeys(read_dataset(options.texts)["text"]))
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(training),
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            save_steps=options.save_steps,
            save_total_limit=1,
            report_to="none",
            logging_steps=10,
            seed=options.seed,
            bf16=options.bf16,
            use_cpu=not torch.accelerator.is_available(),  # bfloat16 on a CPU must be asked for
        ),
        train_dataset=Dataset.from_dict({"anchor": sentences, "positive": sentences}),
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=options.mini_batch_size),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(training)))

    # 3. The model with its adapters merged, as a folder of sentence-transformers.
    model[0].auto_model.save_pretrained(adapter := training / "adapter")
    merged = load_teacher(base, adapters=adapter, device="cpu")
    merged.model.save_pretrained(whole := training / "merged")
    merged.tokenizer.save_pretrained(whole)
    transformer = Transformer(str(whole), max_seq_length=teacher.max_seq_length)
    saved = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
    saved.save_pretrained(str(training / "result"))
    os.replace(training / "result", options.output)
    shutil.rmtree(training)
    print(f"saved in {options.output}")


if __name__ == "__main__":
    main()
