from __future__ import annotations

from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.settings.recipes.registry import CONFIGS


def test_a_command_reads_the_config_of_the_task_that_it_trains() -> None:
    assert CONFIGS == {name: task.config for name, task in TASKS.items()}
