from __future__ import annotations

import os
from importlib.metadata import version

import crashproof
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.training.agreement.start import describe_start
from crashproof.pytorch.device import choose_device


def described(resume: str = "auto", environment: dict[str, str] | None = None, **config: object) -> dict[str, str]:
    device = choose_device("cpu")
    return describe_start("kd", KdConfig(**config), device, resume=resume, environment=environment or {})


def test_config_libraries_code_and_device_are_described() -> None:
    found = described(train={"steps": 7})

    assert "kd" == found["recipe"]
    assert "7" == found["train.steps"]
    assert "cpu in float32" == found["the device"]
    assert version("torch") == found["the version of torch"]
    assert {"the version of Python", "the version of tokenizers", "the version of numpy"} <= found.keys()
    num_files = len([name for name in found if name.startswith("crashproof/")])
    folder = os.path.dirname(crashproof.__file__)
    assert num_files == sum(name.endswith(".py") for _, _, files in os.walk(folder) for name in files)


def test_every_key_of_the_config_is_compared_but_for_the_alerts_and_credentials() -> None:
    names = described().keys()

    for section, config in KdConfig():
        for key in type(config).model_fields:
            is_left_out = f"{section}.{key}" in ("progress.alerts", *(f"teacher.{each}" for each in LEFT_OUT))
            assert is_left_out is not any(f"{name}.".startswith(f"{section}.{key}.") for name in names), key


LEFT_OUT = ("headers", "query", "prices")


def test_of_a_path_to_resume_from_only_the_content_counts() -> None:
    assert ["auto", "never", "a path", "a path"] == [
        described(resume)["--resume"] for resume in ("auto", "never", "/here/checkpoint_4", "/there/checkpoint_4")
    ]


def test_variables_that_change_the_numbers_are_described_and_no_others() -> None:
    found = described(environment={"NVIDIA_TF32_OVERRIDE": "0", "HOSTNAME": "host-b", "OMP_NUM_THREADS": "4"})

    assert {"the environment's NVIDIA_TF32_OVERRIDE": "0"} == {
        name: value for name, value in found.items() if name.startswith("the environment's")
    }
