from __future__ import annotations

import pytest

from crashproof.rules.proof.roles import Role, names_of, role_of, roles_of


@pytest.mark.parametrize(
    "name, expected",
    [
        ("loss", Role.LOSS),
        ("loss_components.kd", Role.COMPONENTS),
        ("learning_rate", Role.LEARNING_RATE),
        ("optimizer.param_groups.0.lr", Role.LEARNING_RATE),
        ("scheduler._last_lr.0", Role.LEARNING_RATE),
        ("samples_processed", Role.COUNTS),
        ("batch", Role.BATCH),
        ("random.python", Role.RANDOM),
        ("rng_state.pth", Role.RANDOM),
        ("optimizer.state.0.exp_avg", Role.OPTIMIZER),
        ("optimizer.pt.state.0.exp_avg", Role.OPTIMIZER),
        ("tensors.optimizer.layer.weight.exp_avg", Role.OPTIMIZER),
        ("tensors.module.layer.weight", Role.WEIGHTS),
        ("model.safetensors.layer.weight", Role.WEIGHTS),
        ("ema_model.layer", Role.AVERAGE),
        ("grad_scaler.scale", Role.SCALER),
        ("lr_schedulers.0.last_epoch", Role.SCHEDULER),
        ("counters.step", Role.OTHER),
    ],
)
def test_a_name_tells_its_role(name, expected):
    assert expected is role_of(name)


def test_names_are_found_by_role():
    names = ("model.a", "ema.a", "model.b")

    assert ["model.a", "model.b"] == names_of(Role.WEIGHTS, names)
    assert {Role.WEIGHTS, Role.AVERAGE} == roles_of(names)
