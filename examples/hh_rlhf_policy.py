"""Builds the starting policy of `recipes/hh-rlhf-cpu.yaml`: a byte-level tokenizer and a small Llama, trained on the
chosen dialogues of an HH-RLHF file by TRL's SFTTrainer. Minutes on two cores.

    python examples/hh_rlhf_policy.py --data harmless-base/test.jsonl.gz --out runs/hh-rlhf/policy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from adaptpo.data import read_examples
from adaptpo.distributed.quiet import quiet_libraries, turn_off_telemetry
from adaptpo.types import Dropped, Message, PreferenceExample

SPECIAL = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def dialogues(data: str) -> list[list[Message]]:
    """The chosen dialogue of every usable row."""
    examples = [e for e in read_examples(data) if not isinstance(e, Dropped)]
    return [whole_dialogue(example) for example in examples]


def whole_dialogue(example: PreferenceExample) -> list[Message]:
    if isinstance(example.prompt, str) or isinstance(example.chosen, str):
        raise TypeError("the dialogues must be chat messages")
    return [*example.prompt, *example.chosen]


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be encoded, and frequent strings become one token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """About 1.1 million parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an HH-RLHF file (.jsonl or .jsonl.gz)")
    parser.add_argument("--out", type=Path, default=Path("runs/hh-rlhf/policy"))
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args()
    quiet_libraries()
    turn_off_telemetry()
    messages = dialogues(options.data)
    tokenizer = train_tokenizer([m["content"] for dialogue in messages for m in dialogue], vocabulary=2048)
    model = small_llama(tokenizer)
    arguments = SFTConfig(
        output_dir=str(options.out / "training"),
        num_train_epochs=options.epochs,
        learning_rate=2e-3,
        per_device_train_batch_size=16,
        max_length=384,
        train_sampling_strategy="group_by_length",
        warmup_steps=20,
        lr_scheduler_type="cosine",
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"messages": dialogue} for dialogue in messages]),
        processing_class=tokenizer,
    ).train()
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{model.num_parameters() / 1e6:.1f} million parameters in {options.out}")


if __name__ == "__main__":
    main()
