#!/bin/sh
# Copies the seed corpus to where cargo-fuzz looks for it.
set -eu
cd "$(dirname "$0")"
mkdir -p corpus/scenario
cp ../scenarios/*.yaml ../crates/scenario/tests/bad/*.yaml corpus/scenario/
ls corpus/scenario | wc -l
