"Language model files: ARPA whole and broken, and KenLM's own where the package is installed."
import builtins
import gzip
import string

import numpy as np
import pytest
from toys import TINY_ARPA, arpa_writer, rows

from semgbook.language_files import arpa_pieces, read_arpa, read_kenlm_binary, write_arpa
from semgbook.language_model import BOS, EOS, SMALL_TEXT, UNK, LanguageModelError, embedded_language_model, prepare_words, train_ngrams, walk


@pytest.fixture
def write(tmp_path): return arpa_writer(tmp_path)


@pytest.fixture(scope="module")
def english(): return embedded_language_model()


# --- ARPA files -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["m.arpa", "m.arpa.gz"])
def test_round_trip(tmp_path, english, name):
    path = write_arpa(english, tmp_path / name)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith("gz")
    back = read_arpa(path)
    assert back.symbols == english.symbols
    for mine, theirs in zip(english.grams, back.grams, strict=True):
        for field in ("key", "log10", "backoff"): assert np.array_equal(getattr(mine, field), getattr(theirs, field))
    assert write_arpa(back, tmp_path / ("again" + name)).read_bytes() == path.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {name, "again" + name}


def test_lines_in_any_order_and_blocks_of_any_size(tmp_path, english, monkeypatch):
    import semgbook.language_files as module
    lines = write_arpa(english, tmp_path / "m.arpa").read_text().split("\n")
    generator, mixed, section = np.random.default_rng(1), [], []
    for line in lines:
        if "\t" in line: section.append(line)
        else:
            mixed += [section[i] for i in generator.permutation(len(section))] + [line]
            section = []
    (tmp_path / "mixed.arpa").write_text("\r\n".join(mixed))
    monkeypatch.setattr(module, "arpa_pieces", lambda path: arpa_pieces(path, 1000))
    calls = []
    back = read_arpa(tmp_path / "mixed.arpa", progress=lambda *n: calls.append(n))
    expected, found = rows(english), rows(back)
    assert expected == found
    assert len(calls) > 20 and [n for n, _ in calls] == sorted(n for n, _ in calls) and calls[-1] == (len(expected), len(expected))


@pytest.mark.parametrize(("old", "new", "said"), [
    ("ngram 2=4", "ngram 2=5", r"line \d+: the header announces 5 2-grams, but there are 4"),
    ("ngram 3=2", "ngram 3=1", "announces 1 3-grams, but there are 2"),
    ("\\end\\\n", "", r"ends without \\end\\"),
    ("\\3-grams:", "\\4-grams:", r"line 19: '\\\\4-grams:' where '\\\\3-grams:' should stand"),
    ("\\data\\", "data", r"line 6: '\\\\1-grams:' where '\\\\data\\\\' should stand"),
    ("-0.05\t<s> a b", "-0.05\tb a b", "line 20: 'b a b' needs 'b a' among the 2-grams"),
    ("a b\t-0.2", "a b\t-0.2 7", "line 15: 5 fields"),
    ("a b </s>", "a b </s>\t-0.5", "line 21: 5 fields among the 3-grams"),
    ("-0.15\ta b </s>", "-0.15\ta b", "line 21: 3 fields"),
    ("-0.2218487", "-0.2x", "line 15: the probability '-0.2x' is not a number"),
    ("-0.2218487", "nan", "line 15: the probability 'nan' is not a number"),
    ("a b\t-0.2", "a b\tzwei", "line 15: the backoff weight 'zwei' is not a number"),
    ("a b\t-0.2", "a b\t-inf", "line 15: the backoff weight '-inf' is not a number"),
    ("-0.2218487", "0.6", "line 15: log10 probability 0.6 is positive"),
    ("-0.2218487\ta b", "-0.2218487\ta q", "line 15: symbol 'q' is not among the 1-grams"),
    ("-0.9\ta a", "-0.9\ta b", "a 2-gram before line 19 is there twice"),
    ("-0.5376\tb", "-0.5376\ta", "1-gram 'a' is there twice"),
    ("-0.69897\t</s>", "-0.69897\te", "no </s> among the 1-grams"),
    ("-2\t<unk>", "0.1\t<unk>", "line 7: log10 probability 0.1 is positive"),
])
def test_broken_files_name_the_line(write, old, new, said):
    assert old in TINY_ARPA
    with pytest.raises(LanguageModelError, match=said) as e: read_arpa(write(TINY_ARPA.replace(old, new, 1)))
    assert "tiny.arpa" in str(e.value)


def test_files_of_another_kind(write):
    for content, said in ((b"mmap lm http://kheafield.com/code format version 5\n\0", "read_kenlm_binary"), (b"version https://git-lfs.github.com/spec/v1\n", "lfs pull"),
                          (b"", "no ARPA file"), (gzip.compress(TINY_ARPA.encode())[:-20], "damaged"), (b"hello\n", "no ARPA file")):
        with pytest.raises(LanguageModelError, match=said): read_arpa(write(content))
    with pytest.raises(FileNotFoundError): read_arpa("nowhere.arpa")


def test_what_files_may_leave_out(write):
    "A preface, <unk>, backoff weights, the last newline; odd symbols that a parser might take for something else."
    text = TINY_ARPA.replace("-2\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4").rstrip("\n")
    model = read_arpa(write("made by hand\n\n" + text))
    assert model.score("c", eos=False).tolist() == pytest.approx([-0.30103 - 100])
    odd = ["nan", "NA", '"', "'", "#", "null", "1e5", "é", ",", "-1"]
    text = f"\\data\\\nngram 1={len(odd) + 2}\n\n\\1-grams:\n-1 <s>\n-1 </s>\n" + "".join(f"-1.5 {symbol}\n" for symbol in odd) + "\\end\\\n"
    assert read_arpa(write(text)).symbols == (BOS, EOS, *odd, UNK)


def test_nothing_half_written(tmp_path):
    with pytest.raises(LanguageModelError, match="'é t' cannot stand"): write_arpa(train_ngrams([["é t"]], 2), tmp_path / "m.arpa")
    assert not list(tmp_path.iterdir())


# --- KenLM ----------------------------------------------------------------------------------------

def test_without_kenlm(monkeypatch, write):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *a, **k: (_ for _ in ()).throw(ImportError(name)) if name == "kenlm" else real(name, *a, **k))
    with pytest.raises(LanguageModelError, match="read the ARPA file"): read_kenlm_binary(write(), "ab")


@pytest.fixture(scope="module")
def kenlm():
    return pytest.importorskip("kenlm", reason="the package kenlm is not installed: perplexities are not compared with it")


def compare(kenlm, path):
    "Largest relative difference of the perplexity of single lines, and the difference over all of them."
    theirs, ours, generator = kenlm.Model(str(path)), read_arpa(path), np.random.default_rng(0)
    lines = ["the", "water", "", "xzqj", "aé", *("".join(generator.choice(list("etaoinshrdlu"), n)) for n in generator.integers(1, 12, 300))]
    single = max(abs(ours.perplexity([line]) / theirs.perplexity(" ".join(line)) - 1) for line in lines)
    pooled = 10 ** (-sum(theirs.score(" ".join(line)) for line in lines) / sum(len(line) + 1 for line in lines))
    return single, abs(ours.perplexity(lines) - pooled)


def test_perplexity_as_kenlm(kenlm, tmp_path, english):
    single, pooled = compare(kenlm, write_arpa(english, tmp_path / "english.arpa"))
    assert single < 1e-5 and pooled < 1e-4


def test_perplexity_as_kenlm_golden(kenlm, shared):
    single, pooled = compare(kenlm, shared("golden/lm.arpa"))
    assert single < 1e-5 and pooled < 1e-4


def test_tables_asked_from_kenlm(kenlm, tmp_path, english):
    asked = read_kenlm_binary(write_arpa(english, tmp_path / "english.arpa"), string.printable)
    assert set(asked.symbols) == set(english.symbols)
    words = ["the", "then", "quiz", "zzz", "", *sorted(set(prepare_words(SMALL_TEXT)))[::8]]
    rows_of = [np.array([asked.symbols.index(c) for c in [*word, EOS]]) for word in words]
    for start, bos in ((asked.start, True), (0, False)):
        scores = walk(asked, rows_of, start)
        for word, found in zip(words, scores): assert found[:len(word) + 1] == pytest.approx(english.score(word, bos=bos), abs=2e-5)
    with pytest.raises(LanguageModelError, match="knows none"): read_kenlm_binary(tmp_path / "english.arpa", "ÄÖ")
    with pytest.raises(LanguageModelError, match="more than 10"): read_kenlm_binary(tmp_path / "english.arpa", "abc", max_states=10)
