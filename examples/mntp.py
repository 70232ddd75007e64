"""Masked next-token prediction: teaches a decoder that is run bidirectionally to use what stands behind a token.

    python examples/mntp.py --model mistralai/Mistral-7B-v0.1 --texts my_texts.jsonl --output mistral-mntp

The first step of LLM2Vec (BehnamGhader et al., COLM 2024), for any decoder whose attention transformers can turn round. Tokens are hidden
as BERT's are: of those chosen, 80% become the mask, 10% another token, and 10% stay. The one at position i is predicted from the logits at
position i - 1, where the decoder has learned to predict it. Adapters (LoRA) are all that is trained, and all that is saved, beside the
tokenizer; they fit the bare base model, and `load_teacher(output, bidirectional=True)` loads both. LLM2Vec trains 1,000 steps of 32
windows of 512 tokens; this script has been run on CPUs only, on models of less than a million parameters.
"""

import argparse
import copy
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from sensedict_hf.data import read_dataset
from sensedict_hf.models.attention import probe_attention, set_bidirectional
from sensedict_hf.models.tokenizers import model_max_length

IGNORED = -100  # the label of a token that is not predicted


def mntp_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of the hidden tokens, each by the logits one position before it.

    Args:
        outputs: with `logits`, `[batch, positions, vocabulary]`. labels: `[batch, positions]`, the hidden tokens, elsewhere -100.
        num_items_in_batch: what to divide by, where a step has several batches; default: the hidden tokens of this one.
    """
    logits, labels = outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / max(count, 1)  # by chance nothing of a small batch may be hidden


def masking_tokenizer(tokenizer: PreTrainedTokenizerBase, mask_token: str) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that has a mask and a padding token, both of them tokens that the model already knows. Only the copy: beside
    the adapter the tokenizer has to read texts as it always did.

    Raises:
        ValueError: the mask is no token of the vocabulary.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.mask_token is None:
        if mask_token not in tokenizer.get_vocab():
            raise ValueError(
                f"mask token {mask_token!r} is none of the tokenizer's {len(tokenizer):,} tokens: give one that is, and is rare in the "
                f"texts, with --mask-token, for example {tokenizer.unk_token or tokenizer.eos_token!r}"
            )
        tokenizer.mask_token = mask_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.mask_token
    tokenizer.padding_side = "right"  # as where the adapter will be used; some models number positions from the left
    return tokenizer


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Returns the loss on held-out texts before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a decoder: a name or a folder")
    parser.add_argument("--texts", nargs="+", required=True, help="files with a text column")
    parser.add_argument("--output", default="mntp")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--max-length", type=int, default=512, help="in tokens; longer texts are cut into windows")
    parser.add_argument(
        "--mask-token", default="_", help="for a tokenizer without one of its own; default: _, as in LLM2Vec"
    )
    parser.add_argument("--mlm-probability", type=float, default=0.2, help="share of the tokens that are predicted")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--lora-alpha", type=int, help="default: twice the rank")
    parser.add_argument("--lora-dropout", type=float, default=0.05)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--held-out", type=float, default=0.05, help="share of the texts that the loss is measured on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    # 1. The decoder, bidirectional. Its head is frozen with all else: it is no part of the adapter, and what it learned would be lost.
    tokenizer, model = (
        AutoTokenizer.from_pretrained(options.model),
        AutoModelForCausalLM.from_pretrained(options.model),
    )
    set_bidirectional(model.config, True)
    attention = probe_attention(model.base_model.eval())
    if attention != "bidirectional":
        raise ValueError(
            f"the attention of {type(model).__name__} stays {attention}: choose another decoder, such as a Llama or a Mistral"
        )
    model.requires_grad_(False)
    lora = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha or 2 * options.lora_r,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
    )
    adapter = get_peft_model(model.base_model, lora)  # which puts its layers into the very model below the head
    adapter.print_trainable_parameters()

    # 2. The texts, as windows of token ids.
    masking = masking_tokenizer(tokenizer, options.mask_token)
    max_length = min(options.max_length, model_max_length(tokenizer, model.config))

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

    # 3. Training.
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            prediction_loss_only=True,
            remove_unused_columns=False,  # the collator takes the mask of special tokens
            save_strategy="no",
            report_to="none",
            logging_steps=100,
            seed=options.seed,
            **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=DataCollatorForLanguageModeling(masking, mlm_probability=options.mlm_probability),
        compute_loss_func=mntp_loss,
    )

    def held_out_loss() -> float:
        set_seed(options.seed)  # the same tokens are hidden each time
        return trainer.evaluate()["eval_loss"]

    before = held_out_loss()
    trainer.train()
    after = held_out_loss()
    print(
        f"loss on {len(parts['test']):,} held-out windows: {before:.4f} before, {after:.4f} after {options.max_steps:,} steps"
    )

    # 4. The adapter for the base model, and the tokenizer.
    adapter.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return before, after


if __name__ == "__main__":
    main()
