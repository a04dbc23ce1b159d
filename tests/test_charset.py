"Character sets against the golden cases, and their own properties."
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook.charset import CHARSETS, FINGERS, FINGERS_NO_REST, QWERTY, Charset, CharsetError, get_charset


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads(shared("golden/charset.json").read_text())


def test_classes(golden):
    assert (golden["n_keys"], golden["n_classes"], golden["blank"]) == (QWERTY.blank, QWERTY.n_classes, QWERTY.blank) == (98, 99, 98)
    assert [(c["key"], c["char"]) for c in golden["classes"][:98]] == list(zip(QWERTY.keys, QWERTY.chars, strict=True))


def test_golden_strings(golden):
    assert len(golden["string_cases"]) == 93
    for case in golden["string_cases"]:
        text = case["input"]
        labels = QWERTY.labels_of_text(text)
        assert labels.tolist() == case["labels"] and labels.dtype == np.int32
        assert (QWERTY.normalize(text), QWERTY.clean(text)) == (case["normalized"], case["clean"])
        assert [QWERTY.keys[i] for i in labels] == case["keys"]


def test_golden_keys(golden):
    assert len(golden["key_cases"]) == 67
    for case in golden["key_cases"]:
        keys = case["input"]
        labels, keep = QWERTY.labels_of_keys(keys), QWERTY.keep_of_keys(keys)
        assert QWERTY.normalize_keys(keys) == case["normalized"] and labels.tolist() == case["labels"]
        assert [QWERTY.keys[i] for i in labels] == case["clean"] and QWERTY.text_of_labels(labels) == case["text"]
        assert keep.dtype == bool and len(keep) == len(keys)
        assert [k for k, kept in zip(case["normalized"], keep, strict=True) if kept] == case["clean"]


def test_golden_labels(golden):
    assert len(golden["label_cases"]) == 13
    for case in golden["label_cases"]:
        assert QWERTY.text_of_labels(case["labels"]) == case["text"] and QWERTY.labels_of_text(case["text"]).tolist() == case["labels"]


@pytest.mark.parametrize("name", CHARSETS)
def test_every_registered_set(name):
    charset = get_charset(name)
    everything = np.arange(charset.blank)
    text = charset.text_of_labels(everything)
    assert charset.name == name and charset.n_classes == charset.blank + 1 == len(charset.keys) + 1 == len(charset.chars) + 1
    assert np.array_equal(charset.labels_of_text(text), everything) and np.array_equal(charset.labels_of_keys(charset.keys), everything)
    assert [charset.index(c) for c in charset.chars] == [charset.index(k) for k in charset.keys] == everything.tolist()
    assert pickle.loads(pickle.dumps(charset)) == charset and get_charset(charset) is charset
    assert len(charset.labels_of_keys([])) == 0 and charset.labels_of_keys([]).dtype == np.int32 and charset.text_of_labels([]) == ""
    assert charset.keep_of_keys([]).shape == (0,)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text(text):
    for charset in CHARSETS.values():
        labels = charset.labels_of_text(text)
        assert len(charset.normalize(text)) == len(text) and charset.normalize(charset.normalize(text)) == charset.normalize(text)
        assert charset.text_of_labels(labels) == charset.clean(text) == charset.clean(charset.clean(text))
        assert charset.keep_of_keys(list(text)).sum() == len(labels)


def test_a_character_means_the_same_alone_and_in_a_text():
    text = "It’s “fine” — crème\r\n\t⇥⌘é…½ﬁ中\x00\x7f"
    assert "".join(QWERTY.normalize(c) for c in text) == QWERTY.normalize(text)
    assert QWERTY.labels_of_keys(list(text)).tolist() == QWERTY.labels_of_text(text).tolist()


def test_finger_sets():
    assert FINGERS.keys == ("Key.space", "j", "k", "l", ";", "r") and "".join(FINGERS.chars) == " jkl;r" and FINGERS.n_classes == 7
    assert FINGERS_NO_REST.keys == FINGERS.keys[:5] and FINGERS_NO_REST.n_classes == 6
    assert FINGERS.clean("r j⌫R") == "r j" and FINGERS_NO_REST.clean("r j") == " j"


def test_errors_name_the_set_and_the_choice():
    for labels in ([98], [-1], [0, 500]):
        with pytest.raises(CharsetError, match="not a key of charset 'qwerty': its keys are 0 to 97, 98 is the blank"):
            QWERTY.text_of_labels(labels)
    with pytest.raises(CharsetError, match="no charset is called 'dvorak'; there are qwerty, fingers, fingers_no_rest"):
        get_charset("dvorak")
    with pytest.raises(CharsetError, match="charset 'fingers' has no 'q'"):
        FINGERS.index("q")
    with pytest.raises(CharsetError, match="charset 'fingers' has no 'q'"):
        FINGERS.without("q", "none")
    for keys, chars, message in ((("a", "a"), ("a", "b"), "key 'a' occurs twice"), (("a", "b"), ("a", "a"), "character 'a' occurs twice"),
                                 (("a",), ("ab",), "not one character"), (("a", "b"), ("a",), "2 keys but 1 characters")):
        with pytest.raises(CharsetError, match=message):
            Charset("odd", keys, chars)


def test_labels_accept_arrays_and_tensors():
    torch = pytest.importorskip("torch")
    assert QWERTY.text_of_labels(np.array([0, 1], dtype=np.int32)) == QWERTY.text_of_labels(torch.tensor([0, 1])) == "ab"


def test_plain_logs_need_no_transliteration_package():
    "A machine without it trains on ASCII; a character that needs it is an error with the remedy, not another label."
    code = ("import sys; sys.modules['text_unidecode'] = None\nfrom semgbook.charset import QWERTY, CharsetError\n"
            "assert len(QWERTY.labels_of_text('Plain\\n⌫text’s')) == 13\n"
            "try: QWERTY.labels_of_text('é')\nexcept CharsetError as e: print(e)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install text-unidecode" in run.stdout, run.stderr


def test_many_presses_cost_one_look_up_each():
    "Answers are remembered: the slow path runs once per different key."
    charset = Charset("fresh", QWERTY.keys, QWERTY.chars)
    charset.labels_of_keys(["é", "a"] * 50_000)
    assert len(charset._raw) == 2 and len(charset._keys) == 2
