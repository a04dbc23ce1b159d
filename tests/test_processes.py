"Processes that train one model: their places, their shares of a batch, norms over all shares, and what all take over from the first."
import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from toys import toy_corpus, toy_recipe
from torch import nn

from semgbook.processes import Place, SyncedNorm, TrainingError, agree, find_place, sync_norms
from semgbook.training import load_data


@pytest.mark.parametrize("batch_size", [4, 7, 11])
def test_a_share_is_weighted_by_what_it_has(tmp_path, batch_size):
    "Shares of every batch together are the batch, the last and uneven one too; weights average to one."
    recipe = toy_recipe(toy_corpus(tmp_path / "corpus"), training__batch_size=batch_size, augment__alignment_jitter=0, augment__rotation=0)
    whole = load_data(recipe).train
    assert batch_size == 4 or len(whole.window_set) % batch_size % 2, "an uneven batch at the end"
    for world in (2, 4):
        shares = [load_data(recipe, place=Place(r, world)).train for r in range(world)]
        assert {len(s) for s in shares} == {len(whole)}
        for k, (batch, *parts) in enumerate(zip(whole, *shares)):
            weights = [s.weight(k) for s in shares]
            assert sum(weights) == pytest.approx(world)
            real = [p.starts.tolist() for p, w in zip(parts, weights) if w]
            assert sorted(sum(real, [])) == sorted(batch.starts.tolist())
            assert [w * len(batch) / world for w in weights] == pytest.approx([len(p) if w else 0 for p, w in zip(parts, weights)])


def test_places_come_from_whoever_started_the_processes():
    assert find_place(2, 1, {}) is None
    assert find_place(2, 1, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == Place(1, 2, 1)
    assert find_place(2, 1, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}) == Place(1, 2, 0)
    assert find_place(2, 1, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None, "a batch script is not a rank"
    with pytest.raises(TrainingError, match="start 2"): find_place(2, 1, {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"})


def test_one_process_needs_no_place():
    "A job on a cluster often has such variables without meaning them."
    assert find_place(1, 1, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Place()
    with pytest.raises(TrainingError, match=r"training.devices = 2 x training.nodes = 3.* srun has started 4"):
        find_place(2, 3, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"})


def test_a_share_gives_the_whole_back(tmp_path):
    "What scores alone sees every window, in the order and with the jitter of one process."
    recipe = toy_recipe(toy_corpus(tmp_path / "corpus"))
    whole, share = load_data(recipe).train, load_data(recipe, place=Place(1, 2)).train
    assert [b.starts.tolist() for b in share.whole()] == [b.starts.tolist() for b in whole] != [b.starts.tolist() for b in share]


@pytest.fixture
def alone():
    "A process group of one."
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shape, affine", [((30, 4), True), ((12, 4, 3), True), ((12, 4, 3), False)])
def test_a_norm_of_one_process_is_the_ordinary_one(alone, shape, affine):
    "Output, gradients and running statistics, over several steps; and it is another code path."
    ours, theirs = SyncedNorm(4, affine=affine), nn.BatchNorm1d(4, affine=affine)
    for step in range(3):
        x = 2 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(step))
        grads = []
        for norm in (ours, theirs):
            values = x.clone().requires_grad_()
            y = norm(values)
            grads.append(torch.autograd.grad(y.sin().sum(), [values, *norm.parameters()]))
            if norm is ours: first, node = y, y.grad_fn
        torch.testing.assert_close(first, y, rtol=1e-5, atol=1e-5)
        assert "BatchNorm" not in type(node).__name__
        for a, b in zip(*grads): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items(): torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.eval()(x), nn.BatchNorm1d.forward(ours, x))


def test_replaced_norms_keep_state_and_mode():
    model = nn.Sequential(nn.BatchNorm1d(3, eps=0.1, momentum=0.3), nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.LayerNorm(3)), nn.BatchNorm2d(3))
    model[0](torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
    model[1].eval()
    synced = sync_norms(copy.deepcopy(model))
    assert [type(m) for m in (synced[0], synced[1][0], synced[1][1], synced[2])] == [SyncedNorm, SyncedNorm, nn.LayerNorm, nn.BatchNorm2d]
    assert (synced[0].eps, synced[0].momentum, synced[0].training, synced[1][0].training) == (0.1, 0.3, True, False)
    assert list(synced.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(synced.state_dict().values(), model.state_dict().values()))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(synced[0](x), model[0](x)), "without a process group an ordinary norm"


def test_agree_asks_the_first_only():
    asked = []
    assert agree(Place(), lambda: asked.append(0) or "row") == "row" and asked == [0]


STEP = """
import copy, json, os, sys
import torch, torch.distributed as dist
from torch import nn
from semgbook.processes import agree, find_place, sync_norms
place = find_place(2)
dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=place.rank, world_size=place.world)
torch.manual_seed(0)
x, y = torch.randn(7, 6), torch.randn(7, 1)
model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
whole, alone = copy.deepcopy(model), copy.deepcopy(model)
(whole(x) - y).square().mean().backward()
rows = torch.arange(7)[place.rank::place.world]
def off(twin):
    (len(rows) * place.world / 7 * (twin(x[rows]) - y[rows]).square().mean()).backward()
    for p in twin.parameters(): dist.all_reduce(p.grad); p.grad /= place.world
    return max(float((p.grad - q.grad).abs().max()) for p, q in zip(twin.parameters(), whole.parameters()))
synced = sync_norms(model)
print(json.dumps({"synced": off(synced), "alone": off(alone), "mean": float((synced[1].running_mean - whole[1].running_mean).abs().max()),
                  "var": float((synced[1].running_var - whole[1].running_var).abs().max()), "made": agree(place, os.getpid), "pid": os.getpid()}))
dist.destroy_process_group()
"""


def test_uneven_shares_of_two_processes_take_the_step_of_one(tmp_path):
    "Gradients and running statistics are those of the whole batch; without the norm over all they are not. What the first made, both have."
    def start(rank):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        return subprocess.Popen([sys.executable, "-c", STEP, str(tmp_path / "meeting")], env=env, stdout=subprocess.PIPE, text=True)
    first, second = (json.loads(p.communicate(timeout=120)[0]) for p in [start(0), start(1)])
    for said in (first, second):
        assert max(said["synced"], said["mean"], said["var"]) < 1e-6 < 1e-2 < said["alone"]
        assert said["made"] == first["pid"]
    assert first["pid"] != second["pid"]
