#!/bin/sh
# Measure on a GPU machine that has PyTorch, numba-cuda and timm but no network: what it lacks travels as wheels, in two loads below 60 MB.
#
#   benchmarks/on_device.sh fetch .wheels                  # here: into .wheels/1 and .wheels/2, for x86-64 Linux and PYTHON (3.12)
#   sh benchmarks/on_device.sh install .wheels/1 SITE      # there, with .wheels/1 carried; then the same with .wheels/2
#   sh benchmarks/on_device.sh render SITE OUT             # there, about five minutes: tests, render_cuda.py, registration.py; tables are copied to OUT
#   sh benchmarks/on_device.sh train SITE OUT              # there, about seven minutes: training.py
#
# Each line is a call of its own on a machine that stays on between them.
set -eu
here=$(dirname "$0")

fetch() {
    get() {
        folder=$1
        shift
        python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "${PYTHON:-3.12}" \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$folder" "$@"
    }
    get "$1/1" simpleitk nibabel pydicom pyyaml psutil roma deprecated 'fastcore>=1.12,<2'
    get "$1/2" diffdrr==0.6.1 torchio kornia kornia-rs nanodrr==0.1.7
    du -sh "$1/1" "$1/2"
}

install() {
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$2" "$1"/*.whl
}

with_site() {
    site=$1
    export PYTHONPATH="$site:$(pwd)" PYTHONUNBUFFERED=1 WANDB_MODE=disabled
    command -v git > /dev/null || { mkdir -p "$site/bin"; printf '#!/bin/sh\necho unknown\n' > "$site/bin/git"; chmod +x "$site/bin/git"; export PATH="$site/bin:$PATH"; }
}

keep() {
    find "$here" -name '*_cuda*.csv' -newer "$1" -exec cp {} "$2" \;
}

render() {
    with_site "$1"
    start=$(mktemp)
    python3 -m pytest -q -p no:cacheprovider tests/test_raymarch_cuda.py -k gpu || failed=1
    timeout 300 python3 "$here/render_cuda.py" || failed=1
    keep "$start" "$2"
    timeout 150 python3 "$here/registration.py" accuracy --device cuda || failed=1
    keep "$start" "$2"
    exit ${failed:-0}
}

train() {
    with_site "$1"
    start=$(mktemp)
    timeout 540 python3 "$here/training.py" scratch throughput --device cuda --height 128 --batch_size 116 --minutes 5 --count 200 2> "$2/training.log" || failed=1
    keep "$start" "$2"
    exit ${failed:-0}
}

case "${1:-}" in
    fetch | install | render | train) "$@" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
