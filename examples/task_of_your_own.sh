#!/bin/sh
# A task of your own: check its folder, look at it, and grade the rows of a file by it. Nothing is stored.
set -eu
cd "$(dirname "$0")"

gadfly tasks check invoices
gadfly tasks show invoices | head -5
gadfly tasks try invoices data/invoices.jsonl

# A built-in task that runs each answer: SQL against two small databases.
gadfly tasks try sql data/queries.jsonl
