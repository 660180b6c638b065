#!/usr/bin/env bash
# Repeats the comparison in docs/results: most methods and controls with 1 label, or with the numbers that are given
# (./leaderboard.sh 2 6), with small networks on a CPU, two runs in parallel. First the unsupervised weight of each method
# is tuned, all in the same way. It needs the hippocampus task of the Medical Segmentation Decathlon as
# Dataset004_Hippocampus in nnUNet_raw. If it is interrupted, run it again and it continues where it stopped. It writes the
# report to ./report.
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
labels=("${@:-1}")
methods=(nnUNetTrainer{MICD,MICD_paper,FilterMatch,MeanTeacher,UAMT,CPS,CPS_VOC,UniMatch,BCP,MCF,DHC}_small
    nnUNetTrainer{M3HL,C3S3,MandN,SPCL,SPCL_pretrained,MEDL,TransMedSeg,CAD}_small
    nnUNetTrainerPseudoLabels{,_fullLength}_small)
controls=(nnUNetTrainer{EMA,BCP_LabeledOnly,MICD_SupervisedOnly}_small)
options=(-d 4 -c 3d_fullres -p nnUNetPlans_small -device cpu --jobs 2)
nnUNetv2_micd tune "${options[@]}" -n "${labels[@]}" -tr "${methods[@]}" --seeds 0
nnUNetv2_micd benchmark "${options[@]}" -n "${labels[@]}" all -tr "${controls[@]}" "${methods[@]}" --seeds 0 1 2 \
    --baseline nnUNetTrainer_small --longer 2 4 --mean-of-both --tuned
nnUNetv2_micd report -d 4 -p nnUNetPlans_small --baseline nnUNetTrainer_small -np 2 -o report
