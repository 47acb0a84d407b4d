import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hessian_lab.measures.live_bytes import peak_bytes


def test_the_peak_of_a_few_tensors_is_counted_by_hand():
    held = torch.zeros(1000)

    def run():
        first = held + 1
        second = first * 2
        del first
        second.view(10, 100).t()
        second.add_(1)
        torch.empty(2000)

    # What is held, ``second``, and the larger of ``first`` and the last one.
    assert peak_bytes(run, held=[held]) == 4 * (1000 + 1000 + 2000)


@pytest.mark.parametrize("create_graph", [False, True])
def test_passes_agree_with_the_allocator(create_graph):
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    inputs, parameters = torch.ones(64, 8), list(model.parameters())

    def run():
        loss = model(inputs).square().mean()
        gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        if create_graph:
            torch.autograd.grad(gradients, parameters, [each.detach() for each in gradients])

    run()
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as profiled:
        run()
    events = [
        each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"
    ]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    held = [*parameters, inputs]
    assert peak_bytes(run, held=held) == most + sum(value.nbytes for value in held)


def test_what_is_held_may_be_freed():
    kept = [torch.zeros(1000) for _ in range(3)]

    def run():
        for place in range(3):
            kept[place] = torch.ones(1000)

    assert peak_bytes(run, held=iter(kept)) == 4 * 4000


def test_nothing_is_counted_after_the_call():
    held = torch.zeros(10)
    assert peak_bytes(lambda: held + 1, held=[held]) == peak_bytes(lambda: held + 1, held=[held])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_by_itself():
    held = torch.zeros(1000, device="cuda")
    before = torch.cuda.memory_allocated()
    assert peak_bytes(lambda: held + 1, held=[held]) >= before + 4000
