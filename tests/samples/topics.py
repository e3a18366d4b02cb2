# usage: topics.py CORPUS MODEL LOG ALPHA BETA [TRUTH]
# Holds a checkpoint of train_topics against the corpus: each count is the number of words with that topic, by the topics of the words that the checkpoint
# has; the perplexity of the log is that of these counts. With TRUTH, the topics that the corpus was drawn from are found, and the perplexity is near
# the one that they have themselves. Prints the perplexity.
import json, math, struct, sys

corpus, model, log = sys.argv[1:4]
alpha, beta = map(float, sys.argv[4:6])

def safetensors(path):
    body = open(path, "rb").read()
    length = struct.unpack("<Q", body[:8])[0]
    head = json.loads(body[8:8 + length])
    data = memoryview(body)[8 + length:]
    def tensor(name):
        begin, end = head[name]["data_offsets"]
        return data[begin:end].cast("q" if head[name]["dtype"] == "I64" else "i")
    return head["__metadata__"], tensor

counts, pieces = {}, {}
manifest, _ = safetensors(model + ".counts")
for name in (manifest[key] for key in manifest if key.startswith("share.")):
    about, tensor = safetensors(name)
    facts = {table: dict(zip(about[table].split()[::2], about[table].split()[1::2])) for table in ("counts", "topics")}
    width, first, rows = (int(facts["counts"]["width"]), int(facts["topics"]["first"]), int(facts["topics"]["rows"]))
    total_row = int(facts["counts"]["total"]) - 1
    values, keys = tensor("counts.values"), tensor("counts.keys")
    for i, key in enumerate(keys):
        assert key not in counts, "word %d is there twice" % key
        counts[key] = list(values[i * width:(i + 1) * width])
    values = tensor("topics.values")
    for i in range(rows):
        pieces[first + i] = values[i * 32:(i + 1) * 32]

# Documents: their words, those with a topic first, and the topics.
documents, piece = [], 0
for line in open(corpus):
    words = [int(w) for w, n in (entry.split(":") for entry in line.split()) for _ in range(int(n))]
    topics = [k for row in range(piece, piece + (len(words) + 31) // 32) for k in pieces[row]][:len(words)]
    piece += (len(words) + 31) // 32
    held = -1 in topics
    if held:
        words = words[::2] + words[1::2]
        assert topics.index(-1) == (len(words) + 1) // 2 and set(topics[topics.index(-1):]) == {-1}, topics
    documents.append((held, words, topics))
assert piece == len(pieces), (piece, len(pieces))

again = {}
for held, words, topics in documents:
    for word, topic in zip(words, topics):
        if not held:
            again.setdefault(word, [0] * width)[topic] += 1
totals = [sum(column) for column in zip(*again.values())]
assert counts.pop(total_row) == totals, "the sums of topics"
assert {w: row for w, row in counts.items() if any(row)} == again, "the counts are not those of the words' topics"
end = json.loads(open(log).read().splitlines()[-1])
assert end["event"] == "end" and end["words"] == sum(totals) > 0, end
assert min(min(row) for row in counts.values()) >= 0

def perplexity(topic_of_word, shares): # shares(words) of topics, by the words that are seen
    likelihood = unseen = 0
    for held, words, topics in documents:
        if held:
            seen = topics.index(-1)
            share = shares(words[:seen], topics[:seen])
            for word in words[seen:]:
                likelihood += math.log(sum(s * p for s, p in zip(share, topic_of_word(word))))
                unseen += 1
    return math.exp(-likelihood / unseen)

def sampled(words, topics):
    return [(topics.count(k) + alpha) / (len(topics) + width * alpha) for k in range(width)]
learnt = {w: [(n + beta) / (t + total_row * beta) for n, t in zip(counts.get(w, [0] * width), totals)] for w in range(total_row)}
found = perplexity(learnt.get, sampled)
assert abs(found / end["perplexity"] - 1) < 1e-9, (found, end["perplexity"])

best = [line.split() for line in open(model)]
assert len(best) == width
for k, (number, total, *words) in enumerate(best):
    assert int(number) == k and int(total) == totals[k]
    ordered = sorted((row[k] for row in again.values()), reverse=True)
    listed = [tuple(map(int, entry.split(":"))) for entry in words]
    assert [n for _, n in listed] == [n for n in ordered[:10] if n], (listed, ordered[:10])
    assert all(again[word][k] == n for word, n in listed) and len(set(w for w, _ in listed)) == len(listed)

if len(sys.argv) > 6:
    truth = [dict((int(w), float(p)) for w, p in (entry.split(":") for entry in line.split())) for line in open(sys.argv[6])]
    assert len(truth) == width
    def near(k, topic): # the cosine of a learnt and a true topic
        mine = [learnt[w][k] for w in range(total_row)]
        both = sum(p * mine[w] for w, p in topic.items() if w < total_row)
        return both / math.sqrt(sum(p * p for p in mine) * sum(p * p for p in topic.values()))
    left, least = set(range(width)), 1
    for topic in truth:
        k = max(left, key=lambda k: near(k, topic))
        least = min(least, near(k, topic))
        left.remove(k)
    assert least > 0.95, "a topic is found with a cosine of %.3f" % least
    known = {w: [topic.get(w, 0) + 1e-9 for topic in truth] for w in range(total_row)}
    def fitted(words, _): # the most likely shares, by expectation and maximisation
        share = [1 / width] * width
        for _ in range(30):
            more = [alpha] * width
            for word in words:
                chance = [s * p for s, p in zip(share, known[word])]
                scale = 1 / sum(chance)
                more = [m + c * scale for m, c in zip(more, chance)]
            share = [m / sum(more) for m in more]
        return share
    bound = perplexity(known.get, fitted)
    assert found < 1.1 * bound, "the perplexity is %.2f; with the true topics it is %.2f" % (found, bound)
print("%.6f" % found)
