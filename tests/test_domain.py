"Gradients of joined branches, cap, schedule, pooling, distances and objective; and a probe that neither flatters nor forgets."
import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from semgbook.domain import (DomainError, DomainObjective, DomainSettings, coral_distance, domain_weight, fit_probe, fresh_probe,
                             join_branches, mmd_distance, pool_features, probe_interval, reverse_gradient, split_rows, time_blocks)

METHODS = [DomainSettings("dann", hidden=8), DomainSettings("dann", hidden=8, pooling="frame"), DomainSettings("dann", hidden=0), DomainSettings("coral"), DomainSettings("mmd")]


def seeded(seed): return torch.Generator().manual_seed(seed)


def name(settings): return f"{settings.method}-{settings.pooling}-{settings.hidden}"


each_method = pytest.mark.parametrize("settings", METHODS, ids=name)


def example(seed=0, n=12, t=9, d=5, users=3, dtype=torch.float64):
    "Features, lengths, users of a batch with unequal lengths."
    g = seeded(seed)
    return torch.randn(n, t, d, generator=g, dtype=dtype), torch.randint(2, t + 1, (n,), generator=g), torch.arange(n) % users


def objective_of(settings, d=5, users=3, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return DomainObjective(settings, d, users).to(dtype)


# ---------------------------------------------------------------------------------------------------- the fork
@pytest.mark.parametrize("lam", [0.0, 0.3, 2.0])
def test_reversal_is_minus_lambda(lam):
    x = torch.randn(4, 3, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    pull = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    y = reverse_gradient(x, lam)
    assert torch.equal(y, x)
    assert torch.allclose(torch.autograd.grad((y * pull).sum(), x)[0], -lam * pull, rtol=1e-14)


def test_cap_holds_for_any_gradients():
    "Never above cap times the task's norm, never stronger than lambda, always straight against the domain gradient; untouched where the cap does not bind."
    rng, bound = np.random.default_rng(0), 0
    for case in range(300):
        g = seeded(case)
        task, domain = (10 ** rng.uniform(-8, 8) * torch.randn(rng.integers(1, 5), 7, 3, generator=g, dtype=torch.float64) for _ in range(2))
        domain = domain[:1].expand_as(task).contiguous()
        if case % 20 == 0: task = torch.zeros_like(task)
        if case % 20 == 1: domain = torch.zeros_like(domain)
        factor, cap = float(rng.choice([-1, 1]) * 10 ** rng.uniform(-2, 2)), float(10 ** rng.uniform(-2, 1))
        x, norms = torch.zeros_like(task, requires_grad=True), {}
        a, b = join_branches(x, factor, cap, norms)
        felt = torch.autograd.grad((a * task).sum() + (b * domain).sum(), x)[0]
        wanted, allowed = abs(factor) * domain.norm(), cap * task.norm()
        expected = task + factor * domain * (min(1.0, float(allowed / wanted)) if wanted > 0 else 0.0)
        assert torch.allclose(felt, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
        assert norms["applied"] <= allowed and norms["applied"] <= wanted * (1 + 1e-12)
        assert torch.isclose(norms["task_norm"], task.norm(), rtol=1e-12) and torch.isclose(norms["domain_norm"], domain.norm(), rtol=1e-12)
        bound += bool(wanted > allowed)
    assert 60 < bound < 240


@each_method
def test_gradients_are_those_of_the_formula(settings):
    "Finite differences of the task and of the penalty, put together by hand, are what features and classifier get."
    features, lengths, domains = example()
    objective, step = objective_of(settings), 1e-6
    weight = domain_weight(settings, 0.6)
    pull = torch.randn(features.shape, generator=seeded(5), dtype=torch.float64)
    x = features.clone().requires_grad_()
    task, penalty, _ = objective(x, lengths, domains, 0.6)
    ((task * pull).sum() + penalty).backward()

    def loss_at(moved): return objective(moved, lengths, domains, 0.6)[2]["domain_loss"].item()

    sign = -weight if settings.method == "dann" else weight
    for place in [(0, 0, 0), (3, 1, 4), (7, 0, 2), (11, 1, 1)]:
        bump = torch.zeros_like(features)
        bump[place] = step
        slope = (loss_at(features + bump) - loss_at(features - bump)) / (2 * step)
        assert abs(slope) > 1e-7
        assert x.grad[place].item() == pytest.approx(pull[place].item() + sign * slope, rel=1e-5, abs=1e-8)
    for parameter in objective.parameters():
        flat = parameter.data.view(-1)
        value = flat[0].item()
        flat[0] = value + step
        above = loss_at(features)
        flat[0] = value - step
        slope, flat[0] = (above - loss_at(features)) / (2 * step), value
        assert parameter.grad.view(-1)[0].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)  # plain: neither reversed nor weighted


def test_norms_are_those_of_the_two_branches():
    features, lengths, domains = example()
    objective = objective_of(DomainSettings("dann", cap=0.1, weight=50.0, ramp=0.0))
    x = features.clone().requires_grad_()
    task, penalty, _ = objective(x, lengths, domains, 0.5)
    assert objective.norms == {}
    (task.square().sum() + penalty).backward()
    apart = features.clone().requires_grad_()
    loss = objective.head(apart, lengths, domains)[0]
    alone = torch.autograd.grad(loss, apart)[0]
    seen = objective.norms
    assert seen["task_norm"].item() == pytest.approx((2 * features).norm().item()) and seen["domain_norm"].item() == pytest.approx(alone.norm().item())
    assert seen["applied"].item() == pytest.approx(min(50 * alone.norm().item(), 0.1 * (2 * features).norm().item()))
    objective(x, lengths, domains, 0.5)
    assert objective.norms == {}, "norms of an earlier step must not pass for those of this one"


# ---------------------------------------------------------------------------------------------------- schedule and warm-up
def test_lambda_is_the_published_curve():
    for k, w in ((10.0, 1.0), (2.5, 0.3)):
        for p in np.linspace(0, 1, 11): assert domain_weight(DomainSettings("dann", weight=w, ramp=k), p) == pytest.approx(w * (2 / (1 + math.exp(-k * p)) - 1), abs=1e-15)
    late = DomainSettings("dann", warmup=0.4)
    assert domain_weight(late, 0.3999) == 0 == domain_weight(late, 0.4)
    assert domain_weight(late, 0.7) == pytest.approx(domain_weight(DomainSettings("dann"), 0.5))
    constant = DomainSettings("dann", weight=0.2, ramp=0.0, warmup=0.4)
    assert [domain_weight(constant, p) for p in (0, 0.39, 0.4, 1)] == [0, 0, 0.2, 0.2]
    assert domain_weight(DomainSettings("dann", ramp=1e6), 1.0) == 1.0
    for bad in (-0.1, 1.01, math.nan):
        with pytest.raises(DomainError, match="progress"): domain_weight(late, bad)


@each_method
@pytest.mark.parametrize("cap", [0.0, 0.3])
def test_warm_up_leaves_the_encoder_alone(settings, cap):
    "Bit for bit the gradient of the task, while a classifier learns; afterwards not."
    settings = dataclasses.replace(settings, warmup=0.5, cap=cap)
    features, lengths, domains = example()
    objective, pull = objective_of(settings), torch.randn(features.shape, generator=seeded(5), dtype=torch.float64)
    for progress, alone in ((0.1, True), (0.49, True), (0.8, False)):
        x = features.clone().requires_grad_()
        objective.zero_grad()
        task, penalty, facts = objective(x, lengths, domains, progress)
        ((task * pull).sum() + penalty).backward()
        assert torch.equal(x.grad, pull) == alone and (facts["domain_weight"] == 0) == alone
        assert all(p.grad.abs().sum() > 0 for p in objective.parameters())


def test_without_a_method_nothing_happens():
    features, lengths, domains = example()
    objective = DomainObjective(DomainSettings(), 5, 1)  # even with one user
    task, penalty, facts = objective(features, lengths, domains, 0.5)
    assert task is features and penalty == 0 and facts == {} and not list(objective.parameters())


@each_method
def test_building_it_changes_no_other_draw(settings):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    DomainObjective(settings, 5, 3)
    assert torch.equal(torch.rand(4), expected)


# ---------------------------------------------------------------------------------------------------- mixed precision
@pytest.mark.parametrize("cap", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**16])
def test_a_scaled_loss_gives_scaled_gradients(scale, cap):
    "What a gradient scaler multiplies in comes out as a factor, in the cap too."
    features, lengths, domains = example(dtype=torch.float32)
    grads = []
    for factor in (1.0, scale):
        objective, x = objective_of(DomainSettings("dann", cap=cap, weight=30.0), dtype=torch.float32), features.clone().requires_grad_()
        task, penalty, _ = objective(x, lengths, domains, 0.7)
        (factor * (1e-2 * task.square().mean() + penalty)).backward()
        grads.append(([x.grad / factor, *(p.grad / factor for p in objective.parameters())], objective.norms))
    for a, b in zip(grads[0][0], grads[1][0], strict=True): assert torch.allclose(a, b, rtol=1e-5, atol=1e-9)
    ratio = [float(n["applied"] / n["task_norm"]) for _, n in grads]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-5) and (not cap or ratio[0] == pytest.approx(0.2, rel=1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_method
def test_half_precision_features(settings, dtype):
    "Under autocast the objective computes in 32 bits, whatever the features come in; the gradients agree to the digits that halves have."
    features, lengths, domains = example(dtype=torch.float32)
    settings, pulls = dataclasses.replace(settings, cap=0.5, weight=20.0), []
    for kind in (torch.float32, dtype):
        x = features.to(dtype).to(kind).requires_grad_()
        objective = objective_of(settings, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == dtype): task, penalty, facts = objective(x, lengths, domains, 0.9)
        assert penalty.dtype == torch.float32 and task.dtype == kind
        (1e4 * (task.float().square().mean() + penalty)).backward()  # as a scaler would
        assert x.grad.dtype == kind and objective.norms["applied"].dtype == torch.float32
        pulls.append((x.grad.float(), penalty.item(), objective.norms))
    (a, p, m), (b, q, n) = pulls
    assert p == pytest.approx(q, rel=1e-5)
    assert (a - b).norm() < 0.02 * a.norm() and float(n["applied"]) == pytest.approx(float(m["applied"]), rel=0.02)
    assert n["applied"] <= 0.5 * n["task_norm"]


def test_large_half_gradients_do_not_overflow_in_the_norm():
    x, norms = torch.zeros(8, 100, 32, dtype=torch.float16, requires_grad=True), {}
    a, b = join_branches(x, -1.0, 0.1, norms)
    ((a * torch.full_like(a, 3e4)).sum() + (b * torch.full_like(b, 5e4)).sum()).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(norms["applied"]) and (x.grad.float() - 2.7e4).abs().max() < 32


def test_infinite_gradients_reach_the_scaler():
    "A step that overflowed must be seen as such, whichever branch it came from."
    for task, domain in ((math.inf, 1.0), (1.0, math.inf), (math.nan, 1.0), (1.0, math.nan)):
        for cap in (0.0, 0.3):
            x = torch.zeros(3, requires_grad=True)
            a, b = join_branches(x, -1.0, cap)
            ((a * task).sum() + (b * domain).sum()).backward()
            assert not torch.isfinite(x.grad).all()
    x = torch.zeros(3, requires_grad=True)
    a, b = join_branches(x, 0.0)
    (2 * a.sum() + (b * math.inf).sum()).backward()
    assert x.grad.tolist() == [2, 2, 2], "a stopped branch passes nothing on, not even an overflow"


# ---------------------------------------------------------------------------------------------------- padding and pooling
@each_method
def test_padded_frames_have_no_influence(settings):
    "Not their values, not even not-a-number, not their number; and they get no gradient."
    features, lengths, domains = example()
    mask = torch.arange(9) < lengths[:, None]
    outcomes = []
    for filling, extra in ((0.0, 0), (1e6, 0), (math.nan, 0), (7.0, 5)):
        x = features.masked_fill(~mask[..., None], filling)
        x = torch.cat([x, torch.full((12, extra, 5), filling, dtype=x.dtype)], 1).requires_grad_()
        objective = objective_of(settings)
        _, penalty, facts = objective(x, lengths, domains, 0.9)
        penalty.backward()
        padded = torch.arange(x.shape[1]) >= lengths[:, None]
        assert not x.grad[padded].any() and x.grad[~padded].any()
        outcomes.append((penalty.item(), facts["domain_accuracy"].item(), x.grad[:, :9][mask]))
    for penalty, accuracy, grad in outcomes[1:]:
        assert penalty == pytest.approx(outcomes[0][0], rel=1e-12) and torch.allclose(grad, outcomes[0][2], rtol=1e-9)
        assert accuracy == outcomes[0][1] or math.isnan(accuracy)


def test_pooling_is_mean_and_deviation_of_what_is_there():
    features, lengths, _ = example()
    pooled = pool_features(features, lengths)
    for row, x, n in zip(pooled, features, lengths):
        assert torch.allclose(row[:5], x[:n].mean(0)) and torch.allclose(row[5:], (x[:n].var(0, correction=0) + 1e-5).sqrt())
    still = torch.ones(2, 4, 3, requires_grad=True)
    pool_features(still, torch.tensor([4, 0])).sum().backward()
    assert torch.isfinite(still.grad).all()
    assert pool_features(features.half(), lengths).dtype == torch.float32


def test_frame_pooling_weighs_frames_and_votes_by_window():
    "The loss is the mean over all valid frames, and a window is right when most of its frames are."
    objective = objective_of(DomainSettings("dann", pooling="frame", hidden=0), d=2, users=2)
    linear = objective.head.layers[0]
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
        linear.bias.zero_()
    score = torch.tensor([[[3.0, 0], [3, 0], [0, 9]], [[0, 1], [5, 0], [5, 0]], [[0, 1], [0, 1], [9, 0]]], dtype=torch.float64)
    lengths, domains = torch.tensor([3, 1, 2]), torch.tensor([0, 0, 1])
    loss, right = objective.head(score, lengths, domains)
    rows = torch.cat([s[:n] for s, n in zip(score, lengths)])
    assert loss.item() == pytest.approx(functional.cross_entropy(rows, torch.tensor([0, 0, 0, 0, 1, 1])).item())
    assert right.tolist() == [True, False, True]


def test_label_smoothing_reaches_the_classifier():
    features, lengths, domains = example()
    for pooling in ("time", "frame"):
        values = [objective_of(DomainSettings("dann", pooling=pooling, smoothing=s, hidden=8))(features, lengths, domains, 0.5)[1].item() for s in (0.0, 0.2)]
        assert values[0] != values[1]


# ---------------------------------------------------------------------------------------------------- distances
def plain_coral(x, users):
    "Pair by pair, with covariances written out."
    x = x - x.mean(0)
    x = x / x.square().mean().sqrt()
    groups = [x[users == u] for u in users.unique() if (users == u).sum() > 1]
    found = [(a.mean(0) - b.mean(0)).square().mean() + (torch.cov(a.T) - torch.cov(b.T)).square().mean() for i, a in enumerate(groups) for b in groups[:i]]
    return torch.stack(found).mean()


def plain_mmd(x, users):
    "Pair by pair, sums over distinct windows."
    x = x - x.mean(0)
    x = x / x.square().mean().sqrt()
    groups = [x[users == u] for u in users.unique() if (users == u).sum() > 1]

    def kernel(a, b): return sum(torch.exp(-torch.cdist(a, b).square() / (2 * x.shape[1] * s)) for s in (0.25, 1, 4)) / 3

    def within(a):
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return torch.stack([within(a) + within(b) - 2 * kernel(a, b).mean() for i, a in enumerate(groups) for b in groups[:i]]).mean()


@pytest.mark.parametrize("fast,plain", [(coral_distance, plain_coral), (mmd_distance, plain_mmd)])
def test_distances_equal_the_pairs_written_out(fast, plain):
    rng = np.random.default_rng(0)
    for case in range(20):
        users = torch.from_numpy(np.concatenate([[0, 0, 1, 1, 3], rng.integers(0, 6, 12)]))
        x = torch.randn(17, 4, generator=seeded(case), dtype=torch.float64) * torch.tensor([1, 2, 5, 0.1]) + users[:, None] * rng.random()
        assert fast(x, users, 7).item() == pytest.approx(plain(x, users).item(), rel=1e-8)
        assert fast(3 * x + 100, users, 7).item() == pytest.approx(fast(x, users, 7).item(), rel=1e-7)  # shrinking everything gains nothing


@pytest.mark.parametrize("distance", [coral_distance, mmd_distance])
def test_distances_of_lonely_windows_are_zero(distance):
    x = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    for users in ([0, 1, 2, 3, 4], [2, 2, 2, 2, 2], [0, 0, 0, 1, 2]):
        value = distance(x, torch.tensor(users), 5)
        assert abs(value.item()) < 1e-12 and torch.autograd.grad(value, x)[0].abs().max() < 1e-9
    assert torch.isfinite(torch.autograd.grad(distance(torch.ones(4, 3, requires_grad=True) * x[:1].float(), torch.tensor([0, 0, 1, 1]), 2), x)[0]).all()


def test_mmd_sees_shape_and_is_fair():
    "Same mean and covariance, another distribution: found. The same distribution: zero on average."
    g = seeded(0)
    n, users = 400, torch.arange(800) // 400
    normal, signs = torch.randn(n, 1, generator=g, dtype=torch.float64), torch.randint(2, (n, 1), generator=g).double() * 2 - 1
    assert mmd_distance(torch.cat([normal, signs]), users, 2) > 0.05
    fair = [mmd_distance(torch.randn(9, 4, generator=g, dtype=torch.float64), torch.arange(9) % 3, 3).item() for _ in range(400)]
    assert abs(np.mean(fair)) < 4 * np.std(fair) / 20 + 0.01 and min(fair) < 0


# ---------------------------------------------------------------------------------------------------- facts and state
def test_facts_are_detached_and_true():
    features, lengths, domains = example(users=3)
    domains = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    for settings in METHODS:
        objective = objective_of(settings)
        x = features.clone().requires_grad_()
        for _ in range(2): task, penalty, facts = objective(x, lengths, domains, 0.5)
        assert set(facts) == {"domain_loss", "domain_accuracy", "domain_weight", "domain_chance"}
        assert not any(v.requires_grad for v in facts.values() if isinstance(v, torch.Tensor))
        assert facts["domain_chance"].item() == 0.5 and objective.seen.tolist() == [12, 8, 4]
        assert facts["domain_weight"] == domain_weight(settings, 0.5)
        assert penalty.item() == pytest.approx(facts["domain_loss"].item() * (1 if settings.method == "dann" else facts["domain_weight"]))
    assert math.isnan(facts["domain_accuracy"])
    known = objective_of(DomainSettings("dann", hidden=0), d=3)
    with torch.no_grad(): known.head.layers[0].weight.copy_(torch.eye(6)[:3])
    told = functional.one_hot(domains, 3).double()[:, None].expand(12, 9, 3) * 100
    assert known(told, lengths, domains, 0)[2]["domain_accuracy"] == 1 and known(told, lengths, (domains + 1) % 3, 0)[2]["domain_accuracy"] == 0


def test_counts_of_users_travel_and_rest_in_evaluation():
    features, lengths, domains = example()
    objective = objective_of(METHODS[0])
    objective(features, lengths, torch.zeros(12, dtype=torch.long), 0.1)
    objective.eval()
    objective(features, lengths, domains, 0.1)
    other = objective_of(METHODS[0], seed=1)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert other.seen.tolist() == [12, 0, 0]


def test_an_encoder_can_be_made_to_forget():
    "MMD on a linear encoder takes out a shift that a fresh probe finds without it, and keeps what the task needs."
    def train(settings):
        torch.manual_seed(0)
        encoder, head, objective, g = nn.Linear(2, 2), nn.Linear(2, 2), DomainObjective(settings, 2, 2), seeded(4)
        optimiser, lengths = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 0.02), torch.full((300,), 4)

        def draw(n):
            y, u = torch.randint(2, (n,), generator=g), torch.arange(n) % 2
            centre = torch.stack([2.0 * y - 1 + u, 2.0 * u], 1)
            return (centre + 0.3 * torch.randn(n, 2, generator=g))[:, None].expand(n, 4, 2), y, u

        for step in range(120):
            x, y, u = draw(40)
            features, penalty, _ = objective(encoder(x), lengths[:40], u, step / 120)
            optimiser.zero_grad()
            (functional.cross_entropy(head(features.mean(1)), y) + penalty).backward()
            optimiser.step()
        x, y, u = draw(300)
        features = encoder(x).detach()
        return (head(features.mean(1)).argmax(1) == y).float().mean(), fresh_probe(features.mean(1), u, l2=1e-3)

    (_, before), (read, after) = train(DomainSettings()), train(DomainSettings("mmd", weight=3.0, ramp=0.0))
    assert before.low > 0.9 and after.accuracy < 0.8 and after.high < before.low and read > 0.9


def test_standardised_hearing_cannot_be_escaped_by_shrinking_or_shifting():
    "Features that shrink and move together are judged as before, and the classifier still hands a gradient back; the plain one goes deaf."
    g = seeded(7)
    x, lengths, users = torch.randn(24, 10, 5, generator=g) + torch.arange(24)[:, None, None] % 3, torch.full((24,), 10), torch.arange(24) % 3
    losses, slopes = {}, {}
    for standardised in (False, True):
        torch.manual_seed(1)
        objective = DomainObjective(DomainSettings("dann", ramp=0.0, hidden=16, standardised=standardised), 5, 3)
        for name, features in (("plain", x), ("moved", 0.3 * x - 50)):
            features = features.clone().requires_grad_()
            _, penalty, _ = objective(features, lengths, users, 0.5)
            penalty.backward()
            losses[standardised, name], slopes[standardised, name] = penalty.item(), features.grad.norm().item()
    assert losses[True, "moved"] == pytest.approx(losses[True, "plain"], abs=0.01) and slopes[True, "moved"] > slopes[True, "plain"]
    assert abs(losses[False, "moved"] - losses[False, "plain"]) > 0.5
    with pytest.raises(DomainError, match="standardised.*pooling"): DomainSettings("dann", pooling="frame", standardised=True)


# ---------------------------------------------------------------------------------------------------- the probe
def drifting(seed, n_rows=90, n_users=4, d=6, strength=0.0):
    "Users in one block of rows each, features of a random sign of the user plus noise."
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), n_rows)
    return rng.normal(size=(len(users), d)) + strength * np.eye(n_users, d)[users], users


def test_probe_is_at_chance_on_noise_and_sure_on_separable_data():
    covered = []
    for seed in range(12):
        found = fresh_probe(*drifting(seed), seed=seed, l2=1e-2)
        covered.append(found.low <= found.chance <= found.high)
        assert abs(found.accuracy - 0.25) < 0.13 and found.chance == 0.25
    assert np.mean(covered) >= 0.75
    plain = fresh_probe(*drifting(0, strength=8.0))
    assert plain.accuracy > 0.99 and plain.low > 0.95 and plain.high == 1.0
    middle = fresh_probe(*drifting(0, strength=1.0))
    assert 0.4 < middle.low < middle.accuracy < middle.high < 0.9


def test_probe_is_a_function_of_its_arguments():
    x, users = drifting(0, strength=0.7)
    first = fresh_probe(torch.from_numpy(x), users, seed=3)
    torch.manual_seed(8)
    np.random.seed(8)
    names = np.array(["zoe", "ada", "ben", "cleo"])[users]
    assert fresh_probe(x, torch.from_numpy(users), seed=3) == first
    assert fresh_probe(x, names, seed=3).n == first.n
    assert len({fresh_probe(x, users, seed=s, l2=1e-2).accuracy for s in range(4)}) > 1
    x, users = drifting(0, strength=4.0)
    plain, scaled = (fresh_probe(x * units, users, l2=1e-2).accuracy for units in (1, np.array([1e-4, 1e-4, 1e-4, 1e-4, 1, 1])))
    assert plain > 0.9 and scaled == pytest.approx(plain, abs=0.01)  # units of the features do not matter


def test_probe_does_not_learn_from_neighbours():
    "Features that wander and know no user: found with rows at random, not in blocks."
    rng = np.random.default_rng(0)
    wandering, users = rng.normal(size=(960, 8)).cumsum(0), np.tile(np.repeat([0, 1, 2, 3], 20), 12)
    leaky = fresh_probe(wandering, users, groups=np.arange(960), gap=0, l2=1e-4)
    fair = fresh_probe(wandering, users, n_blocks=12, l2=1e-4)
    assert leaky.low > 0.3 and fair.accuracy < leaky.low and fair.low <= fair.chance


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_split_keeps_groups_whole_and_a_gap_between(gap):
    rng = np.random.default_rng(1)
    users = rng.integers(0, 3, 300)  # users in turn, row by row
    groups = time_blocks(users, 6)
    train, test = split_rows(users, groups, rng, 0.4, gap)
    assert not (train & test).any()
    for user in range(3):
        rows = np.flatnonzero(users == user)
        held = set(groups[rows][test[rows]])
        assert len(held) == 2 and test[rows].sum() == np.isin(groups[rows], list(held)).sum()
        assert np.array_equal(np.sort(groups[rows]), groups[rows])  # blocks are stretches of the user's own time
        distance = np.abs(np.flatnonzero(test[rows])[:, None] - np.flatnonzero(train[rows])).min()
        assert distance == gap + 1
        unused = ~(train | test)[rows]
        assert unused.sum() <= 4 * gap
    for share, held in ((0.01, 1), (0.5, 3), (0.99, 5)):  # never nothing, never everything
        _, test = split_rows(users, groups, rng, share, 0)
        assert [len(set(groups[test & (users == user)])) for user in range(3)] == [held] * 3


def test_groups_are_never_on_both_sides(monkeypatch):
    x, users = drifting(0)
    sessions = np.tile(np.repeat(np.arange(3), 30), 4)
    seen = []
    monkeypatch.setattr("semgbook.domain.split_rows", lambda *a: seen.append(split_rows(*a)) or seen[-1])
    found = fresh_probe(x, users, groups=[f"s{s}" for s in sessions], l2=1e-2)
    train, test = seen[0]
    for user in range(4):
        assert not set(sessions[train & (users == user)]) & set(sessions[test & (users == user)])
    assert found.n == test.sum() == 120


def test_interval_grows_when_rows_hang_together():
    rng = np.random.default_rng(0)
    users, units = np.repeat([0, 1], 200), np.tile(np.repeat(np.arange(10), 20), 2)
    alone = rng.random(400) < 0.6
    together = np.repeat(rng.random(20) < 0.6, 20)
    widths = []
    for right in (alone, together):
        accuracy, low, high = probe_interval(right, users, units)
        assert accuracy == pytest.approx((right[:200].mean() + right[200:].mean()) / 2) and 0 <= low <= accuracy <= high <= 1
        widths.append(high - low)
    assert widths[1] > 2.5 * widths[0]
    uneven = probe_interval(np.r_[np.ones(90, bool), np.zeros(10, bool)], np.repeat([0, 1], [90, 10]), np.arange(100) % 5)
    assert uneven[0] == 0.5  # balanced: who has many rows does not count more
    assert probe_interval(np.ones(40, bool), np.repeat([0, 1], 20), np.arange(40) % 5)[1] < 0.99  # all right is not certainty


def test_fit_is_the_best_there_is_and_weighs_users_alike():
    x, users = drifting(0, strength=1.0)
    users, x = users[60:], x[60:]  # 30, 90, 90, 90
    weights = fit_probe(torch.from_numpy(x), torch.from_numpy(users), 0.05, 4).requires_grad_()
    share = torch.from_numpy(1 / np.bincount(users)[users] / 4)
    loss = (share * functional.cross_entropy(torch.from_numpy(x) @ weights[:-1] + weights[-1], torch.from_numpy(users), reduction="none")).sum() + 0.025 * weights[:-1].square().sum()
    assert torch.autograd.grad(loss, weights)[0].abs().max() < 1e-4 and weights.detach().abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------- refusals
def test_settings_are_plain_values():
    settings = DomainSettings("dann", balanced=True)
    assert DomainSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize("wrong", [dict(method="grl"), dict(pooling="mean"), dict(weight=-1.0), dict(weight=math.nan), dict(ramp=math.inf), dict(warmup=1.0), dict(smoothing=-0.1),
                                   dict(cap=-0.5), dict(hidden=1.5), dict(hidden=-1), dict(lr=-1e-3), dict(method="coral", pooling="frame"), dict(method="mmd", lr=0.1), dict(method="coral", smoothing=0.1)])
def test_wrong_settings_name_the_field(wrong):
    with pytest.raises(DomainError, match=f"domain.{list(wrong)[-1]} is"): DomainSettings(**wrong)


def test_clear_refusals():
    with pytest.raises(DomainError, match="at least two users"): DomainObjective(DomainSettings("dann"), 4, 1)
    x, users = drifting(0)
    with pytest.raises(DomainError, match="pool_features"): fresh_probe(x[:, None], users)
    with pytest.raises(DomainError, match="one of each per row"): fresh_probe(x, users[1:])
    with pytest.raises(DomainError, match="one of each per row"): fresh_probe(x, users, groups=users[1:])
    with pytest.raises(DomainError, match="one user"): fresh_probe(x, np.zeros(len(x)))
    with pytest.raises(DomainError, match="not finite"): fresh_probe(x * np.nan, users)
    with pytest.raises(DomainError, match="user 0 has no held-out rows"): fresh_probe(x, users, groups=users)
    with pytest.raises(DomainError, match="user 9 has no .* rows"): fresh_probe(np.r_[x, x[:1]], np.r_[users, 9])
