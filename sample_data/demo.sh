#!/usr/bin/env bash
# The whole story in a folder demo/: data, plan, training and segmentation on 2 ranks, and how good the mask is.
# Needs volseg and its mpirun on PATH, which `make demo` sees to.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -e demo ] && [ ! -e demo/.made-by-demo ] && [ -n "$(ls -A demo)" ]; then
    echo "demo: is there already, and no earlier demo; move it away first" >&2
    exit 2
fi
mkdir -p demo
cd demo
rm -rf ellipsoids run mask.nii.gz mask_*
touch .made-by-demo
samples=../sample_data
begin=$SECONDS

step() { # the command, shown as one would type it, then run
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

step volseg generate ellipsoids --shape 48x48x48 --cases 4
step volseg plan-partition --shape 64x80x96 --ranks 2 --for train
step mpirun -n 2 volseg train "$samples/phantom" -o run --epochs 60 --validation 0
step mpirun -n 2 volseg segment "$samples/phantom_dicom" -o mask.nii.gz --model run --statistics --preview
step volseg evaluate mask.nii.gz "$samples/phantom_dicom_labels.nii.gz" --labels "$samples/phantom/dataset.json"

printf '\nDone in %d min %d s. Have a look at:\n' $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60))
for made in mask.nii.gz *.png run/*.png; do
    if [ -e "$made" ]; then echo "  demo/$made"; fi
done
