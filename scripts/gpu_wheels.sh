#!/usr/bin/env bash
# Gathers in .wheels what an offline GPU machine lacks, at most 60 MiB: `scripts/gpu.sh prepare` calls this.
#
# That machine has torch, timm, Lightning, torchmetrics, scikit-learn, pandas, matplotlib, jinja2, hypothesis, pytest and
# sacrebleu for Python TARGET (default 3.12) on x86-64 Linux; LACKING is what else the code imports, wandb apart.
# Variables: TARGET, PYTHON (any with pip), WHEELS=.wheels, UN_DATA=../shared/data (its multi30k travels along).
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=${TARGET:-3.12}
WHEELS=${WHEELS:-.wheels}
UN_DATA=${UN_DATA:-../shared/data}
MAX_MEBIBYTES=60
LACKING=(hydra-core omegaconf hydra-joblib-launcher datasets dill multiprocess pydantic pydantic-core annotated-types
    typing-inspection typing-extensions sacremoses subword-nmt mock Babel bitarray)
SOURCES=(antlr4-python3-runtime fairseq-fixed)  # published without wheels
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 any)

fail() { echo "error: $*" >&2; exit 1; }

fetch() {  # pip download of pinned versions
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --constraint constraints.txt "$@"
}

find_target() {  # prints a program that is Python TARGET, from the path or pyenv's folder
    local candidate
    for candidate in "python$TARGET" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$TARGET".*/bin/python; do
        if "$candidate" -c '' 2>/dev/null; then echo "$candidate"; return; fi
    done
    return 1
}

fetch_source() {  # into $SCRATCH/<name>
    mkdir "$SCRATCH/$1"
    fetch --no-binary=:all: --no-build-isolation --dest "$SCRATCH" "$1"
    tar -xzf "$(find "$SCRATCH" -maxdepth 1 -name "${1//-/[-_]}-*.tar.gz")" --strip-components=1 -C "$SCRATCH/$1"
}

build_sources() {
    local target source
    for source in "${SOURCES[@]}"; do fetch_source "$source"; done
    # Three extensions of fairseq link torch, take minutes to compile and serve models that are not used here.
    sed -i -e '/^extensions.extend(/,/^if "READTHEDOCS"/{/^if "READTHEDOCS"/!d}' \
        -e 's/^from torch.utils import cpp_extension/cmdclass = {}/' "$SCRATCH/fairseq-fixed/setup.py"
    if target=$(find_target); then
        "$target" -m venv "$SCRATCH/venv"
        "$SCRATCH/venv/bin/pip" install --quiet --disable-pip-version-check setuptools wheel cython numpy
        "$SCRATCH/venv/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --wheel-dir "$WHEELS" "${SOURCES[@]/#/$SCRATCH/}"
    else
        echo "There is no python$TARGET here: ${SOURCES[*]} travel as source, and the GPU machine builds them."
        for source in "${SOURCES[@]}"; do tar -czf "$WHEELS/$source.tar.gz" -C "$SCRATCH" "$source"; done
    fi
}

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
rm -rf "$WHEELS" && mkdir -p "$WHEELS"
WHEELS=$(cd "$WHEELS" && pwd)
fetch --only-binary=:all: --python-version "$TARGET" --implementation cp --abi "cp${TARGET/./}" --abi abi3 --abi none \
    "${PLATFORMS[@]/#/--platform=}" --dest "$WHEELS" "${LACKING[@]}" || fail "no wheels for Python $TARGET from pip"
build_sources
if [ -f "$UN_DATA/multi30k/train.parquet" ]; then
    mkdir "$WHEELS/multi30k" && cp "$UN_DATA"/multi30k/*.parquet "$WHEELS/multi30k/" && chmod u+w "$WHEELS"/multi30k/*
else
    echo "UN_DATA=$UN_DATA has no multi30k/train.parquet: translators will not be trained."
fi
mebibytes=$(du -sm "$WHEELS" | cut -f1)
[ "$mebibytes" -le "$MAX_MEBIBYTES" ] || fail "$WHEELS holds $mebibytes MiB, over $MAX_MEBIBYTES"
echo "$WHEELS holds $(find "$WHEELS" -maxdepth 1 -type f | wc -l) packages, $mebibytes MiB."
