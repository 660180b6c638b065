#!/usr/bin/env bash
# Repeats the comparison in docs/results: every method with 1, 2 and 6 labels, with small networks on a CPU, two runs in
# parallel. It needs the hippocampus task of the Medical Segmentation Decathlon as Dataset004_Hippocampus in nnUNet_raw.
# If it is interrupted, run it again and it continues where it stopped. It writes the report to ./report.
set -euo pipefail
examples="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export nnUNet_extTrainer="$(nnUNetv2_micd path):$examples/trainers"
export OMP_NUM_THREADS=1 nnUNet_def_n_proc=2
# By default glibc returns the memory of large tensors to the system and requests it again in every step.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

if [ ! -e "$nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans_small.json" ]; then
    nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres
    python "$examples/small_plans.py" Dataset004_Hippocampus
fi
export nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1
nnUNetv2_micd benchmark -d 4 -c 3d_fullres -p nnUNetPlans_small --baseline nnUNetTrainer_small -device cpu --jobs 2 \
    -tr nnUNetTrainer{MICD,MICD_allImages,MeanTeacher,UAMT,CPS,UniMatch,BCP,MCF,DHC,PseudoLabels}_small \
    -n 1 2 6 all --seeds 0 1 2 --longer 3
nnUNetv2_micd report -d 4 -p nnUNetPlans_small --baseline nnUNetTrainer_small -np 2 -o report
