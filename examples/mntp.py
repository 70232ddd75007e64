"""Masked next-token prediction (MNTP): train a decoder to use the tokens after a token, too.

    python examples/mntp.py --model mistralai/Mistral-7B-v0.1 --texts my_texts.jsonl --output mistral-mntp

This is the first step of LLM2Vec (BehnamGhader et al., COLM 2024), for any decoder that transformers can run
bidirectionally.

- Tokens are masked as in BERT: of those chosen, 80% become the mask, 10% a random token, and 10% stay.
- The token at position i is predicted from the logits at position i - 1, as the decoder has learned.
- Only adapters (LoRA) are trained. They are saved with the tokenizer and fit the base model without a head.
  `load_teacher(output, bidirectional=True)` loads both.
- An interrupted run continues from its last checkpoint in the output folder.

LLM2Vec trains for 1,000 steps of 32 windows with 512 tokens. `benchmarks/decoders.py` runs this script and
`simcse.py`, and scores the results.
"""

import argparse
import copy
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from sensedict_hf import load_teacher, read_dataset

IGNORED = -100  # label of a token that is not predicted


class MNTPTrainer(Trainer):
    """Predicts each chosen token from the position before it. The head reads these positions alone, to save memory."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the mean cross-entropy of the chosen tokens.

        Args:
            model: The decoder with its head.
            inputs: `input_ids`, `attention_mask` and `labels`, `[batch, positions]`. Labels are -100 where a token is
                not predicted.
            return_outputs: Whether to return the outputs too. Their logits are `[1, chosen tokens, vocabulary]`.
            num_items_in_batch: Number of chosen tokens to divide by, if a step has several batches. Default: the
                number in this batch.
        """
        labels = inputs["labels"][:, 1:]
        chosen = labels != IGNORED
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, states: states[0][:, :-1][chosen][None])
        try:
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        finally:
            hook.remove()
        count = chosen.sum() if num_items_in_batch is None else num_items_in_batch
        total = F.cross_entropy(outputs.logits[0].float(), labels[chosen], reduction="sum")
        loss = total / max(count, 1)  # a small batch may have no chosen token
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, the most probable tokens and the true ones, `[1, chosen tokens]`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        labels = inputs["labels"][:, 1:]
        return loss, outputs.logits.argmax(-1), labels[labels != IGNORED][None]


@dataclass
class Masking(DataCollatorForLanguageModeling):
    """Chooses tokens by the contents of the batch, so that a resumed run chooses as a straight one.

    Attributes:
        run_seed: Seed of the choice.
    """

    run_seed: int = 0

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad windows, and mask tokens."""
        with torch.random.fork_rng(devices=[]):
            contents = str([row["input_ids"] for row in examples])
            torch.manual_seed(zlib.crc32(contents.encode()) + self.run_seed)
            return super().torch_call(examples)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Compute the share of chosen tokens that the model ranks first."""
    found, labels = (values.ravel() for values in (prediction.predictions, prediction.label_ids))
    return {"accuracy": float((found == labels)[labels != IGNORED].mean())}


def masking_tokenizer(tokenizer: PreTrainedTokenizerBase, mask_token: str) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer with a mask and a padding token, which are tokens of the model.

    It is a copy, because the tokenizer that is saved with the adapter must not change.

    Args:
        tokenizer: The tokenizer of the model.
        mask_token: The mask, if the tokenizer has none.

    Raises:
        ValueError: The mask is not in the vocabulary.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.mask_token is None:
        if mask_token not in tokenizer.get_vocab():
            raise ValueError(
                f"mask token {mask_token!r} is none of the tokenizer's {len(tokenizer):,} tokens: give one of them "
                "that is rare in the texts, with --mask-token, for example "
                f"{tokenizer.unk_token or tokenizer.eos_token!r}"
            )
        tokenizer.mask_token = mask_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.mask_token
    tokenizer.padding_side = "right"  # as `load_teacher` pads; some models number positions from the left
    return tokenizer


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Train an adapter; return the loss on held-out texts before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of a decoder")
    parser.add_argument("--texts", nargs="+", required=True, help="files with a text column")
    parser.add_argument("--output", default="mntp", help="folder for the adapter and the tokenizer")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32, help="windows in a step")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--max-length", type=int, default=512, help="tokens in a window; longer texts are cut")
    parser.add_argument("--mask-token", default="_", help="mask if the tokenizer has none; default: _, as in LLM2Vec")
    parser.add_argument("--mlm-probability", type=float, default=0.2, help="share of tokens to predict")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--lora-alpha", type=int, help="default: twice the rank")
    parser.add_argument("--lora-dropout", type=float, default=0.05)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--bf16", action="store_true", help="compute products in bfloat16; weights stay float32")
    parser.add_argument("--save-steps", type=int, default=100, help="steps between checkpoints and held-out scores")
    parser.add_argument("--held-out", type=float, default=0.05, help="share of texts to measure the loss on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    # 1. The decoder, run bidirectionally. `load_teacher` sets its config, and refuses a decoder that stays causal.
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    longest = load_teacher(model, tokenizer=tokenizer, bidirectional=True).max_window

    # 2. The adapters. The head stays as it is: it is not part of the adapter, so its training would be lost.
    model.requires_grad_(False)
    lora = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha or 2 * options.lora_r,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
    )
    adapter = get_peft_model(model.base_model, lora)  # changes the base model inside `model`
    adapter.print_trainable_parameters()

    # 3. The texts, as windows of token ids.
    masking = masking_tokenizer(tokenizer, options.mask_token)
    max_length = min(options.max_length, longest)

    def windows(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoding = tokenizer(
            rows["text"],
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        return {name: encoding[name] for name in ("input_ids", "attention_mask", "special_tokens_mask")}

    parts = read_dataset(options.texts).train_test_split(test_size=options.held_out, seed=options.seed)
    parts = parts.map(windows, batched=True, remove_columns=parts["train"].column_names)

    # 4. Training.
    trainer = MNTPTrainer(
        model,
        TrainingArguments(
            options.output,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            remove_unused_columns=False,  # the collator needs the mask of special tokens
            save_steps=options.save_steps,
            save_total_limit=1,
            eval_strategy="steps",
            eval_steps=options.save_steps,
            report_to="none",
            logging_steps=options.save_steps,
            bf16=options.bf16,
            use_cpu=not torch.accelerator.is_available(),  # bfloat16 on a CPU must be asked for
            seed=options.seed,
            **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=Masking(masking, mlm_probability=options.mlm_probability, run_seed=options.seed),
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()
    checkpoint = get_last_checkpoint(options.output) if Path(options.output).is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    after = trainer.evaluate()
    for name in ("loss", "accuracy"):
        values = f"{before[f'eval_{name}']:.4f} before, {after[f'eval_{name}']:.4f} after {options.max_steps:,} steps"
        print(f"{name} on {len(parts['test']):,} held-out windows: {values}")

    # 5. The adapter for the base model, and the tokenizer.
    adapter.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return before["eval_loss"], after["eval_loss"]


if __name__ == "__main__":
    main()
