"""The sandbox's tokenizer and its two untrained models, all built in code."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from adaptpo.sandbox.world import vocabulary

PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
ROLES = ("<system>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MAX_POSITIONS = 128
HIDDEN_SIZE = 96
"""Hidden size of both models, so that the reward model can start from the policy's word embeddings."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose chat template costs four tokens: bos, the two roles and eos."""
    words = [PAD, UNKNOWN, BOS, EOS, *ROLES, *vocabulary()]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """An untrained Llama of about 0.3M parameters."""
    set_seed(seed)
    ids = _special_ids(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **ids)
    return model


def build_other_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """An untrained Qwen2 of about the same size."""
    set_seed(seed)
    ids = _special_ids(tokenizer)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **ids)
    return model


def build_reward_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """An untrained bidirectional classifier with one label, which pools over all tokens.

    Mean pooling makes it useful: with last-token pooling, a model of this size agrees with the true reward hardly
    better than chance on the policy's own responses. A wider initialization than the default 0.02 speeds up learning.
    """
    set_seed(seed)
    ids = _special_ids(tokenizer)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        num_labels=1,
        classifier_pooling="mean",
        initializer_range=0.06,
        cls_token_id=ids["bos_token_id"],
        sep_token_id=ids["eos_token_id"],
        **ids,
    )
    return ModernBertForSequenceClassification(config)


def copy_word_embeddings(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Copies `source`'s word embeddings into `target`; both have the same tokenizer and hidden size."""
    target.get_input_embeddings().load_state_dict(source.get_input_embeddings().state_dict())


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}
