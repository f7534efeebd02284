#!/bin/sh
# Take a critic from this deployment to another one: push_and_pull.sh VERSION FOLDER HOME
#
# FOLDER may be any address that fsspec opens, such as s3://bucket/critics/3. HOME is the other deployment's folder for
# local data; here it is on the same machine, with a database of its own.
set -eu
version=$1
folder=$2
home=$3

gadfly critics push "$version" "$folder"
(cd "$folder" && sha256sum --quiet --check SHA256SUMS)

# Every file is checked, and the base model must be the same. Then the critic is the other deployment's candidate:
# `gadfly promote` makes it live after every engine there has answered its probes as recorded.
env -u GADFLY_DATABASE_URL gadfly critics pull "$folder" --home "$home"
