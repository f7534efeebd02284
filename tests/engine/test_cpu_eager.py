"""The count of more likely tokens, which vLLM compiles, is the same without compilation."""

import shutil

import pytest
import torch

pytestmark = pytest.mark.slow

ROWS = [
    (torch.tensor([[0.0, 1.0, 2.0]]), [1.0], [2], "one row, one more likely token"),
    (torch.tensor([[3.0, 3.0, 3.0]]), [3.0], [3], "ties count"),
    (torch.tensor([[5.0, 1.0], [1.0, 5.0]]), [5.0, 1.0], [1, 2], "each row by its own value"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by torch during the import of vllm
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="compares with compiled code")
@pytest.mark.parametrize("compiled", [True, False])
def test_ranks(compiled: bool) -> None:
    from vllm.v1.sample.ops.logprobs import batched_count_greater_than  # noqa: PLC0415  # takes seconds

    with torch._dynamo.config.patch(disable=not compiled):
        for logprobs_RV, values, ranks, why in ROWS:
            values_R1 = torch.tensor(values).unsqueeze(-1)
            assert batched_count_greater_than(logprobs_RV, values_R1).tolist() == ranks, why
        generator = torch.Generator().manual_seed(0)
        logprobs_RV = torch.randn(7, 49_152, generator=generator).log_softmax(-1)
        values_R1 = logprobs_RV[:, :1]
        assert torch.equal(batched_count_greater_than(logprobs_RV, values_R1), (logprobs_RV >= values_R1).sum(-1))
