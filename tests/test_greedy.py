"Greedy decoding against golden texts, a plain loop, and itself in pieces."

import numpy as np
import pytest
import torch
from toys import check, decoder_cases, one

from semgbook.charset import CHARSETS, FINGERS, QWERTY
from semgbook.ctc import Emissions
from semgbook.greedy import DecodeError, GreedyDecoder, collapse, greedy_decode


@pytest.fixture(scope="module")
def golden(shared): return decoder_cases(shared)


def test_golden_greedy(golden):
    cases, emissions = golden
    for case in cases["greedy"]: check(greedy_decode(one(emissions(case["emissions"])), QWERTY)[0], case)


def test_golden_streaming(golden):
    cases, emissions = golden
    for case in cases["greedy_streaming"]:
        log_probs, decoder = emissions(case["emissions"]), GreedyDecoder("qwerty")
        first, second = decoder.push(log_probs[:case["cut"]]), decoder.push(log_probs[case["cut"]:])
        for expected, pieces in ((case["after_first"], [first]), (case["after_second"], [first, second])):
            assert "".join(p.text for p in pieces) == expected["text"]
            assert np.concatenate([p.labels for p in pieces]).tolist() == expected["labels"]
            times = 100.5 + 0.008 * np.concatenate([p.frames for p in pieces])
            assert times.tolist() == pytest.approx(expected["timestamps"], abs=1e-9)


def test_golden_batch(golden):
    cases, emissions = golden
    batch = cases["batch"]
    padded = torch.nn.utils.rnn.pad_sequence([emissions(i) for i in batch["items"]], batch_first=True)
    for decoded, expected in zip(greedy_decode(Emissions(padded, torch.tensor(batch["lengths"])), QWERTY), batch["greedy"], strict=True):
        check(decoded, expected)


def loop(labels, lengths, blank):
    "Collapse, one frame after the other."
    out = []
    for row, length in zip(labels.tolist(), lengths.tolist(), strict=True):
        keys, frames, last = [], [], blank
        for frame, label in enumerate(row[:length]):
            if label not in (last, blank): keys.append(label); frames.append(frame)
            last = label
        out.append((keys, frames))
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("blank", [0, 2, 4])
def test_collapse_equals_a_loop(seed, blank):
    "Any position of the blank, any lengths including 0 and more than there is."
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (12, 30), generator=generator)
    lengths = torch.randint(0, 31, (12,), generator=generator)
    lengths[0], lengths[1] = 0, 30
    got = [(keys.tolist(), frames.tolist()) for keys, frames in collapse(labels, lengths, blank)]
    assert got == loop(labels, lengths, blank)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_collapse_of_nothing(shape):
    got = collapse(torch.full(shape, 4), torch.full(shape[:1], shape[1]), 4)
    assert len(got) == shape[0] and all(len(keys) == len(frames) == 0 for keys, frames in got)


@pytest.mark.parametrize("name", list(CHARSETS))
def test_every_charset(name):
    charset = CHARSETS[name]
    log_probs = torch.randn(2, 50, charset.n_classes, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    for decoded in greedy_decode(Emissions(log_probs, torch.tensor([50, 20])), name):
        assert len(decoded.text) == len(decoded.labels) == len(decoded.frames)
        assert (np.diff(decoded.frames) > 0).all() and (decoded.labels < charset.blank).all()


def test_padding_is_never_read():
    "Also when the padding is not a number."
    log_probs = torch.randn(1, 40, QWERTY.n_classes, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    alone = greedy_decode(Emissions(log_probs, torch.tensor([40])), QWERTY)[0]
    padded = torch.cat([log_probs, torch.full((1, 10, QWERTY.n_classes), float("nan"))], dim=1)
    again = greedy_decode(Emissions(padded, torch.tensor([40])), QWERTY)[0]
    assert alone.text == again.text and alone.frames.tolist() == again.frames.tolist()


def test_not_a_number_is_found_with_its_place():
    log_probs = torch.randn(3, 40, QWERTY.n_classes).log_softmax(-1)
    log_probs[1, 17, 5] = float("nan")
    with pytest.raises(DecodeError, match="example 1 .* frame 17"): greedy_decode(Emissions(log_probs, torch.full((3,), 40)), QWERTY)


def test_wrong_charset_is_refused():
    with pytest.raises(DecodeError, match="99 classes.*'fingers' has 7"): greedy_decode(one(torch.zeros(4, 99)), FINGERS)
    with pytest.raises(DecodeError, match="charset"): GreedyDecoder(FINGERS).push(torch.zeros(4, 99))


def test_low_precision_and_gradients_are_fine():
    log_probs = torch.randn(1, 40, QWERTY.n_classes).log_softmax(-1)
    half = log_probs.to(torch.bfloat16)
    assert greedy_decode(Emissions(half, torch.tensor([40])), QWERTY)[0].text == greedy_decode(one(half[0].float()), QWERTY)[0].text
    assert greedy_decode(one(log_probs[0].requires_grad_()), QWERTY)[0].labels.dtype == np.int32


def test_stream_in_random_pieces():
    generator = torch.Generator().manual_seed(3)
    log_probs = torch.randn(200, FINGERS.n_classes, generator=generator).log_softmax(-1)
    log_probs = log_probs.repeat_interleave(2, dim=0)   # held keys, so that cuts fall inside them
    whole, decoder = greedy_decode(one(log_probs), FINGERS)[0], GreedyDecoder(FINGERS)
    for _ in range(20):
        cuts = torch.randint(0, 401, (7,), generator=generator).sort().values.tolist()
        pieces = [decoder.push(piece) for piece in torch.tensor_split(log_probs, cuts)]
        assert "".join(p.text for p in pieces) == whole.text
        assert np.concatenate([p.frames for p in pieces]).tolist() == whole.frames.tolist()
        decoder.reset()
