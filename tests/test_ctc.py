"Head, loss and detector, against sums over all alignments and against torch."
import itertools
import math

import pytest
import torch
from torch.nn import functional

from semgbook.ctc import AllBlankDetector, BabbleDetector, CTCError, CTCHead, Emissions, blank_fraction, ctc_loss, is_all_blank, min_frames


def emissions(n=3, t=9, k=4, lengths=None, seed=0):
    log_probs = torch.randn(n, t, k, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    return Emissions(log_probs, torch.tensor(lengths or [t] * n))


def by_brute_force(probs, target):
    "Sum over all alignments, -log."
    total = 0.0
    for path in itertools.product(range(probs.shape[1]), repeat=len(probs)):
        if [k for k, _ in itertools.groupby(path) if k != probs.shape[1] - 1] == target: total += math.prod(float(probs[t, k]) for t, k in enumerate(path))
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("target", [[], [0], [0, 1], [1, 1], [0, 1, 0], [1, 1, 1], [2, 2, 0]])
def test_loss_is_the_sum_over_all_alignments(target):
    e = emissions(1, 6, 4, [5])
    labels = torch.tensor([target + [0] * (4 - len(target))])
    loss, n_skipped = ctc_loss(e, labels, torch.tensor([len(target)]))
    expected = by_brute_force(e.log_probs[0, :5].exp(), target) / max(len(target), 1)
    assert loss.item() == pytest.approx(expected, rel=1e-5) and n_skipped == 0


def test_loss_is_torch_mean_when_everything_fits():
    e = emissions(4, 30, 7, [30, 22, 30, 11])
    labels, label_lengths = torch.randint(0, 6, (4, 5)), torch.tensor([5, 3, 0, 1])
    expected = functional.ctc_loss(e.log_probs.transpose(0, 1), labels, e.lengths, label_lengths, blank=6, reduction="mean")
    for skip in (True, False): torch.testing.assert_close(ctc_loss(e, labels, label_lengths, skip)[0], expected)


def test_min_frames_is_where_the_loss_becomes_finite():
    labels, label_lengths = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [2, 2, 2, 2, 2], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]), torch.tensor([5, 4, 5, 2, 0])
    needs = min_frames(labels, label_lengths)
    assert needs.tolist() == [8, 4, 9, 3, 0]
    for i, n in enumerate(needs.tolist()):
        for t in range(max(n - 2, 1), n + 2):
            e = emissions(1, 12, 4, [t])
            assert ctc_loss(e, labels[i:i + 1], label_lengths[i:i + 1], skip_impossible=False)[0].isfinite() == (t >= n)
    assert min_frames(torch.zeros(2, 0, dtype=torch.int64), torch.tensor([0, 0])).tolist() == [0, 0]
    assert min_frames(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([1, 0])).tolist() == [1, 0]


def test_impossible_examples_are_left_out_and_counted():
    labels, label_lengths = torch.tensor([[0, 1, 2], [1, 1, 0], [0, 0, 0], [0, 1, 2]]), torch.tensor([3, 2, 0, 3])
    scores = torch.randn(4, 8, 4, requires_grad=True)
    e = Emissions(scores.log_softmax(-1), torch.tensor([8, 2, 0, 7]))  # the second does not fit, the third has no frame
    loss, n_skipped = ctc_loss(e, labels, label_lengths)
    keep = Emissions(e.log_probs[[0, 3]], e.lengths[[0, 3]])
    torch.testing.assert_close(loss, ctc_loss(keep, labels[[0, 3]], label_lengths[[0, 3]])[0])
    loss.backward()
    assert n_skipped == 2 and scores.grad.isfinite().all()
    assert (scores.grad[1:3] == 0).all() and (scores.grad[3, 7:] == 0).all() and (scores.grad[0] != 0).any()
    assert ctc_loss(e, labels, label_lengths, skip_impossible=False)[0] == math.inf


def test_nothing_fits():
    scores = torch.randn(2, 3, 4, requires_grad=True)
    loss, n_skipped = ctc_loss(Emissions(scores.log_softmax(-1), torch.tensor([2, 0])), torch.tensor([[1, 1], [0, 1]]), torch.tensor([2, 2]))
    loss.backward()
    assert loss == 0 and n_skipped == 2 and (scores.grad == 0).all()


def test_padding_and_order_do_not_matter():
    e, labels, label_lengths = emissions(3, 20, 5, [20, 13, 9]), torch.randint(0, 4, (3, 4)), torch.tensor([4, 2, 3])
    junk = e.log_probs.clone()
    junk[1, 13:], junk[2, 9:] = torch.randn(7, 5), torch.randn(11, 5)
    wider = torch.cat([labels, torch.full((3, 3), 2)], 1)
    shuffled = Emissions(junk[[2, 0, 1]], e.lengths[[2, 0, 1]])
    expected = ctc_loss(e, labels, label_lengths)[0]
    torch.testing.assert_close(ctc_loss(shuffled, wider[[2, 0, 1]], label_lengths[[2, 0, 1]])[0], expected)
    assert blank_fraction(Emissions(junk, e.lengths)) == blank_fraction(e)


def test_loss_and_head_stay_in_32_bits():
    head, features = CTCHead(6, 4), torch.randn(2, 9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        e = head(features.bfloat16(), torch.tensor([9, 7]))
        loss, _ = ctc_loss(e, torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 1]))
    assert e.log_probs.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(e.log_probs, head(features.bfloat16().float(), e.lengths).log_probs)
    half = Emissions(e.log_probs.detach().bfloat16(), e.lengths)
    assert ctc_loss(half, torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 1]))[0].dtype == torch.float32
    assert head.double()(features.double(), e.lengths).log_probs.dtype == torch.float64


def test_blank_bias():
    torch.manual_seed(0)
    plain = CTCHead(6, 4)
    torch.manual_seed(0)
    held = CTCHead(6, 4, blank_bias=-2.0)
    assert held.linear.bias[-1] == plain.linear.bias[-1] - 2 and torch.equal(held.linear.bias[:-1], plain.linear.bias[:-1])


@pytest.mark.parametrize("labels, label_lengths, lengths, words", [
    ([[3, 0]], [1], [9], "is the blank"), ([[-1, 0]], [1], [9], "between 0 and 2"), ([[0, 0]], [1], [10], "out_lengths"),
    ([[0, 0], [0, 0]], [1, 1], [9], "emissions of 1 examples"), ([[0, 0]], [1, 1], [9], "2 label lengths"),
])
def test_messages(labels, label_lengths, lengths, words):
    with pytest.raises(CTCError, match=words): ctc_loss(emissions(1, 9, 4, lengths), torch.tensor(labels), torch.tensor(label_lengths))


def test_padding_labels_may_be_anything():
    e = emissions(1, 9, 4)
    a, b = (ctc_loss(e, torch.tensor([[0, 1, pad, pad]]), torch.tensor([2]))[0] for pad in (0, -7))
    torch.testing.assert_close(a, b)


def test_blank_share_counts_valid_frames_only():
    log_probs = torch.full((2, 4, 3), -5.0)
    log_probs[:, :, 2] = 0
    log_probs[0, 3, 0] = log_probs[1, 0, 1] = 1
    assert blank_fraction(Emissions(log_probs, torch.tensor([4, 4]))) == 6 / 8
    assert is_all_blank(Emissions(log_probs, torch.tensor([3, 0])))
    assert not is_all_blank(Emissions(log_probs, torch.tensor([3, 1])))


def test_detector_speaks_after_patience_and_again_and_starts_over():
    detector, silent, fine = AllBlankDetector(patience=3), 1.0, 0.95
    said = [bool(detector.epoch(share)) for share in [silent] * 2 + [fine] + [silent] * 7]
    assert said == [False] * 5 + [True, False, False, True, False]


def test_message_tells_the_rate_and_the_remedies_in_measured_order():
    said = AllBlankDetector(patience=1).epoch(1.0, lr=1e-8)
    assert "1.0e-08" in said and "not known" in AllBlankDetector(patience=1).epoch(1.0)
    places = [said.index(word) for word in ("optimiser.clip", "blank_bias=4", "one_cycle", "labels do not belong")]
    assert places == sorted(places) and "blank_bias=-" not in said


def test_detector_adds_up_batches():
    log_probs = torch.zeros(1, 1000, 3)
    log_probs[..., 2] = 1
    busy = log_probs.clone()
    busy[0, :3, 0] = 2
    detector = AllBlankDetector(patience=1)
    for part in (log_probs, busy): detector.add(Emissions(part, torch.tensor([1000])))
    assert detector.end_epoch() == "" and detector.share == pytest.approx(1997 / 2000)
    detector.add(Emissions(log_probs, torch.tensor([1000])))
    assert "100.00%" in detector.end_epoch()
    assert detector.end_epoch() == ""  # nothing was added


def test_babble_needs_few_blanks_and_a_high_rate_at_once():
    detector, babble = BabbleDetector(patience=2), dict(share=0.0, cer=95.0)
    epochs = [babble, babble, babble, dict(share=0.3, cer=95.0), babble, dict(share=0.0, cer=20.0), babble, dict(share=1.0, cer=100.0), babble, babble]
    assert [bool(detector.epoch(**e)) for e in epochs] == [False, True, False, False, False, False, False, False, False, True]
    assert not any(detector.epoch(0.0, cer=unknown) for unknown in (None, float("nan")) * 3)
    with pytest.raises(TypeError, match="cer"): detector.epoch(0.0)


def test_the_two_detectors_never_speak_of_the_same_epoch():
    for share, cer in itertools.product((0.0, 0.04, 0.5, 0.9989, 1.0), (0.0, 94.0, 100.0, 560.0)):
        blank, babble = AllBlankDetector(patience=1).epoch(share), BabbleDetector(patience=1).epoch(share, cer=cer)
        assert not (blank and babble) and bool(babble) == (share < 0.1 and cer > 90) and bool(blank) == (share == 1)


def test_babble_message_has_the_measured_cure_and_the_facts():
    said = BabbleDetector(patience=1).epoch(0.0123, 3e-3, cer=94.61)
    assert all(fact in said for fact in ("1.23%", "94.6 %", "3.0e-03", "blank_bias=4", "1 epochs")) and "not known" in BabbleDetector(patience=1).epoch(0.0, cer=95)
    assert "One cure" in said and "  1." not in said


def test_babble_adds_up_batches():
    log_probs = torch.zeros(1, 100, 3)
    log_probs[..., 0] = 1
    spoken, silent = Emissions(log_probs, torch.tensor([100])), Emissions(log_probs.roll(2, -1), torch.tensor([100]))
    detector = BabbleDetector(patience=1)
    for part in (spoken, silent): detector.add(part)
    assert detector.end_epoch(cer=95.0) == "" and detector.share == 0.5
    detector.add(spoken)
    assert "0.00%" in detector.end_epoch(1e-3, cer=95.0)
    assert detector.end_epoch(cer=95.0) == ""  # nothing was added


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_loss_equals_cpu():
    e, labels, label_lengths = emissions(4, 30, 7, [30, 2, 0, 11]), torch.randint(0, 6, (4, 5)), torch.tensor([5, 3, 0, 1])
    loss, n_skipped = ctc_loss(e, labels, label_lengths)
    there = ctc_loss(Emissions(e.log_probs.cuda(), e.lengths.cuda()), labels.cuda(), label_lengths.cuda())
    torch.testing.assert_close(there[0].cpu(), loss, atol=1e-4, rtol=1e-4)
    assert there[1].cpu() == n_skipped
