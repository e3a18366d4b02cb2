#!/usr/bin/env bash
# usage: run.sh BIN_FOLDER CASE
# Runs the samples as people do, alone and on two ranks, on a few small images and a short text that are made here.
set -u
bin=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export WEFT_THREADS=1
unset NO_COLOR WEFT_WIRE WEFT_RANK WEFT_WORLD_SIZE

fail() {
    echo "FAILED: $*"
    exit 1
}
has() { # has WHAT PATTERN TEXT
    grep -qE -e "$2" <<<"$3" || fail "$1: expected something like '$2', got '$3'"
}
lacks() { # lacks WHAT PATTERN TEXT
    ! grep -qE -e "$2" <<<"$3" || fail "$1: expected nothing like '$2', got '$3'"
}

# 8x8 images of four classes, each brightest in a quarter of its own, and a text that repeats itself.
python3 - <<'PYTHON' || fail "python3 could not make the data"
import random
random.seed(1)
def idx(path, dims, body):
    with open(path, "wb") as file:
        file.write(bytes([0, 0, 8, len(dims)]) + b"".join(d.to_bytes(4, "big") for d in dims) + bytes(body))
for name, rows in (("train", 200), ("test", 60)):
    labels = [i % 4 for i in range(rows)]
    idx(f"{name}-labels", [rows], labels)
    idx(f"{name}-images", [rows, 8, 8], [random.randrange(60) + 190 * (p // 32 * 2 + p % 8 // 4 == k) for k in labels for p in range(64)])
with open("text", "w") as file:
    file.write("the quick brown fox jumps over the lazy dog. " * 100)
PYTHON

# The samples with small sizes. Their names are those of functions here, and of programs in $bin.
data=(--images train-images --labels train-labels --test-images test-images --test-labels test-labels --classes 4)
arguments() { # sets `command` to a small run of sample $1
    case $1 in
        train_images) command=("$bin/train_images" --model mlp --batch 24 --epochs 3 "${data[@]}") ;;
        train_text) command=("$bin/train_text" --text text --layers 1 --heads 2 --width 16 --context 16 --batch 8 --dropout 0.1
            --sample 20 --decay-steps 100) ;;
        train_gpt) command=("$bin/train_gpt" --model tiny --layers 1 --width 16 --text text --context 16 --batch 8 --warmup 2 --sample 20) ;;
        fit_custom) command=("$bin/fit_custom" --epochs 1) ;;
        train_recommender) command=("$bin/train_recommender" --rows 320 --fields 3 --vocabulary 20 --size 4 --hidden 8 --batch 24) ;;
    esac
}
small() { # small RANKS SAMPLE ARGUMENT...: runs it; RANKS 0 is alone, without the launcher
    local ranks=$1 sample=$2 command
    shift 2
    arguments "$sample"
    if [ "$ranks" = 0 ]; then "${command[@]}" "$@"; else "$bin/weftrun" -n "$ranks" "${command[@]}" "$@"; fi
}
ends() { # ends STATUS PATTERN RANKS SAMPLE ARGUMENT...: what it says matches
    local expected=$1 pattern=$2 said
    shift 2
    said=$(small "$@" 2>&1 </dev/null)
    [ $? = "$expected" ] || fail "$* should end with $expected: $said"
    has "$*" "$pattern" "$said"
}
samples=(train_images train_text train_gpt fit_custom train_recommender)

case_help() {
    local sample text option
    for sample in "${samples[@]}"; do
        text=$("$bin/$sample" --help) || fail "$sample --help does not succeed"
        has "$sample --help" "^usage: .*$sample \[options\]" "$text"
        for option in log plot checkpoint resume max-steps seed quiet; do has "$sample --help" "^  --$option" "$text"; done
        has "$sample --help" "^  --\[no-\]stop-on-nan .*\(on\)" "$text"
    done
}

case_bad_options() {
    local sample
    for sample in "${samples[@]}"; do
        ends 2 "unknown option '--frobnicate'; --help" 0 "$sample" --frobnicate
        ends 2 "needs a number, not many" 0 "$sample" --epochs many
        ends 2 "--epochs needs a number" 0 "$sample" --epochs
        ends 2 "takes no value" 0 "$sample" --quiet=yes
        ends 0 "" 0 "$sample" --epochs=1 --max-steps=1 --no-stop-on-nan
    done
    ends 2 "there are: tiny gpt2 medium large xl" 0 train_gpt --model huge
    ends 2 "either --data FILE .* or --text FILE" 0 train_gpt --data ids
    ends 2 "--precision bf17: .*it is f32, bf16, f16 or fp8" 0 train_gpt --precision bf17
    ends 2 "there are mlp, cnn, resnet20 and resnet50" 0 train_images --model transformer
    ends 2 "there is no compression 'zip': there are none, bf16, fp8" 0 train_images --compress zip
    ends 2 "compress.ratio is 2" 0 train_images --compress topk:2
    ends 2 "compress-warmup = '-1'" 2 train_images --compress bf16 --compress-warmup -1
    ends 0 "sends [1-9][0-9]*" 2 train_images --compress powersgd:2 --max-steps 2 --describe
    local said
    said=$("$bin/train_text" 2>&1)
    [ $? = 2 ] || fail "train_text needs no text: $said"
    has "train_text" "--text FILE is needed" "$said"
}

case_bad_data() {
    local ranks
    head -c 5000 train-images >short
    printf 'GIF89a, which is no images of ours' >foreign
    gzip -c train-images | head -c 2000 >broken.gz
    for ranks in 0 2; do
        ends 1 "train_images: .*'/nowhere/images'" $ranks train_images --images /nowhere/images
        ends 1 "train_images: .*short" $ranks train_images --images short
        ends 1 "train_images: .*foreign" $ranks train_images --images foreign
        ends 1 "train_images: .*broken.gz" $ranks train_images --images broken.gz
        ends 1 "train_images: .*train-labels" $ranks train_images --images test-images
        ends 1 "train_images: .*train-labels.* row [0-9]+|train_images: .*row [0-9]+.*train-labels" $ranks train_images --classes 3
        ends 1 "train_text: .*/nowhere/text" $ranks train_text --text /nowhere/text
    done
}

case_bad_paths() {
    local sample ranks option
    for sample in "${samples[@]}"; do
        for option in log plot checkpoint; do
            ranks=$([ $option = checkpoint ] && echo 2 || echo 0)
            ends 1 "$sample: .*/nowhere/at/all" "$ranks" "$sample" --$option /nowhere/at/all
        done
        ends 1 "resume needs checkpoint_path" 0 "$sample" --resume
    done
    said=$(small 0 train_images --checkpoint /nowhere/at/all 2>&1)
    lacks "a checkpoint that cannot be written" "epoch" "$said"
}

# The log's last line tells what happened also when it went wrong.
case_errors_in_the_log() {
    ends 1 "train_images: step [0-9]+: the loss is (nan|inf), first on rank 0" 0 train_images --rate 1e30 --log log
    has "the last line" '"event":"error".*WEFT_E_NAN.*step [0-9]+' "$(tail -n 1 log)"
    ends 0 "epoch 3 done" 0 train_images --rate 1e30 --no-stop-on-nan --log log
    has "the last line" '"event":"end"' "$(tail -n 1 log)"
}

# A disk that fills up, for which a limit on the size of files stands: what was saved stays, and the file is named.
case_full_disk() {
    trap '' XFSZ
    small 0 train_images --quiet --max-steps 2 --checkpoint model >out 2>&1 || fail "$(cat out)"
    cp model copy
    (ulimit -f 8 && ends 1 "train_images: .*model" 0 train_images --quiet --checkpoint model --resume) || exit 1
    cmp model copy || fail "what was saved is lost"
    ls -A | grep -q '^\.\?model.' && fail "something is left beside the checkpoint: $(ls -A)"
    (ulimit -f 1 && ends 1 "train_images: .*log" 0 train_images --quiet --log log) || exit 1
    ends 1 "^\[1\] train_images: .*rank 0" 2 train_images --quiet --log /dev/full
}

# Two steps and two more are four steps, bit for bit.
resumes() { # resumes SAMPLE
    local ranks
    for ranks in 0 2; do
        small $ranks "$1" --quiet --max-steps 4 --checkpoint whole >out 2>&1 || fail "$1 on $ranks: $(cat out)"
        small $ranks "$1" --quiet --max-steps 2 --checkpoint parts >out 2>&1 || fail "$1 on $ranks: $(cat out)"
        cmp -s whole parts && fail "$1 on $ranks: nothing changed in two steps"
        small $ranks "$1" --quiet --max-steps 4 --checkpoint parts --resume >out 2>&1 || fail "$1 on $ranks: $(cat out)"
        cmp whole parts || fail "$1 on $ranks: the checkpoints differ"
        rm whole parts
    done
}
case_images_resume() { resumes train_images; }
case_text_resumes() { resumes train_text; }
case_gpt_resumes() { resumes train_gpt; }
case_custom_resumes() { resumes fit_custom; }
case_recommender_resumes() { resumes train_recommender; }

case_log_and_plot() {
    local ranks
    for ranks in 1 2; do
        small $ranks train_images --quiet --log log --plot plot.svg >out 2>&1 || fail "$(cat out)"
        [ -s out ] && fail "--quiet says: $(cat out)"
        python3 - log plot.svg $ranks <<'PYTHON' || fail "the files of a run on $ranks"
import json, sys, xml.dom.minidom
events = [json.loads(line) for line in open(sys.argv[1])]
end = events[-1]
assert events[0]["event"] == "start" and end["event"] == "end", events
assert sum(e["event"] == "epoch" for e in events) == 3 and sum(e["event"] == "step" for e in events) == 27, events
for key in ("test_accuracy", "test_loss", "train_loss", "train_seconds", "samples_per_second"):
    assert isinstance(end[key], (int, float)), (key, end)
assert end["ranks"] == int(sys.argv[3]) and end["step"] == 27 and end["test_accuracy"] > 0.9, end
assert xml.dom.minidom.parse(sys.argv[2]).documentElement.tagName == "svg"
PYTHON
    done
}

# Through a pipe: whole lines, of rank 0 alone, without colours.
case_plain_lines() {
    local text
    text=$(small 2 train_images 2>&1) || fail "$text"
    has "progress" "^\[0\] epoch 3/3  step 27  loss [0-9.]+  [0-9]+ samples/s  waiting [0-9]+ %  left 0:00" "$text"
    has "progress" "^\[0\] epoch 3 done:  train loss [0-9.]+  test loss [0-9.]+  test accuracy [0-9.]+ %" "$text"
    lacks "progress" $'\r|\033' "$text"
    lacks "progress" "^\[1\]" "$text"
    text=$(small 2 train_text --max-steps 3 2>&1) || fail "$text"
    has "the end" "^\[0\] .*" "$text"
    lacks "the end" "^\[1\]" "$text"
    has "tokens" "tokens/s" "$text"
    # 4500 letters are 36 batches: more steps than that take another epoch.
    ends 0 "^epoch 2 done:" 0 train_text --max-steps 40
}

# A file of 16-bit ids, in bf16: the loss falls, and at the end stand the rate and a sample as numbers.
case_gpt_on_ids() {
    local said
    python3 -c 'import struct; open("ids", "wb").write(b"".join(struct.pack("<H", (i * i) % 13) for i in range(4000)))'
    said=$("$bin/train_gpt" --model tiny --layers 1 --width 32 --data ids --vocabulary 16 --context 16 --batch 8 --warmup 2 --rate 0.02 \
        --precision bf16 --epochs 4 --sample 5 --peak 1 2>&1) || fail "$said"
    has "the loss" "^epoch 4 done:  train loss 0[.]" "$said"
    has "the rate" "M parameters, [0-9]+ tokens/s, [0-9.]+ TFLOP/s, [0-9.]+ % of 1" "$said"
    has "the sample" "^([0-9]+ ){5}" "$said"
}

# Made clicks: most of what the hidden vectors tell is found (chance is 0.69, they themselves have 0.43), to the same loss on two ranks.
case_recommender() {
    local ranks said
    for ranks in 0 2; do
        said=$(small $ranks train_recommender --rows 30000 --fields 4 --vocabulary 40 --size 8 --hidden 16 --rate 0.005 --batch 256 --epochs 4 --log "log-$ranks") ||
            fail "$ranks ranks: $said"
        has "the end" "M vectors of 8, [0-9]+ samples/s; who knows the hidden vectors has a test loss of 0[.]4[0-9]+" "$said"
        at_most "the test loss on $ranks ranks" "$(figure test_loss "log-$ranks")" 0.47
        at_least "the accuracy on $ranks ranks" "$(figure test_accuracy "log-$ranks")" 0.77
    done
    at_most "what ranks change" "$(figure test_loss log-0)" "$(awk -v x="$(figure test_loss log-2)" 'BEGIN { print x * 1.001 }')"
    make_clicks clicks 6000 1
    make_clicks clicks-test 1500 2
    small 2 train_recommender --data clicks --test clicks-test --fields 20 --vocabulary 50 --epochs 3 --rate 0.01 --quiet --log log || fail "clicks of a file: $?"
    at_least "accuracy on a file" "$(figure test_accuracy log)" 0.78
    ends 1 "train_recommender: .*nowhere" 2 train_recommender --data nowhere
    ends 2 "--fields at least 2" 0 train_recommender --fields 1
}

# A ResNet-50 on made images of bytes, cropped and mirrored at random on the device: the same crops on one rank and on two.
case_resnet50() {
    local ranks said
    local command=("$bin/train_images" --model resnet50 --made 8 --made-rows 8 --batch 8 --augment --classes 4 --epochs 2)
    for ranks in 1 2; do
        said=$("$bin/weftrun" -n $ranks "${command[@]}" --peak 1 --log "log-$ranks" 2>&1) || fail "$ranks ranks: $said"
        has "the rate" "[0-9]+ images/s, [0-9.]+ TFLOP/s, [0-9.]+ % of 1$" "$said"
    done
    at_most "what ranks change" "$(awk -v a="$(figure train_loss log-1)" -v b="$(figure train_loss log-2)" 'BEGIN { print a > b ? a - b : b - a }')" 2e-3
    said=$("${command[@]}" --precision bf16 --describe --max-steps 1 2>&1) || fail "bf16: $said"
    has "the plan" " conv2d .* stage4.block3.conv3" "$said"
    ends 2 "--made 5000 is a side of 1 to 4096" 0 train_images --made 5000
}

# A wire of the program's own carries the training, to what the TCP wire comes to; the environment still has its say.
case_own_wire() {
    local ranks said loss
    for ranks in 1 2 4; do
        said=$("$bin/weftrun" -n $ranks "$bin/wire_template" 2>&1) || fail "$ranks ranks: $said"
        [ $ranks = 1 ] || has "$ranks ranks" "^\[0\] .*rank 0 of $ranks, .*wire local, .*: loss 0[.][0-9]+$" "$said"
        loss=${said##* }
        said=$(WEFT_WIRE=tcp "$bin/weftrun" -n $ranks "$bin/wire_template" 2>&1) || fail "$ranks ranks over tcp: $said"
        [ $ranks = 1 ] || has "$ranks ranks over tcp" "wire tcp, " "$said"
        [ "$loss" = "${said##* }" ] || fail "$ranks ranks: the loss is $loss, over tcp ${said##* }"
    done
    said=$(WEFT_WIRE=pigeon "$bin/weftrun" -n 2 "$bin/wire_template" 2>&1) && fail "a wire that there is not: $said"
    has "a wire that there is not" "there is no wire 'pigeon' .*shm, tcp.*, the program's own local" "$said"
}

# On a terminal: one line that is written over, bold where colour is wanted.
case_live_line() {
    local command text
    script -qec true /dev/null </dev/null >/dev/null 2>&1 || { echo "script(1) gets no terminal here: skipped" && exit 77; }
    arguments train_images
    terminal() { script -qec "${command[*]}" /dev/null </dev/null; }
    text=$(terminal) || fail "$text"
    has "the live line" $'\r\033\\[K''epoch 1/3 .*loss '$'\033\\[1m' "$text"
    text=$(NO_COLOR=1 terminal) || fail "$text"
    has "without colour" $'\r\033\\[K''epoch 1/3 .*loss [0-9]' "$text"
    lacks "without colour" $'\033\\[1m' "$text"
    text=$(NO_COLOR='' terminal) || fail "$text"
    has "an empty NO_COLOR" $'\033\\[1m' "$text"
}

figure() { # figure NAME FILE: of the last line of metrics
    tail -n 1 "$2" | sed -n "s/.*\"$1\":\([-0-9.e+]*\).*/\1/p"
}
at_least() { # at_least WHAT FIGURE BOUND
    awk -v a="$2" -v b="$3" 'BEGIN { exit !(a >= b) }' || fail "$1 is $2; at least $3 was expected"
}
at_most() { # at_most WHAT FIGURE BOUND
    awk -v a="$2" -v b="$3" 'BEGIN { exit !(a <= b) }' || fail "$1 is $2; at most $3 was expected"
}
make_clicks() { # make_clicks FILE ROWS SEED: rows of 20 of 1,000 features, of which every fourth matters
    python3 - "$@" <<'PYTHON' || fail "python3 could not make the data"
import math, random, sys
path, rows, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(7)
truth = [random.gauss(0, 2) if k % 4 == 0 else 0.0 for k in range(1000)]
random.seed(seed)
with open(path, "w") as file:
    for _ in range(rows):
        row = sorted(random.sample(range(1000), 20))
        margin = sum(truth[k] for k in row)
        file.write("%d %s\n" % (random.random() < 1 / (1 + math.exp(-margin)), " ".join("%d:1.00000" % (k + 1) for k in row)))
PYTHON
}

# Clicks are learnt by any number of ranks, at any staleness, and L1 leaves out what does not matter.
case_clicks() {
    local ranks staleness
    make_clicks clicks 16000 1
    make_clicks clicks-test 4000 2
    for ranks in 1 2 4; do
        for staleness in async 0 2; do
            "$bin/weftrun" -n "$ranks" "$bin/train_clicks" --data clicks --test clicks-test --epochs 3 --batch 50 --l1 3 --staleness "$staleness" --quiet \
                --log "log-$ranks-$staleness" || fail "$ranks ranks with staleness $staleness ended with $?"
            at_least "accuracy of $ranks ranks with staleness $staleness" "$(figure test_accuracy "log-$ranks-$staleness")" 0.84
        done
    done
    "$bin/weftrun" -n 2 "$bin/train_clicks" --data clicks --epochs 2 --l1 0.01 --quiet --log loose --model weights || fail "with little L1"
    "$bin/weftrun" -n 2 "$bin/train_clicks" --data clicks --epochs 2 --l1 25 --quiet --log sparse || fail "with much L1"
    at_most "weights with much L1" "$(figure nonzero sparse)" 400
    at_least "weights with little L1" "$(figure nonzero loose)" 900
    [ "$(wc -l <weights)" = "$(figure nonzero loose)" ] || fail "the model has $(wc -l <weights) lines, of $(figure nonzero loose)"
}

# A file that is larger than what the program holds.
case_clicks_larger_than_memory() {
    make_clicks large 160000 3
    "$bin/weftrun" -n 2 "$bin/train_clicks" --data large --quiet --log log || fail "it ended with $?"
    at_least "the file's size" "$(stat -c %s large)" $((4 * $(figure peak_bytes log)))
}

case_clicks_of_a9a() {
    local data ranks
    data=$here/../../../shared/data/a9a
    [ -r "$data/a9a" ] || { echo "a9a is not there: skipped" && exit 77; }
    for ranks in 1 3; do
        "$bin/weftrun" -n "$ranks" "$bin/train_clicks" --data "$data/a9a" --test "$data/a9a.t" --epochs 3 --quiet --log log || fail "it ended with $?"
        at_least "accuracy on a9a by $ranks ranks" "$(figure test_accuracy log)" 0.845
        at_most "loss on a9a by $ranks ranks" "$(figure test_loss log)" 0.33
    done
}

case_clicks_refusals() {
    local said
    said=$("$bin/train_clicks" 2>&1) && fail "without data it succeeds"
    has "without data" "--data names a file" "$said"
    said=$("$bin/train_clicks" --data nowhere 2>&1) && fail "a missing file succeeds"
    has "a missing file" "nowhere" "$said"
    echo "1 5:1 3:1" >unsorted
    said=$("$bin/train_clicks" --data unsorted 2>&1) && fail "columns that do not ascend succeed"
    has "columns that do not ascend" "WEFT_E_CORRUPT" "$said"
    said=$("$bin/train_clicks" --data unsorted --staleness soon 2>&1) && fail "a staleness of words succeeds"
    has "a staleness of words" "it is 0, 1, ... or async" "$said"
}

make_corpus() { # make_corpus FILE SENTENCES TOPICS: topic a has the words a0 … a5, and sentences of one topic each, with common words between
    python3 - "$@" <<'PYTHON' || fail "python3 could not make the text"
import random, sys
path, sentences, topics = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(11)
with open(path, "w") as file:
    for _ in range(sentences):
        number = random.randrange(topics)
        topic = "t" + "abcdefgh"[number] if topics <= 8 else "t%dx" % number
        words = ["%s%d" % (topic, random.randrange(6)) for _ in range(6)] + [random.choice(["The", "and", "of"]) for _ in range(3)]
        random.shuffle(words)
        file.write(" ".join(words) + ".\n")
PYTHON
}
check_vectors() { # check_vectors FILE WIDTH SAID: the format; of topic words, the nearest are those of the topic; what was said is what the file says
    python3 - "$@" <<'PYTHON' || fail "the vectors of $1 are not what they should be"
import re, sys
path, width, said = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lines = open(path).read().split("\n")
assert lines[-1] == "" and lines[0].split() == [str(len(lines) - 2), str(width)], lines[0]
vectors = {}
for line in lines[1:-1]:
    word, *numbers = line.split(" ")
    assert len(numbers) == width, (word, len(numbers))
    vectors[word] = [float(n) for n in numbers]
assert set(list(vectors)[:3]) == {"the", "and", "of"}, list(vectors)[:3]
norm = {w: sum(x * x for x in v) ** 0.5 for w, v in vectors.items()}
def near(word):
    cosines = {o: sum(a * b for a, b in zip(vectors[word], v)) / (norm[word] * norm[o]) for o, v in vectors.items() if o != word}
    return sorted(cosines.items(), key=lambda item: -item[1])
topical = [w for w in vectors if w[0] == "t" and w[-1].isdigit()]
right = sum(o[:-1] == w[:-1] for w in topical for o, _ in near(w)[:5])
assert len(topical) == 48 and right >= 0.95 * 5 * len(topical), (len(topical), right)
told = re.search(r"near ta0: (\S+) (-?[0-9.]+)", said)
assert told and abs(float(told[2]) - near("ta0")[0][1]) < 2e-3 and told[1][:2] == "ta", said
assert "near nothing: the text does not have it" in said, said
PYTHON
}

# Words of a topic are learnt to be neighbours by any number of ranks, from the same pairs; without staleness to the same bits each time.
case_words() {
    local ranks staleness said pairs=
    make_corpus text 4000 8
    for ranks in 0 1 2 4; do
        for staleness in async 0; do
            command=("$bin/train_words" --text text --width 16 --epochs 5 --rate 0.05 --batch 100 --sample 0.01 --staleness "$staleness" --quiet
                --log "log-$ranks-$staleness" --vectors "vectors-$ranks-$staleness" --near ta0,nothing --top 5)
            [ "$ranks" = 0 ] || command=("$bin/weftrun" -n "$ranks" "${command[@]}")
            said=$("${command[@]}") || fail "$ranks ranks with staleness $staleness ended with $?"
            check_vectors "vectors-$ranks-$staleness" 16 "$said"
            [ -n "$pairs" ] || pairs=$(figure pairs "log-$ranks-$staleness")
            [ "$pairs" = "$(figure pairs "log-$ranks-$staleness")" ] || fail "$ranks ranks trained other pairs"
        done
    done
    "$bin/weftrun" -n 4 "$bin/train_words" --text text --width 16 --epochs 5 --rate 0.05 --batch 100 --sample 0.01 --staleness 0 --quiet \
        --vectors again || fail "again it ended with $?"
    cmp vectors-4-0 again || fail "without staleness two runs differ"
    cmp -s vectors-0-0 vectors-1-0 || fail "one rank alone and under the launcher differ"
}

# Without staleness a run that is killed and goes on ends with the bits of one that is not, and its snapshot is read by another number of ranks.
case_words_resume() {
    local said job words=("$bin/train_words" --text text --width 16 --epochs 6 --rate 0.05 --batch 100 --staleness 0 --quiet)
    make_corpus text 6000 8
    "$bin/weftrun" -n 2 "${words[@]}" --vectors whole || fail "it ended with $?"
    "$bin/weftrun" -n 2 "${words[@]}" --checkpoint saved >killed 2>&1 &
    job=$!
    while [ ! -e saved ] && kill -0 $job 2>/dev/null; do sleep 0.01; done
    kill -9 $job
    wait $job
    "$bin/weftrun" -n 2 "${words[@]}" --checkpoint saved --resume --log log --vectors parts || fail "going on it ended with $?"
    cmp whole parts || fail "going on leads to other vectors"
    [ "$(grep -c '"event"' log)" -lt 6 ] || fail "it began anew"
    "$bin/weftrun" -n 4 "${words[@]}" --checkpoint saved --resume --vectors again || fail "on four ranks it ended with $?"
    cmp whole again || fail "four ranks read other vectors than two have saved"
    said=$("${words[@]}" --seed 2 --checkpoint saved --resume 2>&1) && fail "it goes on with another seed"
    has "another seed" "is of another text, --min-count, --seed or --batch" "$said"
    said=$("${words[@]}" --resume 2>&1) && fail "it resumes without a checkpoint"
    has "no checkpoint" "--resume goes on from a --checkpoint" "$said"
}

# Only rows that a batch touches are moved: of 6,003 words at most 20 + 20 x 4 x 3 by one of 20 words.
case_words_touched() {
    make_corpus text 2000 1000
    "$bin/weftrun" -n 2 "$bin/train_words" --text text --width 32 --epochs 1 --batch 20 --window 2 --negatives 2 --min-count 1 --servers 1 --quiet --log log ||
        fail "it ended with $?"
    at_least "words" "$(figure words log)" 4000
    at_most "bytes that rank 0 sent" "$(figure sent_bytes log)" $((20000 / 20 / 2 * (260 * (32 * 4 + 8) + 6 * 256)))
    at_least "bytes that rank 0 sent" "$(figure sent_bytes log)" 1000000
}

case_words_refusals() {
    local said
    said=$("$bin/train_words" 2>&1) && fail "without a text it succeeds"
    has "without a text" "--text names a file" "$said"
    said=$("$bin/train_words" --text nowhere 2>&1) && fail "a missing file succeeds"
    has "a missing file" "cannot read nowhere" "$said"
    echo "one two" >short
    said=$("$bin/train_words" --text short 2>&1) && fail "a text of two words succeeds"
    has "a text of two words" "0 words that are there at least 5 times" "$said"
    said=$("$bin/train_words" --text short --min-count 1 --staleness soon 2>&1) && fail "a staleness of words succeeds"
    has "a staleness of words" "it is 0, 1, ... or async" "$said"
    said=$("$bin/train_words" --text short --min-count 1 --vectors nowhere/vectors --quiet 2>&1) && fail "a folder that is not there succeeds"
    has "a folder that is not there" "cannot write nowhere/vectors" "$said"
}

# The program for one machine and the one for many differ in one line, the strategy, and come to the same loss.
case_alone_and_many() {
    local differing one many
    differing=$(diff "$here/../../samples/alone.c" "$here/../../samples/many.c" | grep -c '^[<>]')
    [ "$differing" = 2 ] || fail "alone.c and many.c differ by $differing lines, counted in both; by one each they should"
    diff "$here/../../samples/alone.c" "$here/../../samples/many.c" | grep '^[<>]' | grep -qv '^[<>] *\.strategy = {.*},$' &&
        fail "alone.c and many.c differ by more than the strategy"
    one=$("$bin/alone" text) || fail "alone: $one"
    many=$("$bin/weftrun" -n 4 "$bin/many" text 2>&1) || fail "many: $many"
    has "alone" "^loss [0-9.]+ after [0-9]+ steps" "$one"
    has "many" "^\[0\] loss [0-9.]+ after [0-9]+ steps" "$many"
    same_loss "$one" "$many" 1e-4
    many=$("$bin/weftrun" -n 2 "$bin/many" text 2>&1) && fail "many on two ranks: $many"
    has "many on two ranks" "data = 2 x tensor = 2.*the world has 2 ranks" "$many"
}
same_loss() { # same_loss TEXT TEXT TOLERANCE: the last number behind "loss" in both
    python3 -c 'import re, sys
a, b = (float(re.findall(r"loss ([0-9.]+)", text)[-1]) for text in sys.argv[1:3])
sys.exit(not abs(a - b) <= float(sys.argv[3]) * abs(a))' "$@" || fail "the losses differ: $1, and $2"
}

# A network split three ways, whose replicas meet by a parameter server: without staleness the losses of one process; with it each replica goes at its pace, and learns.
case_hybrid_meshes() {
    local one many how="--max-steps 6 --clip 0 --mesh data=2,tensor=2,pipeline=2 --schedule 1f1b --zero 1"
    for sample in train_images train_gpt; do
        one=$(small 0 $sample --max-steps 6 --clip 0 2>&1) || fail "$sample: $one"
        many=$(small 8 $sample $how --sync server 2>&1) || fail "$sample by a server: $many"
        same_loss "$one" "$many" 1e-4
        many=$(small 8 $sample $how --sync server:3 --max-steps 16 --describe 2>&1) || fail "$sample by a server, apart: $many"
        has "$sample says what servers keep" "zero 1: solver states are on the parameter server, in parts on 8 of 8 ranks" "$many"
        python3 -c 'import re, sys
losses = [float(x) for x in re.findall(r"loss ([0-9.]+)", sys.argv[1])]
sys.exit(not losses[-1] < losses[0])' "$many" || fail "$sample learns nothing by a server, apart: $many"
        ends 1 "zero = 3 does not go with sync = WEFT_SERVER" 2 $sample --mesh data=2 --zero 3 --sync server
    done
}

# The same losses under every mesh, from options alone; what does not fit is named.
case_meshes() {
    local one many mesh
    for sample in train_images train_gpt; do
        one=$(small 0 $sample --max-steps 6 --accumulate 2 2>&1) || fail "$sample: $one"
        for mesh in "2 --mesh data=2" "2 --mesh tensor=2" "2 --mesh pipeline=2 --schedule 1f1b --accumulate 2" \
            "4 --mesh data=2,tensor=2" "4 --mesh data=2,pipeline=2 --schedule gpipe --accumulate 2"; do
            many=$(small ${mesh%% *} $sample --max-steps 6 ${mesh#* } 2>&1) || fail "$sample on $mesh: $many"
            same_loss "$one" "$many" 1e-4
        done
        many=$(small 2 $sample --max-steps 6 --mesh auto --describe 2>&1) || fail "$sample chooses: $many"
        same_loss "$one" "$many" 1e-4
        has "$sample chooses" "strategy: data=[12],.*chosen of [0-9]+ that fit" "$many"
        has "$sample chooses" "because a step should take [0-9.]+ ms" "$many"
        ends 1 "data = 2 x tensor = 2.*the world has 2 ranks" 2 $sample --mesh data=2,tensor=2
        ends 2 "--mesh rows=2: .*there is no setting 'rows'; there are data, tensor" 0 $sample --mesh rows=2
        ends 2 "--schedule round: .*1f1b, gpipe" 0 $sample --schedule round
        ends 2 "--zero 9: .*zero = '9'" 0 $sample --zero 9
        ends 2 "--sync often: .*allreduce, server" 0 $sample --sync often
    done
}

# A checkpoint of any mesh becomes a file of parameters alone, the same as that of one process; a damaged one does not.
case_reshard() {
    local mesh said
    small 0 train_gpt --quiet --sample 0 --max-steps 2 --accumulate 2 --checkpoint one || fail "one process"
    "$bin/weft" reshard one one.safetensors >said || fail "$(cat said)"
    has "reshard" "one.safetensors: 1[0-9] arrays of [0-9]+ bytes, checksums verified; [1-9][0-9]* of the run's left out" "$(cat said)"
    small 2 train_gpt --quiet --sample 0 --max-steps 2 --accumulate 2 --checkpoint staged --mesh pipeline=2 || fail "a pipeline"
    "$bin/weft" reshard staged staged.safetensors >said || fail "$(cat said)"
    cmp one.safetensors staged.safetensors || fail "the pipeline's parameters are others"
    for mesh in tensor=2 data=2; do
        small 2 train_gpt --quiet --sample 0 --max-steps 2 --checkpoint many --mesh $mesh || fail "$mesh"
        "$bin/weft" reshard many many.safetensors >said || fail "$(cat said)"
        [ "$("$bin/weft" list many.safetensors | grep -v ' = ')" = "$("$bin/weft" list one.safetensors | grep -v ' = ')" ] || fail "$mesh has other arrays"
    done
    "$bin/weft" list one.safetensors | grep -q 'weft\.solver' && fail "solver states are among the parameters"
    "$bin/weft" reshard staged all.safetensors --all >said || fail "$(cat said)"
    small 0 train_gpt --quiet --sample 0 --max-steps 3 --accumulate 2 --checkpoint all.safetensors --resume || fail "going on from what was written"
    has "verify" "all.safetensors: [0-9]+ arrays, all checksums verified" "$("$bin/weft" verify all.safetensors)"
    printf X | dd of=one bs=1 seek=$(($(stat -c %s one) - 9)) conv=notrunc 2>/dev/null
    said=$("$bin/weft" reshard one two.safetensors 2>&1) && fail "a damaged file: $said"
    has "a damaged file" "checksum of array .* it is damaged" "$said"
    [ ! -e two.safetensors ] || fail "something was written of a damaged file"
    said=$("$bin/weft" reshard nowhere two.safetensors 2>&1) && fail "a missing file: $said"
    has "a missing file" "nowhere" "$said"
    said=$("$bin/weft" melt one 2>&1)
    [ $? = 2 ] || fail "a word that is none: $said"
    has "a word that is none" "^usage: weft reshard IN OUT.safetensors" "$said"
}

# Rows of users and items on servers, the network by allreduce: without staleness the errors of one rank, under any mesh.
case_hybrid() {
    local one many how
    one=$("$bin/hybrid" --ratings 20000 --users 300 --items 200 --epochs 6 --log log 2>&1) || fail "$one"
    at_most "the test's error" "$(figure test_error log)" 0.3
    for how in "2 --staleness 0" "3 --staleness 0" "4 --mesh data=2,tensor=2" "2 --mesh pipeline=2,accumulate=2" "2 --mesh zero=3,divide-bytes=1"; do
        many=$("$bin/weftrun" -n ${how%% *} "$bin/hybrid" --ratings 20000 --users 300 --items 200 --epochs 6 --log many ${how#* } 2>&1) || fail "$how: $many"
        at_most "the test's error on $how" "$(figure test_error many)" 0.3
        at_most "the first epoch's error on $how" "$(head -n 1 many | sed -n 's/.*"train_error":\([0-9.]*\).*/\1/p')" \
            "$(head -n 1 log | sed -n 's/.*"train_error":\([0-9.]*\).*/\1/p' | awk '{ print $1 * 1.001 }')"
    done
    "$bin/weftrun" -n 2 "$bin/hybrid" --ratings 20000 --users 300 --items 200 --epochs 6 --staleness -1 --quiet --log stale || fail "asynchronous"
    at_most "the test's error where nobody waits" "$(figure test_error stale)" 0.4
    python3 -c 'import random
random.seed(5)
for i in range(3000): print(random.randrange(50), 10**12 + random.randrange(30), random.choice([1, 2, 3, 4, 5]), sep="\t")' >ratings
    many=$("$bin/weftrun" -n 2 "$bin/hybrid" --data ratings --batch 50 --epochs 2 2>&1) || fail "a file of ratings: $many"
    has "a file of ratings" "epoch 2: error 1[.]" "$many"
    echo "1 2" >short
    many=$("$bin/hybrid" --data short 2>&1) && fail "a line of two numbers is read"
    has "a line of two numbers" "short, line 1 is no .user item rating.: 1 2" "$many"
    many=$("$bin/hybrid" --data nowhere 2>&1) && fail "a file that is not there is read"
    has "a file that is not there" "cannot read nowhere" "$many"
}

source "$here/topics.sh"
"case_$2"
