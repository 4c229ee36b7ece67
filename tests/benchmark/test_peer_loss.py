"""pytorch-ood's loss in our loop: its own numbers, and a gradient that arrives."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from knownot.benchmark.peer_loss import PytorchOodVos
from tests.helpers import COLOURS, pixels, tiny_model


def test_it_starts_late_fills_its_queues_and_reaches_the_backbone() -> None:
    model = tiny_model(draws_per_class=200.0).train()
    model.vos.start_step = 2
    peer = PytorchOodVos(model)
    assert not {id(p) for p in peer.parameters()} & {id(p) for p in model.parameters()}
    images = torch.cat([pixels(30, c, 7000 * k) for k, c in enumerate(COLOURS.values())])
    labels = torch.arange(2).repeat_interleave(30)
    losses = []
    for _ in range(6):
        output = model(images)
        losses.append(peer(output.features, output.logits, labels))
    # Two steps before the start, then two to fill 50 a class, and the next finds them full.
    assert [bool(loss.abs() > 1e-6) for loss in losses] == [False] * 4 + [True] * 2
    losses[-1].backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("backbone.0", "head")):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0


def test_it_is_the_librarys_number_less_cross_entropy() -> None:
    model = tiny_model(draws_per_class=200.0).train()
    model.vos.start_step = 0
    peer = PytorchOodVos(model)
    criterion = peer._criterion[0]
    images = torch.cat([pixels(60, c, 7000 * k) for k, c in enumerate(COLOURS.values())])
    labels = torch.arange(2).repeat_interleave(60)
    output = model(images)
    peer(output.features, output.logits, labels)
    torch.manual_seed(5)
    ours = peer(output.features, output.logits, labels)
    torch.manual_seed(5)
    theirs = criterion(output.logits, output.features, labels)
    torch.testing.assert_close(ours + F.cross_entropy(output.logits, labels), theirs)
    assert ours > 0


def test_a_resumed_run_goes_on_with_full_queues() -> None:
    model = tiny_model(draws_per_class=200.0).train()
    model.vos.start_step = 0
    images = torch.cat([pixels(60, c, 7000 * k) for k, c in enumerate(COLOURS.values())])
    labels = torch.arange(2).repeat_interleave(60)
    output = model(images)
    given = output.features.detach(), output.logits.detach(), labels
    first, resumed = PytorchOodVos(model), PytorchOodVos(model)
    first(*given)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    losses = []
    for peer in (first, resumed):
        torch.manual_seed(5)
        losses.append(peer(*given))
    assert losses[0] > 0
    assert torch.equal(*losses)
