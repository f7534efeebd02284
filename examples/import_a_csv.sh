#!/bin/sh
# Import logged answers from a CSV file whose columns have other names, and look at what is stored.
#
# The references grade the answers, so every row gets a label. The column `topic` is kept as metadata.
set -eu
here=$(dirname "$0")

gadfly import "$here/data/answers.csv" \
    --map task=question --map model_answer=response --map solution=reference
gadfly import "$here/data/corrections.jsonl"

# A second import adds nothing.
gadfly import "$here/data/corrections.jsonl"
