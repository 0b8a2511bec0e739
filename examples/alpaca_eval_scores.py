"""One scoring pass of a policy over AlpacaEval answers with known preferences: does it rank them as the judge did?

python examples/alpaca_eval_scores.py --policy runs/hh-rlhf/policy --baseline baseline.jsonl.gz model.jsonl.gz ...
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from adaptpo.choices.objectives import SimPO
from adaptpo.data.tokenization import stop_token_ids, tokenize_pair
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.evaluation.alpaca_eval.pairs import read_alpaca_eval_pairs
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.models.loading import load_causal_lm, load_tokenizer
from adaptpo.types import Dropped, PreferencePair, Prompt


def pairs(outputs: Path, baseline: Path, tokenizer, reasons: Counter) -> Iterator[PromptedPair]:
    stops = stop_token_ids(tokenizer)
    for example in read_alpaca_eval_pairs(outputs, baseline):
        result = example.reason if isinstance(example, Dropped) else tokenize_pair(example, tokenizer, 384, 384, stops)
        if isinstance(result, str):
            reasons[result] += 1
            continue
        prompt = Prompt(example.row, example.prompt, result.prompt_ids)
        yield prompt, PreferencePair(prompt.id, "offline", result.chosen, result.rejected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("outputs", type=Path, nargs="+")
    options = parser.parse_args()
    quiet_libraries()
    model, tokenizer = load_causal_lm(options.policy, {}), load_tokenizer(options.policy)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    for outputs in options.outputs:
        reasons: Counter[str] = Counter()
        items = list(pairs(outputs, options.baseline, tokenizer, reasons))
        margins = SimPO(beta=1.0, gamma=0.0).margin(evaluate_pairs(model, tokenizer.pad_token_id, items, arguments))
        agreement = (margins > 0).float().mean().item()
        print(f"{outputs.name}: {len(items)} pairs, left out {dict(reasons)}; ranks {agreement:.1%} as the judge did, "
              f"mean margin {margins.mean().item():+.3f} nats a token")  # fmt: skip


if __name__ == "__main__":
    main()
