import pytest
import torch

from gadfly.trainer.rl.logprobs import token_logprobs

N, D, V = 13, 16, 50


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_results_and_gradients_equal_those_of_log_softmax(chunk: int, trained_head: bool, temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    head = torch.randn(V, D, generator=generator, requires_grad=trained_head)
    targets = torch.randint(V, (N,), generator=generator)
    weights = torch.randn(N, generator=generator)

    table = ((hidden @ head.T) / temperature).log_softmax(-1)
    expected = table.gather(-1, targets[:, None])[:, 0]
    (weights * expected).sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    expected_grads = [hidden.grad.clone(), head.grad.clone() if head.grad is not None else None]
    hidden.grad = head.grad = None

    found, entropies = token_logprobs(hidden, head, targets, temperature=temperature, chunk=chunk)
    (weights * found).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, -(table.exp() * table).sum(-1), atol=1e-5, rtol=0)
    assert not entropies.requires_grad
    torch.testing.assert_close(hidden.grad, expected_grads[0], atol=1e-5, rtol=1e-5)
    if trained_head:
        torch.testing.assert_close(head.grad, expected_grads[1], atol=1e-5, rtol=1e-5)


def test_the_head_alone_can_be_trained() -> None:
    hidden, head = torch.randn(N, D), torch.randn(V, D, requires_grad=True)
    targets = torch.randint(V, (N,))
    token_logprobs(hidden, head, targets)[0].sum().backward()  # type: ignore[no-untyped-call]
    found, head.grad = head.grad, None
    (hidden @ head.T).log_softmax(-1).gather(-1, targets[:, None]).sum().backward()  # type: ignore[no-untyped-call]
    assert found is not None
    torch.testing.assert_close(found, head.grad, atol=1e-5, rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    found, entropies = token_logprobs(torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    assert found.tolist() == [-2000.0]
    assert entropies.tolist() == [0.0]
