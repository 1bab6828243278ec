#!/usr/bin/env bash
# Score a checkpoint with plain lm-eval, which needs nothing of this project but the embedded tasks. Write to scores/.
#
#     bash examples/evaluate.sh CHECKPOINT [TASKS [LIMIT]]
#
# On a GPU: dtype=auto and --device cuda:0. docs/interoperation.md says why each option is set.
set -euo pipefail
CHECKPOINT=$1
TASKS=${2:-embedded_cloze,embedded_choice}
LIMIT=${3:-200}
INCLUDE=$(python -c "from sparseswaps.embedded import TASKS_FOLDER; print(TASKS_FOLDER)")
OMP_NUM_THREADS=1 python -m lm_eval --model hf \
    --model_args "pretrained=$CHECKPOINT,dtype=float32,softmax_dtype=float32" \
    --tasks "$TASKS" --include_path "$INCLUDE" --limit "$LIMIT" \
    --batch_size 16 --device cpu --output_path scores
