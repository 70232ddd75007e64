"""Pre-train a small decoder of Llama's architecture on text files.

    python examples/train_decoder.py --texts articles.jsonl stories.jsonl --output decoder

This is for experiments with decoders without a download.

- The tokenizer is a byte-level BPE that is trained on the texts.
- Each text stands between <s> and </s>. The texts are joined and cut into windows of 256 tokens.
- The loss is that of next-token prediction; AdamW with a cosine schedule.
- The defaults make 20 million parameters, with tied embeddings of 16,000 tokens. They train for 3,000 steps of 64
  windows. That is 49 million tokens, more than one epoch of 200 MB of text.

By arithmetic (6e15 operations) that takes a few minutes on a GPU (give --bf16). It was NOT run on one: the script was
tried on a CPU with tiny sizes only. The learning rate is a usual one for this width, and not tuned.

- 10 million parameters: --hidden-size 256 --num-attention-heads 4 --vocab-size 14000
- 30 million parameters: --hidden-size 512 --num-hidden-layers 7 --num-attention-heads 8
- A minute on a CPU: --hidden-size 64 --num-hidden-layers 2 --num-attention-heads 4 --vocab-size 2000 --max-length 64
  --batch-size 16 --max-steps 200
"""

import argparse
import math
from collections.abc import Iterable
from itertools import chain

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from sensedict_hf import read_dataset

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, for which no text has unknown tokens. It puts <s> before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=max_length,
        padding_side="right",
    )


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Train a decoder; return the loss on held-out texts before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, help="files with a text column")
    parser.add_argument("--output", default="decoder", help="folder for the decoder and the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=16_000, help="largest number of tokens")
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--num-hidden-layers", type=int, default=8)
    parser.add_argument("--num-attention-heads", type=int, default=6)
    parser.add_argument("--intermediate-size", type=int, help="default: 8/3 of the hidden size, a multiple of 32")
    parser.add_argument("--max-length", type=int, default=256, help="tokens in a window")
    parser.add_argument("--max-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64, help="windows in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, on a GPU")
    parser.add_argument("--held-out", type=float, default=0.02, help="share of texts to measure the loss on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    # 1. The tokenizer, from the training texts.
    parts = read_dataset(options.texts).train_test_split(test_size=options.held_out, seed=options.seed)
    tokenizer = train_tokenizer((row["text"] for row in parts["train"]), options.vocab_size, options.max_length)

    # 2. The windows. Texts are joined a thousand at a time, and the tokens left over at the end are dropped.
    def windows(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoding = tokenizer(rows["text"], verbose=False)["input_ids"]
        tokens = list(chain.from_iterable([*ids, tokenizer.eos_token_id] for ids in encoding))
        ends = range(options.max_length, len(tokens) + 1, options.max_length)
        return {"input_ids": [tokens[end - options.max_length : end] for end in ends]}

    parts = parts.map(windows, batched=True, remove_columns=parts["train"].column_names)
    for name, part in parts.items():
        if not len(part):
            text = f"the {name} texts have fewer than {options.max_length} tokens"
            raise ValueError(f"{text}: give more texts, or a smaller --max-length")

    # 3. The decoder.
    intermediate_size = options.intermediate_size or 32 * math.ceil(options.hidden_size * 8 / 3 / 32)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        max_position_embeddings=options.max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {len(parts['train']):,} windows")

    # 4. Training.
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(200, options.max_steps // 10),
            weight_decay=0.1,
            adam_beta2=0.95,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            bf16=options.bf16,
            prediction_loss_only=True,
            save_strategy="no",
            report_to="none",
            logging_steps=100,
            seed=options.seed,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    losses = f"{before:.4f} before, {after:.4f} after {options.max_steps:,} steps"
    print(f"loss on {len(parts['test']):,} held-out windows: {losses}")

    # 5. The decoder and the tokenizer. `Trainer` has turned the cache off, and generation is slow without it.
    model.config.use_cache = True
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return before, after


if __name__ == "__main__":
    main()
