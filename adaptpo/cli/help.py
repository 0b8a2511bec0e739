"""What `--help` says of each command."""

from __future__ import annotations

TRAIN_HELP = """\
Align a model as a recipe says. One YAML file is one run. A run that was interrupted goes on where it stopped when the
same command is started again.

  adaptpo train recipe.yaml
  adaptpo train recipe.yaml --set method.name=online_dpo --set output_dir=runs/online
  adaptpo train recipe.yaml --set training.learning_rate=1.0e-6 --set generation.num_generations=4
"""


PLAN_HELP = """\
Say what a recipe will take before it is started: tokens, floating-point operations, memory, disk, annotations and hours
on a machine, each with its arithmetic. Reads the model's configuration, the tokenizer and the data; loads no model.
docs/planning.md says what is assumed and how far that was from measured runs.

  adaptpo plan recipe.yaml --machine h100x8
  adaptpo plan recipe.yaml --machine '{accelerator: h100, count: 4, training_utilization: 0.5, engine: continuous}'
  adaptpo plan recipe.yaml --machine '{tflops: 0.1, memory_gb: 8, bandwidth_gb: 20}' --set method.name=online_dpo
  adaptpo plan recipe.yaml --against runs/example
"""


METHODS_HELP = "Print every named method with its four choices: selection, pairing, objective, weighting."


REPORT_HELP = """\
Write one self-contained HTML page about a run, and its figures as PNG files. Reads nothing but the run folder, and
works on unfinished runs.

  adaptpo report runs/example
"""


STAGE_HELP = """\
Measure which data a policy needs now: offline pairs (preference injection) or its own samples (preference fine-tuning).
Two fresh responses to each prompt are compared with the two offline ones by a preference model; the boundary score is
the share that the policy won. Writes stage.json, the responses, and a report. Goes on where it was interrupted.

  adaptpo stage recipe.yaml
  adaptpo stage recipe.yaml --model runs/example/final --precision 0.02
  adaptpo stage --model org/policy --data pairs.jsonl --reward org/reward-model --prompts 500 --out runs/stage
"""


SANDBOX_HELP = """\
A world of its own, small enough for a CPU, whose true reward is known: a policy, a reward model, offline pairs of
writers of mixed quality, and held-out prompts, all as ordinary Hugging Face folders and data files.

  adaptpo sandbox build --out sandbox
  adaptpo sandbox check sandbox
  adaptpo train sandbox/recipe.yaml
"""


CHECK_HELP = """\
Say whether training can be measured in a world: does the reward model agree with the true reward on the policy's own
responses, is there room to improve, and do warm-up DPO and Online DPO each bring it closer to the optimum? Trains both;
takes minutes. Exit status 1 if a check fails.
"""


TABLE_HELP = """\
Compare methods in sandbox worlds of several seeds: true reward, win rates against the SFT policy, share of prompts
annotated and time, beside the paper's figures where it has them. NAME is one of

  methods             offline, online and adaptive methods
  ablations           MetaAPO without its parts
  time                seconds of generation, annotation and training
  update-interval     optimizer steps between updates of the meta-learner
  num-generations     responses per prompt
  reward-models       annotators of different quality
  noise               wrong labels in the offline data
  selection           which prompts to generate for
  metapo              MetaPO beside other weights of pairs
  metapo-features     MetaPO without some of its features, and with further ones
  metapo-interval     optimizer steps between updates of MetaPO
  metapo-network      MetaPO's linear form against networks
  metapo-validation   MetaPO's held-out pairs: how many, and which
  metapo-objective    what MetaPO is learned for
  metapo-sensitivity  MetaPO's decay and lambda
  metapo-online       MetaPO on fresh pairs
  metapo-noise        whether weights tell wrong labels from right ones
  stages              which data policies of different strength gain from, and what the boundary score said
  stages-slic         the same with SLiC-HF
  stages-gentle       the same with a quarter of the learning rate
  stage-methods       methods that act on the stage

Every cell is an ordinary run in its own process and run directory below --out. Tables share worlds and runs, and the
same command goes on where it was interrupted.

  adaptpo sandbox table methods --seeds 5 --jobs 2
  adaptpo sandbox table noise --seeds 3 --methods dpo,metaapo --docs docs/noise.md
"""


ANNOTATE_HELP = """\
Give every response of a file its reward. Rows hold `prompt` (text or chat messages) and `response`, or `responses`, a
list; the same rows come out with `reward`, or `rewards`, null where there is none. Responses to the same prompt are
compared with one another, in whichever rows they are. --reward takes what the key `reward` of a recipe takes, as YAML;
docs/annotation.md lists the annotators. Answers of a judge or server are kept in --cache and not asked for again.

  adaptpo annotate samples.jsonl --reward org/reward-model --out rewards.jsonl
  adaptpo annotate samples.parquet --reward '{pairwise: llm-blender/PairRM-hf}' --out rewards.parquet
  adaptpo annotate samples.jsonl --reward '{judge: gpt-4o-mini, mode: all}' --out rewards.jsonl
"""


DEMO_HELP = """\
Build the sandbox, align its policy with MetaAPO, and show what came out against the known true reward: a table on the
terminal and a report to open in a browser. Takes a few minutes on two cores, and resumes when interrupted.
"""


EVAL_HELP = """\
Measure a model with the benchmarks of the papers. Suites: alpaca_eval_2, arena_hard_v0.1, arena_hard_v2, mt_bench,
xstest. docs/evaluation.md says which numbers were verified against what.

  adaptpo eval generate alpaca_eval_2 --model runs/example/final --out evals/example
  adaptpo eval judge evals/example --judge '{judge: gpt-4-1106-preview}' --baseline baseline.jsonl
  adaptpo eval score evals/example
  adaptpo eval compare evals/example evals/other --html cases.html
"""


EVAL_SCORE_HELP = """\
Score verdicts: those of a folder that `adaptpo eval judge` filled, or a file that AlpacaEval, Arena-Hard, FastChat or
XSTest wrote. Asks no judge. Every number comes with its interval, and the interval with its kind.

  adaptpo eval score evals/example
  adaptpo eval score annotations.json --baseline outputs.json --length-control length_control.csv
  adaptpo eval score battles.jsonl --answers gpt-4-0314.jsonl gpt-4-0613.jsonl
  adaptpo eval score gpt-4_single.jsonl --questions question.jsonl --model my-model
"""


EVAL_GENERATE_HELP = """\
Answer a suite's questions with any generation engine, turn by turn. MT-Bench fixes the temperature of each category.
Writes answers.jsonl. Resumes where it was interrupted.

  adaptpo eval generate alpaca_eval_2 --model runs/example/final --out evals/example --questions alpaca_eval.json
  adaptpo eval generate mt_bench --model org/model --out evals/mt --generation '{engine: vllm}'
  adaptpo eval generate alpaca_eval_2 --preset stages --model runs/example/final --out evals/stages
"""


EVAL_JUDGE_HELP = """\
Have a judge look at every answer, through any OpenAI-compatible endpoint. --judge takes judge, base_url, api_key_env,
temperature, max_tokens, logprobs, concurrency, retries, timeout and options. What the judge said is kept by content:
nothing is paid for twice, and the same command resumes. --template takes AlpacaEval's text in ChatML, Arena-Hard's YAML
or FastChat's judge_prompts.jsonl; numbers are comparable with published ones only with the published words.

  adaptpo eval judge evals/example --judge '{judge: gpt-4-1106-preview}' --baseline baseline.jsonl
  adaptpo eval judge evals/mt --judge '{judge: gpt-4}' --references gpt-4.jsonl --template judge_prompts.jsonl
  adaptpo eval judge evals/example --judge '{judge: served, base_url: http://127.0.0.1:8000/v1, logprobs: false}'
"""


EVAL_COMPARE_HELP = """\
Set scored evaluations of one suite side by side. Differences are measured on the prompts that both answered, with a
paired bootstrap over prompts. A=DIR,DIR,... names the seeds of one method: then mean, sd and a paired t-test over them.
--html writes one page with answers side by side: largest wins and losses, refusals, conversations, a seeded sample.

  adaptpo eval compare evals/dpo evals/metaapo --html cases.html
  adaptpo eval compare dpo=evals/dpo-0,evals/dpo-1,evals/dpo-2 ours=evals/ours-0,evals/ours-1,evals/ours-2
"""


EVAL_TASKS_HELP = """\
Run tasks of lm-eval on a model: gsm8k_cot (8-shot), mmlu (5), arc_challenge (25), eq_bench, truthfulqa_mc2 and ifeval,
or those that you name. They fetch their data from the hub; --include takes a folder of task files that name local data.

  adaptpo eval tasks --model runs/example/final --out tasks.json
  adaptpo eval tasks --model runs/example/final --include my_tasks --tasks my_task
"""
