#!/bin/sh
# Import a test set on the held-out side: training never sees its questions, and the gate measures on them.
#
# The questions have references and no answers. The actor answers them when a run is evaluated.
set -eu
here=$(dirname "$0")

gadfly import "$here/data/test_set.json" --split heldout
