"Language models: golden scores, automata by the textbook, Kneser-Ney against lmplz and by hand, words from running text."
import json
import string
from collections import Counter

import numpy as np
import pytest
from toys import TINY_ARPA, arpa_writer, rows

from semgbook.decoders import arc_score
from semgbook.language_files import read_arpa
from semgbook.language_model import (BOS, EOS, FALLBACK, SMALL_TEXT, UNK, LanguageModelError, advance, count_ngrams, draw_lines, embedded_language_model,
                                     encode_sentences, estimate_discounts, prepare_words, train_ngrams)

# estimated by KenLM's lmplz (0.3.0, --discount_fallback) from these words: order -> n-grams of each order, perplexity by KenLM, some n-grams
WORDS = ("the then them there these other mother brother weather water after later letter better butter bitter little bottle battle cattle castle cast last "
         "fast past paste taste haste hasten listen fasten often soften the the then that that hat hut cut cat café").split()
LMPLZ = {3: ((21, 63, 92), 3.002120945988597, {
    '<unk>': (-1.6532125, 0.0), 'm': (-1.5321687, -0.2747011), 'a': (-0.8379195, -0.61067563), 'p': (-1.4929155, -0.2747011),
    '<s> o': (-1.5709144, -0.21524343), '<s> c': (-0.89050674, -0.480462), 't a': (-1.1418564, -0.21524343), 'e t': (-1.0353346, -0.16910048),
    'n </s>': (-0.29057944, 0.0), 's t': (-0.77359635, -0.5150336), 'f é': (-0.85625005, -0.21524343), '<s> t a': (-1.3138772, 0.0),
    '<s> o f': (-0.6259426, 0.0), 't t l': (-0.4719075, 0.0), 't a s': (-0.20671332, 0.0), 'h e s': (-1.2267455, 0.0),
    'e m </s>': (-0.2517804, 0.0), 'l a t': (-0.35879716, 0.0), 'p a s': (-0.2374525, 0.0)}),
    2: ((21, 63), 4.369024186200495, {
        'h': (-1.5321687, -0.88236046), 'o': (-1.1812925, -0.35326958), 'p': (-1.4929155, -0.060480747), '<s> c': (-0.89297044, 0.0),
        't t': (-0.83540314, 0.0), 'e r': (-0.51674235, 0.0), 'r </s>': (-0.10363396, 0.0), 'u': (-1.466902, -0.5133334)})}


@pytest.fixture
def write(tmp_path): return arpa_writer(tmp_path)


@pytest.fixture(scope="module")
def english(): return embedded_language_model()


def look_up(table, symbols, start=BOS):
    "Score by the textbook: the longest n-gram that is there, after the backoff weights of the histories that are too long."
    def log10(history, symbol):
        gram = " ".join([*history, symbol])
        if gram in table: return table[gram][0]
        return table.get(" ".join(history), (0, 0))[1] + log10(history[1:], symbol)
    line = [*([start] if start else []), *symbols]
    return [log10(line[max(0, i - 5):i], line[i]) for i in range(bool(start), len(line))]


# --- scores ---------------------------------------------------------------------------------------

def test_golden_scores(shared):
    cases, model = json.loads(shared("golden/lm_scores.json").read_text()), read_arpa(shared("golden/lm.arpa"))
    assert model.order == cases["order"]
    assert sorted(set(model.symbols) - {BOS, EOS, UNK}) == cases["keys_in_vocabulary"]
    assert model.score(["?"], bos=False, eos=False)[0] == pytest.approx(cases["oov_log10"], abs=2e-5)
    assert len(cases["raw"]) > 40
    for case in cases["raw"]:
        assert model.score(case["symbols"], case["bos"], case["eos"]).sum() == pytest.approx(case["log10"], abs=2e-5)


def test_golden_steps(shared):
    "Key presses of words without backspace, as the decoder asks: letter after letter, each from the state before."
    cases, table = json.loads(shared("golden/lm_scores.json").read_text()), read_arpa(shared("golden/lm.arpa")).table()
    seen = 0
    for case in cases["sequences"]:
        if case["text"].isalpha() and case["text"].islower() and case["text"].isascii():
            state = table.start
            for letter, expected in zip(case["text"], case["step_log10"], strict=True):
                log10, state = arc_score(table.arcs, state, table.symbols.index(letter))
                assert log10 == pytest.approx(expected, abs=2e-5)
                seen += 1
    assert seen


def test_by_hand(write):
    model = read_arpa(write())
    assert model.n_ngrams == (5, 4, 2) and model.symbols == (UNK, BOS, EOS, "a", "b")
    assert model.score("ab").tolist() == pytest.approx([-0.1249387, -0.05, -0.15])
    # a a: no <s> a a, so backoff of "<s> a" and then "a a"; the end: backoff of "a a" (none written: 0), of "a", then </s> alone
    assert model.score("aa").tolist() == pytest.approx([-0.1249387, -0.1 - 0.9, -0.60206 - 0.69897])
    assert model.score("c").tolist() == pytest.approx([-0.30103 - 2, -0.69897])
    assert model.score("b", bos=False, eos=False).tolist() == pytest.approx([-0.5376])
    assert model.score("", eos=False).tolist() == []
    assert model.perplexity(["ab"]) == pytest.approx(10 ** (0.3249387 / 3))
    assert model.perplexity(["ab", "c"]) == pytest.approx(10 ** ((0.3249387 + 3.0) / 5))


def test_against_the_textbook(english):
    "The automaton, alone and side by side, and the decoder's own walk through it agree with looking up whole n-grams."
    table, generator = rows(english), np.random.default_rng(0)
    lines = ["".join(generator.choice(list("etaoinshrdlqz"), n)) for n in generator.integers(0, 14, 200)] + ["the", "people", "é"]
    arcs, t = english.table().arcs, english.table()
    for line in lines:
        known = [c if c in english.symbols else UNK for c in line]
        for bos in (BOS, None):
            expected = look_up(table, [*known, EOS], bos)
            assert english.score(line, bos=bool(bos)).tolist() == pytest.approx(expected, abs=1e-5)
        state, walked = t.start, []
        for number in [*english.numbers(line), *english.numbers([EOS])]:
            log10, state = arc_score(arcs, state, number)
            walked.append(log10)
        assert walked == pytest.approx(look_up(table, [*known, EOS]), abs=1e-5)
    total = sum(english.score(line).sum() for line in lines)
    assert english.perplexity(lines) == pytest.approx(10 ** (-total / sum(len(line) + 1 for line in lines)))


def test_a_pruned_model_backs_off_past_what_is_missing(write):
    "`a b` is there, `b` has no n-gram of its own to go on from, and `b b` leads to the longest history that exists."
    text = TINY_ARPA.replace("ngram 3=2", "ngram 3=1").replace("-0.05\t<s> a b\n", "").replace("ngram 2=4", "ngram 2=3").replace("-0.9\ta a\n", "")
    model = read_arpa(write(text))
    assert model.score("aa").tolist() == pytest.approx([-0.1249387, -0.1 - 0.60206 - 0.30103, -0.60206 - 0.69897])
    assert model.score("ab").tolist() == pytest.approx([-0.1249387, -0.1 - 0.2218487, -0.15])


def test_symbol_numbers_out_of_range(english):
    with pytest.raises(LanguageModelError, match="symbol numbers"): advance(english.table(), np.array([3]), np.array([99]))


# --- training -------------------------------------------------------------------------------------

@pytest.mark.parametrize("order", LMPLZ)
def test_as_lmplz_estimates(order):
    n_ngrams, perplexity, some = LMPLZ[order]
    model = train_ngrams(WORDS, order)
    found = rows(model)
    assert model.n_ngrams == n_ngrams
    assert np.array([found[gram] for gram in some]) == pytest.approx(np.array(list(some.values())), abs=1e-6)
    assert model.perplexity(WORDS) == pytest.approx(perplexity, abs=1e-5)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_probabilities_sum_to_one(order):
    model = train_ngrams(WORDS, order)
    table, n = model.table(), len(model.symbols)
    states = np.flatnonzero(~np.isin(np.arange(len(table.backoff)), np.flatnonzero(np.append(False, table.arc_symbol[:len(table.backoff) - 1] == 2))))
    log10, _ = advance(table, np.repeat(states, n), np.tile(np.arange(n), len(states)))  # every history but those that end in </s>
    assert len(states) > (order > 1) * 20
    assert (10 ** log10).reshape(-1, n).sum(1) == pytest.approx(1, abs=1e-6)


def test_discounts_by_hand():
    assert estimate_discounts(np.repeat([1, 2, 3, 4, 9], [6, 3, 2, 1, 5])).tolist() == pytest.approx([0, 0.5, 1, 2])
    for counts in ([1, 1, 2, 3, 3, 3, 3, 3, 3, 3], [1, 1, 1, 3], [5, 6], []):  # out of range; no twos; all frequent; nothing
        assert estimate_discounts(np.array(counts, int)).tolist() == [0, *FALLBACK]


def test_lower_orders_count_company():
    lines = [["san", "francisco"]] * 20 + [["a", "fog"], ["the", "fog"], ["thick", "fog"]]
    symbols, *text = encode_sentences(lines)
    one, two = count_ngrams(symbols, *text, 2)
    company = dict(zip(symbols, one.adjusted(two)))
    assert company["francisco"] == 1 and company["fog"] == 3 and company["san"] == 1 and company[EOS] == 2 and company[BOS] == company[UNK] == 0
    starts = two.begins
    assert sorted(two.adjusted(None)[starts]) == [1, 1, 1, 20]


def test_counts_against_a_loop():
    symbols, *text = encode_sentences(WORDS)
    for n, found in enumerate(count_ngrams(symbols, *text, 4), 1):
        lines = [[BOS, *word, EOS] for word in WORDS]
        expected = Counter(tuple(line[i:i + n]) for line in lines for i in range(len(line) - n + 1))
        if n == 1: expected = {(s,): 0 if s in (BOS, UNK) else expected[(s,)] for s in symbols}
        names = [()]
        for grams in count_ngrams(symbols, *text, n): names = [names[k // len(symbols)] + (symbols[k % len(symbols)],) for k in grams.key]
        assert dict(zip(names, found.count.astype(int).tolist())) == dict(expected)


def test_a_counter_says_the_same():
    for a, b in zip(train_ngrams(WORDS, 5).grams, train_ngrams(Counter(WORDS), 5).grams):
        assert np.array_equal(a.key, b.key) and np.array_equal(a.log10, b.log10) and np.array_equal(a.backoff, b.backoff)


def test_longer_histories_help():
    words = prepare_words(SMALL_TEXT)
    order = np.random.default_rng(0).permutation(len(words))
    learn, guess = ([words[i] for i in half] for half in np.split(order, [3 * len(words) // 4]))
    perplexity = [train_ngrams(learn, n).perplexity(guess) for n in (1, 2, 3, 4)]
    assert perplexity == sorted(perplexity, reverse=True) and perplexity[3] < 0.7 * perplexity[0]


def test_what_cannot_be_trained():
    for lines, order, said in (([], 2, "no symbol"), (["", ""], 2, "no symbol"), (["ab"], 5, "at most 4"), (["ab"], 0, "an order of 0"),
                               ([["a", BOS]], 2, "set by the model"), ([[UNK]], 2, "set by the model"), ([["a", EOS, "b"]], 2, "set by the model")):
        with pytest.raises(LanguageModelError, match=said): train_ngrams(lines, order)


def test_the_embedded_model_draws_and_knows_no_simulator(english):
    assert english.order == 6 and set(english.symbols) == {BOS, EOS, UNK, *string.ascii_lowercase}
    drawn = ["".join(line) for line in draw_lines(english, 300, np.random.default_rng(0))]
    again = ["".join(line) for line in draw_lines(english, 300, np.random.default_rng(0))]
    noise = ["".join(np.random.default_rng(i).permutation(list(w))) for i, w in enumerate(drawn)]
    assert drawn == again and len(drawn) == 300
    assert english.perplexity(drawn) < english.perplexity(noise) / 2  # the same letters in another order
    assert "semgbook.synthetic" not in open(train_ngrams.__code__.co_filename).read()


# --- words ----------------------------------------------------------------------------------------

def test_words():
    for text, expected in (("Don't stop -- it's the dogs' well-known dog, 3rd of the race.", "do stop it the dogs dog of the race"),  # as nltk 3.9
                           ("We've said: \"she'll (perhaps) come; won't you?\"", "we said she perhaps come wo you"),
                           ("They're 'quoted words' and I'd say so...", "they quoted words and i say so"),
                           ("Prices rose 5%, A&B said, #tag user@host.", "prices rose a b said tag user host"),
                           ("and/or foo_bar naïve O'Clock x-ray a @-@ b the 1990s , the U.S. were", "a b the the were"),
                           ("Mr. Smith cannot say “hello” don’t a,3", "mr smith cannot say hello do a"),                         # not as nltk
                           ("", "")):
        assert " ".join(prepare_words(text)) == expected
    with pytest.raises(LanguageModelError, match="spacy"): prepare_words("a", "spacy")


def test_words_as_nltk_cuts_them():
    tokenize = pytest.importorskip("nltk.tokenize", reason="nltk is not installed: our tokenizer is not compared with it").word_tokenize
    for sentence in SMALL_TEXT.replace("\n", " ").split(". "):
        theirs = [t for t in map(str.lower, tokenize(sentence, preserve_line=True)) if t.isascii() and t.isalpha()]
        assert prepare_words(sentence) == theirs


def test_nltk_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nltk.tokenize", None)
    with pytest.raises(LanguageModelError, match="pip install nltk"): prepare_words("a", "nltk")
