#!/usr/bin/env bash
# usage: docs/strategies.sh BIN_FOLDER
# Makes the pictures of strategies.md anew: plans of a small GPT on 2 to 4 ranks.
set -eu
bin=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
draw() { # draw NAME RANKS OPTION...
    local name=$1 ranks=$2
    shift 2
    "$bin/weftrun" -n "$ranks" "$bin/train_gpt" --model tiny --layers 2 --width 64 --heads 2 --text "${BASH_SOURCE[0]}" --context 32 --batch 8 --max-steps 1 --sample 0 \
        --quiet --draw "$here/strategies-$name.svg" "$@"
}
draw data 2 --mesh data=2
draw zero 2 --mesh data=2 --zero 2 --draw-boxes 12
draw tensor 2 --mesh tensor=2
draw pipeline 2 --mesh pipeline=2 --accumulate 4 --draw-boxes 20
draw bubble 2 --mesh pipeline=2 --accumulate 4 --schedule zero-bubble --draw-boxes 26
draw mesh 4 --mesh data=2,tensor=2
