"""What is refused before anything long is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from crashproof.data_files.reader import require_readable
from crashproof.distillation.data.captured_folder import CapturedFolder
from crashproof.distillation.models.config_file import read_config_file
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.errors import CheckpointDamaged, ConfigError

__all__ = ["require_own_folder", "require_startable"]


def require_startable(config: RunConfig, output_dir: Path, *, resume: str, environment: Mapping[str, str]) -> None:
    """Refuse what the trainer would refuse anyway, seconds later, in the same words; nothing is written.

    Raises:
        ConfigError: A model's folder cannot be used, an environment variable is missing, or `output_dir` is no
            folder for this run.
        CheckpointDamaged: `resume` names no file or folder.
        DataError: Data cannot be read, or logits are not captured.
    """
    _require_models(config)
    config.alert_settings(environment)
    require_own_folder(output_dir)
    if resume not in ("auto", "never") and not Path(resume).exists():
        raise CheckpointDamaged(Path(resume), reason="there is no such file")
    _require_data(config.data)


def require_own_folder(output_dir: Path) -> None:
    """Refuse checkpoints without a run beside them: they are not ours, and would be overwritten.

    Raises:
        ConfigError: `output_dir` holds such checkpoints, or is a file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"{output_dir} is a file, not a folder.", hint="Pass a folder as --output-dir.")
    if (output_dir / "progress").is_dir() or not output_dir.is_dir():
        return
    found = sorted(output_dir.glob("checkpoint_*"))
    if found:
        raise ConfigError(
            f"{output_dir} holds {found[0].name} of a run that crashproof does not know.",
            hint="Use another --output-dir.",
        )


def _require_models(config: RunConfig) -> None:
    teacher = config.teacher
    if config.student.path is not None:
        read_config_file(config.student.path)
    if teacher.path is None or config.divergence is None:
        return
    if teacher.kind == "logits":
        CapturedFolder(teacher.path).read_complete()
    else:
        read_config_file(teacher.path)


def _require_data(data: DataConfig) -> None:
    given = data.path if isinstance(data.path, list) else [data.path]
    for path in [*given, data.eval_path]:
        if path is not None:
            require_readable(path)
