"""The help text of each command."""

from __future__ import annotations

TRAIN_HELP = """\
Align a model. One run is one recipe (a YAML file), keys given as flags, or both: a flag overrides the recipe. Values
are YAML, and dots address keys inside sections. To resume an interrupted run, start the same command again.

  adaptpo train recipe.yaml
  adaptpo train recipe.yaml --training.learning_rate 1e-6 --generation.num_generations 4
  adaptpo train recipe.yaml --method.name online_dpo --output_dir runs/online
  adaptpo train --model Qwen/Qwen2.5-0.5B-Instruct --data pairs.jsonl --method dpo --output_dir runs/dpo
  adaptpo train --model M --data D --reward org/reward-model --method metaapo --output_dir runs/metaapo \\
    --peft '{r: 16}' --training.learning_rate 1e-5
"""


INIT_HELP = """\
Write a commented recipe. Asks for what is not given; without a terminal, a missing answer is an error or the default.

  adaptpo init
  adaptpo init --model org/policy --data pairs.jsonl --reward org/reward-model --method metaapo --machine h100x8
"""


CHECK_RECIPE_HELP = """\
Run every check that a run makes before it spends anything. Reads the recipe, model, tokenizer, data and reward,
tokenizes the rows, and compares log-probs with those of separate rows. Says how many rows are left out and why, and
shows three rows as they are trained, token by token. Writes nothing.

  adaptpo check recipe.yaml
  adaptpo check recipe.yaml --rows 1000 --examples 10
"""


PLAN_HELP = """\
Estimate what a recipe takes before it starts: tokens, floating-point operations, memory, disk, annotations and hours on
a machine, each with its arithmetic and its assumptions. Reads the model's configuration, the tokenizer and the data;
loads no model. docs/planning.md lists the assumptions and compares them with measured runs.

  adaptpo plan recipe.yaml --machine h100x8
  adaptpo plan recipe.yaml --machine '{accelerator: h100, count: 4, training_utilization: 0.4, engine: continuous}'
  adaptpo plan recipe.yaml --machine '{tflops: 0.1, memory_gb: 8, bandwidth_gb: 20}' --set method.name=online_dpo
  adaptpo plan recipe.yaml --machine h100x8 --measured h100.json
  adaptpo plan recipe.yaml --against runs/example
"""


METHODS_HELP = "Print every named method with its four choices: selection, pairing, objective, weighting."


REPORT_HELP = """\
Write one self-contained HTML page about a run, and its figures as PNG files. It begins with a verdict in words. Reads
only the run folder, and works on unfinished runs. With several runs, writes one page that compares them.

  adaptpo report runs/example
  adaptpo report runs/example --watch              # follows a run; the open page loads itself again
  adaptpo report runs/dpo runs/metaapo --out runs/comparison
"""


VERIFY_HELP = """\
Read everything that a run has written and compare it with the checksums that the run kept. Exits with status 0 if
nothing is damaged, and with 1 otherwise.

  adaptpo verify runs/example
"""


REPAIR_HELP = """\
Say what is damaged in a run, and which phases have to be made again. With --apply, remove exactly that; `adaptpo train`
then makes it again.

  adaptpo repair runs/example
  adaptpo repair runs/example --apply
"""


STAGE_HELP = """\
Measure the alignment-stages paper's boundary score. It asks which data a policy needs now: offline pairs (preference
injection) or its own samples (preference fine-tuning). A preference model compares two fresh responses to each prompt
with the two offline ones; the score is the share that the policy won. Writes stage.json, the responses and a report. To
resume an interrupted measurement, start the same command again.

  adaptpo stage recipe.yaml
  adaptpo stage recipe.yaml --model runs/example/final --precision 0.02
  adaptpo stage --model org/policy --data pairs.jsonl --reward org/reward-model --prompts 500 --out runs/stage
"""


VOTE_HELP = """\
Let people vote blindly between the responses of two runs, in the browser. RUN_A and RUN_B are run folders (their last
evaluation counts) or files of `prompt` and `response`. The page names no run, draws the side of each response, and
hides names of models. Every vote is on disk in --out before the next question shows; the same command resumes.
--results prints win, tie and loss with their intervals, and needs no server. docs/vote.md has the details.

  adaptpo vote runs/dpo runs/metaapo
  adaptpo vote runs/dpo runs/metaapo --results
  adaptpo vote a.jsonl b.jsonl --host 0.0.0.0 --port 8000 --prompts 100 --overlap 0.3 --out votes/ab
"""


SANDBOX_HELP = """\
A world with a known true reward, small enough for a CPU: a policy, a reward model, offline pairs by writers of mixed
quality, and held-out prompts, all as ordinary Hugging Face folders and data files.

  adaptpo sandbox build --out sandbox
  adaptpo sandbox check sandbox
  adaptpo train sandbox/recipe.yaml
"""


CHECK_HELP = """\
Check whether training can be measured in a world: does the reward model agree with the true reward on the policy's own
responses, is there headroom, and do warm-up DPO and Online DPO each improve the policy? Trains both; takes minutes.
Exit status 1 if a check fails.
"""


TABLE_HELP = """\
Compare methods in sandbox worlds of several seeds: true reward, win rates against the SFT policy, share of prompts
annotated and time, beside the paper's figures if it has any. NAME is one of

  methods             offline, online and adaptive methods
  own                 a method of ours against the strongest others
  beta                how strongly the reference holds
  ablations           MetaAPO without its parts
  time                seconds of generation, annotation and training
  update-interval     optimizer steps between updates of the meta-learner
  num-generations     responses per prompt
  reward-models       annotators of different quality
  noise               wrong labels in the offline data
  selection           which prompts to generate for
  metapo              MetaPO and other weights of pairs
  metapo-features     MetaPO with fewer features, and with additional ones
  metapo-interval     optimizer steps between updates of MetaPO
  metapo-network      MetaPO's linear form against networks, and their learning rates
  metapo-validation   MetaPO's held-out pairs: how many, and which
  metapo-objective    MetaPO's objective on held-out pairs
  metapo-sensitivity  MetaPO's decay and lambda
  metapo-online       MetaPO on fresh pairs
  metapo-noise        MetaPO by share of wrong labels, and whether its weights find them
  metapo-filters      MetaPO against static filters of the pairs
  metapo-held-out     MetaPO with wrong labels in its held-out pairs alone
  stages              which data policies of different strength gain from, and what the boundary score predicted
  stages-slic         the same with SLiC-HF
  stages-beta         the same with beta 0.3, 1 and 3
  stages-recipe       the same with the paper's beta and learning rate
  stages-relabelled   the same with the reward model's labels on the offline pairs
  stages-candidates   pairs of three kinds, to tell diversity from quality
  stages-gentle       the same with a quarter of the learning rate
  stage-methods       methods that act on the stage

Every cell is an ordinary run in its own process and run directory below --out. Tables share worlds and runs. To resume
an interrupted table, start the same command again; with --jobs 0 it shows what has finished. A table may be spread over
several machines, each with worlds of its own (--first): --known joins the JSON files that they wrote.

  adaptpo sandbox table methods --seeds 5 --jobs 2
  adaptpo sandbox table noise --seeds 3 --methods dpo,metaapo --docs docs/noise.md
  adaptpo sandbox table methods --seeds 10 --jobs 0 --known first/methods.json second/methods.json
"""


ANNOTATE_HELP = """\
Annotate every response in a file with a reward. Rows have a prompt, read as in a run, and `response`, or `responses`, a
list. The output has the same rows with `reward`, or `rewards`; a missing reward is null. Responses to the same prompt
are compared with one another, even across rows. --reward takes the same values as the key `reward` of a
recipe, as YAML; docs/annotation.md lists the annotators. Answers of a judge or server are cached in --cache and not
requested again.

  adaptpo annotate samples.jsonl --reward org/reward-model --out rewards.jsonl
  adaptpo annotate samples.parquet --reward '{pairwise: llm-blender/PairRM-hf}' --out rewards.parquet
  adaptpo annotate samples.jsonl --reward '{judge: gpt-4o-mini, mode: all}' --out rewards.jsonl
"""


STUDY_HELP = """\
Compare methods on a real language model, at equal optimizer steps: a table as of `adaptpo sandbox table`, with the same
options. Prompts ask a question with two rules for the form of the answer; a judge that trains nothing checks the rules
in held-out answers. A seed is a world, with prompts and offline answers of its own. Rows: DPO; Online DPO; MetaAPO,
also with all offline pairs, and with a reference of each iteration; Online DPO at half the annotations; SELM; MetaPO;
pool KTO; and offline against own pairs from the SFT policy, with its stage. With one seed and several --runs, intervals
are between runs and hold for that seed's prompts alone. To resume an interrupted study, start the same command again.

  adaptpo sandbox study --model HuggingFaceTB/SmolLM2-135M-Instruct --jobs 2
  adaptpo sandbox study --model real-model --prompts 96 --heldout 48 --seeds 1 --rows 'DPO;Online DPO;MetaAPO'
  adaptpo sandbox study --model Qwen/Qwen2.5-1.5B-Instruct --prompts 6000 --heldout 1000 --set training.bf16=true
"""


DEMO_HELP = """\
Build the sandbox, align its policy with MetaAPO, and measure the result with the known true reward. Prints a table and
writes a report to open in a browser. Takes a few minutes on two cores. To resume an interrupted demo, start the same
command again.

With --model, align a real language model instead, to keep rules for the form of its answers, and show its answers
before and after. Meant for a small model and a CPU:

  adaptpo demo --model HuggingFaceTB/SmolLM2-135M-Instruct --out demo-real
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
Prompts are plain text; --apply-chat-template asks a chat model as a chat, and the results record which it was.

  adaptpo eval tasks --model runs/example/final --apply-chat-template --out tasks.json
  adaptpo eval tasks --model runs/example/final --include my_tasks --tasks my_task
"""
