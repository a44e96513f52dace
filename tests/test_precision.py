from collections.abc import Iterator

import pytest
import torch

from stepalign import precision
from stepalign.bfloat16_linear import has_bfloat16_products
from stepalign.precision import set_matmul_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("speedup", "expected"), [(3.0, "medium"), (1.1, "highest"), (0.4, "highest")])
def test_auto_takes_bfloat16_products_where_they_are_measured_faster(
    speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "medium_speedup", lambda: speedup)
    assert set_matmul_precision("auto", CPU) == torch.get_float32_matmul_precision() == expected
    assert set_matmul_precision("auto", torch.device("cuda")) == "highest"


def test_measuring_leaves_precision_and_random_numbers_as_they_were() -> None:
    torch.set_float32_matmul_precision("medium")
    before = torch.get_rng_state()
    assert (precision.medium_speedup(rounds=2) > 0) == has_bfloat16_products()
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the processor has no bfloat16 products")
def test_medium_products_keep_float32_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(64, 4096, generator=generator), torch.randn(4096, 256, generator=generator)
    exact = factors[0].double() @ factors[1].double()
    set_matmul_precision("medium", CPU)
    error = (factors[0] @ factors[1] - exact).abs().max() / exact.std()
    # Each factor is rounded once to 2⁻⁸ and the errors average out; a sum in bfloat16 would be off by a tenth.
    # Without AMX oneDNN multiplies float32 factors as they are.
    assert (1e-5 if torch.cpu._is_amx_tile_supported() else 0) < error < 0.03
