#!/usr/bin/env bash
# Tests and measures on one NVIDIA GPU in BUDGET minutes, without the network; docs/gpu.md says more.
#
#   scripts/gpu.sh prepare     where there is a network: gather in .wheels what an offline GPU machine lacks
#   scripts/gpu.sh             install from .wheels where something is missing, then run the parts, the most telling first
#
# Variables: BUDGET=8, PARTS="tests inference training translation", OUTPUT=results/gpu, WHEELS=.wheels, PYTHON (default
# .venv's, else python3), WORKERS (test processes), DEVICE=cuda; DEVICE=cpu rehearses everything, small.
# Each part has its share of the time that is left, and what it has measured when that is over stays. The exit code is 0
# where every part went well.
set -uo pipefail
cd "$(dirname "$0")/.."
START=$(date +%s)
if [ "${1:-}" = prepare ]; then exec scripts/gpu_wheels.sh; fi

export DEVICE=${DEVICE:-cuda} OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PARTS=${PARTS:-tests inference training translation}
WHEELS=${WHEELS:-.wheels}
WORKERS=${WORKERS:-$([ "$DEVICE" = cuda ] && echo $((($(nproc) + 1) / 2)) || echo 1)}
END=$((START + ${BUDGET:-8} * 60))
MODULES="antlr4, babel, bitarray, datasets, fairseq, hydra, hydra_plugins.hydra_joblib_launcher, omegaconf, pydantic, sacremoses, subword_nmt"
declare -A SHARES=([tests]=30 [inference]=45 [training]=25 [translation]=35)  # of the time, relative to one another

say() { echo "$(date +%T)  $*" | tee -a "${LOG:-/dev/null}"; }

install_lacking() {  # into a folder of its own, never among the system's packages
    "$PYTHON" -c "import $MODULES" 2>/dev/null && return
    if [ ! -d "$WHEELS" ]; then
        say "packages are missing and there is no $WHEELS: run 'scripts/gpu.sh prepare' where there is a network"
        return 1
    fi
    local files=("$WHEELS"/*.whl "$WHEELS"/*.tar.gz)
    SITE=$(mktemp -d) && trap 'rm -rf "$SITE"' EXIT
    # fairseq as source, where it travels so, needs Cython, numpy, ninja and a compiler here.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-build-isolation \
        --target "$SITE" $(ls "${files[@]}" 2>/dev/null) || return 1
    export PYTHONPATH=$SITE:$PYTHONPATH
    "$PYTHON" -c "import $MODULES" && say "installed from $WHEELS in $(($(date +%s) - START)) s"
}

choose_command() {  # sets COMMAND to what runs a part in LIMIT seconds
    local measure=("$PYTHON" scripts/benchmark.py)
    case $1 in
        tests)
            COMMAND=("$PYTHON" -m pytest tests -m gpu -q -p no:cacheprovider --timeout=120 --durations=8
                --numprocesses="$WORKERS" --dist worksteal --junitxml="$RESULTS/tests.xml") ;;
        inference) COMMAND=("${measure[@]}" inference --device "$DEVICE" --output "$RESULTS/inference.json") ;;
        training) COMMAND=("${measure[@]}" compile --output "$RESULTS/training.json") ;;
        translation)
            COMMAND=("$PYTHON" scripts/benchmarks/translation_runs.py --device "$DEVICE" --budget $((LIMIT - 15))
                --output "$RESULTS/translation.json")
            if [ -d "$WHEELS/multi30k" ]; then COMMAND+=(--data "$WHEELS/multi30k"); fi ;;
        *) say "PARTS has $1, which is none of ${!SHARES[*]}"; exit 2 ;;
    esac
}

run_part() {  # of the seconds that are left it gets its share
    local part=$1 left=$((END - $(date +%s))) began=$(date +%s)
    LIMIT=$((left * ${SHARES[$part]:-1} / $2))
    choose_command "$part"
    if [ "$LIMIT" -lt 20 ]; then say "$part: not reached, $left s are left"; return 1; fi
    say "$part: at most $LIMIT s: ${COMMAND[*]}"
    timeout --kill-after=10 "$LIMIT" "${COMMAND[@]}" 2>&1 | tee "$RESULTS/$part.log"
    local code=${PIPESTATUS[0]} seconds=$(($(date +%s) - began))
    case $code in
        0) say "$part: done in $seconds s" ;;
        124 | 137) say "$part: stopped after $seconds s; what it had measured is kept" ;;
        *) say "$part: failed with exit code $code after $seconds s" ;;
    esac
    return "$code"
}

CARD=$("$PYTHON" -c "
import torch
found = torch.cuda.is_available()
print(torch.cuda.get_device_name().replace(' ', '-') if '$DEVICE' == 'cuda' and found else '$DEVICE' if '$DEVICE' != 'cuda' else '')
") || exit 1
if [ -z "$CARD" ]; then
    echo "error: torch finds no GPU (nvidia-smi shows what the driver sees); DEVICE=cpu rehearses without one" >&2
    exit 1
fi
RESULTS=${OUTPUT:-results/gpu}/$CARD
mkdir -p "$RESULTS" && LOG=$RESULTS/log.txt || exit 1
say "$CARD, $(nproc) cores, $("$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'), ${BUDGET:-8} minutes"
failed=0
install_lacking || failed=1
rest=0
for part in $PARTS; do rest=$((rest + ${SHARES[$part]:-1})); done
for part in $PARTS; do
    run_part "$part" "$rest" || failed=1
    rest=$((rest - ${SHARES[$part]:-1}))
done
say "$([ $failed = 0 ] && echo 'all parts went well' || echo 'not all parts went well'): $RESULTS"
exit $failed
