#!/usr/bin/env bash
# One machine: every training stage of a recipe in RANKS processes, one a GPU (on a CPU they share its threads).
#     RANKS=8 examples/launch/one_node.sh my_recipe.yaml
set -euo pipefail
recipe=${1:?give a recipe: demo, smoke, or a file of yours}
ranks=${RANKS:-2}

accord run "$recipe" "scale.ranks=$ranks" --dry-run    # what lies where, memory, seconds an iteration
accord run "$recipe" "scale.ranks=$ranks"              # the same command goes on after a kill

# A single stage, by hand:
#     torchrun --nproc-per-node "$ranks" -m accord sft --model base/model --data demos.jsonl -o sft
# Samples by vLLM beside the learners, in an environment of its own:
#     accord doctor --vllm --make
#     accord run "$recipe" "scale.ranks=$ranks" scale.rollout=vllm
