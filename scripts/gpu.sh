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

CORES=$(env -u OMP_NUM_THREADS nproc)
export DEVICE=${DEVICE:-cuda} OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PARTS=${PARTS:-tests inference training translation}
BUDGET=${BUDGET:-8}
WHEELS=${WHEELS:-.wheels}
WORKERS=${WORKERS:-$([ "$DEVICE" = cuda ] && echo $(((CORES + 1) / 2)) || echo 1)}
END=$((START + $(awk "BEGIN {print int($BUDGET * 60)}")))
NEEDED="antlr4 babel bitarray datasets fairseq hydra hydra_plugins omegaconf pydantic sacremoses subword_nmt"
MARGIN=20  # seconds in which a part that has spent its budget still shows its table
LEAST=${LEAST:-30}  # seconds, below which a part is not begun
declare -A SHARES=([tests]=30 [inference]=45 [training]=30 [translation]=40)  # of the time, relative to one another

say() { echo "$(date +%T)  $*" | tee -a "${LOG:-/dev/null}"; }
fail() { echo "error: $*" >&2; exit 2; }

look() {  # prints the card, the versions and the missing modules, a line each
    "$PYTHON" -c "
import importlib.util, platform, sys, torch
card = 'cpu' if '$DEVICE' == 'cpu' else torch.cuda.get_device_name() if torch.cuda.is_available() else ''
print(card.replace(' ', '-'))
print('Python', platform.python_version(), 'torch', torch.__version__)
print(*(name for name in '$NEEDED'.split() if importlib.util.find_spec(name) is None))
"
}

install() {  # into a folder of its own, never among the system's packages
    [ -d "$WHEELS" ] || { say "there is no $WHEELS: run 'scripts/gpu.sh prepare' where there is a network"; return 1; }
    SITE=$(mktemp -d)
    trap 'rm -rf "$SITE"' EXIT
    # What travels as source needs Cython, numpy, ninja and a compiler here.
    find "$WHEELS/" -maxdepth 1 \( -name '*.whl' -o -name '*.tar.gz' \) -print0 | xargs -0 "$PYTHON" -m pip install --quiet \
        --disable-pip-version-check --no-index --no-deps --no-compile --no-build-isolation --target "$SITE" || return 1
    export PYTHONPATH=$PYTHONPATH:$SITE
    say "installed from $WHEELS after $(($(date +%s) - START)) s"
}

choose_command() {  # sets COMMAND to what runs a part in LIMIT seconds
    local measure=("$PYTHON" scripts/benchmark.py) budget=(--device "$DEVICE" --budget $((LIMIT - MARGIN)))
    case $1 in
        tests)
            COMMAND=("$PYTHON" -m pytest tests/gpu -m gpu -v --tb=short -p no:cacheprovider --timeout=120
                --durations=8 --numprocesses="$WORKERS" --dist worksteal --junitxml="$RESULTS/tests.xml") ;;
        inference)
            COMMAND=("${measure[@]}" inference "${budget[@]}" --output "$RESULTS/inference")
            [ "$DEVICE" = cuda ] || COMMAND+=(--models vit_small --engines eager --batches 1 --rounds 3 --warmup 1) ;;
        training)
            COMMAND=("${measure[@]}" training "${budget[@]}" --output "$RESULTS/training")
            [ "$DEVICE" = cuda ] || COMMAND+=(--models iwslt_transformer --engines eager --batches 4 --rounds 3 --warmup 1) ;;
        translation)
            COMMAND=("$PYTHON" scripts/benchmarks/translation_runs.py "${budget[@]}" --output "$RESULTS/translation.json")
            COMMAND+=(--data "$([ -d "$WHEELS/multi30k" ] && echo "$WHEELS" || echo "${UN_DATA:-../shared/data}")/multi30k") ;;
    esac
}

run_part() {  # of the seconds that are left it gets its share
    local part=$1 left=$((END - $(date +%s))) began=$(date +%s) code seconds ends
    LIMIT=$((left * SHARES[$part] / $2))
    if [ "$LIMIT" -lt "$LEAST" ]; then say "$part: not reached, $left s were left"; return 1; fi
    choose_command "$part"
    say "$part: at most $LIMIT s: ${COMMAND[*]}"
    [ "$part" = tests ] && ends=INT || ends=TERM  # pytest reports what it has when it is interrupted
    timeout --signal=$ends --kill-after=10 "$LIMIT" "${COMMAND[@]}" 2>&1 | tee "$RESULTS/$part.log"
    code=${PIPESTATUS[0]} seconds=$(($(date +%s) - began))
    case $code in
        0) say "$part: done in $seconds s" ;;
        124 | 137) say "$part: stopped after $seconds s; what it had measured is kept" ;;
        *) say "$part: ended with code $code after $seconds s" ;;
    esac
    return "$code"
}

summarise() {  # the outcomes and every part's table
    printf '# %s\n\n`scripts/gpu.sh` with BUDGET=%s PARTS="%s" at %s.\n\n' "$CARD" "$BUDGET" "$PARTS" \
        "$(git rev-parse --short HEAD 2>/dev/null || echo 'an unknown commit')"
    sed 's/^/    /' "$LOG"
    for part in tests inference training translation; do
        [ -f "$RESULTS/$part.log" ] && printf '\n## %s\n\n' "$part" &&
            grep -E '^\||runs? in [0-9.]+ minutes|^FAILED|^ERROR|passed|failed' "$RESULTS/$part.log"
    done
}

total=0 failed=0
for part in $PARTS; do
    [ -n "${SHARES[$part]:-}" ] || fail "PARTS has $part; there are ${!SHARES[*]}"
    total=$((total + SHARES[$part]))
done
found=$(look) || exit 1
{ read -r CARD; read -r VERSIONS; read -r MISSING; } <<<"$found"
[ -n "$CARD" ] || fail "torch finds no GPU (nvidia-smi shows what the driver sees); DEVICE=cpu rehearses without one"
RESULTS=${OUTPUT:-results/gpu}/$CARD
LOG=$RESULTS/log.txt
mkdir -p "$RESULTS" || exit 1
say "$CARD, $VERSIONS, $CORES cores, $BUDGET minutes"
if [ -n "$MISSING" ]; then
    say "missing: $MISSING"
    install || failed=1
fi
for part in $PARTS; do
    run_part "$part" "$total" || failed=1
    total=$((total - SHARES[$part]))
    summarise >"$RESULTS/README.md"
done
say "$([ $failed = 0 ] && echo 'all parts went well' || echo 'not all parts went well'): $RESULTS/README.md"
exit $failed
