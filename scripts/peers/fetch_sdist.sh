#!/usr/bin/env bash
# Fetch one source distribution, check its hash, unpack it.
#
#   scripts/peers/fetch_sdist.sh NAME VERSION SHA256 FOLDER
#
# Prints the folder of the sources. What is there already is not fetched again.
set -euo pipefail
name=$1 version=$2 sha256=$3 folder=$4
python=${PYTHON:-python3}
file=${name//-/_}-$version.tar.gz
mkdir -p "$folder"
if [ ! -f "$folder/$file" ]; then
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary "$name" \
        -d "$folder" "$name==$version" >&2
fi
echo "$sha256  $folder/$file" | sha256sum --check --quiet >&2
[ -d "$folder/${file%.tar.gz}" ] || tar -xzf "$folder/$file" -C "$folder"
echo "$folder/${file%.tar.gz}"
