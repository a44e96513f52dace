"""ZeRO-2 where DeepSpeed is not installed: what does not need it."""

import sys
from types import ModuleType

import pytest
import torch

from stepalign.config import OptimizerConfig
from stepalign.distributed.zero2 import ZeRO2
from stepalign.policy import Policy
from stepalign.trainer.accumulation import adamw


def test_before_the_first_update_a_checkpoint_has_an_optimizer_without_state(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    sharded = adamw(policy, OptimizerConfig())  # in place of DeepSpeed's, which holds another
    sharded.optimizer = adamw(policy, OptimizerConfig())  # type: ignore[attr-defined]
    found = ZeRO2().full_optimizer_state(policy, sharded)
    assert isinstance(found, torch.optim.AdamW)
    assert not found.state
