#!/usr/bin/env bash
# What needs a GPU, in less than 12 minutes: its tests, and a finetuning of a bundled study there.
#
#   benchmarks/gpu.sh [PYTHON]     PYTHON: .venv/bin/python, with the test tools
#
# The finetuning is given 3 minutes; the steps that its last line counts are the pace of training. Nothing in studies/ changes.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "gpu.sh: torch sees no GPU here; nothing was checked" >&2
  exit 1
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cp -r studies/srresnet-x4 "$folder/"
"$python" -m pytest -q tests/trial -k gpu
"$python" -c "from autoq.cli import main; main()" finetune "$folder/srresnet-x4" --pick 4/4/8 --hours 0.05 --device cuda
