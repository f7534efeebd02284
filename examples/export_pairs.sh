#!/bin/sh
# Write training data for other programs: preference pairs and conversations, in the columns that TRL reads.
#
#     datasets.load_dataset("parquet", data_files="pairs.parquet")
set -eu
out=${1:-.}

gadfly export "$out/pairs.parquet" --as pairs
gadfly export "$out/conversations.jsonl" --as sft
gadfly export "$out/interactions.jsonl"
