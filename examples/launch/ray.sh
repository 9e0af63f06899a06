#!/usr/bin/env bash
# A Ray cluster: learners and workers that draw, placed where there is room; a worker that dies is replaced.
#     examples/launch/ray.sh my_recipe.yaml
set -euo pipefail
recipe=${1:?give a recipe: demo, smoke, or a file of yours}

accord cluster up --ray auto        # one that runs here, else a new one; other machines: ray start --address=HOST:6379
accord run "$recipe" scale.ray=auto "scale.ranks=${RANKS:-1}" "scale.rollout_workers=${WORKERS:-2}"
accord cluster down
