#!/usr/bin/env bash
# What storing a checkpoint in a format costs: the quiz on each, paired with the BF16 original.
#
#   scripts/quiz_formats.sh [MODEL] [FOLDER]
#
# MODEL is an unquantised checkpoint of the miniature (default: the built-in one); FOLDER gets the
# converted checkpoints and a file of rows for each. Weights are rounded to nearest, not calibrated.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-src/m2serve/miniature}
folder=${2:-build/formats}
python=${PYTHON:-.venv/bin/python}
sets=${SETS:+--sets $SETS}  # default: all
formats=${FORMATS:-fp8 nvfp4-modelopt mxfp4 int4-awq int4-ct-sym-g32 int8-ct}

mkdir -p "$folder"
# shellcheck disable=SC2086
"$python" -m training.quiz run "$folder/bf16.jsonl" --model "$model" $sets
for format in $formats; do
    "$python" tests/tiny_convert.py "$model" "$folder/$format" --format "$format"
    # shellcheck disable=SC2086
    "$python" -m training.quiz run "$folder/$format.jsonl" --model "$folder/$format" $sets
done
"$python" -m training.quiz compare "$folder/bf16.jsonl" $(printf "$folder/%s.jsonl " $formats)
