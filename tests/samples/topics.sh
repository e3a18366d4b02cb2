# Cases of train_topics; read by run.sh.

topics_of() { # topics_of RANKS MARK ARGUMENT...: learns from `corpus`, and leaves model-MARK, its checkpoint and log-MARK
    local ranks=$1 mark=$2 command
    shift 2
    command=("$bin/train_topics" --data corpus --topics 4 --alpha 0.2 --beta 0.15 --every 0 --seed 2 --quiet --model "model-$mark" --log "log-$mark" "$@")
    [ "$ranks" = 0 ] || command=("$bin/weftrun" -n "$ranks" "${command[@]}")
    "${command[@]}" || fail "$mark ended with $?"
}
check_topics() { # check_topics MARK [TRUTH]: sets `perplexity`
    perplexity=$(python3 "$here/topics.py" corpus "model-$1" "log-$1" 0.2 0.15 "${@:2}") || fail "the checkpoint of $1"
}
near() { # near WHAT FIGURE REFERENCE SHARE
    awk -v a="$2" -v b="$3" -v s="$4" 'BEGIN { exit !(a <= b * (1 + s) && a >= b * (1 - s)) }' || fail "$1 is $2, which is not within $4 of $3"
}
of_first() { # of_first SHARE LOG: so much of the perplexity after the first iteration
    head -n 1 "$2" | sed 's/.*"perplexity":\([0-9.]*\).*/\1/' | awk -v s="$1" '{ print s * $1 }'
}

# The topics that a corpus was drawn from are found, and its perplexity is that of a plain Gibbs sampler, by any number of ranks on either wire, whole or in
# slices of a table that does not fit into the budget; without staleness to the same bits.
case_topics() {
    local ranks wire budget
    "$bin/train_topics" --make corpus --documents 1800 --words 3000 --length 60 --topics 4 --alpha 0.2 --beta 0.15 || fail "making a corpus"
    topics_of 0 gibbs --sampler gibbs --iterations 30
    check_topics gibbs corpus.truth
    local reference=$perplexity
    topics_of 0 cycles --sampler cycles --seed 1 --iterations 30 # (the seed matters: from some, they need more than a hundred iterations to tell two topics apart)
    check_topics cycles corpus.truth
    near "perplexity of cycles" "$perplexity" "$reference" 0.04
    for ranks in 0 2 4; do
        for wire in shm tcp; do
            [ $ranks != 2 ] && [ $wire = tcp ] && continue
            budget=$([ $wire = shm ] && echo 24000 || echo 0)
            WEFT_WIRE=$wire topics_of $ranks $ranks-$wire --iterations 30 --staleness 0 --budget $budget
            [ $wire = shm ] || continue # the others are compared with that
            # shellcheck disable=SC2046
            check_topics $ranks-$wire $([ $ranks = 0 ] || echo corpus.truth)
            near "perplexity of $ranks ranks over $wire" "$perplexity" "$reference" 0.04
        done
        [ $ranks != 2 ] || cmp model-$ranks-shm model-$ranks-tcp || fail "a wire, or slices, change what $ranks ranks learn"
    done
    topics_of 1 whole --iterations 30 --staleness 0
    cmp model-whole model-0-shm || fail "slices change what a rank learns"
    for ranks in 0 2 4; do
        at_most "bytes of slices" "$(figure slice_bytes log-$ranks-shm)" 24000 # half of the table of 3,000 words by 4 topics
        at_least "slices" "$(figure slices log-$ranks-shm)" 4
    done
    [ "$(figure slices log-whole)" = 1 ] || fail "without a budget there are $(figure slices log-whole) slices"
}

# Threads, several blocks, ranks that do not wait for each other, and any number of servers: each word is counted once.
case_topics_at_once() {
    "$bin/train_topics" --make corpus --documents 1800 --words 3000 --length 60 --topics 4 --alpha 0.2 --beta 0.15 || fail "making a corpus"
    for mark in "1 async --threads 3" "2 async --threads 2 --blocks 3 --budget 24000" "4 async --blocks 2 --servers 1" "3 1 --blocks 4 --budget 24000"; do
        read -r ranks staleness more <<<"$mark"
        # shellcheck disable=SC2086
        topics_of "$ranks" "$ranks" --iterations 30 --staleness "$staleness" $more
        check_topics "$ranks"
        at_most "perplexity with $mark" "$perplexity" "$(of_first 0.85 "log-$ranks")"
    done
    [ "$(figure staleness_added log-2)" = 1 ] || fail "blocks in a row do not say how old their rows are"
    [ "$(figure staleness_added log-1)" = 0 ] || fail "one block has rows that are too old"
}

# What was saved goes on to what would have come without an end, and on another number of ranks.
case_topics_resume() {
    "$bin/train_topics" --make corpus --documents 300 --words 200 --length 60 --topics 4 --alpha 0.2 --beta 0.15 || fail "making a corpus"
    for ranks in 0 2; do # counts of documents as they are, and as lists
        topics_of $ranks whole$ranks --iterations 12 --staleness 0 --topics $((4 + 150 * ranks))
        topics_of $ranks parts$ranks --iterations 5 --staleness 0 --resume --topics $((4 + 150 * ranks))
        topics_of $ranks parts$ranks --iterations 12 --staleness 0 --resume --topics $((4 + 150 * ranks))
        cmp model-whole$ranks model-parts$ranks || fail "$ranks ranks come to something else after an end between"
        check_topics parts$ranks
        [ "$(wc -l <log-parts$ranks)" = 12 ] || fail "the log has $(wc -l <log-parts$ranks) lines"
    done
    topics_of 3 parts0 --iterations 15 --resume
    check_topics parts0
    [ "$(figure iteration log-parts0)" = 15 ] || fail "the run ended after iteration $(figure iteration log-parts0)"
    said=$("$bin/weftrun" -n 2 "$bin/train_topics" --data corpus --topics 7 --model model-parts0 --resume 2>&1) && fail "another number of topics goes on"
    has "another number of topics" "WEFT_E_MISMATCH.*width" "$said"
    sed 1d corpus >other
    said=$("$bin/train_topics" --data other --topics 4 --model model-parts0 --resume 2>&1) && fail "another corpus goes on"
    has "another corpus" "WEFT_E_MISMATCH" "$said"
    sed '1{h;d};2G' corpus >other # two documents in another order
    said=$("$bin/train_topics" --data other --topics 4 --model model-parts0 --resume 2>&1) && fail "another corpus of that size goes on"
    has "another corpus of that size" "is of another run: the mark of the corpus" "$said"
}

# Both forms of files, and names of words.
case_topics_forms() {
    printf '0:2 3:1\n\n# nobody\n2 1:1 2:3\nlast 3:1 0:1\n' >corpus
    printf '5\n4\n6\n1 1 2\n1 4 1\n4 2 1\n4 3 3\n5 4 1\n5 1 1\n' >docword
    printf 'zero\none\ntwo\nthree\n' >names
    for form in "--data corpus" "--data docword --docword"; do
        # shellcheck disable=SC2086
        said=$("$bin/train_topics" $form --vocabulary names --topics 2 --held-out 0 --iterations 3 --model model --staleness 0 2>&1) || fail "$form: $said"
        has "$form" "^9 words in 5 documents, 4 of them different, 2 topics" "$said"
        [ "$(tr ' ' '\n' <model | grep -cE '^(zero|one|two|three):[0-9]+$')" -ge 4 ] || fail "$form: the model is $(cat model)"
        [ "$(tr ' :' '\n\n' <model | grep -A 1 -xE 'zero|one|two|three' | awk '/^[0-9]+$/ { n += $1 } END { print n }')" = 9 ] || fail "$form: $(cat model)"
        mv model "model-${form##* }"
    done
    cmp model-corpus model---docword || fail "the forms differ"
}

case_topics_refusals() {
    local said text
    refuses() { # refuses STATUS PATTERN ARGUMENT...
        said=$("$bin/train_topics" "${@:3}" 2>&1) && fail "it succeeds with ${*:3}"
        [ $? = "$1" ] || fail "${*:3}: $said"
        has "${*:3}" "$2" "$said"
    }
    printf '0:1 1:2\n2:4 0:1\n' >good
    printf 'a\nb\n' >two
    refuses 2 "--data names a file"
    refuses 2 "--topics: there are at least 2" --data good --topics 1
    refuses 2 "--alpha and --beta are above 0" --data good --alpha 0
    refuses 2 "--sampler is mh, cycles or gibbs" --data good --sampler exact
    refuses 2 "--resume goes on from the checkpoint beside --model" --data good --resume
    refuses 1 "cannot read nowhere" --data nowhere
    refuses 1 "cannot read nowhere" --data good --vocabulary nowhere
    refuses 1 "good, line 2: word 2 is beyond the vocabulary, of 2 words.*" --data good --vocabulary two
    refuses 1 "staleness soon: it is 0, 1, ... or async" --data good --staleness soon
    refuses 1 "the budget is 100 bytes; slices of one row of table 'counts'.* take [0-9]+" --data good --budget 100
    refuses 1 "cannot write nowhere/model" --make nowhere/model
    refuses 1 "cannot write nowhere/model" --data good --model nowhere/model
    lacks "a model that cannot be written" "iteration" "$said"
    refuses 1 "good, line 1: there is no word 0" --data good --one-based
    refuses 1 "good, line 1: a docword file begins with" --data good --docword
    for text in '0:1\n1:x' '0:1\n0:1 1' '0:1\n1: 2' '0:1\n:1' '0:1\n1:-2' '0:1\n1:2.5' '0:1\na:1' '0:1\n1:99999999999' '0:1\n1:1,2:1' '0:1\n\0001:1 \000'; do
        printf "$text\n" >bad
        refuses 1 "bad, line 2: that is not \"word:count\"" --data bad
    done
    printf '\n\n' >bad
    refuses 1 "bad: there is no word in it" --data bad
    printf '0:1\n1:2147483647\n' >bad
    refuses 1 "bad, line 2: more than 2\^31 words" --data bad --topics 2
    printf '2\n3\n2\n1 1 1\n' >bad
    refuses 1 "bad, line 5: the file ends before its last line" --data bad --docword
    printf '2\n3\n2\n2 1 1\n1 1 1\n' >bad
    refuses 1 "bad, line 5: documents ascend" --data bad --docword
    printf '2\n3\n1\n1 4 1\n' >bad
    refuses 1 "bad, line 4: word 4 is beyond the vocabulary, of 3" --data bad --docword
}

# Shakespeare's speeches, of which every document is 25: the perplexity falls as Gibbs sampling has it.
case_topics_of_shakespeare() {
    local text=$here/../../../shared/data/shakespeare/input.txt reference
    [ -r "$text" ] || { echo "the text is not there: skipped" && exit 77; }
    python3 - "$text" <<'PYTHON' || fail "python3 could not count the words"
import collections, re, sys
speeches = [re.findall("[a-z']+", speech.split("\n", 1)[1].lower()) for speech in open(sys.argv[1]).read().split("\n\n") if "\n" in speech]
count = collections.Counter(word for speech in speeches for word in speech)
names = sorted(word for word, n in count.most_common()[100:] if n >= 5)
number = {word: i for i, word in enumerate(names)}
open("names", "w").write("\n".join(names) + "\n")
with open("corpus", "w") as file:
    for i in range(0, len(speeches), 25):
        bag = collections.Counter(number[w] for speech in speeches[i:i + 25] for w in speech if w in number)
        file.write(" ".join("%d:%d" % entry for entry in sorted(bag.items())) + "\n")
PYTHON
    for sampler in gibbs mh; do
        "$bin/weftrun" -n $([ $sampler = mh ] && echo 2 || echo 1) "$bin/train_topics" --data corpus --vocabulary names --topics 20 --sampler $sampler \
            --iterations 60 --every 0 --staleness 0 --quiet --log log-$sampler --budget 200000 || fail "$sampler ended with $?"
    done
    reference=$(figure perplexity log-gibbs)
    near "the perplexity" "$(figure perplexity log-mh)" "$reference" 0.04
    at_most "the perplexity" "$reference" "$(of_first 0.98 log-gibbs)"
}
